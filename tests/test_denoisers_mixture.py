"""Mixtures against Gaussians, against torch.distributions, far away, in pieces."""

import math

import pytest
import torch
from helpers import covariance, log_uniform, normals, relative, ring, states, uniform
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import workbench as wb
from workbench.denoisers import mixture

D, K = 3, 4


@pytest.fixture
def parts(generator):
    """Weights, means, and covariances of each kind with their matrices."""
    weights = 0.2 + torch.rand(K, generator=generator, dtype=torch.float64)
    equal = torch.full((K,), uniform(generator, 0.1, 1)).double()
    one, each = 0.05 + normals(generator, K) ** 2, 0.05 + normals(generator, K, D) ** 2
    full = torch.stack([covariance(generator, D) for _ in range(K)])
    eye = torch.eye(D).double()
    covs = {
        "equal": (equal, equal[:, None, None] * eye),
        "isotropic": (one, one[:, None, None] * eye),
        "diagonal": (each, torch.diag_embed(each)),
        "full": (full, full),
    }
    return weights / weights.sum(), 2 * normals(generator, K, D), covs


@pytest.mark.parametrize("kind", ["equal", "isotropic", "diagonal", "full"])
def test_density_and_posterior_equal_those_of_torch(kind, parts, generator):
    weights, means, covs = parts
    short, matrices = covs[kind]
    alpha, sigma = uniform(generator, 0.1, 2), uniform(generator, 0.1, 2)
    law, x = wb.Mixture(weights, means, short), 3 * normals(generator, 30, D)
    noisy = alpha**2 * matrices + sigma**2 * torch.eye(D).double()
    components = MultivariateNormal(alpha * means, noisy)
    truth = MixtureSameFamily(Categorical(weights), components)
    torch.testing.assert_close(law.log_prob(x, alpha, sigma), truth.log_prob(x))
    data = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, matrices))
    torch.testing.assert_close(law.log_prob(x), data.log_prob(x), rtol=1e-9, atol=1e-9)
    share = (components.log_prob(x[:, None]) + weights.log()).softmax(-1)
    each = [
        wb.Gaussian(m, c).denoise(x, alpha, sigma) for m, c in zip(means, matrices, strict=True)
    ]
    expected = (share[..., None] * torch.stack(each, 1)).sum(1)
    assert relative(law.denoise(x, alpha, sigma), expected) < 1e-11
    torch.testing.assert_close(law.mean, weights @ means)
    second = (weights[:, None, None] * (matrices + means[:, :, None] * means[:, None])).sum(0)
    variance = (second - law.mean[:, None] * law.mean).trace() / D
    assert law.std == pytest.approx(variance.sqrt().item(), rel=1e-12)


def test_one_component_is_a_gaussian(parts, generator):
    _, means, covs = parts
    x = 3 * normals(generator, 10, D)
    for short, matrices in covs.values():
        one = wb.Mixture(torch.ones(1).double(), means[:1], short[:1])
        gaussian = wb.Gaussian(means[0], matrices[0])
        assert relative(one.denoise(x, 0.6, 0.8), gaussian.denoise(x, 0.6, 0.8)) < 1e-12
        torch.testing.assert_close(one.log_prob(x, 0.6, 0.8), gaussian.log_prob(x, 0.6, 0.8))


def test_every_kind_of_covariance_that_can_be_isotropic(parts, generator):
    weights, means, covs = parts
    x = 3 * normals(generator, 20, D)
    for kind in ("equal", "isotropic"):
        short, matrices = covs[kind]
        law = wb.Mixture(weights, means, short)
        for other in (short[:, None].expand(K, D), matrices):
            twin = wb.Mixture(weights, means, other)
            for level in ((0.6, 0.8), (1.0, 0.0), (1.0, 1e-3), (1e-3, 1.0)):
                assert relative(twin.denoise(x, *level), law.denoise(x, *level)) < 1e-10
                torch.testing.assert_close(twin.log_prob(x, *level), law.log_prob(x, *level))


