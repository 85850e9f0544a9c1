"""The laws of a process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.processes import Process
from workbench.testing.report import Report, relative

__all__ = ["check_process"]


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
            {"the range": relative(values, getattr(many, name))},
            1e-14,
        )
    return report.finish()


def _at(deviations: Tensor, t: Tensor) -> dict[str, float]:
    """The worst of many deviations, with its time."""
    worst = int(deviations.nan_to_num(nan=math.inf).argmax())
    return {f"t = {t[worst].item():.4g}": deviations[worst].item()}
