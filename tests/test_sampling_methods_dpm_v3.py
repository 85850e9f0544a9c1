"""DPM-Solver-v3: exact on Gaussians, DPM-Solver++ as a special case, orders, statistics, ends."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import LAWS, integrate, normals, observed_orders, relative, ring
from scipy.integrate import solve_ivp

import workbench as wb


def power_law(mean: torch.Tensor) -> wb.Gaussian:
    return wb.Gaussian(mean, torch.arange(1, mean.numel() + 1, dtype=torch.float64) ** -1.0)


def constant(l, s, b, grid, event=()) -> wb.ModelStatistics:
    places = [-math.log(rho) for rho in grid.rho if 0 < rho < math.inf]
    d = math.prod(event)
    values = (np.full((1, d), v) for v in (l, s, b))
    return wb.ModelStatistics(min(places), max(places), *values, event)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("process", [wb.VP(), wb.EDM()], ids=lambda p: type(p).__name__)
def test_exact_on_a_gaussian_at_five_evaluations(order, process, generator, record_property):
    worst = 0.0
    for mean in (torch.zeros(64, dtype=torch.float64), normals(generator, 64)):
        diffusion = wb.Diffusion(process, power_law(mean))
        x = process(process.t_max).sigma * normals(generator, 16, 64)
        run = wb.sample(
            diffusion, wb.DPMSolverV3(order), wb.Grid.log_snr(process, 5), range(16), x=x
        )
        assert run.nfe == 5
        truth = diffusion.flow(x, process.t_max, process.t_min)
        worst = max(worst, (run.final - truth).abs().max().item())
    assert worst < 1e-8
    record_property("measured", f"DPM-Solver-v3({order}) on a 64-mode Gaussian: {worst:.0e}")


def test_exact_at_one_step_and_its_law(generator):
    process = wb.VP()
    diffusion = wb.Diffusion(process, power_law(torch.zeros(8, dtype=torch.float64)))
    for steps in (1, 3):
        grid = wb.Grid.log_snr(process, steps)
        sampler = wb.DPMSolverV3().prepared(diffusion, grid)
        made = wb.exact.law(diffusion, sampler, grid, diffusion.marginal(grid.t[0]))
        assert wb.exact.w2(made, diffusion.marginal(grid.t[-1])) < 1e-7


def taylor(diffusion, grid, x, order):
    """Exponential Adams in lambda: D the polynomial through the latest evaluations, by phis."""
    past = []
    for a, b in pairwise(grid.nodes):
        lam, h = math.log(a.alpha / a.sigma), math.log(b.alpha / b.sigma * a.sigma / a.alpha)
        past = [(lam, diffusion.denoiser.denoise(x, a.alpha, a.sigma)), *past][:order]
        # int_0^h e^{tau - h} tau^k dtau, by series
        moments = [
            sum((-h) ** j * h ** (k + 1) / math.prod(range(k + 1, k + j + 2)) for j in range(60))
            for k in range(order)
        ]
        places = np.array([p - lam for p, _ in past])
        weights = np.linalg.solve(np.vander(places, increasing=True).T, moments[: len(past)])
        x = b.sigma / a.sigma * x
        for weight, (_, denoised) in zip(weights, past, strict=True):
            x = x + b.alpha * weight * denoised
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
def test_degenerates_to_dpm_solver_pp(order, generator):
    """l = 1, s = b = 0, also in a program made without a model."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.log_snr(process, 11), normals(generator, 5, 3)
    told = taylor(diffusion, grid, x, order)
    given = wb.DPMSolverV3(order, statistics=constant(1.0, 0.0, 0.0, grid, (3,)))
    got = wb.sample(diffusion, given, grid, range(5), x=x).final
    assert relative(got, told) < 1e-12
    from workbench.sampling import NoiseSource, walk

    source = NoiseSource(range(5), (3,))
    plain = walk(wb.DPMSolverV3(order).program(process, grid), diffusion.core, x, source)[0]
    assert relative(plain, got) < 1e-12
    if order == 1:
        same = wb.sample(diffusion, wb.DPMSolverPP(1), grid, range(5), x=x).final
        assert relative(got, same) < 1e-12


