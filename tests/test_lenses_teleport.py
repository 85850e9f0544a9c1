"""Teleportation: nothing lost on Gaussian data; on a mixture, what an independent solver finds."""

import numpy as np
import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, covariance, integrate, normals, random_process
from scipy.integrate import solve_ivp

import workbench as wb
from workbench.lenses.teleport import matched_gaussian, teleportation


def mixture(generator, d=2) -> wb.Mixture:
    covs = torch.stack([covariance(generator, d, 0.05, 0.6) for _ in range(3)])
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return wb.Mixture(weights, 1.5 * normals(generator, 3, d), covs)


# ---- the matched Gaussian ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAWS)
def test_the_matched_gaussian_has_the_data_s_mean_and_covariance(kind, generator):
    law = LAWS[kind](generator, 3)
    matched = matched_gaussian(law)
    if isinstance(law, wb.Gaussian):
        assert matched is law
        return
    covs = torch.stack([_full(c, 3) for c in law.covs])
    flat = law.means.flatten(1)
    mean = law.weights @ flat
    apart = flat - mean
    within = (law.weights[:, None, None] * covs).sum(0)
    expected = within + (law.weights * apart.T) @ apart
    torch.testing.assert_close(matched.mean, mean)
    torch.testing.assert_close(matched.cov, expected, rtol=1e-10, atol=1e-12)


def _full(cov: torch.Tensor, d: int) -> torch.Tensor:
    return cov if cov.ndim == 2 else torch.diag(cov.expand(d))


def test_the_matched_gaussian_of_points_is_their_fit(generator):
    points = normals(generator, 40, 2, 3)
    matched, fit = matched_gaussian(wb.Empirical(points)), wb.Gaussian.fit(points)
    torch.testing.assert_close(matched.mean, fit.mean)
    torch.testing.assert_close(matched.cov, fit.cov)


# ---- the error -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_for_gaussian_data_every_skip_is_exact(name, generator, record_property):
    law = wb.Gaussian(normals(generator, 5), covariance(generator, 5))
    lens = teleportation(wb.Diffusion(PROCESSES[name], law), range(16), levels=6, steps=24)
    assert lens.sizes["rho"] == 6
    assert lens["rms"].max() < 1e-12
    assert (lens["rms"] <= lens["floor"]).all()
    assert lens.attrs["gaussian"]
    record_property("measured", f"teleportation, Gaussian, {name}: {float(lens['rms'].max()):.1g}")


def test_directions_without_variance_do_not_matter(generator):
    points = normals(generator, 30, 4)
    points[:, 2] = 0.7
    lens = teleportation(wb.Diffusion(wb.VP(), wb.Gaussian.fit(points)), range(8), 4, 16)
    assert lens["rms"].max() < 1e-12


@pytest.mark.parametrize("name", ["VP", "EDM"])
def test_a_mixture_against_an_adaptive_solver(name, generator):
    """Skip by the matched Gaussian's flow, go on by DOP853 on the velocity: the same endpoints."""
    process = random_process(name, generator)
    diffusion = wb.Diffusion(process, mixture(generator))
    lens = teleportation(diffusion, range(7, 15), levels=4, steps=192)
    grid = wb.Grid.uniform(process, 2)
    start = wb.sample(diffusion, wb.Euler(), grid, range(7, 15), wb.Record("x"))["x"][0]
    matched = wb.Diffusion(process, matched_gaussian(diffusion.denoiser))
    t_max, t_min = grid.t[0], grid.t[-1]

    def walked(x, t):  # in log rho, where the flow is smooth
        return x if t == t_min else _flow(diffusion, x, t, t_min)

    end = walked(start, t_max)
    for level in range(lens.sizes["rho"]):
        one = lens.isel(rho=level)
        t = float(one["t"])
        assert process(t).rho == pytest.approx(float(one["rho"]), rel=1e-9)
        apart = (walked(matched.flow(start, t_max, t), t) - end).square().mean(1)
        assert float(one["rms"]) == pytest.approx(apart.mean().sqrt().item(), rel=2e-3, abs=1e-8)
        quantiles = apart.sqrt().quantile(torch.tensor([0.1, 0.5, 0.9]).double())
        np.testing.assert_allclose(one["quantile"], quantiles, rtol=5e-3, atol=1e-8)


def _flow(diffusion, x, t, s):
    """The probability flow on x/alpha in log rho by DOP853."""
    start, end = diffusion.process(t), diffusion.process(s)
    law = diffusion.denoiser

    def field(log_rho, y):
        y = torch.from_numpy(y).reshape(x.shape)
        return (y - law.denoise(y, 1.0, float(np.exp(log_rho)))).flatten().numpy()

    span = np.log([start.rho, end.rho])
    first = (x / start.alpha).flatten().numpy()
    solved = solve_ivp(field, span, first, "DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1].copy()).reshape(x.shape) * end.alpha


#: Three Gaussians of unequal weight and shape.
LOPSIDED = wb.Mixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[-0.6, 0.0], [0.45, 0.3], [0.15, -0.6]], dtype=torch.float64),
    torch.tensor([0.036, 0.027, 0.018], dtype=torch.float64),
)


