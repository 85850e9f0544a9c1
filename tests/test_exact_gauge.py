"""The gauge split against its defining properties, by other means."""

import numpy as np
import pytest
import torch
from helpers import LAWS, covariance, normals, states, uniform
from scipy.linalg import solve_continuous_lyapunov

import workbench as wb
from workbench.exact.gauge import asymmetry, gauge_field, gauge_split, gauge_violation


def antisymmetric(generator, d) -> torch.Tensor:
    matrix = normals(generator, d, d)
    return matrix - matrix.T


def test_the_split_solves_its_lyapunov_equation(generator):
    law, b = wb.Gaussian(normals(generator, 5), covariance(generator, 5)), normals(generator, 5, 5)
    split = gauge_split(b, law)
    inverse = np.linalg.inv(law.cov.numpy())
    right = inverse @ b.numpy() + b.numpy().T @ inverse
    wanted = torch.from_numpy(solve_continuous_lyapunov(inverse, right))
    torch.testing.assert_close(split.conservative, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(split.conservative + split.gauge, b)


def test_the_parts_are_what_they_claim(generator):
    """A symmetric P; no divergence of p r, at any point; orthogonal in L2(p)."""
    law, b = wb.Gaussian(normals(generator, 4), covariance(generator, 4)), normals(generator, 4, 4)
    split = gauge_split(b, law)
    assert torch.equal(split.conservative, split.conservative.T)
    x = law.mean + 2 * normals(generator, 6, 4)
    field = (x - law.mean) @ split.gauge.T
    score = law.score(x, 1.0, 0.0)
    jacobian = split.gauge.expand(6, 4, 4)
    assert gauge_violation(field, jacobian, score).abs().max() < 1e-10
    overlap = (split.conservative @ law.cov @ split.gauge.T).trace().item()
    assert overlap == pytest.approx(0, abs=1e-12)
    assert split.norm2 == pytest.approx(split.conservative_norm2 + split.gauge_norm2)
    for matrix, norm2 in (
        (b, split.norm2),
        (split.conservative, split.conservative_norm2),
        (split.gauge, split.gauge_norm2),
    ):
        assert norm2 == pytest.approx((matrix @ law.cov @ matrix.T).trace().item())


def test_the_nearest_gradient_field(generator):
    """No other symmetric matrix is nearer to B in L2(p)."""
    law, b = wb.Gaussian(normals(generator, 3), covariance(generator, 3)), normals(generator, 3, 3)
    split = gauge_split(b, law)

    def distance(p):
        return ((b - p) @ law.cov @ (b - p).T).trace().item()

    best = distance(split.conservative)
    assert best == pytest.approx(split.gauge_norm2)
    for _ in range(20):
        other = normals(generator, 3, 3)
        assert distance(split.conservative + 0.1 * (other + other.T)) > best


def test_a_gauge_matrix_has_no_gradient_part_and_a_rotation_has(generator):
    law = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    a = antisymmetric(generator, 3)
    gauge = gauge_split(a @ torch.linalg.inv(law.cov), law)
    assert gauge.conservative.abs().max() < 1e-10
    assert asymmetry(gauge.gauge) > 0.1
    rotation = gauge_split(a, law)
    assert rotation.conservative_norm2 > 1e-6
    isotropic = gauge_split(a, wb.Gaussian(law.mean, 0.7))
    assert isotropic.conservative_norm2 == 0
    assert asymmetry(a).item() == pytest.approx(2 * a.norm().item())


def test_directions_without_variance(generator):
    """Low rank: the limit of a small variance; among the empty directions the symmetric part."""
    basis = torch.linalg.qr(normals(generator, 4, 4)).Q
    mean, variances = normals(generator, 4), torch.tensor([2.0, 0.3]).double()
    law = wb.Gaussian.low_rank(mean, basis[:, :2], variances)
    near = wb.Gaussian.low_rank(mean, basis[:, :2], variances, rest=1e-12)
    b = normals(generator, 4, 4)
    split, limit = gauge_split(b, law), gauge_split(b, near)
    torch.testing.assert_close(split.conservative, limit.conservative, rtol=0, atol=1e-9)
    empty = basis[:, 2:]
    wanted = empty.T @ (0.5 * (b + b.T)) @ empty
    torch.testing.assert_close(empty.T @ split.conservative @ empty, wanted)
    with pytest.raises(ValueError, match=r"matrix has shape \(3, 3\)"):
        gauge_split(torch.eye(3), law)


@pytest.mark.parametrize("name", ["mixture-full", "mixture-isotropic", "gaussian-full"])
def test_the_universal_gauge_field_has_no_divergence(name, generator):
    """div(p A s) by central differences of exp(log p) A s, of sixth order."""
    d, a = 3, antisymmetric(generator, 3)
    diffusion = wb.Diffusion(wb.VP(), LAWS[name](generator, d))
    t = uniform(generator, 0.1, 0.6)
    c = diffusion.process(t)
    x = states(generator, diffusion.denoiser, 4, c.alpha, c.sigma)
    base, h = diffusion.log_prob(x, t)[:, None], 3e-3

    def flux(y):
        return (diffusion.log_prob(y, t)[:, None] - base).exp() * gauge_field(diffusion, y, t, a)

    divergence = torch.zeros(4).double()
    weights = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
    for i, unit in enumerate(torch.eye(d).double()):
        for k, w in weights:
            step = k * h * unit
            divergence += w * (flux(x + step) - flux(x - step))[:, i] / h
    size = gauge_field(diffusion, x, t, a).norm(dim=1) * diffusion.score(x, t).norm(dim=1)
    assert (divergence.abs() / (1 + size)).max() < 1e-8
    field, jacobian = gauge_field(diffusion, x, t, a), a @ diffusion.hessian(x, t)
    assert gauge_violation(field, jacobian, diffusion.score(x, t)).abs().max() < 1e-9


def test_only_an_antisymmetric_matrix_makes_one(generator):
    diffusion = wb.Diffusion(wb.VP(), LAWS["gaussian-full"](generator, 2))
    with pytest.raises(ValueError, match="minus its transpose by 2"):
        gauge_field(diffusion, normals(generator, 1, 2), 0.5, torch.eye(2).double())
