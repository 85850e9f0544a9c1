"""The laws of a denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.denoisers.perturbed import Perturbed
from workbench.testing.report import Report
from workbench.testing.trial import Level, Trial, off, slope

#: Deviation allowed where the same is computed twice: rounding, magnified by little noise.
SAME = 1e-9


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
        samples: how many of them, at least 4; 4 where there are more than 8 dimensions.
    """
    trial = Trial(denoiser, seed, samples)
    for laws in (_same_answers, _pure_noise, _no_noise, _derivatives, _density, _flow):
        laws(trial)
    return trial.report.finish()


# -- the same answer, however it is asked ----------------------------------------------------------


def _same_answers(trial: Trial) -> None:
    """Homogeneity, batches, one level per sample, one per coordinate: for all it can be asked."""

    def compare(name: str, got: Callable, wanted: Callable, levels=None, methods=None) -> None:
        found = {}
        levels = levels or trial.single
        for method in methods or trial.known:
            for level in levels if method == "denoise" else levels[::-2]:
                unit = trial.unit(method, level.alpha, level.sigma)
                apart = off(got(method, level), wanted(method, level), unit)
                found[f"{method}, {level.place}"] = apart
        trial.report.add(name, found, SAME)

    @functools.cache
    def asked(method: str, level: Level) -> Tensor:
        return trial.ask(method, level.x, level.alpha, level.sigma)

    def scaled(method: str, level: Level, c=7.3) -> Tensor:
        found = trial.ask(method, c * level.x, c * level.alpha, c * level.sigma)
        return _unscaled(method, found, c, trial.dim)

    compare("D(cx, c alpha, c sigma) = D(x, alpha, sigma)", scaled, asked, trial.levels)

    def alone(method: str, level: Level) -> Tensor:
        return torch.cat(
            [trial.ask(method, level.x[i : i + 1], level.alpha, level.sigma) for i in range(3)]
        )

    def first(method: str, level: Level) -> Tensor:
        return asked(method, level)[:3]

    compare("a sample alone as in a batch", alone, first, trial.levels)

    def own_levels(level: Level) -> tuple[Tensor, Tensor]:
        a, s = level.alpha, level.sigma
        return level.x.new_tensor([a, 0.5 * a] * 2), level.x.new_tensor([s, s, 2 * s, 2 * s])

    def together(method: str, level: Level) -> Tensor:
        return trial.ask(method, level.x[:4], *own_levels(level))

    def one_by_one(method: str, level: Level) -> Tensor:
        pairs = zip(*(c.tolist() for c in own_levels(level)), strict=True)
        return torch.cat(
            [trial.ask(method, level.x[i : i + 1], a, s) for i, (a, s) in enumerate(pairs)]
        )

    compare("one noise level per sample as one by one", together, one_by_one)

    def two(level: Level) -> list[tuple[float, float]]:
        return [(level.alpha, level.sigma), (0.5 * level.alpha, 2 * level.sigma)]

    compare(
        "many noise levels at once as one by one",
        lambda _, level: trial.denoiser.denoise_levels(level.x, two(level)),
        lambda _, level: torch.stack([trial.ask("denoise", level.x, *pair) for pair in two(level)]),
        methods=["denoise"],
    )
    if len(trial.levels) == len(trial.single):
        return

    def spread(method: str, level: Level) -> Tensor:
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
    if method in ("score", "divergence"):
        return value * c
    if method == "log_prob":
        return value + each.log().sum()
    if method == "jacobian":
        return value * each
    return value * each * each[:, None] if method == "hessian" else value


# -- both ends -------------------------------------------------------------------------------------


