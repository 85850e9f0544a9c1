"""The only time loop in the code base: it walks the rows of a program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.sampling.noise import NoiseSource
from workbench.sampling.program import Combine, Evaluate, Program
from workbench.sampling.record import Recorder

__all__ = ["walk"]

#: What is evaluated on the way, at a state and an (alpha, sigma).
Field = Callable[[Tensor, float, float], Tensor]


@torch.no_grad()
def walk(
    program: Program,
    denoise: Field,
    x: Tensor,
    noise: NoiseSource,
    recorder: Recorder | None = None,
    on_step: Callable[[int, int], None] | None = None,
    score: Field | None = None,
) -> Tensor:
    """Run ``program`` from the state ``x`` and return the final state.

    Args:
        program: the sampler on its grid.
        denoise: ``(x, alpha, sigma) -> E[x0 | x]``.
        x: initial state (n, *event); not modified.
        noise: where ``Combine`` rows draw from.
        recorder: what to keep, or None.
        on_step: called as ``on_step(done, total)`` after each step; what it raises ends the run.
        score: ``(x, alpha, sigma) -> gradient of the log-density``, for rows that ask for it.
    """
    program = program.to(x)
    registers = {"x": x}
    draw, total = 0, len(program.steps)
    for index, step in enumerate(program.steps):
        free = None
        if recorder is not None and recorder.wants(index):
            free = step.free_evaluation() if recorder.needs_denoised else None
            if free is None:
                recorder.keep(index, step.start, registers["x"], None)
        for row in step.rows:
            if isinstance(row, Evaluate):
                field = denoise if row.of == "denoised" else score
                value = field(registers[row.at], row.node.alpha, row.node.sigma)
                registers[row.out] = value
                if free == row.out:
                    recorder.keep(index, step.start, registers["x"], value)
                    free = None
            else:
                registers[row.out] = _combine(row, registers, noise, draw)
                draw += row.draws
        if on_step is not None:
            on_step(index + 1, total)
    if recorder is not None:
        recorder.keep(total, program.steps[-1].end, registers["x"], None)
    return registers["x"]


def _combine(row: Combine, registers: dict[str, Tensor], noise: NoiseSource, draw: int) -> Tensor:
    """A fresh tensor: registers may be shared, so nothing is overwritten in place."""
    (first, c), *others = row.terms or (("x", 0.0),)
    out = registers[first] * c
    for name, coefficient in others:
        _add(out, registers[name], coefficient)
    if row.draws:
        _add(out, noise.step(draw), row.noise)
    return out


def _add(out: Tensor, value: Tensor, coefficient: float | Tensor) -> None:
    if isinstance(coefficient, Tensor):  # one per mode
        out.addcmul_(value, coefficient)
    else:
        out.add_(value, alpha=coefficient)
