"""The command line gives the numbers of the library, and sentences with status 2."""

import json

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.studies import Study

STUDY = Study(
    data="moons",
    grid={"name": "karras", "steps": 5},
    sampler={"name": "DDIM", "eta": 1.0},
    seeds={"first": 3, "count": 6},
    record={"fields": ["x", "score"], "every": 2},
    device="cpu",
)


def workbench(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def same_bytes(path, dataset: xr.Dataset) -> None:
    stored = xr.open_zarr(path, consolidated=False).load()
    assert set(stored.variables) == set(dataset.variables)
    for name, variable in dataset.variables.items():
        assert stored[name].dims == variable.dims and stored[name].dtype == variable.dtype
        assert stored[name].values.tobytes() == np.ascontiguousarray(variable.values).tobytes(), (
            name
        )
    assert stored.attrs.keys() == dataset.attrs.keys()
    assert all(stored.attrs[k] == v for k, v in dataset.attrs.items() if k != "seconds")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_run_stores_the_very_bytes_of_the_library(suffix, tmp_path):
    study, out = tmp_path / f"study.{suffix}", tmp_path / "out.zarr"
    STUDY.dump(study)
    done = workbench("run", study, "-o", out)
    assert done.exit_code == 0, done.output
    assert "out.zarr: 4 time x 6 sample x 2 dim; 5 evaluations" in done.stdout
    same_bytes(out, wb.run(STUDY))


def test_entries_can_be_set(tmp_path):
    """Another sampler drops the eta of the first; a stored study is the one that was run."""
    study, out = tmp_path / "study.yaml", tmp_path / "out.zarr"
    STUDY.dump(study)
    settings = ["--set", "sampler=Heun", "-s", "grid_steps=3", "-s", "process_beta_max=12.5"]
    assert workbench("run", study, "--out", out, *settings).exit_code == 0
    changes = {"sampler": "Heun", "grid_steps": 3, "process_beta_max": 12.5}
    expected = Study.changed(STUDY.to_flat(), changes)
    assert (expected.sampler.name, expected.grid.steps) == ("Heun", 3)
    same_bytes(out, wb.run(expected))
    stored = json.loads(xr.open_zarr(out, consolidated=False).attrs["study"])
    assert Study(**stored) == expected


def test_a_dash_is_the_default_study(tmp_path):
    out = tmp_path / "out.zarr"
    small = ["-s", "seeds_count=2", "-s", "device=cpu"]
    assert workbench("run", "-", "-o", out, *small).exit_code == 0
    same_bytes(out, wb.run(Study(seeds={"count": 2}, device="cpu")))


def test_what_exists_is_kept_unless_overwriting_is_asked_for(tmp_path, monkeypatch):
    study, out = tmp_path / "study.yaml", tmp_path / "out.zarr"
    STUDY.dump(study)
    assert workbench("run", study, "-o", out).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("workbench.studies.run", pytest.fail)  # refused before any work
        refused = workbench("run", study, "-o", out, "-s", "seeds_first=9")
    assert refused.exit_code == 2
    assert "out.zarr exists; choose another name or say --overwrite." in refused.stderr
    same_bytes(out, wb.run(STUDY))
    assert workbench("run", study, "-o", out, "-s", "seeds_first=9", "--overwrite").exit_code == 0
    same_bytes(out, wb.run(Study.changed(STUDY.to_flat(), {"seeds_first": 9})))


@pytest.mark.parametrize(
    ("study", "settings", "sentence"),
    [
        ("none.yaml", [], "none.yaml cannot be read"),
        ("-", ["grid_steps"], "--set was 'grid_steps'; write it as name=value"),
        ("-", ["grid_steps=0"], "grid.steps was '0'; it must be a whole number, at least 1"),
        ("-", ["gird_steps=4"], "no entry 'gird_steps' (did you mean 'grid_steps'?)"),
        ("-", ["process_beta_max=0.05"], "beta_max was 0.05; it must be at least beta_min (0.1)"),
        ("-", ["device=tpu"], "device was 'tpu'"),
        (
            "-",
            ["grid_final=denoise", "record_fields=score"],
            "score cannot be recorded at sigma = 0",
        ),
        ("-", ["self=1"], "no entry 'self'"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(study, settings, sentence, tmp_path):
    path = study if study == "-" else tmp_path / study
    options = [part for setting in settings for part in ("-s", setting)]
    done = workbench("run", path, "-o", tmp_path / "out.zarr", *options)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("workbench: ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_version_and_help():
    assert workbench("--version").stdout == f"workbench {wb.__version__}\n"
    text = workbench("--help").stdout
    assert all(command in text for command in ("run", "serve", "doctor"))


def test_doctor(monkeypatch):
    monkeypatch.setattr("workbench.doctor.report", lambda: (["all well"], True))
    done = workbench("doctor")
    assert (done.exit_code, done.stdout) == (0, "all well\n")
    monkeypatch.setattr("workbench.doctor.report", lambda: (["not well"], False))
    assert workbench("doctor").exit_code == 1
