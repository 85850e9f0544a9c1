"""Whatever is registered can be named, reached and run; plugins are part of it, or a sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from workbench import registry
from workbench.cli import app
from workbench.processes import AFFINE, SPECTRAL
from workbench.sampling.record import recordable
from workbench.studies import SECTIONS, Study, files
from workbench.studies.spec import Choice
from workbench.studies.training import Training
from workbench.ui.form import controls
from workbench.ui.server import apps

SMALL = {
    "data": {"name": "ring", "modes": 3, "size": 24},
    "grid": {"name": "uniform", "steps": 2},
    "seeds": {"count": 3},
    "dtype": "float64",
    "device": "cpu",
}

#: What takes long by default, with less of it.
LESS = {
    "patches": {"each": 4},
    "DPMOT": {"points": 8, "rounds": 20},
    "bound": {"samples": 16, "steps": 4},
    "tuning": {"nfe": 2, "samples": 4},
    "density_error": {"samples": 2, "paths": 4},
    "gap": {"samples": 16, "steps": 4},
    "likelihood": {"samples": 2, "tolerance": 1e-2},
}


def named(study: Study) -> set[tuple[str, str]]:
    """Kind and name of every object of a study."""
    found = {("reduction", field.split(".")[1]) for field in study.record.fields if "." in field}
    waiting = [*(getattr(study, section) for section in SECTIONS), *study.lenses]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Choice):
            found.add((one.registry_kind, one.name))
            waiting += one.parameters.values()
    return found


def studies(folder: Path):
    """A small study for every registered object."""
    cloud, row = np.arange(12.0).reshape(6, 2) ** 0.5, np.array([0.5, 2.0])
    stored = {}
    for name, content in (("points", cloud), ("row", row)):
        np.save(folder / f"{name}.npy", content)
        stored[name] = files.keep(folder / f"{name}.npy")
    for section, known in SECTIONS.items():
        for name in known:
            asked = {section: {"name": name, **LESS.get(name, {})}}
            if "steps" in known.entries[name].parameters:
                asked[section]["steps"] = 2
            if name == "points":
                asked |= {"data": {"name": name, "file": stored["points"]}, "denoiser": "Gaussian"}
            if name in ("gaussian", "sphere"):
                asked |= {"denoiser": "Gaussian"}
            if name == "Local":  # of images
                asked = {"data": "digits", "denoiser": {"name": name, "points": 5}}
            yield {**SMALL, **asked}
    for name in registry.entries("condition"):
        condition = {"name": name} | ({"file": stored["row"]} if name == "array" else {})
        yield {**SMALL, "process": {"name": "OUVE", "condition": condition}}
    for name in registry.entries("spectrum"):
        spectrum = {"name": name} | ({"file": stored["row"]} if name == "modes" else {})
        yield {**SMALL, "process": {"name": "EqualSNR", "spectrum": spectrum}}
    for name in registry.entries("basis"):
        yield {**SMALL, "process": {"name": "ShortestPath", "basis": name}}
    for name in registry.entries("path"):
        yield {**SMALL, "process": {"name": "OneSided", "path": name}}
    pictures = {**SMALL, "data": "digits", "denoiser": "Gaussian"}
    reduced = [f"x.{name}" for name in registry.entries("reduction")]
    yield {**pictures, "record": {"fields": reduced}}
    for name, entry in registry.entries("lens").items():
        reads = [field for field in entry.target().reads if field in recordable()]
        base = pictures if any("." in field for field in reads) else SMALL
        fields = list(dict.fromkeys(["x", *reads]))
        lens = {"name": name, **LESS.get(name, {})}
        yield {**base, "lenses": [lens], "record": {"fields": fields}}


def trainings():
    """A training for every object that only a training names."""
    for kind in ("network", "objective", "regulariser"):
        for name in registry.entries(kind):
            yield {"regularisers": [name]} if kind == "regulariser" else {kind: name}


def test_everything_registered_is_reached_from_file_url_form_and_command(tmp_path, monkeypatch):
    """And runs: with two steps and three samples, to finite states."""
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    reached, default = set(), Study(**SMALL)
    for asked in studies(tmp_path):
        study = Study(**asked)
        reached |= named(study)
        assert Study.parse(study.to_yaml()) == Study.from_query(study.to_query()) == study
        assert default.changed({key: str(v) for key, v in study.to_flat().items()}) == study
        shown = {control.key: control for control in controls(study)}
        for key, value in study.to_flat().items():
            if key.partition(".")[0] in SECTIONS:
                assert shown[key].value == value, key
                assert not shown[key].choices or value in shown[key].choices
        final = wb.run(study)["final"].values
        assert final.shape[0] == 3 and np.isfinite(final).all(), asked
    for asked in trainings():
        training = Training(**asked)
        (tmp_path / "training.yaml").write_text(training.to_yaml())
        assert Training.load(tmp_path / "training.yaml").to_dict() == training.to_dict()
        parts = (training.network, training.objective, *training.regularisers)
        reached |= {(one.registry_kind, one.name) for one in parts}
    kinds = set(registry.KINDS) - {"page", "format"}  # which no study names
    everything = {(kind, name) for kind in kinds for name in registry.entries(kind)}
    assert everything == reached
    assert set(AFFINE) | set(SPECTRAL) | set(wb.PROCESSES) == set(registry.entries("process"))


# ---- registering ---------------------------------------------------------------------------------


def test_an_object_is_registered_by_its_base_class_or_by_a_kind():
    with registry.kept():

        @wb.register
        class Nearest(wb.Denoiser):
            """The data point itself."""

        @wb.register(kind="data", name="two")
        def pair():
            """Two points."""
            return wb.Data("two", torch.eye(2, dtype=torch.float64))

        assert wb.DENOISERS["Nearest"] is Nearest and wb.DATASETS["two"] is pair
        assert registry.entry("denoiser", "Nearest").summary == "The data point itself."
        assert wb.run(Study(data="two", denoiser="Empirical", **{"seeds": {"count": 2}}))
        # Defined again, as by a notebook's cell: the new one takes its place.
        again = type("Nearest", (wb.Denoiser,), {"__module__": __name__})
        again.__qualname__ = Nearest.__qualname__
        assert wb.register(again) is again is wb.DENOISERS["Nearest"]
        with pytest.raises(ValueError, match=r"two objects of kind denoiser are named 'Gaussian'"):
            wb.register(Nearest, name="Gaussian")
        with pytest.raises(TypeError, match="of kind None; derive it from a base class"):
            wb.register(test_everything_registered_is_reached_from_file_url_form_and_command)
    assert "Nearest" not in wb.DENOISERS and "two" not in wb.DATASETS


def test_a_process_of_alpha_and_sigma_alone_is_the_closed_form():
    class Plain(wb.Process):
        t_min, t_max = 1e-3, 1.0

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t

    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    own, known = Plain()(t), wb.RectifiedFlow()(t)
    for name in ("alpha", "sigma", "d_alpha", "d_sigma", "f", "g2", "rho"):
        torch.testing.assert_close(getattr(own, name), getattr(known, name), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(Plain().time_of(own.rho), t, rtol=1e-12, atol=1e-15)
    with pytest.raises(NotImplementedError, match="gives neither alpha"):
        type("Bare", (wb.Process,), {"t_min": 0.1, "t_max": 1.0})()(0.5)


PLUGIN = '''
import torch
import workbench as wb


@wb.register
class Halfway(wb.RungeKutta):
    """A step through the middle."""

    order = 2
    stages = ((0.0, ()), (0.5, (0.5,)))
    weights = (0.0, 1.0)


def places(event):
    return {"place": ("place", [1, 2], {})}


@wb.register(kind="reduction", dims=("place",), coords=places)
def absolute(value):
    """Absolute value of the first two coordinates."""
    return value.flatten(1).abs()[:, :2]


@wb.register(kind="page", title="Own")
def own():
    """A page of one's own."""
    return "# Hello"
