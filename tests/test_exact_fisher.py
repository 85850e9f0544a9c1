"""Lengths of noising paths against quadrature and against each other."""

import math

import pytest
import torch
from helpers import PROCESSES, log_uniform, random_process, uniform
from scipy.integrate import quad

import workbench as wb
from workbench.exact.fisher import fisher_distance, fisher_length
from workbench.processes import EqualSNR, HeatDissipation, ShortestPath
from workbench.processes.bases import DCT

NAMES = list(PROCESSES)


def spectrum(generator, *shape) -> torch.Tensor:
    return 10 ** (5 * torch.rand(shape, generator=generator, dtype=torch.float64) - 4)


@pytest.mark.parametrize("name", NAMES)
def test_the_length_is_the_integral_of_the_speed(name, generator):
    """By small steps in log v, refined until Richardson's extrapolation settles."""
    process, variances = random_process(name, generator), spectrum(generator, 8)
    t0, t1 = process.t_min, uniform(generator, 0.5, 1) * process.t_max

    def chords(n):
        times = t0 * (t1 / t0) ** torch.linspace(0, 1, n + 1, dtype=torch.float64)
        c = process(times.clamp(t0, t1))
        level = (c.alpha[:, None] ** 2 * variances + c.sigma[:, None] ** 2).log()
        return (0.5 * level.diff(dim=0).square().sum(1)).sqrt().sum().item()

    coarse, fine = chords(20_000), chords(40_000)
    wanted = fine + (fine - coarse) / 3
    assert fisher_length(process, variances, t0, t1) == pytest.approx(wanted, rel=1e-8)


def test_one_mode_that_turns_back():
    """Sub-VP of a small variance: v falls, then grows; its length is what it does both ways."""
    process, lam = wb.PROCESSES["SubVP"](), 0.3
    times = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    c = process(times)
    log_v = (c.alpha**2 * lam + c.sigma**2).log()
    wanted = math.sqrt(0.5) * log_v.diff().abs().sum().item()
    assert log_v.argmin() not in (0, len(times) - 1)
    assert fisher_length(process, torch.tensor([lam], dtype=torch.float64)) == pytest.approx(
        wanted, rel=1e-8
    )


def test_the_pace_does_not_matter(generator):
    """Variance-preserving processes have one length between the same two noise levels."""
    variances = spectrum(generator, 10)
    ends = sorted(log_uniform(generator, 1e-2, 10) for _ in range(2))
    ou = wb.PROCESSES["OU"](noise=math.sqrt(2))  # sigma^2 = 1 - alpha^2
    lengths = [
        fisher_length(process, variances, *(process.time_of(rho) for rho in ends))
        for process in (wb.VP(), wb.PROCESSES["Cosine"](), ou, wb.VP(0.0, 12.0))
    ]

    def speed(w):  # v = w lambda + 1 - w
        return math.sqrt(0.5 * (((variances - 1) / (w * variances + 1 - w)) ** 2).sum().item())

    low, high = (1 / (1 + rho**2) for rho in reversed(ends))
    wanted = quad(speed, low, high, epsabs=1e-13, epsrel=1e-12, limit=500)[0]
    assert lengths == pytest.approx([wanted] * 4, rel=1e-10)


def test_no_path_is_shorter_than_the_geodesic(generator):
    variances = spectrum(generator, 3, 4)
    least = fisher_distance(variances)
    assert least == pytest.approx(math.sqrt(0.5) * variances.log().norm().item(), rel=1e-12)
    basis = DCT((3, 4))
    geodesic = fisher_length(ShortestPath(variances, basis), variances)
    assert geodesic == pytest.approx(least, rel=1e-9)
    for process in (wb.RectifiedFlow(), wb.PROCESSES["Cosine"](), EqualSNR(variances, basis)):
        end = process(process.t_max)
        level = end.alpha**2 * variances + end.sigma**2
        length = fisher_length(process, variances)
        assert length >= fisher_distance(variances, level) * (1 - 1e-9)
    one, end = variances.flatten()[:1], wb.VP()(1.0)  # a mode that goes one way has no choice
    wanted = fisher_distance(one, end.alpha**2 * one + end.sigma**2)
    assert fisher_length(wb.VP(), one) == pytest.approx(wanted, rel=1e-10)


def test_pieces_add_up(generator):
    process, variances = HeatDissipation(DCT((3, 4))), spectrum(generator, 3, 4)
    middle = uniform(generator, 0.1, 0.9)
    parts = [fisher_length(process, variances, *ends) for ends in ((0, middle), (middle, 1.0))]
    assert sum(parts) == pytest.approx(fisher_length(process, variances), rel=1e-10)
    assert fisher_length(process, variances, middle, middle) == 0.0


def test_modes_without_variance():
    variances = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert fisher_length(wb.VP(), variances) == math.inf
    assert fisher_distance(variances) == math.inf
    assert fisher_distance(variances, variances) == 0.0
    got = fisher_length(wb.EDM(), variances[1:], 0.5, 5.0)
    assert got == pytest.approx(math.sqrt(0.5) * 2 * math.log(10), rel=1e-12)
    with pytest.raises(ValueError, match=r"t0 was 0\.5 and t1 0\.1"):
        fisher_length(wb.VP(), variances, 0.5, 0.1)
