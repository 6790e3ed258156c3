"""DataSource: where training data comes from, as a recipe says it. One struct for each kind, told by its first key."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from amigo_local.domain.strict import Fraction, Positive, Strict

CodeUse = Literal["docstrings", "context"]
"""`docstrings`: a function from what its docstring asks for. `context`: one that must use definitions given with the
request, from its own and from other files."""
PairKind = Literal["direct", "correct", "context", "reasoning"]
"""What a pair of answers teaches. `direct`: the same code with nothing around it. `correct`: the one that passes.
`context`: the one that uses what it was given. `reasoning`: thought where it was needed, none where it wasn't."""


class Source(Strict, frozen=True, kw_only=True, tag_field="kind"):
    """What every kind may say besides."""

    limit: Positive | None = None
    """Take at most so many, evenly spread over modules; None takes all."""

    @property
    def kind(self) -> str:
        """Also the name of its file in data/sources/."""
        return str(self.__struct_config__.tag)

    @property
    def preferences(self) -> bool:
        """Whether it gives pairs of answers rather than single ones."""
        return False


class StdlibSource(Source, frozen=True, kw_only=True, tag="stdlib"):
    """The running Python's own standard library."""

    stdlib: Literal["all"] | tuple[str, ...]
    """Top-level modules to mine, or "all"."""
    take: CodeUse = "docstrings"


class PackageSource(Source, frozen=True, kw_only=True, tag="package"):
    """Python packages that are installed beside this program."""

    package: str | tuple[str, ...]
    """As they are imported: `numpy`."""
    take: CodeUse = "docstrings"


class RepoSource(Source, frozen=True, kw_only=True, tag="repo"):
    """A git repository, or any folder of code, on this disk."""

    repo: str
    take: tuple[Literal["commits", "docstrings", "context"], ...] = ("docstrings", "context")
    """`commits`: message and old text to new text, which needs git."""
    license: str | None = None
    """SPDX identifier; None: what its licence file says."""
    revision: str | None = None
    """Branch, tag or commit whose history is read; None: what is checked out."""


class DoctestSource(Source, frozen=True, kw_only=True, tag="doctest"):
    """Functions whose docstring shows examples: the examples are part of the request, and the code is run on them."""

    doctest: str | tuple[str, ...]
    """`stdlib`, an installed package, or the path of a folder."""


class BugInjectionSource(Source, frozen=True, kw_only=True, tag="bug_injection"):
    """Working code that is broken on purpose, with the error of the example or test that then fails."""

    bug_injection: str | tuple[str, ...]
    """`stdlib`, an installed package, or the path of a folder: what has doctests, or tests beside it."""
    per_function: Positive = 2
    """Different bugs in one function."""


class RowsSource(Source, frozen=True, kw_only=True):
    """A table of rows, whatever it is stored in, and what its columns mean."""

    mapping: Literal["columns", "commits", "context", "bugs", "sharegpt"] = "columns"
    """`columns`: a request and its answer (or two). `commits`: as in commitpackft, a message and a file before and
    after. `context`: the same with the file as context. `bugs`: as in DebugBench. `sharegpt`: conversations."""
    prompt: str = "prompt"
    """Column of the request."""
    completion: str = "completion"
    """Column of the answer."""
    chosen: str | None = None
    """Column of the better answer; with `rejected` it makes a preference set, for train.method: dpo."""
    rejected: str | None = None
    """Column of the worse answer."""
    where: dict[str, tuple[str, ...]] = {}
    """Column -> values: only rows that have one of them are read."""
    license: str | None = None
    """SPDX identifier of rows that don't say."""
    language: str | None = None
    """Programming language of rows that don't say."""
    rows: Positive | None = None
    """Read only so many rows, from the beginning; None reads all."""

    def __post_init__(self) -> None:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("a source of preferences names both columns: chosen and rejected")
        if self.chosen is not None and self.completion != "completion":
            raise ValueError("chosen and rejected name columns in the place of completion")
        if self.mapping != "columns" and (self.chosen is not None or (self.prompt, self.completion) != _COLUMNS):
            raise ValueError(
                f"mapping: {self.mapping} knows its columns; prompt, completion, chosen and rejected don't"
            )

    @property
    def preferences(self) -> bool:
        return self.chosen is not None


_COLUMNS = ("prompt", "completion")


class JsonlSource(RowsSource, frozen=True, kw_only=True, tag="jsonl"):
    """JSON-lines files, also compressed (`.gz`)."""

    jsonl: str
    """Path, or a pattern such as `data/*.jsonl`."""


class JsonSource(RowsSource, frozen=True, kw_only=True, tag="json"):
    """JSON files that are each one list of objects."""

    json: str
    """Path, or a pattern such as `bugs/*.json`."""


class ParquetSource(RowsSource, frozen=True, kw_only=True, tag="parquet"):
    """Parquet files."""

    parquet: str
    """Path, or a pattern."""


class HubSource(RowsSource, frozen=True, kw_only=True, tag="hub"):
    """A data set of the Hugging Face hub, read by the paths of its files, so that none of its code is ever run."""

    hub: str
    """ORG/NAME."""
    files: str
    """Pattern of paths in the repository: `data/python/data.jsonl`, `data/train-*.parquet`."""
    revision: str | None = None
    """A commit pins it; None or a branch: the commit that it is at, which the set's record then names."""
    optional: bool = False
    """Go on without it where no hub can be reached: said, and written into the set's record."""


class VotesSource(Source, frozen=True, kw_only=True, tag="votes"):
    """Which of two answers the person liked better, as `chat A B` writes it down."""

    votes: str
    """`mine`: the home folder's, or the path of a votes.jsonl."""

    @property
    def preferences(self) -> bool:
        return True


class ReplaySource(Source, frozen=True, kw_only=True, tag="replay"):
    """Samples of earlier stages again, so that nothing is forgotten."""

    replay: str | tuple[str, ...]
    """`earlier`: the sets of the chain's stages before this one; or folders that `prepare` made, or run:ID."""
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.15
    """Of the samples of this set that shall be replayed ones."""


ProblemSource = (
    StdlibSource
    | PackageSource
    | RepoSource
    | DoctestSource
    | BugInjectionSource
    | JsonlSource
    | JsonSource
    | ParquetSource
    | HubSource
)


class CandidatesSource(Source, frozen=True, kw_only=True, tag="candidates"):
    """Answers that the model itself gives to problems, judged by running them.

    Without `pairs` they are single answers: the thought is kept where the model needs it (data.reasoning: hard), and
    left out where it doesn't.
    """

    candidates: tuple[ProblemSource, ...]
    """Where the problems come from."""
    pairs: tuple[PairKind, ...] = ()
    """Kinds of pairs to make, for train.method: dpo."""
    problems: Positive = 200
    """Ask so many, evenly spread."""
    samples: Annotated[int, Meta(ge=2, le=64)] = 4
    """Answers to each, every other one asked for code alone; one more, at temperature 0, also is."""
    temperature: Annotated[float, Meta(gt=0, le=2)] = 0.8
    max_answer_tokens: Positive = 1024
    hard_below: Fraction = 0.5
    """Pass rate of the direct answers below which a problem is hard."""
    seed: int = 0

    @property
    def preferences(self) -> bool:
        return bool(self.pairs)


DataSource = ProblemSource | VotesSource | ReplaySource | CandidatesSource
FileSource = JsonlSource | JsonSource | ParquetSource
