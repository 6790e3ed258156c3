"""Which hub repositories a GGUF may have been made from: a pure look at its metadata, its shape and its tag."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

from amigo_local.domain.shape import ModelShape
from amigo_local.weights.gguf_header import GgufHeader, model_shape

# architecture, layers, hidden, heads, kv heads, ffn, embedding rows (the models' config.json) -> their repositories,
# tuned ones before pretrained ones.
_SHAPES: tuple[tuple[str, str], ...] = (
    ("gemma2 26 2304 8 4 9216 256000", "google/gemma-2-2b-it google/gemma-2-2b"),
    ("gemma2 42 3584 16 8 14336 256000", "google/gemma-2-9b-it google/gemma-2-9b"),
    ("gemma2 46 4608 32 16 36864 256000", "google/gemma-2-27b-it google/gemma-2-27b"),
    ("gemma3 18 640 4 1 2048 262144", "google/gemma-3-270m-it google/gemma-3-270m"),
    ("gemma3 26 1152 4 1 6912 262144", "google/gemma-3-1b-it google/gemma-3-1b-pt"),
    ("gemma3 34 2560 8 4 10240 262208", "google/gemma-3-4b-it google/gemma-3-4b-pt"),
    ("gemma3 48 3840 16 8 15360 262208", "google/gemma-3-12b-it google/gemma-3-12b-pt"),
    ("gemma3 62 5376 32 16 21504 262208", "google/gemma-3-27b-it google/gemma-3-27b-pt"),
    ("llama 16 2048 32 8 8192 128256", "meta-llama/Llama-3.2-1B-Instruct meta-llama/Llama-3.2-1B"),
    ("llama 28 3072 24 8 8192 128256", "meta-llama/Llama-3.2-3B-Instruct meta-llama/Llama-3.2-3B"),
    (
        "llama 32 4096 32 8 14336 128256",
        "meta-llama/Llama-3.1-8B-Instruct meta-llama/Meta-Llama-3-8B-Instruct"
        " meta-llama/Llama-3.1-8B meta-llama/Meta-Llama-3-8B",
    ),
    (
        "llama 80 8192 64 8 28672 128256",
        "meta-llama/Llama-3.3-70B-Instruct meta-llama/Llama-3.1-70B-Instruct meta-llama/Meta-Llama-3-70B-Instruct"
        " meta-llama/Llama-3.1-70B meta-llama/Meta-Llama-3-70B",
    ),
    (
        "llama 32 4096 32 8 14336 32000",
        "mistralai/Mistral-7B-Instruct-v0.2 mistralai/Mistral-7B-Instruct-v0.1 mistralai/Mistral-7B-v0.1",
    ),
    ("llama 32 4096 32 8 14336 32768", "mistralai/Mistral-7B-Instruct-v0.3 mistralai/Mistral-7B-v0.3"),
    ("qwen2 24 896 14 2 4864 151936", "Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-Coder-0.5B-Instruct Qwen/Qwen2.5-0.5B"),
    (
        "qwen2 28 1536 12 2 8960 151936",
        "Qwen/Qwen2.5-1.5B-Instruct Qwen/Qwen2.5-Coder-1.5B-Instruct Qwen/Qwen2.5-1.5B",
    ),
    ("qwen2 36 2048 16 2 11008 151936", "Qwen/Qwen2.5-3B-Instruct Qwen/Qwen2.5-Coder-3B-Instruct Qwen/Qwen2.5-3B"),
    ("qwen2 28 3584 28 4 18944 152064", "Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-Coder-7B-Instruct Qwen/Qwen2.5-7B"),
    ("qwen2 48 5120 40 8 13824 152064", "Qwen/Qwen2.5-14B-Instruct Qwen/Qwen2.5-Coder-14B-Instruct Qwen/Qwen2.5-14B"),
    ("qwen2 64 5120 40 8 27648 152064", "Qwen/Qwen2.5-32B-Instruct Qwen/Qwen2.5-Coder-32B-Instruct Qwen/Qwen2.5-32B"),
    ("qwen2 80 8192 64 8 29568 152064", "Qwen/Qwen2.5-72B-Instruct Qwen/Qwen2.5-72B"),
    ("qwen3 28 1024 16 8 3072 151936", "Qwen/Qwen3-0.6B Qwen/Qwen3-0.6B-Base"),
    ("qwen3 28 2048 16 8 6144 151936", "Qwen/Qwen3-1.7B Qwen/Qwen3-1.7B-Base"),
    (
        "qwen3 36 2560 32 8 9728 151936",
        "Qwen/Qwen3-4B Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507 Qwen/Qwen3-4B-Base",
    ),
    ("qwen3 36 4096 32 8 12288 151936", "Qwen/Qwen3-8B Qwen/Qwen3-8B-Base"),
    ("qwen3 40 5120 40 8 17408 151936", "Qwen/Qwen3-14B Qwen/Qwen3-14B-Base"),
    ("qwen3 64 5120 64 8 25600 151936", "Qwen/Qwen3-32B"),
    (
        "phi3 32 3072 32 32 8192 32064",
        "microsoft/Phi-3-mini-4k-instruct microsoft/Phi-3-mini-128k-instruct microsoft/Phi-3.5-mini-instruct",
    ),
    ("phi3 40 5120 40 10 17920 32064", "microsoft/Phi-3-medium-4k-instruct microsoft/Phi-3-medium-128k-instruct"),
    ("llama 30 576 9 3 1536 49152", "HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM2-135M"),
    ("llama 32 960 15 5 2560 49152", "HuggingFaceTB/SmolLM2-360M-Instruct HuggingFaceTB/SmolLM2-360M"),
    ("llama 24 2048 32 32 8192 49152", "HuggingFaceTB/SmolLM2-1.7B-Instruct HuggingFaceTB/SmolLM2-1.7B"),
)
MAX_EXTRA_ROWS = 256
"""Embedding rows that two copies of one model may differ by: padding (Gemma 3: 262144 and 262208), added tokens."""

# Who asks for a licence to be accepted first; None: it has changed, the hub knows.
_GATED: dict[str, bool | None] = {"google": True, "meta-llama": True, "mistralai": None}
# Copies without that gate (unsloth/models/mapper.py in unslothai/unsloth): where the name isn't the official one.
_MIRRORS = {
    "meta-llama/Meta-Llama-3-8B": "unsloth/llama-3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "unsloth/llama-3-8b-Instruct",
    "meta-llama/Llama-3.1-70B": "unsloth/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-70B-Instruct": "unsloth/Meta-Llama-3.1-70B-Instruct",
    "meta-llama/Meta-Llama-3-70B": None,
    "meta-llama/Meta-Llama-3-70B-Instruct": None,
    "mistralai/Mistral-7B-v0.1": "unsloth/mistral-7b",
}
# How Ollama's library calls a repository's family, longest beginning first.
_TAGS = (
    ("gemma-2-", "gemma2"),
    ("gemma-3-", "gemma3"),
    ("meta-llama-3-", "llama3"),
    ("llama-3.1-", "llama3.1"),
    ("llama-3.2-", "llama3.2"),
    ("llama-3.3-", "llama3.3"),
    ("mistral-7b-", "mistral"),
    ("qwen2.5-coder-", "qwen2.5-coder"),
    ("qwen2.5-", "qwen2.5"),
    ("qwen3-", "qwen3"),
    ("phi-3-", "phi3"),
    ("phi-3.5-", "phi3.5"),
    ("smollm2-", "smollm2"),
)
_TUNED = re.compile(r"-(it|instruct|chat)\b|^qwen3-(?!.*-base$)", re.IGNORECASE)
_PRETRAINED_TAG = re.compile(r"\b(text|base|pt)\b")
_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)(?:/|\.git)?(?:[?#].*)?")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Candidate(msgspec.Struct, frozen=True):
    """A repository, why it may be the base, and whether its licence must be accepted before a download."""

    repo: str
    reason: str
    gated: bool | None
    """None: not known without asking the hub."""


def base_candidates(header: GgufHeader, tag: str | None = None) -> tuple[Candidate, ...]:
    """Likeliest first: what the file says of its source, its name, its tag, what it was tuned from, then its shape.

    `tag` is the Ollama tag it was reached by. A gated repository is followed by its ungated copy, where one is known.
    """
    shape = model_shape(header)
    known = _known_of(shape)
    found: dict[str, tuple[int, list[str], str]] = {}
    for rank, repo, reason in (
        *_from_metadata(header.metadata, known),
        *_from_tag(tag, known),
        *_from_shape(header, shape, tag, known),
    ):
        best, reasons, name = found.get(repo.lower(), (rank, [], repo))
        name = repo if repo in known else name  # as its owner writes it, not as a converter does
        found[repo.lower()] = (min(best, rank), [*reasons, reason], name)
    ordered = sorted(found.values(), key=lambda entry: entry[0])  # stable: as they were found within a rank
    made: dict[str, Candidate] = {}
    for _, reasons, repo in ordered:
        made.setdefault(repo.lower(), Candidate(repo, "; ".join(dict.fromkeys(reasons)), _gated(repo)))
        if (mirror := _mirror(repo)) is not None:
            made.setdefault(mirror.lower(), Candidate(mirror, f"a copy of {repo} without its licence gate", False))
    return tuple(made.values())


def _known_of(shape: ModelShape) -> list[str]:
    """Repositories of exactly this shape, but for a few embedding rows."""
    own = f"{shape.architecture} {shape.layers} {shape.hidden_size} {shape.heads} {shape.kv_heads}"
    found: list[str] = []
    for text, repos in _SHAPES:
        start, ffn, rows = text.rsplit(" ", 2)
        if start == own and int(ffn) == shape.intermediate_size and abs(int(rows) - shape.vocabulary) <= MAX_EXTRA_ROWS:
            found += repos.split()
    return found


def _from_metadata(metadata: Mapping[str, object], known: list[str]) -> Iterator[tuple[int, str, str]]:
    """Keys of gguf-py's Metadata.set_gguf_meta_model, and `source.huggingface.repository` of older converters."""

    def text(key: str) -> str:
        value = metadata.get(f"general.{key}")
        return value.strip() if isinstance(value, str) else ""

    for key in ("source.huggingface.repository", "source.repo_url"):
        if repo := repository_in(text(key)):
            yield 0, repo, f"the file says that it was converted from it (general.{key})"

    parts = (text("basename"), text("size_label"), text("finetune"))
    names = {_plain(name) for name in (text("name"), "-".join(part for part in parts if part)) if name}
    organization = text("organization").replace(" ", "-")
    for name in names:
        named = [repo for repo in known if _plain(_basename(repo)) == name]
        for repo in named:
            yield 1, repo, f"the file's name is {text('name') or name!r}"
    if organization and parts[0]:
        own = [repo for repo in known if repo.lower().startswith(f"{organization.lower()}/")]
        composed = f"{organization}/" + "-".join(part.replace(" ", "-") for part in parts if part)
        # Where its maker's models of this shape are known, another name is mostly one that a training run had inside.
        yield (5 if own else 1), composed, "the file's organization, basename, size and finetune put together"
        for repo in own:
            yield 3, repo, f"the file's organization is {organization}"

    for i in range(8):  # merges have several; more than a few are no one's base
        repo = repository_in(text(f"base_model.{i}.repo_url"))
        name, owner = text(f"base_model.{i}.name"), text(f"base_model.{i}.organization")
        if not repo and name and owner:
            repo = repository_in(f"{owner}/{name}".replace(" ", "-"))
        if repo:
            yield 3, repo, f"the file says that its original was tuned from it (general.base_model.{i})"


