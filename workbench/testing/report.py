"""What a check leaves: a report, law by law."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Law:
    """One law: its worst deviation, the deviation allowed, and where the worst was found."""

    name: str
    deviation: float
    allowed: float
    where: str = ""

    @property
    def holds(self) -> bool:
        return self.deviation <= self.allowed  # false for nan

    def __str__(self) -> str:
        mark = "ok    " if self.holds else "BROKEN"
        where = f" at {self.where}" if self.where else ""
        return f"{mark} {self.name}: off by {self.deviation:.2g}, allowed {self.allowed:.2g}{where}"


@dataclass
class Report:
    """The laws an object was held against; ``str`` gives a line for each.

    Attributes:
        measured: of a lens: by the subject's name, the dataset that it left.
    """

    subject: str
    laws: list[Law] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, deviations: dict[str, float], allowed: float) -> None:
        """A law by its deviations, each with the place where it was measured."""
        # max() would lose a nan; a nan is the worst of all.
        where, worst = max(
            deviations.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1]
        )
        self.laws.append(Law(name, worst, allowed, where))

    def finish(self) -> Report:
        if not all(law.holds for law in self.laws):
            raise ConformanceError(self)
        return self

    def __str__(self) -> str:
        lines = [self.subject, *(f"  {law}" for law in self.laws)]
        return "\n".join([*lines, *(f"  skipped {text}" for text in self.skipped)])


class ConformanceError(AssertionError):
    """An object breaks a law; ``report`` has them all."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(str(report))


def relative(got, wanted, floor: float = 1e-30) -> float:
    """Largest deviation relative to the size of what is wanted; equal infinities are equal."""
    got, wanted = (torch.as_tensor(v, dtype=torch.float64) for v in (got, wanted))
    apart = torch.where(got == wanted, torch.zeros_like(got), (got - wanted).abs())
    return (apart / wanted.abs().clamp_min(floor)).max().item()
