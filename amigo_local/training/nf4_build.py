"""Builds an NF4 store from any source of weights, a tensor at a time, and goes on where it was cut."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.domain.units import format_size
from amigo_local.training.ggml_decoding import can_decode
from amigo_local.training.nf4_index import (
    INDEX_FILE,
    LAYERS_FILE,
    SMALL_FILE,
    TABLES_FILE,
    SourceFile,
    StoreIndex,
    TableEntry,
    read_index,
)
from amigo_local.training.nf4_layers import (
    JOURNAL_FILE,
    StoreIdentity,
    Weights,
    nonfinite,
    sync,
    write_layers,
    write_synced,
)
from amigo_local.training.nf4_model import HEAD, ModelOutline, outline
from amigo_local.training.nf4_quantization import quantizing_threads

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_store(source: Weights, source_digest: str, out_dir: Path, emit: Emit) -> dict[str, Figure]:
    """Writes a store of `source` into `out_dir`, where config.json is already, or finishes one that was begun there;
    index.json comes last.

    Weights are rounded to bfloat16 first, so that the bytes are those of from_pretrained(load_in_4bit, dtype=bfloat16).
    At most one layer is done again after a kill. Holds one layer of NF4 and a few pieces of float32 in memory.
    Returns counts, bytes and the relative RMS errors of NF4. Raises InputError for weights that are NaN or infinite
    and for a source that doesn't have the tensors of its config; AmigoError on a full disk.
    """
    with _disk_full_is_an_error(out_dir):
        plan = outline(out_dir)
        _check_tensors(source, plan)
        identity = StoreIdentity(source_digest, version("bitsandbytes"), plan.layers)
        if finished := _finished(out_dir, identity):
            return _figures(finished)
        with quantizing_threads() as pool:
            _check_finite(source, plan, emit)
            layers = write_layers(source, identity, out_dir, pool, emit)
        small_nbytes = _write_small(source, plan, out_dir)
        files, tables, tables_nbytes = _write_tables(source, plan, out_dir, emit)
        sizes = {LAYERS_FILE: (out_dir / LAYERS_FILE).stat().st_size, SMALL_FILE: small_nbytes}
        if tables_nbytes:
            sizes[TABLES_FILE] = tables_nbytes
        index = StoreIndex(
            source_digest=source_digest,
            bitsandbytes=identity.bitsandbytes,
            files=files,
            tables=tables,
            layers=layers,
            sizes=sizes,
        )
        write_synced(out_dir / INDEX_FILE, msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
        (out_dir / JOURNAL_FILE).unlink(missing_ok=True)
    return _figures(index)


def _finished(out_dir: Path, identity: StoreIdentity) -> StoreIndex | None:
    """The index of a store that was complete before what should follow was cut."""
    try:
        index = read_index(out_dir)
        sizes = {name: (out_dir / name).stat().st_size for name in index.sizes}
    except (InputError, OSError):
        return None
    of_layers = tuple(tuple((it.module, it.rows, it.columns) for it in layer.linears) for layer in index.layers)
    same = StoreIdentity(index.source_digest, index.bitsandbytes, of_layers) == identity and sizes == index.sizes
    return index if same else None


def _figures(index: StoreIndex) -> dict[str, Figure]:
    errors = {
        f"model.layers.{i}.{linear.module}": linear.error
        for i, layer in enumerate(index.layers)
        for linear in layer.linears
    }
    worst = max(errors, key=lambda name: errors[name])
    return {
        "layers": len(index.layers),
        "linears": len(errors),
        "parameters": sum(linear.rows * linear.columns for layer in index.layers for linear in layer.linears),
        "layer_bytes": max(layer.nbytes for layer in index.layers),
        "store_bytes": sum(index.sizes.values()),
        "mean_error": sum(errors.values()) / len(errors),
        "worst_error": errors[worst],
        "worst_tensor": worst,
        "embedding_type": index.tables[0].type_name,
        "bitsandbytes": index.bitsandbytes,
    }


def _check_tensors(source: Weights, plan: ModelOutline) -> None:
    """Raises InputError for what the class has and the source lacks, and for what would be dropped in silence."""
    expected = plan.small | plan.tables
    for i, layer in enumerate(plan.layers):
        expected |= {f"model.layers.{i}.{module}.weight": (rows, columns) for module, rows, columns in layer}
    hint = "download or unpack the checkpoint again"
    missing = sorted(expected.keys() - set(source.shapes))
    if missing:
        raise InputError(f"the source lacks {len(missing)} tensors of its config, first {missing[0]}", hint)
    # A tied head, or frequencies that the config describes: from_pretrained leaves them alone as well.
    surplus = [
        name for name in source.shapes if name not in expected and name != HEAD and not name.endswith("inv_freq")
    ]
    if surplus:
        raise InputError(f"the source has {len(surplus)} tensors that its config doesn't, first {surplus[0]}", hint)
    for name, shape in expected.items():
        if tuple(source.shapes[name]) != shape:
            raise InputError(f"tensor {name} is {list(source.shapes[name])}, its config says {list(shape)}", hint)


def _check_finite(source: Weights, plan: ModelOutline, emit: Emit) -> None:
    """Of what isn't quantized, where it would be found without looking."""
    names = [*plan.tables, *plan.small]
    for done, name in enumerate(names):
        for _, rows in source.tiles(name):
            with np.errstate(over="ignore", invalid="ignore"):
                looks_finite = np.isfinite(np.dot(rows.reshape(-1), rows.reshape(-1)))  # one pass, no temporary
            if not looks_finite:
                finite = torch.isfinite(torch.from_numpy(rows).bfloat16())
                if count := rows.size - int(torch.count_nonzero(finite)):
                    raise nonfinite(name, count)
        emit(Progress("checking norms and embedding", done + 1, len(names), "tensors"))


