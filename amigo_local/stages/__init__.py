"""One file per step of the loop, named as its CLI verb; the folder listing is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from amigo_local.domain.errors import InputError
from amigo_local.engine.contract import Stage

# The order of the loop, for help texts; verbs not named here follow by name.
_ORDER = (
    *(
        "doctor",
        "status",
        "models",
        "pull",
        "base",
        "unpack",
        "tokenizer",
        "prepare",
        "quantize",
        "plan",
        "train",
        "merge",
    ),
    *("imatrix", "export", "register", "chat", "evaluate", "answers", "run", "runs", "demo"),
)


@cache
def stage_names() -> tuple[str, ...]:
    """Every verb, in the order of the loop. Modules starting with `_` are not stages."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return tuple(sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)))


def load_stage(name: str) -> Stage:
    """The STAGE of `stages/<name>.py`. Raises InputError when there is none."""
    if name not in stage_names():
        raise InputError(f"no stage is called {name!r}", f"there are: {', '.join(stage_names())}")
    stage: Stage = importlib.import_module(f"{__name__}.{name}").STAGE
    return stage
