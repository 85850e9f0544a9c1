"""The ideal denoiser of finite data against its own definition."""

import math

import mpmath
import pytest
import torch
from helpers import log_uniform, normals, relative, uniform

import workbench as wb


def by_definition(points, x, alpha, sigma):
    """Posterior mean and log-density of one state, in 60 digits."""
    with mpmath.workdps(60):
        d, exponents = len(x), []
        for point in points.tolist():
            apart = [
                mpmath.mpf(a) - mpmath.mpf(alpha) * b
                for a, b in zip(x.tolist(), point, strict=True)
            ]
            exponents.append(-sum(v * v for v in apart) / (2 * mpmath.mpf(sigma) ** 2))
        parts = [mpmath.exp(e) for e in exponents]
        total = mpmath.fsum(parts)
        mean = [
            float(mpmath.fsum(p * b for p, b in zip(parts, column, strict=True)) / total)
            for column in points.T.tolist()
        ]
        norm = d * mpmath.log(mpmath.mpf(sigma) * mpmath.sqrt(2 * mpmath.pi))
        return torch.tensor(mean, dtype=torch.float64), float(
            mpmath.log(total / len(points)) - norm
        )


@pytest.mark.parametrize("rho", [1e-3, 0.05, 0.5, 5.0, 1e3])
def test_softmax_over_the_points_in_60_digits(rho, generator):
    points, alpha = normals(generator, 9, 3), log_uniform(generator, 0.1, 1)
    sigma, law = rho * alpha, wb.Empirical(points)
    near = alpha * points[:3] + sigma * normals(generator, 3, 3)
    between = alpha * 0.5 * (points[3:5] + points[5:7])  # two points equally near: a share of 1/2
    for x in torch.cat([near, between]):
        mean, density = by_definition(points, x, alpha, sigma)
        # At rho = 1e-3 a share of 1/2 hangs on logits of 1e6 that cancel: 1e-10 of them is lost.
        assert relative(law.denoise(x, alpha, sigma), mean) < max(1e-12, 3e-15 / rho**2)
        found = law.log_prob(x, alpha, sigma).item()
        assert found == pytest.approx(density, rel=1e-12, abs=max(1e-12, 3e-15 / rho**2))


def test_is_the_mixture_without_variances(generator):
    points, x = normals(generator, 20, 4, 4), normals(generator, 6, 4, 4)
    law = wb.Empirical(points)
    n = torch.full((20,), 0.05, dtype=torch.float64)
    sigma = uniform(generator, 0.1, 3)
    for covs in (torch.zeros(20), torch.zeros(20, 16), torch.zeros(20, 16, 16)):
        twin = wb.Mixture(n, points, covs.double())
        for level in ((0.7, sigma), (1.0, 0.0), (0.0, 1.0)):
            assert relative(law.denoise(x, *level), twin.denoise(x, *level)) < 1e-12
        torch.testing.assert_close(law.log_prob(x, 0.7, sigma), twin.log_prob(x, 0.7, sigma))
    torch.testing.assert_close(law.mean, points.mean(0))
    assert law.std == pytest.approx(points.std(0, correction=0).square().mean().sqrt().item())
    assert torch.equal(law.points, points)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_noise_it_is_the_nearest_point(dtype, generator):
    points = normals(generator, 50, 5).to(dtype)
    law, x = wb.Empirical(points), (2 * normals(generator, 40, 5)).to(dtype)
    nearest = points[torch.cdist(0.8 * points.double(), x.double()).argmin(0)]
    torch.testing.assert_close(law.denoise(x, 0.8, 0.0), nearest, rtol=0, atol=0)
    sigmas = torch.zeros(40, dtype=dtype)
    torch.testing.assert_close(law.denoise(x, 0.8, sigmas), nearest, rtol=0, atol=0)


def test_half_way_between_two_points_is_their_mean(generator):
    points = normals(generator, 2, 3)
    middle = points.mean(0)
    for sigma in (0.01, 1.0, 100.0):
        assert relative(wb.Empirical(points).denoise(middle, 1.0, sigma), middle) < 1e-9


def test_has_no_density_without_noise_and_no_flow(generator):
    law = wb.Empirical(normals(generator, 4, 2))
    x = torch.zeros(1, 2).double()
    with pytest.raises(ValueError, match=r"Empirical has no density at sigma = 0"):
        law.log_prob(x)
    with pytest.raises(NotImplementedError, match=r"Empirical has no closed-form probability flow"):
        law.flow(x, (1.0, 1.0), (1.0, 0.5))


def test_from_data_takes_the_first_points():
    data = wb.datasets.ring()
    assert torch.equal(wb.Empirical.from_data(data).points, data.points)
    assert torch.equal(wb.Empirical.from_data(data, points=7).points, data.points[:7])


def test_conversion_keeps_the_kind(generator):
    law = wb.Empirical(normals(generator, 4, 2))
    assert law.to(torch.float64) is law
    single = law.to(torch.float32)
    assert isinstance(single, wb.Empirical) and torch.equal(single.points, law.points.float())


@pytest.mark.parametrize(
    ("points", "pieces"),
    [
        (torch.zeros(3), ["points has shape (3,)", "(number of points, *event)"]),
        (torch.zeros(0, 3), ["points has shape (0, 3)", "(number of points, *event)"]),
        (torch.tensor([[1.0, math.nan]]), ["points holds 1 values that are not finite"]),
    ],
)
def test_bad_points_are_refused_with_a_sentence(points, pieces):
    with pytest.raises(ValueError) as caught:
        wb.Empirical(points)
    for piece in pieces:
        assert piece in str(caught.value)
