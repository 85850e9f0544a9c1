r"""Inversion: from data to the noise that a sampler would have made it from, and back.

Every method here is a deterministic sampler with a way back. With the cleaner node b and the
noisier node a, DDIM's step and what undoes it are

.. math::
    x_b = A x_a + B\,D(x_a, a),\qquad A = \sigma_b/\sigma_a,\quad B = \alpha_b - \alpha_a A,
    \qquad x_a = \bigl(x_b - B\,D(x_a, a)\bigr)/A ,

where the last line asks for :math:`x_a` on both sides. DDIM inversion puts :math:`D(x_b, b)` there
and is wrong by O(1/N); the fixed-point iteration solves the line; methods with two states
(:mod:`workbench.sampling.methods.coupled`) make it explicit and are undone exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from workbench.denoisers.checks import finite
from workbench.diffusion import Diffusion
from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node, check_kind, check_made_for
from workbench.sampling.loop import walk
from workbench.sampling.methods.base import LEAST, Sampler, ddim_steps, over_modes
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step

Steps = tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Latent:
    """What :meth:`Inversion.encode` makes of data.

    Attributes:
        x: the state at the first node of the grid (n, *event): alone, the noise that the data
            would come from.
        states: what an exact return starts from, as registers of the core variable.
        inversion, grid: who made it, and where.
    """

    x: Tensor
    states: dict[str, Tensor] = field(repr=False)
    inversion: Inversion
    grid: Grid


class Inversion(Sampler):
    """Base of samplers that can be walked backwards. As samplers they start from noise alone.

    Attributes:
        exact: whether ``decode`` undoes ``encode`` but for rounding.
        states: names of the registers that a step leads from and to.
        lagged: whether the second is the state one node before x, not at the same node.
    """

    registry_kind = "inversion"
    exact = False
    states: tuple[str, ...] = ("x",)
    lagged = False

    # -- what a subclass gives -------------------------------------------------------------------

    def forth(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        """Towards the data: steps that make all states from x alone; steps with all of them, which
        can be undone; steps that cannot (to sigma = 0)."""
        steps = ddim_steps(nodes)
        undone = len(steps) - (nodes[-1].sigma == 0)
        return (), steps[:undone], steps[undone:]

    def back(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        """Towards noise: steps that make all states from the data; one for each of the middle of
        :meth:`forth`, last first; steps that put the noise into register "latent" (none: it is in
        x)."""
        raise NotImplementedError

    # -- what a caller uses ----------------------------------------------------------------------

    def encode(self, diffusion: Diffusion, grid: Grid, x: Tensor) -> Latent:
        """The noise that the states ``x`` at the grid's last time come from.

        Args:
            diffusion: process and denoiser.
            grid: the nodes, walked backwards; it must stop at sigma > 0.
            x: states (n, *event) at time ``grid.t[-1]``: data, where that is close to 0.

        Raises:
            ValueError: a grid made for another process or one that ends at sigma = 0; wrong shapes.
            TypeError: something of the wrong kind, or ``x`` of another dtype.
        """
        checked_run(diffusion, grid, x)
        held: dict[str, Tensor] = {}
        u = diffusion.to_core(x.to(diffusion.device), grid.t[-1])
        walk(self.encoding(diffusion.process, grid), diffusion.core, u, None, registers=held)
        states = {name: held[name] for name in self.states if name in held}
        noise = diffusion.from_core(held.get("latent", held["x"]), grid.t[0])
        return Latent(noise, states, self, grid)

    def decode(self, diffusion: Diffusion, grid: Grid, latent: Latent | Tensor) -> Tensor:
        """The states at the grid's last time that ``latent`` leads to.

        Args:
            diffusion: process and denoiser.
            grid: the nodes.
            latent: what :meth:`encode` made on the same grid; or states (n, *event) at
                ``grid.t[0]`` alone, for the method as a sampler.

        Raises:
            ValueError: as :meth:`encode`, and a latent of another inversion or grid.
            TypeError: as :meth:`encode`.
        """
        if not isinstance(latent, Latent):
            checked_run(diffusion, grid, latent, "latent")
            u = diffusion.to_core(latent.to(diffusion.device), grid.t[0])
            program = self.program(diffusion.process, grid)
            return diffusion.from_core(walk(program, diffusion.core, u, None)[0], grid.t[-1])
        for name, made, given in (
            ("inversion", latent.inversion, self),
            ("grid", latent.grid, grid),
        ):
            if made != given:
                raise ValueError(
                    f"the latent was made with the {name} {made!r}, and this is {given!r}; decode "
                    "it with the one that made it, or give its noise alone: latent.x."
                )
        checked_run(diffusion, grid, latent.x, "latent.x")
        program = self.decoding(diffusion.process, grid)
        rest = {name: value for name, value in latent.states.items() if name != "x"}
        final = walk(program, diffusion.core, latent.states["x"], None, registers=rest)[0]
        return diffusion.from_core(final, grid.t[-1])

    def encoding(self, process: Process, grid: Grid) -> Program:
        """The program of :meth:`encode`."""
        if grid.sigma[-1] == 0:
            raise ValueError(
                f"{grid!r} ends at sigma = 0, and many states of the noise lead to the same "
                "denoised one, so there is nothing to invert; take a grid that stops before, "
                'final="stop" at t > 0.'
            )
        return self.part(process, grid, lambda nodes: sum(self.back(nodes), ()))

    def decoding(self, process: Process, grid: Grid) -> Program:
        """The program of :meth:`decode` from all states; from x alone it is :meth:`program`."""
        return self.part(process, grid, lambda nodes: sum(self.forth(nodes)[1:], ()))

    def nfe(self, grid: Grid) -> int:
        """Evaluations as a sampler; ``encoding(process, grid).nfe`` are those of the way back."""
        return grid.steps

    def stability(
        self,
        process: Process,
        grid: Grid,
        variances: Tensor,
        way: Literal["encode", "decode"] = "encode",
    ) -> float:
        r"""The largest factor by which encoding, or decoding, enlarges a small change of states.

        On Gaussian data each step is a matrix for each mode. In units of the standard deviation
        :math:`\sqrt{\alpha^2\lambda + \sigma^2}` of the state at each node the exact flow has gain
        1. This is the largest norm, over all modes, of the product of the steps' matrices from any
        node to the noise (encoding) or to the data (decoding, from all states). What an exact
        method returns of data errs by about the product of both and of a rounding.

        Args:
            process, grid: as in ``encode``.
            variances: :math:`\lambda` of the modes, (m,) [x²]; of a spectral process one for each.
            way: "encode" or "decode".

        Raises:
            ValueError: a negative variance, a spectral process with another number of modes,
                another way, or a grid that ends at sigma = 0.
        """
        if way not in ("encode", "decode"):
            raise ValueError(f'way was {way!r}; it must be "encode" or "decode".')
        variances = torch.as_tensor(variances, dtype=torch.float64).flatten()
        if not bool((variances >= 0).all()) or not len(variances):
            raise ValueError(
                f"variances were {variances.tolist()}; give at least one, each 0 or more."
            )
        if process.spectral and len(variances) != math.prod(process.basis.event_shape):
            raise ValueError(
                f"there are {len(variances)} variances; {process!r} has "
                f"{math.prod(process.basis.event_shape)} modes, and each needs one."
            )
        self.encoding(process, grid)  # says why where there is none
        undoing = self.part(process, grid, lambda nodes: self.back(nodes)[1]).steps
        if not undoing:
            return 1.0
        nodes = [step.start for step in self.program(process, grid).steps][::-1]
        spreads = [_spread(node, variances) for node in (undoing[0].start, *nodes)]
        names = self.states

        def spread(place: int) -> Tensor:
            """Of all states at a node, the cleanest first: (modes, states)."""
            return torch.stack([spreads[place + i * self.lagged] for i in range(len(names))], 1)

        if way == "encode":
            steps, places = undoing, [(j, j + 1) for j in range(len(undoing))]
        else:
            steps = self.part(process, grid, lambda nodes: self.forth(nodes)[1]).steps
            places = [(j + 1, j) for j in reversed(range(len(steps)))]
        size, gain, best = 0.0, torch.eye(len(names), dtype=torch.float64), -math.inf
        for step, (start, end) in zip(reversed(steps), reversed(places), strict=True):
            matrix = _matrix(step, names, variances)
            gain = gain @ (matrix * spread(start)[:, None, :] / spread(end)[:, :, None])
            largest = gain.abs().max().item()
            gain, size = gain / largest, size + math.log(largest)
            norm = torch.linalg.matrix_norm(gain, ord=2).max().item()
            best = max(best, size + math.log(norm))
        return math.exp(best) if best < 709 else math.inf

    def part(
        self, process: Process, grid: Grid, steps: Callable[[Sequence[Node]], Steps]
    ) -> Program:
        """A program of ``steps(nodes)``; one per mode, laid over each other, where each has its
        own alpha and sigma."""
        return over_modes(lambda _, own: Program(steps(own.nodes)), process, grid)

    def _program(self, process: Process, grid: Grid) -> Program:
        """All parts of :meth:`forth`; a step that goes nowhere is the beginning of the next."""
        steps, before = [], ()
        for step in sum(self.forth(grid.nodes), ()):
            if step.start == step.end:
                before = (*before, *step.rows)
                continue
            steps.append(Step(step.start, step.end, (*before, *step.rows)))
            before = ()
        return Program(tuple(steps))


def checked_run(diffusion: Diffusion, grid: Grid, x: Tensor, name: str = "x") -> None:
    """Everything of the right kind, the grid one of the diffusion's process, ``x`` its states."""
    check_kind("diffusion", diffusion, Diffusion)
    check_kind("grid", grid, Grid)
    check_kind(name, x, Tensor)
    check_made_for(diffusion.process, grid)
    if x.ndim != len(diffusion.event_shape) + 1 or x.shape[1:] != diffusion.event_shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it must be (n, "
            f"{', '.join(map(str, diffusion.event_shape))}): one state after the other."
        )
    if x.dtype != diffusion.dtype:
        raise TypeError(
            f"{name} is {x.dtype}; this diffusion is in {diffusion.dtype}: give {name} in that "
            "dtype, or diffusion.to(dtype)."
        )
    finite(name, x)


