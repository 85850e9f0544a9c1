"""Gaussians: their parametrisations, limits, flow and refusals."""

import math

import pytest
import torch
from helpers import LAWS, covariance, log_uniform, normals, relative, uniform

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
    ],
)  # fmt: skip
def test_bad_laws_are_refused_with_a_sentence(make, error, pieces):
    with pytest.raises(error) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)
