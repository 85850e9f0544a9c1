"""Gaussians: their parametrisations, limits, flow and refusals."""

import math

import pytest
import torch
from helpers import LAWS, covariance, log_uniform, normals, relative, uniform
from sklearn.covariance import LedoitWolf

import workbench as wb

D = 5
GAUSSIANS = [name for name in LAWS if name.startswith("gaussian")]


def test_denoised_is_the_conditional_mean_and_density_that_of_torch(generator):
    """x0 and x are jointly normal: E[x0 | x] by the textbook formula with a matrix inverse."""
    mean, cov = normals(generator, D), covariance(generator, D)
    alpha, sigma = uniform(generator, 0.2, 2), uniform(generator, 0.2, 2)
    x, law = 3 * normals(generator, 30, D), wb.Gaussian(mean, cov)
    noisy = alpha**2 * cov + sigma**2 * torch.eye(D).double()
    expected = mean + alpha * (x - alpha * mean) @ torch.linalg.inv(noisy) @ cov
    assert relative(law.denoise(x, alpha, sigma), expected) < 1e-12
    truth = torch.distributions.MultivariateNormal(alpha * mean, noisy)
    torch.testing.assert_close(law.log_prob(x, alpha, sigma), truth.log_prob(x))
    data = torch.distributions.MultivariateNormal(mean, cov)
    torch.testing.assert_close(law.log_prob(x), data.log_prob(x), rtol=1e-9, atol=1e-9)


def test_all_parametrisations_are_one_law(generator):
    mean, variances = normals(generator, D), 0.1 + normals(generator, D) ** 2
    basis = torch.linalg.qr(normals(generator, D, D)).Q
    x, rest = normals(generator, 10, D), uniform(generator, 0.1, 1)
    two = torch.cat([variances[:2], torch.full((3,), rest, dtype=torch.float64)])
    pairs = [
        (wb.Gaussian(mean, variances), wb.Gaussian(mean, torch.diag(variances))),
        (wb.Gaussian(mean, rest), wb.Gaussian(mean, torch.full((D,), rest, dtype=torch.float64))),
        (
            wb.Gaussian.low_rank(mean, basis, variances),
            wb.Gaussian(mean, basis * variances @ basis.T),
        ),
        (
            wb.Gaussian.low_rank(mean, basis[:, :2], variances[:2], rest),
            wb.Gaussian(mean, basis * two @ basis.T),
        ),
        (wb.Gaussian(mean, variances.tolist()), wb.Gaussian(mean, variances)),
    ]
    for one, other in pairs:
        assert relative(one.denoise(x, 0.7, 0.4), other.denoise(x, 0.7, 0.4)) < 1e-12
        torch.testing.assert_close(one.log_prob(x, 0.7, 0.4), other.log_prob(x, 0.7, 0.4))
        moved = one.flow(x, (0.7, 0.4), (0.2, 3.0))
        assert relative(moved, other.flow(x, (0.7, 0.4), (0.2, 3.0))) < 1e-12
        torch.testing.assert_close(one.cov, other.cov)
        torch.testing.assert_close(one.spectrum, other.spectrum)
        assert one.std == pytest.approx(math.sqrt(other.cov.trace().item() / D), rel=1e-12)


@pytest.mark.parametrize("rank", [None, 2])
def test_fit_has_the_moments_of_the_points(rank, generator):
    """The full fit has their mean and 1/N covariance; of rank r, its best approximation."""
    points = normals(generator, 50, D) @ covariance(generator, D) + normals(generator, D)
    fitted = wb.Gaussian.fit(points.reshape(50, 1, D), rank)
    assert fitted.event_shape == (1, D)
    torch.testing.assert_close(fitted.mean, points.mean(0, keepdim=True))
    cov = torch.cov(points.T, correction=0)
    if rank is None:
        torch.testing.assert_close(fitted.cov, cov)
    else:
        u, s, _ = torch.linalg.svd(cov)
        torch.testing.assert_close(fitted.cov, (u[:, :rank] * s[:rank]) @ u[:, :rank].T)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_without_noise_the_state_is_projected_on_the_data(name, generator):
    law = LAWS[name](generator, D)
    alpha = uniform(generator, 0.2, 2)
    x = normals(generator, 10, D)
    denoised = law.denoise(x, alpha, 0.0)
    expected = x / alpha
    if name == "gaussian-rank-2":
        expected = law.mean + (x / alpha - law.mean) @ law.basis @ law.basis.T
    assert relative(denoised, expected) < 1e-12
    assert relative(law.denoise(x, alpha, 1e-9), expected) < 1e-12


