"""What holds for every denoiser, whatever its law."""

import math

import pytest
import torch
from denoiser_laws import ALL, D, level
from helpers import log_uniform, normals, relative, states, uniform

import workbench as wb
from workbench.denoisers.base import Denoiser


@pytest.fixture(params=ALL)
def law(request, generator):
    return ALL[request.param](generator, D)


def score(law, x, alpha, sigma):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, alpha, sigma).sum(), x)
    return gradient


def test_the_score_is_the_gradient_of_the_log_density(law, generator):
    """Tweedie: (alpha D - x) / sigma^2, for one noise level and for one per sample."""
    alpha, sigma = level(generator)
    x = states(generator, law, 20, alpha, sigma)
    tweedie = (alpha * law.denoise(x, alpha, sigma) - x) / sigma**2
    assert relative(tweedie, score(law, x, alpha, sigma)) < 1e-10
    alphas = alpha * (0.5 + torch.rand(20, generator=generator, dtype=torch.float64))
    sigmas = sigma * (0.5 + torch.rand(20, generator=generator, dtype=torch.float64))
    tweedie = (alphas[:, None] * law.denoise(x, alphas, sigmas) - x) / sigmas[:, None] ** 2
    assert relative(tweedie, score(law, x, alphas, sigmas)) < 1e-10


def test_only_the_ratios_matter(law, generator):
    """D(c x, c alpha, c sigma) = D(x, alpha, sigma), and the density scales by c^-d."""
    alpha, sigma = level(generator)
    x, c = states(generator, law, 20, alpha, sigma), log_uniform(generator, 1e-4, 1e4)
    scaled = law.denoise(c * x, c * alpha, c * sigma)
    assert relative(scaled, law.denoise(x, alpha, sigma)) < 1e-11
    shift = law.log_prob(x, alpha, sigma) - law.log_prob(c * x, c * alpha, c * sigma)
    torch.testing.assert_close(shift, torch.full_like(shift, D * math.log(c)), rtol=0, atol=1e-9)


