"""Mixtures against Gaussians, against torch.distributions, far away, in pieces."""

import math
import re

import pytest
import torch
from helpers import covariance, log_uniform, normals, relative, ring, states, uniform
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import workbench as wb
from workbench.denoisers import mixture

D, K = 3, 4
FIELDS = ("denoise", "score", "jacobian", "divergence", "hessian", "posterior_cov")


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
    for name in FIELDS:
        found, expected = (getattr(law, name)(x, 0.6, 0.8) for law in (with_it, without))
        assert relative(found, expected) < 1e-12, name
    torch.testing.assert_close(with_it.log_prob(x, 0.6, 0.8), without.log_prob(x, 0.6, 0.8))
    share = with_it.classify(x, 0.6, 0.8)
    assert share.shape == (10, K) and bool((share[:, -1] == 0).all())
    torch.testing.assert_close(share[:, :-1], without.classify(x, 0.6, 0.8))
    assert with_it.notes == ("1 of 4 components have weight 0 and are not there.",)
    assert without.notes == () and with_it.noised(0.6, 0.8).notes == with_it.notes


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


@pytest.mark.parametrize("kind", ["equal", "isotropic", "diagonal", "full"])
@pytest.mark.parametrize("size", [1e6, 1e150])
def test_however_far_one_component_answers(kind, size, parts, generator):
    weights, means, covs = parts
    short, matrices = covs[kind]
    law = wb.Mixture(weights, means, short)
    x = size * torch.nn.functional.normalize(normals(generator, 5, D), dim=1)
    noisy = 0.36 * matrices + 0.64 * torch.eye(D).double()
    if kind == "equal":
        logits = x / size @ means.T
    else:
        logits = -torch.einsum("ni,kij,nj->nk", x / size, torch.linalg.inv(noisy), x / size)
    best = logits.argmax(1)
    torch.testing.assert_close(law.classify(x, 0.6, 0.8), torch.eye(K).double()[best])
    each = torch.full((5,), 0.8, dtype=torch.float64)
    for i in range(5):
        one = wb.Gaussian(means[best[i]], matrices[best[i]])
        for name in (*FIELDS, "log_prob"):
            expected, rtol = getattr(one, name)(x[i], 0.6, 0.8), 1e-9
            if name == "log_prob":
                expected, rtol = expected + weights[best[i]].log(), 1e-13
            if size == 1e150 and kind == "equal" and name not in ("denoise", "score"):
                continue  # who is nearest is lost in the size of the logits
            for found in (getattr(law, name)(x[i], 0.6, 0.8), getattr(law, name)(x, 0.6, each)[i]):
                assert relative(found, expected) < rtol, name


@pytest.mark.parametrize("kind", ["equal", "isotropic", "diagonal", "full"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (torch.float64, 1e200)])
def test_where_squares_overflow_the_answers_are_finite(dtype, size, kind, parts, generator):
    weights, means, covs = parts
    law = wb.Mixture(weights, means, covs[kind][0]).to(dtype)
    x = (size * torch.nn.functional.normalize(normals(generator, 5, D), dim=1)).to(dtype)
    for sigma in (0.8, torch.full((5,), 0.8, dtype=dtype)):
        for name in ("denoise", "score", "classify"):
            assert getattr(law, name)(x, 0.6, sigma).isfinite().all(), name
        assert bool((law.log_prob(x, 0.6, sigma) < -1e37).all())


