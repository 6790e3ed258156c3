"""Which recipes can be picked."""

from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.engine.recipe_list import RecipeEntry, list_recipes
from amigo_local.shipped import shipped_folder


def own(folder: Path) -> list[RecipeEntry]:
    shipped = shipped_folder("recipes").resolve()
    return [entry for entry in list_recipes([folder]) if entry.path.parent != shipped]


def test_shipped_recipes_come_first_by_the_name_that_verbs_take(tmp_path: Path) -> None:
    entries = {entry.name: entry for entry in list_recipes([])}
    assert list(entries)[:2] == ["all", "demo"] and "base" not in entries and len(entries) == 9
    assert not any(entry.error for entry in entries.values())
    assert entries["all"].is_chain and len(entries["all"].stages) == 5 and not entries["demo"].is_chain
    assert entries["all"].summary.startswith("From a reasoning model")
    assert entries["demo"].summary.startswith("SmolLM2-135M-Instruct learns")


def test_a_file_that_does_not_load_is_listed_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: good\nsummary: s\n")
    (tmp_path / "b.yaml").write_text("train: {epochs: many}\n")
    (tmp_path / "c.yml").write_text("- not\n- settings\n")
    (tmp_path / "d.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "e.yaml").symlink_to(tmp_path / "gone.yaml")
    (tmp_path / "f.yaml").mkdir()
    (tmp_path / "notes.txt").write_text("")
    found = own(tmp_path)
    assert [entry.path.name for entry in found] == ["a.yaml", "b.yaml", "c.yml", "d.yaml", "e.yaml"]
    assert found[0] == RecipeEntry(str(tmp_path / "a.yaml"), tmp_path / "a.yaml", "s", ("good",))
    assert "b.yaml:1: train.epochs: found 'many'" in found[1].error
    assert all(entry.error for entry in found[2:])


def test_the_shipped_folder_is_not_listed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list_recipes([shipped_folder("recipes"), tmp_path / "missing"])) == 9
