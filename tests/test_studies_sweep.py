"""A sweep is its studies: each run as by hand, once, under its label, and never lost."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from helpers import another_process, same_run
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.lenses.output import MOST_PAIRED, energy_distance
from workbench.studies import Study, SweepError, SweepSpec, build, chunked, store
from workbench.studies.sweep import MEASURES
from workbench.studies.worksite import holding

BASE = {
    "data": {"name": "gaussian", "size": 40},
    "denoiser": "Gaussian",
    "seeds": {"first": 5, "count": 6},
    "device": "cpu",
}
THIRD = {"name": "DPMSolverPP", "order": 3}


def small(**axes) -> dict:
    return {
        "study": BASE,
        **(axes or {"grid": {"sampler": ["DDIM", "Heun"], "grid.steps": [3, 5]}}),
    }


def sweep(spec, out, **options):
    return wb.sweep(spec, out, workers=0, **options)


def events(folder) -> list[tuple[str, str]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [(entry["event"], entry["study"]) for entry in map(json.loads, lines)]


# ---- what a file says ----------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_axes():
    base = Study(**BASE, process={"name": "VP", "beta_max": 12.0})
    grid = {"sampler": ["DDIM", THIRD], "grid.steps": [5, 10], "process": ["VP", "EDM"]}
    spec = SweepSpec(base, grid)
    samplers = [{"sampler": "DDIM"}, {"sampler": "DPMSolverPP", "sampler.order": 3}]
    expected = [
        base.changed({**sampler, "grid.steps": steps, "process": process})
        for sampler, steps, process in itertools.product(samplers, [5, 10], ["VP", "EDM"])
    ]
    assert list(spec.studies) == expected
    assert spec.hashes == tuple(study.hash for study in expected)
    assert [axis.name for axis in spec.axes] == ["sampler", "grid.steps", "process"]
    assert spec.axes[0].labels == ("DDIM", "DPMSolverPP:order=3")
    assert expected[0].process.beta_max == 12.0  # the base's own process keeps its parameters


def test_a_list_changes_entries_together():
    cases = [
        {"process": {"name": "VP", "beta_max": 9.0}, "grid.steps": 4},
        {"process": "EDM", "grid": {"name": "karras", "steps": 7}},
    ]
    spec = SweepSpec(BASE, {"sampler.eta": [0.0, 1.0], "sampler": ["DDIM"]}, cases)
    assert spec.shape == (2, 1, 2)
    chosen = [
        (
            s.sampler.eta,
            s.process.name,
            s.grid.name,
            s.grid.steps,
            getattr(s.process, "beta_max", 0),
        )
        for s in spec.studies
    ]
    assert chosen == [
        (eta, *rest)
        for eta in (0.0, 1.0)
        for rest in (("VP", "log_snr", 4, 9.0), ("EDM", "karras", 7, 0))
    ]
    named = SweepSpec(BASE, None, {"budget": cases, "precision": [{"dtype": "float64"}]})
    assert [(axis.name, len(axis)) for axis in named.axes] == [("budget", 2), ("precision", 1)]
    assert {study.dtype for study in named.studies} == {"float64"}


def test_every_spelling_is_the_same_sweep(tmp_path):
    Study(**BASE).dump(tmp_path / "base.yaml")
    written = small(grid={"grid.steps": [3, 5], "sampler": ["DDIM", THIRD]})
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    (tmp_path / "two.json").write_text(json.dumps({**written, "study": "base.yaml", "sweep": 1}))
    one, two = SweepSpec.load(tmp_path / "one.yaml"), SweepSpec.load(tmp_path / "two.json")
    three = SweepSpec(Study(**BASE), {"grid.steps": range(3, 7, 2), "sampler": ("DDIM", THIRD)})
    assert one == two == three and len({one, two, three}) == 1
    assert one.hash != SweepSpec.of(small()).hash
    turned = small(grid={"sampler": ["DDIM", THIRD], "grid.steps": [3, 5]})
    assert one.hash != SweepSpec.of(turned).hash  # the order of the axes is that of the result
    assert SweepSpec.of(one.to_dict()) == one


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "a sweep is a mapping of study, grid and list"),
        ({"gird": {}}, "a sweep has no entry 'gird' (did you mean 'grid'?)"),
        (
            {"sweep": 2, "grid": {"sampler": ["DDIM"]}},
            "sweep was 2; this workbench reads version 1",
        ),
        ({}, "a sweep needs an axis"),
        ({"study": 3}, "study was 3; it must be a mapping of sections, or the path"),
        ({"study": "nowhere.yaml"}, "study: nowhere.yaml cannot be read"),
        ({"study": {"process": "Cosin"}}, "study: process was 'Cosin' (did you mean 'Cosine'?)"),
        ({"grid": ["sampler"]}, "grid was ['sampler']; it must be a mapping of entries"),
        ({"grid": {"sampler": "DDIM"}}, "grid axis 'sampler' was 'DDIM'; it must be a list"),
        ({"grid": {"sampler": []}}, "grid axis 'sampler' was []; it must be a list"),
        (
            {"grid": {"sampler": ["DDIM", "Huen"], "grid.steps": [5]}},
            "grid axis 'sampler', value 'Huen': sampler was 'Huen' (did you mean 'Heun'?)",
        ),
        (
            {"grid": {"gird.steps": [5]}},
            "grid axis 'gird.steps', value 5: a study has no entry 'gird.steps' "
            "(did you mean 'grid.steps'?)",
        ),
        (
            {"grid": {"sampler": [{"name": "DDIM", "order": 3}]}},
            "grid axis 'sampler', value 'DDIM:order=3': sampler DDIM has no parameter 'order'",
        ),
        (
            {"grid": {"grid.steps": [5, 0]}},
            "grid axis 'grid.steps', value 0: grid.steps was 0; it must be a whole number",
        ),
        (
            {"list": [{"grid.steps": 4}, {"grid.steps": 4, "device": "tpu"}]},
            "list 'case', position 1: device was 'tpu'",
        ),
        ({"list": [4]}, "list, position 0, was 4; it must be a mapping of entries"),
        ({"list": {"no word": [{"dtype": "float64"}]}}, "list has the name 'no word'"),
        ({"grid": {"grid.steps": [None]}}, "held None; it must be a number, a text, true or false"),
        ({"grid": {"grid.steps": [{}]}}, "held {}; it must be a value or a mapping of parameters"),
        (
            {"grid": {"sampler": ["DDIM"]}, "list": [{"sampler": "Heun"}]},
            "sampler is changed by two axes, 'sampler' and 'case'; let one do it",
        ),
        ({"list": {"seed": [{"dtype": "float64"}]}}, "an axis cannot be named 'seed'"),
        (
            {"grid": {"seeds.first": list(range(1000)), "grid.steps": list(range(1, 1001))}},
            "the sweep has 1000 x 1000 = 1000000 points; at most 100000 are run",
        ),
    ],
)
def test_mistakes_are_sentences(content, sentence):
    with pytest.raises(SweepError) as caught:
        SweepSpec.of(content)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "sampler", "grid.steps", "data", "x", "DDIM", "seeds"])
            | st.integers(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(["study", "grid", "list", "sweep"]), ANYTHING, max_size=4))
def test_whatever_a_file_holds_it_is_a_sweep_or_a_sentence(content):
    try:
        spec = SweepSpec.of(content)
    except SweepError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert len(spec) == len(spec.studies) > 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid: [", "the sweep is not valid YAML or JSON"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("grid: !!python/object:os.system {}", "the sweep is not valid YAML or JSON"),
        ("[" * 5000, "the sweep is not valid YAML or JSON"),
    ],
)
def test_a_file_that_is_none(text, sentence, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SweepError, match=sentence):
        SweepSpec.load(tmp_path / "sweep.yaml")
    with pytest.raises(SweepError, match="cannot be read"):
        SweepSpec.load(tmp_path / "none.yaml")


# ---- what comes of it ----------------------------------------------------------------------------


def test_the_dataset_holds_every_run_under_its_label(tmp_path):
    axes = {"sampler": ["DDIM", {"name": "DDIM", "eta": 1.0}], "grid.steps": ["3", 5]}
    cases = [{"process": "VP", "dtype": "float64"}, {"process": "EDM"}]
    told = []
    found = sweep(small(grid=axes, list=cases), tmp_path / "out", on_progress=told.append)
    assert found["status"].dims == ("sampler", "grid.steps", "case")
    assert found["sampler"].values.tolist() == ["DDIM", "DDIM:eta=1.0"]
    assert found["grid.steps"].values.tolist() == [3, 5]
    assert found["process"].values.tolist() == ["VP", "EDM"]
    assert found["dtype"].values.tolist() == ["float64", "float32"]
    assert found["seed"].values.tolist() == list(range(5, 11))
    assert (found["status"] == "done").all() and (found["reason"] == "").all()
    for eta, steps, case in itertools.product((0, 1), (3, 5), (0, 1)):
        changes = {"sampler": "DDIM", "sampler.eta": eta, "grid.steps": steps}
        changes |= {"process": ("VP", "EDM")[case], "dtype": ("float64", "float32")[case]}
        study = Study(**BASE).changed(changes)
        one = found.isel(sampler=eta, case=case).sel({"grid.steps": steps})
        by_hand = wb.run(study)
        assert np.array_equal(one["final"], by_hand["final"].astype(float))
        kept = store.read(tmp_path / "out" / "runs" / f"{one['study'].item()}.zarr")
        assert kept["x"].dtype == by_hand["x"].dtype and kept["x"].equals(by_hand["x"])
        assert one["study"].item() == study.hash and one["nfe"] == by_hand.attrs["nfe"]
        made = build(study)
        law = wb.exact.law(made.diffusion, made.sampler, made.grid)
        truth = made.diffusion.marginal(made.grid.t[-1])
        assert one["output.w2_exact"].item() == pytest.approx(wb.exact.w2(law, truth), rel=1e-4)
        flowed = made.diffusion.flow(
            torch.tensor(by_hand["x"].values[0]), made.grid.t[0], made.grid.t[-1]
        )
        apart = (flowed - torch.tensor(by_hand["final"].values)).double().square().mean().sqrt()
        assert one["rms"].item() == pytest.approx(apart.item(), rel=1e-6)
        energy = energy_distance(torch.tensor(by_hand["final"].values), made.data.points)
        names = "output.energy", "output.energy_se"
        assert [one[name].item() for name in names] == pytest.approx(energy, rel=1e-12)
    assert [progress.done for progress in told] == list(range(9))
    assert (str(told[0]), told[-1].left, told[-1].failed) == ("0 of 8 studies", 0, 0)
    again = sweep(small(grid=axes, list=cases), tmp_path / "out")
    assert again.identical(found)


def test_what_has_no_closed_form_is_left_out(tmp_path):
    base = {**BASE, "data": "ring", "denoiser": "Mixture", "record": {"fields": ["denoised"]}}
    counts = {"seeds.count": [3, 4]}
    found = sweep({"study": base, "grid": counts}, tmp_path / "out")
    assert found["rms"].isnull().all() and found["output.w2_exact"].isnull().all()
    assert found["output.energy"].notnull().all() and found["nfe"].values.tolist() == [64, 64]
    assert "final" not in found and "not all have the same shape" in found.attrs["final"]
    assert set(found.data_vars) == {*MEASURES, "status", "reason", "study"}


def test_a_study_named_twice_is_computed_once(tmp_path):
    samplers = ["DDIM", {"name": "DDIM", "eta": 0.0}, "Heun", "DDIM"]
    found = sweep(small(grid={"sampler": samplers}), tmp_path / "out")
    assert len(set(found["study"].values)) == 2 == len(list((tmp_path / "out/runs").glob("*.zarr")))
    assert sorted(e for e, _ in events(tmp_path / "out")) == ["started"] * 2 + ["stored"] * 2
    first = found["final"].isel(sampler=0)
    assert all(np.array_equal(first, found["final"].isel(sampler=i)) for i in (1, 3))


def test_a_failure_is_recorded_does_not_stop_the_rest_and_is_tried_again(tmp_path):
    out, spec = tmp_path / "out", small(grid={"process.beta_max": [20.0, 0.05, 12.0]})
    found = sweep(spec, out)
    assert found["status"].values.tolist() == ["done", "failed", "done"]
    assert found.attrs["failed"] == 1
    (failure,) = (json.loads(path.read_text()) for path in (out / "failures").iterdir())
    assert failure["reason"] == found["reason"].values[1] and found["reason"].values[0] == ""
    assert "beta_max was 0.05; it must be at least beta_min (0.1)" in failure["reason"]
    assert "Traceback" in failure["traceback"] and "StudyError" in failure["traceback"]
    bad = Study(**BASE).changed({"process.beta_max": 0.05})
    assert Study(**failure["study"]) == bad and failure["hash"] == bad.hash
    assert found["final"].isel({"process.beta_max": 1}).isnull().all()
    assert found["final"].isel({"process.beta_max": [0, 2]}).notnull().all()
    assert np.isnan(found["nfe"].values[1])

    assert sweep(spec, out).identical(found)
    assert [e for e, key in events(out) if key == bad.hash] == ["started", "failed"] * 2
    assert all(
        [e for e, k in events(out) if k == key] == ["started", "stored"]
        for key in found["study"].values[[0, 2]]
    )


def test_only_what_is_missing_is_computed(tmp_path):
    """Ended at any point, also by Ctrl-C, the same sweep goes on from there."""
    out, spec = tmp_path / "out", small()

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(spec, out, on_progress=stop)
    assert len(list((out / "runs").glob("*.zarr"))) == 2 and not (out / "sweep.zarr").exists()
    found = sweep(spec, out)
    assert sorted(events(out)) == sorted(
        (event, key) for key in found["study"].values.flat for event in ("started", "stored")
    )
    undisturbed = sweep(spec, tmp_path / "other")
    same_run(found, undisturbed)


def test_a_folder_belongs_to_one_sweep(tmp_path):
    out = tmp_path / "out"
    first = sweep(small(), out)
    other = small(grid={"grid.steps": [4]})
    with pytest.raises(SweepError, match="holds another sweep; choose another folder or say"):
        sweep(other, out)
    assert sweep(small(), out).identical(first)
    found = sweep(other, out, overwrite=True)
    assert found["grid.steps"].values.tolist() == [4]
    assert [path.name for path in (out / "runs").iterdir()] == [f"{found['study'].item()}.zarr"]

    described = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps({**described, "workbench": "0.0.1"}))
    with pytest.raises(SweepError, match=rf"begun by workbench 0\.0\.1; this is {wb.__version__}"):
        sweep(other, out)
    (out / "sweep.json").write_text("{")
    with pytest.raises(SweepError, match=r"sweep\.json cannot be read"):
        sweep(other, out)


def test_what_is_no_sweep_is_never_touched(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(SweepError, match="is not empty and holds no sweep"):
            sweep(small(), tmp_path, overwrite=overwrite)
        with pytest.raises(SweepError, match="is a file; a sweep needs a folder"):
            sweep(small(), thesis, overwrite=overwrite)
    with pytest.raises(SweepError, match="does not exist; make it first"):
        sweep(small(), tmp_path / "nowhere" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert thesis.read_text() == "keep me"
    for workers in (-1, 1.5):
        with pytest.raises(SweepError, match="it must be a whole number, 0 or more"):
            wb.sweep(small(), tmp_path / "out", workers=workers)


def test_two_commands_do_not_share_a_folder(tmp_path):
    """While another process holds it; and it is free as soon as that process is dead."""
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    sweep(small(), out)
    with another_process(lambda: holding(out)) as number:
        for overwrite in (False, True):
            with pytest.raises(SweepError, match=rf"in use by .* process {number}; wait"):
                sweep(small(), out, overwrite=overwrite)
    assert (sweep(small(), out)["status"] == "done").all()


# ---- the energy distance -------------------------------------------------------------------------


def test_energy_distance_by_hand(generator):
    x = torch.randn(7, 2, 3, generator=generator)
    y = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)

    def mean(pairs):
        return np.mean([(a.double() - b.double()).norm().item() for a, b in pairs])

    across, own = mean(itertools.product(x, y)), mean(itertools.product(y, y))
    expected = 2 * across - mean(itertools.permutations(x, 2)) - own
    assert energy_distance(x, y)[0] == pytest.approx(expected, rel=1e-10)
    assert np.isnan(energy_distance(x[:1], y)).all()


def test_energy_distance_is_unbiased_and_knows_its_error(generator):
    """Against N(1, 1) and N(0, 1): 2 E|N(1,2)| - 2 E|N(0,2)| = 0.5437; the points are exact."""
    points = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    runs = [
        energy_distance(1 + torch.randn(100, 1, generator=generator), points) for _ in range(400)
    ]
    values, errors = np.array(runs).T
    many = 1 + torch.randn(MOST_PAIRED, 1, generator=generator)
    true, error = energy_distance(many, points)
    assert abs(values.mean() - true) < 5 * (error + values.std() / 20)
    assert abs(true - 0.5437) < 0.3
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_stores_the_dataset_of_the_library(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(small(grid={"process.beta_max": [20.0, 0.05]}), sort_keys=False)
    )
    out = tmp_path / "out"
    command = ["sweep", str(tmp_path / "sweep.yaml"), "-o", str(out), "--workers", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output
    assert "sweep.zarr: 2 process.beta_max; 1 failed" in done.stdout
    assert f"The reasons are in {out / 'failures'}; the same command tries again." in done.stdout
    by_hand = sweep(tmp_path / "sweep.yaml", tmp_path / "other")
    same_run(store.read(out / "sweep.zarr").load(), by_hand)

    (tmp_path / "sweep.yaml").write_text("grid: {sampler: [Huen]}")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and refused.stdout == ""
    assert refused.stderr.startswith("workbench: grid axis 'sampler', value 'Huen'")
    assert refused.stderr.count("\n") == 1


def test_a_study_of_many_chunks_is_kept_chunk_by_chunk_and_gone_on_with(tmp_path, monkeypatch):
    """In the numbers of wb.run; a worker that dies leaves what is whole to the next."""
    base = Study(**BASE | {"seeds": {"count": 200}, "record": {"fields": ["x"]}})
    spec = SweepSpec(base, grid={"grid.steps": [3, 4]})
    monkeypatch.setattr(sys.modules["workbench.studies.run"], "CHUNK_BYTES", 2**15)
    expected = [wb.run(study) for study in spec.studies]
    assert wb.studies.plan(spec.studies[0]).chunks > 2
    real, chunks = chunked._put, []

    def dies(group, rows, part):
        chunks.append(rows.start)
        if len(chunks) == 2:
            raise KeyboardInterrupt
        real(group, rows, part)

    monkeypatch.setattr(chunked, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        wb.sweep(spec, tmp_path / "out", workers=0)
    assert not list((tmp_path / "out" / "runs").glob("[!.]*"))
    table = wb.sweep(spec, tmp_path / "out", workers=0)
    assert chunks.count(0) == 2  # the first chunk of each study, once
    for study, run, nfe in zip(spec.studies, expected, table["nfe"].values, strict=True):
        kept = store.read(tmp_path / "out" / "runs" / f"{study.hash}.zarr").load()
        assert nfe == run.attrs["nfe"]
        same_run(kept, run)
    assert {path.suffix for path in (tmp_path / "out" / "runs").glob(".*")} <= {".lock"}
