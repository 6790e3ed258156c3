"""The one figure that says most about what a stage has made."""

from __future__ import annotations

from collections.abc import Mapping

from amigo_local.domain.artifact import Figure


def headline(stage: str, figures: Mapping[str, Figure]) -> str:
    """A few words; empty where nothing stands out."""
    match stage:
        case "prepare":
            return _count(figures, "train_samples", "samples") or _count(figures, "train_pairs", "pairs")
        case "quantize":
            return f"error {100 * error:.1f} %" if (error := _number(figures, "mean_error")) is not None else ""
        case "train":
            first, last = _number(figures, "first_loss"), _number(figures, "final_loss")
            return f"loss {first:.2f} → {last:.2f}" if first is not None and last is not None else ""
        case "export":
            kl = _number(figures, "kl_mean")
            words = [str(figures.get("quantization") or ""), f"KL {kl:.3f}" if kl is not None else ""]
            return ", ".join(word for word in words if word)
        case "register":
            return str(figures.get("tag") or "")
        case "tokenizer":
            return _count(figures, "vocabulary", "tokens")
        case "imatrix":
            return _count(figures, "tokens", "tokens")
        case "candidates":
            return _count(figures, "problems", "problems")
        case "evaluate":
            return _evaluated(figures)
        case _:
            return ""


def _evaluated(figures: Mapping[str, Figure]) -> str:
    """Code at once, of every model that was asked: the before and the after."""
    ends = (".at_once_share", ".names_used_share", ".fixed_share")
    for end in ends:
        found: dict[str, list[float]] = {}
        for name, value in figures.items():
            if name.endswith(end) and isinstance(value, float | int):
                found.setdefault(name.split(".")[0], []).append(float(value))
        if found:
            suite, shares = next(iter(found.items()))
            what = "code at once" if end == ends[0] else suite
            return f"{what} {' → '.join(f'{100 * share:.0f}' for share in shares)} %"
    return ""


def _number(figures: Mapping[str, Figure], name: str) -> float | None:
    value = figures.get(name)
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else None


def _count(figures: Mapping[str, Figure], name: str, unit: str) -> str:
    value = _number(figures, name)
    return f"{value:,.0f} {unit}" if value is not None else ""
