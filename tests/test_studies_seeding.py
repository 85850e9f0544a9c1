"""What the page of seeds shows of a study, and what it refuses."""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.studies import StudyError
from workbench.studies.run import build
from workbench.studies.seeding import KAPPAS, LEVELS, Seeding, part_of, seeds_of
from workbench.views.seeds import packed, packed_part

FLAT = {"data": "ring", "denoiser": "Conditional", "grid.steps": 20, "seeds.count": 24}


def study(**changed):
    return wb.Study.from_flat({**FLAT, "dtype": "float64", "device": "cpu", **changed})


def test_its_states_are_those_of_each_class_and_its_numbers_those_of_the_lenses():
    asked = study()
    seen, setup = seeds_of((asked, Seeding())), build(asked)
    dataset = seen.dataset
    assert dataset["states"].shape == (LEVELS, 8, 16, 2) and dataset["quality"].shape == (8, 24)
    law = setup.diffusion.denoiser.given(3)
    run = wb.sample(
        wb.Diffusion(setup.diffusion.process, law), setup.sampler, setup.grid, range(16)
    )
    last = setup.grid.nodes[-1]
    scale = np.sqrt(last.alpha**2 + last.sigma**2 / setup.data.points.double().var(0).mean().item())
    np.testing.assert_allclose(dataset["states"][-1, 3], run.final / scale, rtol=1e-5, atol=1e-6)
    whole = wb.sample(setup.diffusion, setup.sampler, setup.grid, setup.seeds)
    icc = wb.measure("variance_components", whole, data=setup.data)["icc"].item()
    assert seen.components["icc"].item() == pytest.approx(icc, rel=1e-9)
    # Coordinates of equal variance add up to the whole.
    assert np.nanmean(dataset["share"].values) == pytest.approx(icc, abs=0.02)
    block = packed(seen, asked.to_query())
    told = header(block)
    assert told["kind"] == "plane" and told["parts"]["names"] == ["class", "seed", "interaction"]
    confusion = dataset["confusion"].values
    np.testing.assert_allclose(confusion.sum(1), 1)
    accuracy = seen.identification["accuracy"].sel(shared="all noise").item()
    assert np.trace(confusion) / len(confusion) == pytest.approx(accuracy)


def test_fresh_noise_takes_the_mark_of_the_start_away():
    quiet, noisy = (seeds_of((study(), Seeding(eta=eta))) for eta in (0.05, 1.0))
    starts = [
        seen.identification["accuracy"].sel(shared="the start").item() for seen in (quiet, noisy)
    ]
    assert starts[0] > 0.5 > starts[1]
    assert torch.tensor(noisy.retention["correlation"].values).abs().max() < 0.9


def header(block: bytes) -> dict:
    return json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])


def test_parts_are_of_the_same_runs_as_the_whole():
    """A row is the last level of its class; at kappa = 0 the mark is whole; the run itself is the
    first of those that a seed is followed through; a whole interpolation is the donor."""
    few = {"data.modes": 3, "grid.steps": 16, "seeds.count": 16}
    asked = (study(sampler="DDIM", **{"sampler.eta": 0.0}, **few), Seeding())
    states = seeds_of(asked).dataset["states"].values
    row = part_of(asked, {"part": "row", "index": 2})
    np.testing.assert_allclose(row.dataset["states"], states[-1, 2], rtol=1e-5, atol=1e-6)
    fading = part_of(asked, {"part": "fading"})
    np.testing.assert_allclose(fading.dataset["faded"][0], states[-1], rtol=1e-5, atol=1e-6)
    assert fading.dataset["kept"].shape == (len(KAPPAS), 2)
    assert (fading.lens["icc_exact"].diff("kappa") < 0).all()
    models = part_of(asked, {"part": "models"})
    followed = models.dataset["followed"]
    np.testing.assert_allclose(followed[0, -1], states[-1], rtol=1e-5, atol=1e-6)
    assert followed.sizes["run"] == len(models.lens["variant"])  # the halves with each other
    wish = {"part": "surgery", "receiver": 2, "donor": 6, "amount": 1.0}
    for operation, at in (("interpolate", 1), ("rotate", 0)):
        made = part_of(asked, {**wish, "operation": operation}).dataset
        sign = 1 if at else -1
        np.testing.assert_allclose(sign * made["noise"][2], made["noise"][at], atol=1e-6)
    made = part_of(asked, {**wish, "operation": "interpolate"}).dataset["outcomes"]
    np.testing.assert_allclose(made[:2].values.swapaxes(0, 1), states[-1][:, [2, 6]], atol=1e-5)
    sought = part_of(asked, {**wish, "operation": "search"})
    assert "comes within" in sought.facts[0]
    band = part_of(asked, {**wish, "operation": "band", "band": "1"})
    assert "exact" in band.facts[0] and "50% of the noise" in band.facts[0]
    for part in (row, fading, models, band):
        told = header(packed_part(part, "mark"))
        assert told["part"] == part.part and told["of"] == "mark" and told["arrays"]


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({}, "there is no part None; there are row, fading, models, surgery"),
        ({"part": "row", "index": 9}, "row 9 was asked for; there are 8"),
        ({"part": "surgery", "operation": "band", "band": "7"}, "there is no band '7'"),
        ({"part": "surgery", "operation": "patch"}, "it takes what the page sends"),
        ({"part": "surgery", "operation": "cut"}, "there is no operation 'cut'"),
        ({"part": "surgery", "operation": "rotate", "amount": 2}, "the amount was 2"),
        ({"part": "surgery", "operation": "rotate", "donor": -1}, "seeds are at least 0"),
    ],
)
def test_what_a_part_refuses_is_a_sentence(wish, sentence):
    with pytest.raises(StudyError) as told:
        part_of((study(), Seeding()), wish)
    assert sentence in told.value.problems[""]


@pytest.mark.parametrize(
    ("changed", "key", "sentence"),
    [
        ({"seeds.count": 4}, "seeds.count", "at least 8 seeds are compared"),
        ({"data": "gaussian", "denoiser": "Gaussian"}, "data", "seeds are compared in two or more"),
        (
            {"process": "HeatDissipation", "grid": "uniform"},
            "process",
            "which starts from noised data",
        ),
    ],
)
def test_what_cannot_be_is_said_beside_its_control(changed, key, sentence):
    with pytest.raises(StudyError) as told:
        seeds_of((study(**changed), Seeding()))
    assert sentence in told.value.problems[key]
