"""The even law on a sphere: against the laws of a posterior mean, and against integrals."""

import math

import pytest
import torch
from helpers import normals
from scipy import integrate

import workbench as wb
from workbench.denoisers.sphere import Sphere, mean_resultant
from workbench.testing import check_denoiser


@pytest.mark.parametrize(("n", "d", "blur"), [(3, 4, 0.0), (4, 4, 0.2)])
def test_it_keeps_the_laws_of_a_posterior_mean(n, d, blur, generator):
    frame = torch.linalg.qr(normals(generator, d, n)).Q
    check_denoiser(Sphere(frame, 1.7, blur), samples=4)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 20])
def test_the_mean_direction_is_its_integral(n):
    """Over the angle to the mean direction; and at large kappa the series goes on from it."""
    for kappa in (1e-3, 0.7, 30.0):

        def weight(a, k=kappa):
            return math.exp(k * (math.cos(a) - 1)) * math.sin(a) ** (n - 2)

        wanted = integrate.quad(lambda a: math.cos(a) * weight(a), 0, math.pi, epsabs=0)[0]
        wanted /= integrate.quad(weight, 0, math.pi, epsabs=0)[0]
        got = mean_resultant(torch.tensor([kappa], dtype=torch.float64), n)
        assert got.item() == pytest.approx(wanted, rel=1e-9)
    edge = 1e4 * n * n
    pair = torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=torch.float64)
    pair.requires_grad_()
    value = mean_resultant(pair, n)
    (slope,) = torch.autograd.grad(value.sum(), pair)
    assert (value[1] - value[0]).abs().item() < 1e-13
    assert slope[1].item() == pytest.approx(slope[0].item(), rel=1e-5)


def test_the_data_set_knows_its_law(generator):
    """Distances of fresh draws from the sphere, and their covariance, are those of the points."""
    data = wb.datasets.sphere(dimension=2, ambient=5, radius=1.5, noise=0.1, size=20_000)
    drawn = data.law.draws(20_000, generator)
    inside = [(x @ data.law.frame).norm(dim=1).mean().item() for x in (drawn, data.points)]
    assert inside[0] == pytest.approx(inside[1], abs=5 * 0.1 * math.sqrt(2 / 20_000))
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(data.points.T), rtol=0, atol=0.05)
    assert data.law.std == pytest.approx(data.points.var(0).mean().sqrt().item(), rel=0.01)


@pytest.mark.parametrize(
    ("frame", "radius", "said"),
    [
        (torch.eye(3)[:, :1], 1.0, r"shape \(3, 1\); a sphere needs \(d, n\)"),
        (torch.eye(3)[:, :2] * 1.1, 1.0, "not orthonormal"),
        (torch.eye(3)[:, :2], 0.0, "radius was 0.0"),
    ],
)
def test_what_is_no_sphere_is_refused(frame, radius, said):
    with pytest.raises(ValueError, match=said):
        Sphere(frame, radius)
