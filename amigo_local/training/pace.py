"""How fast training goes of late, and when it will be done."""

from __future__ import annotations

NEWEST_SHARE = 0.1
"""Of the newest step in the mean: about the last twenty steps count."""
MOST_OF_MEAN = 4.0
"""A step counts as at most so many means: a laptop that slept in one doesn't spoil the forecast, and a machine that
really became ten times slower is believed after ten steps."""


class Pace:
    """An exponential mean of the seconds of a step. The first step, which compiles kernels and reads cold pages,
    counts only until there is a second one."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._steps = 0
        self._paused = 0.0

    def step(self, seconds: float) -> None:
        self._steps += 1
        if self._steps <= 2:
            self._mean = seconds
            return
        share = max(NEWEST_SHARE, 1 / (self._steps - 1))
        self._mean += share * (min(seconds, MOST_OF_MEAN * self._mean) - self._mean)

    def pause(self, seconds: float) -> None:
        """Time spent between two steps: evaluations, checkpoints."""
        self._paused += seconds

    def seconds_for(self, steps: int) -> float:
        """Forecast for so many more steps, with pauses as frequent and as long as so far."""
        return steps * (self._mean + self._paused / max(1, self._steps))
