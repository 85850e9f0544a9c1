"""Critical noise levels against quadrature, the densities themselves and the limits."""

import math

import mpmath
import pytest
import torch
from helpers import PROCESSES, log_uniform, random_process, uniform
from scipy.integrate import quad

import workbench as wb
from workbench.exact.critical import (
    bimodality,
    class_retention,
    collapse,
    h_at,
    instability,
    isotropic_collapse,
    phi,
    speciation,
)
from workbench.processes import HeatDissipation
from workbench.processes.bases import DCT

NAMES = list(PROCESSES)


def two_classes(offset: float, std: float) -> wb.Mixture:
    means = torch.tensor([[-offset], [offset]], dtype=torch.float64)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return wb.Mixture(half, means, torch.full_like(half, std**2))


def test_phi_by_high_precision_quadrature(generator):
    for h in (0.0, log_uniform(generator, 1e-3, 1), uniform(generator, 1, 4), 12.0):
        with mpmath.workdps(20):
            pieces = mpmath.linspace(-12, 12, 25)
            mean = mpmath.quad(
                lambda g, h=h: mpmath.tanh(h * h + h * g) ** 2 * mpmath.npdf(g), pieces
            )
            wanted = float((1 + mean) / 2)
        assert phi(h).item() == pytest.approx(wanted, abs=5e-16)
        assert phi(-h) == phi(h)


def test_phi_is_the_chance_to_come_back_in_the_same_class(generator):
    """By the posterior of the class at each state, for random classes and processes."""
    for name in NAMES:
        process = random_process(name, generator)
        offset, std = log_uniform(generator, 0.2, 5), log_uniform(generator, 0.1, 2)
        t = uniform(generator, 0.1, 0.9) * process.t_max
        c = process(t)
        v, m = c.alpha**2 * std**2 + c.sigma**2, c.alpha * offset

        def agreed(x, v=v, m=m):
            density = sum(math.exp(-((x - s * m) ** 2) / (2 * v)) for s in (1, -1))
            other = 1 / (1 + math.exp(min(700.0, 2 * m * abs(x) / v)))
            same = (1 - other) ** 2 + other**2
            return 0.5 * density / math.sqrt(2 * math.pi * v) * same

        wide = m + 12 * math.sqrt(v)
        wanted = quad(agreed, -wide, wide, points=[-m, 0, m], epsabs=1e-13, limit=400)[0]
        got = class_retention(process, t, offset, std)
        assert got.item() == pytest.approx(wanted, abs=1e-10)
        many = class_retention(
            process, torch.tensor([t, t, process.t_min], dtype=torch.float64), offset, std
        )
        assert many.shape == (3,)
        assert many[1].item() == pytest.approx(got.item(), rel=1e-14)


def test_h_at_undoes_phi(generator):
    h = 5 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(phi(h_at(phi(h))), phi(h), rtol=0, atol=1e-15)
    torch.testing.assert_close(h_at(phi(0.5 * h)), 0.5 * h, rtol=1e-9, atol=1e-7)
    assert h_at([0.5, 1.0]).tolist() == [0.0, math.inf]
    with pytest.raises(ValueError, match=r"retention was 0\.3"):
        h_at(0.3)


@pytest.mark.parametrize("name", NAMES)
def test_the_marginal_has_two_modes_below_and_one_above(name, generator):
    process = random_process(name, generator)
    least, largest = process(process.t_min).rho, min(5.0, process(process.t_max).rho)
    rho, std = log_uniform(generator, 2 * least + 0.01, 0.9 * largest), uniform(generator, 0.2, 1.0)
    offset = math.hypot(rho, std)
    found = bimodality(offset, std, process)
    assert found.rho == pytest.approx(rho, rel=1e-9)
    assert process(found.t).rho == pytest.approx(rho, rel=1e-9)
    diffusion = wb.Diffusion(process, two_classes(offset, std))
    for factor, sign in ((0.99, 1), (1.01, -1)):
        x = torch.tensor([[1e-4 * offset]], dtype=torch.float64)
        slope = diffusion.score(x, process.time_of(factor * rho))
        assert slope.sign().item() == sign  # uphill away from the midpoint: a valley there
    assert math.isnan(bimodality(std, offset).rho)


