"""Round trips as a dataset."""

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.lenses.inversion import round_trip
from workbench.sampling.methods import BDIA, BELM, EDICT, DDIMInversion

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}


@pytest.fixture
def diffusion():
    return wb.Diffusion(wb.VP(), wb.datasets.ring().law)


def points(diffusion, seeds):
    grid = wb.Grid.log_snr(diffusion.process, 60)
    return wb.sample(diffusion, wb.Heun(), grid, seeds).final


def test_an_inexact_trip_errs_by_its_steps_in_every_precision(generator):
    law = wb.Gaussian(torch.zeros(2).double(), torch.tensor([1.0, 0.2]).double())
    x = normals(generator, 24, 2)
    found = round_trip(wb.Diffusion(wb.VP(), law), "log_snr", [DDIMInversion()], x, (20, 40, 80))
    assert found.error.dims == ("inversion", "steps", "precision", "sample")
    assert found.error.shape == (1, 3, 2, 24)
    double, single = (found.error[0].sel(precision=name).values for name in EPS)
    np.testing.assert_allclose(single, double, rtol=1e-2, atol=1e-6)
    assert (np.diff(double, axis=0) < 0).all(), "each sample by itself"
    np.testing.assert_allclose(double[1] / double[2], 2, rtol=0.2)


def test_exact_trips_err_by_rounding_and_unstable_ones_explode(diffusion, seed):
    x = points(diffusion, range(seed, seed + 24))
    inversions = [BDIA(), BELM(), BDIA(gamma=0.5), EDICT(), EDICT(holds="denoised")]
    found = round_trip(diffusion, "uniform", inversions, x, steps=(10, 20, 40))
    bdia, belm, half, edict, denoised = (found.isel(inversion=i) for i in range(5))
    for precision, eps in EPS.items():
        assert bdia.error.sel(precision=precision).max() < 100 * eps
        assert belm.error.sel(precision=precision).max() < 100 * eps
    assert (half.encode_stability.diff("steps") > 0).all() and half.encode_stability[-1] > 1e9
    noise = half.noise.sel(precision="float64").median("sample")
    assert noise.sel(steps=40) > 1e3 * noise.sel(steps=20)
    assert half.error.sel(steps=40, precision="float32").median() > 1e-2
    assert bdia.encode_stability.max() < 10
    assert edict.encode_stability.max() < 10 and 10 < edict.decode_stability[-1] < 1e4
    assert denoised.decode_stability.max() < 10 and 1e3 < denoised.encode_stability[-1] < 1e8
    for precision, eps in EPS.items():  # of which kind its gain is does not matter to the trip
        for one in (edict, denoised):
            trip = one.error.sel(precision=precision).max("sample")
            assert (trip < 1e3 * eps * one.encode_stability * one.decode_stability).all()
    assert found.encode_nfe.values.tolist() == [[10, 20, 40]] * 3 + [[20, 40, 80]] * 2
    assert (found.decode_nfe == found.encode_nfe).all()


def test_one_trip_is_that_of_the_inversion(diffusion, generator):
    x, grid = 0.3 * normals(generator, 6, 2), wb.Grid.karras(wb.VP(), 12)
    calls = []
    found = round_trip(
        diffusion.to(torch.float32),
        wb.Grid.karras,
        [DDIMInversion()],
        x,
        steps=[12],
        on_step=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 2), (2, 2)]
    single = diffusion.to(torch.float32).to(torch.float64)
    back = DDIMInversion().decode(single, grid, DDIMInversion().encode(single, grid, x))
    rms = (back - x).square().mean(1).sqrt()
    np.testing.assert_allclose(found.error[0, 0, 0], rms, rtol=1e-12)
    assert found.attrs["grid"] == "karras"


def test_variances_of_the_stability(generator):
    law = wb.Gaussian(torch.zeros(3).double(), torch.tensor([3.0, 0.2, 0.01]).double())
    x, process = normals(generator, 2, 3), wb.EDM()
    found = round_trip(wb.Diffusion(process, law), "log_snr", [EDICT()], x, steps=[8])
    grid = wb.Grid.log_snr(process, 8)
    assert found.encode_stability.item() == EDICT().stability(process, grid, law.variances)
    way_back = EDICT().stability(process, grid, law.variances, "decode")
    assert found.decode_stability.item() == way_back
    given = round_trip(
        wb.Diffusion(process, law), "log_snr", [EDICT()], x, [8], variances=law.variances[:1]
    )
    assert given.encode_stability.item() == EDICT().stability(process, grid, law.variances[:1])


def test_modes_of_a_spectral_process(generator):
    spectrum = torch.tensor([[1.0, 0.5], [0.3, 0.2]]).double()
    process = wb.HeatDissipation(wb.DCT((2, 2)))
    diagonal = wb.Gaussian(torch.zeros(2, 2).double(), spectrum.flatten())
    law = diagonal.transformed(process.basis.matrix.T)  # independent in the process's basis
    found = round_trip(
        wb.Diffusion(process, law), "uniform", [BDIA()], normals(generator, 3, 2, 2), steps=[10]
    )
    assert found.error.sel(precision="float64").max() < 1e-12
    grid = wb.Grid.uniform(process, 10)
    own = BDIA().stability(process, grid, spectrum)
    assert found.encode_stability.item() == pytest.approx(own, rel=1e-9)


def test_what_it_refuses(diffusion, generator):
    x = normals(generator, 2, 2)
    with pytest.raises(ValueError, match="one of karras, log_snr"):
        round_trip(diffusion, "cosine", [BDIA()], x)
    with pytest.raises(TypeError, match="each number of steps has its own grid"):
        round_trip(diffusion, wb.Grid.uniform(wb.VP(), 5), [BDIA()], x)
    with pytest.raises(ValueError, match="at least one inversion"):
        round_trip(diffusion, "uniform", [], x)
    with pytest.raises(ValueError, match="nothing to invert"):
        round_trip(diffusion, lambda p, n: wb.Grid.uniform(p, n, "denoise"), [BDIA()], x)
