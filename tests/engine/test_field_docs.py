"""What a field means, read from under it."""

from __future__ import annotations

from typing import Annotated

from amigo_local.domain.data_source import HubSource
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.strict import Strict
from amigo_local.engine.contract import option
from amigo_local.engine.field_docs import field_docs


class Sample(Strict, frozen=True, kw_only=True):
    """Not a field's."""

    first: int = 1
    second: Annotated[int, option("Said in the option.")] = 2
    third: Annotated[int, option("Said in the option.")] = 3
    """Said below,
    over two lines."""

    def method(self) -> None:
        """Not a field's either."""


def test_a_docstring_under_a_field_is_its_meaning() -> None:
    assert field_docs(Sample) == {"second": "Said in the option.", "third": "Said below, over two lines."}
    assert field_docs(TrainSettings)["neftune_noise_alpha"] == "Noise on the input embeddings (NEFTune); None: off."


def test_inherited_fields_keep_theirs() -> None:
    docs = field_docs(HubSource)
    assert docs["hub"] == "ORG/NAME." and docs["prompt"] == "Column of the request."
    assert docs["limit"].startswith("Take at most so many")


def test_what_has_no_source_has_no_docs() -> None:
    namespace: dict[str, type] = {}
    exec("import msgspec\nclass Made(msgspec.Struct):\n  x: int = 1\n  'said'\n", {"__name__": "nowhere"}, namespace)
    assert field_docs(namespace["Made"]) == {}
