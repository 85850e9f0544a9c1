"""The algebra of pairs of Gaussians against plain matrices."""

import itertools

import pytest
import torch
from helpers import LAWS, covariance, normals, relative

import workbench as wb
from workbench.denoisers.pairs import DensePairs, ModalPairs, pair

D = 3
KINDS = [
    "gaussian-full",
    "gaussian-diagonal",
    "gaussian-scalar",
    "gaussian-rank-2-and-rest",
    "mixture-isotropic",
    "mixture-diagonal",
    "mixture-full",
    "empirical",
]


def components(law):
    """Weights, means (K, d) and covariances (K, d, d) of a law."""
    if isinstance(law, wb.Gaussian):
        return torch.ones(1).double(), law.mean[None], law.cov[None]
    covs = law.covs
    if covs.ndim == 1:
        covs = covs[:, None].expand(-1, D)
    return law.weights, law.means, covs if covs.ndim == 3 else torch.diag_embed(covs)


@pytest.mark.parametrize(("one", "other"), itertools.product(KINDS, KINDS))
def test_pairs_solve_spread_and_trace_as_matrices_do(one, other, generator):
    first, second = LAWS[one](generator, D), LAWS[other](generator, D)
    pairs = pair(first, second)
    (w0, m0, c0), (w1, m1, c1) = components(first), components(second)
    k0, k1 = len(w0), len(w1)
    # Every pair, in nested loops: the first component's outside.
    i, j = torch.arange(k0 * k1) // k1, torch.arange(k0 * k1) % k1
    w, m, c = (w0[i], w1[j]), (m0[i], m1[j]), (c0[i], c1[j])
    assert relative(pairs.mean(0.3, 0.6)[:, 0], 0.3 * m[0] + 0.6 * m[1]) < 1e-14
    assert (pairs.log_weights[:, 0] - (w[0] * w[1]).log()).abs().max() < 1e-14

    eye = torch.eye(D).double()
    y = normals(generator, k0 * k1, 5, D)
    k = [normals(generator, 5, 1), -0.3, normals(generator, 5, 1)]
    some = 0.1 + torch.rand(2, 5, 1, generator=generator, dtype=torch.float64)
    for q in ((0.6, 0.3, 0.2), (some[0], 0.4, some[1])):
        cov, weight = (
            sum(
                torch.as_tensor(u, dtype=torch.float64).reshape(-1, 1, 1) * part
                for u, part in zip(v, (c[0][:, None], c[1][:, None], eye), strict=True)
            )
            for v in (q, k)
        )
        inverse = torch.linalg.inv(cov)
        away = (inverse @ y[..., None])[..., 0]
        solved, energy, singular = pairs.solve(y, q)
        assert not bool(singular.any())
        assert relative(energy, (y * away).sum(-1) + cov.logdet()) < 1e-9
        assert relative(pairs.spread(solved, k), (weight @ away[..., None])[..., 0]) < 1e-9
        expected = (weight @ inverse).diagonal(dim1=-2, dim2=-1).sum(-1)
        assert relative(pairs.trace(q, k).expand(k0 * k1, 5), expected) < 1e-9


def test_covariances_that_commute_are_found_and_others_are_not(generator):
    turn = torch.linalg.qr(normals(generator, 4, 4)).Q
    zero = torch.zeros(4).double()

    def along(variances):
        return wb.Gaussian(zero, (turn * torch.tensor(variances, dtype=torch.float64)) @ turn.T)

    common = pair(along([1.0, 2.0, 3.0, 4.0]), along([5.0, 5.0, 0.3, 0.3]))
    assert isinstance(common, ModalPairs)
    both = torch.stack([common.first.flatten(), common.second.flatten()]).T.tolist()
    expected = torch.tensor([(1, 5), (2, 5), (3, 0.3), (4, 0.3)], dtype=torch.float64)
    assert relative(torch.tensor(sorted(both), dtype=torch.float64), expected) < 1e-14
    same = along([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(pair(same, same.noised(0.5, 0.5)).basis[0], same.basis)
    for made in (
        pair(same, wb.Gaussian(zero, covariance(generator, 4))),
        pair(same, wb.Gaussian(zero, torch.tensor([1.0, 2.0, 3.0, 4.0]).double())),
    ):
        assert isinstance(made, DensePairs)


@pytest.mark.parametrize("d", [2, 16, 64])
def test_common_modes_of_any_spectra_are_found(d, generator):
    """Eigenvalues that lie close together, too, in either covariance or in their sum."""
    turn = torch.linalg.qr(normals(generator, d, d)).Q
    spectra = [torch.rand(d, generator=generator, dtype=torch.float64) for _ in range(2)]
    spectra[0][1] = spectra[0][0] + 1e-9
    covs = [(turn * v) @ turn.T for v in spectra]
    pairs = pair(*(wb.Gaussian(torch.zeros(d).double(), 0.5 * (c + c.T)) for c in covs))
    assert isinstance(pairs, ModalPairs)
    for q in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.6, 0.1)):
        truth = q[0] * covs[0] + q[1] * covs[1] + q[2] * torch.eye(d).double()
        assert relative(pairs.covs(q)[0], truth) < 1e-13


