"""Fokker-Planck residuals against finite differences and quadrature."""

import math

import numpy as np
import pytest
import torch
from helpers import LAWS, covariance, halved, integrate, log_uniform, normals, states, uniform
from scipy.integrate import quad
from scipy.special import stdtrit

import workbench as wb
from workbench.denoisers.perturbed import Perturbed
from workbench.exact import fokker_planck as fp
from workbench.exact.likelihood import log_likelihood
from workbench.exact.reverse import reverse_law
from workbench.processes import Spectral

PROCESSES = {"VP": wb.VP(), "EDM": wb.EDM(), "RectifiedFlow": wb.RectifiedFlow()}

#: Sixth-order central differences: offsets and weights of a first derivative.
STENCIL = ((-3, -1 / 60), (-2, 3 / 20), (-1, -3 / 4), (1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


def gaussian(generator, d=3) -> wb.Gaussian:
    return wb.Gaussian(normals(generator, d), covariance(generator, d))


def time_of(process, generator, low=0.3, high=2.0) -> float:
    """A time at which rho is of the size of the data."""
    return process.time_of(log_uniform(generator, low, high))


def derivative(function, h: float):
    return sum(w * function(k * h) for k, w in STENCIL) / h


def per_mode(diffusion, field, factor):
    if not isinstance(diffusion.process, Spectral):
        return factor * field
    basis = diffusion.process.basis
    return basis.inverse(factor * basis.forward(field))


def potential(diffusion, field, x, t):
    """1/2 div(g2 s) + 1/2 s g2 s - (f x) s, with the divergence by finite differences.

    Under an affine process x is counted from m mu, about which the linear drift turns.
    """
    c, event = diffusion.process(t), len(diffusion.event_shape)
    units = torch.eye(diffusion.denoiser.dim).double().reshape(-1, *diffusion.event_shape)
    stirred = lambda y: per_mode(diffusion, field(y, t), c.g2)  # noqa: E731
    h = 1e-3 * (1 + x.abs().max().item())
    inner = lambda a, b: (a * b).flatten(a.ndim - event).sum(-1)  # noqa: E731
    divergence = sum(
        derivative(lambda e, u=unit: inner(stirred(x + e * u), u.expand_as(x)), h) for unit in units
    )
    origin = 0.0
    if diffusion.condition is not None:
        origin = diffusion.process.shift(t)[0] * diffusion.condition
    s = field(x, t)
    linear = per_mode(diffusion, x - origin, c.f)
    return 0.5 * divergence + 0.5 * inner(s, stirred(x)) - inner(linear, s)


def residual(diffusion, field, x, t):
    """The residual of ``field(x, t)`` for one state, from its definition.

    The time derivative is taken where x - m mu is held: there the drift is linear.
    """
    units = torch.eye(diffusion.denoiser.dim).double().reshape(-1, *diffusion.event_shape)
    h = 2e-3 * (1 + x.abs().max().item())

    def moved(e):
        if diffusion.condition is None:
            return x
        shift = diffusion.process.shift
        return x + (shift(t + e)[0] - shift(t)[0]) * diffusion.condition

    rate = derivative(lambda e: field(moved(e), t + e), 1e-3 * t)
    slopes = [
        derivative(lambda e, u=unit: potential(diffusion, field, x + e * u, t), h) for unit in units
    ]
    return rate - torch.stack(slopes).reshape(x.shape)


def assert_residual(got, wanted, size):
    torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6 * size)


# ---- the score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_score_has_none(name, generator):
    """Of a mixture, by the very finite differences that the others are held against."""
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 2))
    t = time_of(process, generator)
    (x,) = states(generator, diffusion.denoiser, 1, process(t).alpha, process(t).sigma)
    size = diffusion.score_rate(x, t).abs().max().item()
    assert_residual(residual(diffusion, diffusion.score, x, t), torch.zeros(2).double(), size)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", ["mixture-full", "mixture-isotropic", "gaussian-full"])