def test_degenerates_to_dpm_solver(generator):
    """l = 0, s = -1 and b = 0, of order 1 DDIM too."""
    process = wb.EDM()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.log_snr(process, 9), 80 * normals(generator, 5, 3)
    given = wb.DPMSolverV3(1, statistics=constant(0.0, -1.0, 0.0, grid, (3,)))
    got = wb.sample(diffusion, given, grid, range(5), x=x).final
    assert relative(got, wb.sample(diffusion, wb.DDIM(), grid, range(5), x=x).final) < 1e-11


def test_the_step_solves_the_modelled_flow(generator):
    """With any l(lambda), s(lambda), b(lambda): y' = -l y - f, f' = s f + b, by another solver."""
    from workbench.sampling.methods.dpm_v3 import _step

    low, high = -2.0, 1.0
    at = wb.ModelStatistics.points(low, high, 48)[:, None]
    values = (0.5 + 0.4 * np.sin(at), 0.7 * np.cos(2 * at), 0.3 + 0.5 * np.sin(3 * at))
    given = wb.ModelStatistics(low, high, *values, (1,))
    path = solve_ivp(
        lambda p, u: [
            -(0.5 + 0.4 * math.sin(p)) * u[0] - u[1],
            0.7 * math.cos(2 * p) * u[1] + 0.3 + 0.5 * math.sin(3 * p),
        ],
        (-1.9, 0.8),
        [0.7, -0.4],
        rtol=1e-12,
        atol=1e-12,
        dense_output=True,
    ).sol
    for places, end in (([-1.9], 0.8), ([-0.6, -1.1], 0.4), ([0.1, -0.8, -1.7], 0.8)):
        state, past, shift = _step(given, places, end)
        made = state * path(places[0])[0] + shift
        made = made + sum(w * path(p)[1] for w, p in zip(past, places, strict=True))
        assert made[0] == pytest.approx(path(end)[0], abs=1e-9)


def test_orders_on_the_ring(generator, record_property):
    diffusion = wb.Diffusion(wb.VP(), ring())
    x = normals(generator, 256, 2)
    truth = integrate(diffusion, x, 1.0, 1e-3, rtol=1e-11, atol=1e-12)
    told = []
    for order in (1, 2, 3):
        sampler = wb.DPMSolverV3(order)
        found = observed_orders(diffusion, sampler, wb.Grid.log_snr, x, truth)
        assert found[-1] == pytest.approx(order, abs=0.5 if order == 3 else 0.25), found
        told.append(f"{found[-1]:.2f}")
    record_property("measured", f"orders of DPM-Solver-v3 on the ring: {' '.join(told)}")


def test_statistics_of_a_gaussian(generator):
    """l = 1 / (1 + v e^{2 lambda}); f = -l m is known beforehand, so s = 0 and b = df/dlambda."""
    mean, v = normals(generator, 5), 0.1 + normals(generator, 5) ** 2
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(mean, v))
    given = wb.ModelStatistics.estimate(diffusion)
    at = wb.ModelStatistics.points(given.low, given.high, 128)[:, None]
    linear = 1 / (1 + v.numpy() * np.exp(2 * at))
    assert np.abs(given.linear - linear).max() < 1e-12
    assert np.abs(given.slope).max() == 0.0
    assert np.abs(given.offset - 2 * linear * (1 - linear) * mean.numpy()).max() < 1e-7
    between = np.linspace(given.low, given.high, 37)
    assert (
        np.abs(given.at(between)[0] - 1 / (1 + v.numpy() * np.exp(2 * between[:, None]))).max()
        < 1e-9
    )


