"""Derivatives of every denoiser, in space and in the noise level, by differences and at limits."""

import pytest
import torch
from denoiser_laws import ALL, D, level
from helpers import LAWS, log_uniform, normals, relative, states, uniform

import workbench as wb
from workbench.denoisers.base import Denoiser


@pytest.fixture(params=ALL)
def law(request, generator):
    return ALL[request.param](generator, D)


def score(law, x, alpha, sigma):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, alpha, sigma).sum(), x)
    return gradient


KINDS = {
    "one level": lambda g, n: (level(g), (uniform(g, -1, 1), uniform(g, -1, 1))),
    "per sample": lambda g, n: (some(g, n, 1), tuple(0.3 * normals(g, n, 1) for _ in "ab")),
    "per coordinate": lambda g, n: (some(g, 1, D), tuple(0.3 * normals(g, 1, D) for _ in "ab")),
    "for each": lambda g, n: (some(g, n, D), tuple(0.3 * normals(g, n, D) for _ in "ab")),
}


def some(generator, *shape):
    return tuple(0.3 + torch.rand(shape, generator=generator).double() for _ in "ab")


def slope(function, step):
    """Derivative at 0 by central differences of sixth order."""
    stencil = ((1, 45), (2, -9), (3, 1))
    return sum(
        c * (function(k * step) - function(-k * step)) for k, c in stencil
    ) / (60 * step)  # fmt: skip


def least(coefficient) -> float:
    return coefficient if isinstance(coefficient, float) else coefficient.min().item()


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_in_space(kind, law, generator):
    """Score, Hessian, Jacobian and divergence by differences of what they are derivatives of."""
    (alpha, sigma), _ = KINDS[kind](generator, 6)
    a, s = least(alpha), least(sigma)
    x, axes = states(generator, law, 6, a, s), torch.eye(D).double()
    step = min(2e-4, 2e-3 * s * s)

    def differences(field):
        moved = [lambda h, e=e: field(x + h * e, alpha, sigma) for e in axes]
        return torch.stack([slope(along, step) for along in moved], -1)

    scale = 1 + x.abs().max()
    for name, field, natural in (
        ("score", law.log_prob, scale / s**2),
        ("hessian", law.score, 1 / s**2),
        ("jacobian", law.denoise, 1 / a),
    ):
        found, ours = getattr(law, name)(x, alpha, sigma), differences(field)
        assert found.shape == ours.shape
        assert (found - ours).abs().max() < 1e-7 * natural + 1e-6 * ours.abs().max(), name
    trace = law.jacobian(x, alpha, sigma).diagonal(dim1=1, dim2=2).sum(1)
    assert (law.divergence(x, alpha, sigma) - trace).abs().max() < 1e-10 / a


@pytest.mark.parametrize("kind", KINDS)
def test_tweedie_of_both_orders(kind, law, generator):
    """alpha D = x + sigma^2 s;  alpha J = I + sigma^2 H;  Cov = J sigma^2 / alpha."""
    (alpha, sigma), _ = KINDS[kind](generator, 6)
    x = states(generator, law, 6, least(alpha), least(sigma))
    a, s = (torch.as_tensor(c, dtype=torch.float64).expand(6, D) for c in (alpha, sigma))
    denoised, scale = (x + s**2 * law.score(x, alpha, sigma)) / a, 1 / a.min()
    apart = law.denoise(x, alpha, sigma) - denoised
    assert apart.abs().max() < 1e-11 * scale * (1 + x.abs().max())
    hessian, jacobian = law.hessian(x, alpha, sigma), law.jacobian(x, alpha, sigma)
    tweedie = (torch.eye(D).double() + s[..., None] ** 2 * hessian) / a[..., None]
    assert (tweedie - jacobian).abs().max() < 1e-10 * scale
    cov = law.posterior_cov(x, alpha, sigma)
    size = scale * scale * s.max() ** 2
    assert (cov - jacobian * (s**2 / a)[:, None]).abs().max() < 1e-10 * size
    assert (cov - cov.mT).abs().max() < 1e-12 * size
    assert (hessian - hessian.mT).abs().max() < 1e-12 / s.min() ** 2
    assert torch.linalg.eigvalsh(cov).min() > -1e-12 * size


