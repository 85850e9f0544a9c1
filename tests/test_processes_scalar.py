"""The closed forms against 40-digit arithmetic, and the ends where formulas break."""

import math

import mpmath
import pytest
import torch
from helpers import PROCESSES, log_uniform, random_process, uniform

import workbench as wb

mpmath.mp.dps = 40


def exact(process):
    """alpha(t) and sigma(t) of a process in 40 digits, written down on their own."""
    if isinstance(process, wb.VP):
        low, high = mpmath.mpf(process.beta_min), mpmath.mpf(process.beta_max)

        def total(t):
            return low * t + (high - low) * t**2 / 2

        return lambda t: mpmath.exp(-total(t) / 2), lambda t: mpmath.sqrt(-mpmath.expm1(-total(t)))
    if isinstance(process, wb.EDM):
        return lambda t: mpmath.mpf(1), lambda t: t
    assert isinstance(process, wb.RectifiedFlow)
    return lambda t: 1 - t, lambda t: t


def times(process, generator) -> list[float]:
    """Times near both ends and between."""
    last = process.t_max
    near = [log_uniform(generator, 1e-7, 1e-3) for _ in range(6)]
    between = [uniform(generator, 0.01, 0.99) * last for _ in range(6)]
    return [*(last * u for u in near), *between, *(last * (1 - u) for u in near)]


@pytest.mark.parametrize("name", PROCESSES)
def test_coefficients_and_derivatives_equal_those_of_40_digits(name, generator):
    process = random_process(name, generator)
    alpha, sigma = exact(process)
    for t in times(process, generator):
        at, c = mpmath.mpf(t), process(t)
        a, s, da, ds = alpha(at), sigma(at), mpmath.diff(alpha, at), mpmath.diff(sigma, at)
        f = da / a
        g2 = mpmath.diff(lambda u: sigma(u) ** 2, at) - 2 * f * s**2
        truth = {"alpha": a, "sigma": s, "d_alpha": da, "d_sigma": ds, "f": f, "g2": g2}
        truth |= {"rho": s / a, "log_snr": 2 * mpmath.log(a / s)}
        for key, value in truth.items():
            got = getattr(c, key)
            assert isinstance(got, float)
            assert got == pytest.approx(float(value), rel=1e-12, abs=1e-13), (key, t)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_of_inverts_rho_and_rho_grows(name, generator):
    process = random_process(name, generator)
    t = torch.tensor(sorted(times(process, generator)), dtype=torch.float64)
    rho = process(t).rho
    assert bool((rho.diff() > 0).all())
    torch.testing.assert_close(process.time_of(rho), t, rtol=1e-10, atol=0)
    back = process.time_of(rho[3].item())
    assert isinstance(back, float) and back == pytest.approx(t[3].item(), rel=1e-10)
    # Close to the noisy end it is the distance from the end that counts, as far as t can hold it.
    end = process.t_max
    torch.testing.assert_close(end - process.time_of(rho), end - t, rtol=1e-10, atol=4e-15 * end)


@pytest.mark.parametrize("name", PROCESSES)
def test_without_noise_at_time_zero(name):
    c = PROCESSES[name](0.0)
    assert (c.alpha, c.sigma, c.rho, c.log_snr) == (1.0, 0.0, 0.0, math.inf)
    assert PROCESSES[name].time_of(0.0) == 0.0


def test_pure_noise_of_rectified_flow():
    process = wb.RectifiedFlow()
    c = process(1.0)
    assert (c.alpha, c.sigma, c.d_alpha, c.d_sigma) == (0.0, 1.0, -1.0, 1.0)
    assert (c.f, c.g2, c.rho, c.log_snr) == (-math.inf, math.inf, math.inf, -math.inf)
    assert process.time_of(math.inf) == 1.0
    assert process.time_of(torch.tensor([math.inf, 1.0])).tolist() == [1.0, 0.5]


def test_vp_keeps_its_small_noise_in_float32():
    """1 - exp(-B) in float32 would be 0 at t = 1e-5."""
    t = torch.tensor([1e-5, 1e-4], dtype=torch.float32)
    c, truth = wb.VP()(t), wb.VP()(t.double())
    assert c.sigma.dtype == torch.float32
    torch.testing.assert_close(c.sigma.double(), truth.sigma, rtol=1e-7, atol=0)
    torch.testing.assert_close(c.rho.double(), truth.rho, rtol=1e-7, atol=0)


@pytest.mark.parametrize("low", [0.0, 0.1, 3.0])
def test_vp_without_slope_or_without_an_initial_rate(low, generator):
    """beta_min = beta_max has B linear in t, beta_min = 0 has it quadratic: both invert."""
    for high in (3.0, 20.0):
        process = wb.VP(low, high)
        for t in (1e-6, uniform(generator, 0.1, 0.9), 1.0):
            assert process.time_of(process(t).rho) == pytest.approx(t, rel=1e-10)


def test_vp_rate_of_sigma_at_time_zero():
    """It is infinite, unless there is no initial rate: then sigma grows as sqrt(beta_max/2) t."""
    assert wb.VP()(0.0).d_sigma == math.inf
    assert wb.VP(0.0, 18.0)(0.0).d_sigma == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: wb.VP(beta_min=-1.0), ["VP: beta_min was -1.0", "at least 0"]),
        (lambda: wb.VP(beta_max=math.nan), ["VP: beta_max was nan", "a finite number"]),
        (lambda: wb.VP(5.0, 2.0), ["beta_max was 2.0", "at least beta_min (5.0)"]),
        (lambda: wb.VP(t_min=1.0), ["t_min was 1.0", "below 1"]),
        (lambda: wb.EDM(sigma_min=-0.1), ["EDM: sigma_min was -0.1", "greater than 0"]),
        (lambda: wb.EDM(2.0, 1.0), ["sigma_max was 1.0", "greater than sigma_min (2.0)"]),
        (lambda: wb.EDM(sigma_max="80"), ["sigma_max was '80'", "a finite number"]),
        (lambda: wb.RectifiedFlow(t_min=0.0), ["t_min was 0.0", "greater than 0 and below 1"]),
    ],
)
def test_parameters_out_of_range_are_named(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


def test_prior_std():
    """VP starts from unit variance, as published; the others from the noise of the first node."""
    assert wb.VP().prior_std(0.3) == 1.0
    assert wb.EDM().prior_std(80.0) == 80.0
    assert wb.RectifiedFlow().prior_std(0.75) == 0.75
