"""Turns a signature and the first paragraph of a docstring into the request a person would type."""

from __future__ import annotations

import hashlib
import re

# What a docstring's first word may be: imperatives found in the standard library and numpy. A
# paragraph that opens with none of them ("JPEG data in JFIF format") reads badly as a request.
_VERBS = frozenset(
    """
    accept acquire add adjust advance align allocate analyze analyse apply approximate assemble assert assign
    attach attempt bind break build calculate call capitalize change check choose chop clean clear close coerce
    collapse collect combine compact compare compile complete compress compute concatenate configure construct
    consume convert copy count create cut debug decide decode decompress decorate decrement deduce define delete
    determine detect disassemble discard display divide do draw drop dump duplicate emit encode ensure enumerate
    escape estimate evaluate examine execute expand extend extract factor fetch fill filter find fix flatten flush
    follow fold force format generate get give group guess handle hash help identify implement import increment
    indent infer initialize insert inspect install interpolate interpret intersect invert invoke issue iterate
    join keep list load locate log look loop lower make map mark match measure merge modify move multiply negate
    normalize normalise obtain open order output overwrite pack pad parse partition perform pick pop prepare
    prepend pretty-print print process produce prompt provide push put query quote raise read rebuild recompute
    reconstruct record reduce register reject remove rename render repeat replace report represent reset resize
    resolve restore retrieve return reverse rewrite rotate round run sample save scale scan search select send
    separate serialize set shift show shuffle simplify skip slice sort split square squeeze start stop store strip
    subtract suggest sum swap synthesize take tally tell terminate test tokenize transform translate transpose
    traverse trim truncate try turn uncompress undo unescape unify unpack unquote unwrap update upper use validate
    verify wait walk warn wrap write yield zip
    """.split()  # noqa: SIM905 -- prose, not a column of 250 literals
)
_S_ENDINGS = ("s", "sh", "ch", "x", "z", "o")


def request(qualified_name: str, signature: str, paragraph: str) -> str | None:
    """A request for `signature` (`name(a, b=1)`) that says what `paragraph` says; None when it can't be put naturally.

    One of several phrasings is chosen by a hash of `qualified_name`: the same function always gets
    the same one, and a model sees them all.
    """
    base, _, rest = paragraph.partition(" ")
    verb = _imperative(base)
    if verb is None or not rest:
        return None
    rest = rest if rest.endswith((".", "!", "?", ":")) else rest + "."
    rest = rest[:-1] + "." if rest.endswith(":") else rest
    clause, plain = f"{third_person(verb)} {rest}", f"{verb} {rest}"
    indented = f"{verb.capitalize()} {rest}"
    phrasings = (
        f"Write a Python function `{signature}` that {clause}",
        f"I need a Python function `{signature}` that {clause}",
        f"Please write `{signature}` in Python. It should {plain}",
        f"Implement the Python function `{signature}`. It {clause}",
        f"Can you write a function `{signature}` in Python that {clause}",
        f"How do I {plain.rstrip('.')} in Python? Show me a function `{signature}`.",
        f'Complete this Python function:\n\n```python\ndef {signature}:\n    """{indented}"""\n```',
    )
    chosen = int.from_bytes(hashlib.sha256(qualified_name.encode()).digest()[:4], "big") % len(phrasings)
    if "How do I" in phrasings[chosen] and (". " in rest or len(rest) > 90):
        chosen = 0  # more than one sentence doesn't fit into a question
    return phrasings[chosen]


def _imperative(word: str) -> str | None:
    """`return` for Return, Returns and return; None for what isn't a known verb."""
    word = word.lower()
    if word in _VERBS:
        return word
    for verb in (word[:-1], word[:-2], word[:-3] + "y"):
        if verb in _VERBS and third_person(verb) == word:
            return verb
    return None


def third_person(verb: str) -> str:
    """`returns`, `passes`, `tries`."""
    if verb.endswith("ly"):  # "recursively": an adverb stays as it is
        return verb
    if verb.endswith("y") and verb[-2:-1] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(_S_ENDINGS) else "s")


def clean_paragraph(docstring: str) -> str:
    """The first paragraph on one line, reStructuredText roles and double backquotes made plain."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    paragraph = re.sub(r":[a-z]+(?::[a-z]+)?:`~?([^`]+)`", r"`\1`", paragraph)
    paragraph = re.sub(r"``([^`]+)``", r"`\1`", paragraph)
    return re.sub(r"`([^`']+)'", r"`\1`", paragraph)  # `old quotes'
