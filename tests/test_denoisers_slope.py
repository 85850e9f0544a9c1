"""The slope dD/drho along the probability flow: finite differences, closed forms, both ends."""

import math

import pytest
import torch
from helpers import LAWS, log_uniform, normals, relative, states, uniform

import workbench as wb
from workbench.denoisers import Denoiser


def along_the_flow(law, x, alpha, sigma, h=1e-3):
    """dD/drho by central differences of sixth order, the flow taken by Runge-Kutta steps."""
    rho = sigma / alpha

    def noise(y, level):
        return (y - law.denoise(alpha * y, alpha, alpha * level)) / level

    def at(share, steps=2):
        y, level, d = x / alpha, rho, share * h * rho / steps
        for _ in range(steps):
            k1 = noise(y, level)
            k2 = noise(y + d / 2 * k1, level + d / 2)
            k3 = noise(y + d / 2 * k2, level + d / 2)
            k4 = noise(y + d * k3, level + d)
            y, level = y + d / 6 * (k1 + 2 * k2 + 2 * k3 + k4), level + d
        return law.denoise(alpha * y, alpha, alpha * level)

    one, two, three = (at(k) - at(-k) for k in (1, 2, 3))
    return (3 / 4 * one - 3 / 20 * two + three / 60) / (h * rho)


@pytest.mark.parametrize("kind", LAWS)
def test_slope_is_the_derivative_along_the_flow(kind, generator):
    law = LAWS[kind](generator, 3)
    alpha, sigma = uniform(generator, 0.3, 1.0), log_uniform(generator, 0.2, 2.0)
    x = states(generator, law, 7, alpha, sigma)
    assert relative(law.slope(x, alpha, sigma), along_the_flow(law, x, alpha, sigma)) < 1e-7


@pytest.mark.parametrize("kind", LAWS)
def test_one_level_for_all_or_one_per_sample(kind, generator):
    law = LAWS[kind](generator, 3)
    alpha, sigma = uniform(generator, 0.3, 1.0), log_uniform(generator, 0.05, 2.0)
    x = states(generator, law, 6, alpha, sigma)
    shared = law.slope(x, alpha, sigma)
    own = [torch.full((6, 1), level, dtype=torch.float64) for level in (alpha, sigma)]
    assert relative(law.slope(x, *own), shared) < 1e-9
    each = torch.cat([law.slope(row[None], alpha, sigma) for row in x])
    assert relative(each, shared) < 1e-12


@pytest.mark.parametrize("kind", LAWS)
def test_one_level_per_coordinate(kind, generator):
    """J v + D_sigma alpha with the Jacobian and the rate asked for by name."""
    law = LAWS[kind](generator, 3)
    alpha, sigma = (0.4 + torch.rand(1, 3, generator=generator).double() for _ in range(2))
    x = states(generator, law, 5, 0.7, 0.9)
    v = alpha * (x - alpha * law.denoise(x, alpha, sigma)) / sigma
    told = (law.jacobian(x, alpha, sigma) @ v[..., None])[..., 0]
    told = told + law.rate(x, alpha, sigma, torch.zeros_like(alpha), alpha)
    assert relative(law.slope(x, alpha, sigma), told) < 1e-9


def test_gaussian_mode_by_mode(generator):
    variances = 0.1 + normals(generator, 4) ** 2
    law, rho, alpha = wb.Gaussian(normals(generator, 4), variances), 0.7, 0.6
    y = normals(generator, 5, 4)
    exact = -variances * rho / (variances + rho**2) ** 2 * (y - law.mean)
    assert relative(law.slope(alpha * y, alpha, alpha * rho), exact) < 1e-13


def test_scale_free(generator):
    law = LAWS["mixture-full"](generator, 3)
    x = normals(generator, 5, 3)
    assert relative(law.slope(3 * x, 1.5, 0.9), law.slope(x, 0.5, 0.3)) < 1e-12


class Formula(Denoiser):
    """A denoiser known by its formula alone, as a network is."""

    def __init__(self, law):
        self.law, self.event_shape, self.dtype = law, law.event_shape, law.dtype
        self.device = law.device

    def posterior_mean(self, x, alpha, sigma):
        k, v = self.law.weights, 0.3
        level = alpha * alpha * v + sigma * sigma
        apart = x[:, None] - alpha * self.law.means
        share = torch.softmax(k.log() - 0.5 * (apart.square().sum(-1) / level), 1)
        means = (
            self.law.means + alpha * v / torch.as_tensor(level, dtype=x.dtype)[..., None] * apart
        )
        return (share[..., None] * means).sum(1)


def test_any_denoiser_by_forward_differentiation(generator):
    means, weights = normals(generator, 4, 3), torch.full((4,), 0.25).double()
    law = wb.Mixture(weights, means, torch.full((4,), 0.3, dtype=torch.float64))
    x = normals(generator, 6, 3)
    with torch.no_grad():  # as in the loop
        assert relative(Formula(law).slope(x, 0.8, 0.5), law.slope(x, 0.8, 0.5)) < 1e-12
        own = 0.3 + torch.rand(6, 1, generator=generator).double()
        assert relative(Formula(law).slope(x, 0.8, own), law.slope(x, 0.8, own)) < 1e-12


def test_composites_take_their_own_closed_forms(generator):
    law = LAWS["mixture-diagonal"](generator, 2)
    x = normals(generator, 5, 2)
    same = wb.Perturbed(law)
    assert relative(same.slope(x, 0.8, 0.6), law.slope(x, 0.8, 0.6)) < 1e-11
    wrong = wb.Perturbed(law, scale=0.1, gauge=0.3)
    assert relative(wrong.slope(x, 0.8, 0.6), along_the_flow(wrong, x, 0.8, 0.6)) < 1e-7


@pytest.mark.parametrize("kind", LAWS)
def test_both_ends(kind, generator):
    law = LAWS[kind](generator, 3)
    x = normals(generator, 4, 3)
    assert law.slope(x, 0.0, 1.0).abs().max() == 0.0
    with pytest.raises(ValueError, match="sigma was 0: the slope is a derivative along"):
        law.slope(x, 1.0, 0.0)


def test_far_and_near_states_stay_finite(generator):
    law = wb.Empirical(normals(generator, 50, 5))
    for sigma in (1e-8, 1e-3, 1e3):
        slope = law.slope(law.points[:9] + 0.1 * sigma, 1.0, sigma)
        assert bool(slope.isfinite().all())
    assert law.slope(law.points[:9], 1.0, 1e-3).abs().max() < 1e-10 * math.sqrt(5)
