r"""Where a sampler stops on its way: nodes (t, alpha, sigma), separate from process and method.

A grid goes from noise to data. ``final`` says how it ends: ``"stop"`` at ``t_min``, or
``"denoise"``: the last step goes on to sigma = 0. **Steps count both alike** (EDM's 18 steps are 17
between sigma_max and sigma_min and one to zero), and steps are not evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch

from workbench.params import Param, checked
from workbench.processes import Process
from workbench.registry import View, register

Final = Literal["stop", "denoise"]
Steps = Annotated[int, Param("steps of the run, the final one included", ge=1, le=10_000)]
FinalStep = Annotated[Final, Param("how the run ends: at t_min, or denoised to sigma = 0")]
Rho = Annotated[float, Param("Karras exponent: 1 is uniform, 7 dense at low noise", gt=0, le=100)]


class Node(NamedTuple):
    """One place on a grid; floats. In a program of a spectral process, one value per mode."""

    t: float
    alpha: float
    sigma: float

    @property
    def rho(self) -> float:
        return self.sigma / self.alpha if self.alpha else math.inf


@dataclass(frozen=True)
class Grid:
    """Nodes of decreasing time. Make one with :meth:`karras`, :meth:`uniform`, :meth:`log_snr`,
    :meth:`quadratic` or :meth:`times`.

    For a spectral process, alpha and sigma of a node are root mean squares over the modes.

    Attributes:
        name: of its kind, ``parameters`` those of the kind, beside steps and final, by name.
    """

    registry_kind: ClassVar[str] = "grid"

    nodes: tuple[Node, ...]
    final: Final
    name: str = "times"
    parameters: tuple[tuple[str, float], ...] = ()

    @cached_property
    def t(self) -> tuple[float, ...]:
        """Times, decreasing; one more than there are steps."""
        return tuple(node.t for node in self.nodes)

    @cached_property
    def alpha(self) -> tuple[float, ...]:
        return tuple(node.alpha for node in self.nodes)

    @cached_property
    def sigma(self) -> tuple[float, ...]:
        return tuple(node.sigma for node in self.nodes)

    @cached_property
    def rho(self) -> tuple[float, ...]:
        """Noise levels sigma/alpha, decreasing; infinite at pure noise."""
        return tuple(node.rho for node in self.nodes)

    @property
    def steps(self) -> int:
        return len(self.nodes) - 1

    def __len__(self) -> int:
        return len(self.nodes)

    def along(self, process: Process, least: float = 0.0) -> Grid:
        """The same times on another process; alpha is at least ``least``."""
        times = self.t[: len(self) - (self.final == "denoise")]
        grid = _finish(process, list(times), self.final, self.name)
        nodes = tuple(Node(n.t, max(n.alpha, least), n.sigma) for n in grid.nodes)
        return replace(self, nodes=nodes)

    def of_steps(self, process: Process, steps: int, final: Final | None = None) -> Grid:
        """A grid of the same kind and parameters from ``t_max`` to ``t_min`` in other steps.

        Raises:
            NotImplementedError: a grid whose times were given one by one.
        """
        if self.name not in GRIDS:
            raise NotImplementedError(
                f"the number of steps of {self!r} is fixed; take one of {', '.join(GRIDS)}."
            )
        return GRIDS[self.name](process, steps, final=final or self.final, **dict(self.parameters))

    def __repr__(self) -> str:
        return f"Grid.{self.name}({self.steps} steps, t {self.t[0]:g} to {self.t[-1]:g})"

    @staticmethod
    @checked
    def uniform(process: Process, steps: Steps = 18, final: FinalStep = "stop") -> Grid:
        """Equal steps in t."""
        check_kind("process", process, Process)
        lo, hi = process.t_min, process.t_max
        return _grid(process, steps, final, "uniform", lambda u: hi + u * (lo - hi))

    @staticmethod
    @checked
    def quadratic(process: Process, steps: Steps = 18, final: FinalStep = "stop") -> Grid:
        """Equal steps in the square root of t.

        Source: Song, Meng & Ermon 2021 (DDIM), arXiv:2010.02502, appendix D.2.
        """
        check_kind("process", process, Process)
        lo, hi = math.sqrt(process.t_min), math.sqrt(process.t_max)
        return _grid(process, steps, final, "quadratic", lambda u: (hi + u * (lo - hi)) ** 2)

    @staticmethod
    @checked
    def log_snr(process: Process, steps: Steps = 18, final: FinalStep = "stop") -> Grid:
        """Equal steps in log(alpha/sigma).

        Where the process starts at pure noise (rho infinite), the first step leaves it and the
        equal steps begin at the rho of ``t_max - t_min`` (half way to ``t_min`` if that is later).
        From 50 steps on the first step shrinks, as ``t_min (35/steps)^2``, so that its error is of
        fourth order and no plateau; one step in 14 leads on from there, in equal steps of
        log(alpha/sigma) of its own, to where the rest begins.

        Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927.
        """
        return _rho_grid(process, steps, final, "log_snr", math.log, math.exp)

    @staticmethod
    @checked
    def karras(
        process: Process, steps: Steps = 18, final: FinalStep = "stop", exponent: Rho = 7.0
    ) -> Grid:
        """Equal steps in ``rho**(1/exponent)``; pure noise as in :meth:`log_snr`.

        Source: Karras et al. 2022, arXiv:2206.00364, eq. 5 (exponent 7).
        """
        inverse = 1.0 / exponent
        grid = _rho_grid(
            process, steps, final, "karras", lambda r: r**inverse, lambda v: v**exponent
        )
        vars(grid)["parameters"] = (("exponent", exponent),)
        return grid

    @staticmethod
    @checked
    def times(
        process: Process,
        t: Annotated[
            tuple[float, ...],
            Param("times of the nodes, decreasing", standard=(1.0, 0.5, 0.1, 0.01)),
        ],
        final: FinalStep = "stop",
    ) -> Grid:
        """These very times, decreasing; ``final="denoise"`` adds a step to sigma = 0.

        Raises:
            ValueError: fewer than two times, times that do not decrease, or outside the range.
        """
        check_kind("process", process, Process)
        times = [float(value) for value in t]
        whole = [*times, 0.0] if final == "denoise" else times
        if len(whole) < 2:
            raise ValueError(f"t was {times}; a grid needs at least two times.")
        for a, b in pairwise(whole):
            if not a > b:
                raise ValueError(
                    f"t goes from {a:g} to {b:g}; times must decrease towards the data."
                )
        return _finish(process, times, final, "times")


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse what is no ``kind``; where it is a class, say that it is to be called."""
    if not isinstance(value, kind):
        hint = f"; call it first: {value.__name__}()" if isinstance(value, type) else ""
        raise TypeError(f"{name} was {value!r}; it must be a {kind.__name__}{hint}.")


