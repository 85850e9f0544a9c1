"""The laws of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.sampling import NoiseSource
from workbench.testing.report import Report

__all__ = ["check_denoiser"]

#: Noise levels a denoiser is tried at, as (alpha, sigma), from little noise to nothing but noise.
LEVELS = ((1.0, 0.05), (0.9, 0.3), (0.8, 0.6), (0.3, 0.95), (1.0, 10.0))


def check_denoiser(denoiser: Denoiser, seed: int = 0, samples: int = 16) -> Report:
    """Hold a denoiser against the laws of a posterior mean.

    Laws: homogeneity in (x, alpha, sigma); the same answer alone and in a batch, and for one noise
    level per sample; regular and constant at alpha = 0. Where it has a log-density: Tweedie's
    formula (the score is its gradient) and the heat equation its noising obeys.

    Args:
        denoiser: in float64 (call ``.to(torch.float64)`` on others).
        seed: of the states it is tried on.
        samples: how many of them.
    """
    report = Report(repr(denoiser))
    if denoiser.dtype != torch.float64:
        denoiser = denoiser.to(torch.float64)
    source = NoiseSource(range(seed, seed + samples), denoiser.event_shape, device=denoiser.device)
    size = denoiser.std or 1.0
    z, w = source.step(0), source.step(1)
    states = {
        (a, s * size): a * denoiser.denoise(z, 0.0, 1.0) + a * size * w + s * size * z
        for a, s in LEVELS
    }

    def over(deviation: Callable[[Tensor, float, float], float]) -> dict[str, float]:
        return {f"alpha {a:g}, sigma {s:.3g}": deviation(x, a, s) for (a, s), x in states.items()}

    def gap(got: Tensor, wanted: Tensor) -> float:
        return ((got - wanted).abs().max() / size).item()

    def homogeneity(x: Tensor, a: float, s: float) -> float:
        base = denoiser.denoise(x, a, s)
        return max(gap(denoiser.denoise(c * x, c * a, c * s), base) for c in (0.25, 7.3))

    report.add("D(cx, c alpha, c sigma) = D(x, alpha, sigma)", over(homogeneity), 1e-9)

    def alone(x: Tensor, a: float, s: float) -> float:
        return gap(
            torch.cat([denoiser.denoise(x[i : i + 1], a, s) for i in range(4)]),
            denoiser.denoise(x, a, s)[:4],
        )

    report.add("a sample alone as in a batch", over(alone), 1e-9)

    def per_sample(x: Tensor, a: float, s: float) -> float:
        alphas = x.new_tensor([a, 0.5 * a] * samples)[: len(x)]
        sigmas = x.new_tensor([s, s, 2 * s, 2 * s] * samples)[: len(x)]
        single = [
            denoiser.denoise(x[i : i + 1], alphas[i].item(), sigmas[i].item())
            for i in range(len(x))
        ]
        return gap(denoiser.denoise(x, alphas, sigmas), torch.cat(single))

    report.add("one noise level per sample as one by one", over(per_sample), 1e-9)
    pure = denoiser.denoise(torch.cat([z, 1e3 * w]), 0.0, 1.0)
    report.add(
        "at alpha = 0 the mean of the data", {"alpha 0": gap(pure, pure[:1].expand_as(pure))}, 1e-9
    )
    near = denoiser.denoise(z, 1e-7, 1.0)
    report.add("continuous at alpha = 0", {"alpha 1e-7": gap(near, pure[: len(z)])}, 1e-4)
    _check_density(report, denoiser, over)
    return report.finish()


def _check_density(report: Report, denoiser: Denoiser, over) -> None:
    """Laws of a denoiser that also gives the log-density of its noised data."""
    try:
        denoiser.log_prob(
            denoiser.denoise(torch.zeros(1, *denoiser.event_shape).double(), 0.0, 1.0), 1.0, 1.0
        )
    except NotImplementedError as error:
        report.skipped.append(f"laws of the density: {error}")
        return
    directions = torch.eye(denoiser.dim, dtype=torch.float64, device=denoiser.device)
    if denoiser.dim > 8:  # a few random directions stand for all
        source = NoiseSource(range(6), (denoiser.dim,), device=denoiser.device)
        directions = torch.nn.functional.normalize(source.start(), dim=1)
    steps = directions.reshape(-1, 1, *denoiser.event_shape)

    def score(x: Tensor, a: float, s: float) -> Tensor:
        return (a * denoiser.denoise(x, a, s) - x) / s**2

    def tweedie(x: Tensor, a: float, s: float) -> float:
        h = 1e-3 * s
        p = [denoiser.log_prob(x + k * h * steps, a, s) for k in (-2, -1, 1, 2)]
        slope = (p[0] - 8 * p[1] + 8 * p[2] - p[3]) / (12 * h)
        wanted = (score(x, a, s) * steps).flatten(2).sum(-1)
        return ((slope - wanted).abs().max() * s).item()

    report.add("Tweedie: score = gradient of the log-density [1/sigma]", over(tweedie), 1e-5)
    if denoiser.dim > 8:
        report.skipped.append(f"the heat equation: {denoiser.dim} dimensions, tried up to 8")
        return

    def heat(x: Tensor, a: float, s: float) -> float:
        # In v = sigma^2 at fixed alpha:  d log p / dv = (div score + |score|^2) / 2.
        h = 1e-3
        level = [denoiser.log_prob(x, a, s * math.sqrt(1 + k * h)) for k in (-2, -1, 1, 2)]
        in_time = (level[0] - 8 * level[1] + 8 * level[2] - level[3]) / (12 * h)
        e = 1e-3 * s
        side = [(score(x + k * e * steps, a, s) * steps).flatten(2).sum(-1) for k in (-2, -1, 1, 2)]
        divergence = ((side[0] - 8 * side[1] + 8 * side[2] - side[3]) / (12 * e)).sum(0)
        square = score(x, a, s).flatten(1).square().sum(1)
        in_space = 0.5 * s**2 * (divergence + square)
        return ((in_time - in_space).abs() / (1 + in_space.abs())).max().item()

    report.add("heat equation of the noised density", over(heat), 1e-4)
