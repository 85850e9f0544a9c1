r"""Rows that say an evaluation and the combination after it in one go.

Where :math:`y = k x + c D(x)` is all that a step wants of D, a mixture forms it by the same product
that would give D. What else of the step reads D is given :math:`(y - k x)/c` instead: of Heun's
step, with :math:`x' = k' x + c_1 D + c_2 D_2`,

.. math:: y = k x + c D(x),\qquad x' = (k' - c_1 k/c)\,x + (c_1/c)\,y + c_2 D(y).

Nothing cancels as long as :math:`c_1/c` is no large number: an error of y's last digit is one of
x'.
"""

from __future__ import annotations

from typing import NamedTuple

from workbench.sampling.grid import Node
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Row, Step

__all__ = ["Fused", "fused", "reads", "writes"]

#: The largest c_1/c.
LARGEST = 4.0


class Fused(NamedTuple):
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
            live.difference_update(writes(row))
            live.update(reads(row))
    return Program(tuple(reversed(steps)))


def _rows(rows: list[Row], live: set[str]) -> list:
    for i in range(len(rows) - 1):
        row, after = rows[i], rows[i + 1]
        if type(row) is not Evaluate or row.of != "denoised" or type(after) is not Combine:
            continue
        terms = dict(after.terms)
        if row.out not in terms or row.out == row.at:
            continue
        others = _without(row, after, terms, rows[i + 2 :], live)
        if others is None:
            continue
        k, c = terms.pop(row.at, 0.0), terms.pop(row.out)
        rows[i] = Fused(after.out, row.at, row.node, k, c, tuple(terms.items()), after.noise)
        rows[i + 1 :] = [None, *others]
    return [row for row in rows if row is not None]


def _without(
    row: Evaluate, after: Combine, terms: dict, rest: list[Row], live: set[str]
) -> list | None:
    """The rest of the step without the denoised state; None where it cannot do without."""
    d, x, y = row.out, row.at, after.out
    plain = not after.noise and y not in (x, d) and all(name in (d, x) for name in terms)
    k, c, kept, moved, others = terms.get(x, 0.0), terms[d], y != d, False, []
    for other in rest:
        if kept and d in reads(other):
            mixed = dict(other.terms) if type(other) is Combine and plain and not moved else {}
            if d not in mixed:
                return None
            ratio = mixed.pop(d) / c
            if abs(ratio) > LARGEST:
                return None
            mixed[x] = mixed.get(x, 0.0) - ratio * k
            mixed[y] = mixed.get(y, 0.0) + ratio
            other = Combine(other.out, mixed, other.noise)
        written = writes(other)
        kept, moved = kept and d not in written, moved or x in written or y in written
        others.append(other)
    return None if kept and d in live else others


def writes(row) -> tuple[str, ...]:
    """Registers that a row writes."""
    return row.outs if type(row) is Apply else (row.out,)


def reads(row) -> tuple[str, ...]:
    """Registers that a row reads."""
    kind = type(row)
    if kind is Combine:
        return tuple([name for name, _ in row.terms])
    if kind is Evaluate:
        return (row.at,)
    return row.reads if kind is Apply else (row.at, *[name for name, _ in row.added])