def test_pure_noise_says_nothing(law, generator):
    """At alpha = 0 the denoised state is the mean of the data, and x is N(0, sigma^2 I)."""
    x, sigma = 3 * normals(generator, 20, D), log_uniform(generator, 0.1, 10)
    denoised = law.denoise(x, 0.0, sigma)
    torch.testing.assert_close(denoised, law.mean.expand(20, D), rtol=0, atol=5e-15)
    expected = -0.5 * (x / sigma).square().sum(-1) - D * math.log(sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(law.log_prob(x, 0.0, sigma), expected, rtol=1e-12, atol=0)


def test_one_level_per_sample_equals_the_calls_one_by_one(law, generator):
    alphas = torch.rand(16, generator=generator, dtype=torch.float64)
    alphas[0] = 0.0
    sigmas = 0.05 + 2 * torch.rand(16, generator=generator, dtype=torch.float64)
    x = states(generator, law, 16, 1.0, 1.0)
    together, density = law.denoise(x, alphas, sigmas), law.log_prob(x, alphas, sigmas)
    for i in range(16):
        a, s = alphas[i].item(), sigmas[i].item()
        assert relative(law.denoise(x[i], a, s), together[i]) < 1e-11
        assert law.log_prob(x[i], a, s).item() == pytest.approx(density[i].item(), rel=1e-11)
    # The same levels in every shape that broadcasts.
    grid = x.reshape(4, 4, D)
    a, s = alphas.reshape(4, 4), sigmas.reshape(4, 4)
    for shape in ((4, 4), (4, 4, 1)):
        out = law.denoise(grid, a.reshape(shape), s.reshape(shape))
        assert relative(out, together.reshape(4, 4, D)) < 1e-13
    one = law.denoise(x, alphas[1], sigmas[1:2])
    assert relative(one, law.denoise(x, alphas[1].item(), sigmas[1].item())) < 1e-11


def scaled(law, gain):
    """The law of ``gain * x0``, ``gain`` one factor per coordinate, by its moments or points."""
    if isinstance(law, wb.Empirical):
        return wb.Empirical(gain * law.points)
    if isinstance(law, wb.Gaussian):
        return wb.Gaussian(gain * law.mean, gain[:, None] * law.cov * gain)
    covs = law.covs if law.covs.ndim > 1 else law.covs[:, None].expand(-1, D)
    covs = torch.diag_embed(covs) if covs.ndim == 2 else covs
    return wb.Mixture(law.weights, gain * law.means, gain[:, None] * covs * gain)


def test_one_level_per_coordinate(law, generator):
    """Scaling each coordinate of the noise scales nothing else: compare with a whitened state."""
    alphas = 0.2 + torch.rand(1, D, generator=generator, dtype=torch.float64)
    sigmas = 0.2 + torch.rand(1, D, generator=generator, dtype=torch.float64)
    x = states(generator, law, 8, 1.0, 1.0)
    # x/sigma = (alpha/sigma) x0 + eps: data scaled by alpha/sigma per coordinate, unit noise.
    gain = (alphas / sigmas)[0]
    white = scaled(law, gain)
    expected = white.denoise(x / sigmas, 1.0, 1.0) / gain
    assert relative(law.denoise(x, alphas, sigmas), expected) < 1e-10
    log_det = sigmas.log().sum()
    density = law.log_prob(x, alphas, sigmas)
    torch.testing.assert_close(density, white.log_prob(x / sigmas, 1.0, 1.0) - log_det)
    # One for each sample and coordinate, and the law of the state as a law of its own.
    rows = torch.cat([alphas, sigmas]), torch.cat([sigmas, alphas])
    together = law.denoise(x[:2], *rows)
    for i in range(2):
        assert relative(law.denoise(x[i], rows[0][i], rows[1][i]), together[i]) < 1e-11
    noised = law.noised(alphas[0], sigmas[0])
    torch.testing.assert_close(noised.log_prob(x), density, rtol=1e-9, atol=1e-9)


def test_the_law_in_another_basis(law, generator):
    """Coefficients c = Q^T x: the density is the same, vectors turn, matrices on both sides."""
    alpha, sigma = level(generator)
    basis = torch.linalg.qr(normals(generator, D, D)).Q
    x, turned = states(generator, law, 10, alpha, sigma), law.transformed(basis)
    c = x @ basis
    assert relative(turned.denoise(c, alpha, sigma), law.denoise(x, alpha, sigma) @ basis) < 1e-10
    torch.testing.assert_close(turned.log_prob(c, alpha, sigma), law.log_prob(x, alpha, sigma))
    expected = basis.T @ law.jacobian(x, alpha, sigma) @ basis
    assert alpha * (turned.jacobian(c, alpha, sigma) - expected).abs().max() < 1e-9
    assert relative(turned.mean, law.mean @ basis) < 1e-12
    back = turned.transformed(basis.T)
    assert relative(back.denoise(x, alpha, sigma), law.denoise(x, alpha, sigma)) < 1e-10
    assert turned.notes == law.notes
    with pytest.raises(ValueError, match=r"columns of matrix are off orthonormal.*qr\(matrix\)"):
        law.transformed(2 * basis)
    with pytest.raises(ValueError, match=rf"matrix has shape \({D}, 2\).*\({D}, {D}\)"):
        law.transformed(basis[:, :2])


def test_the_law_translated(law, generator):
    alpha, sigma = level(generator)
    x, offset = states(generator, law, 10, alpha, sigma), normals(generator, D)
    moved = law.translated(offset)
    found = moved.denoise(x + alpha * offset, alpha, sigma) - offset
    assert relative(found, law.denoise(x, alpha, sigma)) < 1e-9
    assert relative(moved.mean, law.mean + offset) < 1e-14


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 3.0, 80.0])
def test_a_sample_does_not_see_its_batch(law, sigma, generator):
    x = states(generator, law, 300, 1.0, sigma)
    whole, density = law.denoise(x, 1.0, sigma), law.log_prob(x, 1.0, sigma)
    for i in (0, 137, 299):
        assert relative(law.denoise(x[i : i + 1], 1.0, sigma), whole[i : i + 1]) < 1e-12
        alone = law.log_prob(x[i], 1.0, sigma).item()
        assert alone == pytest.approx(density[i].item(), rel=1e-12)


def test_the_level_of_another_sample_changes_nothing(law, generator):
    """Not even where one sample is scaled by 1e9 against the other."""
    x = states(generator, law, 2, 1.0, 0.5)
    scale = torch.tensor([1.0, 1e-9]).double()
    out = law.denoise(x * scale[:, None], scale, 0.5 * scale)
    assert relative(out, law.denoise(x, 1.0, 0.5)) < 1e-9