def _grid(process: Process, steps: int, final: Final, name: str, time: Callable) -> Grid:
    """Times at equal u in [0, 1]; both ends exactly those of the process."""
    count = steps - (final == "denoise")
    inner = [time(i / count) for i in range(1, count)]
    ends = [process.t_max, process.t_min] if count else [process.t_max]
    return _finish(process, [ends[0], *inner, *ends[1:]], final, name)


def _rho_grid(process: Process, steps: int, final: Final, name: str, to, back) -> Grid:
    check_kind("process", process, Process)
    if process.spectral:
        raise ValueError(
            f"{process!r} has one rho per mode, so a {name} grid is not defined for it; use "
            "Grid.uniform, Grid.quadratic or Grid.times."
        )
    high = process.t_max
    lead, first = _lead(process, steps) if process(high).rho == math.inf else ([], high)
    hi, lo = to(process(first).rho), to(process(process.t_min).rho)
    count = steps - len(lead) - (final == "denoise")
    if count < 0:  # one step from pure noise to the denoised state: no room between
        return _grid(process, steps, final, name, lambda u: u)
    levels = [back(hi + i / count * (lo - hi)) for i in range(1, count)]
    inner = process.time_of(torch.tensor(levels, dtype=torch.float64)).tolist()
    ends = [first, process.t_min] if count else ([process.t_min] if lead else [first])
    return _finish(process, [*lead, ends[0], *inner, *ends[1:]], final, name)


def _lead(process: Process, steps: int) -> tuple[list[float], float]:
    """From pure noise: the times before the one where a grid's own spacing begins, and that one."""
    low, high = process.t_min, process.t_max
    first = max(high - low, 0.5 * (high + low))
    # Beyond, x' = alpha' E[x0] + sigma' eps is off by O(1/rho'^2).
    gap, count = (high - first) * (35 / steps) ** 2, steps // 14
    if steps < 50 or gap < 2.0**-40 * high:  # too close to t_max for a float to tell
        return [high], first
    start, end = process(high - gap).rho, process(first).rho
    ratios = torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:-1]
    inner = process.time_of(start * (end / start) ** ratios).tolist()
    return [high, high - gap, *inner], first


def _finish(process: Process, times: list[float], final: Final, name: str) -> Grid:
    nodes = [Node(*node) for node in zip(times, *levels(process, times), strict=True)]
    if final == "denoise":
        nodes.append(Node(0.0, *levels(process, [0.0])[0], 0.0))
    grid = Grid(tuple(nodes), final, name)
    grid.__dict__["made_for"] = process  # known where nothing was changed since
    return grid


def levels(process: Process, times: Sequence[float]) -> tuple[list[float], list[float]]:
    """alpha and sigma at each time, root mean squares over the modes of a spectral process."""
    c = process(torch.tensor(list(times), dtype=torch.float64))
    if not process.spectral:
        return c.alpha.tolist(), c.sigma.tolist()
    alpha, sigma = (v.flatten(1).square().mean(1).sqrt().tolist() for v in (c.alpha, c.sigma))
    return alpha, sigma


def check_made_for(process: Process, grid: Grid) -> None:
    """Refuse a grid whose alpha and sigma are not those of ``process`` at its times."""
    if vars(grid).get("made_for") == process:
        return
    last = len(grid) - (grid.final == "denoise")
    there = torch.tensor([grid.alpha[:last], grid.sigma[:last]], dtype=torch.float64)
    try:
        here = torch.tensor(levels(process, grid.t[:last]), dtype=torch.float64)
        same = torch.allclose(here, there, rtol=1e-9, atol=1e-12)
    except ValueError:  # times that this process does not have
        same = False
    if not same:
        raise ValueError(
            f"{grid!r} was made for another process than {process!r}: their alpha and sigma differ "
            "at the same t. Make the grid from the diffusion's own process."
        )


for _make in (Grid.log_snr, Grid.karras, Grid.uniform, Grid.quadratic, Grid.times):
    register(_make, kind="grid")

#: Every grid of a number of steps, by name: ``(process, steps, final, ...) -> Grid``.
GRIDS = View("grid", only=lambda one: "steps" in one.parameters)
