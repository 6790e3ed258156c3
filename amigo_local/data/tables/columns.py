"""Mapping `columns`: one column is the request, one the answer; or two are answers, the better and the worse."""

from __future__ import annotations

from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.tables.mapping import RowMapping
from amigo_local.data.tables.rows import Row
from amigo_local.domain.data_source import RowsSource

NOT_TEXT, EMPTY = "column isn't text", "empty prompt or completion"


class Columns(RowMapping):
    def __init__(self, source: RowsSource, label: str, license: str) -> None:
        super().__init__(source, label, license)
        self._prompt, self._completion, self._rejected = (
            source.prompt,
            source.chosen or source.completion,
            source.rejected,
        )
        self.columns = tuple((name,) for name in (self._prompt, self._completion, self._rejected) if name is not None)
        self.used = f"{self._prompt} → request, {self._completion} → answer"
        if self._rejected is not None:
            self.used = f"{self._prompt} → request, {self._completion} → better answer, {self._rejected} → worse answer"

    def pair(self, row: Row, name: str) -> Pair | str:
        prompt, completion = row.get(self._prompt), row.get(self._completion)
        if not isinstance(prompt, str) or not isinstance(completion, str):
            return self._why(row)
        prompt, completion = prompt.strip(), completion.strip()
        if not prompt or not completion:
            return EMPTY
        module = row.get("module")
        if not isinstance(module, str):
            module = ""
        if self._rejected is None:
            return Pair(
                prompt=prompt,
                completion=completion,
                source=self.label,
                module=module,
                name=name,
                license=self.license_of(row),
                language=self.language_of(row),
            )
        rejected = row.get(self._rejected)
        if not isinstance(rejected, str):
            return self._why(row)
        if not (rejected := rejected.strip()):
            return EMPTY
        return Preference(
            prompt=prompt,
            completion=completion,
            rejected=rejected,
            source=self.label,
            module=module,
            name=name,
            license=self.license_of(row),
            language=self.language_of(row),
        )

    def _why(self, row: Row) -> str:
        missing = next((name for (name,) in self.columns if name not in row), None)
        return NOT_TEXT if missing is None else f"no column {missing!r}"


MAPPING = Columns
