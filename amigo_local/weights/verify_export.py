"""The round-trip proof of an export: the GGUF is base plus adapter, in structure, tokens, chats and distributions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.weights.architecture import architecture_of
from amigo_local.weights.divergence import change_share, divergence
from amigo_local.weights.gguf_header import GgufHeader, read_header
from amigo_local.weights.kernels import Rows
from amigo_local.weights.language_model import loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel
from amigo_local.weights.probe import Probe, probes
from amigo_local.weights.tokenizer import write_tokenizer
from amigo_local.weights.torch_model import TorchModel, load_tokenizer
from amigo_local.weights.verify_adapter import check_change, check_effect
from amigo_local.weights.verify_structure import check_metadata, check_tensors
from amigo_local.weights.verify_tokens import check_chats, check_tokens
from amigo_local.weights.weight_source import CheckpointWeights, GgufWeights, WeightSource

# Mean next-token KL in nats that a file type may show. Measured, correct export of an adapter with 210 modules on
# SmolLM2-135M (133 positions) / of random 4-layer models, which are the most sensitive: F16 0.0001 / 0.001,
# Q8_0 0.006 / 0.011, Q6_K 0.02, Q5_K_M 0.09, Q5_K_S 0.11, Q4_K_M 0.07 / 0.52, Q4_K_S 0.09, Q4_0 0.47,
# Q3_K_M 0.17 / 0.95.
# The base's query and key rows in the wrong order: 2.5.
KL_LIMITS = {"F32": 0.02, "F16": 0.02, "BF16": 0.02, "Q8_0": 0.1, "Q6_K": 0.2, "Q5_K_M": 0.6, "Q5_K_S": 0.6}
KL_LIMIT_ELSEWHERE = 1.5
# The base against the file that its checkpoint was unpacked from: MEAN_KL_LIMIT in verify_unpack.py says why.
BASE_KL_LIMIT = 0.05


def check_exported(
    exported_path: Path,
    donor_path: Path,
    adapter_dir: Path | None,
    emit: Emit,
    *,
    expected_types: Mapping[str, int],
    verbatim: Collection[str],
    token_texts: Sequence[str],
    prompts: Sequence[str] = (),
    checkpoint_dir: Path | None = None,
    checkpoint_is_donor: bool = True,
    threads: int | None = None,
) -> dict[str, Figure]:
    """Compares an export with its base: metadata, tensor table and bytes, token ids, chats, and distributions.

    `expected_types`: tensor name -> ggml type id. `verbatim`: tensors that must be the donor's byte for byte.
    `token_texts`: tokenized by transformers and by llama.cpp. `prompts`: held-out texts, cut to 64 tokens, on which
    base + adapter (torch in float32, PEFT) and the export (llama.cpp) predict the next token; empty: left out.
    `checkpoint_dir`: the base in transformers' form; None: its configuration, tokenizer and weights are read from the
    donor. `checkpoint_is_donor` False: it isn't unpacked from the donor, which then shows nothing about it.
    Returns the figures of each part; KL in nats. Raises AmigoError with the evidence when any of it doesn't hold.
    """
    donor, exported = read_header(donor_path), read_header(exported_path)
    figures = check_metadata(donor, exported)
    changes = check_tensors(donor, exported, expected_types, verbatim, emit)
    figures |= {"tensors": len(exported.tensors), "structure_checked": True, **changes.figures()}
    scratch = exported_path.parent
    with _base(checkpoint_dir, donor, scratch) as base:
        where = checkpoint_dir or donor_path
        tokenizer = load_tokenizer(base.directory)
        with (
            loadable(exported, scratch, vocabulary_only=True) as path,
            LlamaCppModel(path, vocabulary_only=True) as served,
        ):
            emit(Progress("comparing tokens", 0, len(token_texts), "texts"))
            figures |= check_tokens(tokenizer, served, token_texts, where)
            figures |= check_chats(tokenizer, exported, served, where)
            chosen = probes((served.tokenize(text) for text in prompts), served.vocabulary_size)
        if adapter_dir is not None:
            figures |= check_change(base.weights, exported, adapter_dir)
        if not chosen:
            emit(Note("no prompts were given: the export's predictions were not compared", "warning"))
            return figures | {"kl_checked": False}
        found = _Logits.measure(base, adapter_dir, donor, exported, chosen, emit, threads)
    return figures | _check_predictions(found, exported, adapter_dir is not None, checkpoint_is_donor, emit)


class _Base(msgspec.Struct, frozen=True):
    directory: Path
    """With config.json and tokenizer."""
    weights: WeightSource


@contextmanager
def _base(checkpoint_dir: Path | None, donor: GgufHeader, scratch_parent: Path) -> Iterator[_Base]:
    if checkpoint_dir is not None:
        yield _Base(checkpoint_dir, CheckpointWeights(checkpoint_dir))
        return
    family = architecture_of(donor)
    normal = family.normalize(donor)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=scratch_parent) as scratch:
        directory = Path(scratch)
        write_tokenizer(normal, directory)
        config = family.config(normal)
        (directory / "config.json").write_text(json.dumps(config), "utf-8")
        yield _Base(directory, GgufWeights(donor))


class _Logits(msgspec.Struct, frozen=True):
    """Of the same positions, (positions, vocabulary): in torch without and with adapter, in llama.cpp donor and export.

    Never are two models loaded at once.
    """

    base: Rows
    refined: Rows
    donor: Rows
    exported: Rows

    @classmethod
    def measure(
        cls,
        base: _Base,
        adapter_dir: Path | None,
        donor: GgufHeader,
        exported: GgufHeader,
        chosen: Sequence[Probe],
        emit: Emit,
        threads: int | None,
    ) -> _Logits:
        steps = 4 if adapter_dir else 3
        served: list[Rows] = []
        for header in (exported, donor):
            emit(Progress("comparing predictions", len(served), steps, "models"))
            with loadable(header, exported.path.parent) as path, LlamaCppModel(path, threads=threads) as model:
                served.append(model.logits(chosen))
        reference = TorchModel(base.directory, base.weights, adapter_dir)
        emit(Progress("comparing predictions", 2, steps, "models"))
        alone = refined = reference.logits(chosen, with_adapter=False)
        if adapter_dir:
            emit(Progress("comparing predictions", 3, steps, "models"))
            refined = reference.logits(chosen)
        emit(Progress("comparing predictions", steps, steps, "models"))
        return cls(alone, refined, donor=served[1], exported=served[0])


def _check_predictions(
    found: _Logits, exported: GgufHeader, has_adapter: bool, checkpoint_is_donor: bool, emit: Emit
) -> dict[str, Figure]:
    merged = divergence(found.refined, found.exported)
    of_base = divergence(found.base, found.donor)
    figures: dict[str, Figure] = {
        "kl_checked": True,
        "kl_mean": merged.mean,
        "kl_max": merged.max,
        "same_top_share": merged.same_top,
        "kl_positions": merged.positions,
        "kl_of_base": of_base.mean,
    }
    if checkpoint_is_donor and not of_base.mean <= BASE_KL_LIMIT:  # written so that NaN fails too
        raise AmigoError(
            f"{exported.path}: the base itself isn't understood: its next-token KL between torch and llama.cpp is "
            f"{of_base.mean:.3g} nats, expected at most {BASE_KL_LIMIT}",
            "unpack the base again; if that fails too, report this file",
        )
    limit = KL_LIMITS.get(exported.quantization, KL_LIMIT_ELSEWHERE)
    if not merged.mean <= limit:
        raise AmigoError(
            f"{exported.path}: is not base plus adapter: next-token KL mean {merged.mean:.3g} nats, "
            f"expected at most {limit} for {exported.quantization}",
            "export with a wider quantization such as q8_0; if that fails too, the base isn't the adapter's",
        )
    if not has_adapter:
        return figures
    effect = divergence(found.refined, found.base).mean
    share = change_share(found.base, found.refined, found.donor, found.exported)
    figures |= {
        "kl_without_adapter": divergence(found.base, found.exported).mean,
        "adapter_effect": effect,
        **share.figures("adapter_share"),
    }
    # What llama.cpp's own arithmetic costs is no fault of the file.
    check_effect(exported, effect, share, merged.mean - of_base.mean, emit)
    return figures
