"""The ideal denoiser of finite data against its own definition."""

import json
import math
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from helpers import PEAK, log_uniform, normals, relative, uniform

import workbench as wb
from workbench.denoisers import points as table

TABLE = Path(__file__).with_name("reference") / "theory.json"


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


def by_differences(points, x, alpha, sigma):
    """Log-weights (n, N), posterior mean and covariance, in float64 and all at once."""
    points, x = points.double().flatten(1), x.double().flatten(1)
    alpha, sigma = (torch.as_tensor(c, dtype=torch.float64) for c in (alpha, sigma))
    alpha, sigma = (c if c.ndim else c.expand(1, 1) for c in (alpha, sigma))
    apart = (x[:, None] - alpha[:, None] * points) / sigma[:, None]
    logits = -0.5 * apart.square().sum(-1)
    share = torch.softmax(logits, 1)
    mean = share @ points
    centred = points - mean[:, None]
    return logits, mean, (share[..., None] * centred).mT @ centred


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stretched(generator, n: int, d: int) -> torch.Tensor:
    """Points along axes of very different lengths, off the origin."""
    return normals(generator, n, d) * torch.logspace(0.5, -1, d).double() + normals(generator, d)


# ---- the posterior mean and the density ----------------------------------------------------------


@pytest.mark.parametrize("rho", [1e-8, 1e-5, 1e-3, 0.05, 0.5, 5.0, 1e3])
def test_softmax_over_the_points_in_60_digits(rho, generator):
    points, alpha = normals(generator, 9, 3), log_uniform(generator, 0.1, 1)
    sigma, law = rho * alpha, wb.Empirical(points)
    near = alpha * points[:3] + sigma * normals(generator, 3, 3)
    between = alpha * 0.5 * (points[3:5] + points[5:7])  # two points equally near: a share of 1/2
    for x in torch.cat([near, between]):
        mean, density = by_definition(points, x, alpha, sigma)
        # A share of 1/2 hangs on logits of (x / sigma)^2, whose last digits are lost with those of
        # alpha * x_i: no difference in float64 is closer.
        lost = 1e-15 / rho**2
        if lost < 1e-3:
            assert relative(law.denoise(x, alpha, sigma), mean) < max(1e-12, lost)
            found = law.log_prob(x, alpha, sigma).item()
            assert found == pytest.approx(density, rel=1e-12, abs=max(1e-12, lost))
    for x, point in zip(near, points[:3], strict=True):
        mean, density = by_definition(points, x, alpha, sigma)
        if rho < 0.01:
            assert torch.equal(law.denoise(x, alpha, sigma), point)
            found = law.log_prob(x, alpha, sigma).item()
            assert found == pytest.approx(density, rel=1e-12, abs=1e-13 / rho)


def test_the_delta_mixture_of_the_reference_table():
    """theory.json, delta_mixture: weights, denoised state and score, and a Gaussian's score."""
    case = next(c for c in json.loads(TABLE.read_text()) if c["id"] == "delta_mixture")
    points, x = tensor(case["inputs"]["X"]), tensor(case["inputs"]["x"])
    law = wb.Empirical(points)
    twin, tolerance = wb.Gaussian.fit(points), case["tolerance"]
    for row in case["expected"]:
        level = 1.0, row["sigma"]
        found = {
            "weights": law.classify(x, *level),
            "denoised": law.denoise(x, *level),
            "score": law.score(x, *level),
            "gaussian_score": twin.score(x, *level),
        }
        for name, value in found.items():
            assert relative(value, tensor(row[name])) < tolerance, (name, level)


def test_is_the_mixture_without_variances(generator):
    points, x = normals(generator, 20, 4, 4), normals(generator, 6, 4, 4)
    law = wb.Empirical(points)
    n = torch.full((20,), 0.05, dtype=torch.float64)
    sigma = uniform(generator, 0.1, 3)
    twin = wb.Mixture(n, points, torch.zeros(20).double())
    for level in ((0.7, sigma), (1.0, 0.0), (0.0, 1.0)):
        assert relative(law.denoise(x, *level), twin.denoise(x, *level)) < 1e-12
    torch.testing.assert_close(law.log_prob(x, 0.7, sigma), twin.log_prob(x, 0.7, sigma))
    torch.testing.assert_close(law.classify(x, 0.7, sigma), twin.classify(x, 0.7, sigma))
    torch.testing.assert_close(law.mean, points.mean(0))
    assert law.std == pytest.approx(points.std(0, correction=0).square().mean().sqrt().item())
    assert torch.equal(law.points, points) and law.means is law.points
    assert torch.equal(law.weights, n) and torch.equal(law.covs, torch.zeros(20).double())


