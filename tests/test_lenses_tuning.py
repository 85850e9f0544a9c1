"""How tuned grids carry over: the report's labels and exact column, and grids tuned by runs."""

import math
from itertools import pairwise

import pytest
import torch

import workbench as wb
from workbench.lenses.tuning import sampled_grid, transfer_report


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([2.0, 0.7, 0.2], dtype=torch.float64)
    return torch.randn(60, 3, generator=generator, dtype=torch.float64) * scales


def test_report_on_three_laws(points):
    calls = []
    report = transfer_report(
        wb.EDM(),
        points,
        wb.DPMSolverPP(2),
        nfe=6,
        variance=0.05,
        seeds=range(32),
        on_step=lambda done, total: calls.append((done, total)),
    )
    assert report["law"].values.tolist() == ["gaussian", "blurred", "memorising"]
    assert {"karras", "log_snr", "tuned", "tuned_family", "sampled"} <= set(report["grid"].values)
    assert report["rms"].dims == report["energy"].dims == ("grid", "law")
    assert report["rho"].shape == (7, 7)
    assert calls == [(i + 1, calls[0][1]) for i in range(calls[0][1])]
    assert bool(report["rms"].notnull().all())
    assert bool((report["uncertainty"] < 0.1 * report["rms"].max("grid")).all())
    # On the Gaussian it is what the law says: the flow moves every sample, W2 the whole law.
    assert report["w2"].sel(grid="tuned") < 0.5 * report["w2"].sel(grid="karras")
    gaussian = report["rms"].sel(law="gaussian")
    assert gaussian.sel(grid="tuned") < 0.5 * gaussian.sel(grid="karras")
    blurred = report["rms"].sel(law="blurred")
    assert blurred.sel(grid="sampled") < blurred.sel(grid="karras")


def test_exact_column_is_the_law(points):
    report = transfer_report(wb.EDM(), points, wb.DDIM(), nfe=4, seeds=range(4))
    fitted = wb.Gaussian(points.mean(0), torch.cov(points.T))
    diffusion = wb.Diffusion(wb.EDM(), fitted)
    for name in ("karras", "tuned"):
        t = wb.EDM().time_of(torch.from_numpy(report["rho"].sel(grid=name).values)).tolist()
        grid = wb.Grid.times(wb.EDM(), [80.0, *t[1:-1], 0.002])
        law = wb.exact.law(diffusion, wb.DDIM(), grid)
        wanted = wb.exact.w2(law, diffusion.marginal(0.002))
        assert report["w2"].sel(grid=name).item() == pytest.approx(wanted, rel=1e-6)


def test_stochastic_samplers_are_compared_by_their_laws(points):
    report = transfer_report(
        wb.VP(), points, wb.DDIM(eta=1.0), nfe=4, final="denoise", seeds=range(16)
    )
    assert bool(report["rms"].isnull().all())
    assert "sampled" not in report["grid"].values
    assert bool((report["energy"] >= 0).all())
    assert bool((report["energy_null"] > 0).all())


def test_sampled_grid_of_a_gaussian_follows_its_flow(generator):
    """On a Gaussian the samples' RMS is the exact error, and the grid that is least in it wins."""
    variances = torch.tensor([4.0, 0.5, 0.05], dtype=torch.float64)
    diffusion = wb.Diffusion(wb.EDM(), wb.Gaussian(torch.zeros(3).double(), variances))
    sampler = wb.DPMSolverPP(2)
    grid = sampled_grid(diffusion, sampler, nfe=6)
    first = int(torch.randint(2**40, (), generator=generator))
    seeds = range(first, first + 200)

    def error(grid) -> float:
        run = wb.sample(diffusion, sampler, grid, seeds, record=wb.Record(["x"]))
        flow = diffusion.flow(run["x"][0], grid.t[0], grid.t[-1])
        return (run.final - flow).square().mean().sqrt().item()

    others = [make(wb.EDM(), 6) for make in (wb.Grid.karras, wb.Grid.log_snr)]
    assert error(grid) < 0.5 * min(map(error, others))
    assert all(a > b for a, b in pairwise(grid.t))
    steps = [math.log(a / b) for a, b in pairwise(grid.rho)]
    assert min(steps) >= 0.1 * sum(steps) / 6 * (1 - 1e-9)


def test_what_is_refused(points):
    diffusion = wb.Diffusion(wb.EDM(), wb.Empirical(points))
    with pytest.raises(ValueError, match="is stochastic, so its samples do not follow the flow"):
        sampled_grid(diffusion, wb.DDIM(eta=1.0), nfe=5)
    with pytest.raises(ValueError, match="at least two points"):
        transfer_report(wb.EDM(), points[:1], wb.Heun())
