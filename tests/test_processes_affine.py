"""Mean-reverting processes against their SDEs, in 50 digits, and what their priors lack."""

import math

import mpmath
import numpy as np
import pytest
import torch
from helpers import log_uniform, uniform
from mpmath import mp
from process_truth import assert_exact, assert_inverse, levels, times

from workbench.processes import AFFINE, IRSDE, OUVE, PROCESSES, RDDM, VP, Affine, Resfusion
from workbench.testing import ConformanceError, check_process

DEFAULTS = {name: kind() for name, kind in AFFINE.items()}


def random_affine(name: str, generator) -> Affine:
    """An affine process of the given kind with parameters of its own."""
    if name == "OUVE":
        low, high = log_uniform(generator, 1e-3, 1e-1), log_uniform(generator, 0.3, 100)
        return OUVE(uniform(generator, 0.2, 6), low, high)
    if name == "IRSDE":
        return IRSDE(uniform(generator, 0.5, 8), log_uniform(generator, 1e-2, 2))
    if name == "RDDM":
        return RDDM(log_uniform(generator, 1e-2, 2))
    return Resfusion(uniform(generator, 0.02, 2), uniform(generator, 3, 30))


def residual(process):
    """m(t) in many digits: what alpha lacks of 1, or half of it."""
    theta = mp.mpf(getattr(process, "theta", 0))
    if theta:
        return lambda t: 1 - mp.exp(-theta * t)
    if isinstance(process, RDDM):
        return lambda t: 1 - (1 - t) ** 2
    low, high = mp.mpf(process.beta_min), mp.mpf(process.beta_max)
    return lambda t: 1 - mp.exp(-(low * t + (high - low) * t**2 / 2) / 2)


@pytest.mark.parametrize("name", AFFINE)
def test_coefficients_shift_and_derivatives_equal_those_of_50_digits(name, generator):
    process = random_affine(name, generator)
    m = residual(process)
    for t in times(process, generator):
        assert_exact(process, t)
        got = process.shift(t)
        wanted = float(m(mp.mpf(t))), float(mpmath.diff(m, mp.mpf(t)))
        assert got == pytest.approx(wanted, rel=1e-13, abs=1e-300), t


@pytest.mark.parametrize("name", AFFINE)
def test_the_inverse_of_extreme_levels_in_50_digits(name, generator):
    process = random_affine(name, generator)
    for rho in levels(process, generator):
        assert_inverse(process, rho)


@pytest.mark.parametrize("name", AFFINE)
def test_the_kit(name, generator):
    check_process(DEFAULTS[name])
    check_process(random_affine(name, generator))


def test_a_wrong_slope_of_the_shift_is_found():
    class Wrong(RDDM):
        def shift_at(self, t):
            m, d_m = super().shift_at(t)
            return m, 0.5 * d_m

    with pytest.raises(ConformanceError, match="BROKEN d_m is the derivative of m"):
        check_process(Wrong())


def test_a_shift_that_is_not_zero_at_the_data_is_found():
    class Wrong(RDDM):
        def shift_at(self, t):
            m, d_m = super().shift_at(t)
            return m + 0.01, d_m

    with pytest.raises(ConformanceError, match=r"BROKEN shift\(0\) = 0"):
        check_process(Wrong())


@pytest.mark.parametrize("name", ["OUVE", "IRSDE"])
def test_mean_and_variance_solve_the_sde(name, generator):
    """dx = theta (mu - x) dt + g dW: its mean and variance by quadrature."""
    process = random_affine(name, generator)
    theta = mp.mpf(process.theta)
    if name == "OUVE":
        low, high = mp.mpf(process.sigma_min), mp.mpf(process.sigma_max)

        def g2(s):
            return 2 * mp.log(high / low) * (low * (high / low) ** s) ** 2
    else:

        def g2(s):
            return 2 * theta * mp.mpf(process.noise) ** 2

    for t in (0.05, 0.4, 1.0):
        c, (m, d_m) = process(t), process.shift(t)
        variance = mp.quad(lambda s, t=t: mp.exp(-2 * theta * (t - s)) * g2(s), [0, t])
        pulled = mp.quad(lambda s, t=t: theta * mp.exp(-theta * (t - s)), [0, t])
        assert c.sigma**2 == pytest.approx(float(variance), rel=1e-13)
        assert m == pytest.approx(float(pulled), rel=1e-13)
        assert c.g2 == pytest.approx(float(g2(t)), rel=1e-13)
        assert d_m == pytest.approx(process.theta * (1 - m), rel=1e-12)
        assert c.f == -process.theta


def test_sgmse_starts_with_a_mismatch_of_22_percent(record_property):
    process = OUVE()
    assert process.prior_mismatch() == pytest.approx(math.exp(-1.5), rel=1e-15)
    assert round(process.prior_mismatch(), 4) == 0.2231
    assert round(process.prior_std(1.0), 3) == 0.389
    assert process.prior_mean(1.0) == pytest.approx(1.0, rel=1e-15)
    assert process.t_min == 0.03
    record_property(
        "measured",
        f"SGMSE+ prior lacks {process.prior_mismatch():.2%} of the residual, "
        f"noise {process.prior_std(1.0):.4f}",
    )


