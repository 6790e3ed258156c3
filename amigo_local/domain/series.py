"""Series: the values of one metric over the steps of a training, in bounded memory."""

from __future__ import annotations

from bisect import bisect_left

MOST_POINTS = 4096
"""More than a screen has columns, several times over."""


class Series:
    """Points in the order of their steps. When there are too many, every other one goes, but for the last."""

    def __init__(self, most_points: int = MOST_POINTS) -> None:
        self._most_points = most_points
        self.steps: list[float] = []
        self.values: list[float] = []

    def add(self, step: float, value: float) -> None:
        """A step that was there already, or earlier ones, were trained again from a checkpoint: what came after that
        checkpoint then goes."""
        if self.steps and step <= self.steps[-1]:
            keep = bisect_left(self.steps, step)
            del self.steps[keep:], self.values[keep:]
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > self._most_points:
            self.steps[:-1] = self.steps[:-1:2]
            self.values[:-1] = self.values[:-1:2]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None
