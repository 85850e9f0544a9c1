"""The public conformance kit: hold your own process, denoiser or sampler against its laws.

One line each::

    from workbench.testing import check_denoiser
    print(check_denoiser(my_denoiser))

Each check returns a :class:`Report` (law by law: the worst deviation, where, and what is allowed)
and raises :class:`ConformanceError`, with the same report, if a law is broken. Everything
registered with the workbench passes these checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian
from workbench.diffusion import Diffusion
from workbench.exact import law, w2
from workbench.processes import PROCESSES, Process
from workbench.sampling import Grid, NoiseSource, Record, Sampler
from workbench.trajectory import sample

__all__ = [
    "ConformanceError",
    "Law",
    "Report",
    "check_denoiser",
    "check_process",
    "check_sampler",
]


@dataclass(frozen=True)
class Law:
    """One law: its worst deviation, the deviation allowed, and where the worst was found."""

    name: str
    deviation: float
    allowed: float
    where: str = ""

    @property
    def holds(self) -> bool:
        return self.deviation <= self.allowed  # false for nan

    def __str__(self) -> str:
        mark = "ok    " if self.holds else "BROKEN"
        where = f" at {self.where}" if self.where else ""
        return f"{mark} {self.name}: off by {self.deviation:.2g}, allowed {self.allowed:.2g}{where}"


@dataclass
class Report:
    """The laws an object was held against; ``str`` gives a line for each."""

    subject: str
    laws: list[Law] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, name: str, deviations: dict[str, float], allowed: float) -> None:
        """A law by its deviations, each with the place where it was measured."""
        # max() would lose a nan; a nan is the worst of all.
        where, worst = max(
            deviations.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1]
        )
        self.laws.append(Law(name, worst, allowed, where))

    def finish(self) -> Report:
        if not all(law.holds for law in self.laws):
            raise ConformanceError(self)
        return self

    def __str__(self) -> str:
        lines = [self.subject, *(f"  {law}" for law in self.laws)]
        return "\n".join([*lines, *(f"  skipped {text}" for text in self.skipped)])


class ConformanceError(AssertionError):
    """An object breaks a law; ``report`` has them all."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(str(report))


def _relative(got, wanted, floor: float = 1e-30) -> float:
    """Largest deviation relative to the size of what is wanted; equal infinities are equal."""
    got, wanted = (torch.as_tensor(v, dtype=torch.float64) for v in (got, wanted))
    apart = torch.where(got == wanted, torch.zeros_like(got), (got - wanted).abs())
    return (apart / wanted.abs().clamp_min(floor)).max().item()


# -- processes -------------------------------------------------------------------------------


def check_process(process: Process) -> Report:
    """Hold a process against the identities of its coefficients.

    Laws: alpha and sigma non-negative; their derivatives (fourth-order differences); ``f`` and
    ``g2`` from them; ``rho`` their ratio, increasing, with ``time_of`` its inverse; float and
    tensor calls alike; the pair regular at both ends.
    """
    report = Report(repr(process))
    low, high = process.t_min, process.t_max
    u = torch.linspace(0.01, 0.99, 41, dtype=torch.float64)
    t = torch.cat([low + (high - low) * u, low * (high / low) ** u])
    c = process(t)
    ends = process(torch.tensor([low, high], dtype=torch.float64))
    for name in ("alpha", "sigma"):
        values = torch.cat([getattr(c, name), getattr(ends, name)])
        bad = float((~(values >= 0) | values.isinf()).sum())
        report.add(f"{name} is finite and non-negative, ends included", {"the range": bad}, 0.0)
    for name in ("alpha", "sigma"):
        h = 1e-3 * torch.minimum(t, high - t)
        values = [getattr(process(t + k * h), name) for k in (-2, -1, 1, 2)]
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
        claimed = getattr(c, f"d_{name}")
        size = (claimed.abs() + getattr(c, name) / (high - low)).clamp_min(1e-30)
        report.add(
            f"d_{name} is the derivative of {name}", _at((slope - claimed).abs() / size, t), 1e-7
        )
    f = c.d_alpha / c.alpha
    g2 = 2 * c.sigma * c.d_sigma - 2 * c.f * c.sigma.square()
    size = (2 * c.sigma * c.d_sigma).abs() + (2 * c.f * c.sigma.square()).abs()
    report.add("f = d_alpha / alpha", _at((f - c.f).abs() / (1 + f.abs()), t), 1e-9)
    report.add("g2 = d(sigma^2)/dt - 2 f sigma^2", _at((g2 - c.g2).abs() / size, t), 1e-9)
    ratio = c.sigma / c.alpha
    report.add("rho = sigma / alpha", _at((ratio - c.rho).abs() / ratio, t), 1e-9)
    order = t.argsort()
    falls = (c.rho[order].diff() <= 0).sum().item()
    report.add("rho increases with t", {"the range": float(falls)}, 0.0)
    back = process.time_of(c.rho)
    report.add("time_of inverts rho", _at((back - t).abs() / t, t), 1e-8)
    one = [process(float(v)) for v in t[::9]]
    many = process(t[::9])
    for name in ("alpha", "sigma", "d_alpha", "d_sigma", "f", "g2", "rho", "log_snr"):
        values = [getattr(single, name) for single in one]
        report.add(
            f"{name} alike for floats and tensors",
            {"the range": _relative(values, getattr(many, name))},
            1e-14,
        )
    return report.finish()


