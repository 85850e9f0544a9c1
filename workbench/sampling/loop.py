"""The only time loop in the code base: it walks the rows of a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from workbench.denoisers.checks import dtype_name
from workbench.sampling.grid import Node
from workbench.sampling.noise import NoiseSource
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Step
from workbench.sampling.record import Recorder

__all__ = ["Model", "NotFinite", "Run", "walk"]


class Model(Protocol):
    """What is evaluated on the way, at states (n, *event), alpha and sigma; a denoiser is one."""

    def denoise(self, x: Tensor, alpha, sigma) -> Tensor: ...

    def score(self, x: Tensor, alpha, sigma) -> Tensor:
        """Only for programs that ask for it."""

    def slope(self, x: Tensor, alpha, sigma) -> Tensor:
        """Only for programs that ask for it."""


class NotFinite(ValueError):
    """A register that is not finite: at which step, in how many of the samples.

    Attributes:
        step: index of the step.
        state: x before it.
    """

    def __init__(self, step: int, node: Node, state: Tensor, count: int, evaluated: bool) -> None:
        self.step, self.state, total = step, state, len(state)
        what = "the denoiser answered with" if evaluated else "the sampler arrived at"
        super().__init__(
            f"{what} numbers that are not finite in step {step + 1}, at t = {node.t:g}, "
            f"rho = {_level(node)}, for {count} of {total} samples."
        )


def _level(node: Node) -> str:
    """rho in words; of one per mode the smallest and the largest."""
    if not isinstance(node.alpha, Tensor):
        return f"{node.rho:.4g}"
    rho = node.sigma / node.alpha
    return f"{rho.min().item():.4g} to {rho.max().item():.4g} by mode"


class Run:
    """What an ``Apply`` row may ask of the run it is part of.

    Attributes:
        evaluations: denoiser evaluations so far.
    """

    def __init__(self, model: Model, noise: NoiseSource) -> None:
        self.model, self.evaluations, self._noise, self._draw = model, 0, noise, 0
        self.step: Step | None = None  # the one being walked, until its first draw

    def denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        """D; alpha and sigma may have one value per sample, (n, 1, ...)."""
        self.evaluations += 1
        return self.model.denoise(x, alpha, sigma)

    def noise(self) -> Tensor:
        """Standard normals (n, *event): fresh, or the first of a step of the Brownian path's."""
        step = self.step
        interval = None if step is None else (step.start.t, step.end.t)
        z = self._noise.step(self._draw, interval)
        self._draw, self.step = self._draw + 1, None
        return z


def walk(
    program: Program,
    model: Model,
    x: Tensor,
    noise: NoiseSource,
    recorder: Recorder | None = None,
    on_step: Callable[[int, int], None] | None = None,
    registers: dict | None = None,
    watch: bool = False,
    gradients: bool = False,
) -> tuple[Tensor, int]:
    """Run ``program`` from the state ``x``; the final state and the number of evaluations.

    Args:
        program: the sampler on its grid.
        model: what rows evaluate.
        x: initial state (n, *event); not modified.
        noise: where rows draw from.
        recorder: what to keep, or None.
        on_step: called as ``on_step(done, total)`` after each step; what it raises ends the run.
        registers: further registers at the start, like ``mu`` (the condition of an affine process,
            shaped like ``x``: ``diffusion.constants(x)``); at the end it holds all of them.
        watch: look for numbers that are not finite after every row.
        gradients: leave autograd as it is; without recording.

    Raises:
        NotFinite: only if asked to ``watch``.
    """
    with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
        return _walk(program, model, x, noise, recorder, on_step, registers, watch)


