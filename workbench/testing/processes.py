"""The laws of a process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from workbench.processes import Affine, Coefficients, Process, Spectral
from workbench.sampling import NoiseSource
from workbench.testing.report import Report, relative

_NAMES = ("alpha", "sigma", "d_alpha", "d_sigma", "f", "g2", "rho", "log_snr")

#: A law: its name, its deviation at each place, and the deviation allowed.
_Law = tuple[str, dict[str, float], float]


def check_process(process: Process) -> Report:
    """Hold a process against the identities of its coefficients.

    Laws: alpha and sigma finite, non-negative, never both 0 and continuous up to both ends; nothing
    nan, and infinite only where alpha or sigma is 0; their derivatives (eighth-order differences of
    the logarithm, to 1e-10); ``f`` and ``g2`` from them; ``rho`` their ratio, increasing, with
    ``time_of`` its inverse in both directions from 1e-12 to 1e12 as far as float64 can hold it;
    floats, tensors and float32 alike. Of an affine process also ``shift``; of a spectral one the
    same laws for some of its modes, that they agree with ``at``, and its basis.

    Returns:
        The report, law by law, each with its worst deviation and where that is.

    Raises:
        ConformanceError: a law is broken; it holds the same report.
    """
    report = Report(repr(process))
    members = {"": process}
    if process.spectral:
        members = {f"mode {place}, ": process.mode(place) for place in _places(process)}
        for law in _spectral_laws(process):
            report.add(*law)
    found: dict[str, tuple[dict[str, float], float]] = {}
    for prefix, member in members.items():
        for name, deviations, allowed in _laws(member):
            places = found.setdefault(name, ({}, allowed))[0]
            places |= {prefix + place: value for place, value in deviations.items()}
        if not _moves(member):
            report.skipped.append(f"time_of: rho of {member!r} is the same at all times")
    for name, (deviations, allowed) in found.items():
        report.add(name, deviations, allowed)
    return report.finish()


def _laws(process: Process) -> Iterator[_Law]:
    t = _times(process)
    ends = torch.tensor([0.0, process.t_max], dtype=torch.float64)
    c, whole = process(t), process(torch.cat([ends, t]))
    yield from _regular(process, whole, torch.cat([ends, t]))
    yield from _derivatives(process)
    yield from _identities(c, t)
    if _moves(process):
        yield from _inverse(process)
    yield from _alike(process, t)
    if process.affine:
        yield from _shift_laws(process, t)


def _moves(process: Process) -> bool:
    return process(0.0).rho < process(process.t_max).rho


def _times(process: Process) -> Tensor:
    """Times between the ends and crowded at both."""
    u = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    data = torch.logspace(-12, -2.5, 20, dtype=torch.float64)
    noise = 1 - torch.logspace(-2.5, -9, 14, dtype=torch.float64)
    return process.t_max * torch.cat([data, u, noise])


def _regular(process: Process, c: Coefficients, t: Tensor) -> Iterator[_Law]:
    """Which values may be infinite where, and how alpha and sigma arrive at the ends."""
    yield "nothing is nan, ends included", _count(t, *(getattr(c, n).isnan() for n in _NAMES)), 0.0
    for name in ("alpha", "sigma"):
        value = getattr(c, name)
        bad = ~(value >= 0) | value.isinf()
        yield f"{name} is finite and non-negative, ends included", _count(t, bad), 0.0
    both = (c.alpha == 0) & (c.sigma == 0)
    yield "alpha and sigma are never both 0", _count(t, both), 0.0
    yield "g2 is not negative", _count(t, c.g2 < 0), 0.0
    wild = [getattr(c, n).isinf() & (c.alpha > 1e-280) for n in ("d_alpha", "f", "g2", "rho")]
    yield (
        "d_sigma is infinite only at sigma = 0; d_alpha, f, g2, rho only at alpha = 0",
        _count(t, c.d_sigma.isinf() & (c.sigma != 0), *wild),
        0.0,
    )
    last = process.t_max
    ends = process(torch.tensor([0.0, last], dtype=torch.float64))
    near = process(torch.tensor([1e-18 * last, last * (1 - 2.0**-51)], dtype=torch.float64))
    for name in ("alpha", "sigma"):
        there, inside = getattr(ends, name), getattr(near, name)
        gap = ((there - inside).abs() / (there.max() + inside.max())).tolist()
        yield f"{name} is continuous at both ends", {"t = 0": gap[0], f"t = {last:g}": gap[1]}, 1e-5
    # Alpha that vanishes at t_max, rather than underflowing on the way, does so with these.
    if ends.alpha[1] == 0 and near.alpha[1] > 0:
        good = ends.f[1] == -math.inf and ends.g2[1] == math.inf and ends.rho[1] == math.inf
        place = {f"t = {last:g}": float(not good)}
        yield "f, g2 and rho are infinite at pure noise", place, 0.0
    if process.has_prior:
        std = torch.as_tensor(process.prior_std(last))
        good = bool((std > 0).all() and std.isfinite().all())
        yield "prior_std is positive and finite", {f"t = {last:g}": float(not good)}, 0.0


def _derivatives(process: Process) -> Iterator[_Law]:
    def log_slope(name: str) -> Callable[[Tensor], Tensor]:
        def ratio(t: Tensor) -> Tensor:
            c = process(t)
            return getattr(c, f"d_{name}") / getattr(c, name)

        return ratio

    def half_rate(t: Tensor) -> Tensor:
        c = process(t)
        return 0.5 * c.g2 / c.sigma.square()

    # Alpha that falls to 0 is a difference of numbers as large as alpha(0): correctly rounded, it
    # is off by their rounding, which is many of its own where it is small.
    whole = torch.finfo(torch.float64).eps * process(0.0).alpha

    def of_alpha(t: Tensor) -> Tensor:
        return whole / process(t).alpha.clamp_min(1e-280)

    for name, rounding in (("alpha", of_alpha), ("sigma", None)):
        gap = _slope_gap(
            process,
            lambda t, n=name: getattr(process(t), n),
            log_slope(name),
            rounding=rounding,
        )
        yield f"d_{name} is the derivative of {name}", gap, 1e-10
    gap = _slope_gap(process, lambda t: process(t).rho, half_rate, rounding=of_alpha)
    yield "g2 = sigma^2 d(log rho^2)/dt", gap, 1e-10


def _log_change(high: Tensor, low: Tensor) -> Tensor:
    told = (high > 1e-280) & (low > 1e-280) & high.isfinite()  # elsewhere floats lose digits
    return torch.where(told, (high / low).log(), math.nan)


def _slope_gap(
    process: Process,
    value: Callable[[Tensor], Tensor],
    claimed: Callable[[Tensor], Tensor],
    change: Callable[[Tensor, Tensor], Tensor] = _log_change,
    scale: Callable[[Tensor], Tensor] | None = None,
    rounding: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """How far a claimed slope is from differences (of the logarithm), relative to itself.

    ``rounding`` is the relative rounding of the values at ``t``, where it is larger than that of
    a float: what the differences may owe to it does not count.

    The step is a fraction of the distance to the nearer end, the best of three: a short one for
    processes that turn quickly, a long one against rounding. Nodes are multiples of a power of two,
    so that their distances are exact. A slope below a hundredth of ``scale`` per distance is
    measured in those units, since values rounded to 1e-16 do not tell it better; ``scale`` is one
    and the size of the logarithm, which is what rounding of an exponent grows with.
    """
    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    gaps, nodes = [], []
    for fraction in (2e-2, 2e-3, 2e-4):
        t = _times(process)
        reach = torch.minimum(t, process.t_max - t)
        h = torch.exp2((fraction * reach).log2().floor())
        t = (t / h).round() * h
        slope = sum(w * change(value(t + k * h), value(t - k * h)) for k, w in weights.items()) / h
        wanted = claimed(t)
        size = 1 + value(t).clamp_min(1e-300).log().abs() if scale is None else scale(t)
        gap = (slope - wanted).abs()
        if rounding is not None:
            both = 2 * sum(abs(w) for w in weights.values())
            gap = (gap - both * rounding(t + 4 * h) / h).clamp_min(0.0)
        gap = gap * reach / (wanted.abs() * reach + 1e-2 * size)
        gaps.append(torch.where(slope.isnan(), 0.0, gap))  # no statement where nothing can be told
        nodes.append(t)
    return _worst(torch.stack(gaps).amin(0), nodes[0])


def _identities(c: Coefficients, t: Tensor) -> Iterator[_Law]:
    tiny = 1e-300
    there = c.alpha > 1e-280
    f = c.d_alpha / c.alpha
    gap = torch.where(there, (f - c.f).abs() / (f.abs() + tiny), 0.0)
    yield "f = d_alpha / alpha", _worst(gap, t), 1e-12
    rise, drift = 2 * c.sigma * c.d_sigma, 2 * c.f * c.sigma.square()
    gap = (rise - drift - c.g2).abs() / (rise.abs() + drift.abs() + tiny)
    yield "g2 = d(sigma^2)/dt - 2 f sigma^2", _worst(gap, t), 1e-12
    ratio = c.sigma / c.alpha
    gap = torch.where(there, (ratio - c.rho).abs() / ratio, 0.0)
    yield "rho = sigma / alpha", _worst(gap, t), 1e-12
    order = t.argsort()
    rho, t, rate = c.rho[order], t[order], (0.5 * c.g2 / c.sigma.square())[order]
    rises = rate[:-1] * t.diff() > 1e-14  # as far as floats can tell
    step = torch.where(rho[1:].isinf(), math.inf, rho.diff())
    falls = (step <= 0) & rises | (step < -1e-14 * rho[:-1])
    yield "rho increases with t", _count(t[:-1], falls), 0.0


def _inverse(process: Process) -> Iterator[_Law]:
    """Both ways round, each to 1e-10 or to what rounding of the argument does to it."""
    rounding = 64 * torch.finfo(torch.float64).eps / 1e-10
    t = _times(process)
    c = process(t)
    t, rho = t[c.rho.isfinite()], c.rho[c.rho.isfinite()]
    steep = (0.5 * t * c.g2[c.rho.isfinite()] / c.sigma[c.rho.isfinite()].square()).abs()
    gap = (process.time_of(rho) - t).abs() / (t * (1 + rounding / steep.clamp_min(1e-300)))
    yield "time_of(rho(t)) = t", _worst(gap, t), 1e-10
    least, largest = process(0.0).rho, process(process.t_max).rho
    held = process(process.t_max * (1 - 2.0**-50)).rho  # beyond, t is rounded to the end
    low, high = math.log10(max(least, 1e-12)), math.log10(min(held, 1e12))
    levels = torch.logspace(low, high, 61, dtype=torch.float64).clamp(least, held)
    times = process.time_of(levels)
    back = process(times)
    steep = 0.5 * times * back.g2 / back.sigma.square()
    gap = (back.rho - levels).abs() / (levels * (1 + rounding * steep.nan_to_num(0.0)))
    yield "rho(time_of(rho)) = rho", _worst(gap, levels, "rho"), 1e-10
    ends = {"rho 0": 0.0, "beyond the largest rho": 0.0}
    if least > 0:
        ends["rho 0"] = float(not _refused(process, 0.5 * least))
    else:
        ends["rho 0"] = float(process.time_of(0.0) != 0)
    if largest < math.inf:
        ends["beyond the largest rho"] = float(not _refused(process, 2 * largest))
    else:
        ends["rho inf"] = float(process.time_of(math.inf) != process.t_max)
    yield "time_of at the ends of rho, and refused beyond", ends, 0.0


def _refused(process: Process, rho: float, error: type[Exception] = ValueError) -> bool:
    try:
        process.time_of(rho)
    except error:
        return True
    return False


def _alike(process: Process, t: Tensor) -> Iterator[_Law]:
    """One answer for a float, a tensor of any shape, and float32."""
    some = t[::7]
    one, many = [process(float(v)) for v in some], process(some)
    gaps = {
        name: relative([getattr(single, name) for single in one], getattr(many, name))
        for name in _NAMES
    }
    yield "floats and tensors alike", gaps, 1e-13
    shaped = process(some[:4].reshape(2, 1, 2))
    single = t.float()[t.float().double() <= process.t_max]
    rounded, exact = process(single), process(single.double())
    wrong = {}
    for name in _NAMES[:-1]:
        got, wanted = getattr(rounded, name), getattr(exact, name).float()
        wrong[name] = float(got.dtype != torch.float32 or not torch.equal(got, wanted))
        wrong[f"shape of {name}"] = float(getattr(shaped, name).shape != (2, 1, 2))
    yield "float32 times give the float64 results, rounded; shapes are kept", wrong, 0.0


def _shift_laws(process: Affine, t: Tensor) -> Iterator[_Law]:
    m, d_m = process.shift(t)
    ends = torch.tensor([0.0, process.t_max], dtype=torch.float64)
    bad = torch.cat([~v.isfinite() for v in (m, d_m, *process.shift(ends))])
    yield "shift is finite, ends included", {"the range": float(bad.sum())}, 0.0
    yield "shift(0) = 0: at t = 0 the data alone", {"t = 0": abs(process.shift(0.0)[0])}, 0.0
    gap = _slope_gap(
        process,
        lambda t: process.shift(t)[0],
        lambda t: process.shift(t)[1],
        torch.sub,
        lambda t: 1 + process.shift(t)[0].abs(),
    )
    yield "d_m is the derivative of m", gap, 1e-10
    one = torch.tensor([process.shift(float(v)) for v in t[::7]], dtype=torch.float64)
    gap = relative(one, torch.stack([m, d_m], 1)[::7])
    yield "m and d_m alike for floats and tensors", {"the range": gap}, 1e-13
    last = process.t_max
    alpha, p = process(last).alpha, process.prior_mean(last)
    yield (
        "prior_mean = alpha + m; prior_mismatch = alpha(t_max)",
        {
            "prior_mean": abs(p - alpha - process.shift(last)[0]),
            "prior_mismatch": abs(process.prior_mismatch() - alpha),
        },
        1e-15,
    )


def _spectral_laws(process: Spectral) -> Iterator[_Law]:
    shape, basis, last = tuple(process.event_shape), process.basis, process.t_max
    modes, index = process.distinct()
    apart, other = {}, {}
    times = _times(process)[::5]
    many = process(times)
    for place in _places(process):
        mode = process.mode(place)
        single = mode(times)
        apart[f"mode {place}"] = max(
            relative(getattr(many, name)[(slice(None), *place)], getattr(single, name))
            for name in _NAMES
        )
        other[f"mode {place}"] = float(modes[int(index[place])] != mode)
    # exp(-x) is known to x roundings, and what heat leaves of a mode has x in the hundreds.
    yield "each mode as in at(t)", apart, 1e-12
    yield "distinct() tells each mode's process", other, 0.0
    half, single = process(0.5 * last), process(torch.full((2, 3), 0.5 * last))
    shapes = {
        "a float": half.sigma.shape == shape and half.sigma.dtype == torch.float64,
        "a float32 tensor (2, 3)": single.sigma.shape == (2, 3, *shape)
        and single.sigma.dtype == torch.float32,
        "distinct": index.shape == shape and index.dtype == torch.int64,
        "prior_std": not process.has_prior or process.prior_std(last).shape == shape,
    }
    yield "one value per mode", {name: float(not good) for name, good in shapes.items()}, 0.0
    refused = float(not _refused(process, 1.0, NotImplementedError))
    yield "time_of is refused: there is one rho per mode", {"rho 1": refused}, 0.0
    x = NoiseSource(range(4), shape).start().to(torch.float64)
    c = basis.forward(x)
    norms = (c.square().flatten(1).sum(1) / x.square().flatten(1).sum(1) - 1).abs().max().item()
    gaps = {
        "back": (basis.inverse(c) - x).abs().max().item(),
        "forth": (basis.forward(basis.inverse(x)) - x).abs().max().item(),
        "the norm": norms,
    }
    if basis.dim <= 1024:
        through = (x.flatten(1) @ basis.matrix).reshape(x.shape)
        gaps["basis.matrix"] = (through - c).abs().max().item()
    yield "the basis is orthonormal", gaps, 1e-10


def _places(process: Spectral) -> list[tuple[int, ...]]:
    """A handful of modes: the extremes of what sets them apart, and some between."""
    order = process.own.flatten().argsort()
    some = torch.linspace(0, len(order) - 1, 5).round().long().unique()
    places = torch.unravel_index(order[some], process.event_shape)
    return list(zip(*(axis.tolist() for axis in places), strict=True))


def _count(t: Tensor, *bad: Tensor) -> dict[str, float]:
    """How many times something is wrong, and the first such time."""
    wrong = torch.stack(bad).any(0)
    place = f"t = {t[wrong][0].item():.6g}" if wrong.any() else "the range"
    return {place: float(wrong.sum())}


def _worst(deviations: Tensor, at: Tensor, name: str = "t") -> dict[str, float]:
    """The worst of many deviations, with its place."""
    worst = int(deviations.nan_to_num(nan=math.inf).argmax())
    return {f"{name} = {at[worst].item():.6g}": deviations[worst].item()}