def ddim(a: Node, b: Node) -> tuple[float, float]:
    """Coefficients of x and D in DDIM's step from ``a``, sigma > 0, to ``b``, in either direction;
    regular where alpha = 0."""
    kept = b.sigma / a.sigma
    return kept, b.alpha - a.alpha * kept


def ddim_rows(a: Node, b: Node, at: str = "x", out: str = "x") -> tuple[Row, ...]:
    """DDIM's step from register ``at`` at node ``a`` to ``out`` at ``b``, in either direction."""
    x, d = ddim(a, b)
    return Evaluate("D", at, a), Combine(out, {at: x, "D": d})


@dataclass(frozen=True)
class DDIMInversion(Inversion):
    r"""DDIM walked backwards with the denoised state of the cleaner node.

    .. math:: x_a = \tfrac{\sigma_a}{\sigma_b} x_b
              + \bigl(\alpha_a - \alpha_b\tfrac{\sigma_a}{\sigma_b}\bigr) D(x_b, b)

    Order 1 in both directions, one evaluation a step; a round trip errs by O(1/N).

    Sources: Song, Meng & Ermon 2021, arXiv:2010.02502, section 4.3; Dhariwal & Nichol 2021,
    arXiv:2105.05233, appendix F.
    """

    order = 1

    def back(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        pairs = reversed(list(pairwise(nodes)))
        return (), tuple(Step(b, a, self._undo(a, b)) for a, b in pairs), ()

    def _undo(self, a: Node, b: Node) -> tuple[Row, ...]:
        """The rows from the cleaner node ``b`` back to ``a``."""
        return ddim_rows(b, a)


@dataclass(frozen=True)
class FixedPointInversion(DDIMInversion):
    r"""DDIM's step solved for its start by fixed-point iteration in the noise prediction.

    .. math:: z \leftarrow \tfrac{\alpha_a}{\alpha_b}\bigl(x_b - \sigma_b\,\hat\epsilon(z, a)\bigr)
              + \sigma_a\,\hat\epsilon(z, a)
              = \tfrac{\alpha_a}{\alpha_b} x_b + (1 - q)\bigl(z - \alpha_a D(z, a)\bigr),
              \qquad q = \rho_b/\rho_a ,

    from DDIM inversion's guess. With m iterations an encoding step takes m + 1 evaluations. The
    derivative of the right-hand side is :math:`(1 - q)(1 - C/\rho_a^2)` with C the posterior
    covariance of the data given z. On Gaussian data :math:`C = \lambda\rho_a^2/(\lambda +
    \rho_a^2)`, so each iteration reduces the error of a step by the factor
    :math:`(1 - q)\,\rho_a^2/(\lambda + \rho_a^2) < 1 - q`, on every grid. Elsewhere it contracts
    where :math:`C < \rho_a^2\,(2 - q)/(1 - q)`, which states between two modes far apart may miss.
    At pure noise, where D does not depend on z, the step is undone without iteration. Order 1.

    Sources: Li et al. 2024 (SPDInv), arXiv:2403.11105; Pan et al. 2023 (AIDI), arXiv:2309.04907.
    """

    iterations: Annotated[int, Param("iterations of an encoding step", ge=0, le=1000)] = 3

    def _undo(self, a: Node, b: Node) -> tuple[Row, ...]:
        evaluate, iteration = ddim_rows(b, a, out="z")
        rows: list[Row] = [evaluate, iteration]
        if a.alpha > LEAST:  # else the noise prediction is z itself, and D a constant
            change = 1 - b.rho / a.rho
            terms = {"x": a.alpha / b.alpha, "z": change, "D": -change * a.alpha}
            iteration = Combine("z", terms)
        rows += [Evaluate("D", "z", a), iteration] * self.iterations
        return (*rows, Combine("x", {"z": 1.0}))


def _spread(node: Node, variances: Tensor) -> Tensor:
    alpha, sigma = (_flat(c) for c in (node.alpha, node.sigma))
    return (alpha * alpha * variances + sigma * sigma).sqrt()


def _matrix(step: Step, names: tuple[str, ...], variances: Tensor) -> Tensor:
    """What a step does to changes of the states: (modes, states, states)."""
    eye = torch.eye(len(names), dtype=torch.float64).expand(len(variances), -1, -1)
    held = {name: eye[:, i] for i, name in enumerate(names)}
    for row in step.rows:
        if isinstance(row, Evaluate):
            alpha, sigma = _flat(row.node.alpha), _flat(row.node.sigma)
            slope = alpha * variances / (alpha * alpha * variances + sigma * sigma)
            held[row.out] = slope[:, None] * held[row.at]
        else:
            terms = ((_flat(c), held[name]) for name, c in row.terms)
            held[row.out] = sum(
                ((c[:, None] if isinstance(c, Tensor) else c) * h for c, h in terms),
                torch.zeros_like(eye[:, 0]),
            )
    return torch.stack([held[name] for name in names], 1)


def _flat(c: float | Tensor) -> float | Tensor:
    return c.flatten().double() if isinstance(c, Tensor) else c
