"""The exact truth about a study: what its parts hold, and the sentences that go with them."""

import sys

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.lenses.emergence import of_modes
from workbench.lenses.teleport import teleportation
from workbench.studies import StudyError
from workbench.studies.exactness import LEVELS, SAMPLES, STEPS, exactness

module = sys.modules["workbench.studies.exactness"]


def study(**flat) -> wb.Study:
    return wb.Study.from_flat({"seeds.count": 6, **flat})


def test_its_parts_are_the_lenses_of_the_study_in_float64():
    found = exactness(study(data="ring", seeds_first=3))
    assert found.study.dtype == "float64"
    law = wb.datasets.ring().law
    expected = teleportation(wb.Diffusion(wb.VP(), law), range(3, 9), LEVELS, STEPS)
    np.testing.assert_allclose(found.teleport["rms"], expected["rms"], rtol=1e-9, atol=1e-15)
    radius, std = 1.4, 0.1
    variances = torch.full((2,), radius**2 / 2 + std**2, dtype=torch.float64)
    np.testing.assert_allclose(found.modes["variance"], variances, rtol=1e-12)
    at = of_modes(variances)["rho_amplitude"]
    np.testing.assert_allclose(found.modes["rho_amplitude"], at, rtol=1e-12)
    assert found.processes.attrs["variance"] == pytest.approx(variances[0].item())
    assert found.processes["process"].values.tolist() == list(wb.PROCESSES)
    assert set(found.sentences) == {"processes", "modes", "teleport"}


def test_the_study_s_own_process_is_drawn_with_its_parameters():
    found = exactness(study(process="EDM", process_sigma_max=20.0))
    one = found.processes.sel(process="EDM")
    assert float(one["rho"].max()) == pytest.approx(20.0)
    assert found.sentences["processes"].startswith(f"All {len(wb.PROCESSES)} processes")
    said = float(found.sentences["processes"].rstrip(".").split()[-1])
    assert said < 1e-12


def test_directions_without_variance_are_left_out_and_said_so():
    found = exactness(study(data="digits", denoiser="Gaussian"))
    assert found.modes.sizes["mode"] == 61
    assert "3 of 64 directions have no variance" in found.sentences["modes"]
    assert found.modes["variance"].min() > 0
    half = found.modes["rho_amplitude"].sel(fraction=0.5)
    assert f"at ρ = {float(half[0]):.3g} for the first" in found.sentences["modes"]


@pytest.mark.parametrize("data", ["gaussian", "digits"])
def test_for_gaussian_data_every_skip_is_exact_and_said_so(data):
    found = exactness(study(data=data, denoiser="Gaussian"))
    assert (found.teleport["rms"] <= found.teleport["floor"]).all()
    assert found.sentences["teleport"].startswith("Every skip is exact, down to the data")
    assert found.sentences["teleport"].endswith("these data are Gaussian.")


def test_what_a_skip_costs_is_said_in_numbers():
    found = exactness(study(data="moons"))
    lens, std = found.teleport, found.teleport.attrs["data_std"]
    cheap = lens["rho"][lens["rms"] <= 0.01 * std]
    assert f"a skip to ρ = {float(cheap[-1]):.3g} (t = " in found.sentences["teleport"]
    assert f"{float(lens['rms'][-1]) / std:.0%} of the data's" in found.sentences["teleport"]


def test_only_some_samples_of_a_large_study_are_carried():
    found = exactness(study(data="gaussian", denoiser="Gaussian", seeds_count=1000))
    assert found.teleport.attrs["samples"] == SAMPLES


def test_a_single_point_has_no_modes():
    found = exactness(study(data="ring", denoiser="Empirical", denoiser_points=1))
    assert found.modes is None
    assert found.processes is None
    assert "a single point" in found.sentences["modes"]
    assert (found.teleport["rms"] <= found.teleport["floor"]).all()


def test_a_denoiser_without_a_covariance_is_answered_in_a_sentence(monkeypatch):
    def none(denoiser):
        raise NotImplementedError("this denoiser has no covariance.")

    monkeypatch.setattr(module, "matched_gaussian", none)
    found = exactness(study())
    assert (found.processes, found.modes, found.teleport) == (None, None, None)
    assert set(found.sentences.values()) == {"this denoiser has no covariance."}


def test_progress_grows_and_may_stop_it():
    told = []
    exactness(study(), lambda stage, fraction: told.append((stage, fraction)))
    assert [stage for stage, _ in told][:2] == ["modes of the data", "teleportation"]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)

    def stop(stage, fraction):
        if stage == "teleportation":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exactness(study(), stop)


def test_a_study_that_cannot_be_built_says_why():
    with pytest.raises(StudyError, match="these data have 2 dimensions"):
        exactness(study(data="gaussian", denoiser="Gaussian", denoiser_rank=3))
