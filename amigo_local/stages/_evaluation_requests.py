"""The held-out requests that an evaluation may ask, gathered from sets, and the context that they need."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from amigo_local.domain.errors import InputError
from amigo_local.engine.contract import StageContext
from amigo_local.stages._models import resolve

if TYPE_CHECKING:
    from amigo_local.evaluation.held_out import Request
    from amigo_local.stages.evaluate import EvaluateParams

SKILLS = ("context", "debugging", "reasoning")
_CONTEXT_TOKENS = 4096
_CONTEXT_STEP_TOKENS = 1024


class Gathered(NamedTuple):
    held_out: tuple[Request, ...]
    """For directness."""
    skills: tuple[Request, ...]
    context_length: int
    """Tokens that the longest of them needs with its answer."""


def gather_requests(params: EvaluateParams, context: StageContext) -> Gathered:
    """What one set holds out, another may train on: such requests are left out, and told."""
    from amigo_local.evaluation.held_out import is_trained, read_requests, trained_prompts

    held_out = read_requests(params.dataset) if params.dataset else ()
    folders = dict.fromkeys([*([params.dataset] if params.dataset else []), *params.skills.values()])
    pool = tuple(request for folder in folders for request in read_requests(folder)) if _asks_skills(params) else ()
    if params.skills:
        trained = trained_prompts(params.skills.values())
        unseen = tuple(request for request in held_out if not is_trained(request, trained))
        if held_out and not unseen:
            context.note("another set trains on every directness prompt: they are asked all the same", "warning")
        skills = tuple(request for request in pool if not is_trained(request, trained))
        if left_out := len({request.prompt for request in pool}) - len({request.prompt for request in skills}):
            context.note(f"{left_out} held-out requests are left out: another set trains on them")
        held_out, pool = unseen or held_out, skills
    return _fitting(held_out, pool, params, context)


def _asks_skills(params: EvaluateParams) -> bool:
    """Also directness does: it runs what can be run."""
    return bool({*SKILLS, "directness"} & set(params.settings.suites))


def _fitting(
    held_out: tuple[Request, ...], skills: tuple[Request, ...], params: EvaluateParams, context: StageContext
) -> Gathered:
    """Without what leaves no room for an answer in the smallest model's context."""
    lengths = []
    for ref in params.refs:
        with contextlib.suppress(InputError):  # a tag of a server whose folder can't be read
            lengths.append(resolve(ref, context).shape().context_length)
    answer = params.settings.max_answer_tokens
    if room := min(filter(None, lengths), default=0):
        most = room - min(answer, room // 2)
        kept = tuple(request for request in skills if request.prompt_tokens <= most)
        if len(kept) < len(skills):
            text = f"{len(skills) - len(kept)} held-out requests leave no room for an answer in a context of {room}"
            context.note(f"{text}: they are left out", "warning")
        held_out, skills = tuple(request for request in held_out if request.prompt_tokens <= most) or held_out, kept
    longest = max((request.prompt_tokens for request in (*held_out, *skills)), default=0)
    return Gathered(held_out, skills, context_tokens(longest, answer))


def context_tokens(longest_prompt: int, longest_answer: int) -> int:
    """What to load models with, in whole steps, so that a word more or less changes nothing."""
    steps = -(-(longest_prompt + longest_answer) // _CONTEXT_STEP_TOKENS)
    return max(_CONTEXT_TOKENS, steps * _CONTEXT_STEP_TOKENS)