@pytest.mark.parametrize("name", GAUSSIANS)
def test_the_flow_carries_the_law_and_back(name, generator):
    """It maps the density along with its Jacobian, composes, and undoes itself."""
    law = LAWS[name](generator, D)
    start, middle, end = [
        (uniform(generator, 0.1, 1), log_uniform(generator, 0.1, 10)) for _ in range(3)
    ]
    x = start[0] * law.mean + normals(generator, 6, D)
    moved = law.flow(x, start, end)
    assert relative(law.flow(moved, end, start), x) < 1e-11
    assert relative(law.flow(law.flow(x, start, middle), middle, end), moved) < 1e-11
    jacobian = torch.func.jacrev(lambda y: law.flow(y[None], start, end)[0])(x[0])
    change = law.log_prob(x, *start) - law.log_prob(moved, *end)
    expected = torch.linalg.slogdet(jacobian).logabsdet.expand(6)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-9)


def test_the_flow_from_pure_noise_and_to_no_noise(generator):
    law = wb.Gaussian(normals(generator, D), covariance(generator, D))
    z = normals(generator, 4, D)
    root = (law.basis * law.variances.sqrt()) @ law.basis.T
    assert relative(law.flow(z, (0.0, 1.0), (1.0, 0.0)), law.mean + z @ root) < 1e-12


@pytest.mark.parametrize("name", ["gaussian-rank-2", "point"])
def test_singular_laws_have_no_density_and_no_flow_without_noise(name, generator):
    if name == "point":
        law = wb.Gaussian(normals(generator, D), 0.0)
    else:
        law = LAWS[name](generator, D)
    x = normals(generator, 2, D)
    with pytest.raises(ValueError, match=r"no density at sigma = 0.*Ask at sigma > 0"):
        law.log_prob(x)
    with pytest.raises(ValueError, match=r"cannot start at sigma = 0.*Start at sigma > 0"):
        law.flow(x, (1.0, 0.0), (1.0, 1.0))
    onto = law.flow(x, (1.0, 1.0), (1.0, 0.0))
    assert relative(law.denoise(onto, 1.0, 0.0), onto) < 1e-12


def test_a_square_covariance_of_square_events(generator):
    """For events of shape (2, 2) a (2, 2) covariance is four variances, (4, 4) is full."""
    mean, variances = normals(generator, 2, 2), 0.1 + normals(generator, 2, 2) ** 2
    diagonal = wb.Gaussian(mean, variances)
    assert torch.equal(diagonal.cov, torch.diag(variances.flatten()))
    full = covariance(generator, 4)
    torch.testing.assert_close(wb.Gaussian(mean, full).cov, full)
    plane = covariance(generator, 2)
    torch.testing.assert_close(wb.Gaussian(mean[0], plane).cov, plane)


def test_from_data_keeps_the_law_or_fits(generator):
    data = wb.datasets.gaussian()
    assert wb.Gaussian.from_data(data) is data.law
    one = wb.Gaussian.from_data(data, rank=1)
    assert len(one.variances) == 1
    moons = wb.datasets.moons()
    expected = torch.cov(moons.points.T, correction=0)
    torch.testing.assert_close(wb.Gaussian.from_data(moons).cov, expected)
    with pytest.raises(ValueError, match=r"rank was 3.*2 dimensions"):
        wb.Gaussian.from_data(data, rank=3)


# -- derivatives -----------------------------------------------------------------------------------