def test_the_noised_law_is_a_law_of_its_own(law, generator):
    """Its log-density at (1, 0) is the law's at (alpha, sigma); noising it again adds variances."""
    alpha, sigma = level(generator)
    noised = law.noised(alpha, sigma)
    x = states(generator, law, 20, alpha, sigma)
    expected = law.log_prob(x, alpha, sigma)
    torch.testing.assert_close(noised.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    again = noised.log_prob(0.7 * x, 0.7, 0.4)
    expected = law.log_prob(0.7 * x, 0.7 * alpha, math.hypot(0.7 * sigma, 0.4))
    torch.testing.assert_close(again, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rho", [1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3])
def test_float32_stays_near_float64(law, rho, generator):
    """Within 3e-5 of the size of the state, also where logits of size (x/sigma)^2 cancel.

    Both hold the same float32 numbers; only the arithmetic differs.
    """
    single = law.to(torch.float32)
    double = single.to(torch.float64)
    alpha = 1 / math.hypot(1, rho)
    x = states(generator, law, 400, alpha, rho * alpha)
    if isinstance(law, wb.Empirical):  # half way between the nearest two, both speak
        gaps = torch.cdist(law.points, law.points).fill_diagonal_(math.inf)
        i, j = divmod(gaps.argmin().item(), len(gaps))
        apart = alpha * (law.points[j] - law.points[i])
        width = (alpha * rho) ** 2 / apart.square().sum()
        x[:100] = alpha * law.points[i] + (0.5 + width * normals(generator, 100, 1)) * apart
    x = x.float()
    got, truth = (
        single.denoise(x, alpha, rho * alpha),
        double.denoise(x.double(), alpha, rho * alpha),
    )
    assert got.dtype == torch.float32
    size = truth.abs().max() + x.abs().max() / alpha * min(1.0, 1 / rho**2)
    assert (got - truth).abs().max() < 3e-5 * size
    density, exact = single.log_prob(x, alpha, 0.3), double.log_prob(x.double(), alpha, 0.3)
    torch.testing.assert_close(density.double(), exact, rtol=1e-5, atol=1e-4)


def test_conversion_and_description(law):
    assert law.to() is law or torch.equal(law.to().mean, law.mean)
    single = law.to(torch.float32)
    assert (single.dtype, law.dtype) == (torch.float32, torch.float64)
    assert single.std == pytest.approx(law.std, rel=1e-6)
    assert single.event_shape == law.event_shape == (D,) and law.dim == D
    assert repr(law).startswith(type(law).__name__) and f"{D} dimensions" in repr(law)


def test_std_is_that_of_the_noised_law(law, generator):
    alpha, sigma = level(generator)
    expected = math.hypot(alpha * law.std, sigma)
    assert law.noised(alpha, sigma).std == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "empirical"])
def test_images_are_flat_states_in_another_shape(kind, generator):
    means, variances = normals(generator, 3, 8, 8), 0.1 + normals(generator, 3, 8, 8) ** 2
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    image, flat = {
        "gaussian": lambda: (
            wb.Gaussian(means[0], variances[0]),
            wb.Gaussian(means[0].flatten(), variances[0].flatten()),
        ),
        "mixture": lambda: (
            wb.Mixture(weights, means, variances.flatten(1)),
            wb.Mixture(weights, means.flatten(1), variances.flatten(1)),
        ),
        "empirical": lambda: (wb.Empirical(means), wb.Empirical(means.flatten(1))),
    }[kind]()
    x, sigma = normals(generator, 2, 5, 8, 8), uniform(generator, 0.5, 2)
    assert image.event_shape == (8, 8) and image.std == flat.std
    assert torch.equal(
        image.denoise(x, 0.8, sigma), flat.denoise(x.flatten(2), 0.8, sigma).reshape(x.shape)
    )
    density = image.log_prob(x, 0.8, sigma)
    assert density.shape == (2, 5)
    assert torch.equal(density, flat.log_prob(x.flatten(2), 0.8, sigma))
    levels = 0.5 + torch.rand(2, 5, generator=generator, dtype=torch.float64)
    expected = flat.denoise(x.flatten(2), levels, sigma).reshape(x.shape)
    for shape in ((2, 5), (2, 5, 1, 1)):
        assert relative(image.denoise(x, levels.reshape(shape), sigma), expected) < 1e-13