@pytest.mark.parametrize("kind", ["equal", "isotropic", "diagonal", "full"])
def test_a_component_without_weight_is_not_there(kind, parts, generator):
    weights, means, covs = parts
    short, x = covs[kind][0], 3 * normals(generator, 10, D)
    weights = torch.cat([weights[:-1] / weights[:-1].sum(), torch.zeros(1).double()])
    with_it = wb.Mixture(weights, means, short)
    without = wb.Mixture(weights[:-1], means[:-1], short[:-1])
    assert relative(with_it.denoise(x, 0.6, 0.8), without.denoise(x, 0.6, 0.8)) < 1e-12
    torch.testing.assert_close(with_it.log_prob(x, 0.6, 0.8), without.log_prob(x, 0.6, 0.8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1e-3, 0.5])
def test_far_from_all_modes_the_nearest_one_speaks(dtype, sigma, generator):
    """At 10^4 times the size of the data every exponential has underflowed."""
    law = ring().to(dtype)
    turn = (torch.arange(8) + 0.6 * torch.rand(8, generator=generator) - 0.3) * math.pi / 4
    x = 1e4 * torch.stack([turn.cos(), turn.sin()], 1).to(dtype)
    gain = 0.01 / (0.01 + sigma**2)
    nearest = law.means.double()
    expected = nearest + gain * (x.double() - nearest)
    assert relative(law.denoise(x, 1.0, sigma), expected) < 4 * torch.finfo(dtype).eps
    level = 0.01 + sigma**2
    offset = (x.double() - nearest).square().sum(1)
    density = -0.5 * offset / level - math.log(8 * 2 * math.pi * level)
    torch.testing.assert_close(law.log_prob(x, 1.0, sigma).double(), density, rtol=2e-7, atol=0)


def test_points_and_clouds_together_without_noise(generator):
    """At sigma = 0 a state that is no data point is of the clouds, one that is, of its point."""
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0]]).double()
    law = wb.Mixture(torch.tensor([0.5, 0.5]).double(), means, torch.tensor([0.0, 1.0]).double())
    x = torch.stack([means[0], means[1] + normals(generator, 2)])
    assert relative(law.denoise(x, 1.0, 0.0), x) < 1e-12
    assert relative(law.denoise(x, 1.0, 1e-7), x) < 1e-6


@pytest.mark.parametrize("kind", ["equal", "isotropic", "diagonal", "full"])
def test_pieces_of_a_batch_make_the_whole(kind, parts, generator, monkeypatch):
    weights, means, covs = parts
    law = wb.Mixture(weights, means, covs[kind][0])
    x = 3 * normals(generator, 101, D)
    levels = 0.1 + torch.rand(101, generator=generator, dtype=torch.float64)
    calls = [(x, 1.0, 0.4), (x, levels, 0.5), (x, 0.7, levels), (x, levels, levels.flip(0))]
    if kind != "full":
        calls.append((x, 1.0, 0.1 + torch.rand(1, D, generator=generator).double()))
    whole = [(law.denoise(*call), law.log_prob(*call)) for call in calls]
    monkeypatch.setattr(mixture, "BLOCK", 7 * K * D)
    for call, (denoised, density) in zip(calls, whole, strict=True):
        assert relative(law.denoise(*call), denoised) < 1e-13
        assert relative(law.log_prob(*call), density) < 1e-13


