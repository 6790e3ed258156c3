"""Proof that an exported GGUF is base plus adapter: next-token distributions in torch and llama.cpp, and structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.weights.divergence import DivergenceMeter
from amigo_local.weights.gguf_header import GgufHeader, read_header
from amigo_local.weights.language_model import loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.tensor_rows import Rows
from amigo_local.weights.torch_model import TorchModel, too_big_for_torch

MAX_TOKENS = 64
# Mean next-token KL in nats that a file type may show. Measured, correct export of an adapter with 210 modules on
# SmolLM2-135M (133 positions) / of random 4-layer models, which are the most sensitive: F16 0.0001 / 0.001,
# Q8_0 0.006 / 0.011, Q6_K 0.02, Q5_K_M 0.09, Q5_K_S 0.11, Q4_K_M 0.07 / 0.52, Q4_K_S 0.09, Q4_0 0.47,
# Q3_K_M 0.17 / 0.95.
# The base's query and key rows in the wrong order: 2.5.
KL_LIMITS = {"F32": 0.02, "F16": 0.02, "BF16": 0.02, "Q8_0": 0.1, "Q6_K": 0.2, "Q5_K_M": 0.6, "Q5_K_S": 0.6}
KL_LIMIT_ELSEWHERE = 1.5
# An export that is so much nearer to the base alone, and at nearly all positions, has lost its adapter. Both, because
# the mean alone misleads when the adapter is weaker than the quantization: 0.016 to 0.0095 for a right Q4_K_M.
LOST_ADAPTER_RATIO, LOST_ADAPTER_SHARE = 0.5, 0.25
# What an export sets anew; everything else is the donor's.
_OWN_KEYS = frozenset({"general.file_type", "general.quantization_version"})


def check_exported(
    base_dir: Path,
    adapter_dir: Path | None,
    gguf_path: Path,
    texts: Sequence[str],
    emit: Emit,
    *,
    base_gguf: Path | None = None,
    max_parameters: int | None = None,
    threads: int | None = None,
) -> dict[str, Figure]:
    """Compares base checkpoint + adapter (torch float32, PEFT) with the exported file in llama.cpp.

    With `base_gguf`, the donor: tensors and metadata must be the same, and `kl_of_base` (donor against the base
    without adapter) says what the donor's own quantization already costs, to judge `kl_mean` by. The distributions
    are left out, with a Note, above `max_parameters`, or (None) when float32 weights don't fit into memory now.
    Returns kl_mean, kl_max (nats), same_top_share, kl_positions, kl_without_adapter (the export against the base
    alone) and kl_of_base. Raises AmigoError when a limit above is passed or the adapter isn't in the file.
    """
    header = read_header(gguf_path)
    figures: dict[str, Figure] = {}
    if base_gguf is not None:
        figures |= _check_structure(read_header(base_gguf), header)
    reason = too_big_for_torch(header.parameters, max_parameters)
    if reason:
        emit(Note(f"the next-token check was left out: {reason}", "warning"))
        return figures | {"kl_checked": False}

    reference = TorchModel(base_dir, adapter_dir)
    merged, alone = DivergenceMeter(), DivergenceMeter()
    for tokens, served in _served(header, base_dir.parent, texts, emit, "comparing the export", threads):
        merged.add(reference.logits(tokens), served)
        if adapter_dir is not None:
            alone.add(reference.logits(tokens, with_adapter=False), served)
    result = merged.result()
    figures |= {
        "kl_checked": True,
        "kl_mean": result.mean,
        "kl_max": result.max,
        "same_top_share": result.same_top,
        "kl_positions": result.positions,
    }
    if base_gguf is not None:
        base = DivergenceMeter()
        donor = read_header(base_gguf)
        for tokens, served in _served(donor, base_dir.parent, texts, emit, "comparing the base", threads):
            base.add(reference.logits(tokens, with_adapter=adapter_dir is None), served)
        figures["kl_of_base"] = base.result().mean
    if adapter_dir is not None:
        figures["kl_without_adapter"] = alone.result().mean
    _refuse_far(header, result.mean)
    if adapter_dir is not None:
        _refuse_lost_adapter(header, merged, alone)
    return figures


def _refuse_far(header: GgufHeader, mean: float) -> None:
    limit = KL_LIMITS.get(header.quantization, KL_LIMIT_ELSEWHERE)
    if not mean <= limit:  # written so that NaN fails too
        raise AmigoError(
            f"{header.path}: is not base plus adapter: next-token KL mean {mean:.3g} nats, "
            f"expected at most {limit} for {header.quantization}",
            "export with a wider quantization such as q8_0; if that fails too, the base isn't the adapter's",
        )


def _refuse_lost_adapter(header: GgufHeader, merged: DivergenceMeter, alone: DivergenceMeter) -> None:
    mean, without = merged.result().mean, alone.result().mean
    if without < LOST_ADAPTER_RATIO * mean and merged.nearer_than(alone) < LOST_ADAPTER_SHARE:
        raise AmigoError(
            f"{header.path}: the adapter is not in it: next-token KL {mean:.3g} nats to base plus adapter, "
            f"{without:.3g} to the base alone",
            "export again; if it happens again, report it",
        )


def _served(
    header: GgufHeader, scratch_parent: Path, texts: Sequence[str], emit: Emit, label: str, threads: int | None
) -> Iterator[tuple[list[int], Rows]]:
    """(token ids, llama.cpp's logits) of each text that isn't empty."""
    with loadable(header, scratch_parent) as path, LlamaCppModel(path, threads=threads) as model:
        for i, text in enumerate(texts):
            if tokens := model.tokenize(text)[:MAX_TOKENS]:
                yield tokens, model.logits(tokens)
            emit(Progress(label, i + 1, len(texts), "prompts"))


def _check_structure(donor: GgufHeader, exported: GgufHeader) -> dict[str, Figure]:
    """Same tensors, same shapes, same metadata byte for byte. Raises AmigoError naming the first difference."""
    hint = "export again; if it happens again, report it"
    expected = {tensor.name: tensor.dimensions for tensor in donor.tensors}
    found = {tensor.name: tensor.dimensions for tensor in exported.tensors}
    if different := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = different[0]
        raise AmigoError(
            f"{exported.path}: tensor {name} is {found.get(name)}, in {donor.path} it is {expected.get(name)}", hint
        )
    with donor.path.open("rb") as donor_file, exported.path.open("rb") as exported_file:
        for key in sorted((donor.raw_fields.keys() | exported.raw_fields.keys()) - _OWN_KEYS):
            entries = []
            for file, header in ((donor_file, donor), (exported_file, exported)):
                start, end = header.raw_fields.get(key, (0, 0))
                file.seek(start)
                entries.append(file.read(end - start))
            if entries[0] != entries[1]:
                raise AmigoError(f"{exported.path}: {key} differs from {donor.path}", hint)
    return {"tensors": len(found), "metadata_keys": len(exported.raw_fields), "structure_checked": True}
