"""Emergence of modes: in rho one curve for every process; where it passes each fraction."""

import math

import numpy as np
import pytest
import torch
from helpers import PROCESSES, log_uniform, normals

import workbench as wb
from workbench.lenses.emergence import FRACTIONS, across_processes, of_modes
from workbench.studies.measuring import look


def test_every_process_draws_the_same_curve_in_rho(generator):
    variance = log_uniform(generator, 1e-2, 1e2)
    lens = across_processes(variance, PROCESSES)
    assert lens["process"].values.tolist() == list(PROCESSES)
    rho = lens["rho"].values
    np.testing.assert_allclose(
        lens["amplitude"], np.sqrt(variance / (variance + rho**2)), rtol=1e-12, atol=1e-15
    )
    for name, process in PROCESSES.items():
        one = lens.sel(process=name)
        np.testing.assert_allclose(one["rho"], process(torch.from_numpy(one["t"].values)).rho)
        np.testing.assert_allclose(one["share"], one["t"] / process.t_max)
        assert one["t"].min() == process.t_min
        assert one["t"].max() == pytest.approx(process.t_max, rel=1e-14)
        assert (np.diff(one["t"]) >= 0).all()


def test_its_amplitude_is_that_of_the_denoised_state_along_the_exact_flow(generator):
    variance = log_uniform(generator, 0.05, 5)
    law = wb.Gaussian(torch.zeros(1).double(), variance)
    for name, process in PROCESSES.items():
        diffusion = wb.Diffusion(process, law)
        one = across_processes(variance, {name: process}, points=41).isel(process=0)
        t = one["t"].values[:-1]  # the last may be pure noise
        x = normals(generator, 1, 1) + 2
        path = [
            diffusion.denoised(diffusion.flow(x, float(t[0]), float(s)), float(s)).item() for s in t
        ]
        first = process(float(t[0]))
        end = law.flow(x, (first.alpha, first.sigma), (1.0, 0.0)).item()  # t = 0 may be noisy
        np.testing.assert_allclose(np.array(path) / end, one["amplitude"][:-1], rtol=1e-9)


def test_the_times_resolve_the_curve_in_t_and_in_rho():
    for name, process in PROCESSES.items():
        one = across_processes(1.0, {name: process}, points=161).isel(process=0)
        assert one.sizes["point"] == 161
        assert np.abs(np.diff(one["amplitude"])).max() < 0.15, name
        assert np.diff(one["share"]).max() < 0.02, name


def test_modes_against_the_formula_and_against_its_crossings(generator):
    variances = torch.tensor([log_uniform(generator, 1e-4, 1e2) for _ in range(7)]).double()
    lens = of_modes(variances)
    expected = variances.sort(descending=True).values.numpy()
    assert lens["mode"].values.tolist() == list(range(1, 8))
    assert lens["variance"].values.tolist() == expected.tolist()
    assert lens["fraction"].values.tolist() == list(FRACTIONS)
    rho = lens["rho"].values
    power = expected[:, None] / (expected[:, None] + rho**2)
    np.testing.assert_allclose(lens["power"], power, rtol=1e-13)
    np.testing.assert_allclose(lens["amplitude"], np.sqrt(power), rtol=1e-13)
    for of, degree in (("amplitude", 2), ("power", 1)):
        for f in FRACTIONS:
            at = lens[f"rho_{of}"].sel(fraction=f).values
            np.testing.assert_allclose(expected / (expected + at**2), f**degree, rtol=1e-12)
    np.testing.assert_allclose(lens["rho_power"].sel(fraction=0.5), np.sqrt(expected), rtol=1e-13)
    half = lens["rho_amplitude"].sel(fraction=0.5)
    np.testing.assert_allclose(half, np.sqrt(3 * expected), rtol=1e-13)


def test_its_own_levels_span_all_that_happens_and_others_may_be_given():
    lens = of_modes(torch.tensor([4.0, 0.01]))
    assert lens["amplitude"].values[0, -1] < 0.04
    assert lens["amplitude"].values[-1, 0] > 0.99
    own = torch.tensor([3.0, 0.2])
    assert of_modes(torch.ones(1), own)["rho"].values.tolist() == own.tolist()


@pytest.mark.parametrize("variances", [[1.0, 0.0], [-1.0], [], [1.0, math.nan]])
def test_a_direction_without_variance_is_refused(variances):
    with pytest.raises(ValueError, match="leave them out: a direction without variance never"):
        of_modes(torch.tensor(variances))


def test_the_exact_truth_of_a_study_is_three_lenses():
    """In float64, whatever the study's own precision, and without a run where none is read."""
    study = wb.Study(data="digits", denoiser="Gaussian", process={"name": "EDM", "sigma_max": 20.0})
    found, said = look(study, "processes")
    assert float(found["rho"].sel(process="EDM").max()) == pytest.approx(20.0)
    np.testing.assert_allclose(found["amplitude"], found["amplitude_exact"], rtol=1e-9)
    assert said[0].startswith(f"All {len(wb.PROCESSES)} processes")
    found, said = look(study, "emergence")
    assert found.sizes["mode"] == 61 and "3 more directions have no variance" in said[0]
    half = found["rho_amplitude"].sel(fraction=0.5)
    assert f"at ρ = {float(half[0]):.3g} for the first" in said[0]
    found, said = look(study, "teleportation", samples=6, levels=4, steps=16)
    assert said[0].endswith("these data are Gaussian.")
    moons = wb.Study(data="moons", seeds={"count": 6})
    found, said = look(moons, "teleportation")
    cheap = found["rho"][found["rms"] <= 0.01 * found.attrs["data_std"]]
    assert f"a skip to ρ = {float(cheap[-1]):.3g} (t = " in said[0]
    point = wb.Study(data="ring", denoiser={"name": "Empirical", "points": 1})
    with pytest.raises(NotImplementedError, match="a single point"):
        look(point, "processes")