def test_statistics_are_repeatable_and_made_once(generator, monkeypatch):
    diffusion = wb.Diffusion(wb.VP(), LAWS["empirical"](generator, 6))
    grid = wb.Grid.log_snr(diffusion.process, 6)
    sampler = wb.DPMSolverV3(samples=8, nodes=32)
    first = sampler.prepared(diffusion, grid).statistics
    assert sampler.prepared(diffusion, wb.Grid.karras(diffusion.process, 9)).statistics is first
    again = wb.ModelStatistics.estimate(diffusion, samples=8, nodes=32)
    for name in ("linear", "slope", "offset"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    other = wb.ModelStatistics.estimate(diffusion, samples=8, nodes=32, seeds=[9, 10, 11, 12])
    assert not np.array_equal(other.linear, first.linear)


def test_a_sample_alone_as_in_a_batch(generator):
    diffusion = wb.Diffusion(wb.VP(), LAWS["empirical"](generator, 6))
    grid = wb.Grid.log_snr(diffusion.process, 6)
    sampler = wb.DPMSolverV3(samples=8, nodes=32)
    batch = wb.sample(diffusion, sampler, grid, range(4)).final
    alone = wb.sample(diffusion, sampler, grid, [2]).final
    ready = wb.sample(diffusion, sampler.prepared(diffusion, grid), grid, range(4)).final
    assert relative(alone, batch[2:3]) < 1e-11
    assert torch.equal(ready, batch)


def test_probes_estimate_the_diagonal(generator):
    """The diagonal of D's Jacobian by random probes, against the closed form."""
    from workbench.sampling.methods.dpm_v3 import _diagonal

    law = wb.Empirical(normals(generator, 30, 6))
    y = normals(generator, 3000, 6)
    probes = normals(generator, 3000, 6).sign()
    exact = law.jacobian(y[:300], 1.0, 0.8).diagonal(dim1=1, dim2=2)
    each = probes * law.at(1.0, 0.8).jvp(y, probes)
    error = each.std(0) / math.sqrt(3000) + exact.std(0) / math.sqrt(300)
    assert ((_diagonal(law, y, 0.8, probes) - exact.mean(0)).abs() < 6 * error).all()


@pytest.mark.parametrize("name", ["Cosine", "RectifiedFlow", "VE", "OU"])
@pytest.mark.parametrize("final", ["stop", "denoise"])
def test_any_process_both_ends_and_counts(name, final, generator):
    process = wb.PROCESSES[name]()
    law = wb.Gaussian(normals(generator, 3), 0.1 + normals(generator, 3) ** 2)
    diffusion = wb.Diffusion(process, law)
    grid = wb.Grid.log_snr(process, 6, final)
    x = process(process.t_max).sigma * normals(generator, 8, 3)
    run = wb.sample(diffusion, wb.DPMSolverV3(), grid, range(8), record=wb.Record("x"), x=x)
    assert run.nfe == 6 == wb.DPMSolverV3().nfe(grid)
    first, last = int(grid.alpha[0] == 0), len(grid) - 1 - (final == "denoise")
    told = diffusion.flow(run["x"][first], grid.t[first], grid.t[last])
    assert relative(run["x"][last], told) < 1e-7


def test_images_single_precision_and_a_spectral_process(generator):
    process = wb.VP()
    law = wb.Gaussian(normals(generator, 2, 3), 0.5 + 0 * normals(generator, 2, 3))
    grid, x = wb.Grid.log_snr(process, 5), normals(generator, 4, 2, 3)
    diffusion = wb.Diffusion(process, law)
    run = wb.sample(diffusion, wb.DPMSolverV3(), grid, range(4), x=x)
    assert relative(run.final, diffusion.flow(x, 1.0, process.t_min)) < 1e-8
    single = wb.sample(diffusion.to(torch.float32), wb.DPMSolverV3(), grid, range(4), x=x.float())
    assert single.final.dtype == torch.float32 and relative(single.final, run.final) < 1e-4
    blurred = wb.Blurring(wb.DCT((2, 3)))
    there = wb.Diffusion(blurred, law)
    grid = wb.Grid.uniform(blurred, 7)
    run = wb.sample(there, wb.DPMSolverV3(1), grid, range(4), x=x)
    told = wb.sample(there, wb.DPMSolverPP(1), grid, range(4), x=x)
    assert relative(run.final, told.final) < 1e-9


def test_errors_are_sentences(generator):
    process = wb.VP()
    diffusion = wb.Diffusion(process, ring())
    given = wb.ModelStatistics(0.0, 1.0, *(np.zeros((16, 2)) for _ in range(3)), (2,))
    with pytest.raises(ValueError, match=r"statistics reach from log.* and the grid goes beyond"):
        wb.sample(
            diffusion, wb.DPMSolverV3(statistics=given), wb.Grid.log_snr(process, 4), range(2)
        )
    with pytest.raises(ValueError, match="take 16 nodes or more"):
        wb.ModelStatistics.estimate(diffusion, nodes=8)
    with pytest.raises(ValueError, match="there are 17 nodes; take those that"):
        wb.ModelStatistics(0.0, 1.0, *(np.zeros((17, 2)) for _ in range(3)), (2,))
    with pytest.raises(ValueError, match=r"each must be \(nodes, 2\)"):
        wb.ModelStatistics(0.0, 1.0, *(np.zeros((16, 3)) for _ in range(3)), (2,))
