from __future__ import annotations

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.humaneval import Problem, load_problems
from amigo_local.evaluation.sandbox import Sandbox, open_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    opened = open_sandbox()
    if opened.kind != "bubblewrap":
        pytest.skip(f"{opened.statement}: {opened.fix}")
    return opened


@pytest.fixture(scope="session")
def problems() -> tuple[Problem, ...]:
    try:
        return load_problems({})
    except InputError as missing:
        pytest.skip(f"{missing.message}: {missing.hint}")
