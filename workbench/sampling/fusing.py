r"""Rows that say an evaluation and the combination after it in one go.

Where :math:`y = k x + c D(x)` is all that a step wants of D, a mixture forms it by the same product
that would give D. What else of the step reads D is given :math:`(y - k x)/c` instead: of Heun's
step, with :math:`x' = k' x + c_1 D + c_2 D_2`,

.. math:: y = k x + c D(x),\qquad x' = (k' - c_1 k/c)\,x + (c_1/c)\,y + c_2 D(y).

Nothing cancels as long as :math:`c_1/c` is no large number: an error of y's last digit is one of
x'.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.sampling.grid import Node
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Row, Step

__all__ = ["Fused", "fused", "reads", "writes"]

#: The largest c_1/c.
LARGEST = 4.0


@dataclass(frozen=True)
class Fused:
    """``out = k * register at + c * D(register at) + sum of added + noise * z``."""

    out: str
    at: str
    node: Node
    k: float
    c: float
    added: tuple[tuple[str, float], ...]
    noise: float


def fused(program: Program) -> Program:
    """The same program with fused rows, where nothing later reads D."""
    steps, live = [], {"x"}  # registers that later steps read
    for step in reversed(program.steps):
        steps.append(Step(step.start, step.end, tuple(_rows(list(step.rows), live))))
        for row in reversed(step.rows):
            live = (live - set(writes(row))) | set(reads(row))
    return Program(tuple(reversed(steps)))


def _rows(rows: list[Row], live: set[str]) -> list:
    for i in range(len(rows) - 1):
        row, after = rows[i], rows[i + 1]
        if type(row) is not Evaluate or row.of != "denoised" or type(after) is not Combine:
            continue
        terms = dict(after.terms)
        if row.out not in terms or row.out == row.at:
            continue
        others = _without(row, after, rows[i + 2 :], live)
        if others is None:
            continue
        k, c = terms.pop(row.at, 0.0), terms.pop(row.out)
        rows[i] = Fused(after.out, row.at, row.node, k, c, tuple(terms.items()), after.noise)
        rows[i + 1 :] = [None, *others]
    return [row for row in rows if row is not None]


def _without(row: Evaluate, after: Combine, rest: list[Row], live: set[str]) -> list | None:
    """The rest of the step without the denoised state; None where it cannot do without."""
    d, x, y = row.out, row.at, after.out
    plain = set(dict(after.terms)) <= {d, x} and not after.noise and y not in (x, d)
    k, c, kept = dict(after.terms).get(x, 0.0), dict(after.terms)[d], y != d
    others = []
    for place, other in enumerate(rest):
        if kept and d in reads(other):
            written = {name for before in rest[:place] for name in writes(before)}
            if type(other) is not Combine or not plain or written & {x, y}:
                return None
            terms = dict(other.terms)
            ratio = terms.pop(d) / c
            if abs(ratio) > LARGEST:
                return None
            terms[x] = terms.get(x, 0.0) - ratio * k
            terms[y] = terms.get(y, 0.0) + ratio
            other = Combine(other.out, terms, other.noise)
        kept = kept and d not in writes(other)
        others.append(other)
    return None if kept and d in live else others


def writes(row) -> tuple[str, ...]:
    """Registers that a row writes."""
    return row.outs if isinstance(row, Apply) else (row.out,)


def reads(row) -> tuple[str, ...]:
    """Registers that a row reads."""
    if isinstance(row, Apply):
        return row.reads
    if isinstance(row, Combine):
        return tuple(name for name, _ in row.terms)
    if isinstance(row, Fused):
        return (row.at, *(name for name, _ in row.added))
    return (row.at,)
