"""The closed forms of every process once more, in 50 digits and written down on their own."""

import math

import pytest
from helpers import log_uniform, uniform
from mpmath import mp

from workbench import processes

mp.dps = 50


def _total(process):
    low, high = mp.mpf(process.beta_min), mp.mpf(process.beta_max)
    return lambda t: low * t + (high - low) * t**2 / 2


def _variance_preserving(alpha):
    return alpha, lambda t: mp.sqrt(1 - alpha(t) ** 2)


def _vp(process):
    total = _total(process)
    return _variance_preserving(lambda t: mp.exp(-total(t) / 2))


def _sub_vp(process):
    total = _total(process)
    return lambda t: mp.exp(-total(t) / 2), lambda t: 1 - mp.exp(-total(t))


def _cosine(process):
    s = mp.mpf(process.offset)

    def cosine(t):
        return mp.cos((t + s) / (1 + s) * mp.pi / 2)

    return _variance_preserving(lambda t: cosine(t) / cosine(0))


def _ve(process):
    low, high = mp.mpf(process.sigma_min), mp.mpf(process.sigma_max)
    return lambda t: mp.mpf(1), lambda t: low * (high / low) ** t


def _ou(process):
    theta, g = mp.mpf(process.theta), mp.mpf(process.noise)
    return (
        lambda t: mp.exp(-theta * t),
        lambda t: mp.sqrt(g**2 / (2 * theta) * (1 - mp.exp(-2 * theta * t))),
    )


def _ouve(process):
    theta, low = mp.mpf(process.theta), mp.mpf(process.sigma_min)
    log = mp.log(mp.mpf(process.sigma_max) / low)

    def sigma(t):
        power = (mp.exp(2 * (theta + log) * t) - 1) * mp.exp(-2 * theta * t)
        return mp.sqrt(low**2 * power * log / (theta + log))

    return lambda t: mp.exp(-theta * t), sigma


def _irsde(process):
    theta, level = mp.mpf(process.theta), mp.mpf(process.noise)
    return (
        lambda t: mp.exp(-theta * t),
        lambda t: level * mp.sqrt(1 - mp.exp(-2 * theta * t)),
    )


def _resfusion(process):
    total = _total(process)
    return lambda t: 2 * mp.exp(-total(t) / 2) - 1, lambda t: mp.sqrt(1 - mp.exp(-total(t)))


def _mode(mode):
    family, own = mode.family, mp.mpf(mode.own)
    if isinstance(family, processes.ShortestPath):
        if own == 1:
            return _variance_preserving(lambda t: mp.sqrt(1 - t))
        return _variance_preserving(lambda t: mp.sqrt((own ** (1 - t) - 1) / (own - 1)))
    if isinstance(family, processes.EqualSNR):
        alpha, sigma = exact(family.base)
        return alpha, lambda t: own * sigma(t)
    high = mp.mpf(family.blur_max)
    if isinstance(family, processes.Blurring):
        floor = mp.mpf(family.floor)

        def alpha(t):
            blur = high * mp.sin(mp.pi * t / 2) ** 2
            return mp.cos(mp.pi * t / 2) * ((1 - floor) * mp.exp(-(own**2) * blur**2 / 2) + floor)

        return alpha, lambda t: mp.sin(mp.pi * t / 2)
    low, noise = mp.mpf(family.blur_min), mp.mpf(family.noise)
    return (
        lambda t: mp.exp(-((own * low * (high / low) ** t) ** 2) / 2),
        lambda t: noise,
    )


_FORMS = {
    "VP": _vp,
    "SubVP": _sub_vp,
    "VE": _ve,
    "Cosine": _cosine,
    "EDM": lambda p: (lambda t: mp.mpf(1), lambda t: mp.mpf(t)),
    "RectifiedFlow": lambda p: (lambda t: 1 - mp.mpf(t), lambda t: mp.mpf(t)),
    "OneSided": lambda p: (lambda t: 1 - mp.mpf(t), lambda t: mp.sqrt(mp.mpf(t))),  # brownian
    "OU": _ou,
    "OUVE": _ouve,
    "IRSDE": _irsde,
    "RDDM": lambda p: (lambda t: (1 - mp.mpf(t)) ** 2, lambda t: mp.mpf(p.noise) * t),
    "Resfusion": _resfusion,
    "Mode": _mode,
}


def exact(process):
    """alpha(t) and sigma(t) of a process in 50 digits."""
    return _FORMS[type(process).__name__](process)


def times(process, generator) -> list[float]:
    """Times near both ends, 1e-12 from them too, and between; not the ends themselves."""
    last = process.t_max
    near = [1e-12, *(log_uniform(generator, 1e-10, 1e-3) for _ in range(5))]
    between = [uniform(generator, 0.01, 0.99) * last for _ in range(5)]
    return [*(last * u for u in near), *between, *(last * (1 - u) for u in near)]


def assert_exact(process, t: float, rel: float = 1e-13, digits: int = 50) -> None:
    """Every coefficient at ``t`` is that of many digits; derivatives by differences in them."""
    c = process(t)
    with mp.workdps(digits):
        alpha, sigma = exact(process)
        at = mp.mpf(t)
        a, s, da, ds = alpha(at), sigma(at), mp.diff(alpha, at), mp.diff(sigma, at)
        f = da / a
        g2 = 2 * s * ds - 2 * f * s**2
        truth = {"alpha": a, "sigma": s, "d_alpha": da, "d_sigma": ds, "f": f, "g2": g2}
        truth |= {"rho": s / a, "log_snr": 2 * mp.log(a / s)}
    # Where alpha vanishes at a time that no float holds, the distance to it is what is rounded.
    blur = 4e-16 / float(a) if isinstance(process, processes.Resfusion) else 0.0
    for key, value in truth.items():
        got = getattr(c, key)
        assert isinstance(got, float)
        near_zero = 1e-13 if key == "log_snr" else 1e-300
        tolerance = rel + (blur if key in ("alpha", "f", "g2", "rho", "log_snr") else 0.0)
        assert got == pytest.approx(float(value), rel=tolerance, abs=near_zero), (key, t)


def assert_inverse(process, rho: float) -> None:
    """time_of(rho) is right to a few units in the last place of t, in 90 digits."""
    t = process.time_of(rho)
    assert 0 < t <= process.t_max
    with mp.workdps(90):
        alpha, sigma = exact(process)
        units = 8 * mp.mpf(2) ** -52
        below, above = mp.mpf(t) * (1 - units), mp.mpf(t) * (1 + units)
        assert sigma(below) / alpha(below) <= rho * (1 + 1e-14), (rho, t)
        if above < process.t_max:
            assert sigma(above) / alpha(above) >= rho * (1 - 1e-14), (rho, t)


def levels(process, generator) -> list[float]:
    """Noise levels that the process has, from 1e-12 to 1e12."""
    least, largest = process(0.0).rho, process(process.t_max).rho
    low, high = math.log10(max(least, 1e-12)), math.log10(min(largest, 1e12))
    inner = [10 ** uniform(generator, low, high) for _ in range(12)]
    ends = [1e-12, 1e12]
    return [rho for rho in (*ends, *inner) if least < rho < largest]
