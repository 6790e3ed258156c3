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
_BEGINS = re.compile(r"\s*(?:This|It|If|When|The|Note|Returns?|Raises?|Uses?|By default|For|In|An?|Each|Any)\b")
_S_ENDINGS = ("s", "sh", "ch", "x", "z", "o")


def request(qualified_name: str, signature: str, paragraph: str) -> str | None:
    """A request for `signature` (`name(a, b=1)`) that says what `paragraph` says; None when it can't be put naturally.

    One of several phrasings is chosen by a hash of `qualified_name`: the same function always gets
    the same one, and a model sees them all.
    """
    base, _, rest = paragraph.partition(" ")
    verb = _imperative(base)
    if verb is None or not rest or rest.startswith("of "):  # "Records of a journal" are things
        return None
    rest = _ended(rest)
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
    if "How do I" in phrasings[chosen] and (re.search("[.:;] ", rest) or len(rest) > 90):
        chosen = 0  # more than one sentence doesn't fit into a question
    asked = phrasings[chosen]
    if asked.startswith("Can you") and asked.endswith(".") and not re.search("[.:;] ", rest):
        return f"{asked[:-1]}?"
    return asked


def described(qualified_name: str, signature: str, paragraph: str) -> str:
    """As `request`; a paragraph that names a thing instead of an action is quoted."""
    said = _ended(paragraph)
    return request(qualified_name, signature, paragraph) or _one_of(
        qualified_name,
        (
            f"Write a Python function `{signature}`. Its docstring says: {said}",
            f"Implement `{signature}` in Python, documented as: {said}",
            f"I need a Python function `{signature}`: {said}",
        ),
    )


def asked_for(qualified_name: str, signature: str, paragraph: str) -> str:
    """As `described`; where there is nothing to say, examples have to."""
    if len(paragraph) >= 12:
        return described(qualified_name, signature, paragraph)
    return _one_of(
        qualified_name,
        (
            f"Write a Python function `{signature}` that does what these examples show.",
            f"I need a Python function `{signature}` that behaves like this.",
        ),
    )


def in_context(qualified_name: str, asked: str, path: str, files: str) -> str:
    """`asked` for a function of the file `path`, with the parts of `files` that there are already."""
    return _one_of(
        f"{qualified_name} in context",
        (
            f"These are parts of my project:\n\n{files}\n\n{asked}\n\nIt goes into `{path}`. Give only the function.",
            f"{asked}\n\nIt goes into `{path}` and should use what is there already. This is what matters of the "
            f"project:\n\n{files}\n\nAnswer with the new function alone.",
            f"{files}\n\nThis is the code so far. {asked}\n\nThe function belongs in `{path}`; "
            "don't repeat what exists.",
        ),
    )


def with_examples(asked: str, examples: str) -> str:
    """`asked` with a doctest session that shows what is expected."""
    return f"{asked}\n\nExamples:\n\n```python\n{examples}\n```"


def to_mend(qualified_name: str, code: str, error: str, about: str) -> str:
    """A function that fails, with what it says; `about` is what it should do, or empty."""
    block, said = f"```python\n{code}\n```", f"```\n{error}\n```"
    purpose = f" It should do this: {_ended(about)}" if about else ""
    return _one_of(
        f"{qualified_name} {error}",
        (
            f"This fails.{purpose}\n\n{block}\n\n{said}\n\nWhat is wrong, and how is it mended?",
            f"{block}\n\nThe function above fails:\n\n{said}\n\nFind the bug and fix it.{purpose}",
            f"I get this error:\n\n{said}\n\nHere is my code:\n\n{block}\n\n"
            "Why, and what does the corrected function look like?",
            f"Please debug this Python code.{purpose}\n\n{block}\n\n{said}",
        ),
    )


def to_change(key: str, message: str, path: str, language: str, old: str) -> str:
    """A commit's message as what is asked for of the old text."""
    block = f"`{path}`:\n```{language}\n{old}\n```"
    return _one_of(
        key,
        (
            f"{message}\n\n{block}\n\nAnswer with what changes.",
            f"{block}\n\nPlease change it as follows: {message}\n\nGive only the code that changes.",
            f"I have this file.\n\n{block}\n\nWhat I want: {message}\n\nShow me the changed code.",
        ),
    )


def _ended(text: str) -> str:
    """With a full stop, also where a colon leads to examples that don't come along."""
    text = text.rstrip(": ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _one_of(key: str, phrasings: tuple[str, ...]) -> str:
    return phrasings[int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % len(phrasings)]


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
    if verb.endswith("ly") and verb not in _VERBS:  # "recursively": an adverb stays as it is
        return verb
    if verb.endswith("y") and verb[-2:-1] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(_S_ENDINGS) else "s")


def clean_paragraph(docstring: str) -> str:
    """The first paragraph on one line, reStructuredText roles and double backquotes made plain."""
    lines = docstring.strip().split("\n\n")[0].split("\n")
    if len(lines) > 1 and not lines[0].rstrip().endswith((".", ",", ":", ";", "!", "?")) and _BEGINS.match(lines[1]):
        lines[0] += "."  # a summary without its full stop
    paragraph = " ".join(" ".join(lines).split())
    paragraph = re.sub(r":[a-z]+(?::[a-z]+)?:`~?([^`]+)`", r"`\1`", paragraph)
    paragraph = re.sub(r"``([^`]+)``", r"`\1`", paragraph)
    return re.sub(r"`([^`']+)'", r"`\1`", paragraph)  # `old quotes'