def test_a_scaled_score(name, law, generator):
    process, delta = PROCESSES[name], uniform(generator, -0.4, 0.4)
    diffusion = wb.Diffusion(process, LAWS[law](generator, 2))
    t = time_of(process, generator)
    x = states(generator, diffusion.denoiser, 2, process(t).alpha, process(t).sigma)
    got = fp.scaled_score_residual(diffusion, x, t, delta)
    size = diffusion.score_rate(x, t).abs().max().item()
    for i, one in enumerate(x):
        wanted = residual(diffusion, lambda y, s: (1 + delta) * diffusion.score(y, s), one, t)
        assert_residual(got[i], wanted, size)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_linear_error_of_a_gaussian_score(name, generator):
    """B with a time derivative; and the gauge field, whose residual is not zero."""
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, gaussian(generator))
    t = time_of(process, generator)
    x = states(generator, diffusion.denoiser, 2, process(t).alpha, process(t).sigma)
    b, rate = 0.3 * normals(generator, 3, 3), normals(generator, 3, 3) / t

    def field(y, s):
        error = (y - diffusion.marginal(s).mean) @ (b + (s - t) * rate).T
        return diffusion.score(y, s) + error

    got = fp.linear_score_residual(diffusion, x, t, b, rate)
    size = diffusion.score_rate(x, t).abs().max().item()
    for i, one in enumerate(x):
        assert_residual(got[i], residual(diffusion, field, one, t), size)


def test_a_gauge_field_has_a_residual_though_its_marginals_are_exact(generator):
    a = normals(generator, 3, 3)
    a = a - a.T
    diffusion = wb.Diffusion(wb.VP(), gaussian(generator))
    turned = wb.Diffusion(wb.VP(), Perturbed(diffusion.denoiser, gauge=a))
    t = time_of(wb.VP(), generator)
    x = states(generator, diffusion.denoiser, 1, wb.VP()(t).alpha, wb.VP()(t).sigma)
    inverse = lambda s: torch.linalg.inv(diffusion.marginal(s).cov)  # noqa: E731
    rate = derivative(lambda e: -a @ inverse(t + e), 1e-3 * t)
    got = fp.linear_score_residual(diffusion, x, t, -a @ inverse(t), rate)
    size = diffusion.score_rate(x, t).abs().max().item()
    assert_residual(got[0], residual(turned, turned.score, x[0], t), size)
    assert got.norm() > 1e-3 * size


# ---- the log-density of a mis-scaled Gaussian ---------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_residual_of_the_log_density(name, generator):
    """From its definition: derivatives of log N(m, C / (1 + delta))."""
    process, delta = PROCESSES[name], uniform(generator, -0.4, 0.4)
    diffusion = wb.Diffusion(process, gaussian(generator))
    t = time_of(process, generator)
    x = states(generator, diffusion.denoiser, 4, process(t).alpha, process(t).sigma)
    c, law = process(t), fp.scaled_law(diffusion, t, delta)
    rate = derivative(lambda e: fp.scaled_law(diffusion, t + e, delta).log_prob(x), 1e-3 * t)
    slope = -(x - law.mean) @ torch.linalg.inv(law.cov)
    laplacian = -torch.linalg.inv(law.cov).trace()
    wanted = rate - 0.5 * c.g2 * (laplacian + slope.square().sum(1))
    wanted = wanted + 3 * c.f + c.f * (x * slope).sum(1)
    got = fp.scaled_log_residual(diffusion, x, t, delta)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8 * rate.abs().max().item())
    torch.testing.assert_close(slope, (1 + delta) * diffusion.score(x, t))