def test_derivatives_by_matrix_inverses(generator, record_property):
    """J = C A (A C A + S^2)^-1 and so on, A and S diagonal: the textbook's formulas."""
    mean, cov, eye = normals(generator, D), covariance(generator, D), torch.eye(D).double()
    law, x, worst = wb.Gaussian(mean, cov), 3 * normals(generator, 7, D), 0.0
    rows = [0.1 + torch.rand(1, D, generator=generator).double() for _ in "ab"]
    for a, s in ((uniform(generator, 0.2, 2), uniform(generator, 0.2, 2)), rows):
        big_a, big_s = (eye * torch.as_tensor(c, dtype=torch.float64) for c in (a, s))
        inverse = torch.linalg.inv(big_a @ cov @ big_a + big_s @ big_s)
        gain, y = cov @ big_a @ inverse, x - mean @ big_a
        for found, truth in (
            (law.denoise(x, a, s), mean + y @ gain.T),
            (law.score(x, a, s), -y @ inverse),
            (law.jacobian(x, a, s), gain.expand(7, D, D)),
            (law.divergence(x, a, s), gain.trace().expand(7)),
            (law.hessian(x, a, s), -inverse.expand(7, D, D)),
            (law.posterior_cov(x, a, s), (cov - gain @ big_a @ cov).expand(7, D, D)),
        ):
            assert found.shape == truth.shape
            worst = max(worst, relative(found, truth))
    assert worst < 1e-11
    record_property("measured", f"Gaussian against matrix inverses: {worst:.1e}")


@pytest.mark.parametrize("name", GAUSSIANS)
def test_coordinates_without_noise(name, generator):
    """sigma 0 in some coordinates: the limit from above, for singular covariances too."""
    law = LAWS[name](generator, D)
    alphas = 0.3 + torch.rand(1, D, generator=generator, dtype=torch.float64)
    sigmas = 0.3 + torch.rand(1, D, generator=generator, dtype=torch.float64)
    sigmas[0, :3] = 0.0  # more than the rank of some
    root = (law.eigenbasis * law.diagonalised()[0].variances.sqrt()) @ law.eigenbasis.T
    x = alphas * (law.mean + normals(generator, 4, D) @ root) + sigmas * normals(generator, 4, D)
    near = sigmas.clamp_min(1e-6)
    for name in ("denoise", "jacobian", "posterior_cov"):
        found, limit = (getattr(law, name)(x, alphas, s) for s in (sigmas, near))
        assert (found - limit).abs().max() < 1e-4, name
    kept = law.denoise(x, alphas, sigmas)
    assert relative(kept[:, :3], (x / alphas)[:, :3]) < 1e-9  # they are known exactly
    cov = law.posterior_cov(x, alphas, sigmas)
    assert cov[:, :3].abs().max() < 1e-12 and torch.linalg.eigvalsh(cov).min() > -1e-13


def test_little_noise_beside_much_in_one_law(generator):
    """Noise of 1e-7 in one coordinate, 1e3 in another: what is known of each stays exact."""
    law = wb.Gaussian(normals(generator, D), covariance(generator, D))
    alphas = torch.ones(1, D, dtype=torch.float64)
    sigmas = torch.tensor([[1e-7, 1e-3, 1.0, 1e3, 1e3]], dtype=torch.float64)
    x = law.mean + normals(generator, 3, D) + sigmas * normals(generator, 3, D)
    cov = law.posterior_cov(x, alphas, sigmas)[0]
    assert cov[0, 0].item() == pytest.approx(1e-14, rel=1e-6)
    # Given the first three: the conditional law of the last two, which their noise hides.
    c, few = law.cov, law.cov[:3, :3] + torch.diag(sigmas[0, :3] ** 2)
    rest = c[3:, 3:] - c[3:, :3] @ torch.linalg.solve(few, c[:3, 3:])
    assert relative(cov[3:, 3:], rest) < 1e-4
    assert relative(law.jacobian(x, alphas, sigmas)[:, 0, 0], torch.ones(3)) < 1e-9


