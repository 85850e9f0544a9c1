"""The laws of a denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.sampling import NoiseSource
from workbench.testing.report import Report

__all__ = ["check_denoiser"]

#: Noise levels a denoiser is tried at, as (alpha, sigma), from little noise to nothing but noise;
#: sigma in units of the data's standard deviation.
LEVELS = ((1.0, 0.05), (0.9, 0.3), (0.8, 0.6), (0.3, 0.95), (1.0, 10.0))

#: Fourth-order differences: the slope at 0 is the sum of weight * f(offset * h) over h.
OFFSETS = (-2.0, -1.0, 1.0, 2.0)
WEIGHTS = (1 / 12, -2 / 3, 2 / 3, -1 / 12)

#: Deviation allowed where the same is computed twice: rounding, magnified by little noise.
SAME = 1e-9

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


def check_denoiser(denoiser: Denoiser, seed: int = 0, samples: int = 16) -> Report:
    """Hold a denoiser against the laws of a posterior mean.

    Laws: homogeneity in (x, alpha, sigma), also with a scale for each coordinate; the same answer
    alone and in a batch, with one noise level per sample and one per coordinate; regular and
    constant at alpha = 0; the identity on the data as sigma goes to 0. Tweedie's formulas of first
    and second order; Jacobian, divergence, Hessian and rate of change against fourth-order
    differences. Where it has a log-density: the score is its gradient, and both obey the
    Fokker-Planck equation of their noising. What it does not offer is listed as skipped.

    Args:
        denoiser: in float64 (call ``.to(torch.float64)`` on others).
        seed: of the states it is tried on.
        samples: how many of them; a few of them where there are more than 8 dimensions.
    """
    trial = _Trial(denoiser, seed, samples)
    for laws in (_same_answers, _pure_noise, _no_noise, _derivatives, _density, _flow):
        laws(trial)
    return trial.report.finish()


@dataclass(frozen=True, eq=False)
class _Level:
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


class _Trial:
    """A denoiser, the states it is tried on, and the report it gets."""

    def __init__(self, denoiser: Denoiser, seed: int, samples: int) -> None:
        self.report = Report(repr(denoiser))
        if denoiser.dtype != torch.float64:
            denoiser = denoiser.to(torch.float64)
        self.denoiser, self.dim = denoiser, denoiser.dim
        small = self.dim <= 8
        shape, device = denoiser.event_shape, denoiser.device
        count = samples if small else min(samples, 4)
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

    def _level(self, place: str, alpha, sigma) -> _Level:
        x = alpha * (self.centre + self.size * self.w) + sigma * self.z
        return _Level(place, alpha, sigma, x)

    def _knows(self, method: str) -> bool:
        try:
            for level in self.levels:
                self.ask(method, level.x[:1], level.alpha, level.sigma)
        except NotImplementedError as error:
            self.report.skipped.append(f"{method}: {error}")
            return False
        return True

    @property
    def single(self) -> list[_Level]:
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
        self,
        name: str,
        allowed: float,
        needs: Sequence[str],
        deviation: Callable[[_Level], float],
        levels: Sequence[_Level] | None = None,
    ) -> None:
        """A law by its deviation at each level; skipped where the denoiser lacks what it needs."""
        if not set(needs) <= set(self.known):  # the report says so already
            return
        try:
            found = {level.place: deviation(level) for level in levels or self.levels}
        except NotImplementedError as error:
            self.report.skipped.append(f"{name}: {error}")
        else:
            self.report.add(name, found, allowed)

    def along(self, function: Callable, level: _Level) -> Tensor:
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


def _slope(function: Callable[[float], Tensor], h: float) -> Tensor:
    """Derivative at 0 by fourth-order differences."""
    return sum(w * function(step * h) for step, w in zip(OFFSETS, WEIGHTS, strict=True)) / h


def _off(got: Tensor, wanted: Tensor, unit: float) -> float:
    """The largest deviation, in units of what is wanted."""
    return ((got - wanted).abs().max() / (unit + wanted.abs().max())).item()


# -- the same answer, however it is asked ----------------------------------------------------------


def _same_answers(trial: _Trial) -> None:
    """Homogeneity, batches, one level per sample, one per coordinate: for all it can be asked."""

    def compare(name: str, got: Callable, wanted: Callable, levels=None, methods=None) -> None:
        found = {}
        levels = levels or trial.single
        for method in methods or trial.known:
            for level in levels if method == "denoise" else levels[::-2]:
                unit = trial.unit(method, level.alpha, level.sigma)
                apart = _off(got(method, level), wanted(method, level), unit)
                found[f"{method}, {level.place}"] = apart
        trial.report.add(name, found, SAME)

    @functools.cache
    def asked(method: str, level: _Level) -> Tensor:
        return trial.ask(method, level.x, level.alpha, level.sigma)

    def scaled(method: str, level: _Level, c=7.3) -> Tensor:
        found = trial.ask(method, c * level.x, c * level.alpha, c * level.sigma)
        return _unscaled(method, found, c, trial.dim)

    compare("D(cx, c alpha, c sigma) = D(x, alpha, sigma)", scaled, asked, trial.levels)

    def alone(method: str, level: _Level) -> Tensor:
        return torch.cat(
            [trial.ask(method, level.x[i : i + 1], level.alpha, level.sigma) for i in range(3)]
        )

    def first(method: str, level: _Level) -> Tensor:
        return asked(method, level)[:3]

    compare("a sample alone as in a batch", alone, first, trial.levels)

    def own_levels(level: _Level) -> tuple[Tensor, Tensor]:
        a, s = level.alpha, level.sigma
        return level.x.new_tensor([a, 0.5 * a] * 2), level.x.new_tensor([s, s, 2 * s, 2 * s])

    def together(method: str, level: _Level) -> Tensor:
        return trial.ask(method, level.x[:4], *own_levels(level))

    def one_by_one(method: str, level: _Level) -> Tensor:
        pairs = zip(*(c.tolist() for c in own_levels(level)), strict=True)
        return torch.cat(
            [trial.ask(method, level.x[i : i + 1], a, s) for i, (a, s) in enumerate(pairs)]
        )

    compare("one noise level per sample as one by one", together, one_by_one)
    if len(trial.levels) == len(trial.single):
        return

    def spread(method: str, level: _Level) -> Tensor:
        ones = torch.ones_like(level.x[:1])
        return trial.ask(method, level.x, level.alpha * ones, level.sigma * ones)

    compare("one noise level per coordinate, all equal, as a single one", spread, asked)
    others = [method for method in trial.known if method != "divergence"]
    compare(
        "one scale c per coordinate: D(cx, c alpha, c sigma) = D(x, alpha, sigma)",
        lambda method, level: scaled(method, level, trial.uneven),
        asked,
        trial.levels,
        others,
    )


def _unscaled(method: str, value: Tensor, c: float | Tensor, dim: int) -> Tensor:
    """An answer at (cx, c alpha, c sigma) brought back to the one at (x, alpha, sigma)."""
    c = torch.as_tensor(c, dtype=value.dtype, device=value.device)
    each = c.flatten().expand(dim)
    if method == "score":
        return value * c
    if method == "log_prob":
        return value + each.log().sum()
    if method == "divergence":
        return value * c
    if method == "jacobian":
        return value * each
    return value * each * each[:, None] if method == "hessian" else value


# -- both ends -------------------------------------------------------------------------------------


def _pure_noise(trial: _Trial) -> None:
    """At alpha = 0 the state says nothing: the mean of the data, reached continuously."""
    denoiser, size = trial.denoiser, trial.size
    x = size * trial.z
    try:
        pure = denoiser.denoise(torch.cat([x, 1e3 * size * trial.w]), 0.0, size)
    except ValueError as error:
        trial.report.skipped.append(f"laws of alpha = 0: {error}")
        return
    mean = getattr(denoiser, "mean", pure[0])
    apart = {"states": _off(pure, pure[:1].expand_as(pure), size), "mean": _off(pure, mean, size)}
    trial.report.add("at alpha = 0 the mean of the data", apart, SAME)
    near, path = {}, (0.7, 0.4 * size)
    for method in trial.known:
        try:
            limit = trial.ask(method, x, 0.0, size, path)
        except ValueError as error:
            trial.report.skipped.append(f"{method} at alpha = 0: {error}")
            continue
        close = trial.ask(method, x, 1e-7, size, path)
        near[method] = _off(close, limit, trial.unit(method, 0.0, size))
    trial.report.add("continuous at alpha = 0", near, 1e-4)


def _no_noise(trial: _Trial) -> None:
    """As sigma goes to 0 the state is the data: D(alpha x0) = x0 for x0 where there are data."""
    denoiser, size = trial.denoiser, trial.size
    x0 = trial.centre + size * trial.w
    for _ in range(20):  # to where the data are, were they points or a plane
        x0 = denoiser.denoise(x0, 1.0, 1e-5 * size)
    found = {}
    for a, s in ((1.0, 1e-8), (0.5, 1e-8), (1.0, 0.0)):
        try:
            found[f"alpha {a:g}, sigma {s * size:.3g}"] = _off(
                denoiser.denoise(a * x0, a, s * size), x0, size
            )
        except ValueError as error:
            trial.report.skipped.append(f"laws of sigma = 0: {error}")
    trial.report.add("as sigma goes to 0, D(alpha x0) = x0 for data x0", found, 1e-5)
    if "posterior_cov" in trial.known:
        left = denoiser.posterior_cov(x0, 1.0, 1e-8 * size).abs().max().item() / size**2
        trial.report.add("as sigma goes to 0, no posterior covariance", {"the data": left}, SAME)


# -- derivatives -----------------------------------------------------------------------------------


def _derivatives(trial: _Trial) -> None:
    """What follows from D alone, by differences of it."""
    denoiser = trial.denoiser

    def unit(method: str, level: _Level) -> float:
        return trial.unit(method, level.alpha, level.sigma)

    def tweedie(level: _Level) -> float:
        a, s = level.alpha, level.sigma
        from_score = level.x + s * s * denoiser.score(level.x, a, s)
        return _off(a * denoiser.denoise(level.x, a, s), from_score, level.least)

    trial.law("Tweedie: alpha D = x + sigma^2 score", SAME, ["score"], tweedie)

    def jacobian(level: _Level) -> float:
        wanted = trial.contract(denoiser.jacobian(level.x, level.alpha, level.sigma))
        return _off(wanted, trial.along(denoiser.denoise, level), unit("jacobian", level))

    trial.law("jacobian = derivative of D", 1e-5, ["jacobian"], jacobian)

    def trace(level: _Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        diagonal = denoiser.jacobian(x, a, s).diagonal(dim1=-2, dim2=-1)
        return _off(denoiser.divergence(x, a, s), diagonal.sum(-1), unit("divergence", level))

    trial.law("divergence = trace of the jacobian", SAME, ["divergence", "jacobian"], trace)

    def second_order(level: _Level) -> float:
        # Column j of the covariance is sigma_j^2 / alpha_j dD/dx_j.
        cov = denoiser.posterior_cov(level.x, level.alpha, level.sigma)
        weight = torch.as_tensor(level.alpha / level.sigma**2, dtype=cov.dtype).flatten()
        wanted = trial.along(denoiser.denoise, level)
        return _off(trial.contract(cov * weight), wanted, unit("jacobian", level))

    trial.law(
        "Tweedie of second order: Cov[x0|x] = sigma^2/alpha dD/dx",
        1e-5,
        ["posterior_cov"],
        second_order,
    )

    def positive(level: _Level) -> float:
        cov = denoiser.posterior_cov(level.x, level.alpha, level.sigma) / trial.size**2
        skew = (cov - cov.mT).abs().max().item()
        return max(skew, -torch.linalg.eigvalsh(cov).min().item())

    trial.law("posterior_cov symmetric, positive semi-definite", SAME, ["posterior_cov"], positive)

    def hessian(level: _Level) -> float:
        found = denoiser.hessian(level.x, level.alpha, level.sigma)
        slopes = trial.along(denoiser.score, level)
        return max(
            _off(trial.contract(found), slopes, unit("hessian", level)),
            _off(found, found.mT, unit("hessian", level)),
        )

    trial.law("hessian = derivative of the score, symmetric", 1e-5, ["hessian", "score"], hessian)

    def rate(level: _Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        slope = _slope(lambda h: denoiser.denoise(x, (1 - 0.7 * h) * a, (1 + 1.3 * h) * s), 1e-5)
        return _off(trial.ask("rate", x, a, s), slope, trial.size)

    trial.law("rate = derivative of D along a path of (alpha, sigma)", 1e-5, ["rate"], rate)

    def shares(level: _Level) -> float:
        found = denoiser.classify(level.x, level.alpha, level.sigma)
        return max((found.sum(-1) - 1).abs().max().item(), -found.min().item())

    trial.law("classify gives probabilities", 1e-12, ["classify"], shares)


# -- the density -----------------------------------------------------------------------------------


def _density(trial: _Trial) -> None:
    """Laws of a denoiser that also gives the log-density of its noised data."""
    denoiser = trial.denoiser
    if "log_prob" not in trial.known:
        return

    def gradient(level: _Level) -> float:
        score = denoiser.score(level.x, level.alpha, level.sigma)
        wanted = (score * trial.directions).flatten(2).sum(-1)
        found = trial.along(denoiser.log_prob, level)
        return (found - wanted).abs().max().item() * level.least

    trial.law("score = gradient of the log-density [1/sigma]", 1e-5, ["score"], gradient)

    needs = ["score", "divergence", "jacobian"]

    # With sigma^2 growing at the rate of itself and alpha fixed, log p obeys
    #     d log p = sum_i sigma_i^2 (d_i s_i + s_i^2) / 2,   and s the gradient of that.
    def spreading(x: Tensor, a, s) -> Tensor:
        square = (s * denoiser.score(x, a, s)).square().flatten(-len(denoiser.event_shape)).sum(-1)
        if isinstance(a, float):
            trace = a * denoiser.divergence(x, a, s)
        else:
            diagonal = denoiser.jacobian(x, a, s).diagonal(dim1=-2, dim2=-1)
            trace = (a.flatten() * diagonal).sum(-1)
        return 0.5 * (trace - trial.dim + square)

    def heat(level: _Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        in_time = _slope(lambda h: denoiser.log_prob(x, a, s * (1 + h) ** 0.5), 1e-4)
        in_space = spreading(x, a, s)
        return ((in_time - in_space).abs() / (1 + in_space.abs())).max().item()

    trial.law("Fokker-Planck equation of the log-density", 1e-4, needs, heat)

    def score_equation(level: _Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        change = a * denoiser.rate(x, a, s, 0 * a, 0.5 * s) / s**2 - denoiser.score(x, a, s)
        in_time = (change * trial.directions).flatten(2).sum(-1)
        return _off(in_time, trial.along(spreading, level), 1 / level.least)

    trial.law("Fokker-Planck equation of the score", 1e-4, [*needs, "rate"], score_equation)

    def law_of_its_own(level: _Level) -> float:
        own = denoiser.noised(level.alpha, level.sigma)
        wanted = denoiser.log_prob(level.x, level.alpha, level.sigma)
        return _off(own.log_prob(level.x, 1.0, 0.0), wanted, trial.dim)

    trial.law("noised(alpha, sigma) has the density of that level", 1e-8, [], law_of_its_own)


def _flow(trial: _Trial) -> None:
    """The exact flow moves with the probability-flow velocity."""
    denoiser = trial.denoiser

    def velocity(level: _Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma

        def moved(h: float) -> Tensor:
            return denoiser.flow(x, (a, s), ((1 - 0.7 * h) * a, (1 + 1.3 * h) * s))

        denoised = denoiser.denoise(x, a, s)
        wanted = -0.7 * a * denoised + 1.3 * (x - a * denoised)
        return _off(_slope(moved, 1e-3), wanted, level.least)

    trial.law("flow moves with the probability-flow velocity", 1e-6, [], velocity, trial.single)