def test_reference_values_of_a_full_mixture():
    """Three full components under the linear VP schedule at t = 0.3: values of an independent
    program, its derivatives checked there by differences and its density by quadrature.
    """
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.5, -2.0]]).double()
    covs = [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[0.05, 0.0], [0.0, 0.6]]]
    law = wb.Mixture(weights, means, torch.tensor(covs, dtype=torch.float64))
    c = wb.VP(0.1, 20.0)(0.3)
    for x, density, score, hessian, share, denoised in REFERENCE:
        x = torch.tensor(x, dtype=torch.float64)
        assert law.log_prob(x, c.alpha, c.sigma).item() == pytest.approx(density, rel=1e-12)
        for found, expected in (
            (law.score(x, c.alpha, c.sigma), score),
            (law.hessian(x, c.alpha, c.sigma), hessian),
            (law.classify(x, c.alpha, c.sigma), share),
            (law.denoise(x, c.alpha, c.sigma), denoised),
        ):
            expected = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


REFERENCE = [
    ([0.0, 0.0], -2.5273740453967006, [-0.21357442960114262, 0.07377726345100274],
     [[0.4846711139371441, 0.1851278422699469], [0.1851278422699469, -0.6207122322400507]],
     [0.4844679401235598, 0.31741260081167266, 0.19811945906476752],
     [-0.20479356967013493, 0.0707439985715593]),
    ([-1.5, 0.5], -2.4654668684903003, [0.4179730847294633, -0.730639039308749],
     [[-1.1315661338718623, 0.14812077277154634], [0.14812077277154634, -1.3751911558597465]],
     [0.9847764199262217, 0.009361062678181776, 0.0058625173955964],
     [-1.9818656596147015, 0.09361841202450705]),
    ([1.2, -1.0], -3.3607007216289615, [-1.0802101330830625, 0.5370115984198092],
     [[-1.1413406030811422, 0.5341081692049781], [0.5341081692049781, 0.08781779721042976]],
     [0.02366293840231542, 0.32739196966103773, 0.6489450919366468],
     [0.8703248487006285, -1.073503181681946]),
    ([6.0, -5.0], -37.30165444065012, [-8.997041849965928, 4.5930657056960715],
     [[-1.35306657909382, 0.2906317563026448], [0.2906317563026448, -0.8377057866357056]],
     [1.0449445494975605e-09, 0.05720041733882261, 0.9427995816162341],
     [0.9034779810419669, -3.5379536740382203]),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["equal", "isotropic", "diagonal", "full"])