def _at(deviations: Tensor, t: Tensor) -> dict[str, float]:
    """The worst of many deviations, with its time."""
    worst = int(deviations.nan_to_num(nan=math.inf).argmax())
    return {f"t = {t[worst].item():.4g}": deviations[worst].item()}


# -- denoisers -------------------------------------------------------------------------------

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


# -- samplers --------------------------------------------------------------------------------


def check_sampler(sampler: Sampler) -> Report:
    """Hold a sampler against what it says of itself, on every registered process.

    Laws: ``nfe(grid)`` is the number of evaluations its program holds, with both ends of a grid and
    down to one step; a sample alone as in a batch, and with or without recording; fresh noise only
    if it says ``stochastic``; and the order of convergence, measured with the exact law of its
    output on a Gaussian (2-Wasserstein distance to the marginal), at least the one it claims.
    """
    report = Report(repr(sampler))
    if not (sampler.__doc__ and sampler.order > 0 and sampler.stochastic in (True, False)):
        raise ConformanceError(Report(f"{sampler!r} needs a docstring, an order and stochastic."))
    counts, fresh = {}, {}
    for name, kind in PROCESSES.items():
        process = kind()
        for steps, final in ((1, "stop"), (1, "denoise"), (2, "denoise"), (9, "stop")):
            grid = Grid.log_snr(process, steps, final)
            program = sampler.program(process, grid)
            where = f"{name}, {steps} steps, {final}"
            counts[where] = float(abs(program.nfe - sampler.nfe(grid)))
            fresh[where] = float(program.draws > 0 and not sampler.stochastic)
    report.add("nfe(grid) counts the program's evaluations", counts, 0.0)
    report.add("draws noise only if stochastic", fresh, 0.0)
    mean = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
    data = Gaussian(mean, torch.tensor([1.5, 0.4, 0.05], dtype=torch.float64))
    alone, kept = {}, {}
    for name, kind in PROCESSES.items():
        diffusion = Diffusion(kind(), data)
        grid = Grid.log_snr(diffusion.process, 12, "denoise")
        batch = sample(diffusion, sampler, grid, seeds=range(5)).final
        one = torch.cat([sample(diffusion, sampler, grid, seeds=[i]).final for i in range(5)])
        again = sample(diffusion, sampler, grid, seeds=range(5), record=_EVERYTHING).final
        alone[name] = (one - batch).abs().max().item()
        kept[name] = (again - batch).abs().max().item()
    report.add("a sample alone as in a batch", alone, 1e-10)
    report.add("recording changes nothing", kept, 0.0)
    report.add(f"order {sampler.order} (shortfall)", _shortfalls(sampler, data), 0.2)
    return report.finish()


_EVERYTHING = Record(["x", "denoised"])


def _shortfalls(sampler: Sampler, data: Gaussian) -> dict[str, float]:
    """By process: how much the measured order falls short of the claimed one.

    Started from the true marginal, so that only the discretisation is measured.
    """
    short = {}
    for name, kind in PROCESSES.items():
        diffusion = Diffusion(kind(), data)
        errors = []
        for steps in (160, 320):
            grid = Grid.log_snr(diffusion.process, steps)
            start = diffusion.marginal(grid.t[0])
            made = law(diffusion, sampler, grid, start)
            errors.append(w2(made, diffusion.marginal(grid.t[-1])))
        exact = errors[1] < 1e-9 * data.std
        short[name] = 0.0 if exact else sampler.order - math.log2(errors[0] / errors[1])
    return short
