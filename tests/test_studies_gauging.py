"""What the page of the gauge shows of a study, and what it refuses."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.exact.turned import turned_law
from workbench.lenses.gauge import gauge_map
from workbench.studies import StudyError
from workbench.studies.gauging import (
    EVERY,
    LEVELS,
    NODES,
    PARTS,
    SHARES,
    STEPS,
    Gauging,
    curves_of,
    gauge_of,
)
from workbench.studies.run import build
from workbench.views.gauge import packed, packed_part
from workbench.views.panels import header_of

FLAT = {"data": "gaussian", "denoiser": "Gaussian", "process": "VP", "grid": "uniform"}


def study(**changed):
    return wb.Study.from_flat({**FLAT, "device": "cpu", **changed})


def curves(asked, part):
    """What the page draws of a part, and its sentences."""
    header = header_of(packed_part(curves_of(asked, part), "this study"))
    assert header["part"] == part and header["of"] == "this study"
    return header["models"], header["findings"]


@pytest.fixture(scope="module")
def seen():
    """A Gaussian whose score has a gauge of its own, 0.5; the slider adds more."""
    asked = study(**{"denoiser": "Perturbed", "denoiser.gauge": 0.5})
    return asked, gauge_of((asked, Gauging(networks="none")))


def test_its_maps_are_the_grid_s_and_its_gauge_is_known(seen):
    asked, found = seen
    dataset, setup = found.dataset, build(asked)
    assert dataset["field"].shape == (LEVELS, NODES // EVERY, NODES // EVERY, 2)
    row = 6
    rho = float(dataset["rho"][row])
    law = setup.data.law
    whole = gauge_map(setup.truth.denoiser, law, rho, NODES)
    pick = slice(EVERY // 2, None, EVERY)
    np.testing.assert_allclose(dataset["gauge"][row], whole["gauge"].values[pick, pick], rtol=1e-5)
    # The model's own gauge is half a quarter turn of the true score; what the page adds is c of it.
    assert np.nanmax(dataset["density"][row]) == pytest.approx(1, abs=0.05)
    gauge, truth = (dataset[name][row].values for name in ("gauge", "truth"))
    turned = 0.5 * np.stack([-truth[..., 1], truth[..., 0]], -1)
    inside = np.hypot(truth[..., 0], truth[..., 1]) < 2
    apart = np.square(gauge - turned)[inside].mean() / np.square(turned)[inside].mean()
    assert apart < 0.05**2


def test_steps_break_the_gauge_and_the_measured_error_is_the_exact_one(seen):
    """Beyond the null band, W2 of the points is that of the law to a fifth."""
    _, found = seen
    exact, measured = found.dataset["w2_exact"].values, found.dataset["w2"].values
    assert exact.shape == (len(SHARES), len(STEPS)) and (np.diff(exact, axis=1) < 0).all()
    assert (np.diff(exact, axis=0) > 0).all()
    setup = build(study(**{"grid.steps": 50}))
    diffusion, turn = setup.truth, torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    # The model's own gauge counts: half of a quarter turn, and 2 that are added.
    law = turned_law(diffusion, lambda cov: -2.5 * turn @ torch.linalg.inv(cov), list(setup.grid.t))
    wanted = wb.exact.w2(law, diffusion.marginal(setup.grid.t[-1]))
    assert exact[-1, STEPS.index(50)] == pytest.approx(float(wanted), rel=1e-9)
    high = float(found.dataset["w2_null"][1])
    assert (np.abs(measured - exact) < 2 * high + 0.2 * exact).all()


def test_states_lie_between_the_nodes_and_every_curve_has_its_place(seen):
    asked, found = seen
    states = found.dataset["states"].values
    assert states.shape[:3] == (len(SHARES), len(STEPS), LEVELS) and np.isfinite(states).all()
    assert header_of(packed(found, "this study"))["of"] == "this study"
    assert any("Euler with 100 steps is off by" in one for one in found.facts)
    drawn = {}
    for part in PARTS:
        (*_, model), said = curves((asked, Gauging(networks="none")), part)
        assert said
        drawn |= model
    assert drawn["name"] in ("Perturbed", "exact")
    assert {"share", "violation", "gauge", "flipd", "lidl", "mle"} <= set(drawn)
    assert drawn["flipd"]["holds"] and len(drawn["flipd"]["at"]) == len(drawn["flipd"]["value"])


def test_of_many_dimensions_there_are_paths_and_curves():
    asked = study(**{"data": "field", "data.side": 5, "data.exponent": 4}), Gauging(networks="none")
    shown = header_of(packed(gauge_of(asked), ""))
    assert shown["dim"] == 25 and "field" not in shown["arrays"]
    (model,), _ = curves(asked, "dimension")
    assert model["flipd"]["holds"] == []  # of a power law a curve and no number


def test_a_gaussian_of_lower_rank_has_its_dimension_and_other_data_no_networks():
    """Of a model that is not the data's law the exact field stands beside it, and no network that
    was trained on another law of the same name."""
    asked = study(**{"data": "sphere", "data.dimension": 4, "denoiser.rank": 2}), Gauging()
    models, said = curves(asked, "dimension")
    assert [one["name"] for one in models] == ["Gaussian", "exact"]
    assert "FLIPD at 2" in said[0]
    exact = models[1]["flipd"]
    low, high = exact["holds"]
    level = [v for v, at in zip(exact["value"], exact["at"], strict=True) if low <= at <= high]
    assert high > 3 * low and level == pytest.approx([4] * len(level), abs=0.1)


@pytest.mark.parametrize(
    ("changed", "key", "sentence"),
    [
        ({"process": "EqualSNR"}, "process", "one noise level and a prior"),
        ({"process": "IRSDE"}, "process", "one noise level and a prior"),
    ],
)
def test_what_cannot_be_is_said_beside_its_control(changed, key, sentence):
    with pytest.raises(StudyError) as told:
        gauge_of((study(**changed), Gauging()))
    assert sentence in told.value.problems[key]
