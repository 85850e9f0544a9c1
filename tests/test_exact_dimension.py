"""Exact dimensions of Gaussian data against definitions, Monte Carlo and known values."""

import math

import pytest
import torch
from helpers import LAWS, covariance, log_uniform, normals

import workbench as wb
from workbench.exact.dimension import (
    denoiser_trace,
    flipd,
    flipd_mean,
    flow_singular_values,
    score_singular_values,
)

#: Known values by rho: 20 modes of variance 1 in 64 dimensions, then the digits.
FLIPD_OF_20_MODES = {
    3.0: 3.8,
    1.0: 15.0,
    0.5: 19.2,
    0.3: 19.86364784109082,
    0.1: 19.99803940790119,
    0.03: 19.999983829120684,
    0.01: 19.999999800039994,
}
FLIPD_OF_DIGITS = {
    3.0: 3.415413832014412,
    1.0: 15.079475122969667,
    0.5: 27.489537894514825,
    0.3: 36.976493488803655,
    0.1: 49.61799813679576,
    0.05: 52.91144485700381,
    0.02: 56.05990847685821,
}
TRACE_OF_DIGITS = {
    3.0: 1.8174043274953369,
    1.0: 9.408538045995487,
    0.5: 19.211513477142702,
    0.3: 28.10930849167601,
    0.1: 44.38741973429713,
    0.05: 49.91000966278732,
    0.02: 54.1998889805013,
}


@pytest.mark.parametrize("name", ["gaussian-full", "gaussian-rank-2", "mixture-full", "empirical"])
def test_flipd_is_its_definition(name, generator):
    """d + sigma^2 (div s + |s|^2) at alpha x0, with the Hessian's trace; at any alpha."""
    denoiser = LAWS[name](generator, 3)
    rho, alpha = log_uniform(generator, 0.1, 2), log_uniform(generator, 0.1, 1)
    x0 = denoiser.mean + denoiser.std * normals(generator, 4, 3)
    sigma = alpha * rho
    score = denoiser.score(alpha * x0, alpha, sigma)
    trace = denoiser.hessian(alpha * x0, alpha, sigma).diagonal(dim1=-2, dim2=-1).sum(-1)
    wanted = 3 + sigma**2 * (trace + score.square().sum(1))
    torch.testing.assert_close(flipd(denoiser, x0, rho), wanted, rtol=1e-8, atol=1e-8)
    each = torch.full((4,), rho, dtype=torch.float64)
    torch.testing.assert_close(flipd(denoiser, x0, each), wanted, rtol=1e-8, atol=1e-8)


def test_flipd_at_little_noise_is_the_rank(generator):
    """Where the definition would subtract two numbers of size d/sigma^2."""
    low = LAWS["gaussian-rank-2"](generator, 6)
    x0 = low.mean + (normals(generator, 5, 2) * low.variances.sqrt()) @ low.basis.T
    torch.testing.assert_close(
        flipd(low, x0, 1e-7), torch.full((5,), 2.0).double(), rtol=0, atol=1e-6
    )


def test_the_mean_is_the_mean_over_the_data(generator):
    """200 000 draws agree within 5 standard errors."""
    data = wb.Gaussian(normals(generator, 4), covariance(generator, 4))
    rho = log_uniform(generator, 0.2, 2)
    x0 = data.mean + normals(generator, 200_000, 4) @ torch.linalg.cholesky(data.cov).T
    found = flipd(data, x0, rho)
    apart = found.mean() - flipd_mean(data.spectrum, rho)
    assert abs(apart) < 5 * found.std() / math.sqrt(len(x0))


def test_known_values(record_property):
    spectrum = torch.cat([torch.ones(20), torch.zeros(44)]).double()
    digits = wb.Gaussian.fit(wb.datasets.digits().points).spectrum
    for function, data, table in (
        (flipd_mean, spectrum, FLIPD_OF_20_MODES),
        (flipd_mean, digits, FLIPD_OF_DIGITS),
        (denoiser_trace, digits, TRACE_OF_DIGITS),
    ):
        rho = torch.tensor(list(table), dtype=torch.float64)
        got = function(data, rho)
        torch.testing.assert_close(
            got, torch.tensor(list(table.values()), dtype=torch.float64), rtol=1e-9, atol=0
        )
        assert function(data, rho[0].item()).item() == pytest.approx(got[0].item())


