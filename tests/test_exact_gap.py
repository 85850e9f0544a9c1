"""The gap between ODE and SDE, and its bounds, against their definitions."""

import math

import numpy as np
import pytest
import torch
from helpers import LAWS, covariance, normals, uniform
from scipy.integrate import solve_ivp

import workbench as wb
from workbench.exact.gap import gap_bound

PROCESSES = {"VP": wb.VP(), "EDM": wb.EDM(), "RectifiedFlow": wb.RectifiedFlow()}


def gaussian(generator, d=3) -> wb.Gaussian:
    return wb.Gaussian(normals(generator, d), covariance(generator, d))


def gap_by_definition(diffusion, delta, t, end, start):
    """Moment equations in t by DOP853, and the double integral of the bound on a fine grid."""
    process, law = diffusion.process, diffusion.marginal(end)
    values, vectors = torch.linalg.eigh(diffusion.denoiser.cov)
    mean = diffusion.denoiser.mean
    if diffusion.condition is not None:
        mean = mean - diffusion.condition
    lam, mu = values.numpy(), (mean @ vectors).numpy()
    if start == "prior":
        first = np.full(len(lam), process.prior_std(end) ** 2), -process(end).alpha * mu
    else:
        first = (vectors.T @ law.cov @ vectors).diagonal().numpy(), np.zeros(len(lam))

    def rates(time, y, eta):
        c = process(float(time))
        level = c.alpha**2 * lam + c.sigma**2
        pull = c.f + 0.5 * (1 + eta) * (1 + delta) * c.g2 / level
        return np.concatenate([2 * pull * y[: len(lam)] - eta * c.g2, pull * y[len(lam) :]])

    times = process.time_of(
        torch.linspace(
            math.log(process(end).rho), math.log(process(t).rho), 4001, dtype=torch.float64
        ).exp()
    ).numpy()
    times[0], times[-1] = end, t
    ode, sde = (
        solve_ivp(
            rates,
            (end, t),
            np.concatenate(first),
            "DOP853",
            times,
            args=(eta,),
            rtol=1e-10,
            atol=1e-13,
        ).y.T
        for eta in (0.0, 1.0)
    )
    n = len(lam)
    w2 = np.sqrt(
        ((np.sqrt(ode[-1, :n]) - np.sqrt(sde[-1, :n])) ** 2).sum()
        + ((ode[-1, n:] - sde[-1, n:]) ** 2).sum()
    )
    c = process(torch.from_numpy(times)).map(lambda v: v.numpy())
    level = c.alpha[:, None] ** 2 * lam + c.sigma[:, None] ** 2
    v, b, kappa = sde[:, :n], sde[:, n:], 1 + delta
    mismatch = np.sqrt((v * (kappa / level - 1 / v) ** 2 + (kappa * b / level) ** 2).sum(1))
    epsilon = abs(delta) * kappa * c.g2 * np.sqrt(((v + b**2) / level**4).sum(1))
    expansion = (-c.f[:, None] - 0.5 * c.g2[:, None] * kappa / level).max(1)

    def running(values):  # from the first time (noise) on, by the trapezoid rule
        steps = 0.5 * (values[1:] + values[:-1]) * np.diff(times)
        return np.concatenate([[0.0], np.cumsum(steps)])

    grown = running(expansion)
    growth = np.exp(grown - grown[-1])  # e^(integral of L from t to there)
    bracket = (-running(c.alpha * epsilon) + c.alpha[0] * mismatch[0]) / c.alpha
    return (
        w2,
        -running(growth * 0.5 * c.g2 * mismatch)[-1],
        -running(growth * 0.5 * c.g2 * bracket)[-1],
    )


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("start", ["marginal", "prior"])
def test_the_gap_and_its_bounds(name, start, generator):
    process, delta = PROCESSES[name], uniform(generator, -0.15, 0.15)
    diffusion = wb.Diffusion(process, gaussian(generator))
    t, end = process.time_of(0.01), process.time_of(20.0)
    got = gap_bound(diffusion, delta, t, end, start)
    assert got.w2 <= got.mismatch <= got.residual
    wanted = gap_by_definition(diffusion, delta, t, end, start)
    assert got == pytest.approx(wanted, rel=2e-4, abs=1e-6)


def test_no_error_no_gap_and_no_bound(generator):
    diffusion = wb.Diffusion(wb.VP(), gaussian(generator))
    assert gap_bound(diffusion, 0.0) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_gap_of_singular_data_down_to_no_noise(generator):
    basis = torch.linalg.qr(normals(generator, 4, 2)).Q
    data = wb.Gaussian.low_rank(normals(generator, 4), basis, torch.tensor([2.0, 0.3]).double())
    diffusion = wb.Diffusion(wb.EDM(), data)
    got = gap_bound(diffusion, 0.05)
    full = gap_bound(wb.Diffusion(wb.EDM(), wb.Gaussian(data.mean, data.cov)), 0.05)
    assert got == pytest.approx(full, rel=1e-6)
    assert got.w2 <= got.mismatch <= got.residual < math.inf
    with pytest.raises(ValueError, match="singular"):
        gap_bound(diffusion, 0.05, t=0.0)
    regular = wb.Diffusion(wb.EDM(), gaussian(generator))
    near = gap_bound(regular, 0.05, t=1e-9)
    assert gap_bound(regular, 0.05, t=0.0) == pytest.approx(near, rel=1e-6)


def test_under_an_affine_process_the_prior_stands_at_the_condition(generator):
    from workbench.processes.affine import OUVE

    process, delta = OUVE(), uniform(generator, -0.15, 0.15)
    diffusion = wb.Diffusion(process, gaussian(generator), condition=normals(generator, 3))
    got = gap_bound(diffusion, delta, start="prior")
    wanted = gap_by_definition(diffusion, delta, process.t_min, process.t_max, "prior")
    assert got == pytest.approx(wanted, rel=2e-4, abs=1e-6)


def test_what_is_refused(generator):
    diffusion = wb.Diffusion(wb.RectifiedFlow(), gaussian(generator))
    with pytest.raises(ValueError, match="alpha is 0"):
        gap_bound(diffusion, 0.1)
    with pytest.raises(ValueError, match="above -1"):
        gap_bound(diffusion, -1.0, end=0.9)
    with pytest.raises(ValueError, match="start was 'normal'"):
        gap_bound(diffusion, 0.1, end=0.9, start="normal")
    with pytest.raises(ValueError, match="rho must grow"):
        gap_bound(diffusion, 0.1, t=0.9, end=0.5)
    with pytest.raises(TypeError, match="Gaussian data"):
        gap_bound(wb.Diffusion(wb.VP(), LAWS["mixture-full"](generator, 3)), 0.1)
