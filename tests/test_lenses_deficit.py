"""What networks lose of the high frequencies: closed form for Gaussians, and the ones that ship."""

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.denoisers import checkpoints
from workbench.lenses.deficit import WIENER, Deficit, _interval, _share
from workbench.lenses.frequency import merged, weights
from workbench.sampling.bands import rings
from workbench.studies.measuring import look


def test_a_gaussian_recovers_what_the_wiener_filter_does():
    law = wb.Gaussian.fit(wb.datasets.digits().points)
    lens = wb.measure("deficit", wb.Diffusion(wb.VP(), law), rho=0.4, pictures=600, repeats=1)
    apart = abs(lens["recovered"] - lens["recovered_exact"]) / lens["recovered_se"]
    assert float(apart.max()) < 5
    variances, w = weights(law, rings(law.event_shape))
    _, inside = merged(list(rings(law.event_shape).labels), law.event_shape)
    energy = (w @ variances).numpy() @ inside
    whole = (variances**2 / (variances + 0.16)).sum() / variances.sum()  # of all bands together
    share = lens["recovered_exact"].values[0] @ energy / energy.sum()
    assert share == pytest.approx(whole.item(), rel=1e-12)
    assert not lens["deficit"].any()


def test_a_slim_network_lacks_high_frequencies_and_its_sentences_are_its_numbers():
    """Of the digits, of pictures that none of the networks was trained on."""
    study = wb.Study.from_flat(
        {"data": "digits", "denoiser": "Neural", "denoiser.checkpoint": "digits_slim"}
    )
    lens, said = look(study, "deficit")
    assert lens.attrs["pictures"] == 297 and lens.attrs["reference"] == "digits"
    assert {WIENER, "digits", "digits_slim", "digits_slim_spectrum"} <= set(lens["model"].values)
    assert "digits_first_half" not in lens["model"].values  # trained on other pictures
    slim = lens.sel(model="digits_slim")
    low, high = slim["deficit_interval"].values.T
    assert low[-1] > 0  # the interval of the highest band excludes zero
    assert slim["deficit"].values[-1] > 3 * slim["deficit"].values[1:3].max()
    band, value = slim["band"].values[-1], float(slim["deficit"][-1])
    assert f"{band}: {value:.2%} [{low[-1]:.2%}, {high[-1]:.2%}]" in next(
        one for one in said if "digits_slim (" in one
    )
    twin = lens.sel(pair="digits_slim_spectrum over digits_slim")
    difference = slim["deficit"] - lens["deficit"].sel(model="digits_slim_spectrum")
    np.testing.assert_allclose(twin["given_back"], difference, atol=1e-12)
    value, (low, high) = float(twin["given_back"][-1]), twin["given_back_interval"].values[-1]
    sentence = next(one for one in said if "of equal size" in one)
    assert f"{value:.2%}" in sentence
    assert ("within the error" in sentence) == (low <= 0 <= high)
    # Of one skill with the larger network nothing is lacking, and this is said.
    lens["deficit"][:] = lens["deficit_interval"][:] = 0.0
    assert any("no less than digits, beyond" in one for one in Deficit().findings(lens))


def test_of_patches_it_is_said_as_it_is():
    """Beside the largest network that ships for the patches, or beside the linear filter."""
    flat = {"data": "photographs", "data.side": 16, "data.stride": 3, "denoiser": "Neural"}
    study = wb.Study.from_flat(flat | {"denoiser.checkpoint": "photographs_slim"})
    lens, said = look(study, "deficit", pictures=40, repeats=1)
    slim = lens.sel(model="photographs_slim")
    ships = "photographs" in checkpoints.shipped()
    assert lens.attrs["reference"] == ("photographs" if ships else WIENER)
    beyond = (slim["recovered"] - lens["recovered"].sel(model=WIENER)).values
    assert (beyond[1:] > 0).all()  # no linear filter recovers as much of any band but the mean
    surely = bool((slim["deficit_interval"].sel(end="low") > 0).any())
    sentence = next(one for one in said if "photographs_slim (" in one)
    assert ("recovers less than" in sentence) == surely
    assert ("beyond the error" in sentence) != surely
    assert lens.attrs["groups"] < 40 and f"are of {lens.attrs['groups']} groups" in said[-1]


def test_errors_are_over_groups_of_alike_pictures(generator):
    """Against many draws of the whole: pictures of one group share what is missed of them."""
    groups, per, bands = 15, 8, 3
    which = np.repeat(np.arange(groups), per)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        shared = normals(generator, groups, bands).numpy()[which]
        own = normals(generator, groups * per, bands).numpy()
        whole = 1 + 0.3 * np.abs(shared)
        return whole * (0.1 + 0.04 * shared) + 0.02 * own, whole

    values, errors, alone, covered = [], [], [], []
    for _ in range(600):
        part, whole = draw()
        value, error = _share(part, whole, which)
        low, high = np.moveaxis(_interval("model", value, error, which)[1], -1, 0)
        values.append(value)
        errors.append(error)
        alone.append(_share(part, whole, np.arange(len(part)))[1])
        covered.append((low < 0.1) & (high > 0.1))
    # Squares of standard errors have the variance as their mean; of few groups they vary, and
    # their roots lie below it on average. Four standard errors of a deviation over 600 draws.
    spread = np.std(values, 0)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), 0)), spread, rtol=0.12)
    assert (np.mean(alone, 0) < 0.5 * spread).all()  # as if they were independent
    assert 0.9 < np.mean(covered) < 0.98
    value, error = _share(part, whole, np.zeros(len(part)))
    assert np.isnan(error).all()  # one group says nothing of the spread
    assert np.isinf(_interval("model", value, error, np.zeros(len(part)))[1]).all()


def test_what_has_no_unseen_pictures_is_a_sentence():
    flat = wb.Empirical(torch.full((3, 4, 4), 0.5, dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="there is no energy to recover"):
        wb.measure("deficit", wb.Diffusion(wb.VP(), flat))
    bare = wb.Neural(torch.nn.Identity(), "denoised", wb.VP(), (4, 4))
    with pytest.raises(NotImplementedError, match="does not say what data it is of"):
        wb.measure("deficit", wb.Diffusion(wb.VP(), bare))
