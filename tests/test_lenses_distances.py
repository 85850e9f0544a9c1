"""The exact flow beside a run, and the distance to it."""

import numpy as np
import pytest
import torch
from helpers import LAWS, PROCESSES, integrate, normals, relative, ring

import workbench as wb
from workbench.lenses import distances
from workbench.lenses.distances import refined_flow, to_flow


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


def off(one, other) -> np.ndarray:
    """RMS over samples and coordinates, at each node."""
    apart = one["exact"].values - other["exact"].values
    return np.sqrt(np.square(apart).reshape(len(apart), -1).mean(1))


def test_a_refined_flow_is_the_closed_form_to_the_error_it_tells(generator):
    """Under every scalar process, affine and spectral ones, to a stop and to no noise at all."""
    law, mu = LAWS["gaussian-full"](generator, 4), torch.full((4,), 0.3, dtype=torch.float64)
    image = wb.Gaussian(normals(generator, 3, 4), 0.5)
    cases = [(p, law, None, final) for p in PROCESSES.values() for final in ("stop", "denoise")]
    cases += [
        (wb.OUVE(), law, mu, "stop"),
        (wb.HeatDissipation(wb.DCT((3, 4))), image, None, "stop"),
    ]
    for process, data, condition, final in cases:
        diffusion = wb.Diffusion(process, data, condition=condition)
        make = wb.Grid.uniform if process.spectral else wb.Grid.log_snr
        grid = make(process, steps=9, final=final)
        points, noise = normals(generator, 2, 5, *data.event_shape)
        x = diffusion.diffuse(points, grid.t[0], noise)
        run = wb.sample(diffusion, wb.Heun(), grid, range(5), wb.Record("x"), x=x).dataset
        refined, exact = refined_flow(diffusion, run), to_flow(diffusion, run)
        apart = off(refined, exact)
        assert apart[-1] < 3 * refined.attrs["error"] + 1e-9, (process, final)
        assert apart.max() < 0.02 * exact["rms"].values.max(), (process, final)
        assert refined.attrs["converged"] and "Runge-Kutta" in refined.attrs["note"]


def test_the_refined_flow_of_a_mixture_is_its_ode(monkeypatch):
    """Against an integration to 1e-12; at nodes that were interpolated, too."""
    monkeypatch.setattr(distances, "NODES", 40)
    monkeypatch.setattr(distances, "TOLERANCE", 1e-8)
    diffusion = wb.Diffusion(wb.VP(), ring())
    grid = wb.Grid.log_snr(wb.VP(), steps=60)
    run = wb.sample(diffusion, wb.Heun(), grid, range(8), wb.Record("x")).dataset
    flow = refined_flow(diffusion, run, samples=3, evaluations=10_000)
    assert flow["exact"].shape == (61, 3, 2) and flow["seed"].values.tolist() == [0, 1, 2]
    assert "of the first 3 samples" in flow.attrs["note"]
    start = torch.from_numpy(run["x"].values[0, :3])
    for node, most in ((13, 1e-7), (37, 3e-4), (60, 1e-7)):
        truth = integrate(diffusion, start, float(run["t"][0]), float(run["t"][node])).numpy()
        np.testing.assert_allclose(flow["exact"].values[node], truth, rtol=0, atol=most)


def test_a_refined_flow_costs_no_more_than_it_may_and_can_be_stopped():
    diffusion, grid = wb.Diffusion(wb.VP(), ring()), wb.Grid.log_snr(wb.VP(), steps=3)
    run = wb.sample(diffusion, wb.Heun(), grid, range(4), wb.Record("x")).dataset
    coarse = refined_flow(diffusion, run, evaluations=1)
    assert coarse.attrs["substeps"] == 2 and not coarse.attrs["converged"]
    assert "it has not converged" in coarse.attrs["note"]
    assert refined_flow(diffusion, run).attrs["converged"]

    def stop(done, most):
        assert (done, most) == (4, 100)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        refined_flow(diffusion, run, evaluations=100, on_step=stop)
    with pytest.raises(ValueError, match=r"no recorded x.*wb\.Record"):
        refined_flow(diffusion, run.drop_vars("x"))


def test_the_refined_flow_of_a_network_is_that_of_the_same_network_in_float64():
    study = wb.Study(data="circles", denoiser="Neural", grid={"name": "log_snr", "steps": 6})
    diffusion = wb.studies.build(study).diffusion
    run = wb.sample(
        diffusion, wb.Heun(), wb.Grid.log_snr(diffusion.process, 6), range(3), wb.Record("x")
    ).dataset
    own, fine = refined_flow(diffusion, run), refined_flow(diffusion.to(torch.float64), run)
    assert own.attrs["substeps"] == fine.attrs["substeps"] and own.attrs["converged"]
    assert "in float64, the denoiser in float32, " in own.attrs["note"]
    assert "float32" not in fine.attrs["note"]
    np.testing.assert_allclose(own["exact"].values, fine["exact"].values, rtol=0, atol=1e-4)