def _pure_noise(trial: Trial) -> None:
    """At alpha = 0 the state says nothing: the mean of the data, reached continuously."""
    denoiser, size = trial.denoiser, trial.size
    x = size * trial.z
    try:
        pure = denoiser.denoise(torch.cat([x, 1e3 * size * trial.w]), 0.0, size)
    except ValueError as error:
        trial.report.skipped.append(f"laws of alpha = 0: {error}")
        return
    mean = getattr(denoiser, "mean", pure[0])
    apart = {"states": off(pure, pure[:1].expand_as(pure), size), "mean": off(pure, mean, size)}
    trial.report.add("at alpha = 0 the mean of the data", apart, SAME)
    near, path = {}, (0.7, 0.4 * size)
    for method in trial.known:
        try:
            limit = trial.ask(method, x, 0.0, size, path)
        except ValueError as error:
            trial.report.skipped.append(f"{method} at alpha = 0: {error}")
            continue
        close = trial.ask(method, x, 1e-7, size, path)
        near[method] = off(close, limit, trial.unit(method, 0.0, size))
    trial.report.add("continuous at alpha = 0", near, 1e-4)


def _no_noise(trial: Trial) -> None:
    """As sigma goes to 0 the state is the data: D(alpha x0) = x0 for x0 where there are data."""
    denoiser, size = trial.denoiser, trial.size
    origin = denoiser
    while isinstance(origin, Perturbed):  # a wrong score leaves the data where they are
        origin = origin.base
    x0 = trial.centre + size * trial.w
    for _ in range(3):  # to where the data are, were they points or a plane
        x0 = origin.denoise(x0, 1.0, 1e-5 * size)
    found = {}
    for a, s in ((1.0, 1e-8), (0.5, 1e-8), (1.0, 0.0)):
        try:
            found[f"alpha {a:g}, sigma {s * size:.3g}"] = off(
                denoiser.denoise(a * x0, a, s * size), x0, size
            )
        except ValueError as error:
            trial.report.skipped.append(f"laws of sigma = 0: {error}")
    trial.report.add("as sigma goes to 0, D(alpha x0) = x0 for data x0", found, 1e-5)
    if "posterior_cov" in trial.known:
        left = denoiser.posterior_cov(x0, 1.0, 1e-8 * size).abs().max().item() / size**2
        trial.report.add("as sigma goes to 0, no posterior covariance", {"the data": left}, SAME)


# -- derivatives -----------------------------------------------------------------------------------