def _walk(program, model, x, noise, recorder, on_step, registers, watch) -> tuple[Tensor, int]:
    program = program.to(x)
    held = {} if registers is None else registers
    held["x"] = x
    run, total = Run(model, noise), len(program.steps)
    ask: dict[str, Callable] = {}
    for of, name in ASKED.items():
        ask[of] = _first_looked_at(ask, of, getattr(model, name, None))
    scales, room = iter(_scales(program, x)), None
    for index, step in enumerate(program.steps):
        run.step, before, free = step, held["x"], None
        if recorder is not None:
            # Where x alone is kept, the step before has put it there.
            if recorder.wants(index) and (recorder.needs_denoised or before is not room):
                free = step.free_evaluation() if recorder.needs_denoised else None
                if free is None:
                    recorder.keep(index, step.start, held["x"], None)
            room = recorder.room(index + 1)
        rows = step.rows
        last = rows[-1]
        for row in rows:
            kind = type(row)
            if kind is Combine:
                out = room if row is last and row.out == "x" else None
                held[row.out] = _combine(row, next(scales), held, run, out)
            elif kind is Evaluate:
                _, alpha, sigma = row.node
                held[row.out] = value = ask[row.of](held[row.at], alpha, sigma)
                run.evaluations += 1
                if free == row.out:
                    recorder.keep(index, step.start, held["x"], value)
                    free = None
            else:
                made = row.function(run, *(held[name] for name in row.reads))
                made = (made,) if isinstance(row.out, str) else made
                held.update(zip(row.outs, made, strict=True))
            if watch:
                _look(row, held, index, step.start, before)
        if on_step is not None:
            on_step(index + 1, total)
    if recorder is not None:
        recorder.keep(total, program.steps[-1].end, held["x"], None)
    return held["x"], run.evaluations


#: What an evaluation is of, and the method of the model that gives it.
ASKED = {"denoised": "denoise", "score": "score", "slope": "slope"}


def _first_looked_at(ask: dict[str, Callable], of: str, answer: Callable | None) -> Callable:
    """``answer``, the first time with a look at what it gives; from then on itself in ``ask``."""

    def looked_at(x: Tensor, alpha, sigma) -> Tensor:
        value = answer(x, alpha, sigma)
        if value.shape != x.shape or value.dtype != x.dtype:
            given, wanted = (f"{tuple(v.shape)} in {dtype_name(v.dtype)}" for v in (value, x))
            raise ValueError(
                f"the denoiser answered with shape {given} to states of shape {wanted}; it must "
                "give one value per state, in their shape and dtype."
            )
        ask[of] = answer
        return value

    return looked_at


def _scales(program: Program, x: Tensor) -> list[Tensor]:
    """The coefficient of the first term of every combination, as a tensor.

    A product with a tensor of no dimensions takes half the time of one with a Python number.
    """
    first = [row.scale for row in program.combinations]
    if Tensor in set(map(type, first)):
        return first
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    numbers = dict.fromkeys(first)
    made = torch.tensor(list(numbers), dtype=dtype).unbind() if first else ()
    of = dict(zip(numbers, made, strict=True))
    return [of[number] for number in first]


mul = torch.mul


def _combine(row: Combine, scale, held: dict, run: Run, out: Tensor | None) -> Tensor:
    """A fresh tensor, or ``out``: registers may be shared, so none of them is overwritten."""
    value = mul(held[row.first], scale, out=out)
    for name, c in row.added:
        if type(c) is float:
            value.add_(held[name], alpha=c)
        else:  # one per mode
            value.addcmul_(held[name], c)
    noise = row.noise
    if type(noise) is not float:
        value.addcmul_(run.noise(), noise)
    elif noise:
        value.add_(run.noise(), alpha=noise)
    return value


def _look(row, held: dict, index: int, node: Node, before: Tensor) -> None:
    for name in row.outs if isinstance(row, Apply) else (row.out,):
        value = held[name]
        if isinstance(value, Tensor) and value.is_floating_point():
            bad = ~value.isfinite()
            if bool(bad.any()):
                count = int(bad.reshape(len(bad), -1).any(1).sum()) if bad.ndim else 1
                raise NotFinite(index, node, before, count, isinstance(row, Evaluate))
