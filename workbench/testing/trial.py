"""What a denoiser is tried on: noise levels, states, directions; and how deviations are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.sampling import NoiseSource
from workbench.testing.report import Report

#: Noise levels a denoiser is tried at, as (alpha, sigma), from little noise to nothing but noise;
#: sigma in units of the data's standard deviation.
LEVELS = ((1.0, 0.05), (0.9, 0.3), (0.8, 0.6), (0.3, 0.95), (1.0, 10.0))

#: Fourth-order differences: the slope at 0 is the sum of weight * f(offset * h) over h.
OFFSETS = (-2.0, -1.0, 1.0, 2.0)
WEIGHTS = (1 / 12, -2 / 3, 2 / 3, -1 / 12)

#: What a denoiser may be asked, besides ``denoise``, at a state and a noise level.
METHODS = (
    "score",
    "log_prob",
    "jacobian",
    "divergence",
    "hessian",
    "posterior_cov",
    "rate",
    "classify",
)


@dataclass(frozen=True, eq=False)
class Level:
    """A noise level and states there; alpha and sigma numbers, or (1, *event)."""

    place: str
    alpha: float | Tensor
    sigma: float | Tensor
    x: Tensor

    @property
    def single(self) -> bool:
        return isinstance(self.alpha, float)

    @property
    def least(self) -> float:
        return float(torch.as_tensor(self.sigma).min())


class Trial:
    """A denoiser, the states it is tried on, and the report it gets."""

    def __init__(self, denoiser: Denoiser, seed: int, samples: int) -> None:
        self.report = Report(repr(denoiser))
        if denoiser.dtype != torch.float64:
            denoiser = denoiser.to(torch.float64)
        self.denoiser, self.dim = denoiser, denoiser.dim
        small = self.dim <= 8
        shape, device = denoiser.event_shape, denoiser.device
        count = max(samples, 4) if small else 4
        source = NoiseSource(range(seed, seed + count), shape, device=device)
        self.z, self.w = source.step(0), source.step(1)
        self.size = denoiser.std or 1.0
        try:
            self.centre = denoiser.denoise(self.z[:1], 0.0, 1.0)
        except ValueError:  # a law of its own says so
            self.centre = denoiser.mean
        directions = torch.eye(self.dim, dtype=torch.float64, device=device)
        if not small:  # a few random directions stand for all
            source = NoiseSource(range(3), (self.dim,), device=device)
            directions = torch.nn.functional.normalize(source.start(), dim=1)
        self.directions = directions.reshape(-1, 1, *shape)
        self.offsets = torch.tensor(OFFSETS, dtype=torch.float64, device=device)
        self.weights = torch.tensor(WEIGHTS, dtype=torch.float64, device=device)
        self.levels = [
            self._level(f"alpha {a:g}, sigma {s * self.size:.3g}", a, s * self.size)
            for a, s in LEVELS
        ]
        turn = torch.arange(self.dim, dtype=torch.float64, device=device).reshape(1, *shape)
        self.uneven = (0.4 * turn.cos()).exp()
        own = 0.7 * (0.3 * turn.sin()).exp(), 0.4 * self.size * self.uneven
        try:
            denoiser.denoise(self.z, *own)
            self.levels.append(self._level("one noise level per coordinate", *own))
        except ValueError as error:
            self.report.skipped.append(f"one noise level per coordinate: {error}")
        self.known = ["denoise", *filter(self._knows, METHODS)]

    def _level(self, place: str, alpha, sigma) -> Level:
        x = alpha * (self.centre + self.size * self.w) + sigma * self.z
        return Level(place, alpha, sigma, x)

    def _knows(self, method: str) -> bool:
        try:
            for level in self.levels:
                self.ask(method, level.x[:1], level.alpha, level.sigma)
        except NotImplementedError as error:
            self.report.skipped.append(f"{method}: {error}")
            return False
        return True

    @property
    def single(self) -> list[Level]:
        """The levels with one alpha and sigma for all coordinates."""
        return [level for level in self.levels if level.single]

    def ask(self, method: str, x: Tensor, alpha, sigma, path=None) -> Tensor:
        """An answer of the denoiser; ``rate`` along a made-up path through the level."""
        path = (-0.7 * alpha, 1.3 * sigma) if path is None else path
        return getattr(self.denoiser, method)(x, alpha, sigma, *(path if method == "rate" else ()))

    def unit(self, method: str, alpha, sigma) -> float:
        """The size that an answer has by its units."""
        a, s = (float(torch.as_tensor(c).mean()) for c in (alpha, sigma))
        a = max(a, s / self.size)  # at pure noise a Jacobian vanishes
        units = {"score": 1 / s, "jacobian": 1 / a, "divergence": self.dim / a}
        units |= {"log_prob": self.dim, "hessian": s**-2, "posterior_cov": self.size**2}
        return units.get(method, 1.0 if method == "classify" else self.size)

    def law(
        self, name: str, allowed: float, *needs: str, levels: Sequence[Level] | None = None
    ) -> Callable[[Callable[[Level], float]], None]:
        """A law by its deviation at each level, which is the function that this decorates; skipped
        where the denoiser lacks what it needs.
        """

        def hold(deviation: Callable[[Level], float]) -> None:
            if not set(needs) <= set(self.known):  # the report says so already
                return
            try:
                deviations = {level.place: deviation(level) for level in levels or self.levels}
            except NotImplementedError as error:
                self.report.skipped.append(f"{name}: {error}")
            else:
                self.report.add(name, deviations, allowed)

        return hold

    def along(self, function: Callable, level: Level) -> Tensor:
        """Derivative of ``function(x, alpha, sigma)`` along every direction: (directions, n, ..)"""
        h = 1e-3 * level.least
        steps = h * self.offsets.reshape(-1, *(1,) * self.directions.ndim) * self.directions
        values = function(level.x + steps, level.alpha, level.sigma)
        return torch.einsum("s...,s->...", values, self.weights) / h

    def contract(self, matrices: Tensor) -> Tensor:
        """(n, d, d) matrices times every direction: (directions, n, *event)."""
        flat = self.directions.flatten(1)
        product = torch.einsum("nij,kj->kni", matrices, flat)
        return product.reshape(*product.shape[:2], *self.denoiser.event_shape)


def slope(function: Callable[[float], Tensor], h: float) -> Tensor:
    """Derivative at 0 by fourth-order differences."""
    return sum(w * function(step * h) for step, w in zip(OFFSETS, WEIGHTS, strict=True)) / h


def off(got: Tensor, wanted: Tensor, unit: float) -> float:
    """The largest deviation, in units of what is wanted."""
    return ((got - wanted).abs().max() / (unit + wanted.abs().max())).item()
