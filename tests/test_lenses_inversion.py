"""Round trips through the lens."""

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.sampling.methods import BDIA, EDICT, DDIMInversion, FixedPointInversion

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}


def trips(process, law, grid, inversions, seeds=range(24), x=None):
    diffusion = wb.Diffusion(process, law)
    run = wb.sample(diffusion, wb.Heun(), grid, seeds, x=x)
    return wb.measure("inversion", run, inversions=tuple(inversions)), run


def test_an_inexact_trip_errs_by_its_steps_and_as_its_modes_say(generator):
    """In either precision, exactly what the gains of the modes make of these samples."""
    law = wb.Gaussian(0.4 * normals(generator, 2), torch.tensor([1.0, 0.2]).double())
    errors = []
    for steps in (20, 40, 80):
        grid = wb.Grid.log_snr(wb.VP(), steps)
        ways = [DDIMInversion(), FixedPointInversion(iterations=2)]
        found, _ = trips(wb.VP(), law, grid, ways)
        double, single = (found["error"].sel(precision=name).values for name in EPS)
        np.testing.assert_allclose(double, found["error_exact"].values[:, 0], rtol=1e-9)
        np.testing.assert_allclose(single, double, rtol=1e-2, atol=1e-6)
        errors.append(double[0])
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def test_exact_trips_err_by_rounding_and_unstable_ones_explode(seed):
    inversions = [
        BDIA(),
        wb.INVERSIONS["BELM"](),
        BDIA(gamma=0.5),
        EDICT(),
        EDICT(holds="denoised"),
    ]
    law, seeds, noise = wb.datasets.ring().law, range(seed, seed + 24), []
    for steps in (20, 40):
        found, _ = trips(wb.VP(), law, wb.Grid.uniform(wb.VP(), steps), inversions, seeds)
        bdia, belm, half, edict, denoised = (found.isel(inversion=i) for i in range(5))
        for precision, eps in EPS.items():
            assert bdia["error"].sel(precision=precision) < 100 * eps
            assert belm["error"].sel(precision=precision) < 100 * eps
            for one in (edict, denoised):  # of which kind its gain is does not matter to the trip
                trip = one["error"].sel(precision=precision)
                assert trip < 1e3 * eps * one.encode_stability * one.decode_stability
        noise.append(float(half["noise"]))
    assert noise[1] > 1e3 * noise[0] and half.encode_stability > 1e9
    assert half["error"].sel(precision="float32") > 1e-2
    assert bdia.encode_stability < 10
    assert edict.encode_stability < 10 and 10 < edict.decode_stability < 1e4
    assert denoised.decode_stability < 10 and 1e3 < denoised.encode_stability < 1e8
    assert (
        found.encode_nfe.values.tolist() == found.decode_nfe.values.tolist() == [40] * 3 + [80] * 2
    )
    # What is exact has nothing but rounding to show, and the band says how much.
    exact = found["error"].values[[0, 1, 3]]
    assert (exact <= found["error_null"].values[[0, 1, 3], :, 1]).all()


def test_one_trip_is_that_of_the_inversion(generator):
    x, grid = 3 * normals(generator, 6, 2), wb.Grid.karras(wb.VP(), 12)
    found, run = trips(wb.VP(), wb.datasets.ring().law, grid, [DDIMInversion()], range(6), x)
    diffusion = run.diffusion
    latent = DDIMInversion().encode(diffusion, grid, run.final)
    back = DDIMInversion().decode(diffusion, grid, latent)
    rms = (back - run.final).square().mean().sqrt().item()
    assert float(found["error"][0, 0]) == pytest.approx(rms, rel=1e-12)
    assert float(found["noise"][0]) == pytest.approx(latent.x.square().mean().sqrt().item())
    variances = wb.lenses.teleport.matched_gaussian(diffusion.denoiser).spectrum
    for way in ("encode", "decode"):
        own = DDIMInversion().stability(wb.VP(), grid, variances, way)
        assert found[f"{way}_stability"].item() == pytest.approx(own, rel=1e-9)


def test_modes_of_a_spectral_process():
    spectrum = torch.tensor([[1.0, 0.5], [0.3, 0.2]]).double()
    process = wb.HeatDissipation(wb.DCT((2, 2)))
    diagonal = wb.Gaussian(torch.zeros(2, 2).double(), spectrum.flatten())
    law = diagonal.transformed(process.basis.matrix.T)  # independent in the process's basis
    grid = wb.Grid.uniform(process, 10)
    found, _ = trips(process, law, grid, [BDIA()], range(3), torch.ones(3, 2, 2).double())
    assert found["error"].sel(precision="float64") < 1e-12
    own = BDIA().stability(process, grid, spectrum)
    assert found.encode_stability.item() == pytest.approx(own, rel=1e-9)


def test_a_run_to_the_denoised_state_is_refused_in_a_sentence():
    grid = wb.Grid.uniform(wb.VP(), 5, "denoise")
    with pytest.raises(NotImplementedError, match=r"ends at sigma = 0, .* nothing to invert"):
        trips(wb.VP(), wb.datasets.ring().law, grid, [BDIA()])
