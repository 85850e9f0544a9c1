"""The only time loop in the code base: it walks the rows of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Level
from workbench.denoisers.checks import dtype_name
from workbench.sampling.grid import Node
from workbench.sampling.noise import NoiseSource
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Step
from workbench.sampling.record import Recorder
from workbench.sampling.straight import Straight, straight


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


class BoundStep(NamedTuple):
    """A step whose rows are bound to the noise levels of a model.

    Attributes:
        step: the step itself.
        rows: of each its kind, the register it makes, and for an evaluation the register it reads
            and the level's kernel; for a combination the first register with its coefficient (a
            tensor of no dimensions: twice as fast a factor as a Python number), the further terms,
            and that of the noise; for an application its registers and its function.
    """

    step: Step
    rows: tuple[tuple, ...]


@dataclass(frozen=True)
class BoundProgram:
    """A program bound to a model and to states of one shape, dtype and device: a straight line.

    It holds no state of a run, so that one may serve several at a time.

    Attributes:
        straight: the same on one buffer; None where there is no such form, or registers are wanted.
    """

    program: Program
    steps: tuple[BoundStep, ...]
    straight: Straight | None = None

    @property
    def columns(self) -> bool:
        """Whether states come with each coordinate of all of them side by side."""
        return self.straight is not None


def bind(
    program: Program,
    model: Model,
    like: Tensor,
    states_alone: bool = False,
    constants: Sequence[str] = (),
) -> BoundProgram:
    """Ask ``model`` once for each noise level that ``program`` evaluates it at.

    Args:
        program: the sampler on its grid.
        model: a denoiser, or anything with ``denoise(x, alpha, sigma)``.
        like: states (n, *event) of the shape, dtype and device of the run's.
        states_alone: whether nobody looks at another register than ``x``: then the program may be
            walked in another form (:mod:`~workbench.sampling.straight`).
        constants: registers beside ``x`` that a run begins with.
    """
    # One that answers ``denoise`` in its own way is asked by it.
    leveled = isinstance(model, Denoiser) and type(model).denoise is Denoiser.denoise
    leveled = leveled and "denoise" not in vars(model)
    if states_alone and leveled:
        form = straight(program, model, like, constants)
        if form is not None:
            return BoundProgram(program, (), form)
    if leveled:
        model._flat(like)  # which checks its shape and dtype
    program = program.to(like)
    levels: dict[int, Level] = {}
    kernels: dict[tuple[int, str], Callable] = {}

    def kernel(node: Node, of: str) -> Callable:
        if not leveled:
            ask, (_, alpha, sigma) = _looked_at(getattr(model, ASKED[of])), node
            return lambda x: ask(x, alpha, sigma)
        key = id(node)  # nodes of tensors have no hash; the program keeps each where it is
        if key not in levels:
            levels[key] = model.at(node.alpha, node.sigma)
        return levels[key].kernel(of, like)

    scales, steps = iter(_scales(program, like)), []
    for step in program.steps:
        rows: list[tuple] = []
        for row in step.rows:
            if type(row) is Combine:
                first, *added = row.terms or (("x", 0.0),)
                rows.append((Combine, row.out, first[0], next(scales), added, row.noise))
            elif type(row) is Evaluate:
                key = id(row.node), row.of
                if key not in kernels:
                    kernels[key] = kernel(row.node, row.of)
                rows.append((Evaluate, row.out, row.at, kernels[key]))
            else:
                single = isinstance(row.out, str)
                rows.append((Apply, row.outs, row.reads, row.function, single))
        steps.append(BoundStep(step, tuple(rows)))
    return BoundProgram(program, tuple(steps))


def walk(
    program: Program | BoundProgram,
    model: Model,
    x: Tensor,
    noise: NoiseSource,
    recorder: Recorder | None = None,
    on_step: Callable[[int, int], None] | None = None,
    registers: dict | None = None,
    watch: bool = False,
    gradients: bool = False,
    path: list[Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Run ``program`` from the state ``x``; the final state and the number of evaluations.

    Args:
        program: the sampler on its grid, or what :func:`bind` made of it for this model.
        model: what rows evaluate.
        x: initial state (n, *event); not modified.
        noise: where rows draw from.
        recorder: what to keep, or None.
        on_step: called as ``on_step(done, total)`` after each step; what it raises ends the run.
        registers: further registers at the start, like ``mu`` (the condition of an affine process,
            shaped like ``x``: ``diffusion.constants(x)``); at the end it holds all of them.
        watch: look for numbers that are not finite after every row.
        gradients: leave autograd as it is; without recording.
        path: to which the state after each step is appended, or all of them at once, with one more
            axis in front; of many samples perhaps their smallest and largest number, (steps, 1, 2).

    Raises:
        NotFinite: only if asked to ``watch``.
    """
    with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
        bound = program if isinstance(program, BoundProgram) else bind(program, model, x)
        return _walk(bound, model, x, noise, recorder, on_step, registers, watch, path)