@pytest.mark.parametrize("name", NAMES)
def test_the_midpoint_is_left_below_and_sought_above(name, generator):
    process = random_process(name, generator)
    std = uniform(generator, 0.1, 0.8)
    offset = std * uniform(generator, 1.2, 1.6)  # near enough for every process to forget
    found = instability(process, offset, std)
    assert process(found.t).rho == pytest.approx(found.rho)
    diffusion = wb.Diffusion(process, two_classes(offset, std))
    x = torch.tensor([[1e-6]], dtype=torch.float64)
    for factor, sign in ((0.999, -1), (1.001, 1)):  # drift is for time growing towards noise
        slope = diffusion.drift(x, process.time_of(factor * found.rho)).item()
        assert math.copysign(1, slope) == sign


def test_two_classes_in_closed_form(generator):
    """Variance preserving: alpha^2 = 1/(M + sqrt(M^2 + (1 - s^2)^2)); without drift, bimodality."""
    offset, std = uniform(generator, 1, 4), uniform(generator, 0, 0.9)
    square = offset**2
    alpha2 = 1 / (square + math.sqrt(square**2 + (1 - std**2) ** 2))
    for process in (wb.VP(), wb.PROCESSES["Cosine"]()):
        found = instability(process, offset, std)
        assert process(found.t).alpha ** 2 == pytest.approx(alpha2, rel=1e-9)
    assert instability(wb.EDM(), offset, std).rho == pytest.approx(bimodality(offset, std).rho)
    assert math.isnan(instability(wb.EDM(), 0.5, 1.0).t)  # never unstable
    assert math.isnan(instability(wb.VP(0.1, 5.0), 5.0, 0.1).t)  # always


def test_speciation_by_the_largest_eigenvalue(generator):
    top = log_uniform(generator, 2, 1e3)
    assert speciation(top).rho == pytest.approx(math.sqrt(top))
    found = speciation(top, wb.VP(), by="published")
    assert wb.VP()(found.t).alpha ** 2 * top == pytest.approx(1)
    clock = wb.PROCESSES["OU"](noise=math.sqrt(2))  # alpha = exp(-t), sigma^2 = 1 - alpha^2
    assert speciation(top, clock, by="published").t == pytest.approx(0.5 * math.log(top))
    assert math.isnan(speciation(0.5, by="published").rho)
    with pytest.raises(ValueError, match="by was 'name'"):
        speciation(2.0, by="name")


def test_collapse_is_where_the_information_is_log_n(generator):
    for n in (2, 50, 10**6):
        variances = torch.tensor([log_uniform(generator, 1e-6, 1e2) for _ in range(12)] + [0.0])
        rho = collapse(variances, n).rho
        told = 0.5 * torch.log1p(variances.double() / rho**2).sum().item()
        assert told == pytest.approx(math.log(n), rel=1e-12)
        std, d = log_uniform(generator, 0.1, 10), int(uniform(generator, 1, 100))
        closed = isotropic_collapse(std, d, n, wb.EDM(1e-3, 1e6))
        assert closed.rho == pytest.approx(std / math.sqrt(n ** (2 / d) - 1), rel=1e-9)
        assert closed.t == closed.rho or math.isnan(closed.t)
        ball = collapse(torch.full((d,), std**2), n)
        assert closed.rho == pytest.approx(ball.rho, rel=1e-6)  # float32 variances
    assert collapse(torch.zeros(3), 10).rho == 0


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: collapse(torch.ones(2), 1), ValueError, "n was 1"),
        (lambda: isotropic_collapse(1.0, 0, 5), ValueError, "dim was 0"),
        (lambda: bimodality(-1.0, 1.0), ValueError, r"offset was -1\.0"),
        (lambda: speciation(-1.0), ValueError, "top_variance held -1"),
        (lambda: instability(HeatDissipation(DCT((2,))), 1, 0), TypeError, "level per mode"),
    ],
)
def test_what_is_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()