def test_the_flow_of_each_coordinate_at_its_own_pace(generator):
    mean, variances = normals(generator, D), 0.1 + normals(generator, D) ** 2
    law, x = wb.Gaussian(mean, variances), normals(generator, 6, D)
    start, end = (
        tuple(0.2 + torch.rand(1, D, generator=generator).double() for _ in "as") for _ in "12"
    )
    moved = law.flow(x, start, end)
    for i in range(D):
        one = wb.Gaussian(mean[i : i + 1], variances[i : i + 1])
        a, b = (tuple(c[0, i].item() for c in pair) for pair in (start, end))
        assert relative(one.flow(x[:, i : i + 1], a, b), moved[:, i : i + 1]) < 1e-13
    assert relative(law.flow(moved, end, start), x) < 1e-12
    levels = tuple(torch.rand(6, generator=generator).double() + 0.1 for _ in "as")  # per sample
    each = [law.flow(x[i], tuple(c[i].item() for c in levels), (1.0, 0.1)) for i in range(6)]
    assert relative(law.flow(x, levels, (1.0, 0.1)), torch.stack(each)) < 1e-13
    with pytest.raises(NotImplementedError, match=r"one value per coordinate.*do not commute.*wb"):
        wb.Gaussian(mean, covariance(generator, D)).flow(x, start, end)


def test_singular_laws_have_no_score_without_noise(generator):
    law, x = LAWS["gaussian-rank-2"](generator, D), normals(generator, 2, D)
    for call in (law.score, law.hessian):
        with pytest.raises(ValueError, match=r"no score at sigma = 0.*singular.*Ask at sigma > 0"):
            call(x, 1.0, 0.0)
    sigmas = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]]).double()
    assert law.score(x, 1.0, sigmas).isfinite().all()  # one coordinate alone is not singular


# -- bases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAUSSIANS)
def test_in_its_eigenbasis_a_law_is_diagonal(name, generator):
    law = LAWS[name](generator, D)
    assert relative(law.eigenbasis.T @ law.eigenbasis, torch.eye(D)) < 1e-13
    twin, basis = law.diagonalised()
    turned = law.transformed(basis)
    assert twin.basis is None and turned.basis is None
    assert relative(turned.variances, twin.variances) < 1e-13
    assert relative(twin.variances.sort().values, law.spectrum) < 1e-15
    x = normals(generator, 6, D)
    assert relative(twin.denoise(x @ basis, 0.7, 0.4) @ basis.T, law.denoise(x, 0.7, 0.4)) < 1e-12
    assert relative((basis * twin.variances) @ basis.T, law.cov) < 1e-13


def test_small_variances_survive_a_change_of_basis(generator):
    """Spectra of images fall over many decades: each variance keeps its own digits."""
    variances = torch.logspace(2, -14, D, dtype=torch.float64)
    basis = torch.linalg.qr(normals(generator, D, D)).Q
    law = wb.Gaussian.low_rank(normals(generator, D), basis, variances)
    there = law.transformed(basis)
    assert there.basis is None and relative(there.variances / variances, torch.ones(D)) < 1e-9
    tilted = torch.linalg.qr(basis + 1e-3 * normals(generator, D, D)).Q
    assert law.transformed(tilted).basis is not None


def test_images_in_another_basis_keep_their_shape(generator):
    law = wb.Gaussian(normals(generator, 2, 3), covariance(generator, 6))
    basis = torch.linalg.qr(normals(generator, 6, 6)).Q
    turned, x = law.transformed(basis), normals(generator, 4, 2, 3)
    c = (x.flatten(1) @ basis).reshape(4, 2, 3)
    assert turned.mean.shape == (2, 3)
    found = turned.denoise(c, 1.0, 0.5).flatten(1) @ basis.T
    assert relative(found.reshape(4, 2, 3), law.denoise(x, 1.0, 0.5)) < 1e-12
    assert law.diagonalised()[0].mean.shape == (2, 3)


# -- fits ------------------------------------------------------------------------------------------


def test_a_fit_has_the_moments_of_its_points(generator):
    points = normals(generator, 40, D) @ covariance(generator, D) + normals(generator, D)
    law = wb.Gaussian.fit(points)
    torch.testing.assert_close(law.mean, points.mean(0))
    torch.testing.assert_close(law.cov, torch.cov(points.T, correction=0))
    assert law.notes == ()


