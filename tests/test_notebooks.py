"""The notebooks run by papermill, and what they leave is what the library gives."""

from pathlib import Path

import pytest

import workbench as wb
from workbench.studies import store

papermill = pytest.importorskip(
    "papermill", reason="needs papermill: pip install -e '.[notebooks]'"
)

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "trajectories.ipynb"

#: Parameters of the notebook that are not entries of a study.
OTHERS = {"more", "out"}


def execute(notebook: Path, parameters: dict, folder: Path) -> str:
    """Run a notebook with parameters, all of them declared; what its last cell prints."""
    declared = papermill.inspect_notebook(notebook)
    unknown = sorted(set(parameters) - set(declared))
    assert unknown == [], f"{notebook.name} has no parameters {unknown}; it has {sorted(declared)}"
    done = papermill.execute_notebook(
        notebook,
        folder / notebook.name,
        parameters,
        cwd=folder,
        kernel_name="python3",
        progress_bar=False,
    )
    return "".join(output.get("text", "") for output in done.cells[-1].outputs)


def test_its_parameters_are_entries_of_a_study_at_their_defaults():
    declared = papermill.inspect_notebook(NOTEBOOK)
    assert set(declared) > OTHERS
    # Values as they stand in the cell are Python literals.
    values = {name: eval(entry["default"], {}) for name, entry in declared.items()}
    study = wb.Study.from_flat({k: v for k, v in values.items() if k not in OTHERS})
    assert study.to_flat() | values == study.to_flat() | {"more": {}, "out": ""}


@pytest.mark.parametrize(
    ("parameters", "aim"),
    [
        ({}, "the exact flow"),
        (
            {
                "data": "ring",
                "denoiser": "Mixture",
                "process": "RectifiedFlow",
                "sampler": "DDIM",
                "grid_steps": 24,
                "more": {"data_modes": 6, "sampler_eta": 0.0},
            },
            "Heun, 4096 steps",
        ),
    ],
    ids=["defaults", "ring"],
)
def test_it_runs_and_leaves_the_very_numbers_of_its_study(parameters, aim, tmp_path):
    said = execute(NOTEBOOK, {**parameters, "out": str(tmp_path / "run.zarr")}, tmp_path)
    assert f"Euler converges to {aim} with order 1" in said
    assert f"Heun converges to {aim} with order 2" in said

    flat = {"data": "gaussian", "denoiser": "Gaussian", **parameters}
    more = flat.pop("more", {})
    expected = wb.run(wb.Study.from_flat({**flat, **more}))
    kept = store.read(tmp_path / "run.zarr")
    assert set(kept.variables) == set(expected.variables)
    for name, array in expected.variables.items():
        assert kept[name].dtype == array.dtype, name
        assert kept[name].dims == array.dims, name
        assert kept[name].values.tobytes() == array.values.tobytes(), name
    same = set(expected.attrs) - {"seconds"}
    assert {k: kept.attrs[k] for k in same} == {k: expected.attrs[k] for k in same}