def test_from_data(generator):
    ringed, normal, moons = wb.datasets.ring(), wb.datasets.gaussian(), wb.datasets.moons()
    assert wb.Mixture.from_data(ringed) is ringed.law
    x = normals(generator, 5, 2)
    law = wb.Mixture.from_data(normal)
    assert relative(law.denoise(x, 1.0, 0.5), normal.law.denoise(x, 1.0, 0.5)) < 1e-12
    law = wb.Mixture.from_data(moons)
    for label in (0, 1):
        group = moons.points[moons.labels == label]
        torch.testing.assert_close(law.means[label], group.mean(0))
        torch.testing.assert_close(law.covs[label], torch.cov(group.T, correction=0))
        assert law.weights[label].item() == pytest.approx(len(group) / len(moons.points))
    with pytest.raises(ValueError, match=r"cloud is neither.*labelled.*choose denoiser Gaussian"):
        wb.Mixture.from_data(wb.datasets.Data("cloud", x))


def test_ring_at_any_noise_level(generator):
    """Its score, at a state and level of every size, by differences of its log-density."""
    law = ring()
    for rho in (0.02, 0.3, log_uniform(generator, 1, 100)):
        x = states(generator, law, 10, 1.0, rho)
        score = (law.denoise(x, 1.0, rho) - x) / rho**2
        step = 1e-4 * (0.1 + rho)
        for axis in torch.eye(2).double():
            ahead, behind = (
                law.log_prob(x + step * axis, 1.0, rho),
                law.log_prob(x - step * axis, 1.0, rho),
            )
            assert relative((ahead - behind) / (2 * step), score @ axis) < 1e-5


W, M, V = torch.tensor([0.5, 0.5]).double(), torch.zeros(2, 3).double(), torch.ones(2).double()


@pytest.mark.parametrize(
    ("make", "error", "pieces"),
    [
        (lambda: wb.Mixture(W * 1.1, M, V), ValueError, ["weights sum to 1.1", "sum to 1"]),
        (lambda: wb.Mixture(W * 1.0000001, M, V), ValueError, ["sum to 1.0000001", "sum to 1"]),
        (lambda: wb.Mixture(W + torch.tensor([1.0, -1.0]), M, V),
         ValueError, ["a weight was -0.5", "at least 0"]),
        (lambda: wb.Mixture(W[:1], M, V), ValueError, ["weights has shape (1,)", "must be (2,)"]),
        (lambda: wb.Mixture(W, M[0], V), ValueError, ["means has shape (3,)", "(K, *event)"]),
        (lambda: wb.Mixture(W, M, torch.ones(4).double()),
         ValueError, ["covs has shape (4,)", "(2,), (2, 3) or (2, 3, 3)"]),
        (lambda: wb.Mixture(W, M, -V), ValueError, ["variance of covs was -1", "at least 0"]),
        (lambda: wb.Mixture(W, M, -torch.eye(3).double().repeat(2, 1, 1)),
         ValueError, ["cov has an eigenvalue of -1", "positive semi-definite"]),
        (lambda: wb.Mixture(W, M * math.nan, V), ValueError, ["means holds 6", "not finite"]),
        (lambda: wb.Mixture(W * math.nan, M, V), ValueError, ["weights holds", "not finite"]),
        (lambda: wb.Mixture(W, M, V * math.inf), ValueError, ["covs holds", "not finite"]),
        (lambda: wb.Mixture(W.float(), M, V), TypeError, ["weights is float32", "float64"]),
        (lambda: wb.Mixture(W, M, V.float()), TypeError, ["covs is float32", "float64"]),
    ],
)  # fmt: skip
def test_bad_laws_are_refused_with_a_sentence(make, error, pieces):
    with pytest.raises(error) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


def test_no_density_without_noise_where_a_component_is_a_point():
    law = wb.Mixture(W, M, torch.tensor([0.0, 1.0]).double())
    with pytest.raises(ValueError, match=r"no density at sigma = 0.*Ask at sigma > 0"):
        law.log_prob(M)


def test_a_mixture_has_no_flow_in_closed_form():
    with pytest.raises(
        NotImplementedError, match=r"Mixture has no .* only a Gaussian .*wb\.sample"
    ):
        ring().flow(torch.zeros(1, 2).double(), (1.0, 1.0), (1.0, 0.1))
