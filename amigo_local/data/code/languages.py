"""The programming language of a file, by how its name ends."""

from __future__ import annotations

_ENDINGS = {
    "python": (".py", ".pyi"), "javascript": (".js", ".mjs", ".cjs", ".jsx"), "typescript": (".ts", ".tsx"),
    "java": (".java",), "c": (".c", ".h"), "c++": (".cc", ".cpp", ".cxx", ".hpp", ".hh"), "c#": (".cs",),
    "go": (".go",),
    "rust": (".rs",), "ruby": (".rb",), "php": (".php",), "swift": (".swift",), "kotlin": (".kt", ".kts"),
    "scala": (".scala",), "shell": (".sh", ".bash"), "lua": (".lua",), "perl": (".pl", ".pm"), "r": (".r",),
    "julia": (".jl",), "haskell": (".hs",), "elixir": (".ex", ".exs"), "erlang": (".erl",), "dart": (".dart",),
    "sql": (".sql",), "html": (".html", ".htm"), "css": (".css", ".scss"), "vue": (".vue",), "zig": (".zig",),
    "ocaml": (".ml", ".mli"), "clojure": (".clj", ".cljs"), "fortran": (".f90", ".f95"), "cuda": (".cu", ".cuh"),
}  # fmt: skip
_BY_ENDING = {ending: language for language, endings in _ENDINGS.items() for ending in endings}


def language_of(path: str) -> str:
    """In lower case, as data sets of code name it; empty for what is no code."""
    name = path.rpartition("/")[2].lower()
    return _BY_ENDING.get("." + name.rpartition(".")[2], "") if "." in name else ""