@pytest.mark.parametrize("count", [40, 4])
def test_automatic_shrinkage_is_that_of_scikit_learn(count, generator):
    """For more and for fewer points than dimensions."""
    points = normals(generator, count, D) @ covariance(generator, D) + 5
    truth = LedoitWolf().fit(points.numpy())
    law = wb.Gaussian.fit(points, shrinkage="auto")
    torch.testing.assert_close(law.cov, torch.from_numpy(truth.covariance_), rtol=1e-9, atol=1e-12)
    assert len(law.variances) == min(D, count - 1)
    given = wb.Gaussian.fit(points, shrinkage=float(truth.shrinkage_))
    torch.testing.assert_close(given.cov, law.cov)
    assert any("Ledoit and Wolf" in note for note in law.notes)
    assert any(f"shrunk by {truth.shrinkage_:.4g} towards" in note for note in given.notes)


def test_shrinkage_from_nothing_to_a_ball(generator):
    points = normals(generator, 30, D)
    whole = torch.cov(points.T, correction=0)
    torch.testing.assert_close(wb.Gaussian.fit(points, shrinkage=0.0).cov, whole)
    assert wb.Gaussian.fit(points, shrinkage=0.0).notes == ()
    ball = whole.trace() / D * torch.eye(D).double()
    torch.testing.assert_close(wb.Gaussian.fit(points, shrinkage=1.0).cov, ball)


def test_fewer_points_than_dimensions(generator):
    """The fit is of low rank, says so, and has no density without noise."""
    points = normals(generator, 10, 25)
    law = wb.Gaussian.fit(points)
    assert law.notes == (
        "The covariance of 10 points in 25 dimensions has rank 9; in the other 16 directions it "
        "has no variance, and no density without noise.",
    )
    assert law.basis.shape == (25, 9) and law.rest == 0
    torch.testing.assert_close(law.cov, torch.cov(points.T, correction=0), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="no density at sigma = 0"):
        law.log_prob(points)
    assert relative(law.denoise(points, 1.0, 0.0), points) < 1e-12  # they are of the law
    assert wb.Gaussian.fit(points, shrinkage=0.1).log_prob(points).isfinite().all()
    for made in (law.noised(1.0, 0.1), law.to(torch.float32), law.translated(points[0])):
        assert made.notes == law.notes


def test_constant_coordinates_and_copies_are_said(generator):
    points = normals(generator, 30, D)
    points[:, 1] = 7.0
    points[:, 3] = points[:, 2] - points[:, 0]
    points[20:] = points[:10]
    law = wb.Gaussian.fit(points)
    copies, rank, constant = law.notes
    assert copies == "10 of 30 points are exact copies of others."
    assert "30 points in 5 dimensions has rank 3; in the other 2" in rank
    assert constant == "1 of 5 coordinates are the same in all points."
    one = wb.Gaussian.fit(points[:1])
    assert one.spectrum.tolist() == [0.0] * D and torch.equal(one.mean, points[0])
    assert "1 points in 5 dimensions has rank 0" in one.notes[0]
    assert wb.Gaussian.fit(points[:1], shrinkage="auto").cov.abs().max() == 0


def test_a_truncated_fit_says_what_it_dropped(generator):
    points = normals(generator, 400, D) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double()
    spectrum = wb.Gaussian.fit(points).spectrum
    law = wb.Gaussian.fit(points, rank=2)
    torch.testing.assert_close(law.variances, spectrum[-2:])
    dropped = (spectrum[:-2].sum() / spectrum.sum()).item()
    assert law.notes == (
        f"Only the 2 leading of 5 principal directions are kept: {dropped:.3g} of the total "
        f"variance {spectrum.sum():.4g} is dropped, and the other directions have none.",
    )
    assert wb.Gaussian.fit(points, rank=D).notes == ()
    few = wb.Gaussian.fit(points[:3], rank=2)  # nothing is dropped of a rank-2 fit
    assert len(few.notes) == 1 and "rank 2" in few.notes[0]


def test_a_covariance_singular_to_rounding_is_taken_as_singular_and_says_so(generator):
    root = normals(generator, D, 2)
    law = wb.Gaussian(torch.zeros(D).double(), root @ root.T)
    assert (law.variances == 0).sum() == 3
    assert "3 of 5 eigenvalues of the covariance are zero but for rounding" in law.notes[0]
    diagonal = torch.diag(torch.logspace(0, -30, D, dtype=torch.float64))  # small, not rounding
    law = wb.Gaussian(torch.zeros(D).double(), diagonal)
    assert law.notes == () and relative(law.spectrum.flip(0) / diagonal.diagonal(), EYE[0, 0]) == 0