def _walk(bound, model, x, noise, recorder, on_step, registers, watch, path) -> tuple[Tensor, int]:
    held = {} if registers is None else registers
    held["x"], run = x, Run(model, noise)
    if bound.straight is not None:
        bound.straight.walk(run, bound.program.steps, held, recorder, on_step, path)
        return held["x"], run.evaluations
    total, room = len(bound.steps), None
    recorded = None if recorder is None else recorder.states_of_all()
    alone = None if recorded is None or path is None else recorder.states_alone()
    if alone is not None:  # they are gathered from the path
        recorded = recorder = None
    for index, bound_step in enumerate(bound.steps):
        step, rows = bound_step.step, bound_step.rows
        run.step, before, free = step, held["x"], None
        if recorder is not None:
            # Where x alone is kept, the step before has put it there.
            if recorder.wants(index) and (recorder.needs_denoised or before is not room):
                free = step.free_evaluation() if recorder.needs_denoised else None
                if free is None:
                    recorder.keep(index, step.start, held["x"], None)
            room = recorder.room(index + 1)
        last = rows[-1]
        for row in rows:
            kind = row[0]
            if kind is Combine:
                _, out, first, factor, added, fresh = row
                # A fresh tensor, or the record's: registers may be shared, none is overwritten.
                value = mul(held[first], factor, out=room if row is last and out == "x" else None)
                for name, c in added:
                    if type(c) is float:
                        value.add_(held[name], alpha=c)
                    else:  # one per mode
                        value.addcmul_(held[name], c)
                if type(fresh) is not float:
                    value.addcmul_(run.noise(), fresh)
                elif fresh:
                    value.add_(run.noise(), alpha=fresh)
                held[out] = value
            elif kind is Evaluate:
                _, out, at, kernel = row
                held[out] = value = kernel(held[at])
                run.evaluations += 1
                if free == out:
                    recorder.keep(index, step.start, held["x"], value)
                    free = None
            else:
                _, outs, reads, function, single = row
                values = function(run, *[held[name] for name in reads])
                held.update(zip(outs, (values,) if single else values, strict=True))
            if watch:
                _look(row, held, index, step.start, before)
        if path is not None and recorded is None:
            path.append(held["x"])
        if on_step is not None:
            on_step(index + 1, total)
    if recorder is not None:
        recorder.keep(total, step.end, held["x"], None)
        if path is not None and recorded is not None:
            path.append(recorded[1:])
    if alone is not None:
        path[:] = [torch.stack([x, *path], out=alone)[1:]]
    return held["x"], run.evaluations


#: What an evaluation is of, and the method of a model that gives it.
ASKED = {"denoised": "denoise", "score": "score", "slope": "slope"}


def _looked_at(answer: Callable) -> Callable:
    """``answer`` with a look at what it gives."""

    def looked_at(x: Tensor, alpha, sigma) -> Tensor:
        value = answer(x, alpha, sigma)
        if value.shape != x.shape or value.dtype != x.dtype:
            given, wanted = (f"{tuple(v.shape)} in {dtype_name(v.dtype)}" for v in (value, x))
            raise ValueError(
                f"the denoiser answered with shape {given} to states of shape {wanted}; it must "
                "give one value per state, in their shape and dtype."
            )
        return value

    return looked_at


def _scales(program: Program, x: Tensor) -> list[Tensor]:
    """The coefficient of the first term of every combination, as a tensor."""
    first = [row.terms[0][1] if row.terms else 0.0 for row in program.combinations]
    if Tensor in set(map(type, first)):
        return first
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    numbers = dict.fromkeys(first)
    tensors = torch.tensor(list(numbers), dtype=dtype).unbind() if first else ()
    of = dict(zip(numbers, tensors, strict=True))
    return [of[number] for number in first]


mul = torch.mul


def _look(row, held: dict, index: int, node: Node, before: Tensor) -> None:
    for name in row[1] if row[0] is Apply else (row[1],):
        value = held[name]
        if isinstance(value, Tensor) and value.is_floating_point():
            bad = ~value.isfinite()
            if bool(bad.any()):
                count = int(bad.reshape(len(bad), -1).any(1).sum()) if bad.ndim else 1
                raise NotFinite(index, node, before, count, row[0] is Evaluate)
