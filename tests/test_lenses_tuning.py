"""How tuned grids carry over, through the lens; and grids tuned by runs."""

import hashlib
import json
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.denoisers import checkpoints
from workbench.lenses.output import energy_distance
from workbench.lenses.tuning import _swapped, converged_flow, network_grid, sampled_grid


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([2.0, 0.7, 0.2], dtype=torch.float64)
    return torch.randn(60, 3, generator=generator, dtype=torch.float64) * scales


def tuning(process, points, sampler, seeds, final="stop", **options):
    diffusion = wb.Diffusion(process, wb.Empirical(points))
    run = wb.sample(diffusion, sampler, wb.Grid.log_snr(process, 4, final), seeds)
    return wb.measure("tuning", run, data=wb.Data("points", points), **options)


def test_three_laws(points):
    calls = []
    found = tuning(
        wb.EDM(),
        points,
        wb.DPMSolverPP(2),
        range(32),
        nfe=6,
        blur=0.05,
        on_step=lambda done, total: calls.append((done, total)),
    )
    assert found["law"].values.tolist() == ["gaussian", "blurred", "memorising"]
    assert {"karras", "log_snr", "tuned", "tuned_family", "sampled"} <= set(found["grid"].values)
    assert found["rms"].dims == found["energy"].dims == ("grid", "law")
    assert found["nodes"].shape == (7, 7)
    assert calls == [(i + 1, calls[0][1]) for i in range(calls[0][1])]
    assert (found["rms_null"].sel(bound="high") < 0.1 * found["rms"].max("grid")).all()
    # On the Gaussian it is what the law says: the flow moves every sample, W2 the whole law.
    assert found["w2_gaussian"].sel(grid="tuned") < 0.5 * found["w2_gaussian"].sel(grid="karras")
    gaussian = found.sel(law="gaussian")
    assert gaussian["rms"].sel(grid="tuned") < 0.5 * gaussian["rms"].sel(grid="karras")
    assert (abs(gaussian["rms"] - gaussian["rms_exact"]) < 5 * gaussian["rms_se"]).all()
    blurred = found["rms"].sel(law="blurred")
    assert blurred.sel(grid="sampled") < blurred.sel(grid="karras")
    # The name of a distance is that of one quantity: it is the unbiased one.
    assert (found["energy_null"].sel(bound="low") < 0).all()
    fitted = wb.Gaussian(points.mean(0), torch.cov(points.T))
    diffusion = wb.Diffusion(wb.EDM(), fitted)
    for name in ("karras", "tuned"):
        t = wb.EDM().time_of(torch.from_numpy(found["nodes"].sel(grid=name).values)).tolist()
        grid = wb.Grid.times(wb.EDM(), [80.0, *t[1:-1], 0.002])
        law = wb.exact.law(diffusion, wb.DPMSolverPP(2), grid)
        wanted = wb.exact.w2(law, diffusion.marginal(0.002))
        assert found["w2_gaussian"].sel(grid=name).item() == pytest.approx(wanted, rel=1e-6)


def test_stochastic_samplers_are_compared_by_their_laws(points):
    found = tuning(wb.VP(), points, wb.DDIM(eta=1.0), range(16), "denoise", nfe=4, samples=16)
    assert "rms" not in found and "rms_exact" not in found
    assert "sampled" not in found["grid"].values
    assert found["energy"].notnull().all() and found["energy_null"].notnull().all()


def test_pairs_of_one_law_stay_inside_their_band(generator):
    missed = 0
    for _ in range(60):
        start, more = torch.randn(2, 24, 2, generator=generator, dtype=torch.float64)
        other = (start + 0.3 * more) / math.hypot(1, 0.3)  # of the same law, start by start
        low, high = np.quantile(_swapped(start, other), [0.05, 0.95])
        value = energy_distance(start, other, drawn=True, paired=True)[0]
        missed += not low <= value <= high
    assert 0 < missed <= 15  # 6 expected of 60; beyond with probability 1e-3


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
    with pytest.raises(NotImplementedError, match="a single point, which has no spectrum"):
        tuning(wb.EDM(), points[:1], wb.Heun(), range(2))
    with pytest.raises(NotImplementedError, match="no sampler to tune for; give a run"):
        wb.measure("tuning", diffusion, data=wb.Data("points", points))


def test_a_network_s_grid_is_kept_beside_its_checkpoint(tmp_path):
    """By the hash of the weights: others tune anew."""
    for end in ("safetensors", "json"):
        shutil.copy(checkpoints.shipped_folder() / f"circles.{end}", tmp_path)
    path = tmp_path / "circles.safetensors"
    diffusion = wb.Diffusion(wb.EDM(), wb.Neural.load(path))
    sampler, kept = wb.DPMSolverPP(2), path.with_suffix(".grids.json")
    grid = network_grid(diffusion, sampler, 4, keep=True)
    held = json.loads(kept.read_text())
    assert held["weights"] == hashlib.sha256(path.read_bytes()).hexdigest()
    ((key, times),) = held["grids"].items()
    assert "DPMSolverPP(order=2" in key and times == pytest.approx(grid.t, rel=1e-5)
    held["grids"][key] = [80.0, 3.0, 1.0, 0.1, 0.002]  # what the file says is taken
    kept.write_text(json.dumps(held))
    assert network_grid(diffusion, sampler, 4).t == (80.0, 3.0, 1.0, 0.1, 0.002)
    kept.write_text(json.dumps({**held, "weights": "others"}))
    assert network_grid(diffusion, sampler, 4).t == pytest.approx(grid.t, rel=1e-6)
    # The lens runs it beside the standard ones on the network itself.
    data = wb.DATASETS["circles"](size=40)
    run = wb.sample(diffusion, sampler, wb.Grid.karras(wb.EDM(), 4), range(32))
    found = wb.measure("tuning", run, data=data, nfe=4, samples=32).sel(law="network")
    assert found["nodes"].sel(grid="own").values == pytest.approx(grid.rho, rel=1e-5)
    standard = found["rms"].sel(grid=["karras", "log_snr"]).min()
    assert found["rms"].sel(grid="own") < 0.9 * standard


@pytest.mark.parametrize("sampler", [wb.Heun(), wb.DPMSolverPP(2), wb.UniPC()], ids=repr)
def test_a_shipped_network_of_digits_has_grids_that_are_better(sampler):
    network = wb.Neural.load(checkpoints.shipped_folder() / "digits_slim.safetensors")
    process, seeds = wb.EDM(), range(24)
    diffusion = wb.Diffusion(process, network)
    held = json.loads(network.path.with_suffix(".grids.json").read_text())
    assert held["weights"] == hashlib.sha256(network.path.read_bytes()).hexdigest()
    assert sum(repr(sampler) in json.loads(key) for key in held["grids"]) == 5
    flow, _ = converged_flow(diffusion, "stop", list(seeds), steps=40)

    def squares(grid) -> torch.Tensor:
        return (wb.sample(diffusion, sampler, grid, seeds).final - flow).square().mean((1, 2))

    tuned = network_grid(diffusion, sampler, 6)
    standard = [make(process, tuned.steps) for make in (wb.Grid.karras, wb.Grid.log_snr)]
    best = min(map(squares, standard), key=torch.mean)
    gained = best - squares(tuned)
    assert gained.mean() > 2 * gained.std() / math.sqrt(len(seeds))
