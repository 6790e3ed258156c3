"""A model's lineage as an indented tree, and what was made from it."""

from __future__ import annotations

from collections.abc import Iterator

from amigo_local.domain.events import Ancestor, LineageShown


def lineage_lines(event: LineageShown) -> list[str]:
    """A heading, a line for each thing with its sources below it, then what was made from it."""
    lines = [f"Lineage of {event.ref}", *_tree(event.origin, 1)]
    if event.made_from_it:
        lines += ["Made from it", *(f"  {about(child)}" for child in event.made_from_it)]
    return lines


def about(thing: Ancestor) -> str:
    """`train  adapter a88807f1a33c  by recipe direct (run ID)  path`, without what isn't known."""
    known_by = thing.name if thing.stage == "register" else thing.digest.removeprefix("sha256:")[:12]
    words = [thing.stage, f"{thing.role} {known_by}".strip()]
    by = " ".join([f"by recipe {thing.recipe}"] * bool(thing.recipe) + [f"(run {thing.run_id})"] * bool(thing.run_id))
    words += [by, f"served as {', '.join(thing.tags)}" if thing.tags else ""]
    place = thing.path or thing.name
    words += ["" if place == known_by else place, "(see above)" if thing.is_above else ""]
    return "  ".join(word for word in words if word)


def _tree(thing: Ancestor, depth: int) -> Iterator[str]:
    yield "  " * depth + about(thing)
    for source in thing.sources:
        yield from _tree(source, depth + 1)
