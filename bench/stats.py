"""What a series of measurements comes to."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Row:
    """One contender's measurements in one case, in the case's unit."""

    name: str
    isolates: str
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


@dataclass
class Target:
    """``value`` must be at most (or at least) ``bound``; None where a side was not measured."""

    text: str
    value: float | None
    bound: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "pending"
        met = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "met" if met else "not met"


@dataclass
class Case:
    key: str
    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    note: str = ""

    def median(self, name: str) -> float | None:
        return next((row.median for row in self.rows if row.name == name and row.samples), None)

    def ratio(self, name: str, other: str) -> float | None:
        a, b = self.median(name), self.median(other)
        return None if a is None or not b else a / b


def milliseconds(work: Callable[[], object]) -> float:
    """What the work took, or what it says itself."""
    start = time.perf_counter()
    said = work()
    return said if isinstance(said, float) else (time.perf_counter() - start) * 1000