def _from_tag(tag: str | None, known: list[str]) -> Iterator[tuple[int, str, str]]:
    """Repositories of this shape that Ollama's library has under that name."""
    if not tag:
        return
    path, _, variant = tag.partition(":")
    name = path.rsplit("/", 1)[-1].lower()
    library = {repo for repo in known if _tag_name(repo) == name}
    for repo in known:
        if repo in library and bool(_PRETRAINED_TAG.search(variant)) != is_tuned(repo):
            yield 2, repo, f"Ollama's library has it as {name}"
            if "qat" in variant and repo.startswith("google/gemma-3-"):
                yield 2, f"{repo}-qat-q4_0-unquantized", f"the tag {tag} says quantization-aware training"


def _from_shape(
    header: GgufHeader, shape: ModelShape, tag: str | None, known: list[str]
) -> Iterator[tuple[int, str, str]]:
    dimensions = f"{shape.layers} layers of {shape.hidden_size}, {shape.heads}/{shape.kv_heads} heads"
    talks = header.chat_template is not None and not _PRETRAINED_TAG.search((tag or "").partition(":")[2])
    for repo in sorted(known, key=lambda repo: is_tuned(repo) != talks):
        yield 4, repo, f"has this shape ({dimensions}, {shape.vocabulary} tokens)"


def repository_in(text: str) -> str | None:
    """`org/name` in a hub address or in plain; None where there is none."""
    if match := _HUB_PAGE.fullmatch(text):
        return match[1]
    return text if _REPOSITORY.fullmatch(text) else None


def is_tuned(repo: str) -> bool:
    """Whether the name says that it follows instructions."""
    return _TUNED.search(_basename(repo)) is not None


def _basename(repo: str) -> str:
    return repo.rpartition("/")[2]


def _plain(name: str) -> str:
    """`Gemma 3 12b It`, as converters title it, and `gemma-3-12b-it` alike."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def _tag_name(repo: str) -> str | None:
    return next((name for start, name in _TAGS if _basename(repo).lower().startswith(start)), None)


def _gated(repo: str) -> bool | None:
    return _GATED.get(repo.partition("/")[0], False if any(repo in repos.split() for _, repos in _SHAPES) else None)


def _mirror(repo: str) -> str | None:
    owner, _, name = repo.partition("/")
    if owner not in _GATED or not any(repo in repos.split() for _, repos in _SHAPES):
        return None
    return _MIRRORS.get(repo, f"unsloth/{name.lower() if owner == 'mistralai' else name}")
