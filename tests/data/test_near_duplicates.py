from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from amigo_local.data.near_duplicates import (
    PERMUTATIONS,
    ROW_BYTES,
    SignatureFile,
    banding,
    near_duplicates,
    signatures,
)
from amigo_local.domain.errors import AmigoError

VOCABULARY = [f"w{number}" for number in range(3000)]


def grams(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))}


def jaccard(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def text_and_variant(draw: random.Random, changes: int, words: int = 120) -> tuple[str, str]:
    text = draw.choices(VOCABULARY, k=words)
    variant = list(text)
    for place in draw.sample(range(words), changes):
        variant[place] = draw.choice(VOCABULARY)
    return " ".join(text), " ".join(variant)


def stored(path: Path, texts: list[str]) -> Path:
    file = SignatureFile(path)
    for start in range(0, len(texts), 70):
        file.append(signatures(texts[start : start + 70]))
    assert len(file) == len(texts)
    return path


def test_signatures_estimate_the_exact_jaccard_similarity() -> None:
    draw = random.Random(0)
    pairs = [text_and_variant(draw, changes) for changes in range(13) for _ in range(40)]
    made = signatures([text for pair in pairs for text in pair])
    estimated = (made[0::2] == made[1::2]).mean(axis=1)
    exact = np.array([jaccard(*pair) for pair in pairs])
    error = estimated - exact
    expected = np.sqrt((exact * (1 - exact)).mean() / PERMUTATIONS)
    assert exact.min() < 0.4 and exact.max() == 1
    assert abs(error.mean()) < 4 * expected / np.sqrt(len(pairs))
    assert 0.9 * expected < error.std() < 1.1 * expected
    assert (made[0:-2:2] == made[2::2]).mean() < 0.001


def test_signatures_depend_on_nothing_but_the_words() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices(VOCABULARY, k=draw.randrange(400))) for _ in range(300)]
    made = signatures(texts)
    assert made.dtype == np.uint32 and made.shape == (300, 128)
    assert np.array_equal(signatures([text.upper().replace(" ", ",\n") for text in texts]), made)
    assert np.array_equal(np.concatenate([signatures([text]) for text in texts]), made)
    assert signatures([]).shape == (0, 128)


def test_short_texts_are_alike_only_when_equal() -> None:
    made = signatures(["a b", "A, B!", "a c", "a b c d", "", "?!", "a b c d e", "a b c d e f"])
    agreement = (made[:, None] == made[None]).mean(axis=2)
    assert agreement[0, 1] == agreement[4, 5] == 1
    assert (agreement[0, 2:] < 0.05).all() and (agreement[3, 4:] < 0.05).all()
    assert 0.3 < agreement[6, 7] < 0.7


@pytest.mark.parametrize(
    ("threshold", "bands", "rows"),
    [(0.5, 42, 3), (0.7, 32, 4), (0.8, 21, 6), (0.9, 12, 10), (0.95, 8, 16), (1.0, 1, 128)],
)
def test_the_banding_proposes_what_is_as_similar_as_the_threshold(threshold: float, bands: int, rows: int) -> None:
    assert banding(threshold) == (bands, rows)
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert bands * rows <= PERMUTATIONS


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_rows_are_taken_in_order_as_by_comparing_each_with_all_kept(threshold: float, tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = []
    for _ in range(60):
        text, variant = text_and_variant(draw, draw.randrange(8))
        texts += [text, variant, *(text_and_variant(draw, 3)[0] for _ in range(2))]
        words = variant.split()
        words[draw.randrange(120)] = "again"
        texts += [" ".join(words), text] if draw.random() < 0.5 else [" ".join(words)]
    draw.shuffle(texts)
    made = signatures(texts)
    kept: list[int] = []
    expected = np.zeros(len(texts), np.bool_)
    for row, signature in enumerate(made):
        expected[row] = bool(kept) and (made[kept] == signature).mean(axis=1).max() >= threshold
        if not expected[row]:
            kept.append(row)
    found = near_duplicates(stored(tmp_path / "signatures", texts), threshold)
    assert not (found & ~expected).any() or threshold < 1  # a missed one may be what another is near to
    assert (found != expected).sum() <= len(texts) // 100
    assert expected.sum() > 25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signatures"]


def test_planted_variants_are_found_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(3)
    pairs = [text_and_variant(draw, 1) for _ in range(400)]
    assert min(jaccard(*pair) for pair in pairs) > 0.9
    others = [text_and_variant(draw, 60)[1] for _ in range(400)]
    texts = [text for text, _ in pairs] + others + [variant for _, variant in pairs]
    found = near_duplicates(stored(tmp_path / "signatures", texts), 0.8)
    assert not found[:800].any()
    assert found[800:].sum() >= 398


def test_many_copies_leave_the_first(tmp_path: Path) -> None:
    texts = ["the same words again and again and again"] * 5000
    found = near_duplicates(stored(tmp_path / "signatures", texts), 0.8)
    assert found.tolist() == [False] + [True] * 4999


def test_rows_of_one_bucket_that_are_not_alike_stay(tmp_path: Path) -> None:
    """Equal first columns and different others: the bucket proposes, the signature decides."""
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 1 << 32, (300, PERMUTATIONS), dtype=np.uint32)
    rows[:, :40] = rows[0, :40]
    SignatureFile(tmp_path / "signatures").append(rows)
    assert not near_duplicates(tmp_path / "signatures", 0.8).any()
    rows[200:, :110] = rows[0, :110]
    SignatureFile(tmp_path / "more").append(rows)
    assert np.flatnonzero(near_duplicates(tmp_path / "more", 0.8)).tolist() == list(range(200, 300))


def test_an_empty_file_has_no_duplicates(tmp_path: Path) -> None:
    (tmp_path / "signatures").touch()
    assert near_duplicates(tmp_path / "signatures", 0.8).shape == (0,)


def test_memory_is_a_small_part_of_the_signatures(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    file, count = SignatureFile(tmp_path / "signatures"), 40_000
    first = draw.integers(0, 1 << 32, (count // 5, PERMUTATIONS), dtype=np.uint32)
    file.append(first)
    for _ in range(3):
        file.append(draw.integers(0, 1 << 32, (count // 5, PERMUTATIONS), dtype=np.uint32))
    file.append(first)
    tracemalloc.start()
    found = near_duplicates(file.path, 0.8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, np.arange(count) >= count - count // 5)
    assert count * ROW_BYTES == file.path.stat().st_size
    assert peak < 300 * count  # of which 4 MB are blocks of rows, whatever the count


def test_a_file_is_cut_back_to_what_was_committed(tmp_path: Path) -> None:
    path = stored(tmp_path / "signatures", ["a b c", "d e f", "a b c"])
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn")
    file = SignatureFile(path)
    file.truncate(3)
    assert path.read_bytes() == whole
    file.truncate(1)
    assert len(file) == 1
    with pytest.raises(AmigoError, match="1 signatures where 2 were written"):
        file.truncate(2)