def test_the_score_residual_is_the_gradient_of_the_log_residual(generator):
    process, delta = wb.VP(), uniform(generator, -0.4, 0.4)
    diffusion = wb.Diffusion(process, gaussian(generator))
    t = time_of(process, generator)
    (x,) = states(generator, diffusion.denoiser, 1, process(t).alpha, process(t).sigma)
    slope = [
        derivative(lambda e, u=u: fp.scaled_log_residual(diffusion, x + e * u, t, delta), 1e-2)
        for u in torch.eye(3).double()
    ]
    got = fp.scaled_score_residual(diffusion, x, t, delta)
    torch.testing.assert_close(got, torch.stack(slope), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_along_the_flow(name, generator):
    """The path is the integrated one, and its residual adds up to the closed form (D1)."""
    process, delta = PROCESSES[name], uniform(generator, -0.3, 0.3)
    diffusion = wb.Diffusion(process, gaussian(generator))
    wrong = wb.Diffusion(process, Perturbed(diffusion.denoiser, scale=delta))
    t, end = (time_of(process, generator, *pair) for pair in ((0.05, 0.2), (1.0, 4.0)))
    x = states(generator, diffusion.denoiser, 2, process(end).alpha, process(end).sigma)
    moved = fp.scaled_flow(diffusion, x, end, t, delta)
    torch.testing.assert_close(moved, integrate(wrong, x, end, t), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fp.scaled_flow(diffusion, moved, t, end, delta), x)

    got = fp.flow_residual(diffusion, x, t, end, delta)
    low, high = math.log(process(t).rho), math.log(process(end).rho)

    def integrand(log_rho):
        time = process.time_of(math.exp(log_rho))
        c = process(time)
        at = fp.scaled_flow(diffusion, x[:1], end, time, delta)
        rate = 0.5 * c.g2 / c.sigma**2  # of log rho
        return fp.scaled_log_residual(diffusion, at, time, delta).item() / rate

    assert got[0].item() == pytest.approx(quad(integrand, low, high, epsrel=1e-10)[0], abs=1e-9)

    start = diffusion.marginal(end)
    found = log_likelihood(wrong, moved, t, end, prior=start)
    model = [fp.scaled_law(diffusion, s, delta) for s in (t, end)]
    wanted = model[0].log_prob(moved) + start.log_prob(x) - model[1].log_prob(x) + got
    torch.testing.assert_close(found.log_prob, wanted, rtol=0, atol=1e-8)


def test_the_mean_over_a_start(generator):
    """By Gauss-Hermite quadrature, exact for a quadratic; the start correlated and off centre."""
    diffusion, delta = wb.Diffusion(wb.VP(), gaussian(generator, 2)), uniform(generator, -0.3, 0.3)
    start = gaussian(generator, 2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    z = torch.cartesian_prod(torch.from_numpy(nodes), torch.from_numpy(nodes))
    w = torch.cartesian_prod(torch.from_numpy(weights), torch.from_numpy(weights)).prod(1)
    x = start.mean + z @ torch.linalg.cholesky(start.cov).T
    wanted = (w / w.sum() * fp.flow_residual(diffusion, x, 0.02, 0.9, delta)).sum().item()
    got = fp.mean_flow_residual(diffusion, start, 0.02, 0.9, delta)
    assert got == pytest.approx(wanted, abs=1e-12)


def test_along_the_noising(generator):
    """h = log(q / p) of the reverse SDE obeys the equation of a mean of exp(int R) (D2).

    d_t h = -R - f x.grad h - g2/2 (lap h + |grad h|^2): q/p at (x, t) is then the mean over the
    noising process from there of exp(int R) times the ratio at the end. The start is any Gaussian.
    """
    process, delta = wb.VP(), uniform(generator, -0.3, 0.3)
    diffusion, start = wb.Diffusion(process, gaussian(generator, 2)), gaussian(generator, 2)
    t = time_of(process, generator)
    (x,) = states(generator, diffusion.denoiser, 1, process(t).alpha, process(t).sigma)

    def h(y, s):
        law = reverse_law(diffusion, eta=1.0, scale=delta, start=start, s=s)
        return law.log_prob(y) - fp.scaled_law(diffusion, s, delta).log_prob(y)

    c, units = process(t), torch.eye(2).double()
    along = lambda y, u: derivative(lambda e: h(y + e * u, t), 2e-2)  # noqa: E731
    first = torch.stack([along(x, u) for u in units])
    second = sum(derivative(lambda e, u=u: along(x + e * u, u), 2e-2) for u in units)
    wanted = -fp.scaled_log_residual(diffusion, x, t, delta) - c.f * (x @ first)
    wanted = wanted - 0.5 * c.g2 * (second + first @ first)
    got = derivative(lambda e: h(x, t + e), 1e-3 * t)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 * (1 + c.g2))


# ---- a condition, a basis -----------------------------------------------------------------------


def test_an_affine_process(generator):
    from workbench.processes.affine import OUVE

    process, delta = OUVE(), uniform(generator, -0.3, 0.3)
    diffusion = wb.Diffusion(process, gaussian(generator, 2), condition=normals(generator, 2))
    t = 0.4 * process.t_max
    x = states(generator, diffusion.marginal(t), 1, 1.0, 0.0)
    size = diffusion.score_rate(x, t).abs().max().item()
    got = fp.scaled_score_residual(diffusion, x, t, delta)
    wanted = residual(diffusion, lambda y, s: (1 + delta) * diffusion.score(y, s), x[0], t)
    assert_residual(got[0], wanted, size)
    b = 0.3 * normals(generator, 2, 2)
    field = lambda y, s: diffusion.score(y, s) + (y - diffusion.marginal(s).mean) @ b.T  # noqa: E731
    got = fp.linear_score_residual(diffusion, x, t, b)
    assert_residual(got[0], residual(diffusion, field, x[0], t), size)
    wrong = wb.Diffusion(process, Perturbed(diffusion.denoiser, scale=delta), diffusion.condition)
    moved = fp.scaled_flow(diffusion, x, t, 0.2 * process.t_max, delta)
    torch.testing.assert_close(moved, integrate(wrong, x, t, 0.2 * process.t_max))


def test_a_spectral_process(generator):
    """Data correlated in the basis: g2 acts mode by mode, about nothing that commutes."""
    from workbench.processes import DCT, EqualSNR

    process = EqualSNR(torch.rand(1, 2, generator=generator).double() + 0.5, DCT((1, 2)))
    delta, t = uniform(generator, -0.3, 0.3), 0.3 * process.t_max
    data = wb.Gaussian(normals(generator, 1, 2), covariance(generator, 2))
    diffusion = wb.Diffusion(process, data)
    x = states(generator, data, 1, 1.0, 0.5)
    size = diffusion.score_rate(x, t).abs().max().item()
    got = fp.scaled_score_residual(diffusion, x, t, delta)
    wanted = residual(diffusion, lambda y, s: (1 + delta) * diffusion.score(y, s), x, t)
    assert_residual(got, wanted, size)
    b = 0.2 * normals(generator, 2, 2)

    def field(y, s):
        error = (y - diffusion.marginal(s).mean).flatten() @ b.T
        return diffusion.score(y, s) + error.reshape(y.shape)

    got = fp.linear_score_residual(diffusion, x, t, b)
    assert_residual(got, residual(diffusion, field, x, t), size)
    slope = [
        derivative(
            lambda e, u=u: fp.scaled_log_residual(diffusion, x + e * u.reshape(1, 2), t, delta),
            1e-2,
        )
        for u in torch.eye(2).double()
    ]
    got = fp.scaled_score_residual(diffusion, x, t, delta)
    torch.testing.assert_close(got.flatten(), torch.cat(slope), rtol=1e-7, atol=1e-7 * size)
    total = derivative(lambda e: fp.scaled_law(diffusion, t + e, delta).log_prob(x), 1e-3 * t)
    law = fp.scaled_law(diffusion, t, delta)
    c, drift = process(t), per_mode(diffusion, x, process(t).f)
    s = (1 + delta) * diffusion.score(x, t)
    precision = process.basis.matrix.T @ torch.linalg.inv(law.cov) @ process.basis.matrix
    trace = -(precision.diagonal() * c.g2.flatten()).sum()
    wanted = total - 0.5 * (trace + (s * per_mode(diffusion, s, c.g2)).sum()) + c.f.sum()
    wanted = wanted + (drift * s).sum()
    got = fp.scaled_log_residual(diffusion, x, t, delta)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-7 * total.abs().max().item())
    with pytest.raises(NotImplementedError, match=r"one alpha and sigma for all modes"):
        fp.scaled_flow(diffusion, x, t, 0.5 * t, delta)