def test_directions_without_variance_are_exactly_so(generator):
    """The zero eigenvalues of a singular matrix are not left as rounding of either sign."""
    turn = torch.linalg.qr(normals(generator, 4, 4)).Q[:, :2]
    flat = wb.Gaussian(torch.zeros(4).double(), turn @ turn.T)
    point = wb.Gaussian(torch.zeros(4).double(), 0.0)
    pairs = pair(flat, point)
    assert (pairs.first == 0).sum() == 2
    y = normals(generator, 1, 6, 4)
    assert bool(pairs.solve(y, (1.0, 0.0, 0.0))[2].any())
    noise = 1e-20
    solved = pairs.spread(pairs.solve(y, (1.0, 0.0, noise))[0], (0.0, 0.0, 1.0))
    off = y - (y @ turn) @ turn.T
    assert relative(solved, off / noise) < 1e-12
    other = wb.Gaussian(
        torch.zeros(4).double(), torch.linalg.qr(normals(generator, 4, 4)).Q[:, :1].pow(2).flatten()
    )
    mixed = wb.Mixture(
        torch.ones(1).double(), torch.zeros(1, 4).double(), covariance(generator, 4)[None]
    )
    assert bool(pair(flat, mixed).solve(y, (1.0, 0.0, 0.0))[2].all())
    assert not bool(pair(flat, mixed).solve(y, (1.0, 0.1, 0.0))[2].any())
    assert bool(pair(flat, other).solve(y, (1.0, 0.0, 0.0))[2].any())


def test_components_without_weight_are_not_there(generator):
    """A point of no weight does not make the pairs singular."""
    means = normals(generator, 3, 2)
    weights, covs = (torch.tensor(v).double() for v in ([0.5, 0.0, 0.5], [1.0, 0.0, 2.0]))
    law = wb.Mixture(weights, means, covs)
    pairs = pair(law, law)
    assert len(pairs.log_weights) == 4 and bool((pairs.first > 0).all())
    assert pairs.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-15)


def test_a_basis_held_in_float32_is_made_orthonormal(generator):
    basis = torch.linalg.qr(normals(generator, 5, 2)).Q.float()
    law = wb.Gaussian.low_rank(torch.zeros(5), basis, torch.tensor([2.0, 0.5]))
    made = pair(law, wb.Gaussian(torch.zeros(5), 1.0)).basis[0]
    assert (made.T @ made - torch.eye(5).double()).abs().max() < 1e-14
    assert (made[:, :2] - basis.double()).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["mixture-isotropic", "mixture-equal", "empirical"])
def test_energies_by_one_product_equal_those_of_the_solution(kind, generator):
    pairs = pair(LAWS["gaussian-scalar"](generator, D), LAWS[kind](generator, D))
    q, x = (0.49, 0.16, 0.02), 3 * normals(generator, 20, D)
    assert pairs.expands(0.7, 0.4, q)
    got = pairs.energies(x, 0.7, 0.4, q)
    assert relative(got, pairs.solve(x - pairs.mean(0.7, 0.4), q)[1]) < 1e-12
    if kind == "empirical":  # little noise: the expanded square would cancel
        assert not pairs.expands(1e-6, 1.0, (1e-12, 1.0, 0.0))
    assert not pair(LAWS["gaussian-diagonal"](generator, D), pair_of(generator)).expands(
        0.7, 0.4, q
    )


def pair_of(generator):
    return LAWS["mixture-isotropic"](generator, D)
