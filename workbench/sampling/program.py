"""A sampler as a table: rows of combinations and evaluations.

Two operations carry every linear sampler::

    Evaluate(out, at, node)         out = D(register ``at``, alpha and sigma of ``node``)
    Combine(out, terms, noise)      out = sum of coefficient * register  +  noise * z

A third, for what is not linear (a step size that depends on the state, an adaptive solver)::

    Apply(out, reads, function)     out = function(run, *registers ``reads``)

with z fresh standard normals from the run's noise. Beside the registers that rows make there is the
state ``x``, and under an affine process the condition ``mu``, which no row changes. Coefficients
are Python floats, multiplied out once in float64, so the loop only walks rows; evaluations and
memory can be counted beforehand; and the law of the output on Gaussian data follows from the same
rows, where none is an ``Apply``.

Under a spectral process every mode has a table of its own; :func:`stacked` lays them over each
other, one coefficient per mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.sampling.grid import Node


class Evaluate(NamedTuple):
    """``out = D(register at, node.alpha, node.sigma)``; or the score or D's slope there.

    The score is for methods defined in t that end at sigma = 0, where D no longer tells it. The
    slope is dD/drho along the probability flow, for Taylor methods.
    """

    out: str
    at: str
    node: Node
    of: Literal["denoised", "score", "slope"] = "denoised"


FLOAT = {float}


@dataclass(frozen=True)
class Combine:
    """``out = sum of c * register over terms  +  noise * z``."""

    out: str
    terms: tuple[tuple[str, float | Tensor], ...]
    noise: float | Tensor = 0.0

    def __init__(self, out: str, terms: dict[str, float], noise: float = 0.0) -> None:
        by_mode = False
        if type(noise) is float and FLOAT.issuperset(map(type, terms.values())):
            pairs = tuple([term for term in terms.items() if term[1]])
        elif by_mode := Tensor in map(type, (noise, *terms.values())):
            pairs = tuple([(name, _number(c)) for name, c in terms.items() if not _is_zero(c)])
            noise = 0.0 if _is_zero(noise) else _number(noise)
        else:
            pairs, noise = tuple([(name, float(c)) for name, c in terms.items() if c]), float(noise)
        values = self.__dict__  # frozen, made in one go
        values["out"], values["terms"] = out, pairs
        values["noise"], values["by_mode"] = noise, by_mode

    @property
    def draws(self) -> bool:
        """Whether the row takes fresh noise."""
        return isinstance(self.noise, Tensor) or self.noise != 0.0


def _is_zero(c: float | Tensor) -> bool:
    return not bool(c.any()) if type(c) is Tensor else c == 0.0


def _number(c: float | Tensor) -> float | Tensor:
    return c if type(c) is float or isinstance(c, Tensor) else float(c)


@dataclass(frozen=True)
class Apply:
    """``out = function(run, *registers)``: a row that no combination of registers can say.

    Attributes:
        out: the register it makes, or several.
        reads: the registers handed to ``function``, after ``run``.
        function: asks ``run`` (:class:`workbench.sampling.loop.Run`) for evaluations and noise and
            returns one value, or one for each of several ``out``; values may be anything. It must
            not write to what it is given, and must treat each sample for itself.
        evaluations: how many it asks for; None where that depends on the samples.
        draws: how many fresh noises it takes.
    """

    out: str | tuple[str, ...]
    reads: tuple[str, ...]
    function: Callable
    evaluations: int | None = 0
    draws: int = 0

    @property
    def outs(self) -> tuple[str, ...]:
        return (self.out,) if isinstance(self.out, str) else self.out


Row = Evaluate | Combine | Apply


class Step(NamedTuple):
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
            if row.out == "x" or isinstance(row, Apply):
                return None
        return None


@dataclass(frozen=True)
class Program:
    """A sampler on a grid. The state is register ``"x"``, before and after every step."""

    steps: tuple[Step, ...]

    @property
    def rows(self) -> Iterator[Row]:
        return (row for step in self.steps for row in step.rows)

    @cached_property
    def combinations(self) -> tuple[Combine, ...]:
        """The rows that are combinations, in their order."""
        return tuple([row for step in self.steps for row in step.rows if type(row) is Combine])

    @cached_property
    def by_mode(self) -> bool:
        """Whether coefficients or nodes have one value per mode."""
        nodes = [node for step in self.steps for node in (step.start, step.end)]
        return any([row.by_mode for row in self.combinations]) or any(
            [isinstance(node.alpha, Tensor) for node in nodes]
        )

    @property
    def linear(self) -> bool:
        """Whether all rows are combinations and evaluations."""
        return not any(isinstance(row, Apply) for row in self.rows)

    @property
    def nfe(self) -> int | None:
        """Number of denoiser evaluations; None where only the run can tell."""
        counts = [
            row.evaluations if isinstance(row, Apply) else 1
            for row in self.rows
            if not isinstance(row, Combine)
        ]
        return None if None in counts else sum(counts)

    @property
    def draws(self) -> int:
        """Number of fresh noises."""
        return sum(int(row.draws) for row in self.rows if not isinstance(row, Evaluate))

    @property
    def registers(self) -> tuple[str, ...]:
        """Names of all registers: what the run keeps in memory."""
        outs = (row.outs if isinstance(row, Apply) else (row.out,) for row in self.rows)
        return tuple(dict.fromkeys(["x", *(name for names in outs for name in names)]))

    def to(self, like: Tensor) -> Program:
        """The same program with per-mode coefficients as tensors like ``like``."""
        if not self.by_mode:
            return self
        move = lambda c: c.to(like) if isinstance(c, Tensor) else c  # noqa: E731
        nodes: dict[int, Node] = {}  # by identity: a node that is shared stays one

        def node(old: Node) -> Node:
            return nodes.setdefault(id(old), Node(old.t, move(old.alpha), move(old.sigma)))

        def row(old: Row) -> Row:
            if isinstance(old, Evaluate):
                return Evaluate(old.out, old.at, node(old.node), old.of)
            if isinstance(old, Apply):
                return old
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
        if isinstance(first, Apply):
            raise ValueError(
                "this sampler is not linear, so it cannot give each mode of a spectral process its "
                "own coefficients; take a linear one, e.g. Heun or DPMSolverPP."
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