def test_what_is_refused(generator):
    diffusion = wb.Diffusion(wb.RectifiedFlow(), gaussian(generator))
    x = normals(generator, 2, 3)
    for call in (
        lambda: fp.scaled_flow(diffusion, x, 1.0, 0.5, 0.1),
        lambda: fp.flow_residual(diffusion, x, 0.5, 1.0, 0.1),
    ):
        with pytest.raises(ValueError, match="alpha is 0"):
            call()
    with pytest.raises(ValueError, match="g2 is infinite"):
        fp.linear_score_residual(diffusion, x, 1.0, torch.eye(3))
    with pytest.raises(ValueError, match="delta > -1"):
        fp.scaled_law(diffusion, 0.5, -2.0)
    mixture = wb.Diffusion(wb.VP(), LAWS["mixture-full"](generator, 3))
    for call in (lambda: fp.scaled_log_residual(mixture, x, 0.5, 0.1),):
        with pytest.raises(TypeError, match="Gaussian data"):
            call()


# ---- of any score -------------------------------------------------------------------------------

EVERY = {**wb.PROCESSES, **wb.AFFINE, **wb.SPECTRAL}


class Scaled(wb.Denoiser):
    """The mis-scaled score of points, known by its formula alone."""

    per_coordinate = True

    def __init__(self, points, delta):
        self.points, self.delta, self.mean = points, delta, points.mean(0)
        self.event_shape, self.dtype, self.device = points.shape[1:], points.dtype, points.device
        self.std = points.var(0, unbiased=False).mean().sqrt().item()

    def posterior_mean(self, x, alpha, sigma):
        apart = (x[:, None] / alpha - self.points) * alpha / sigma
        weights = torch.softmax(-0.5 * apart.square().sum(-1), 1)
        return (1 + self.delta) * (weights @ self.points) - self.delta * x / alpha


