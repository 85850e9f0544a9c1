"""A linear sampler as a table: rows of combinations and evaluations.

Two operations carry every linear sampler::

    Evaluate(out, at, node)         out = D(register ``at``, alpha and sigma of ``node``)
    Combine(out, terms, noise)      out = sum of coefficient * register  +  noise * z

with z fresh standard normals from the run's noise. Coefficients are Python floats, multiplied out
once in float64, so the loop only walks rows; evaluations and memory can be counted beforehand; and
the law of the output on Gaussian data follows from the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from workbench.sampling.grid import Node

__all__ = ["Combine", "Evaluate", "Program", "Row", "Step"]


@dataclass(frozen=True)
class Evaluate:
    """``out = D(register at, node.alpha, node.sigma)``."""

    out: str
    at: str
    node: Node


@dataclass(frozen=True)
class Combine:
    """``out = sum of c * register over terms  +  noise * z``."""

    out: str
    terms: tuple[tuple[str, float], ...]
    noise: float = 0.0

    def __init__(self, out: str, terms: dict[str, float], noise: float = 0.0) -> None:
        kept = tuple((name, float(c)) for name, c in terms.items() if c != 0.0)
        object.__setattr__(self, "out", out)
        object.__setattr__(self, "terms", kept)
        object.__setattr__(self, "noise", float(noise))


Row = Evaluate | Combine


@dataclass(frozen=True)
class Step:
    """The rows that bring register ``x`` from one node to the next."""

    start: Node
    end: Node
    rows: tuple[Row, ...]

    def free_evaluation(self) -> str | None:
        """The register that holds D(x, start) in passing, if this step evaluates it."""
        for row in self.rows:
            if isinstance(row, Evaluate):
                return row.out if row.at == "x" and row.node == self.start else None
            if row.out == "x":
                return None
        return None


@dataclass(frozen=True)
class Program:
    """A sampler on a grid. The state is register ``"x"``, before and after every step."""

    steps: tuple[Step, ...]

    @property
    def rows(self) -> Iterator[Row]:
        return (row for step in self.steps for row in step.rows)

    @property
    def nfe(self) -> int:
        """Number of denoiser evaluations."""
        return sum(isinstance(row, Evaluate) for row in self.rows)

    @property
    def draws(self) -> int:
        """Number of fresh noises."""
        return sum(isinstance(row, Combine) and row.noise != 0.0 for row in self.rows)

    @property
    def registers(self) -> tuple[str, ...]:
        """Names of all registers: what the run keeps in memory."""
        return tuple(dict.fromkeys(["x", *(row.out for row in self.rows)]))
