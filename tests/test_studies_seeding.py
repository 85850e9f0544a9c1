"""What the page of seeds shows of a study, and what it refuses."""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.studies import StudyError
from workbench.studies.run import build
from workbench.studies.seeding import LEVELS, Seeding, seeds_of
from workbench.views.seeds import packed

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
    icc = wb.measure("seeds", whole, data=setup.data)["icc"].item()
    assert seen.components["icc"].item() == pytest.approx(icc, rel=1e-9)
    # Coordinates of equal variance add up to the whole.
    assert np.nanmean(dataset["share"].values) == pytest.approx(icc, abs=0.02)
    block = packed(seen, asked.to_query())
    header = json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])
    assert header["kind"] == "plane" and header["parts"]["names"] == [
        "class",
        "seed",
        "interaction",
    ]


def test_fresh_noise_takes_the_mark_of_the_start_away():
    quiet, noisy = (seeds_of((study(), Seeding(eta=eta))) for eta in (0.05, 1.0))
    starts = [
        seen.identification["accuracy"].sel(shared="the start").item() for seen in (quiet, noisy)
    ]
    assert starts[0] > 0.5 > starts[1]
    assert torch.tensor(noisy.retention["correlation"].values).abs().max() < 0.9


@pytest.mark.parametrize(
    ("changed", "key", "sentence"),
    [
        ({"seeds.count": 4}, "seeds.count", "at least 8 seeds are compared"),
        ({"data": "gaussian", "denoiser": "Gaussian"}, "data", "seeds are compared in two or more"),
    ],
)
def test_what_cannot_be_is_said_beside_its_control(changed, key, sentence):
    with pytest.raises(StudyError) as told:
        seeds_of((study(**changed), Seeding()))
    assert sentence in told.value.problems[key]
