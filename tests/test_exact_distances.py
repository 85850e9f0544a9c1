"""Distances between Gaussians against textbook formulas, in every form a Gaussian has."""

import itertools
import math

import pytest
import torch
from helpers import covariance, normals, uniform

import workbench as wb
from workbench.exact.distances import kl, w2, w2_floor, w2_null

D = 6


def low_rank(generator, rank: int, rest: float, mean=None) -> wb.Gaussian:
    basis = torch.linalg.qr(normals(generator, D, rank)).Q
    mean = normals(generator, D) if mean is None else mean
    variances = 0.2 + 2 * torch.rand(rank, generator=generator, dtype=torch.float64)
    return wb.Gaussian.low_rank(mean, basis, variances, rest)


#: Every form of a Gaussian in six dimensions; those of "thin" have no density.
FORMS = {
    "full": lambda g: wb.Gaussian(normals(g, D), covariance(g, D)),
    "diagonal": lambda g: wb.Gaussian(normals(g, D), 0.1 + normals(g, D) ** 2),
    "isotropic": lambda g: wb.Gaussian(normals(g, D), uniform(g, 0.1, 3)),
    "rank-2-and-rest": lambda g: low_rank(g, 2, 0.3),
    "rank-5-and-rest": lambda g: low_rank(g, 5, 0.05),
    "rank-1-thin": lambda g: low_rank(g, 1, 0.0),
    "rank-4-thin": lambda g: low_rank(g, 4, 0.0),
    "diagonal-thin": lambda g: wb.Gaussian(normals(g, D), torch.arange(6).double()),
    "point-thin": lambda g: wb.Gaussian(normals(g, D), 0.0),
}
PAIRS = list(itertools.product(FORMS, FORMS))


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_w2_is_the_bures_distance(one, other, generator):
    a, b = FORMS[one](generator), FORMS[other](generator)
    inner = root(root(a.cov) @ b.cov @ root(a.cov))
    square = (a.mean - b.mean).square().sum() + (a.cov + b.cov - 2 * inner).trace()
    assert w2(a, b) == pytest.approx(math.sqrt(square), rel=1e-7)
    assert w2(a, b) == pytest.approx(w2(b, a), rel=1e-12)


def test_w2_of_laws_that_hardly_differ(generator, record_property):
    """The textbook formula loses half of the digits here; this one does not."""
    a = wb.Gaussian(normals(generator, D), covariance(generator, D))
    turn = torch.linalg.qr(normals(generator, D, D)).Q
    for epsilon in (1e-3, 1e-7, 1e-11):
        grown = wb.Gaussian(a.mean, a.cov * (1 + epsilon) ** 2)
        wanted = epsilon * a.cov.trace().sqrt().item()
        got = w2(a, grown)
        assert got == pytest.approx(wanted, rel=1e-3, abs=0)
        pair = (wb.Gaussian(turn @ g.mean, turn @ g.cov @ turn.T) for g in (a, grown))
        assert w2(*pair) == pytest.approx(wanted, rel=1e-3, abs=0)
        record_property("measured", f"w2 of {wanted:.3g} is off by {abs(got / wanted - 1):.1e}")
    assert w2(a, a) == 0.0


def test_w2_in_many_dimensions_needs_no_large_matrix(generator):
    """A hundred thousand dimensions, of which each law knows two."""
    d = 100_000
    laws = []
    for _ in range(2):
        basis = torch.linalg.qr(normals(generator, d, 2)).Q
        variances = torch.tensor([3.0, 1.0]).double()
        laws.append(wb.Gaussian.low_rank(torch.zeros(d).double(), basis, variances, 0.5))
    small = torch.linalg.qr(torch.cat([g.basis for g in laws], 1)).Q
    inside = [small.T @ (g.basis * (g.variances - 0.5)) @ g.basis.T @ small for g in laws]
    zero, eye = torch.zeros(4).double(), 0.5 * torch.eye(4).double()
    wanted = w2(*(wb.Gaussian(zero, 0.5 * (c + c.T) + eye) for c in inside))
    assert w2(*laws) == pytest.approx(wanted, rel=1e-9)
    assert kl(*laws) == pytest.approx(
        kl(*(wb.Gaussian(zero, 0.5 * (c + c.T) + eye) for c in inside)), rel=1e-9
    )


@pytest.mark.parametrize(("one", "other"), [p for p in PAIRS if "thin" not in p[0] + p[1]])
def test_kl_is_that_of_torch(one, other, generator):
    a, b = FORMS[one](generator), FORMS[other](generator)
    normal = torch.distributions.MultivariateNormal
    wanted = torch.distributions.kl_divergence(normal(a.mean, a.cov), normal(b.mean, b.cov))
    assert kl(a, b) == pytest.approx(wanted.item(), rel=1e-9)
    assert kl(a, a) == pytest.approx(0.0, abs=1e-13)