def test_the_trace_is_that_of_the_jacobian(generator):
    data, rho = LAWS["gaussian-full"](generator, 4), log_uniform(generator, 0.1, 3)
    x = normals(generator, 1, 4)
    wanted = data.jacobian(x, 1.0, rho)[0].trace().item()
    assert denoiser_trace(data.spectrum, rho).item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["gaussian-full", "gaussian-rank-2"])
def test_score_singular_values_are_those_of_scores(name, generator):
    """The second moment of the scores: exact by the two points +-sqrt(d) along each axis."""
    data = LAWS[name](generator, 4)
    alpha, sigma = log_uniform(generator, 0.2, 1), log_uniform(generator, 0.1, 1)
    x0 = data.mean + normals(generator, 4)
    eps = torch.cat([torch.eye(4), -torch.eye(4)]).double() * 2.0
    scores = data.score(alpha * x0 + sigma * eps, alpha, sigma)
    wanted = torch.linalg.svdvals(scores) / math.sqrt(8)
    got = score_singular_values(data, x0, alpha, sigma)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"one point, \(4,\)"):
        score_singular_values(data, scores, alpha, sigma)


def test_score_singular_values_at_little_noise_to_60_digits(generator):
    """A condition of 1e10 and more: every value keeps its digits."""
    mpmath = pytest.importorskip("mpmath")
    factors, x0 = normals(generator, 5, 2), normals(generator, 2)
    data = wb.Gaussian(normals(generator, 5), factors @ factors.T)
    point, sigma = data.mean + factors @ x0, 3e-3
    got = score_singular_values(data, point, 0.9, sigma)
    with mpmath.workdps(60):
        f, y = (mpmath.matrix(v.tolist()) for v in (factors, 0.9 * (point - data.mean)))
        noise = mpmath.mpf(sigma) ** 2 * mpmath.eye(5)
        precision = (mpmath.mpf(0.9) ** 2 * f * f.T + noise) ** -1
        values = mpmath.eigsy(precision * (noise + y * y.T) * precision, eigvals_only=True)
        wanted = [float(mpmath.sqrt(v)) for v in values][::-1]
    torch.testing.assert_close(got, torch.tensor(wanted).to(got), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["gaussian-full", "gaussian-rank-2-and-rest"])
def test_flow_singular_values_are_those_of_the_flow(name, generator):
    diffusion = wb.Diffusion(wb.VP(), LAWS[name](generator, 4))
    origin = diffusion.flow(torch.zeros(4).double(), 0.7, 0.05)
    matrix = diffusion.flow(torch.eye(4).double(), 0.7, 0.05) - origin
    got = flow_singular_values(diffusion, 0.7, 0.05)
    torch.testing.assert_close(got, torch.linalg.svdvals(matrix))


def test_flow_singular_values_count_the_dimensions(generator):
    flat = wb.Diffusion(wb.VP(), LAWS["gaussian-rank-2"](generator, 4))
    assert (flow_singular_values(flat, 1.0, 0.0) > 0).sum() == 2
    with pytest.raises(TypeError, match="needs Gaussian data"):
        flow_singular_values(wb.Diffusion(wb.VP(), LAWS["empirical"](generator, 4)), 1.0, 0.0)


def test_flow_singular_values_under_a_spectral_process(generator):
    from workbench.processes import DCT, EqualSNR

    spectrum = torch.rand(2, 2, generator=generator).double() + 0.5
    process = EqualSNR(spectrum, DCT((2, 2)))
    matrix, variances = process.basis.matrix, torch.rand(4, generator=generator).double() + 0.1
    data = wb.Gaussian(normals(generator, 2, 2), (matrix * variances) @ matrix.T)
    diffusion = wb.Diffusion(process, data)
    origin = diffusion.flow(torch.zeros(1, 2, 2).double(), 0.7, 0.05)
    moved = diffusion.flow(torch.eye(4).double().reshape(4, 2, 2), 0.7, 0.05) - origin
    got = flow_singular_values(diffusion, 0.7, 0.05)
    torch.testing.assert_close(got, torch.linalg.svdvals(moved.flatten(1)))
    other = wb.Diffusion(process, wb.Gaussian(data.mean, covariance(generator, 4)))
    with pytest.raises(TypeError, match="correlated"):
        flow_singular_values(other, 0.7, 0.05)


def test_what_is_refused(generator):
    data = LAWS["gaussian-rank-2"](generator, 4)
    for rho in (0.0, math.inf, torch.tensor([0.1, -1.0])):
        with pytest.raises(ValueError, match="needs noise"):
            flipd(data, normals(generator, 2, 4), rho)
    with pytest.raises(ValueError, match="need noise"):
        score_singular_values(data, data.mean, 1.0, 0.0)