@pytest.mark.parametrize("shape", ["per sample", "per coordinate", "for each"])
def test_every_shape_of_the_noise_level(shape, generator):
    n, d = 40, 6
    points, x = stretched(generator, 700, d), 2 * normals(generator, n, d)
    rows, columns = {"per sample": (n, 1), "per coordinate": (1, d), "for each": (n, d)}[shape]
    alpha, sigma = (
        0.05 + 1.5 * torch.rand(rows, columns, generator=generator).double() for _ in "as"
    )
    law = wb.Empirical(points)
    logits, mean, cov = by_differences(points, x, alpha, sigma)
    assert relative(law.denoise(x, alpha, sigma), mean) < 1e-11
    volume = sigma.log().expand(n, d).sum(1) + 0.5 * d * math.log(2 * math.pi)
    density = logits.logsumexp(1) - math.log(len(points)) - volume
    torch.testing.assert_close(law.log_prob(x, alpha, sigma), density, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(law.classify(x, alpha, sigma), torch.softmax(logits, 1))
    jacobian = cov * (alpha / sigma**2)[:, None]
    size = jacobian.abs().max()
    assert (law.posterior_cov(x, alpha, sigma) - cov).abs().max() < 1e-11 * cov.abs().max()
    assert (law.jacobian(x, alpha, sigma) - jacobian).abs().max() < 1e-11 * size
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    assert (law.divergence(x, alpha, sigma) - trace).abs().max() < 1e-10 * size


@pytest.mark.parametrize("d", [2, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_points_at_all_noise_levels(d, dtype, generator):
    """However the work is split; near points, between points, and far from all of them."""
    points = stretched(generator, 300, d).to(dtype)
    law, size = wb.Empirical(points), points.abs().max().double()
    for sigma in (1e-4, 1e-2, 0.05, 0.3, 1.0, 5.0, 100.0):
        near = points[:20].double() + sigma * normals(generator, 20, d)
        between = 0.5 * (points[20:30] + points[40:50]).double()
        x = torch.cat([near, 30 * normals(generator, 10, d), between]).to(dtype)
        _, mean, _ = by_differences(points, x, 1.0, sigma)
        error = (law.denoise(x, 1.0, sigma).double() - mean).abs().amax(1) / size
        if dtype == torch.float64:  # half way, float64 itself loses last digits of (x / sigma)^2
            assert error.max() < max(1e-10, 1e-15 * d / sigma**2)
        else:
            assert error[:-10].max() < 1e-5 and error[-10:].max() < 3e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_data_far_from_the_origin_lose_nothing(dtype, generator):
    """Their products would: 1e6 against differences of 1."""
    points = (1e3 + normals(generator, 200, 4)).to(dtype)
    law, sigma = wb.Empirical(points), 0.5
    x = (points[:50].double() + sigma * normals(generator, 50, 4)).to(dtype)
    _, mean, cov = by_differences(points, x, 1.0, sigma)
    exact = dtype == torch.float64
    assert (law.denoise(x, 1.0, sigma) - mean).abs().max() < (1e-11 if exact else 1e-4)
    assert relative(law.divergence(x, 1.0, sigma), torch.einsum("nii->n", cov) / sigma**2) < (
        1e-10 if exact else 1e-5
    )
    assert relative(law.posterior_cov(x, 1.0, sigma), cov) < (1e-10 if exact else 1e-5)
    assert law.std == pytest.approx(points.double().std(0, correction=0).square().mean().sqrt())


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("d", [2, 5, 60])
def test_without_noise_it_is_the_nearest_point(dtype, d, generator):
    points = normals(generator, 500, d).to(dtype)
    law, x = wb.Empirical(points), (2 * normals(generator, 40, d)).to(dtype)
    # By differences: torch.cdist forms products.
    apart = (x.double()[:, None] - 0.8 * points.double()).square().sum(-1)
    nearest = points[apart.argmin(1)]
    assert torch.equal(law.denoise(x, 0.8, 0.0), nearest)
    assert torch.equal(law.denoise(x, 0.8, torch.zeros(40, dtype=dtype)), nearest)
    assert torch.equal(law.denoise(x, 0.8, 1e-200 if dtype == torch.float64 else 1e-30), nearest)
    alphas = torch.full((1, d), 0.8, dtype=dtype)
    apart = (x.double()[:, None] - alphas.double() * points.double()).square().sum(-1)
    assert torch.equal(law.denoise(x, alphas, 0.0), points[apart.argmin(1)])
    for name in ("jacobian", "posterior_cov", "divergence"):
        assert not getattr(law, name)(x, 0.8, 0.0).any()
    assert not law.rate(x, 0.8, 0.0, 1.0, 1.0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_equally_near_share_equally(dtype):
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=dtype)] * 3)
    law, one = wb.Empirical(corners), torch.ones(1, dtype=dtype)
    for alpha in (1.0, 0.7):
        x = torch.tensor([[0, 0, 0], [0.25, 0, 0], [0.25, -0.5, 0], [9.0, 0, 0]], dtype=dtype)
        expected = torch.tensor([[0, 0, 0], [1, 0, 0], [1, -1, 0], [1, 0, 0]], dtype=dtype)
        for sigma in (0.0, 1e-9, 0 * one):
            assert torch.equal(law.denoise(x, alpha, sigma), expected)
        assert torch.equal(law.classify(x[0], alpha, 0.0), torch.full((8,), 0.125, dtype=dtype))
        spread = law.posterior_cov(x, alpha, 0.0).diagonal(dim1=1, dim2=2)
        assert torch.equal(spread, 1 - expected.square())


def test_half_way_between_two_points_is_their_mean(generator):
    points = normals(generator, 2, 3)
    middle = points.mean(0)
    for sigma in (0.01, 1.0, 100.0):
        assert relative(wb.Empirical(points).denoise(middle, 1.0, sigma), middle) < 1e-9


def test_pure_noise_has_the_moments_of_the_data(generator):
    points, x = stretched(generator, 50, 4), normals(generator, 3, 4)
    law, cov = wb.Empirical(points), torch.cov(points.T, correction=0)
    for alpha in (0.0, torch.zeros(3), torch.zeros(1, 4)):
        assert torch.equal(law.denoise(x, alpha, 2.0), law.mean.expand(3, 4))
        assert relative(law.posterior_cov(x, alpha, 2.0), cov.expand(3, 4, 4)) < 1e-13
        assert not law.jacobian(x, alpha, 2.0).any() and not law.divergence(x, alpha, 2.0).any()
        # D = mean + alpha Cov x / sigma^2 + O(alpha^2)
        assert relative(law.rate(x, alpha, 2.0, 1.0, 0.3), x @ cov / 4) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_overflows(dtype, generator):
    """A state at 1e6, noise of 1e-8, and both at once: the farthest point that way, or nearest."""
    points = normals(generator, 100, 3).to(dtype)
    law, far = wb.Empirical(points), 1e6 * torch.eye(3, dtype=dtype)
    for x, sigma in ((far, 1.0), (far, 1e-8), (points[:3], 1e-8), (far, 1e6)):
        _, mean, cov = by_differences(points, x, 1.0, sigma)
        tolerance = 1e-9 if dtype == torch.float64 else 3e-5
        assert (law.denoise(x, 1.0, sigma) - mean).abs().max() < tolerance
        assert (law.posterior_cov(x, 1.0, sigma) - cov).abs().max() < tolerance
        for name in ("log_prob", "score", "jacobian", "divergence", "hessian"):
            assert getattr(law, name)(x, 1.0, sigma).isfinite().all(), name
        assert law.rate(x, 1.0, sigma, 0.5, 0.5).isfinite().all()


def test_has_no_density_without_noise_and_no_flow(generator):
    law = wb.Empirical(normals(generator, 4, 2))
    x = torch.zeros(1, 2).double()
    for sigma in (0.0, torch.zeros(1), torch.tensor([[0.0, 1.0]])):
        with pytest.raises(ValueError, match=r"Empirical has no density at sigma = 0"):
            law.log_prob(x, 1.0, sigma)
        with pytest.raises(ValueError, match=r"sigma was 0: the score of this Empirical"):
            law.score(x, 1.0, sigma)
    with pytest.raises(NotImplementedError, match=r"Empirical has no closed-form probability flow"):
        law.flow(x, (1.0, 1.0), (1.0, 0.5))


# ---- derivatives ---------------------------------------------------------------------------------


def fourth_order(function, h: float) -> torch.Tensor:
    a, b, c, d = (function(k * h) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


@pytest.mark.parametrize("away", [0.0, 50.0])
def test_derivatives_by_differences(away, generator):
    points, d = away + stretched(generator, 300, 3), 3
    law, alpha, sigma = wb.Empirical(points), 0.8, uniform(generator, 0.1, 0.6)
    x = alpha * points[:30] + sigma * normals(generator, 30, d)
    h, axes = 1e-3 * sigma, torch.eye(d).double()
    jacobian = law.jacobian(x, alpha, sigma)
    numeric = [fourth_order(lambda e, v=v: law.denoise(x + e * v, alpha, sigma), h) for v in axes]
    assert (jacobian - torch.stack(numeric, 2)).abs().max() < 1e-7
    numeric = [fourth_order(lambda e, v=v: law.score(x + e * v, alpha, sigma), h) for v in axes]
    assert relative(law.hessian(x, alpha, sigma), torch.stack(numeric, 2)) < 1e-7
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(law.divergence(x, alpha, sigma), trace, rtol=1e-9, atol=1e-9)
    d_alpha, d_sigma = uniform(generator, -1, 1), uniform(generator, -1, 1)
    rate = law.rate(x, alpha, sigma, d_alpha, d_sigma)
    numeric = fourth_order(
        lambda e: law.denoise(x, alpha + e * d_alpha, sigma + e * d_sigma), h / (1 + away)
    )
    assert (rate - numeric).abs().max() < 1e-7 * max(1.0, rate.abs().max().item())
    # Tweedie of the second order, and a posterior covariance that is one.
    tweedie = (torch.eye(d).double() + sigma**2 * law.hessian(x, alpha, sigma)) / alpha
    assert (jacobian - tweedie).abs().max() < 1e-10
    cov = law.posterior_cov(x, alpha, sigma)
    assert (jacobian - alpha / sigma**2 * cov).abs().max() < 1e-12 * jacobian.abs().max()
    assert torch.equal(cov, cov.mT) or relative(cov, cov.mT) < 1e-14
    assert torch.linalg.eigvalsh(cov).min() > -1e-14 * cov.abs().max()


def test_a_second_point_that_hardly_weighs_keeps_its_digits():
    """Two points: J = r (1 - r) (a - b)^2 / sigma^2, down to r = 1e-12, far apart and close."""
    for ends, sigma in (([0.25, 1.25], 0.125), ([0.25, 0.25 + 2.0**-20], 2.0**-23)):
        points = tensor(ends).reshape(2, 1)
        law, gap = wb.Empirical(points), points[1] - points[0]
        for part in (0.47, 0.3, 0.1):
            x = points[:1] + part * gap
            odds = (gap * (2 * x - points.sum()) / (2 * sigma**2)).exp()
            spread = odds / (1 + odds) ** 2 * gap.square()
            expected = (spread / sigma**2).item()
            assert law.jacobian(x, 1.0, sigma).item() == pytest.approx(expected, rel=1e-9)
            assert law.divergence(x, 1.0, sigma).item() == pytest.approx(expected, rel=1e-9)
            # d logit / d sigma = -2 logit / sigma
            expected = (spread / gap * -2 * odds.log() / sigma).item()
            assert law.rate(x, 1.0, sigma, 0.0, 1.0).item() == pytest.approx(expected, rel=1e-9)


def test_autograd_goes_through(generator):
    """Backward and forward, to the closed-form Jacobian; also where differences decide."""
    points = stretched(generator, 200, 3)
    law = wb.Empirical(points)
    for sigma in (0.3, 1e-6):
        x = points[:4] + (sigma if sigma > 1e-3 else 0.0) * normals(generator, 4, 3)
        jacobian, v = law.jacobian(x, 1.0, sigma), normals(generator, 4, 3)
        leaf = x.clone().requires_grad_()
        (pulled,) = torch.autograd.grad(law.denoise(leaf, 1.0, sigma), leaf, v)
        assert (pulled - (v[:, None] @ jacobian)[:, 0]).abs().max() < 1e-9
        _, pushed = torch.func.jvp(lambda y, s=sigma: law.denoise(y, 1.0, s), (x,), (v,))
        assert (pushed - (jacobian @ v[..., None])[..., 0]).abs().max() < 1e-9
    single, leaf = law.to(torch.float32), x.float().requires_grad_()
    (pulled,) = torch.autograd.grad(single.denoise(leaf, 1.0, 0.5).sum(), leaf)
    column = law.jacobian(x, 1.0, 0.5).sum(1)
    logits = x.norm(dim=1).max() * points.norm(dim=1).max() / 0.5**2  # of weights, and so of slopes
    rounding = torch.finfo(torch.float32).eps * logits
    assert (pulled - column).abs().max() < 4 * rounding * column.abs().max()


# ---- one sample and its batch --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sample_is_worked_out_without_its_batch(dtype, generator):
    """Neighbours that need differences, far states and other levels change no digit that counts."""
    points = stretched(generator, 2000, 20).to(dtype)
    law, eps = wb.Empirical(points), torch.finfo(dtype).eps
    own = (points[:5].double() + 0.4 * normals(generator, 5, 20)).to(dtype)
    crowd = torch.cat([1e6 * own, own.flip(0), points[:300], own])
    alone = law.denoise(own, 1.0, 0.4)
    assert relative(law.denoise(crowd, 1.0, 0.4)[-5:], alone) < 50 * eps
    levels = torch.logspace(-9, 3, len(crowd), dtype=dtype)
    levels[-5:] = 0.4
    assert relative(law.denoise(crowd, 1.0, levels)[-5:], alone) < 1e3 * eps
    density = law.log_prob(crowd, 1.0, levels)[-5:]
    torch.testing.assert_close(density, law.log_prob(own, 1.0, 0.4), rtol=10 * eps, atol=1e-9)


@pytest.mark.parametrize(("piece", "cached", "largest"), [(64, 64, 64), (1 << 10, 1 << 9, 1 << 12)])
def test_however_the_work_is_cut(piece, cached, largest, monkeypatch, generator):
    """Points, batch and pairs in small pieces: the same answers."""
    # A dozen clusters of near points: at 1e-7 many of one cluster stay in doubt.
    centres = normals(generator, 12, 5)
    points = (centres[:, None] + 1e-7 * normals(generator, 12, 15, 5)).flatten(0, 1)
    x = points[::9] + 1e-7 * normals(generator, 20, 5)
    levels = torch.logspace(-8, 1, 20).double()

    def answers():
        out = []
        for law in (wb.Empirical(points), wb.Empirical(points.float())):
            y = x.to(law.dtype)
            for sigma in (1e-7, 1e-3, 0.7):
                out += [law.denoise(y, 1.0, sigma), law.log_prob(y, 1.0, sigma)]
                out += [law.posterior_cov(y, 1.0, sigma), law.divergence(y, 1.0, sigma)]
            out += [law.denoise(y, 1.0, levels), law.denoise(y, 1.0, sigma * torch.ones(1, 5))]
        return out

    whole = answers()
    for name, value in (("PIECE", piece), ("CACHED", cached), ("LARGEST", largest)):
        monkeypatch.setattr(table, name, value)
    for before, after in zip(whole, answers(), strict=True):
        scale = before.abs().max()
        eps = torch.finfo(before.dtype).eps
        assert (before - after).abs().max() <= 1e4 * eps * scale


# ---- points --------------------------------------------------------------------------------------


def test_points_that_repeat_are_named_and_counted(generator):
    points = normals(generator, 1000, 3, 2)
    assert wb.Empirical(points).notes == ()
    points[10:46] = points[500:501]
    points[3], points[4] = 0.0, -0.0  # equal numbers of unequal bytes
    law = wb.Empirical(points)
    assert law.notes == (
        "37 of 1000 points repeat another; a point counts as often as it is given.",
    )
    share = law.classify(points[500], 1.0, 1e-3)
    assert torch.equal(share.nonzero()[:, 0], torch.tensor([*range(10, 46), 500]))
    assert law.to(torch.float32).notes == law.notes
    lone = wb.Empirical(points[:1].expand(7, 3, 2))
    assert lone.notes[0].startswith("6 of 7") and lone.std < 1e-15
    x = normals(generator, 4, 3, 2)
    for level in ((1.0, 0.0), (0.5, 1.0), (0.0, 1.0)):
        assert relative(lone.denoise(x, *level), points[:1].expand(4, 3, 2)) < 1e-14


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
        (torch.tensor([[-math.inf, math.nan]]), ["points holds 2 values that are not finite"]),
        (tensor([[1e200]]), ["points reach 1e+200", "squares overflow"]),
    ],
)
def test_bad_points_are_refused_with_a_sentence(points, pieces):
    with pytest.raises(ValueError) as caught:
        wb.Empirical(points)
    for piece in pieces:
        assert piece in str(caught.value)


MEMORY = f"""{PEAK}
import torch, workbench as wb
torch.set_num_threads(1)
points = torch.rand(50_000, 64)
x = points[:1024] + 0.5 * torch.randn(1024, 64)
wb.Empirical(points[:100]).log_prob(x, 1.0, 1.0)  # what the libraries load
before = peak()
law = wb.Empirical(points)
law.denoise(x, 1.0, 1.0), law.denoise(x, 1.0, 0.01), law.denoise(x, 1.0, torch.ones(1024))
law.log_prob(x[:512], 1.0, 1.0), law.divergence(x[:64], 1.0, 0.01)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_bounded(record_property):
    """50 000 points and 1024 states: all their log-weights at once would be 205 MB, and once more
    their exponentials; 512 in float64 as many.
    """
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    beyond = int(done.stdout) / 2**20
    said = f"50 000 points of 13 MB, work of all kinds beyond them: {beyond:.0f} MB"
    record_property("measured", said)
    assert 1 < beyond < 200
