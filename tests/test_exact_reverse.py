"""The continuous reverse process against its moment equations, samplers and matrix algebra."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import PROCESSES, covariance, log_uniform, normals, random_process, uniform
from scipy.integrate import solve_ivp

import workbench as wb
from workbench.exact.distances import w2
from workbench.exact.law import law
from workbench.exact.reverse import initialisation_error, retention, reverse_law, truncation_error
from workbench.processes import affine, bases, spectral

NAMES = list(PROCESSES)


def line(variance: float, mean: float = 0.0) -> wb.Gaussian:
    mean, variance = torch.tensor([[mean], [variance]], dtype=torch.float64)
    return wb.Gaussian(mean, variance)


def moments(process, lam, mu, eta, scale, bias, start, t, s):
    """Mean, variance and covariance with the start at ``s``, from their own equations in t."""

    def rates(time, y):
        mean, variance, cross = y
        c = process(time)
        level = c.alpha**2 * lam + c.sigma**2
        slope = -(1 + scale) / level  # of the score
        linear = c.f - 0.5 * (1 + eta) * c.g2 * slope
        offset = -0.5 * (1 + eta) * c.g2 * (-slope * c.alpha * mu + bias / c.alpha)
        return [
            linear * mean + offset,
            2 * linear * variance - eta * c.g2,
            linear * cross,
        ]

    begin = [start[0], start[1], start[1]]
    return solve_ivp(rates, (t, s), begin, "LSODA", rtol=1e-10, atol=1e-13).y[:, -1]


@pytest.mark.parametrize("name", NAMES)
def test_the_moment_equations(name, generator):
    """Random process, data, start, stochasticity and error of the score; one mode without data."""
    process = random_process(name, generator)
    t = uniform(generator, 0.5, 0.95) * process.t_max
    s = min(10 * process.t_min, 0.1 * t)
    for lam in (log_uniform(generator, 1e-3, 1e2), 0.0):
        mu, bias = normals(generator, 2).tolist()
        eta, scale = uniform(generator, 0, 2), uniform(generator, -0.3, 0.3)
        start = line(log_uniform(generator, 0.1, 10), uniform(generator, -1, 1))
        got = reverse_law(wb.Diffusion(process, line(lam, mu)), eta, scale, bias, start, t, s)
        begin = (start.mean.item(), start.variances.item())
        mean, variance, _ = moments(process, lam, mu, eta, scale, bias, begin, t, s)
        assert got.mean.item() == pytest.approx(mean, rel=1e-6, abs=1e-7)
        assert got.variances.item() == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_retention_is_the_correlation_of_the_equations(name, generator):
    process = random_process(name, generator)
    t = uniform(generator, 0.5, 0.95) * process.t_max
    s = min(10 * process.t_min, 0.1 * t)
    lam, eta = log_uniform(generator, 1e-2, 1e2), uniform(generator, 0, 2)
    c, lam_ = process(t), torch.tensor([lam, 0.0], dtype=torch.float64)
    for start in ("marginal", "prior"):
        spread = c.alpha**2 * lam + c.sigma**2 if start == "marginal" else process.prior_std(t) ** 2
        _, variance, cross = moments(process, lam, 0.0, eta, 0.0, 0.0, (0.0, spread), t, s)
        wanted = cross / math.sqrt(variance * spread)
        got = retention(process, lam_, t, eta, s, start)
        assert got[0].item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    both = retention(process, lam_, torch.tensor([t, s], dtype=torch.float64), eta, s, "prior")
    torch.testing.assert_close(both[0], got)


def test_retention_from_far_away():
    lam = torch.tensor([100.0, 1.0, 0.01, 0.0], dtype=torch.float64)
    for eta in (0.0, 0.3, 1.0):
        wanted = (1 + 80.0**2 / lam) ** (-eta / 2)
        torch.testing.assert_close(retention(wb.EDM(), lam, 80.0, eta), wanted)
    # From pure noise only the probability flow keeps anything.
    assert retention(wb.RectifiedFlow(), lam, 1.0, 0.2).tolist() == [0, 0, 0, 0]
    assert retention(wb.RectifiedFlow(), lam, 1.0, 0.0, start="prior").tolist() == [1, 1, 1, 1]


SPECTRUM = torch.linspace(0.1, 2.0, 6, dtype=torch.float64).reshape(2, 3)
EVERY = [
    *PROCESSES.values(),
    affine.OUVE(),
    affine.IRSDE(),
    affine.RDDM(),
    affine.Resfusion(),
    spectral.HeatDissipation(bases.DCT((2, 3))),
    spectral.Blurring(bases.DCT((2, 3))),
    spectral.EqualSNR(SPECTRUM, bases.Hartley((2, 3))),
    spectral.ShortestPath(SPECTRUM, bases.DCT((2, 3))),
]


@pytest.mark.parametrize("process", EVERY, ids=lambda p: type(p).__name__)
def test_a_right_score_leads_from_marginal_to_marginal(process, generator):
    """For every kind of process; ``alpha = 0`` at the start and modes without variance included."""
    variances = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    variances[0, 1] = 0.0
    data = wb.Gaussian(normals(generator, 2, 3), variances)
    condition = None
    if isinstance(process, spectral.Spectral):
        data = data.transformed(process.basis.matrix.T)
    if isinstance(process, affine.Affine):
        condition = normals(generator, 2, 3)
    diffusion = wb.Diffusion(process, data, condition)
    for eta in (0.0, 0.4, 1.0, 2.0):
        for s in (process.t_min, 0.0):
            start = diffusion.marginal(process.t_max)
            got, wanted = reverse_law(diffusion, eta, start=start, s=s), diffusion.marginal(s)
            torch.testing.assert_close(got.mean, wanted.mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(got.cov, wanted.cov, rtol=1e-9, atol=1e-9)
    if process.has_prior:
        assert initialisation_error(diffusion, 2.0) <= initialisation_error(diffusion) + 1e-12


def test_from_pure_noise(generator):
    """No trace of a wrong start is left by an SDE; a weak score never recovers."""
    process, data = wb.RectifiedFlow(), wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    diffusion = wb.Diffusion(process, data)
    wrong = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    for eta in (0.5, 1.0):
        got = reverse_law(diffusion, eta, start=wrong, s=0.0)
        torch.testing.assert_close(got.cov, data.cov, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.mean, data.mean, rtol=1e-9, atol=1e-9)
    assert reverse_law(diffusion, 0.0, 0.1).variances.max() == 0.0
    assert reverse_law(diffusion, 2.0, bias=0.1).mean.isfinite().all()
    for options in ({"scale": -0.1}, {"eta": 0.2, "scale": -0.3}, {"eta": 1.0, "bias": 0.1}):
        with pytest.raises(ValueError, match="has no finite law"):
            reverse_law(diffusion, **options)


def test_a_score_switched_off():
    """Then the state is only scaled, and noise is added as it was on the way out."""
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(torch.ones(2).double(), torch.eye(2).double()[0]))
    for s in (0.0, 1e-3):
        t, c = 0.7, wb.VP()(s)
        start = diffusion.marginal(t)
        factor = c.alpha / wb.VP()(t).alpha
        flow = reverse_law(diffusion, 0.0, -1.0, start=start, t=t, s=s)
        torch.testing.assert_close(flow.variances, factor**2 * start.variances)
        torch.testing.assert_close(flow.mean, factor * start.mean)
        sde = reverse_law(diffusion, 1.0, -1.0, 0.3, start=start, t=t, s=s)
        added = c.alpha**2 * (wb.VP()(t).rho ** 2 - c.rho**2)
        torch.testing.assert_close(sde.variances, factor**2 * start.variances + added)
        torch.testing.assert_close(sde.mean, factor * start.mean + 0.3 * added / c.alpha)


def test_no_time_at_all(generator):
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(normals(generator, 3), covariance(generator, 3)))
    start = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    got = reverse_law(diffusion, 1.0, 0.3, 0.1, start, 0.4, 0.4)
    torch.testing.assert_close(got.cov, start.cov)
    torch.testing.assert_close(got.mean, start.mean)


def test_around_kappa_one(generator):
    """The law is smooth where the formula divides by kappa - 1 and by kappa - 2."""
    diffusion = wb.Diffusion(wb.VP(), line(uniform(generator, 0.1, 3), 1.0))
    for eta in (0.0, 1.0, 0.25):
        middle = reverse_law(diffusion, eta, 0.0, 0.1)
        for scale in (1e-12, -1e-12, 1e-9, -1e-9):
            near = reverse_law(diffusion, eta, scale, 0.1)
            bound = 40 * abs(scale)
            assert near.variances.item() == pytest.approx(middle.variances.item(), rel=bound)
            assert near.mean.item() == pytest.approx(middle.mean.item(), rel=bound)


def test_any_covariances_against_matrix_equations(generator):
    """Correlated data and start, none of them in the basis of the other."""
    process, d, eta, scale = wb.VP(), 3, uniform(generator, 0, 1.5), 0.1
    data = wb.Gaussian(normals(generator, d), covariance(generator, d))
    start = wb.Gaussian(normals(generator, d), covariance(generator, d))
    bias = normals(generator, d)

    def rates(time, y):
        y = torch.from_numpy(y)
        mean, cov = y[:d], y[d:].reshape(d, d)
        c = process(time)
        eye = torch.eye(d).double()
        slope = -(1 + scale) * torch.linalg.inv(c.alpha**2 * data.cov + c.sigma**2 * eye)
        linear = c.f * eye - 0.5 * (1 + eta) * c.g2 * slope
        offset = 0.5 * (1 + eta) * c.g2 * (slope @ data.mean * c.alpha - bias / c.alpha)
        grow = linear @ cov + cov @ linear.T - eta * c.g2 * eye
        return torch.cat([linear @ mean + offset, grow.flatten()]).numpy()

    begin = torch.cat([start.mean, start.cov.flatten()]).numpy()
    end = solve_ivp(rates, (0.8, 0.05), begin, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    got = reverse_law(wb.Diffusion(process, data), eta, scale, bias, start, 0.8, 0.05)
    torch.testing.assert_close(got.mean, torch.from_numpy(end[:d]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        got.cov, torch.from_numpy(end[d:]).reshape(d, d), rtol=1e-8, atol=1e-8
    )


def test_low_rank_is_the_full_covariance(generator):
    basis = torch.linalg.qr(normals(generator, 5, 2)).Q
    for rest in (0.0, 0.3):
        low = wb.Gaussian.low_rank(
            normals(generator, 5), basis, torch.tensor([2.0, 0.3]).double(), rest
        )
        full, bias = wb.Gaussian(low.mean, low.cov), normals(generator, 5)
        other = wb.Gaussian(normals(generator, 5), covariance(generator, 5))
        for start in (None, other, wb.Diffusion(wb.VP(), low).marginal(1.0)):
            a, b = (
                reverse_law(wb.Diffusion(wb.VP(), data), 0.7, 0.1, bias, start)
                for data in (low, full)
            )
            torch.testing.assert_close(a.mean, b.mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(a.cov, b.cov, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sampler", "eta"), [(wb.DDIM(), 0.0), (wb.EulerMaruyama(), 1.0)])
def test_samplers_converge_to_it(sampler, eta, generator, record_property):
    """To first order in the step, from the prior, without drawing a sample."""
    data = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    diffusion = wb.Diffusion(wb.VP(), data)
    exact = reverse_law(diffusion, eta)
    errors = [
        w2(law(diffusion, sampler, wb.Grid.log_snr(wb.VP(), n)), exact) for n in (200, 400, 800)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    record_property("measured", f"{sampler!r} nears the reverse law with order {orders[-1]:.3f}")
    assert orders[-1] == pytest.approx(1.0, abs=0.1)


def test_initialisation_and_truncation():
    """Pierret & Galerne's formulas; the flow keeps the relative error, the SDE forgets it."""
    lam = torch.tensor([4.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    process = wb.VP()
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(4).double(), lam))
    c, first = process(1e-3), process(1.0)
    level, top = c.alpha**2 * lam + c.sigma**2, first.alpha**2 * lam + first.sigma**2
    ode = level / top
    decay = (first.alpha / c.alpha) ** 2  # exp(-2 B) in their beta
    sde = level + decay * level**2 / top * (1 / top - 1)
    for eta, wanted in ((0.0, ode), (1.0, sde)):
        got = reverse_law(diffusion, eta)
        torch.testing.assert_close(got.variances, wanted, rtol=1e-13, atol=0)
        error = (wanted.sqrt() - level.sqrt()).norm().item()
        assert initialisation_error(diffusion, eta) == pytest.approx(error, rel=1e-4, abs=1e-15)
    error = (level.sqrt() - lam.sqrt()).norm().item()
    assert truncation_error(diffusion) == pytest.approx(error, rel=1e-12)
    assert truncation_error(diffusion, 0.0) == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eta": -1.0}, "eta was -1.0"),
        ({"scale": -1.5}, "scale was -1.5"),
        ({"t": 0.1, "s": 0.2}, "runs from t down to s"),
        ({"bias": torch.ones(5)}, r"bias has shape \(5,\)"),
    ],
)
def test_what_is_refused(options, said):
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match=said):
        reverse_law(diffusion, **options)


def test_data_that_have_no_modes(generator):
    with pytest.raises(TypeError, match="needs Gaussian data"):
        truncation_error(wb.Diffusion(wb.VP(), wb.datasets.ring().law))
    process = spectral.HeatDissipation(bases.DCT((2, 2)))
    data = wb.Gaussian(normals(generator, 2, 2), covariance(generator, 4))
    with pytest.raises(TypeError, match="correlated in these data"):
        reverse_law(wb.Diffusion(process, data))
    with pytest.raises(ValueError, match="start was 'data'"):
        retention(wb.VP(), torch.ones(2), 0.5, 1.0, start="data")