def _derivatives(trial: Trial) -> None:
    """What follows from D alone, by differences of it."""
    denoiser = trial.denoiser

    def unit(method: str, level: Level) -> float:
        return trial.unit(method, level.alpha, level.sigma)

    @trial.law("Tweedie: alpha D = x + sigma^2 score", SAME, "score")
    def tweedie(level: Level) -> float:
        a, s = level.alpha, level.sigma
        from_score = level.x + s * s * denoiser.score(level.x, a, s)
        return off(a * denoiser.denoise(level.x, a, s), from_score, level.least)

    @trial.law("jacobian = derivative of D", 1e-5, "jacobian")
    def jacobian(level: Level) -> float:
        wanted = trial.contract(denoiser.jacobian(level.x, level.alpha, level.sigma))
        return off(wanted, trial.along(denoiser.denoise, level), unit("jacobian", level))

    @trial.law("divergence = trace of the jacobian", SAME, "divergence", "jacobian")
    def trace(level: Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        diagonal = denoiser.jacobian(x, a, s).diagonal(dim1=-2, dim2=-1)
        return off(denoiser.divergence(x, a, s), diagonal.sum(-1), unit("divergence", level))

    @trial.law("Tweedie of second order: Cov[x0|x] = sigma^2/alpha dD/dx", 1e-5, "posterior_cov")
    def second_order(level: Level) -> float:
        # Column j of the covariance is sigma_j^2 / alpha_j dD/dx_j.
        cov = denoiser.posterior_cov(level.x, level.alpha, level.sigma)
        weight = torch.as_tensor(level.alpha / level.sigma**2, dtype=cov.dtype).flatten()
        wanted = trial.along(denoiser.denoise, level)
        return off(trial.contract(cov * weight), wanted, unit("jacobian", level))

    @trial.law("posterior_cov symmetric, positive semi-definite", SAME, "posterior_cov")
    def positive(level: Level) -> float:
        cov = denoiser.posterior_cov(level.x, level.alpha, level.sigma) / trial.size**2
        skew = (cov - cov.mT).abs().max().item()
        return max(skew, -torch.linalg.eigvalsh(cov).min().item())

    @trial.law("hessian = derivative of the score, symmetric", 1e-5, "hessian", "score")
    def hessian(level: Level) -> float:
        found = denoiser.hessian(level.x, level.alpha, level.sigma)
        slopes = trial.along(denoiser.score, level)
        return max(
            off(trial.contract(found), slopes, unit("hessian", level)),
            off(found, found.mT, unit("hessian", level)),
        )

    @trial.law("rate = derivative of D along a path of (alpha, sigma)", 1e-5, "rate")
    def rate(level: Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        wanted = slope(lambda h: denoiser.denoise(x, (1 - 0.7 * h) * a, (1 + 1.3 * h) * s), 1e-5)
        return off(trial.ask("rate", x, a, s), wanted, trial.size)

    @trial.law("classify gives probabilities", 1e-12, "classify")
    def shares(level: Level) -> float:
        found = denoiser.classify(level.x, level.alpha, level.sigma)
        return max((found.sum(-1) - 1).abs().max().item(), -found.min().item())


# -- the density -----------------------------------------------------------------------------------


def _density(trial: Trial) -> None:
    """Laws of a denoiser that also gives the log-density of its noised data."""
    denoiser = trial.denoiser
    if "log_prob" not in trial.known:
        return

    @trial.law("score = gradient of the log-density [1/sigma]", 1e-5, "score")
    def gradient(level: Level) -> float:
        score = denoiser.score(level.x, level.alpha, level.sigma)
        wanted = (score * trial.directions).flatten(2).sum(-1)
        found = trial.along(denoiser.log_prob, level)
        return (found - wanted).abs().max().item() * level.least

    needs = ("score", "divergence", "jacobian")

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

    @trial.law("Fokker-Planck equation of the log-density", 1e-6, *needs)
    def heat(level: Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        in_time = slope(lambda h: denoiser.log_prob(x, a, s * (1 + h) ** 0.5), 1e-4)
        in_space = spreading(x, a, s)
        return ((in_time - in_space).abs() / (1 + in_space.abs())).max().item()

    @trial.law("Fokker-Planck equation of the score", 1e-6, *needs, "rate")
    def score_equation(level: Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma
        change = a * denoiser.rate(x, a, s, 0 * a, 0.5 * s) / s**2 - denoiser.score(x, a, s)
        in_time = (change * trial.directions).flatten(2).sum(-1)
        return off(in_time, trial.along(spreading, level), 1 / level.least)

    @trial.law("noised(alpha, sigma) has the density of that level", 1e-8)
    def law_of_its_own(level: Level) -> float:
        own = denoiser.noised(level.alpha, level.sigma)
        wanted = denoiser.log_prob(level.x, level.alpha, level.sigma)
        return off(own.log_prob(level.x, 1.0, 0.0), wanted, trial.dim)


def _flow(trial: Trial) -> None:
    """The exact flow moves with the probability-flow velocity."""
    denoiser = trial.denoiser

    @trial.law("flow moves with the probability-flow velocity", 1e-6, levels=trial.single)
    def velocity(level: Level) -> float:
        x, a, s = level.x, level.alpha, level.sigma

        def moved(h: float) -> Tensor:
            return denoiser.flow(x, (a, s), ((1 - 0.7 * h) * a, (1 + 1.3 * h) * s))

        denoised = denoiser.denoise(x, a, s)
        wanted = -0.7 * a * denoised + 1.3 * (x - a * denoised)
        return off(slope(moved, 1e-3), wanted, level.least)