@pytest.mark.parametrize(("one", "other"), [p for p in PAIRS if "thin" in p[0] + p[1]])
def test_kl_is_infinite_between_laws_in_different_subspaces(one, other, generator):
    a, b = FORMS[one](generator), FORMS[other](generator)
    assert kl(a, b) == math.inf
    if one != other or one.startswith("rank"):
        assert kl(a, wb.Gaussian(a.mean, b.cov)) == math.inf
    assert kl(a, a) == pytest.approx(0.0, abs=1e-13)


def test_kl_within_a_common_subspace(generator):
    """Two thin laws in one affine subspace, given by different bases, are compared in it."""
    basis = torch.linalg.qr(normals(generator, D, 3)).Q
    mean = normals(generator, D)
    flat = [wb.Gaussian(normals(generator, 3), covariance(generator, 3)) for _ in range(2)]
    laws = [wb.Gaussian(mean + basis @ g.mean, basis @ g.cov @ basis.T) for g in flat]
    assert kl(*laws) == pytest.approx(kl(*flat), rel=1e-7)
    turned = torch.linalg.qr(basis @ covariance(generator, 3)).Q  # the same span
    inside = turned.T @ laws[0].cov @ turned
    values, vectors = torch.linalg.eigh(inside)
    thin = wb.Gaussian.low_rank(laws[0].mean, turned @ vectors, values)
    assert kl(thin, laws[1]) == pytest.approx(kl(*flat), rel=1e-7)
    assert w2(thin, laws[1]) == pytest.approx(w2(*flat), rel=1e-7)
    outside = normals(generator, D)
    outside -= basis @ (basis.T @ outside)
    assert kl(wb.Gaussian(laws[0].mean + 1e-6 * outside, laws[0].cov), laws[1]) == math.inf
    # Diagonal laws that live on the same axes, and on others.
    on = [
        wb.Gaussian(torch.zeros(3).double(), torch.tensor(v).double())
        for v in ((1, 0, 2), (3, 0, 4))
    ]
    gap = [1 / 3, 2 / 4]
    assert kl(*on) == pytest.approx(sum(0.5 * (x - 1 - math.log(x)) for x in gap))
    elsewhere = wb.Gaussian(torch.zeros(3).double(), torch.tensor([1, 1, 0]).double())
    assert kl(on[0], elsewhere) == math.inf


def test_kl_of_laws_that_hardly_differ():
    """Second order in the difference, with digits left."""
    zero = torch.zeros(4, dtype=torch.float64)
    a, b = wb.Gaussian(zero, 1.0), wb.Gaussian(zero, zero + 1 + 1e-6)
    assert kl(a, b) == pytest.approx(4 * 0.25e-12, rel=1e-5, abs=0)


def test_the_floor_is_what_samples_show(generator, record_property):
    """Fits to 500 samples in 3 dimensions, 600 times: within five standard errors."""
    n, times, d = 500, 600, 3
    law = wb.Gaussian(normals(generator, d), covariance(generator, d))
    fits = [
        wb.Gaussian.fit(law.mean + normals(generator, n, d) @ root(law.cov)) for _ in range(times)
    ]
    one = torch.tensor([w2(law, fit) ** 2 for fit in fits])
    two = torch.tensor([w2(a, b) ** 2 for a, b in zip(fits, fits[1:] + fits[:1], strict=True)])
    for measured, wanted in ((one, w2_floor(n, law)), (two, w2_null(n, law))):
        error = measured.std().item() / math.sqrt(times / 2)  # neighbours share a fit
        assert measured.mean().item() == pytest.approx(wanted, abs=5 * error + 0.02 * wanted)
    record_property("measured", f"W2 floor {one.mean():.5f}, expected {w2_floor(n, law):.5f}")


def test_the_floor_in_closed_form(generator):
    for d, n in ((8, 256), (64, 1024)):
        ball = wb.Gaussian(torch.zeros(d).double(), 1.0)
        assert w2_null(n, ball) == pytest.approx((2 * d + d * (d + 1) / 2) / n)
        assert w2_null(n, ball, 4 * n) == pytest.approx(0.625 * w2_null(n, ball))
    for rest in (0.0, 0.3):
        low = low_rank(generator, 2, rest)
        assert w2_floor(100, low) == pytest.approx(w2_floor(100, wb.Gaussian(low.mean, low.cov)))
    lam = torch.linspace(0, 3, 7).double()
    pairs = sum((a * b / (a + b)).item() for a, b in itertools.combinations(lam, 2))
    wanted = (1.5 * lam.sum().item() + pairs) / 10
    assert w2_floor(10, wb.Gaussian(torch.zeros(7).double(), lam)) == pytest.approx(wanted)


def test_what_is_refused():
    laws = [wb.Gaussian(torch.zeros(d), 1.0) for d in (2, 3)]
    for distance in (w2, kl):
        with pytest.raises(ValueError, match="have 2 and 3 dimensions"):
            distance(*laws)
    with pytest.raises(ValueError, match="n was 0"):
        w2_floor(0, laws[0])