@pytest.mark.parametrize("name", EVERY)
def test_the_residual_of_a_diffusion_s_own_score(name, generator):
    """None of exact laws; that of a mis-scaled score is its closed form, of a formula without
    derivatives too."""
    own = {"basis": wb.DCT((4,))} if name in wb.SPECTRAL else {}
    if name in ("ShortestPath", "EqualSNR"):
        own["spectrum"] = 0.2 + normals(generator, 4) ** 2
    process = EVERY[name](**own)
    condition = normals(generator, 4) if process.affine else None
    delta, t = uniform(generator, -0.3, 0.3), uniform(generator, 0.2, 0.7) * process.t_max
    for kind in ("gaussian-full", "mixture-full", "empirical"):
        law = LAWS[kind](generator, 4)
        diffusion = wb.Diffusion(process, law, condition)
        x = diffusion.diffuse(law.mean + normals(generator, 3, 4), t, normals(generator, 3, 4))
        found = fp.score_residual(diffusion, x, t)
        assert found.residual.norm() < 1e-9 * found.motion.norm(), kind
        truth = fp.scaled_score_residual(diffusion, x, t, delta)
        wrong = [Perturbed(law, delta)]
        if kind == "empirical" and not process.spectral:
            wrong.append(Scaled(law.points, delta))
        for one in wrong:
            got = fp.score_residual(wb.Diffusion(process, one, condition), x, t).residual
            torch.testing.assert_close(got, truth, rtol=0, atol=1e-8 * truth.abs().max().item())