def test_a_fit_from_data_may_be_shrunk():
    moons = wb.datasets.moons()
    expected = wb.Gaussian.fit(moons.points, shrinkage=0.3)
    assert torch.equal(wb.Gaussian.from_data(moons, shrinkage=0.3).cov, expected.cov)
    normal = wb.datasets.gaussian()
    shrunk = wb.Gaussian.from_data(normal, shrinkage=1.0)
    assert shrunk is not normal.law and shrunk.spectrum.diff().abs().max() < 1e-12


ZERO, EYE = torch.zeros(3).double(), torch.eye(3).double()


@pytest.mark.parametrize(
    ("make", "error", "pieces"),
    [
        (lambda: wb.Gaussian(ZERO, torch.diag(torch.tensor([1.0, 1.0, -0.5])).double()),
         ValueError, ["cov has an eigenvalue of -0.5", "positive semi-definite"]),
        (lambda: wb.Gaussian(ZERO, EYE + torch.eye(3).roll(1, 0)),
         ValueError, ["cov differs from its transpose by 1", "symmetric"]),
        (lambda: wb.Gaussian(ZERO, torch.tensor([1.0, -2.0, 1.0]).double()),
         ValueError, ["a variance was -2", "at least 0"]),
        (lambda: wb.Gaussian(ZERO, -1.0), ValueError, ["a variance was -1", "at least 0"]),
        (lambda: wb.Gaussian(ZERO, EYE[:2]),
         ValueError, ["cov has shape (2, 3)", "(3, 3), (3,) or a single number"]),
        (lambda: wb.Gaussian(ZERO * math.nan, EYE),
         ValueError, ["mean holds 3 values that are not finite"]),
        (lambda: wb.Gaussian(ZERO, EYE * math.inf), ValueError, ["cov holds", "not finite"]),
        (lambda: wb.Gaussian(ZERO, EYE.float()),
         TypeError, ["cov is float32", "float64", "one dtype"]),
        (lambda: wb.Gaussian("zero", EYE), TypeError, ["mean was 'zero'", "a tensor or numbers"]),
        (lambda: wb.Gaussian.low_rank(ZERO, 2 * EYE[:, :1], ZERO[:1]),
         ValueError, ["columns of basis are off orthonormal by 3", "qr"]),
        (lambda: wb.Gaussian.low_rank(ZERO, EYE[:, :2], ZERO),
         ValueError, ["basis has shape (3, 2)", "variances (3,)", "(3, r) and (r,)"]),
        (lambda: wb.Gaussian.low_rank(ZERO, EYE[:, :2], ZERO[:2] - 1),
         ValueError, ["a variance was -1", "at least 0"]),
        (lambda: wb.Gaussian.low_rank(ZERO, EYE[:, :2], ZERO[:2], rest=-0.1),
         ValueError, ["rest was -0.1", "at least 0"]),
        (lambda: wb.Gaussian.low_rank(ZERO, EYE[:, :2], ZERO[:2], rest=math.inf),
         ValueError, ["rest was inf", "finite"]),
        (lambda: wb.Gaussian.fit(ZERO), ValueError, ["points has shape (3,)", "(number of points"]),
        (lambda: wb.Gaussian.fit(EYE, rank=4), ValueError, ["rank was 4", "from 1 to 3"]),
        (lambda: wb.Gaussian.fit(EYE, shrinkage=1.5),
         ValueError, ["shrinkage was 1.5", "from 0 to 1", "auto"]),
        (lambda: wb.Gaussian.fit(EYE, shrinkage="much"),
         ValueError, ["shrinkage was 'much'", "from 0 to 1", "auto"]),
        (lambda: wb.Gaussian.fit(EYE * math.nan), ValueError, ["points holds 9", "not finite"]),
    ],
)  # fmt: skip
def test_bad_laws_are_refused_with_a_sentence(make, error, pieces):
    with pytest.raises(error) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)