LAW = wb.Mixture(torch.tensor([0.25, 0.75]), torch.zeros(2, 3), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("x", "alpha", "sigma", "error", "pieces"),
    [
        (torch.zeros(4, 2), 1.0, 1.0, ValueError, ["x has shape (4, 2)", "end in (3,)"]),
        (torch.zeros(()), 1.0, 1.0, ValueError, ["x has shape ()", "end in (3,)"]),
        (torch.zeros(4, 3).double(), 1.0, 1.0, TypeError, ["x is float64", "holds float32"]),
        (torch.zeros(4, 3), -0.5, 1.0, ValueError, ["alpha was -0.5", "at least 0"]),
        (torch.zeros(4, 3), 1.0, -2, ValueError, ["sigma was -2", "at least 0"]),
        (torch.zeros(4, 3), 1.0, math.inf, ValueError, ["sigma was inf", "finite"]),
        (torch.zeros(4, 3), math.nan, 1.0, ValueError, ["alpha was nan", "at least 0"]),
        (torch.zeros(4, 3), 0.0, 0.0, ValueError, ["alpha and sigma were both 0", "positive"]),
        (
            torch.zeros(2, 3),
            1.0,
            torch.tensor([1.0, -3.0]),
            ValueError,
            ["sigma had a value of -3", "at least 0"],
        ),
        (
            torch.zeros(2, 3),
            torch.tensor([1.0, math.nan]),
            1.0,
            ValueError,
            ["alpha had a value of nan", "finite"],
        ),
        (
            torch.zeros(2, 3),
            1.0,
            torch.tensor([1.0, math.inf]),
            ValueError,
            ["sigma had a value of inf", "finite"],
        ),
        (
            torch.zeros(2, 3),
            torch.tensor([1.0, 0.0]),
            torch.tensor([1.0, 0.0]),
            ValueError,
            ["alpha and sigma were both 0", "positive"],
        ),
        (
            torch.zeros(4, 3),
            torch.ones(5),
            1.0,
            ValueError,
            ["alpha has shape (5,)", "one value per sample (4,)", "(4, 3)"],
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(x, alpha, sigma, error, pieces):
    names = ["denoise", "log_prob", "score", "jacobian", "divergence", "hessian"]
    calls = [getattr(LAW, name) for name in [*names, "posterior_cov", "classify"]]
    for call in (*calls, lambda *given: LAW.rate(*given, 1.0, 1.0)):
        with pytest.raises(error) as caught:
            call(x, alpha, sigma)
        for piece in pieces:
            assert piece in str(caught.value)


@pytest.mark.parametrize(
    ("rate", "pieces"),
    [
        (math.inf, ["d_sigma was inf", "must be finite."]),
        (math.nan, ["d_sigma was nan", "must be finite."]),
        (torch.tensor([0.0, -math.inf]), ["d_sigma had a value of -inf", "must be finite."]),
        (torch.ones(5), ["d_sigma has shape (5,)", "one value per sample (2,)"]),
    ],
)
def test_bad_rates_are_refused_with_a_sentence(rate, pieces):
    with pytest.raises(ValueError) as caught:
        LAW.rate(torch.zeros(2, 3), 1.0, 1.0, 0.5, rate)
    for piece in pieces:
        assert piece in str(caught.value)


class Silent(Denoiser):
    """Has not even a posterior mean."""

    event_shape = torch.Size((65,))


def test_what_a_law_cannot_do_it_says():
    x = torch.zeros(1, 65).double()
    for call, what in (
        (lambda: Silent().denoise(x, 1.0, 1.0), "Silent has no posterior_mean"),
        (lambda: Silent().log_prob(x, 1.0, 1.0), "Silent has no closed-form log-density"),
        (lambda: Silent().flow(x, (1, 1), (1, 0)), "Silent has no closed-form probability flow"),
        (lambda: Silent().classify(x, 1.0, 1.0), "Silent has no classes"),
    ):
        with pytest.raises(NotImplementedError, match=what):
            call()
    assert Silent().notes == ()


def test_complex_numbers_are_refused_wherever_numbers_enter():
    whole, complex_ = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.complex64)
    for name, call in (
        ("mean", lambda: wb.Gaussian(complex_[0], 1.0)),
        ("cov", lambda: wb.Gaussian(whole[0], torch.eye(2) + 0j)),
        ("mean", lambda: wb.Gaussian([0j, 1j], 1.0)),
        ("points", lambda: wb.Gaussian.fit(complex_)),
        ("points", lambda: wb.Empirical(complex_)),
        ("means", lambda: wb.Mixture(torch.ones(3) / 3, complex_, 1.0)),
    ):
        with pytest.raises(TypeError, match=f"^{name} is complex.*; it must be real: "):
            call()
    for law in (wb.Gaussian(whole[0], 1.0), wb.Empirical(whole), LAW):
        for call in (law.to, wb.Diffusion(wb.VP(), law).to):
            with pytest.raises(TypeError, match=r"dtype was torch\.complex64; .* floating"):
                call(torch.complex64)
            with pytest.raises(
                ValueError, match="device was 'meta'; on this machine it may be cpu"
            ):
                call(device="meta")