def test_it_grows_towards_the_data_as_the_third_power_of_rho(record_property):
    """Far above the data's size the first term the Gaussian lacks is the third cumulant's.

    Of the median: a single sample next to a border between modes carries the mean square. One law
    and one set of seeds, since a law can be drawn whose third cumulant is next to nothing.
    """
    lens = teleportation(wb.Diffusion(wb.VE(), LOPSIDED), range(64), 9, 96)
    rho, median = lens["rho"].values, lens["quantile"].sel(share=0.5).values
    assert (np.diff(median[:7]) > 0).all()
    assert median[-1] > 0.05
    far = rho > 6 * lens.attrs["data_std"]
    slope = np.polyfit(np.log(rho[far]), np.log(median[far]), 1)[0]
    assert slope == pytest.approx(-3, abs=0.25)
    record_property("measured", f"teleportation error falls as rho^{slope:.2f}")


def test_the_floor_holds_what_finer_steps_change():
    diffusion = wb.Diffusion(wb.VP(), LOPSIDED)
    coarse, fine = (teleportation(diffusion, range(16), 4, steps) for steps in (48, 192))
    np.testing.assert_allclose(coarse["rho"], fine["rho"], rtol=1e-9)
    assert (np.abs(coarse["rms"] - fine["rms"]) <= coarse["floor"]).all()
    assert (fine["floor"] < 0.2 * coarse["floor"] + 1e-12).all()


@pytest.mark.parametrize("name", ["Cosine", "RectifiedFlow"])
def test_a_start_at_pure_noise(name, generator):
    """The Gaussian flow leaves alpha = 0 in both runs; further on the flow is any process's."""
    law = mixture(generator)
    lens = teleportation(wb.Diffusion(PROCESSES[name], law), range(8), levels=4, steps=192)
    assert np.isfinite(lens["rho"]).all()
    process = PROCESSES[name]
    t = [process.t_max, process.t_max - 1e-3]
    x = integrate(wb.Diffusion(process, law), _start(process, law), *t)
    matched = wb.Diffusion(process, matched_gaussian(law))
    other = wb.EDM(0.001, process(t[1]).rho)
    y = x / process(t[1]).alpha
    at = float(lens["rho"][2])
    there = other.time_of(at)
    skipped = matched.flow(_start(process, law), process.t_max, process.time_of(at))
    skipped = skipped / process(process.time_of(at)).alpha
    last = float(lens["rho"][-1])
    on_edm = wb.Diffusion(other, law)
    ends = [
        _flow(on_edm, state, begin, other.time_of(last))
        for state, begin in ((y, other.t_max), (skipped, there))
    ]
    alpha = process(process.t_min).alpha
    rms = alpha * (ends[0] - ends[1]).square().mean().sqrt().item()
    assert float(lens["rms"][2]) == pytest.approx(rms, rel=5e-3)


def _start(process, law):
    grid = wb.Grid.uniform(process, 2)
    diffusion = wb.Diffusion(process, law)
    return wb.sample(diffusion, wb.Euler(), grid, range(8), wb.Record("x"))["x"][0]


def test_an_affine_process_is_the_same_in_the_core_variable(generator):
    from workbench.processes import OUVE

    law = mixture(generator)
    diffusion = wb.Diffusion(OUVE(), law, condition=normals(generator, 2))
    lens = teleportation(diffusion, range(8), levels=3, steps=96)
    assert lens["rms"][-1] > 10 * lens["floor"][-1]
    assert lens["rho"][-1] == pytest.approx(diffusion.process(diffusion.process.t_min).rho)


def test_a_sample_depends_on_its_seed_alone(generator):
    diffusion = wb.Diffusion(wb.VP(), mixture(generator))
    one, many = (teleportation(diffusion, seeds, 3, 16) for seeds in ([5], [5, 9, 2]))
    ends = many["quantile"].sel(share=[0.1, 0.9])
    assert (one["rms"] <= ends.max("share") * 3).all()
    again = teleportation(diffusion, [5], 3, 16)
    assert again.identical(one)


def test_progress_is_told_and_may_stop_it(generator):
    diffusion, told = wb.Diffusion(wb.VP(), mixture(generator)), []
    teleportation(diffusion, range(4), 3, 12, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len({total for _, total in told}) == 1

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teleportation(diffusion, range(4), 3, 12, stop)


@pytest.mark.parametrize(("levels", "steps"), [(3, 0), (3, 7), (0, 8)])
def test_numbers_that_are_not_to_be_had(levels, steps):
    with pytest.raises(ValueError, match="steps must be an even number, at least 2, and levels"):
        teleportation(wb.Diffusion(wb.VP(), wb.datasets.ring().law), range(2), levels, steps)


def test_a_spectral_process_is_refused_with_the_reason():
    from workbench.processes import DCT, HeatDissipation

    law = wb.Gaussian(torch.zeros(2, 2).double(), 1.0)
    diffusion = wb.Diffusion(HeatDissipation(DCT((2, 2))), law)
    with pytest.raises(NotImplementedError, match="has one rho per mode"):
        teleportation(diffusion, range(2))
