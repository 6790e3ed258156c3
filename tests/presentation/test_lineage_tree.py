from __future__ import annotations

from amigo_local.domain.events import Ancestor, LineageShown, Record, decode_record, encode_record
from amigo_local.presentation.lineage import lineage_lines

BASE = Ancestor(role="base", name="ollama:gemma3", digest="sha256:" + "a" * 64, tags=("gemma3:latest",))
SET = Ancestor(role="dataset", name="set", digest="sha256:" + "b" * 64, path="/h/set", stage="prepare", run_id="r1")
ADAPTER = Ancestor(
    role="adapter",
    name="adapter",
    digest="sha256:" + "c" * 64,
    path="/h/adapter",
    stage="train",
    recipe="direct",
    run_id="r1",
    sources=(BASE, SET),
)
AGAIN = Ancestor(role="dataset", name="set", digest=SET.digest, path="/h/set", stage="prepare", is_above=True)
TAG = Ancestor(
    role="tag", name="refined:latest", digest="sha256:" + "d" * 64, stage="register", sources=(ADAPTER, AGAIN)
)
EVENT = LineageShown(ref="refined", origin=TAG, made_from_it=(SET,))


def test_a_tree_says_what_made_each_thing_from_what() -> None:
    assert lineage_lines(EVENT) == [
        "Lineage of refined",
        "  register  tag refined:latest",
        "    train  adapter cccccccccccc  by recipe direct (run r1)  /h/adapter",
        "      base aaaaaaaaaaaa  served as gemma3:latest  ollama:gemma3",
        "      prepare  dataset bbbbbbbbbbbb  (run r1)  /h/set",
        "    prepare  dataset bbbbbbbbbbbb  /h/set  (see above)",
        "Made from it",
        "  prepare  dataset bbbbbbbbbbbb  (run r1)  /h/set",
    ]


def test_the_tree_goes_through_a_journal_as_it_was() -> None:
    record = Record("r", 0, 0.0, "models", EVENT)
    assert decode_record(encode_record(record)) == record
