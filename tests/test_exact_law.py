"""The exact output law against closed forms, independent recursions and Monte Carlo."""

import math

import pytest
import torch

import workbench as wb

PROCESSES = [wb.VP(), wb.EDM(), wb.RectifiedFlow()]
SAMPLERS = [
    wb.Euler(),
    wb.Heun(),
    wb.Heun(axis="t"),
    wb.DDIM(eta=0.6),
    wb.EulerMaruyama(),
    wb.EulerMaruyama(eta=2.0),
]


def random_gaussian(generator, d=3) -> wb.Gaussian:
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return wb.Gaussian(torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_against_simulation(process, sampler, generator):
    """Mean and covariance of 20 000 samples lie within 5.5 standard errors of the exact law."""
    n = 20_000
    diffusion = wb.Diffusion(process, random_gaussian(generator))
    grid = wb.Grid.log_snr(process, 10, "denoise")
    law = wb.exact.law(diffusion, sampler, grid)
    first = int(torch.randint(2**40, (), generator=generator))
    final = wb.sample(diffusion, sampler, grid, seeds=range(first, first + n)).final
    variances = law.cov.diag()
    of_mean = (final.mean(0) - law.mean) / (variances / n).sqrt()
    of_cov = (torch.cov(final.T) - law.cov) / (
        (law.cov**2 + variances[:, None] * variances) / n
    ).sqrt()
    assert of_mean.abs().max() < 5.5
    assert of_cov.abs().max() < 5.5


def test_euler_maruyama_is_the_published_recursion():
    """Pierret & Galerne (arXiv:2405.14250): v -> (1 + h b (1 - 2/l))^2 v + 2 h b per eigenvalue."""
    variances = torch.tensor([4.0, 1.0, 0.1, 1e-3], dtype=torch.float64)
    process = wb.VP()
    grid = wb.Grid.uniform(process, 50)
    v = torch.ones_like(variances)
    for t, s in zip(grid.t, grid.t[1:], strict=False):
        b = 0.5 * process(t).g2  # their beta is half of ours
        level = process(t).alpha ** 2 * variances + process(t).sigma ** 2
        v = (1 + (t - s) * b * (1 - 2 / level)) ** 2 * v + 2 * (t - s) * b
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(4).double(), variances))
    law = wb.exact.law(diffusion, wb.EulerMaruyama(), grid)
    torch.testing.assert_close(law.variances, v, rtol=1e-12, atol=0)


def test_edm_heun_with_eighteen_steps_over_disperses():
    """The known 18-step variances of N(0, diag(4, 1, .25, .01, 1e-4)) with a perfect score."""
    variances = torch.tensor([4.0, 1.0, 0.25, 0.01, 1e-4], dtype=torch.float64)
    diffusion = wb.Diffusion(wb.EDM(), wb.Gaussian(torch.zeros(5).double(), variances))
    grid = wb.Grid.karras(wb.EDM(), 18, "denoise")
    start = diffusion.marginal(80.0)
    law = wb.exact.law(diffusion, wb.Heun(), grid, start)
    got = law.cov.diag()
    wanted = torch.tensor([4.296, 1.0916, 0.27840, 0.011885, 1.3526e-4], dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=0)


def test_low_rank_law_is_that_of_the_full_covariance(generator):
    basis = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64)).Q
    mean = torch.randn(5, generator=generator, dtype=torch.float64)
    low = wb.Gaussian.low_rank(
        mean, basis, torch.tensor([2.0, 0.3], dtype=torch.float64), rest=0.05
    )
    full = wb.Gaussian(mean, low.cov)
    grid = wb.Grid.log_snr(wb.VP(), 7)
    for sampler in SAMPLERS:
        a, b = (wb.exact.law(wb.Diffusion(wb.VP(), data), sampler, grid) for data in (low, full))
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(a.cov, b.cov, rtol=1e-10, atol=1e-10)


def test_any_start(generator):
    """A correlated start goes through the same linear map as a point does."""
    diffusion = wb.Diffusion(wb.VP(), random_gaussian(generator))
    grid = wb.Grid.karras(wb.VP(), 6)
    start = random_gaussian(generator)
    law = wb.exact.law(diffusion, wb.Heun(), grid, start)

    def final(x):
        return wb.sample(diffusion, wb.Heun(), grid, seeds=range(len(x)), x=x).final

    origin = final(torch.zeros(1, 3, dtype=torch.float64))
    matrix = (final(torch.eye(3, dtype=torch.float64)) - origin).T
    torch.testing.assert_close(law.cov, matrix @ start.cov @ matrix.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(law.mean, origin[0] + matrix @ start.mean, rtol=1e-9, atol=1e-12)


def test_w2_is_the_bures_distance(generator):
    a, b = random_gaussian(generator), random_gaussian(generator)

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    inner = root(root(a.cov) @ b.cov @ root(a.cov))
    square = (a.mean - b.mean).square().sum() + (a.cov + b.cov - 2 * inner).trace()
    assert wb.exact.w2(a, b) == pytest.approx(math.sqrt(square), rel=1e-6)
    assert wb.exact.w2(a, a) < 1e-7
    moved = wb.Gaussian(a.mean + 3.0, a.cov)
    assert wb.exact.w2(a, moved) == pytest.approx(3 * math.sqrt(3), rel=1e-9)


def test_w2_in_a_common_basis_is_the_general_form(generator):
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    zeros = torch.zeros(4, dtype=torch.float64)
    first, second = (torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (wb.Gaussian.low_rank(zeros, basis, v) for v in (first, second))
    general = wb.exact.w2(wb.Gaussian(zeros, a.cov), b)
    assert wb.exact.w2(a, b) == pytest.approx(general, rel=1e-6)


def test_data_that_are_not_gaussian_are_refused():
    diffusion = wb.Diffusion(wb.VP(), wb.datasets.ring().law)
    with pytest.raises(TypeError, match="needs Gaussian data; these are Mixture"):
        wb.exact.law(diffusion, wb.Heun(), wb.Grid.log_snr(wb.VP(), 4))
