"""The comparison of samplers: its numbers are those of whole laws, of samples and of theory."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import KINDS, PROCESSES, log_uniform, normals, random_process

import workbench as wb
from workbench.lenses.convergence import (
    convergence,
    grid_errors,
    orders,
    paths,
    stability,
    steps_within,
)
from workbench.sampling import Combine, Evaluate

METHODS = {
    "DDIM": wb.DDIM(),
    "ancestral": wb.DDIM(eta=1.0),
    "Heun": wb.Heun(),
    "DPM-Solver++ 3": wb.DPMSolverPP(order=3),
    "UniPC 2": wb.UniPC(),
    "Euler-Maruyama": wb.EulerMaruyama(),
    "EDM": wb.EDMStochastic(),
}


def spectrum(generator, d: int) -> torch.Tensor:
    return torch.tensor([log_uniform(generator, 1e-3, 10) for _ in range(d)]).double()


def log_snr(process, steps):
    return wb.Grid.log_snr(process, steps)


def denoise(process, steps):
    return wb.Grid.karras(process, steps, "denoise")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", ["prior", "exact"])
def test_its_distances_are_those_of_the_whole_laws(name, start, generator):
    process = random_process(name, generator)
    law = wb.Gaussian(normals(generator, 4), spectrum(generator, 4))
    field = wb.Diffusion(process, law)
    for make in (log_snr, denoise):
        lens = convergence(
            process, law.variances, METHODS, {"grid": make}, [7, 24], law.mean, start
        )
        for which, sampler in METHODS.items():
            for budget in (7, 24):
                one = lens.sel(sampler=which, grid="grid", budget=budget)
                grid = make(process, int(one["steps"]))
                begin = None if start == "prior" else field.marginal(grid.t[0])
                out = wb.exact.law(field, sampler, grid, start=begin)
                truth = law.noised(grid.alpha[-1], grid.sigma[-1])
                assert int(one["nfe"]) == sampler.nfe(grid) <= budget
                assert float(one["w2"]) == pytest.approx(wb.exact.w2(out, truth), rel=1e-9)
                assert float(one["kl"]) == pytest.approx(wb.exact.kl(out, truth), rel=1e-9)
                np.testing.assert_allclose(one["std"] ** 2, out.variances, rtol=1e-9)
                np.testing.assert_allclose(lens["target"] ** 2, truth.variances, rtol=1e-12)
                parts = (one["std"] - lens["target"]) ** 2 + one["bias"] ** 2
                assert float(parts.sum()) == pytest.approx(float(one["w2"]) ** 2, rel=1e-12)


def test_a_run_ends_where_its_law_says(generator):
    variances = spectrum(generator, 5)
    lens = convergence(wb.VP(), variances, {"Heun": wb.Heun()}, {"log_snr": log_snr}, [12])
    grid = log_snr(wb.VP(), lens["steps"].item())
    field = wb.Diffusion(wb.VP(), wb.Gaussian(torch.zeros(5).double(), variances))
    begin = torch.full((1, 5), float(wb.VP().prior_std(1.0)), dtype=torch.float64)
    ended = wb.sample(field, wb.Heun(), grid, [0], x=begin).final[0].abs()
    np.testing.assert_allclose(lens["std"].squeeze(), ended, rtol=1e-11)


@pytest.mark.parametrize("name", ["VP", "RectifiedFlow"])
def test_fine_steps_leave_what_the_prior_costs(name, generator):
    process, variances, mean = PROCESSES[name], spectrum(generator, 3), normals(generator, 3)
    lens = convergence(
        process, variances, {"RK4": wb.RK4()}, {"log_snr": log_snr}, [2000], mean=mean
    )
    alone = convergence(
        process, variances, {"RK4": wb.RK4()}, {"log_snr": log_snr}, [2000], mean, "exact"
    )
    own = alone["w2"].item()
    assert float(alone["floor_w2"]) == float(alone["floor_kl"]) == 0.0
    assert abs(lens["w2"].item() - float(lens["floor_w2"])) < 2 * own + 1e-13
    assert own < 1e-5


@pytest.mark.parametrize("make", [log_snr, denoise])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1, 5, 33])
def test_steps_within_a_budget_are_as_many_as_fit(make, name, budget):
    sampler, process = METHODS[name], wb.VP()
    n = steps_within(sampler, process, make, budget)
    assert n == 1 or sampler.nfe(make(process, n)) <= budget
    assert sampler.nfe(make(process, n + 1)) > budget


def test_measured_orders_are_the_published_ones():
    variances = torch.arange(1, 17, dtype=torch.float64) ** -2
    methods = {"DDIM": wb.DDIM(), "Heun": wb.Heun(), "EM": wb.EulerMaruyama(), "RK4": wb.RK4()}
    lens = orders(wb.VP(), variances, methods, log_snr)
    assert lens["claimed"].values.tolist() == [1, 2, 1, 4]
    np.testing.assert_allclose(lens["slope"].isel(pair=1), lens["claimed"], atol=0.25)
    w2 = lens["w2"].values
    np.testing.assert_allclose(lens["slope"], np.log2(w2[:, :-1] / w2[:, 1:]), rtol=1e-12)


def test_an_error_of_rounding_has_no_order():
    # Held over one exact step each, a mode without variance is known: nothing is left to converge.
    lens = orders(wb.VP(), torch.zeros(2), {"DDIM": wb.DDIM()}, log_snr, (20, 40))
    assert float(lens["w2"].max()) < 1e-12
    assert bool(lens["slope"].isnull().all())


def test_the_stability_map_is_the_law_s(generator):
    variances = spectrum(generator, 6)
    methods = {"Heun": wb.Heun(), "EM": wb.EulerMaruyama()}
    lens = stability(wb.OU(), methods, log_snr, [3, 9], variances)
    field = wb.Diffusion(wb.OU(), wb.Gaussian(torch.zeros(6).double(), variances))
    for which, steps in (("Heun", 3), ("EM", 9)):
        grid = log_snr(wb.OU(), steps)
        out = wb.exact.law(field, methods[which], grid, start=field.marginal(grid.t[0]))
        truth = field.marginal(grid.t[-1])
        ratio = (out.variances / truth.variances).sqrt() - 1
        np.testing.assert_allclose(
            lens["error"].sel(sampler=which, steps=steps), ratio, rtol=1e-9, atol=1e-13
        )


def test_grids_of_any_kind_stand_beside_each_other(generator):
    variances, process = spectrum(generator, 4), wb.VP()
    named = {"karras": wb.Grid.karras(process, 6), "own": wb.Grid.times(process, [1.0, 0.3, 0.01])}
    lens = grid_errors(process, variances, wb.Heun(), named)
    field = wb.Diffusion(process, wb.Gaussian(torch.zeros(4).double(), variances))
    for name, grid in named.items():
        out = wb.exact.law(field, wb.Heun(), grid)
        one = lens.sel(grid=name)
        assert float(one["w2"]) == pytest.approx(wb.exact.w2(out, field.marginal(grid.t[-1])))
        np.testing.assert_array_equal(one["rho"][: len(grid)], grid.rho)
        assert bool(one["rho"][len(grid) :].isnull().all())
        assert int(one["nfe"]) == 2 * grid.steps


def test_paths_of_a_mixture_converge_to_one_solution(generator):
    weights, covs = torch.full((2,), 0.5).double(), torch.full((2,), 0.3).double()
    law = wb.Mixture(weights, normals(generator, 2, 2), covs)
    methods = {"DDIM": wb.DDIM(), "Heun": wb.Heun()}
    told = []
    lens = paths(
        wb.Diffusion(wb.VP(), law),
        methods,
        {"log_snr": log_snr},
        [16, 128],
        range(6),
        on_step=lambda done, total: told.append(done / total),
    )
    rms = lens["rms"].sel(grid="log_snr")
    assert (rms.sel(budget=128) < 0.3 * rms.sel(budget=16)).all()
    assert float(lens["floor_rms"]) < 1e-3 * float(rms.min())
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_what_it_refuses():
    variances = torch.ones(2)
    grids = {"a": log_snr, "b": denoise}
    with pytest.raises(ValueError, match="end at one time"):
        convergence(wb.VP(), variances, {"DDIM": wb.DDIM()}, grids, [4])
    process = wb.VP()
    given = wb.Grid.times(process, [1.0, 0.5, 0.01])
    run = wb.sample(wb.Diffusion(process, wb.Gaussian(variances, variances)), wb.DDIM(), given, [0])
    with pytest.raises(NotImplementedError, match="number of steps of Grid"):
        wb.measure("convergence", run)


@pytest.mark.parametrize("name", ["OUVE", "IRSDE", "Blurring", "HeatDissipation"])
def test_the_lens_takes_every_kind_of_process(name, generator, seed):
    """Exact errors are those of the whole laws; runs are off by what all starts are off by."""
    spectral, affine = name in wb.SPECTRAL, name in ("OUVE", "IRSDE")
    mean, variances = normals(generator, 1, 2), spectrum(generator, 2).reshape(1, 2)
    law = wb.Gaussian(mean, variances)
    process = getattr(wb, name)(**({"basis": wb.DCT((1, 2))} if spectral else {}))
    if spectral:  # the modes are those of the basis
        law = process.off_core(law)
    diffusion = wb.Diffusion(process, law, normals(generator, 1, 2) if affine else None)
    grid, seeds = (
        (wb.Grid.uniform if spectral else wb.Grid.karras)(process, 8),
        range(seed, seed + 400),
    )
    x, data = None, None
    if not process.has_prior:
        points = law.mean + normals(generator, 50, 1, 2)
        data = wb.Data("points", points)
        x = diffusion.diffuse(
            points[[s % 50 for s in seeds]], grid.t[0], normals(generator, 400, 1, 2)
        )
    run = wb.sample(diffusion, wb.Heun(), grid, seeds, x=x)
    found = wb.measure("convergence", run, data=data, most=24, points=2, solver_steps=96)
    assert abs(found["order"].item() - 2) < 0.3
    if not process.has_prior:
        assert float(found["rms"][-1]) < 0.3 * float(found["rms"][0])
        return
    off = (found["rms"] - found["rms_exact"]).values / found["rms_se"].values
    assert abs(off).max() < 5
    for budget, error in zip(found["budget"].values, found["w2_gaussian"].values, strict=True):
        steps = steps_within(wb.Heun(), process, grid.of_steps, budget)
        mine = grid.of_steps(process, steps)
        out = wb.exact.law(diffusion, wb.Heun(), mine)
        assert error == pytest.approx(wb.exact.w2(out, diffusion.marginal(mine.t[-1])), rel=1e-6)


def test_the_lens_keeps_the_exponent_of_the_grid():
    process, law = wb.VP(), wb.Gaussian(torch.zeros(2).double(), torch.tensor([1.0, 0.1]).double())
    found = {}
    for exponent in (2.0, 7.0):
        grid = wb.Grid.karras(process, 9, exponent=exponent)
        assert grid.of_steps(process, 9) == grid
        run = wb.sample(wb.Diffusion(process, law), wb.DDIM(), grid, range(3))
        found[exponent] = wb.measure("convergence", run, most=9, points=2, solver_steps=8)
        mine = wb.exact.law(run.diffusion, wb.DDIM(), grid)
        exact = wb.exact.w2(mine, run.diffusion.marginal(grid.t[-1]))
        assert found[exponent]["w2_gaussian"].values[-1] == pytest.approx(exact, rel=1e-9)
    assert found[2.0]["w2_gaussian"].values[-1] != found[7.0]["w2_gaussian"].values[-1]


@dataclass(frozen=True)
class Wild(wb.Sampler):
    """Grows without bounds."""

    order, stochastic = 1, False

    def rows(self, process, a, b):
        return Evaluate("D", "x", a), Combine("x", {"x": 1e100, "D": 1.0})


def test_a_run_that_leaves_the_floats_is_nan_and_the_others_are_told(generator):
    methods, counts = {"Wild": Wild(), "DDIM": wb.DDIM()}, [1, 8]
    variances = spectrum(generator, 3)
    lens = convergence(wb.VP(), variances, methods, {"log_snr": log_snr}, counts)
    assert np.isfinite(lens["w2"].sel(sampler="DDIM")).all()
    wild = lens["w2"].sel(sampler="Wild", grid="log_snr").values
    assert wild[0] > 1e90
    assert np.isnan(wild[1])
    shown = stability(wb.VP(), methods, log_snr, counts, variances)["error"]
    assert bool(shown.sel(sampler="Wild", steps=8).isnull().all())
    assert bool(shown.sel(sampler="DDIM").notnull().all())