def test_who_answers_is_bayes_rule(kind, parts, generator):
    weights, means, covs = parts
    short, matrices = covs[kind]
    law, x = wb.Mixture(weights, means, short), 3 * normals(generator, 12, D)
    sigmas = 0.2 + torch.rand(12, generator=generator).double()
    for level in ((0.7, 0.4), (0.7, sigmas), (0.0, 1.0), (0.7, 1e-9)):
        joint = torch.stack(
            [wb.Gaussian(m, c).log_prob(x, *level) for m, c in zip(means, matrices, strict=True)], 1
        )
        expected = (joint + weights.log()).softmax(1)
        torch.testing.assert_close(law.classify(x, *level), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full", "rank 2"])
def test_the_fast_way_and_the_careful_way_agree(kind, parts, generator, monkeypatch):
    """One noise level goes through stacked products; without them, through every component."""
    weights, means, covs = parts
    if kind == "rank 2":
        bases, spread = torch.linalg.qr(normals(generator, K, D, 2)).Q, 0.1 + torch.rand(K, 2)
        law = wb.Mixture.low_rank(weights, means, bases, spread.double(), 0.01)
    else:
        law = wb.Mixture(weights, means, covs[kind][0])
    x = 3 * normals(generator, 50, D)
    levels = [(0.8, 0.3), (1.0, 1e-2), (0.1, 5.0), (1.0, 0.0)]
    names = ("denoise", "score", "log_prob", "classify")
    fast = [getattr(law, name)(x, *level) for name in names for level in levels]
    monkeypatch.setattr(mixture, "table", lambda *given: None)
    careful = [getattr(law, name)(x, *level) for name in names for level in levels]
    for a, b in zip(fast, careful, strict=True):
        assert relative(a, b) < 1e-9


def test_between_close_components_at_little_noise(generator):
    """Logits of 1e12 that cancel: half way between two points both speak, whatever the form."""
    gap, sigma = 1e-6, 1e-6
    points = [[1.0, 0.0], [1.0 + gap, 0.0], [1.0 + 0.5 * gap, 1e-7]]
    x = torch.tensor(points, dtype=torch.float64)
    means = x[:2]
    half = torch.full((2,), 0.5, dtype=torch.float64)
    ahead = 1 / (1 + math.exp(-0.5 * gap**2 / sigma**2))
    expected = torch.tensor([ahead, 1 - ahead, 0.5], dtype=torch.float64)
    eye = torch.eye(2).double().repeat(2, 1, 1)
    zeros = torch.zeros(2).double()
    for covs in (zeros, zeros[:, None].expand(2, 2), 0 * eye):
        law = wb.Mixture(half, means, covs)
        torch.testing.assert_close(law.classify(x, 1.0, sigma)[:, 0], expected, rtol=1e-8, atol=0)


def test_ten_thousand_components(generator):
    """In bounded memory, and as the sum over all of them says."""
    count = 10_000
    means, spread = (
        3 * normals(generator, count, 2),
        0.01 + 0.1 * torch.rand(count, 2, generator=generator).double(),
    )
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    x, eye = 2 * normals(generator, 3, 2), torch.eye(2).double()
    for covs in (spread[:, 0], spread, torch.diag_embed(spread)):
        law = wb.Mixture(weights, means, covs)
        level = 0.49 * (covs[:, None] if covs.ndim == 1 else spread).expand(-1, 2) + 0.01
        apart = x[:, None] - 0.7 * means
        logits = -0.5 * (apart**2 / level + level.log()).sum(-1)
        share = logits.softmax(1)
        scores = -apart / level
        score = (share[..., None] * scores).sum(1)
        assert relative(law.classify(x, 0.7, 0.1), share) < 1e-9
        assert relative(law.score(x, 0.7, 0.1), score) < 1e-10
        centred = scores - score[:, None]
        outer = torch.einsum("nk,nki,nkj->nij", share, centred, centred)
        hessian = outer - (share @ (1 / level))[..., None] * eye
        assert relative(law.hessian(x, 0.7, 0.1), hessian) < 1e-9
        jacobian = (eye + 0.01 * hessian) / 0.7
        assert relative(law.jacobian(x, 0.7, 0.1), jacobian) < 1e-9
        trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
        assert relative(law.divergence(x, 0.7, 0.1), trace) < 1e-9


def test_singular_components_are_the_limit_of_thin_ones(generator):
    """Planes in space: at sigma = 0 the nearest plane answers, on it the state stays."""
    bases = torch.linalg.qr(normals(generator, 3, 4, 2)).Q
    variances = 0.5 + torch.rand(3, 2, generator=generator)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    means = 3 * normals(generator, 3, 4)
    flat = wb.Mixture.low_rank(weights, means, bases, variances.double())
    dense = wb.Mixture(weights, means, flat.covs)
    x = means + (bases @ normals(generator, 3, 2, 1))[..., 0]  # one on each
    assert relative(flat.denoise(x, 1.0, 0.0), x) < 1e-12
    off = x + 0.05 * normals(generator, 3, 4)
    for law in (flat, dense):
        assert relative(law.denoise(x, 1.0, 0.0), law.denoise(x, 1.0, 1e-5)) < 1e-6
        for name in ("denoise", "jacobian", "posterior_cov"):
            found, limit = (getattr(law, name)(off, 1.0, s) for s in (0.0, 1e-5))
            assert (found - limit).abs().max() < 1e-6, name
        torch.testing.assert_close(law.jacobian(x, 1.0, 0.0), bases @ bases.mT, rtol=0, atol=1e-9)
        for call, what in ((law.log_prob, "density"), (law.score, "score"), (law.hessian, "score")):
            with pytest.raises(ValueError, match=rf"no {what} at sigma = 0.*direction without"):
                call(x, 1.0, 0.0)
        assert law.score(off, 1.0, 1e-3).isfinite().all()
    told = r"[1-6] of 12 eigenvalues of the covariance are zero but for rounding"
    assert all(re.match(told, note) for note in dense.notes)  # none are where all come out as 0


def test_low_rank_is_full_with_the_same_covariances(generator):
    bases = torch.linalg.qr(normals(generator, K, D, 2)).Q
    variances, rest = (
        0.2 + torch.rand(K, 2, generator=generator).double(),
        0.05 + torch.rand(K, generator=generator).double(),
    )
    means, weights = 2 * normals(generator, K, D), torch.full((K,), 0.25, dtype=torch.float64)
    law = wb.Mixture.low_rank(weights, means, bases, variances, rest)
    inside = bases @ torch.diag_embed(variances) @ bases.mT
    outside = torch.eye(D).double() - bases @ bases.mT
    covs = inside + rest[:, None, None] * outside
    torch.testing.assert_close(law.covs, covs)
    twin, x = wb.Mixture(weights, means, covs), 2 * normals(generator, 9, D)
    for name in FIELDS:
        assert relative(getattr(law, name)(x, 0.7, 0.3), getattr(twin, name)(x, 0.7, 0.3)) < 1e-10
    assert law.std == pytest.approx(twin.std)
    assert repr(law) == "Mixture(4 rank-2 components in 3 dimensions)"
    one = wb.Mixture.low_rank(weights, means, bases, variances, 0.3)
    torch.testing.assert_close(one.covs, inside + 0.3 * outside)
    whole = torch.linalg.qr(normals(generator, K, D, D)).Q
    complete = wb.Mixture.low_rank(weights, means, whole, variances.repeat(1, 2)[:, :D])
    assert repr(complete) == "Mixture(4 full components in 3 dimensions)"


def test_in_a_common_eigenbasis_all_are_diagonal(generator):
    basis = torch.linalg.qr(normals(generator, D, D)).Q
    variances, weights = (
        0.1 + torch.rand(K, D, generator=generator).double(),
        torch.full((K,), 0.25).double(),
    )
    covs = basis @ torch.diag_embed(variances) @ basis.T
    law = wb.Mixture(weights, normals(generator, K, D), 0.5 * (covs + covs.mT))
    turned = law.transformed(basis)
    assert turned.covs.shape == (K, D)
    torch.testing.assert_close(turned.covs, variances)
    assert turned.transformed(basis.T).covs.shape == (K, D, D)
    other = torch.linalg.qr(normals(generator, D, D)).Q
    assert law.transformed(other).covs.shape == (K, D, D)


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
    x = 3 * normals(generator, 31, D)
    levels = 0.1 + torch.rand(31, generator=generator, dtype=torch.float64)
    calls = [(x, 1.0, 0.4), (x, levels, 0.5), (x, 0.7, levels), (x, levels, levels.flip(0))]
    calls.append((x, 1.0, 0.1 + torch.rand(1, D, generator=generator).double()))
    calls.append((x, 1.0, 0.1 + torch.rand(31, D, generator=generator).double()))
    names = (*FIELDS, "log_prob", "classify")
    whole = [[getattr(law, name)(*call) for name in names] for call in calls]
    rates = [law.rate(*call, levels, -0.3) for call in calls]
    monkeypatch.setattr(mixture, "BLOCK", 7 * K * D)
    for call, wanted, rate in zip(calls, whole, rates, strict=True):
        for name, expected in zip(names, wanted, strict=True):
            assert relative(getattr(law, name)(*call), expected) < 1e-12, name
        assert relative(law.rate(*call, levels, -0.3), rate) < 1e-12


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_a_fit_is_one_of_each_class(covariance, generator):
    points, labels = normals(generator, 60, 2, 2), torch.arange(60) % 3 + 4
    points[labels == 5] += 3
    law = wb.Mixture.fit(points, labels, covariance)
    assert law.means.shape == (3, 2, 2) and law.notes == ()
    torch.testing.assert_close(law.weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    for k, label in enumerate((4, 5, 6)):
        group = points[labels == label].flatten(1)
        torch.testing.assert_close(law.means[k].flatten(), group.mean(0))
        cov = torch.cov(group.T, correction=0)
        expected = {"full": cov, "diagonal": cov.diag(), "isotropic": cov.diag().mean()}
        torch.testing.assert_close(law.covs[k], expected[covariance])
    shrunk = wb.Mixture.fit(points, labels, covariance, shrinkage=0.25)
    mean = law.covs.diagonal(dim1=1, dim2=2).mean(1) if covariance == "full" else law.covs
    mean = mean.reshape(3, -1).mean(1)
    target = {"full": torch.eye(4).double(), "diagonal": torch.ones(4), "isotropic": 1.0}
    for k in range(3):
        expected = 0.75 * law.covs[k] + 0.25 * mean[k] * target[covariance]
        torch.testing.assert_close(shrunk.covs[k], expected)
    assert len(shrunk.notes) == 3 and shrunk.notes[0].startswith("Class 4: the ")


def test_a_fit_says_what_its_classes_lack(generator):
    points = normals(generator, 12, 5)
    labels = torch.tensor([0] * 6 + [2] * 4 + [3] * 2)
    points[11] = points[10]
    law = wb.Mixture.fit(points, labels)
    assert law.notes[0] == "No point has label 1: no component stands for it."
    assert "Class 2: the covariance of 4 points in 5 dimensions has rank 3" in law.notes[1]
    assert law.notes[2] == "Class 3: 1 of 2 points are exact copies of others."
    assert len(law.weights) == 3
    single = wb.Mixture.fit(points[:3], [7, 7, 9])
    assert "Class 9: it has one point, so its component has no variance." in single.notes
    assert single.denoise(points[:3], 1.0, 0.5).isfinite().all()
    far = wb.Mixture.fit(points, labels * 1000)  # labels that count nothing
    assert not any("No point" in note for note in far.notes)
    shrunk = wb.Mixture.fit(points, labels, shrinkage="auto")
    assert any("Ledoit and Wolf" in note for note in shrunk.notes)


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
B = torch.eye(3).double()[:, :1].repeat(2, 1, 1)


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
        (lambda: wb.Mixture.low_rank(W, M, B[:1], V[:, None]),
         ValueError, ["bases has shape (1, 3, 1)", "variances (2, 1)", "(2, 3, r) and (2, r)"]),
        (lambda: wb.Mixture.low_rank(W, M, 2 * B, V[:, None]),
         ValueError, ["columns of bases are off orthonormal by 3", "qr"]),
        (lambda: wb.Mixture.low_rank(W, M, B, -V[:, None]),
         ValueError, ["a variance of variances was -1", "at least 0"]),
        (lambda: wb.Mixture.low_rank(W, M, B, V[:, None], rest=-0.5),
         ValueError, ["a variance of rest was -0.5", "at least 0"]),
        (lambda: wb.Mixture.low_rank(W, M, B, V[:, None], rest=torch.ones(3).double()),
         ValueError, ["rest has shape (3,)", "2 components"]),
        (lambda: wb.Mixture.fit(M, [0, 1], "round"),
         ValueError, ["covariance was 'round'", '"full", "diagonal" or "isotropic"']),
        (lambda: wb.Mixture.fit(M, [0, 1, 2]),
         ValueError, ["labels has shape (3,)", "each of the 2 points"]),
        (lambda: wb.Mixture.fit(M, torch.tensor([0.0, 1.0])),
         ValueError, ["torch.float32", "a whole number"]),
        (lambda: wb.Mixture.fit(M * math.nan, [0, 1]),
         ValueError, ["points holds 6", "not finite"]),
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
