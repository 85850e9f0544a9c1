"""The notebooks run by papermill, and what they leave is what the library gives."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_notebook, same_run

import workbench as wb
from workbench.lenses.teleport import teleportation
from workbench.studies import build, store
from workbench.studies.comparison import Comparing, compare
from workbench.studies.measuring import look

papermill = pytest.importorskip(
    "papermill", reason="needs papermill: pip install -e '.[notebooks]'"
)

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

#: Options of the comparison that its notebook has as parameters.
COMPARED = set(Comparing.keys()) - {"file", "focus"}

#: Parameters of each notebook that are not entries of a study.
OTHERS = {
    "trajectories": {"out"},
    "exact": {"out", "levels", "solver_steps", "slope", "dimension"},
    "samplers": {"out", "spectrum_file", "worth_seeds", *COMPARED},
    "seeds": {"out", "etas", "network_seeds"},
    "frequency": {"out", "bands", "processes", "slope", "pictures", "network"},
    "geometry": {"out", "nudge", "turned"},
    "bring_your_own": {"out", "steps", "held_out"},
    "sweeps": {"out", "samplers", "steps", "processes", "workers"},
    "gauge": {
        *("out", "c", "rho", "nodes", "steps", "strengths"),
        *("networks", "levels", "samples", "dimensions"),
    },
    "gap": {"out", "eta", "error", "size", "weight", "samples", "levels", "networks"},
}


def execute(name: str, parameters: dict, folder: Path, whole: bool = True) -> str:
    """Run a notebook with parameters, all of them declared; what its last cell prints.

    Its cells run here, one after the other, or until it has stored what it is asked for: as true of
    its numbers as in a kernel of its own, and sooner, since everything is imported already.
    """
    notebook = NOTEBOOKS / f"{name}.ipynb"
    declared = papermill.inspect_notebook(notebook)
    unknown = sorted(set(parameters) - set(declared))
    assert unknown == [], f"{notebook.name} has no parameters {unknown}; it has {sorted(declared)}"
    with contextlib.chdir(folder):
        return run_notebook(notebook, parameters, whole)


@pytest.mark.parametrize("name", OTHERS)
def test_its_parameters_are_entries_of_a_study(name):
    declared = papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb")
    assert set(declared) == OTHERS[name] | {"entries"}
    # Values as they stand in the cell are Python literals.
    values = {key: eval(entry["default"], {}) for key, entry in declared.items()}
    assert values["out"] == ""
    flat = wb.Study.from_flat(values["entries"]).to_flat()
    assert flat == flat | values["entries"]
    if name == "trajectories":  # it runs the default study of Gaussian data
        gaussian = {"data": "gaussian", "denoiser": "Gaussian"}
        assert flat == wb.Study.from_flat(gaussian).to_flat()


def test_every_notebook_is_run_here():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(OTHERS)


@pytest.mark.parametrize(
    ("parameters", "aim"),
    [
        ({}, "the exact flow"),
        (
            {
                "data": "ring",
                "data.modes": 6,
                "denoiser": "Mixture",
                "process": "RectifiedFlow",
                "sampler": "DDIM",
                "sampler.eta": 0.0,
                "grid.steps": 24,
            },
            "Heun, 4096 steps",
        ),
    ],
    ids=["defaults", "ring"],
)
def test_trajectories_leaves_the_numbers_of_its_study(parameters, aim, tmp_path):
    asked = {"entries": parameters} if parameters else {}
    asked |= {"out": str(tmp_path / "run.zarr")}
    said = execute("trajectories", asked, tmp_path)
    assert f"Euler converges to {aim} with order 1" in said
    assert f"Heun converges to {aim} with order 2" in said

    flat = parameters or {"data": "gaussian", "denoiser": "Gaussian"}
    expected = wb.run(wb.Study.from_flat(flat))
    same_run(store.read(tmp_path / "run.zarr").load(), expected)


@pytest.mark.parametrize(
    "parameters",
    [
        {"entries": {"data": "ring", "seeds.count": 16}, "levels": 7, "solver_steps": 48},
        {
            "entries": {
                "data": "digits",
                "denoiser": "Empirical",
                "denoiser.points": 100,
                "process": "RectifiedFlow",
                "seeds.first": 11,
                "seeds.count": 3,
            },
            "levels": 4,
            "solver_steps": 16,
        },
    ],
    ids=["ring", "digits"],
)
def test_exact_checks_what_it_says_and_leaves_the_library_s_numbers(parameters, tmp_path):
    whole = parameters["entries"]["data"] == "ring"
    asked = {**parameters, "out": str(tmp_path / "skips.zarr")}
    said = execute("exact", asked, tmp_path, whole=whole)
    if whole:
        assert "an independent computation" in said
        assert f"{len(wb.PROCESSES)} processes draw one curve in rho" in said
        assert "A sampled run carries the modes of its denoised state as the formula says" in said
        assert "gaussian as Gaussian: every skip is exact" in said
        assert "The exact law of Euler's method is that of its samples." in said

    flat = {"dtype": "float64", "device": "cpu", **parameters["entries"]}
    setup = build(wb.Study.from_flat(flat))
    with torch.no_grad():
        expected = teleportation(
            setup.diffusion, setup.seeds, parameters["levels"], parameters["solver_steps"]
        )
    kept = store.read(tmp_path / "skips.zarr").load()
    for name in ("rms", "quantile", "floor", "t"):
        np.testing.assert_allclose(kept[name], expected[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "samplers": "DDIM,Heun,EulerMaruyama",
            "modes": 12,
            "most": 48,
            "nfe": 8,
            "worth_seeds": 4,
        },
        {
            "entries": {
                "data": "digits",
                "denoiser": "Gaussian",
                "denoiser.shrinkage": 0.1,
                "process": "RectifiedFlow",
                "grid": "karras",
            },
            "samplers": "UniPC:order=3,DDIM:eta=1",
            "spectrum": "data",
            "error": "kl",
            "start": "exact",
            "most": 32,
            "worth_seeds": 0,
        },
    ],
    ids=["power law", "digits"],
)
def test_samplers_checks_what_it_says_and_leaves_the_library_s_numbers(parameters, tmp_path):
    asked = {**parameters, "out": str(tmp_path / "compared.zarr")}
    whole = "entries" not in parameters
    said = execute("samplers", asked, tmp_path, whole=whole)
    if whole:
        assert "3 laws agree with wb.exact.law, wb.exact.w2 and wb.exact.kl." in said
        assert "A run of DDIM ends where its law says." in said
        assert "3 samplers converge with the order they claim, or faster." in said
        assert "The tuned grid is better than the best standard one" in said

    flat = {"dtype": "float64", "device": "cpu", **parameters.get("entries", {})}
    own = {key: parameters[key] for key in COMPARED if key in parameters}
    grids = {"grids": "karras"}
    expected = compare(wb.Study.from_flat(flat), Comparing.from_flat(grids | own)).lens
    kept = store.read(tmp_path / "compared.zarr").load()
    for name in ("w2", "kl", "nfe", "steps", "std", "target"):
        np.testing.assert_allclose(kept[name], expected[name], rtol=1e-12, atol=1e-14)


def test_seeds_checks_what_it_says_and_leaves_the_library_s_numbers(tmp_path):
    flat = {"data": "ring", "denoiser": "Conditional", "grid.steps": 12, "seeds.count": 32}
    asked = {"entries": flat, "etas": [0.0, 1.0], "out": str(tmp_path / "seeds.zarr")}
    said = execute("seeds", asked, tmp_path)
    assert "The seed's share is the exact one, within its standard error." in said
    assert "Seeds that share no noise are named by chance." in said
    assert "Models of disjoint data agree on what a seed means, beyond chance." in said

    setup = build(wb.Study.from_flat(flat | {"dtype": "float64", "device": "cpu"}))
    run = wb.sample(setup.diffusion, setup.sampler, setup.grid, setup.seeds)
    expected = wb.measure("variance_components", run, data=setup.data)
    kept = store.read(tmp_path / "seeds.zarr").load()
    np.testing.assert_allclose(kept["variance"], expected["variance"], rtol=1e-9, atol=1e-13)


def test_gap_checks_what_it_says_and_leaves_the_library_s_numbers(tmp_path):
    asked = {"samples": 24, "levels": 3, "networks": "", "out": str(tmp_path / "gap.zarr")}
    said = execute("gap", asked, tmp_path)
    assert "The lens's exact gap is the closed form." in said
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(*_moments()))
    expected = wb.exact.gap_bound(diffusion, 0.1, start="prior").w2
    kept = store.read(tmp_path / "gap.zarr").load()
    assert float(kept["w2_exact"][0]) == pytest.approx(expected, rel=1e-3)


def _moments():
    law = wb.datasets.gaussian().law
    return law.mean, law.cov


def test_sweeps_checks_what_it_says_and_leaves_the_library_s_numbers(tmp_path):
    axes = {
        "processes": ["VP", "RectifiedFlow"],
        "samplers": ["Heun", {"name": "DDIM", "eta": 1.0}],
        "steps": [3, 12],
    }
    flat = {"data": "digits", "denoiser": "Gaussian", "seeds.count": 6, "dtype": "float64"}
    flat["device"] = "cpu"
    out = tmp_path / "sweep"
    said = execute("sweeps", {"entries": flat, **axes, "workers": 0, "out": str(out)}, tmp_path)
    assert "8 studies, none failed." in said
    assert "The last point is wb.run of its study, to rounding." in said
    assert "Each study was computed once; the second call opened what was there." in said
    assert "More steps bring every sampler closer to the law, under every process." in said

    flat |= {"device": "cpu", "record.fields": "x", "record.every": 10_000}
    grid = dict(zip(("process", "sampler", "grid.steps"), axes.values(), strict=True))
    spec = wb.SweepSpec(wb.Study.from_flat(flat), grid)
    kept = wb.sweep(spec, out)  # all there: nothing is computed, and Dask is not asked
    assert kept["status"].shape == (2, 2, 2) and kept.attrs["sweep_hash"] == spec.hash
    undisturbed = wb.sweep(spec, tmp_path / "again", workers=0)
    same_run(kept, undisturbed)


def test_frequency_checks_what_it_says_and_leaves_the_library_s_numbers(tmp_path):
    flat = {
        "data": "digits",
        "denoiser": "Empirical",
        "denoiser.points": 200,
        "sampler": "Heun",
        "grid.steps": 40,
        "grid.final": "denoise",
        "seeds.count": 24,
    }
    asked = {"entries": flat, "processes": ["VP", "EDM"], "pictures": 2}
    said = execute("frequency", {**asked, "out": str(tmp_path / "f.zarr")}, tmp_path)
    assert "5 bands of digits; Parseval holds to rounding." in said
    expected, _ = look(wb.Study.from_flat({**flat, "dtype": "float64"}), "frequency")
    kept = store.read(tmp_path / "f.zarr").load()
    for name in ("power", "rho_power", "rho_power_gaussian", "gain"):
        np.testing.assert_allclose(kept[name], expected[name], rtol=1e-9, atol=1e-13)


def test_geometry_checks_what_it_says_and_leaves_the_library_s_numbers(tmp_path):
    flat = {
        "data": "digits",
        "denoiser": "Empirical",
        "sampler": "Heun",
        "grid": "uniform",
        "grid.steps": 16,
        "seeds.count": 10,
    }
    asked = {"entries": flat, "turned": 60, "out": str(tmp_path / "g.zarr")}
    said = execute("geometry", asked, tmp_path)
    assert "A path of x is 1." in said
    study = wb.Study.from_flat({**flat, "dtype": "float64"})
    expected, _ = look(study, "geometry", state="x")
    kept = store.read(tmp_path / "g.zarr").load()
    for name in ("off_chord", "turned", "arc_over_chord", "shape", "speed", "outside"):
        np.testing.assert_allclose(kept[name], expected[name], rtol=1e-9, atol=1e-13)


def test_gauge_checks_what_it_says_and_leaves_the_library_s_numbers(tmp_path):
    asked = {"nodes": 48, "levels": 2, "samples": 96, "networks": "sphere_conservative"}
    asked |= {"steps": "100", "dimensions": "", "out": str(tmp_path / "g.zarr")}
    said = execute("gauge", asked, tmp_path)
    assert "0.0031, 0.065 and 1.49" in said and "network is a gradient" in said
    kept = store.read(tmp_path / "g.zarr").load()
    np.testing.assert_allclose(kept["gauge"], kept["gauge_exact"], rtol=0.02, atol=1e-4)


def test_bring_your_own_leaves_the_losses_of_its_network(tmp_path):
    entries = {"data": "ring", "data.size": 400, "denoiser": "Mixture", "seeds.count": 16}
    asked = {"entries": entries, "steps": 40, "held_out": 100, "out": str(tmp_path / "fit.zarr")}
    said = execute("bring_your_own", asked, tmp_path)
    assert "the guard refuses what it is not" in said
    fit = store.read(tmp_path / "fit.zarr")
    loss, optimal = (fit[name].sel(set="unseen") for name in ("loss", "optimal"))
    assert float(((loss - optimal) / fit["loss_se"].sel(set="unseen")).min()) > -5
