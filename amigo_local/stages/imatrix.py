"""imatrix: measures which columns of a model's weights matter, for quantizing with care."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._models import resolve, step_by_ref
from amigo_local.stages._shapes import gguf_bytes

FILE = "imatrix.gguf"
_PIECE_CHARACTERS = 1 << 20
_CHUNK_TOKENS = 512  # what llama-imatrix takes
_RAM_BYTES = 600 << 20  # besides the weights: 0.4 GB of keys and values for a 12B, twice 64 MB of logits
_MULTIPLICATIONS_PER_SECOND = 15e9  # 134.5 M parameters, 2048 tokens: 15 s with llama.cpp's Q4_1 on one busy core


class ImatrixParams(Params, frozen=True, kw_only=True):
    ref: Annotated[str, argument("REF of the model to measure (a GGUF or a tag).")]
    texts: Annotated[str, option("What to measure it on: a text file, or a data set (or a file of one) by `prepare`.")]
    chunks: Annotated[int, option("At most so many pieces of 512 tokens.")] = 100
    out: Annotated[str | None, option("File to write; default: in the home folder.")] = None


def inputs(params: ImatrixParams, context: StageContext) -> dict[str, str]:
    model = resolve(params.ref, context)
    model.need_gguf("imatrix")
    if params.chunks < 1:
        raise InputError(f"--chunks is {params.chunks}, expected at least 1", "leave it out for 100")
    return {"model": model.digest, "texts": context.workspace.digests.digest(_file(params.texts))}


def needs(params: ImatrixParams, context: StageContext) -> Needs:
    from amigo_local.weights.gguf_header import read_header
    from amigo_local.weights.imatrix_collection import imatrix_disk_needed

    header = read_header(resolve(params.ref, context).need_gguf("imatrix"))
    return _needs(params, imatrix_disk_needed(header), header.file_size, header.parameters)


def outlook(params: ImatrixParams, shape: ModelShape, context: StageContext) -> Needs:
    columns = shape.layers * sum(inputs for inputs, _ in shape.linears.values())
    return _needs(params, 4 * columns + (1 << 20), gguf_bytes(shape), shape.parameters)


def _needs(params: ImatrixParams, disk_bytes: int, file_bytes: int, parameters: int) -> Needs:
    seconds = parameters * params.chunks * _CHUNK_TOKENS / _MULTIPLICATIONS_PER_SECOND
    return Needs(disk_bytes=disk_bytes, ram_bytes=file_bytes + _RAM_BYTES, seconds=seconds)


def run(params: ImatrixParams, context: StageContext) -> StageResult:
    from amigo_local.weights.imatrix import write_importance_matrix
    from amigo_local.weights.imatrix_collection import collect

    file = _file(params.texts)
    matrix = collect(
        resolve(params.ref, context).need_gguf("imatrix"),
        _samples(file),
        context.emit,
        scratch_dir=context.build_dir(),
        context_tokens=_CHUNK_TOKENS,
        max_chunks=params.chunks,
        datasets=(file.name,),
    )
    write_importance_matrix(matrix, context.build_dir() / FILE)
    figures: dict[str, Figure] = {
        "chunks": matrix.chunk_count,
        "tokens": matrix.chunk_count * matrix.chunk_size,
        "tensors": len(matrix.entries),
    }
    return StageResult(figures, payload=FILE)


def _file(texts: str) -> Path:
    """The file that holds the samples: of a data set, its training part."""
    from amigo_local.data.prepare import TRAIN_FILE

    given = Path(texts).expanduser().absolute()
    file = given / TRAIN_FILE if given.is_dir() else given
    if not file.is_file():
        raise InputError(f"there is no file {file}", "give a text file, or the directory that `prepare` made")
    return file


def _samples(file: Path) -> Iterator[str | list[int]]:
    """Token ids of the rows that `prepare` wrote, rendered as they are trained on; else text, in pieces of whole
    lines. Raises InputError naming the file for anything else."""
    from amigo_local.data.prepare import read_rows

    try:
        if file.suffix == ".jsonl":
            yield from (row.input_ids for row in read_rows(file))
            return
        with file.open(encoding="utf-8") as text:
            while piece := text.read(_PIECE_CHARACTERS):
                yield piece + text.readline()
    except msgspec.MsgspecError as error:
        raise InputError(
            f"{file}: holds other rows than `prepare` writes: {error}", "give its data set, or text in a .txt file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no UTF-8 text: {error.reason} at byte {error.start}", "convert it") from error


STAGE = Stage(
    "imatrix",
    "Measure on texts which columns of the weights matter: an importance matrix.",
    ImatrixParams,
    run,
    step_by_ref("imatrix"),
    produces="imatrix",
    inputs=inputs,
    needs=needs,
    outlook=outlook,
)
