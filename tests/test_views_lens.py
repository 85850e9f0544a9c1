"""The figure of any lens: both backends, with what stands beside an estimate."""

import holoviews as hv
import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from workbench.lenses import LENSES
from workbench.sampling.methods import BDIA, DDIMInversion
from workbench.testing import check_lens
from workbench.views.figures import on_paper
from workbench.views.lens import OWN, figure

#: Lenses whose generic figure is drawn for paper too: names along an axis, and single numbers.
PAPER = ("gap", "output")


#: Held to closed forms, or to the contract on less, in their own tests: here they take too long.
APART = {"density_error": {"samples": 2, "paths": 4}, "ranks": {}}

#: With less than their defaults, for the time that they take.
SMALL = {
    "teleportation": {"samples": 40, "levels": 5, "steps": 16},
    "likelihood": {"samples": 4, "tolerance": 1e-2},
    "dimension": {"levels": 5},
    "attribution": {"samples": 24, "steps": 4, "levels": 2},
    "bound": {"samples": 16, "steps": 4},
    "fokker_planck": {"samples": 32, "levels": 2},
    "gap": {"samples": 40, "steps": 4},
    "gauge": {"levels": 2, "samples": 64},
    "asymmetry": {"levels": 2},
    "convergence": {"most": 12, "points": 2, "solver_steps": 32},
    "shortcut": {"samples": 32, "skips": 3},
    "tuning": {"nfe": 2, "samples": 8},
    "inversion": {"inversions": (BDIA(), DDIMInversion())},
    "uturn": {"samples": 100, "steps": 8},
    "commitment": {"levels": 2},
    "fading": {"kappas": (0.5,)},
    "portrait": {"nodes": 2, "density": 6, "field": 4},
}


@pytest.mark.parametrize("name", sorted(LENSES))
def test_every_lens_keeps_its_contract_and_is_drawn(name):
    if name in APART:
        dataset = measured_apart(name)
    else:
        report = check_lens(LENSES[name](**SMALL.get(name, {})))
        assert report.laws
        dataset = next(iter(report.measured.values()))
    drawn = figure(dataset, name)
    assert hv.render(drawn, backend="bokeh") is not None
    if name in OWN or name in PAPER:
        assert on_paper(drawn) is not None
    drawn = drawn if name == "portrait" else figure(dataset)
    panels = list(drawn) if isinstance(drawn, hv.Layout) else [drawn]
    labels = {element.label for panel in panels for element in panel}
    for end, label in (("_exact", "exact"), ("_null", "null band")):
        if any(key.endswith(end) for key in dataset.data_vars):
            assert label in labels


def measured_apart(name: str) -> xr.Dataset:
    """What a lens that is not held to its contract here says of a short run."""
    variances = torch.tensor([1.5, 0.4], dtype=torch.float64)
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(torch.zeros(2).double(), variances))
    run = wb.sample(diffusion, wb.DDIM(), wb.Grid.log_snr(diffusion.process, 5), range(40))
    data = wb.Data("run", run.final, torch.arange(40) % 2)
    return wb.measure(name, run, data=data, **APART[name])


def test_what_is_drawn_is_the_dataset():
    values = np.array([1.0, 3.0, 2.0])
    dataset = xr.Dataset(
        {
            "power": ("rho", values, {"long_name": "power", "units": "x"}),
            "power_se": ("rho", 0.1 * values),
            "power_exact": ("rho", values + 0.5),
            "power_null": (("rho", "bound"), np.stack([values - 1, values + 1], 1)),
            "kind": ((), 2.0, {"units": "1"}),
        },
        {"rho": [100.0, 1.0, 0.01], "bound": ["low", "high"]},
    )
    readings, curve = figure(dataset)
    drawn = {element.label: element for element in curve}
    np.testing.assert_array_equal(drawn["estimate"].dimension_values("place"), [2.0, 0.0, -2.0])
    np.testing.assert_array_equal(drawn["estimate"].dimension_values("value"), values)
    np.testing.assert_array_equal(drawn["exact"].dimension_values("value"), values + 0.5)
    np.testing.assert_array_equal(drawn["null band"].dimension_values("upper"), values + 1)
    np.testing.assert_allclose(drawn["± 2 se"].dimension_values("value"), 0.8 * values)
    dots = next(element for element in readings if len(element) and element.label == "")
    assert dots.dimension_values("number") == [2.0]
    with pytest.raises(ValueError, match="measured nothing that can be drawn"):
        figure(xr.Dataset())