@pytest.mark.parametrize("kind", KINDS)
def test_rate_is_the_derivative_in_time(kind, law, generator):
    (alpha, sigma), (d_alpha, d_sigma) = KINDS[kind](generator, 6)
    a, s = least(alpha), least(sigma)
    x = states(generator, law, 6, a, s)
    found = law.rate(x, alpha, sigma, d_alpha, d_sigma)
    step = 2e-3 * min(a, s) * min(1, s)
    ours = slope(lambda h: law.denoise(x, alpha + h * d_alpha, sigma + h * d_sigma), step)
    natural = (1 + x.abs().max()) / min(a, s) ** 2
    assert (found - ours).abs().max() < 1e-8 * natural + 1e-6 * ours.abs().max()
    # The two ways time may pass add up.
    each = law.rate(x, alpha, sigma, d_alpha, 0.0) + law.rate(x, alpha, sigma, 0.0, d_sigma)
    assert (each - found).abs().max() < 1e-11 * natural


def test_derivatives_at_pure_noise(law, generator):
    """At alpha = 0 the state says nothing: J = 0, Cov that of the data, s = -x / sigma^2."""
    x, sigma = normals(generator, 4, D), log_uniform(generator, 0.1, 10)
    near, each = 1e-6, torch.full((4,), sigma, dtype=torch.float64)
    for noise in ((0.0, sigma), (0 * each, each)):
        assert law.jacobian(x, *noise).abs().max() < 1e-12 * (1 + 1 / sigma)
        assert law.divergence(x, *noise).abs().max() < 1e-12 * (1 + 1 / sigma)
        assert relative(law.score(x, *noise), -x / sigma**2) < 1e-14
        assert relative(law.hessian(x, *noise), -torch.eye(D).double() / sigma**2) < 1e-13
        cov = law.posterior_cov(x, *noise)
        assert cov.diagonal(dim1=1, dim2=2).mean().item() == pytest.approx(law.std**2, rel=1e-10)
        assert relative(cov, law.posterior_cov(x, near * sigma, sigma)) < 1e-4
        rate = law.rate(x, *noise, 1.0, 0.7)
        ours = (law.denoise(x, near * sigma, sigma) - law.mean) / (near * sigma)
        assert relative(rate, ours) < 1e-3
        assert law.rate(x, *noise, 0.0, 0.7).abs().max() < 1e-12 * (1 + 1 / sigma)


def test_derivatives_without_noise(law, generator):
    """At sigma = 0: where every direction has variance D = x / alpha; else a sentence or limits."""
    alpha = log_uniform(generator, 0.1, 2)
    x = states(generator, law, 4, alpha, 0.1)
    eye, each = torch.eye(D).double(), torch.full((4,), alpha, dtype=torch.float64)
    for a, s in ((alpha, 0.0), (each, 0 * each)):
        assert law.posterior_cov(x, a, s).abs().max() < 1e-14 * (1 + x.abs().max() / alpha) ** 2
        try:
            density = law.log_prob(x, a, s)
        except ValueError:
            for call in (law.score, law.hessian):
                with pytest.raises(ValueError, match=r"sigma( was|\s=) 0.*Ask at sigma > 0"):
                    call(x, a, s)
            if isinstance(law, wb.Gaussian):  # a projector: the modes with variance
                jacobian = alpha * law.jacobian(x, a, s)
                assert relative(jacobian @ jacobian, jacobian) < 1e-12
                assert law.divergence(x, a, s) * alpha == pytest.approx(2.0, rel=1e-12)
            continue
        assert density.isfinite().all()
        assert relative(law.jacobian(x, a, s), eye / alpha) < 1e-9
        assert relative(law.denoise(x, a, s), x / alpha) < 1e-10
        assert relative(law.rate(x, a, s, 0.3, 0.7), -0.3 * x / alpha**2) < 1e-9
        assert relative(law.score(x, a, s), score(law, x, a, s)) < 1e-9


