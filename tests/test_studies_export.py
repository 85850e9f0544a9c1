"""A study leaves the same numbers as a page, a notebook, a script, a command and a call."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from helpers import run_notebook, same_run
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.studies import SECTIONS, Study, StudyError, explore, store
from workbench.studies.export import FORMS, declared_in, export, notebooks_folder, to_notebook

STUDY = Study(
    data={"name": "moons", "noise": 0.1},
    process={"name": "VP", "beta_max": 15.0},
    sampler={"name": "DDIM", "eta": 0.5},
    grid={"name": "karras", "steps": 6, "exponent": 5.0},
    seeds={"first": 3, "count": 7},
    record={"fields": ["x", "denoised", "score"], "every": 2},
    lenses=["output", {"name": "teleportation", "samples": 5, "levels": 3, "steps": 8}, "flow"],
    dtype="float64",
    device="cpu",
)


def same_result(found, expected) -> None:
    same_run(found, expected)
    assert Study(**json.loads(found.attrs["study"])) == Study(**json.loads(expected.attrs["study"]))


def test_page_notebook_script_and_command_leave_the_numbers_of_the_library(tmp_path, monkeypatch):
    pytest.importorskip("papermill")
    expected = wb.run(STUDY)
    same_result(explore(STUDY).run, expected)  # what a page computes
    for to, name in (("notebook", "s.ipynb"), ("script", "s.py"), ("study", "s.yaml")):
        export(STUDY, to, tmp_path / name)

    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "s.py"], check=True, timeout=300)
    monkeypatch.setattr(sys, "argv", ["s.py", "run.zarr"])
    with pytest.raises(SystemExit, match=r"run\.zarr is there already; name another"):
        runpy.run_path("s.py", run_name="__main__")
    same_result(store.read(tmp_path / "run.zarr").load(), expected)
    command = ["run", tmp_path / "s.yaml", "-o", tmp_path / "command.zarr"]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    same_result(store.read(tmp_path / "command.zarr").load(), expected)

    # As far as the cell that writes its arrays; the others only look at them.
    run_notebook(tmp_path / "s.ipynb", {"out": str(tmp_path / "notebook.zarr")}, whole=False)
    same_result(store.read(tmp_path / "notebook.zarr").load(), expected)


@pytest.mark.parametrize(
    "study",
    [STUDY, Study(), *(Study(**{s: name}) for s, known in SECTIONS.items() for name in known)],
    ids=lambda study: study.hash[:8],
)
def test_each_form_says_the_whole_study(study):
    """Read back without a run: the notebook's cells that make the study, the script's study."""
    notebook = json.loads(export(study, "notebook"))
    names: dict = {}
    exec("".join(notebook["cells"][1]["source"]), names)
    assert Study.from_flat(names["entries"]) == study
    names = {"__name__": "read"}
    exec(export(study, "script"), names)
    assert names["study"] == study
    assert Study.parse(export(study, "study")) == study


def test_the_study_file_is_canonical(tmp_path):
    for name, text in (("a.yaml", STUDY.to_yaml()), ("a.yml", STUDY.to_yaml()), ("a.json", None)):
        assert export(STUDY, "study", tmp_path / name) == (text or STUDY.to_json())
        assert Study.load(tmp_path / name) == STUDY
        again = export(Study.load(tmp_path / name), "study", tmp_path / f"again-{name}")
        assert (tmp_path / name).read_text() == again


def test_the_notebook_is_the_packaged_one_without_output_but_for_one_cell():
    made = json.loads(to_notebook(STUDY))
    packaged = json.loads((notebooks_folder() / "trajectories.ipynb").read_text(encoding="utf-8"))
    changed = [
        a["source"] != b["source"] for a, b in zip(made["cells"], packaged["cells"], strict=True)
    ]
    assert changed == [False, True] + [False] * (len(changed) - 2)
    assert made["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not cell.get("outputs") for cell in made["cells"])
    declared = declared_in(made)
    assert declared_in(packaged).keys() == declared.keys() == {"entries", "out"}
    # Only what differs is said, and the comments stay.
    assert eval(declared["entries"]) == {
        "data": "moons",
        "data.noise": 0.1,
        "process.beta_max": 15.0,
        "sampler.eta": 0.5,
        "grid.exponent": 5.0,
        "record.fields": "x,denoised,score",
        "record.every": 2,
        "lenses": "output,teleportation,flow",
        "lenses.teleportation.samples": 5,
        "lenses.teleportation.levels": 3,
        "lenses.teleportation.steps": 8,
        "denoiser": "Mixture",
        "process": "VP",
        "sampler": "DDIM",
        "grid": "karras",
        "grid.steps": 6,
        "seeds.first": 3,
        "seeds.count": 7,
        "dtype": "float64",
        "device": "cpu",
    }
    assert "# What is left out has its default" in "".join(made["cells"][1]["source"])


def test_nothing_is_replaced_unless_asked(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("mine")
    with pytest.raises(StudyError, match=r"study\.yaml exists; choose another name"):
        export(STUDY, "study", file)
    assert file.read_text() == "mine"
    export(STUDY, "study", file, overwrite=True)
    assert Study.load(file) == STUDY
    assert os.listdir(tmp_path) == ["study.yaml"]


@pytest.mark.parametrize(
    ("to", "name", "sentence"),
    [
        ("scrpt", None, "--to was 'scrpt' (did you mean 'script'?); it must be one of notebook,"),
        ("script", "s.txt", "s.txt; the name of a script ends in .py."),
        ("notebook", "s.py", "s.py; the name of a notebook ends in .ipynb."),
        ("study", "s", "s; the name of a study ends in .yaml or .yml or .json."),
        ("script", "none/s.py", "s.py cannot be written: No such file or directory."),
    ],
)
def test_what_cannot_be_written_is_a_sentence(to, name, sentence, tmp_path):
    with pytest.raises(StudyError) as caught:
        export(STUDY, to, name and tmp_path / name)
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == [] and set(FORMS) == {"notebook", "script", "study"}
