"""Programs bound to a denoiser, kept from one run to the next of the same kind.

They are kept with the denoiser itself, a few at most, so that they go when it goes. What they were
made of is kept with them and looked at before each use: the same sampler, process and grid (by
value), and the same tensors in the denoiser and its parts, each with the version that torch counts
up whenever it is written to in place (but for writes through ``.data``, which torch does not
count). A run that is to be differentiated is never kept.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from workbench.diffusion import Diffusion
from workbench.processes import Process
from workbench.sampling.grid import Grid, check_made_for
from workbench.sampling.loop import BoundProgram, bind
from workbench.sampling.methods.base import Sampler
from workbench.sampling.program import Program

#: Programs kept with one denoiser; and those kept whatever the denoiser.
KEPT = 4


@dataclass
class Plan:
    """A bound program, and what its runs have in common.

    Attributes:
        marks: of the denoiser it was made of.
        notes: provenance of a run of it; empty until there was one.
        scale: size that its states may have.
    """

    bound: BoundProgram
    marks: tuple[list, list] | None
    notes: dict = field(default_factory=dict)
    scale: float = 0.0


def planned(
    diffusion: Diffusion, sampler: Sampler, grid: Grid, like: Tensor, states_alone=False
) -> Plan:
    """The program of ``sampler`` on ``grid``, bound to the diffusion's denoiser.

    Args:
        like: states (n, *event) of the shape, dtype and device of the run's.
        states_alone: as in :func:`~workbench.sampling.loop.bind`.

    Raises:
        ValueError: a grid made for another process.
    """
    core = diffusion.core
    key, kept = _key(diffusion, sampler, grid, like, states_alone), None
    marks = core.marks() if key else None
    if marks is not None:
        kept = vars(core).setdefault("_programs", OrderedDict())
        plan = kept.get(key)
        if plan is not None and _same(plan.marks, marks):
            return plan
    check_made_for(diffusion.process, grid)
    program = program_of(diffusion, sampler, grid)
    constants = () if diffusion.condition is None else ("mu",)
    with torch.no_grad():
        plan = Plan(bind(program, core, like, states_alone, constants), marks)
    if kept is not None:
        kept[key] = plan
        while len(kept) > KEPT:
            kept.popitem(last=False)
    return plan


def program_of(diffusion: Diffusion, sampler: Sampler, grid: Grid) -> Program:
    """The program of ``sampler``, prepared for a diffusion, on a grid; the latest few are kept."""
    ready, process = sampler.prepared(diffusion, grid), diffusion.process
    learnt = tuple(vars(ready).values())  # of what it was prepared for, which it may not compare
    if process.spectral or not _hashable(ready, learnt, process):
        return ready.program(process, grid)
    return _program(type(ready), ready, learnt, process, grid)


@lru_cache(maxsize=KEPT)
def _program(kind: type, sampler: Sampler, learnt: tuple, process: Process, grid: Grid) -> Program:
    """The program of a sampler on a grid, the same for all denoisers."""
    return sampler.program(process, grid)


def _key(
    diffusion: Diffusion, sampler: Sampler, grid: Grid, like: Tensor, states_alone: bool
) -> tuple | None:
    """What a bound program depends on beside the denoiser; None where that cannot be told."""
    if diffusion.condition is not None and type(sampler).prepared is not Sampler.prepared:
        return None
    kind = (states_alone, diffusion.condition is None, like.shape, like.dtype, like.device)
    key = (type(sampler), sampler, diffusion.process, grid, kind)
    return key if _hashable(*key) else None


def _hashable(*values) -> bool:
    """Whether they can be looked up; not where one holds what cannot be compared."""
    try:
        hash(values)
    except TypeError:
        return False
    return True


def _same(one: tuple[list, list], other: tuple[list, list]) -> bool:
    """Whether two marks are of the same things, none of them written to in between."""
    held, values = one
    return (
        values == other[1]
        and len(held) == len(other[0])
        and all(a is b for a, b in zip(held, other[0], strict=True))
    )
