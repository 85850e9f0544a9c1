"""A linear sampler as a table: rows of combinations and evaluations.

Two operations carry every linear sampler::

    Evaluate(out, at, node)         out = D(register ``at``, alpha and sigma of ``node``)
    Combine(out, terms, noise)      out = sum of coefficient * register  +  noise * z

with z fresh standard normals from the run's noise. Coefficients are Python floats, multiplied out
once in float64, so the loop only walks rows; evaluations and memory can be counted beforehand; and
the law of the output on Gaussian data follows from the same rows.

Under a spectral process every mode has a table of its own; :func:`stacked` lays them over each
other, one coefficient per mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.sampling.grid import Node

__all__ = ["Combine", "Evaluate", "Program", "Row", "Step", "stacked"]


@dataclass(frozen=True)
class Evaluate:
    """``out = D(register at, node.alpha, node.sigma)``, or the score there.

    The score is for methods defined in t that end at sigma = 0, where D no longer tells it.
    """

    out: str
    at: str
    node: Node
    of: Literal["denoised", "score"] = "denoised"


@dataclass(frozen=True)
class Combine:
    """``out = sum of c * register over terms  +  noise * z``."""

    out: str
    terms: tuple[tuple[str, float | Tensor], ...]
    noise: float | Tensor = 0.0

    def __init__(self, out: str, terms: dict[str, float], noise: float = 0.0) -> None:
        kept = tuple((name, _number(c)) for name, c in terms.items() if not _is_zero(c))
        object.__setattr__(self, "out", out)
        object.__setattr__(self, "terms", kept)
        object.__setattr__(self, "noise", 0.0 if _is_zero(noise) else _number(noise))

    @property
    def draws(self) -> bool:
        """Whether the row takes fresh noise."""
        return isinstance(self.noise, Tensor) or self.noise != 0.0


def _is_zero(c: float | Tensor) -> bool:
    return not bool(c.any()) if isinstance(c, Tensor) else c == 0.0


def _number(c: float | Tensor) -> float | Tensor:
    return c if isinstance(c, Tensor) else float(c)


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
                here = row.node is self.start or row.node == self.start
                return row.out if row.at == "x" and row.of == "denoised" and here else None
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
        return sum(isinstance(row, Combine) and row.draws for row in self.rows)

    @property
    def registers(self) -> tuple[str, ...]:
        """Names of all registers: what the run keeps in memory."""
        return tuple(dict.fromkeys(["x", *(row.out for row in self.rows)]))

    def to(self, like: Tensor) -> Program:
        """The same program with per-mode coefficients as tensors like ``like``."""
        if not any(isinstance(step.start.alpha, Tensor) for step in self.steps):
            return self
        move = lambda c: c.to(like) if isinstance(c, Tensor) else c  # noqa: E731
        nodes: dict[int, Node] = {}  # by identity: a node that is shared stays one

        def node(old: Node) -> Node:
            return nodes.setdefault(id(old), Node(old.t, move(old.alpha), move(old.sigma)))

        def row(old: Row) -> Row:
            if isinstance(old, Evaluate):
                return Evaluate(old.out, old.at, node(old.node), old.of)
            return Combine(old.out, {k: move(c) for k, c in old.terms}, move(old.noise))

        return Program(
            tuple(Step(node(s.start), node(s.end), tuple(map(row, s.rows))) for s in self.steps)
        )


def stacked(programs: Sequence[Program], index: Tensor) -> Program:
    """The programs of single modes as one, with a coefficient per mode.

    Args:
        programs: one for each kind of mode, alike in their rows.
        index: int64, of the shape of one sample: which program a mode has.

    Raises:
        ValueError: programs that differ in more than numbers.
    """

    def over(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[index][None]

    def node(mine: Sequence[Node]) -> Node:
        return Node(mine[0].t, over([n.alpha for n in mine]), over([n.sigma for n in mine]))

    def row(rows: Sequence[Row], known: dict[Node, Node]) -> Row:
        first = rows[0]
        if any(type(r) is not type(first) or r.out != first.out for r in rows):
            raise ValueError(
                "the modes take different steps; this sampler cannot walk them as one."
            )
        if isinstance(first, Evaluate):
            mine = [r.node for r in rows]
            return Evaluate(first.out, first.at, known.get(mine[0]) or node(mine), first.of)
        names = dict.fromkeys(name for r in rows for name, _ in r.terms)
        terms = {name: over([dict(r.terms).get(name, 0.0) for r in rows]) for name in names}
        return Combine(first.out, terms, over([r.noise for r in rows]))

    steps, after = [], None
    for mine in zip(*(p.steps for p in programs), strict=True):
        start = after or node([s.start for s in mine])
        after = node([s.end for s in mine])
        known = {mine[0].start: start, mine[0].end: after}
        rows = zip(*(s.rows for s in mine), strict=True)
        steps.append(Step(start, after, tuple(row(r, known) for r in rows)))
    return Program(tuple(steps))
