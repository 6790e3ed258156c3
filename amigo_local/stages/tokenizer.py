"""tokenizer: a GGUF's tokenizer, chat template and config in transformers' form, proven against llama.cpp."""

from __future__ import annotations

from typing import Annotated

from amigo_local.domain.plan import Needs
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._check_texts import CHECKED_TEXTS
from amigo_local.stages._models import resolve, step_by_ref

_RAM_BYTES = 650 << 20  # Gemma's 262,144 tokens and 514,906 merges, with the check: 638 MB measured
_TEMPLATE_FIX = "take a chat model, such as one that ends in -it or -instruct"
_SECONDS = 6.0  # the same, on two cores


class TokenizerParams(Params, frozen=True, kw_only=True):
    ref: Annotated[str, argument("REF of the model.")]
    out: Annotated[str | None, option("Directory to write; default: in the home folder.")] = None


def inputs(params: TokenizerParams, context: StageContext) -> dict[str, str]:
    model = resolve(params.ref, context)
    model.need_gguf("tokenizer")
    return {"model": model.digest}


def needs(params: TokenizerParams, context: StageContext) -> Needs:
    from amigo_local.weights.unpack import TOKENIZER_BYTES

    return Needs(disk_bytes=TOKENIZER_BYTES, ram_bytes=_RAM_BYTES, seconds=_SECONDS)


def run(params: TokenizerParams, context: StageContext) -> StageResult:
    from amigo_local.weights.check_texts import check_texts
    from amigo_local.weights.gguf_header import read_header
    from amigo_local.weights.unpack import unpack_tokenizer
    from amigo_local.weights.verify_unpack import check_tokenizer

    gguf = resolve(params.ref, context).need_gguf("tokenizer")
    figures = unpack_tokenizer(gguf, context.build_dir())
    if read_header(gguf).chat_template is None:
        context.note("the model has no chat template, which training sets are rendered with", "warning", _TEMPLATE_FIX)
    return StageResult(figures | check_tokenizer(gguf, context.build_dir(), check_texts(CHECKED_TEXTS), context.emit))


STAGE = Stage(
    "tokenizer",
    "Write a GGUF's tokenizer and chat template, checked against llama.cpp.",
    TokenizerParams,
    run,
    step_by_ref("tokenizer"),
    produces="tokenizer",
    inputs=inputs,
    needs=needs,
)