def _write_small(source: Weights, plan: ModelOutline, out_dir: Path) -> int:
    from safetensors.torch import save

    values = {}
    for name, shape in plan.small.items():
        rows = np.concatenate([rows.reshape(-1) for _, rows in source.tiles(name)])
        values[name] = torch.from_numpy(rows).reshape(shape)
    data = save(values)
    write_synced(out_dir / SMALL_FILE, data)
    return len(data)


def _write_tables(
    source: Weights, plan: ModelOutline, out_dir: Path, emit: Emit
) -> tuple[tuple[SourceFile, ...], tuple[TableEntry, ...], int]:
    """References to the source, and bfloat16 copies of what can't be used as it lies there. Last: bytes copied."""
    files: dict[Path, SourceFile] = {}
    entries: list[TableEntry] = []
    copied = 0
    for name in plan.tables:
        raw = source.raw_table(name)
        if can_decode(raw.type_name):
            path = raw.path.absolute()
            stat = path.stat()
            files.setdefault(path, SourceFile(str(path), stat.st_size, stat.st_mtime_ns))
            at = list(files).index(path)
            entries.append(TableEntry(name, at, raw.offset, raw.nbytes, raw.type_name, raw.rows, raw.columns))
            continue
        emit(Note(f"{name} is {raw.type_name}, which is decoded nowhere but in llama.cpp: kept as bfloat16"))
        with (out_dir / TABLES_FILE).open("r+b" if copied else "wb") as file:
            file.seek(copied)
            for first, rows in source.tiles(name):
                file.write(torch.from_numpy(rows).bfloat16().view(torch.uint8).numpy().data)
                emit(Progress(f"copying {name}", first + len(rows), raw.rows, "rows"))
            sync(file)
        nbytes = 2 * raw.rows * raw.columns
        entries.append(TableEntry(name, None, copied, nbytes, "BF16", raw.rows, raw.columns))
        copied += nbytes
    return tuple(files.values()), tuple(entries), copied


@contextmanager
def _disk_full_is_an_error(out_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise AmigoError(
            f"{out_dir}: the disk is full, after {format_size(_written(out_dir))}; the layers that are there are kept",
            "free some space and run the same command again: it goes on from there",
        ) from error


def _written(out_dir: Path) -> int:
    return sum(path.stat().st_size for path in out_dir.iterdir())
