"""The gauge split against its defining properties, by other means."""

import math

import numpy as np
import pytest
import torch
from helpers import LAWS, covariance, normals, states, uniform
from scipy.linalg import solve_continuous_lyapunov

import workbench as wb
from workbench.exact.gauge import (
    antisymmetric_squares,
    asymmetry,
    circulation,
    curl,
    gauge_field,
    gauge_split,
    gauge_violation,
    line_gradient,
    symmetrised,
    violation_of,
)
from workbench.exact.turned import turned_law


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
        weight = (lambda level: (level / 5).sin()) if name == "mixture-full" else None
        return (diffusion.log_prob(y, t)[:, None] - base).exp() * gauge_field(
            diffusion, y, t, a, weight
        )

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


@pytest.mark.parametrize("each", [False, True], ids=["one level", "a level for each mode"])
def test_probes_along_an_orthogonal_frame_give_the_whole_matrix(each, generator):
    """Of signs that are the rows of a Hadamard matrix the estimates are exact, sample by sample."""
    truth = LAWS["mixture-isotropic"](generator, 4)
    gauge = antisymmetric(generator, 4)
    wrong = wb.Perturbed(truth, 0.1, gauge=gauge, rotation=0.2 * gauge)
    alpha, sigma = 0.8, 0.5
    if each:
        alpha, sigma = (torch.linspace(low, 0.9, 4).double()[None] for low in (0.4, 0.2))
    x = normals(generator, 6, 4)
    here, there = (one.at(alpha, sigma) for one in (wrong, truth))
    frame = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    frame = torch.kron(frame, frame)
    for pair in zip(
        antisymmetric_squares(here, x), antisymmetric_squares(here, x, frame), strict=True
    ):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
    exact = violation_of(here, there, x)[0]
    torch.testing.assert_close(violation_of(here, there, x, frame).mean(0), exact)
    # As it is written: traces of the score's Jacobians, weighed by sigma of each mode.
    error, h = here.score(x) - there.score(x), 1e-5
    slope = torch.stack(
        [
            sum(
                sign * (here.score(x + sign * h * e) - there.score(x + sign * h * e))[:, i]
                for sign in (1, -1)
            )
            / (2 * h)
            for i, e in enumerate(torch.eye(4).double())
        ],
        1,
    )
    weight = torch.as_tensor(sigma).square().expand(1, 4).double()
    direct = (weight * (slope + error * there.score(x))).sum(1)
    torch.testing.assert_close(exact, direct, rtol=1e-6, atol=1e-7)


def test_only_an_antisymmetric_matrix_makes_one(generator):
    diffusion = wb.Diffusion(wb.VP(), LAWS["gaussian-full"](generator, 2))
    with pytest.raises(ValueError, match="minus its transpose by 2"):
        gauge_field(diffusion, normals(generator, 1, 2), 0.5, torch.eye(2).double())


def test_curl_and_circulation_of_linear_fields(generator):
    """Stokes: the circulation around an ellipse is the curl times its area."""
    angle = torch.arange(12).double() * (2 * math.pi / 12)
    around = torch.stack([angle.cos(), angle.sin()], 1)
    for d in (2, 3):
        b, ends, centre = normals(generator, d, d), normals(generator, 2, d), normals(generator, d)
        loop = centre + around @ ends
        found = curl(b[None])[0]
        if d == 2:
            area = ends[0, 0] * ends[1, 1] - ends[0, 1] * ends[1, 0]
            inside = found * area * math.pi
        else:
            inside = math.pi * (found @ torch.linalg.cross(ends[0], ends[1]))
        around_it = circulation((loop - centre) @ b.T, loop)
        assert around_it.item() == pytest.approx(inside.item(), rel=1e-12)
        assert circulation(loop @ (b + b.T), loop).abs() < 1e-12
    with pytest.raises(ValueError, match="a curl exists in 2 and 3 dimensions"):
        curl(torch.eye(4)[None])
    with pytest.raises(ValueError, match="at least 4 points"):
        circulation(loop[:3], loop[:3])


def test_line_integrals_symmetrise_and_are_not_the_gradient_part(generator):
    """Of a linear field the symmetrised matrix; of a mixture's score, a gradient, itself."""
    law, b = wb.Gaussian(normals(generator, 3), covariance(generator, 3)), normals(generator, 3, 3)
    x = law.mean + normals(generator, 5, 3)
    field, pull = (lambda y: (y - law.mean) @ b.T), (lambda y, v: v @ b)
    found = line_gradient(field, pull, x, law.mean)
    torch.testing.assert_close(found, (x - law.mean) @ symmetrised(b))
    right = (x - law.mean) @ gauge_split(b, law).conservative
    assert (found - right).norm() > 1e-3 * right.norm()
    level = LAWS["mixture-full"](generator, 3).at(1.0, 1.0)
    turn = lambda y, v: level.vjp(y, v) - v  # noqa: E731
    torch.testing.assert_close(
        line_gradient(level.score, turn, x, law.mean), level.score(x), rtol=1e-6, atol=1e-6
    )


def test_steps_break_a_gauge_and_time_does_not():
    """W2 of 100 steps of Euler from t = 1 under VP for c = 0, 0.5 and 2; and a naive rotation."""
    cov, a = torch.tensor([[2.0, 0.6], [0.6, 0.5]]).double(), torch.tensor([[0.0, -1], [1, 0]])
    process, a = wb.VP(), a.double()
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(2).double(), cov))
    end = diffusion.marginal(process.t_min)

    def error(turn, steps=None, eta=0.0):
        return wb.exact.w2(turned_law(diffusion, turn, steps, eta), end)

    for c, known in ((0.0, 0.0031), (0.5, 0.065), (2.0, 1.49)):
        gauge = lambda cov, c=c: -c * a @ torch.linalg.inv(cov)  # noqa: E731
        assert error(gauge, 100) == pytest.approx(known, rel=0.02)
    # Exact in continuous time; after steps of first order, here on its way there.
    assert error(gauge) < 1e-8 and error(gauge, eta=1.0) < 1e-8
    assert 0.44 < error(gauge, 400) / error(gauge, 200) < 0.5
    grid = wb.Grid.uniform(process, 100, final="stop")
    law = wb.exact.law(diffusion, wb.Euler(axis="t"), grid, diffusion.marginal(grid.t[0]))
    none = turned_law(diffusion, lambda cov: 0 * a, 100, t=grid.t[0], s=grid.t[-1])
    torch.testing.assert_close(none.cov, law.cov, rtol=1e-9, atol=1e-12)
    assert error(lambda cov: 0.05 * a) == pytest.approx(0.02491, rel=1e-3)
    with pytest.raises(TypeError, match="needs Gaussian data"):
        turned_law(wb.Diffusion(process, wb.datasets.ring().law), gauge)
    with pytest.raises(ValueError, match="from t down to s"):
        turned_law(diffusion, gauge, t=0.1, s=0.2)


def test_euler_s_law_on_any_nodes_is_that_of_its_program(generator):
    """Without a turn it is the law of the sampler's rows, mean too."""
    law = LAWS["gaussian-full"](generator, 3)
    diffusion = wb.Diffusion(wb.VP(), law)
    grid = wb.Grid.karras(diffusion.process, steps=7)
    start = diffusion.marginal(grid.t[0])
    wanted = wb.exact.law(diffusion, wb.Euler(axis="t"), grid, start=start)
    found = turned_law(diffusion, torch.zeros_like, list(grid.t))
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.cov, wanted.cov, rtol=1e-9, atol=1e-12)
