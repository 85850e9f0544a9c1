"""Samplers of the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.multistep import gauss_legendre
from workbench.sampling.methods.runge_kutta import Heun, linear_velocity
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Euler-Maruyama for the reverse-time family of SDEs, in t.

    .. math:: dx = \left[f x - \tfrac{1+\eta}{2} g^2 s\right] dt + \sqrt{\eta}\, g\, dW

    and, under an affine process, :math:`(\dot m - f m)\mu\,dt` more: theta (mu - x) dt for f x dt,
    so it samples ``OUVE`` and ``IRSDE`` as their authors do. eta 1 is the reverse SDE, eta 0 the
    probability flow, larger values stir more. Weak order 1, one evaluation a step. Where g is
    infinite (alpha = 0) the first step is the exponential one.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 6 and appendix D.
    """

    eta: Annotated[float, Param("noise: 0 probability flow, 1 reverse SDE", ge=0, le=10)] = 1.0

    order = 1
    in_time = True

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0 and self.eta > 0:
            return exponential_step(a, b, min(self.eta, 1.0))
        h = b.t - a.t
        c = process(a.t)
        p, q = linear_velocity(process, a, c)
        g2 = c.g2 if self.eta > 0 else 0.0
        stir = 0.5 * self.eta * g2 / (a.sigma * a.sigma)
        (begin, pull), (end, _) = process.shift(a.t), process.shift(b.t)
        terms = {
            "x": 1 + h * (p + stir),
            "mu": begin - end + h * pull,
            "D": h * (q - stir * a.alpha),
        }
        return (
            Evaluate("D", "x", a),
            Combine("x", terms, noise=math.sqrt(self.eta * g2 * -h)),
        )


@dataclass(frozen=True)
class ExponentialSDE(Sampler):
    r"""The reverse SDE with its linear part solved exactly and one quantity held over the step.

    Held constant is the noise prediction, the score or the denoised state:

    .. math::
        x' &= \tfrac{\alpha'}{\alpha} x - 2\sigma'(e^h - 1)\,\hat\epsilon
              + \sigma'\sqrt{e^{2h} - 1}\, z, \qquad h = \log(\rho/\rho') \\
        x' &= \tfrac{\alpha'}{\alpha} x + s\,\alpha'\!\int \alpha\, d(\rho^2)
              + \sigma'\sqrt{e^{2h} - 1}\, z \\
        x' &= \tfrac{\sigma'}{\sigma} e^{-h} x + \alpha'(1 - e^{-2h}) D
              + \sigma'\sqrt{1 - e^{-2h}}\, z

    Weak order 1, one evaluation a step. Holding the score is the exponential integrator of Pierret
    & Galerne; holding the denoised state is DDIM(1), and the only one that is stable at any step.

    Sources: Zhang & Chen 2023, arXiv:2204.13902; Lu et al. 2022, arXiv:2211.01095 (SDE-DPM-Solver);
    Pierret & Galerne 2024, arXiv:2405.14250.
    """

    holds: Annotated[
        Literal["noise", "score", "denoised"], Param("what is held constant over a step")
    ] = "noise"

    order = 1
    stochastic = True

    @property
    def in_time(self) -> bool:
        return self.holds == "score"

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if self.holds == "denoised" or a.alpha == 0:
            return exponential_step(a, b, 1.0)
        kept = b.alpha / a.alpha
        grown = kept * a.sigma  # sigma' e^h
        if self.holds == "noise":
            per_noise = -2 * (grown - b.sigma)
        else:
            per_noise = -_held_score(process, a, b) / a.sigma
        x, d = kept + per_noise / a.sigma, -per_noise * a.alpha / a.sigma
        fresh = math.sqrt(max(0.0, (grown - b.sigma) * (grown + b.sigma)))
        return Evaluate("D", "x", a), Combine("x", {"x": x, "D": d}, fresh)


def _held_score(process: Process, a: Node, b: Node) -> float:
    r"""What multiplies a held score, :math:`\alpha'\int_{b}^{a} (g^2/\alpha)\,dt`: 32 points."""
    points, weights = gauss_legendre(32)
    t = torch.from_numpy(0.5 * (a.t + b.t) + 0.5 * (a.t - b.t) * points)
    c = process(t)
    return b.alpha * 0.5 * (a.t - b.t) * float((c.g2 / c.alpha).numpy() @ weights)


@dataclass(frozen=True)
class EDMStochastic(Sampler):
    r"""EDM's sampler with churn: noise is added, then Heun's step in rho leads down.

    .. math:: \hat\rho = \rho(1+\gamma),\qquad
              \gamma = \min(S_{churn}/N, \sqrt2 - 1) \text{ for } S_{min} \le \rho \le S_{max}

    Weak order 2 once S_churn/N is well below the cap of sqrt(2) - 1. Two evaluations a step, one in
    a final step to sigma = 0. ``S_noise`` above 1 (published: 1.003) makes up for what a trained
    denoiser takes away too much; with an exact one the error then stays as the steps grow finer.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2 and table 5.
    """

    s_churn: Annotated[float, Param("noise added over the whole run", ge=0, le=1e4)] = 40.0
    s_min: Annotated[float, Param("least rho that is churned", ge=0, le=1e6)] = 0.05
    s_max: Annotated[float, Param("largest rho that is churned", gt=0, le=1e9)] = 50.0
    s_noise: Annotated[float, Param("factor on the added noise", gt=0, le=10)] = 1.0

    order = 2

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if a.alpha == 0 else 2

    def _program(self, process: Process, grid: Grid) -> Program:
        gamma = min(self.s_churn / grid.steps, math.sqrt(2) - 1)
        return Program(
            tuple(Step(a, b, self._churned(process, a, b, gamma)) for a, b, _ in self._steps(grid))
        )

    def _churned(self, process: Process, a: Node, b: Node, gamma: float) -> tuple[Row, ...]:
        churn = gamma if self.s_min <= a.rho <= self.s_max else 0.0
        # Same alpha, more noise: off the process's path, where a denoiser answers as well.
        hat = Node(a.t, a.alpha, a.sigma * (1 + churn))
        rows = Heun().rows(process, hat, b) if b.sigma > 0 else exponential_step(hat, b)
        if not churn:
            return rows
        fresh = self.s_noise * a.sigma * math.sqrt(churn * (2 + churn))
        return (Combine("x", {"x": 1.0}, fresh), *rows)
