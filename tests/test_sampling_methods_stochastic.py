"""Euler-Maruyama on a Gaussian: its law by an independent recursion of moments, and by sampling."""

import math

import pytest
import torch
from helpers import covariance, normals, relative, ring

import workbench as wb

D, N = 3, 20_000
EYE = torch.eye(D, dtype=torch.float64)
CASES = [
    (wb.VP(), wb.Grid.uniform),
    (wb.RectifiedFlow(), wb.Grid.log_snr),
    (wb.EDM(), wb.Grid.log_snr),
]
IDS = ["VP", "RectifiedFlow", "EDM"]


def moments(process, law, grid, eta, mean, cov):
    """Mean and covariance of the scheme's output, from the SDE's own coefficients and the score.

    dx = [f x - (1 + eta)/2 g2 s] dt + sqrt(eta g2) dW with the score
    s = -(alpha^2 C + sigma^2 I)^-1 (x - alpha m).
    """
    for t, u in zip(grid.t, grid.t[1:], strict=False):
        c, h = process(t), u - t
        if c.alpha == 0 and eta > 0:  # the exact step of the limit, from N(0, I)
            end = process(u)
            fresh = min(eta, 1.0)
            mean = end.alpha * law.mean + end.sigma * math.sqrt(1 - fresh**2) * mean
            cov = end.sigma**2 * ((1 - fresh**2) * cov + fresh**2 * EYE)
            continue
        if c.alpha == 0:  # velocity x - m
            matrix, shift, noise = (1 + h) * EYE, -h * law.mean, 0.0
        else:
            precision = torch.linalg.inv(c.alpha**2 * law.cov + c.sigma**2 * EYE)
            pull = 0.5 * (1 + eta) * c.g2 * precision
            matrix, shift = EYE + h * (c.f * EYE + pull), -h * c.alpha * pull @ law.mean
            noise = eta * c.g2 * -h
        mean, cov = matrix @ mean + shift, matrix @ cov @ matrix.T + noise * EYE
    return mean, cov


def check_moments(final, mean, cov):
    """All entries of mean and covariance within 5.2 standard errors (Wishart); 9 of them."""
    n = len(final)
    z = (final.mean(0) - mean) / (cov.diagonal() / n).sqrt()
    assert z.abs().max() < 5.2
    found = (final - mean).T @ (final - mean) / n
    spread = ((cov**2 + torch.outer(cov.diagonal(), cov.diagonal())) / n).sqrt()
    assert ((found - cov) / spread).abs().max() < 5.2


@pytest.fixture
def law(generator):
    return wb.Gaussian(normals(generator, D), covariance(generator, D, low=0.1))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("process", "make"), CASES, ids=IDS)
def test_the_output_has_the_moments_of_the_scheme(process, make, eta, law, seed):
    """Few steps, so that it is the scheme's law that is tested, not the data's."""
    grid = make(process, steps=20)
    prior = process.prior_std(grid.t[0]) ** 2 * EYE
    mean, cov = moments(process, law, grid, eta, torch.zeros(D).double(), prior)
    seeds = range(seed % 2**50, seed % 2**50 + N)
    run = wb.sample(wb.Diffusion(process, law), wb.EulerMaruyama(eta), grid, seeds)
    check_moments(run.final, mean, cov)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("process", "make"), CASES, ids=IDS)
def test_the_law_of_the_scheme_converges_to_the_data_with_weak_order_1(process, make, eta, law):
    """From the exact marginal at t_max."""
    start, exact = (wb.Diffusion(process, law).marginal(t) for t in (process.t_max, process.t_min))
    errors = []
    for steps in (300, 600, 1200):
        grid = make(process, steps=steps)
        mean, cov = moments(process, law, grid, eta, start.mean, start.cov)
        errors.append(math.hypot((mean - exact.mean).norm(), (cov - exact.cov).norm()))
    assert errors[-1] < 0.05 * exact.cov.norm()
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.4)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.4)


@pytest.mark.parametrize(("process", "make"), CASES[:2], ids=IDS[:2])
def test_many_steps_sample_the_data(process, make, law, seed):
    """800 steps leave the exact marginal at t_min, within sampling error; from t = 1 itself."""
    seeds = range(seed % 2**50, seed % 2**50 + 4000)
    diffusion = wb.Diffusion(process, law)
    run = wb.sample(diffusion, wb.EulerMaruyama(), make(process, steps=800), seeds)
    exact = diffusion.marginal(process.t_min)
    check_moments(run.final, exact.mean, exact.cov)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_a_step_is_the_drift_and_the_noise_of_the_sde(eta, generator, seed):
    """On the ring, step by step: x + h drift + sqrt(eta g2 |h|) z."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, ring())
    grid = wb.Grid.quadratic(process, steps=15)
    seeds = range(seed, seed + 30)
    run = wb.sample(diffusion, wb.EulerMaruyama(eta), grid, seeds, wb.Record("x"))
    noise = wb.sampling.NoiseSource(seeds, (2,))
    for i, (t, u) in enumerate(zip(grid.t, grid.t[1:], strict=False)):
        x, h = run["x"][i], u - t
        expected = x + h * diffusion.drift(x, t, eta)
        if eta:
            expected = expected + math.sqrt(eta * process(t).g2 * -h) * noise.step(i)
        assert relative(run["x"][i + 1], expected) < 1e-11


def test_without_noise_it_is_euler_in_t():
    for process in (wb.VP(), wb.EDM(), wb.RectifiedFlow()):
        grid = wb.Grid.uniform(process, steps=5, final="denoise")
        still = wb.EulerMaruyama(0.0).program(process, grid)
        assert still == wb.Euler("t").program(process, grid)
