"""The exact flow beside a run, and the distance to it."""

import numpy as np
import pytest
import torch
from helpers import LAWS, PROCESSES, normals, relative, ring

import workbench as wb
from workbench.lenses.distances import to_flow


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("name", PROCESSES)
def test_exact_is_the_flow_of_the_starting_states(name, final, generator, seed):
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, LAWS["gaussian-rank-2"](generator, 4))
    grid = wb.Grid.log_snr(process, steps=9, final=final)
    record = wb.Record("x", every=4)
    run = wb.sample(diffusion, wb.Euler(), grid, range(seed, seed + 6), record)
    out = to_flow(diffusion, run.dataset)
    assert out["exact"].dims == ("time", "sample", "dim") and out["rms"].dims == ("time",)
    assert out["seed"].values.tolist() == list(run.seeds) and out["t"].values.tolist() == list(
        run.t
    )
    for i, t in enumerate(run.t):
        expected = diffusion.flow(run["x"][0], run.t[0], t)
        if run.rho[i] == 0:  # where VE's own t = 0 is not
            pairs = [(run.grid.alpha[k], run.grid.sigma[k]) for k in (0, -1)]
            expected = diffusion.denoiser.flow(run["x"][0], *pairs)
        assert relative(torch.from_numpy(out["exact"].values[i]), expected) < 1e-12
        apart = (run["x"][i] - expected).square().mean().sqrt().item()
        assert out["rms"].values[i] == pytest.approx(apart, rel=1e-9, abs=1e-12)
    assert out["rms"].values[0] == pytest.approx(0.0, abs=1e-12) and out["rms"].values[-1] > 1e-3


def test_a_run_with_very_many_steps_is_the_flow(generator, seed):
    diffusion = wb.Diffusion(wb.VP(), LAWS["gaussian-full"](generator, 2))
    grid = wb.Grid.log_snr(wb.VP(), steps=2000)
    run = wb.sample(diffusion, wb.Heun(), grid, [seed, seed + 1], wb.Record("x", every=500))
    assert to_flow(diffusion, run.dataset)["rms"].values.max() < 1e-5


def test_images_keep_their_shape(generator):
    law = wb.Gaussian(normals(generator, 3, 4), 0.5)
    diffusion = wb.Diffusion(wb.EDM(), law).to(torch.float32)
    grid = wb.Grid.karras(wb.EDM(), steps=4)
    run = wb.sample(diffusion, wb.Heun(), grid, [1, 2], wb.Record("x")).dataset
    out = to_flow(diffusion, run)
    assert out["exact"].shape == (5, 2, 3, 4) and out["exact"].dtype == np.float32
    apart = run["x"].astype(float) - out["exact"].astype(float)
    by_hand = np.sqrt((apart**2).mean(["sample", "row", "column"]))
    np.testing.assert_allclose(out["rms"].values, by_hand.values, rtol=1e-12)


def test_refusals():
    diffusion, grid = wb.Diffusion(wb.VP(), ring()), wb.Grid.log_snr(wb.VP(), steps=2)
    with pytest.raises(NotImplementedError, match=r"Mixture has no closed-form probability flow"):
        to_flow(diffusion, wb.sample(diffusion, wb.Heun(), grid, [1], wb.Record("x")).dataset)
    unrecorded = wb.sample(diffusion, wb.Heun(), grid, [1], wb.Record("denoised")).dataset
    with pytest.raises(ValueError, match=r"no recorded x.*wb\.Record"):
        to_flow(diffusion, unrecorded)