'''


def test_a_plugin_is_part_of_every_command_and_of_every_process(tmp_path, monkeypatch):
    """Of a sweep's workers as well; its source is part of what the study's hash says."""
    monkeypatch.setenv(registry.VARIABLE, "")
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    (tmp_path / "sweep.yaml").write_text(
        "study: {seeds: {count: 2}, device: cpu}\n"
        "grid: {sampler: [Halfway, Midpoint], grid.steps: [3]}\n"
    )
    code = f"""
import sys
from workbench import cli
sys.argv = "workbench sweep sweep.yaml -o out --workers 1 --plugin".split() + [{str(plugin)!r}]
if __name__ == "__main__":
    cli.main()
"""
    (tmp_path / "go.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "go.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    table = wb.studies.store.read(tmp_path / "out" / "sweep.zarr")
    final = table["final"].values
    assert np.array_equal(final[0], final[1]) and (table["status"] == "done").all()
    with registry.kept(), monkeypatch.context() as patch:
        patch.setattr(registry, "_plugged", list(registry.plugins()))
        said = CliRunner().invoke(app, ["list", "sampler", "--plugin", str(plugin)]).stdout
        assert "A step through the middle." in said and str(plugin) in said
        page = next(one for one in apps() if one.slug == "own")
        assert (page.title, page.description, page.page()) == (
            "Own",
            "A page of one's own.",
            "# Hello",
        )
        assert {"trajectories", "samplers", "studies"} < {one.slug for one in apps()}
        study = Study(sampler="Halfway", record={"fields": ["x.absolute"]}, **SMALL)
        digest = study.hash
        assert "Halfway" in study.canonical and "Halfway" in str(Study.json_schema())
        run = wb.run(study)
        assert run["x.absolute"].dims == ("time", "place") == run["x.absolute_se"].dims
        assert run["place"].values.tolist() == [1, 2]
        assert digest != study.changed({"sampler": "Midpoint"}).hash


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1\ny = x / 0\n", "cannot be imported, line 2: ZeroDivisionError: division by zero."),
        ("def f(:\n", "cannot be imported, line 1: SyntaxError"),
        ("raise SystemExit(3)\n", "cannot be imported, line 1: SystemExit: 3."),
        (
            "import workbench as wb\n@wb.register\nclass Heun(wb.Sampler):\n    pass\n",
            "two objects of kind sampler are named 'Heun'",
        ),
        (None, "is not there; name a Python file."),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_sentence(source, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "")
    plugin = tmp_path / "mine.py"
    if source is not None:
        plugin.write_text(source)
    before = dict(registry.entries("sampler"))
    done = CliRunner().invoke(app, ["export", "-", "--plugin", str(plugin)])
    assert done.exit_code == 2 and done.stdout == "", done
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert dict(registry.entries("sampler")) == before


def test_the_table_of_kinds_is_that_of_the_registry():
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, kind in registry.KINDS.items():
        assert f"| {name} | {kind.gives} | `{kind.room}` |\n" in text


def test_a_list_of_an_unknown_kind_is_a_sentence():
    done = CliRunner().invoke(app, ["list", "sampelr"])
    assert done.exit_code == 2 and "did you mean 'sampler'?" in done.stderr
    text = CliRunner().invoke(app, ["list"]).stdout
    for kind in registry.KINDS:
        assert all(f"  {name}\n" in text for name in registry.entries(kind))