def test_derivatives_of_batches_of_every_shape(law, generator):
    x = states(generator, law, 6, 0.7, 0.7)
    sigmas = 0.3 + torch.rand(6, generator=generator, dtype=torch.float64)
    grid, levels = x.reshape(2, 3, D), sigmas.reshape(2, 3)
    names = ["score", "jacobian", "divergence", "hessian", "posterior_cov"]
    for name in [*names, "classify"] if isinstance(law, wb.Mixture) else names:
        ask = getattr(law, name)
        flat = ask(x, 0.7, sigmas)
        for given in (levels, levels[..., None]):
            assert torch.equal(ask(grid, 0.7, given), flat.reshape(2, 3, *flat.shape[1:])), name
        one = ask(x[4], 0.7, sigmas[4].item())
        assert one.shape == flat.shape[1:] and relative(one, flat[4]) < 1e-10, name
        assert ask(x[:0], 0.7, 0.5).shape == (0, *flat.shape[1:]), name
        assert ask(x[:0], 0.7, sigmas[:0]).shape == (0, *flat.shape[1:]), name
    rates = law.rate(x, 0.7, sigmas, -0.4, 2 * sigmas)
    assert torch.equal(law.rate(grid, 0.7, levels, -0.4, 2 * levels), rates.reshape(grid.shape))


def test_derivatives_in_float32_are_near_those_in_float64(law, generator):
    single = law.to(torch.float32)
    double = single.to(torch.float64)
    x = states(generator, law, 50, 0.8, 0.4).float()
    names = ["score", "jacobian", "divergence", "hessian", "posterior_cov"]
    for name in names:
        got, truth = getattr(single, name)(x, 0.8, 0.4), getattr(double, name)(x.double(), 0.8, 0.4)
        assert got.dtype == torch.float32
        assert relative(got, truth) < 1e-5, name
    got = single.rate(x, 0.8, 0.4, -0.3, 0.6)
    assert relative(got, double.rate(x.double(), 0.8, 0.4, -0.3, 0.6)) < 1e-5


def test_automatic_differentiation_goes_through(law, generator):
    """Reverse, forward and batched: what a lens does to a network it can do to a law."""
    alpha, sigma = level(generator)
    x = states(generator, law, 3, alpha, sigma)
    jacobian = law.jacobian(x, alpha, sigma)

    def one(y):
        return law.denoise(y[None], alpha, sigma)[0]

    found = torch.stack([torch.func.jacrev(one)(y) for y in x])
    assert alpha * (found - jacobian).abs().max() < 1e-9
    if not isinstance(law, wb.Empirical):
        v = normals(generator, 3, D)
        ask = lambda y: law.denoise(y, alpha, sigma)  # noqa: E731
        forward = torch.func.jvp(ask, (x,), (v,))[1]
        assert alpha * (forward - (jacobian @ v[..., None])[..., 0]).abs().max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_from_a_posterior_mean_and_its_jacobian(kind, generator):
    """A denoiser that gives no more has everything else, to the digits of its formula."""
    truth = LAWS["mixture-full"](generator, D)

    class Plain(Denoiser):
        event_shape, per_coordinate = truth.event_shape, True

        def posterior_mean(self, x, alpha, sigma):
            return truth.denoise(x, alpha, sigma)

    (alpha, sigma), _ = KINDS[kind](generator, 6)
    x = states(generator, truth, 6, 0.7, 0.7)
    for name in ("score", "jacobian", "divergence", "hessian", "posterior_cov"):
        found, expected = (getattr(d, name)(x, alpha, sigma) for d in (Plain(), truth))
        assert relative(found, expected) < 1e-9, name
    for name, what in (("score", "the score"), ("hessian", "the Hessian")):
        with pytest.raises(ValueError, match=rf"sigma was 0: {what} of this Plain.*sigma > 0"):
            getattr(Plain(), name)(x, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"alpha was 0.*this Plain.*Ask at alpha > 0"):
        Plain().posterior_cov(x, 0.0, 1.0)
