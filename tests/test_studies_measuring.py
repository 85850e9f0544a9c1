"""Lenses named in a study: measured wherever it is run, the same numbers, kept and found again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PEAK, same_run

import workbench as wb
from workbench.exact import kl, law, w2
from workbench.lenses import LENSES
from workbench.lenses.emergence import of_modes
from workbench.lenses.teleport import teleportation
from workbench.params import declared
from workbench.studies import (
    Study,
    StudyError,
    SweepSpec,
    build,
    chunked,
    explore,
    keep,
    plan,
    store,
)
from workbench.studies.measuring import RUN_PARTS, absent, lens, scalars
from workbench.studies.run import FIXED_BYTES
from workbench.ui.form import facts

GAUSSIAN = Study(
    data="gaussian",
    denoiser="Gaussian",
    sampler="DDIM",
    grid={"name": "log_snr", "steps": 6},
    seeds={"first": 5, "count": 40},
    lenses="flow:samples=24,emergence,output,teleportation:samples=8:levels=4:steps=16",
    device="cpu",
)
RING = GAUSSIAN.changed({"data": "ring", "denoiser": "Mixture"})


def test_the_lenses_say_what_the_library_says():
    run = wb.run(GAUSSIAN)
    setup = build(GAUSSIAN.changed({"dtype": "float64"}))
    diffusion, grid = setup.diffusion, setup.grid

    found, end = law(diffusion, wb.DDIM(), grid), diffusion.marginal(grid.t[-1])
    numbers, fit = scalars(run), wb.Gaussian.fit(torch.from_numpy(run["final"].values).double())
    for name, distance in {"w2": w2, "kl": kl}.items():
        assert numbers[f"output.{name}_exact"] == distance(found, end)
        assert numbers[f"output.{name}"] == distance(fit, end)
        apart = abs(numbers[f"output.{name}"] - distance(found, end))
        assert apart < 5 * numbers[f"output.{name}_se"]
    assert lens(run, "output")["w2_null"].sel(bound="low") < lens(run, "output")["w2_exact"]

    begin = torch.from_numpy(run["x"].values[0, :24]).double()
    for k, t in enumerate(grid.t):
        exact = diffusion.flow(begin, grid.t[0], t).numpy()
        apart = np.sqrt(np.square(run["x"].values[k, :24] - exact).mean())
        assert abs(lens(run, "flow")["rms"].values[k] - apart) < 1e-9

    modes = of_modes(diffusion.denoiser.spectrum)
    assert lens(run, "emergence").identical(modes.assign_attrs(lens(run, "emergence").attrs))
    skips = teleportation(diffusion, range(5, 13), 4, 16)
    kept = lens(run, "teleportation")
    assert kept[list(skips.data_vars)].drop_vars("bound", errors="ignore").identical(skips)
    np.testing.assert_array_equal(kept["rms_null"].sel(bound="high"), kept["floor"])
    assert absent(run) == {}


@pytest.mark.parametrize("study", [GAUSSIAN, RING], ids=["gaussian", "ring"])
def test_the_same_numbers_however_it_is_kept(study, tmp_path, monkeypatch):
    """In memory, in one chunk or several, after a stop in the midst of it, by a page, as NetCDF."""
    run = wb.run(study)
    same_run(explore(study).run, run)
    same_run(keep(study, tmp_path / "run.zarr").load(), run)
    classic = keep(study, tmp_path / "run.nc").load()  # a format without 64-bit integers
    assert set(classic.variables) == set(run.variables)
    assert scalars(classic) == scalars(run)

    real = chunked.measured

    def stops(*arguments):
        for name in ("output.w2", "teleportation.rms"):  # what a process that died had written
            (tmp_path / "torn.zarr" / name).mkdir()
            (tmp_path / "torn.zarr" / name / "zarr.json").write_text(
                (tmp_path / "run.zarr" / "seed" / "zarr.json").read_text()
            )
        monkeypatch.setattr(chunked, "measured", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(chunked, "measured", stops)
    with pytest.raises(KeyboardInterrupt):
        keep(study, tmp_path / "torn.zarr")
    with pytest.raises(store.StoreError, match="is not whole: 1 of 1 chunks are there"):
        store.read(tmp_path / "torn.zarr")
    same_run(keep(study, tmp_path / "torn.zarr").load(), run)


def test_what_has_no_meaning_is_left_out_with_the_reason():
    exploration = explore(RING)
    assert list(absent(exploration.run)) == ["flow"]
    assert "Mixture has no closed-form probability flow" in absent(exploration.run)["flow"]
    assert any(note.startswith("flow was not measured: Mixture") for note in exploration.notes)
    with pytest.raises(KeyError, match="flow was not measured: Mixture has no closed-form"):
        lens(exploration.run, "flow")
    with pytest.raises(KeyError, match="has no lens 'gap'; its lenses: flow, emergence, output"):
        lens(exploration.run, "gap")
    assert "w2_exact" not in lens(exploration.run, "output")
    assert "w2_gaussian" in lens(exploration.run, "output")
    nonlinear = GAUSSIAN.changed({"sampler": "RK45", "lenses": "output"})
    found = lens(wb.run(nonlinear), "output")
    assert "w2_exact" not in found and found["w2_null"].shape == (2,)


def test_a_lens_that_raises_is_left_out_and_the_run_is_kept(monkeypatch):
    def fails(self, subject, on_step=None):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(LENSES["flow"], "measure", fails)
    run = wb.run(GAUSSIAN)
    assert absent(run) == {"flow": "it failed with RuntimeError: no such luck"}
    assert run.sizes["sample"] == 40 and "output.w2" in run


def test_a_run_without_lenses_says_nothing_of_them():
    run = wb.run(GAUSSIAN.changed({"lenses": ""}))
    assert "lenses" not in run.attrs and scalars(run) == {} and absent(run) == {}


def test_progress_goes_on_through_the_lenses_and_can_be_stopped():
    told = []
    wb.run(GAUSSIAN, on_step=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1][0] == told[-1][1] == 6 * (RUN_PARTS + 4)
    assert told[5] == (6 * RUN_PARTS, 6 * (RUN_PARTS + 4))

    def stop(done, total):
        if done > total * 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wb.run(GAUSSIAN, on_step=stop)


def test_what_does_not_go_together_is_refused_before_the_run():
    without_x = GAUSSIAN.changed({"record.fields": "denoised"})
    with pytest.raises(StudyError, match=r"lenses held flow, which reads x; record it too"):
        wb.run(without_x)
    odd = GAUSSIAN.changed({"lenses": "teleportation:steps=7"})
    with pytest.raises(StudyError, match=r"steps was 7; it must be an even number\."):
        wb.run(odd)


def test_a_sweep_gathers_their_single_numbers(tmp_path):
    table = wb.sweep(SweepSpec(GAUSSIAN, grid={"grid.steps": [4, 8]}), tmp_path, workers=0)
    assert {"output.w2", "output.kl"} <= set(table.data_vars)
    for steps in (4, 8):
        key = table["study"].sel({"grid.steps": steps}).item()
        run = store.read(tmp_path / "runs" / f"{key}.zarr")
        assert table["output.kl"].sel({"grid.steps": steps}).item() == scalars(run)["output.kl"]


@pytest.mark.parametrize(
    ("written", "flat"),
    [
        ("lenses: flow", "flow"),
        ("lenses: {name: flow, samples: 256}", "flow"),
        ("lenses: [flow, {name: teleportation, levels: 5}]", "flow,teleportation"),
        ("lenses: 'output, teleportation:levels=3'", "output,teleportation"),
        ("lenses: []", ""),
    ],
)
def test_every_way_to_write_them_is_one_study(written, flat):
    study = Study.parse(written)
    assert study.to_flat()["lenses"] == flat
    if "levels" in written:
        levels = int(written.rstrip("'}]")[-1])
        assert study.to_flat()["lenses.teleportation.levels"] == levels == study.lenses[1].levels
    assert Study.from_flat(study.to_flat()) == Study.from_query(study.to_query()) == study
    assert Study.parse(study.to_yaml()) == Study.parse(study.to_json()) == study


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (
            "lenses: [flwo]",
            "lenses was 'flwo' (did you mean 'flow'?); it must be one of ",
        ),
        ("lenses: [flow, flow]", "lenses held flow twice; name each lens once."),
        (
            "lenses: [{samples: 3}]",
            "lenses was given without a name; it must be one of ",
        ),
        ("lenses: ['flow:samples=x']", "lenses.flow.samples was 'x'; it must be a whole number"),
        ("lenses: ['flow:sample=3']", "no parameter 'sample' (did you mean 'samples'?)"),
        ("lenses: 3", "lenses was 3; it must be a list, each a lens"),
    ],
)
def test_bad_ones_are_refused_by_a_sentence(written, sentence):
    with pytest.raises(StudyError) as caught:
        Study.parse(written)
    assert sentence in str(caught.value)


def test_every_lens_has_help_for_each_parameter():
    for kind in LENSES.values():
        assert kind.__doc__ and kind() == kind()
        assert all(one.param.help for one in declared(kind).values())


def test_attributes_are_plain_json():
    told = json.loads(wb.run(RING).attrs["lenses"])
    assert set(told) == {"flow", "emergence", "output", "teleportation"}


def test_pages_and_notebooks_say_the_single_numbers():
    for study in (GAUSSIAN, RING):
        exploration = explore(study)
        numbers = scalars(exploration.run)
        said = f"output.w2 {numbers['output.w2']:.4g} ± {numbers['output.w2_se']:.2g} ("
        if study is GAUSSIAN:
            said += f"exact {numbers['output.w2_exact']:.4g}, "
        assert any(fact.startswith(f"{said}null ") for fact in facts(exploration))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_what_they_take_is_stated():
    """The growth of a process that has run the same with a small lens before."""
    base = {"data": "digits", "denoiser": "Gaussian", "seeds.count": 2000, "grid.steps": 4}
    base |= {"device": "cpu"}
    large = "teleportation:samples=4000:levels=6:steps=6"
    stated = plan(Study.from_flat(base | {"lenses": large})).bytes_peak
    code = f"""{PEAK}
import torch, workbench as wb
from workbench.studies import Study
torch.set_num_threads(1)
took = []
for lens in ("teleportation:samples=8:levels=6:steps=6", {large!r}):
    wb.run(Study.from_flat({base} | {{"lenses": lens}}))
    took.append(peak())
print(took[1] - took[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (stated - FIXED_BYTES) / 8 < int(done.stdout) <= stated