def test_the_residual_of_a_gauge_is_that_of_its_definition(generator):
    law = LAWS["mixture-full"](generator, 2)
    diffusion = wb.Diffusion(wb.VP(), Perturbed(law, 0.05, gauge=0.3, bias=0.1))
    t = time_of(diffusion.process, generator)
    (x,) = states(generator, law, 1, diffusion.process(t).alpha, diffusion.process(t).sigma)
    got = fp.score_residual(diffusion, x[None], t).residual[0]
    size = diffusion.score_rate(x, t).abs().max().item()
    assert_residual(got, residual(diffusion, diffusion.score, x, t), size)


def test_probes_cover_the_residual_as_often_as_they_say():
    """Within the standard error of 64 probes in 95 of 100 of 1000 repeats."""
    generator = torch.Generator().manual_seed(1)
    law = LAWS["mixture-full"](generator, 4)
    diffusion = wb.Diffusion(wb.EDM(), Perturbed(law, 0.1))
    x = states(generator, law, 1, 1.0, 1.5)
    exact = fp.score_residual(diffusion, x, 1.5).residual
    probes = torch.randint(0, 2, (64, 1000, 4), generator=generator).double() * 2 - 1
    found = fp.score_residual(diffusion, x.expand(1000, 4), 1.5, probes)
    inside = (found.residual - exact).abs() < stdtrit(63, 0.975) * found.each.std(0) / 8
    shares = inside.double().mean(0)
    assert 0.93 <= shares.mean() <= 0.97 and shares.min() > 0.92


class Opened(wb.Denoiser):
    """A law whose closed forms are not told, as a network has none; it counts what it is asked."""

    def __init__(self, law) -> None:
        self.law, self.asked = law, 0
        self.event_shape, self.mean, self.std = law.event_shape, law.mean, law.std
        self.dtype, self.device = law.dtype, law.device

    def posterior_mean(self, x, alpha, sigma):
        self.asked += len(x)
        return self.law.denoise(x, alpha, sigma)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_residual_of_a_network_takes_four_evaluations(name, generator, monkeypatch):
    """By each probe the one that the closed forms give with it, by differences of second order."""
    law, process = Perturbed(LAWS["mixture-full"](generator, 2), gauge=0.2), PROCESSES[name]
    t, opened = time_of(process, generator), Opened(law)
    x = states(generator, law.base, 5, process(t).alpha, process(t).sigma)
    probes = torch.randn(2, 2, generator=generator).double()
    wanted = fp.score_residual(wb.Diffusion(process, law), x, t, probes)
    size = max(one.abs().max().item() for one in (wanted.each, wanted.motion))
    errors = []
    for _ in halved(monkeypatch, fp, "SPACING", "NUDGE"):
        found = fp.score_residual(wb.Diffusion(process, opened), x, t, probes, "time")
        parts = (found.each - wanted.each, found.motion - wanted.motion)
        errors.append([one.abs().max().item() / size for one in parts])
    for whole, half in zip(*errors, strict=True):
        assert whole < 1e-3 and half < 0.3 * whole + 1e-8
    assert opened.asked == 2 * 5 * (2 + 2 * 2)  # at two times, and at two points a probe


@pytest.mark.parametrize(
    ("t", "probes", "sentence"),
    [(1.0, None, "between pure noise and the data"), (0.0, None, "between pure noise"),
     (0.5, 0, "at least 1")],
)  # fmt: skip
def test_where_there_is_no_residual(t, probes, sentence, generator):
    diffusion = wb.Diffusion(wb.RectifiedFlow(), LAWS["gaussian-full"](generator, 2))
    probes = None if probes is None else torch.ones(probes, 2).double()
    with pytest.raises(ValueError, match=sentence):
        fp.score_residual(diffusion, normals(generator, 3, 2), t, probes)