def test_mismatches_and_priors():
    assert round(IRSDE().prior_mismatch(), 4) == 0.0067  # exp(-5)
    assert IRSDE(theta=2.0).prior_mismatch(0.5) == pytest.approx(math.exp(-1), rel=1e-15)
    assert (IRSDE().prior_std(1.0), IRSDE().prior_mean(1.0)) == (10 / 255, 1.0)
    assert (RDDM(0.3).prior_mismatch(), RDDM(0.3).prior_mean(1.0)) == (0.0, 1.0)
    assert RDDM(0.3).prior_std(1.0) == 0.3
    end = Resfusion()
    assert end.prior_mismatch() == 0.0
    assert end.prior_mean(end.t_max) == pytest.approx(0.5, rel=1e-15)  # N(mu/2, 3/4)
    assert end.prior_std(end.t_max) ** 2 == pytest.approx(0.75, rel=1e-15)
    assert all(process.has_prior for process in DEFAULTS.values())


@pytest.mark.parametrize("process", [RDDM(0.7), Resfusion(), Resfusion(0.0, 3.0)], ids=repr)
def test_pure_noise_and_no_noise(process):
    c = process(process.t_max)
    assert c.alpha == 0.0 and (c.f, c.g2, c.rho) == (-math.inf, math.inf, math.inf)
    assert math.isfinite(c.d_alpha) and math.isfinite(c.d_sigma)
    assert process.time_of(math.inf) == process.t_max
    c = process(0.0)
    assert (c.alpha, c.sigma, c.rho) == (1.0, 0.0, 0.0)
    assert process.time_of(0.0) == 0.0 and process.shift(0.0)[0] == 0.0


def test_rddm_is_the_limit_of_its_published_schedule():
    """Decreasing increments of the residual, increasing increments of the noise variance."""
    steps = 20_000
    fall = np.linspace(1, 0, steps)
    residual, variance = np.cumsum(fall / fall.sum()), np.cumsum(fall[::-1] / fall.sum())
    process = RDDM(noise=1.0)
    for step in (100, 5_000, 12_345, 19_900):
        t = (step + 1) / steps
        assert process.shift(t)[0] == pytest.approx(residual[step], abs=1e-4)
        assert process(t).sigma ** 2 == pytest.approx(variance[step], abs=1e-4)


def test_resfusion_is_the_residual_in_vp_noise(generator):
    """x = u x0 + (1 - u)(mu - x0) + sqrt(1 - u^2) eps with the u of VP."""
    vp, process = VP(), Resfusion()
    for _ in range(5):
        t = uniform(generator, 0.0, process.t_max)
        u, c = vp(t), process(t)
        assert c.alpha == pytest.approx(2 * u.alpha - 1, rel=1e-12, abs=1e-14)
        assert process.shift(t)[0] == pytest.approx(1 - u.alpha, rel=1e-12, abs=1e-14)
        assert c.sigma == pytest.approx(u.sigma, rel=1e-14)
    assert vp(process.t_max).alpha == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize("name", AFFINE)
def test_shift_takes_floats_and_tensors(name, generator):
    process = DEFAULTS[name]
    t = torch.rand(2, 3, generator=generator) * process.t_max
    m, d_m = process.shift(t)
    assert m.dtype == d_m.dtype == torch.float32 and m.shape == d_m.shape == (2, 3)
    one = process.shift(t[1, 2].item())
    assert all(isinstance(value, float) for value in one)
    assert (m[1, 2].item(), d_m[1, 2].item()) == pytest.approx(one, rel=1e-7)
    with pytest.raises(ValueError, match=r"t was 2; .* is defined for t from 0 to"):
        process.shift(2.0)


def test_affine_processes_are_not_offered_where_no_condition_is_given():
    assert not set(AFFINE) & set(PROCESSES)
    assert all(issubclass(kind, Affine) for kind in AFFINE.values())
    assert not any(issubclass(kind, Affine) for kind in PROCESSES.values())


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: OUVE(sigma_max=0.05), ["OUVE: sigma_max was 0.05", "than sigma_min (0.05)"]),
        (lambda: OUVE(theta=0.0), ["OUVE: theta was 0.0", "greater than 0"]),
        (lambda: IRSDE(noise=math.inf), ["IRSDE: noise was inf", "a finite number"]),
        (lambda: RDDM(noise=-1.0), ["RDDM: noise was -1.0", "greater than 0"]),
        (lambda: Resfusion(3.0, 1.0), ["Resfusion: beta_max was 1.0", "at least beta_min (3.0)"]),
        (lambda: Resfusion(0.1, 2.0), ["Resfusion: the mean", "was 1.05", "at least 1.386"]),
        (lambda: Resfusion(t_min=0.5), ["Resfusion: t_min was 0.5", "below t_max, 0.368"]),
    ],
)
def test_parameters_out_of_range_are_named(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)
