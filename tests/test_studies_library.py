"""A folder of results: everything in it is listed, nothing outside it is reached."""

import io
import json
import os
import shutil
import sys
import time
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import xarray as xr
from helpers import another_process
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.studies import Study
from workbench.studies.chunked import keep
from workbench.studies.glance import Glance, glance
from workbench.studies.library import Library, default_folder, glances, yaml_of
from workbench.studies.store import (
    StoreError,
    attributes,
    locked,
    manifest,
    read,
    set_attributes,
    write,
    writing,
)
from workbench.ui.listing import (
    ANYWHERE,
    cells_of,
    error_of,
    facts_of,
    html_table,
    matches,
    ordered,
)

FIRST = Study(seeds={"count": 8}, grid={"name": "log_snr", "steps": 4}, device="cpu")
OTHER = FIRST.changed({"sampler": "DDIM"})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs, a NetCDF file and a sweep with a failure."""
    folder = tmp_path_factory.mktemp("made")
    keep(FIRST, folder / "first.zarr")
    keep(OTHER, folder / "other.zarr")
    write(wb.run(OTHER), folder / "file.nc")
    spec = wb.studies.SweepSpec(
        FIRST.changed({"data": "gaussian", "denoiser": "Gaussian"}),
        grid={"grid.steps": [2, 4, 8], "device": ["cpu", "mps"]},
    )
    wb.studies.sweep(spec, folder / "sweep", workers=0)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of them, to be changed."""
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def library(folder):
    return Library(folder)


def bytes_of(place) -> dict:
    return {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()}


# -- the listing ---------------------------------------------------------------------------------


def test_every_run_and_sweep_is_listed_with_what_it_says_of_itself(library, folder):
    entries = {entry.name: entry for entry in library.entries()}
    assert set(entries) == {"first.zarr", "other.zarr", "file.nc", "sweep"}
    for name, study in (("first.zarr", FIRST), ("other.zarr", OTHER), ("file.nc", OTHER)):
        entry, attrs = entries[name], read(folder / name).attrs
        assert (entry.kind, entry.state, entry.problem) == ("run", "whole", "")
        assert (entry.hash, entry.checked()) == (study.hash, study)
        assert (entry.nfe, entry.seconds) == (attrs["nfe"], attrs["seconds"])
        assert (entry.device, entry.versions["torch"]) == ("cpu", attrs["torch"])
        assert entry.summary == {
            "data": "ring",
            "denoiser": "Mixture",
            "process": "VP",
            "sampler": study.sampler.name,
            "grid": "log_snr",
            "steps": 4,
            "samples": 8,
        }
        assert abs(entry.written - time.time()) < 600
    assert entries["first.zarr"].size == sum(map(len, bytes_of(folder / "first.zarr").values()))
    assert entries["file.nc"].size == (folder / "file.nc").stat().st_size


def test_no_array_is_read(library, folder):
    before = {e.name: (e.hash, e.nfe, e.state) for e in library.entries()}
    for chunks in [*folder.glob("*.zarr/*/c"), *folder.glob("sweep/*.zarr/*/c")]:
        shutil.rmtree(chunks)
    assert {e.name: (e.hash, e.nfe, e.state) for e in Library(folder).entries()} == before


def test_what_cannot_be_read_hides_nothing(library, folder):
    (folder / "empty.zarr").mkdir()
    (folder / "torn.zarr").mkdir()
    (folder / "torn.zarr" / "zarr.json").write_text('{"attri')
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(folder / "mine.zarr", consolidated=False)
    (folder / "bad.nc").write_bytes(b"no such file")
    (folder / "gone").mkdir()
    (folder / "gone" / "sweep.json").write_text('{"grid": 3}')
    shutil.copytree(folder / "first.zarr", folder / "newer.zarr")
    newer = folder / "newer.zarr"
    set_attributes(newer, attributes(newer) | {"format": 99})
    (folder / "notes.txt").write_text("not a result")
    entries = {entry.name: entry for entry in library.entries()}
    broken = {name: e.problem for name, e in entries.items() if e.state == "broken"}
    assert set(broken) == {"empty.zarr", "torn.zarr", "mine.zarr", "bad.nc", "gone", "newer.zarr"}
    assert all(str(folder / name) in problem for name, problem in broken.items())
    assert "it was not written by workbench run" in broken["mine.zarr"]
    assert "newer workbench (format 99)" in broken["newer.zarr"]
    assert {"first.zarr", "other.zarr", "file.nc", "sweep"} == set(entries) - set(broken)
    with pytest.raises(StoreError, match="newer workbench"):
        library.compare("first.zarr", "newer.zarr")


def test_a_run_that_was_stopped_says_how_far_it_came(library, folder, monkeypatch):
    monkeypatch.setattr(sys.modules["workbench.studies.run"], "CHUNK_BYTES", 120_000)
    study = FIRST.changed({"seeds.count": 900})

    def stop(done, total):
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(study, folder / "long.zarr", stop)
    entry = library.entry("long.zarr")
    told = manifest(folder / "long.zarr")
    assert 0 < len(told["whole"]) < told["chunks"]
    assert (entry.state, entry.hash) == ("part", study.hash)
    assert f"{len(told['whole'])} of {told['chunks']} chunks are there" in entry.problem
    with writing(folder / "long.zarr"):
        assert f"being written by process {os.getpid()}" in library.entry("long.zarr").problem
    keep(study, folder / "long.zarr")
    assert library.entry("long.zarr").state == "whole"


def test_what_has_not_changed_is_not_read_again(library, folder):
    before = {entry.name: entry for entry in library.entries()}
    write(wb.run(FIRST), folder / "other.zarr", overwrite=True)
    after = {entry.name: entry for entry in library.entries()}
    assert after["other.zarr"].hash == FIRST.hash
    assert {name for name in after if after[name] is not before[name]} == {"other.zarr"}


def test_a_folder_that_is_not_there_is_an_empty_library(tmp_path, monkeypatch):
    assert Library(tmp_path / "none").entries() == []
    monkeypatch.delenv("WORKBENCH_RESULTS", raising=False)
    assert str(default_folder()) == "results"
    monkeypatch.setenv("WORKBENCH_RESULTS", str(tmp_path))
    assert default_folder() == tmp_path


def test_a_folder_to_serve_must_be_there(tmp_path):
    done = CliRunner().invoke(app, ["serve", "--no-show", "--results", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert f"--results was {tmp_path / 'none'}; it must be a folder" in done.stderr


def test_a_thousand_runs_are_listed_fast(made, tmp_path, record_property):
    for i in range(1000):
        place = tmp_path / f"run-{i:04}.zarr"
        place.mkdir()
        shutil.copy(made / "first.zarr" / "zarr.json", place)
        for name in ("x", "final", "t"):
            shutil.copytree(made / "first.zarr" / name, place / name, copy_function=os.link)
    library, took = Library(tmp_path), []
    for _ in range(2):
        begun = time.perf_counter()
        assert len(library.entries()) == 1000
        took.append(time.perf_counter() - begun)
    record_property("measured", f"1000 runs listed in {took[0]:.2f} s, again in {took[1]:.3f} s")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../results/first.zarr", "first.zarr/", "sweep/runs", ".trash", "a\0b"]
)
def test_only_names_of_the_listing_are_reached(library, folder, name, tmp_path):
    (tmp_path / "outside.zarr").mkdir()
    before = bytes_of(tmp_path)
    for method in (library.entry, library.delete, library.table, library.failures):
        with pytest.raises(StoreError, match="holds no run or sweep named"):
            method(name)
        with pytest.raises(StoreError, match="holds no run or sweep named"):
            method(str(folder / name))
    assert bytes_of(tmp_path) == before


# -- what is done with entries -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first.zarr", "file.nc", "sweep"])
def test_delete_moves_to_the_trash(library, folder, name):
    before = bytes_of(folder / name) or (folder / name).read_bytes()
    gone = library.delete(name)
    assert gone.parent == folder / ".trash"
    assert (bytes_of(gone) or gone.read_bytes()) == before
    assert name not in {entry.name for entry in library.entries()}
    assert not list(folder.glob("*.lock"))
    gone.rename(folder / name)
    assert library.entry(name).state in ("whole", "failed")


def test_what_is_being_written_is_not_deleted(library, folder):
    """By another process: a run, and a sweep."""
    pytest.importorskip("fcntl")
    names, locks = ("first.zarr", "sweep"), (".first.zarr.lock", "sweep/.lock")

    @contextmanager
    def both():
        with locked(folder / locks[0]), locked(folder / locks[1]):
            yield

    with another_process(both):
        for name in names:
            before = bytes_of(folder / name)
            with pytest.raises(StoreError, match="is being written, so it is not deleted"):
                library.delete(name)
            assert bytes_of(folder / name) == before
    for name in names:
        assert library.delete(name).exists()


def test_compare_says_the_entries_that_differ_and_how_far_the_ends_are(library, folder):
    found = library.compare("first.zarr", "other.zarr")
    assert found.fields == {
        "sampler": ("Heun", "DDIM"),
        "sampler.axis": (FIRST.sampler.axis, None),
        "sampler.eta": (None, 0.0),
    }
    stores = (read(folder / name) for name in ("first.zarr", "other.zarr"))
    ends = [one["final"].values.astype(float) for one in stores]
    assert found.rms == pytest.approx(np.sqrt(np.square(ends[0] - ends[1]).mean()), rel=1e-12)
    assert found.note == "Sample by sample, from the same seeds."
    same = library.compare("other.zarr", "file.nc")
    assert (same.fields, same.rms) == ({}, 0.0)


def test_compare_of_what_has_no_distance(library, folder):
    keep(FIRST.changed({"seeds.count": 9}), folder / "nine.zarr")
    found = library.compare("first.zarr", "nine.zarr")
    assert found.fields == {"seeds.count": (8, 9)}
    assert (found.rms, found.note) == (None, "The final states have other shapes: 8 x 2 and 9 x 2.")
    keep(FIRST.changed({"seeds.first": 3}), folder / "later.zarr")
    found = library.compare("first.zarr", "later.zarr")
    assert found.rms > 0.1
    assert found.note == "The seeds differ."
    found = library.compare("first.zarr", "sweep")
    assert found.rms is None
    assert found.fields["axis grid.steps"] == (None, "3 values")


def test_a_sweep_says_what_it_measured_and_what_failed(library, folder):
    entry = library.entry("sweep")
    assert (entry.kind, entry.state, entry.points) == ("sweep", "failed", 6)
    assert dict(entry.axes) == {"grid.steps": 3, "device": 2}
    table = library.table("sweep")
    stored = xr.open_zarr(folder / "sweep" / "sweep.zarr", consolidated=False)
    assert "final" not in table
    np.testing.assert_array_equal(table["output.w2_exact"], stored["output.w2_exact"])
    failures = library.failures("sweep")
    assert len(failures) == 3
    assert all("device was 'mps'" in one["reason"] for one in failures)
    assert {one["study"]["grid"]["steps"] for one in failures} == {2, 4, 8}
    shutil.rmtree(folder / "sweep" / "sweep.zarr")
    assert "has not ended: 3 studies are stored, 3 failed" in library.entry("sweep").problem
    np.testing.assert_array_equal(
        library.table("sweep")["output.w2_exact"], table["output.w2_exact"]
    )
    (stored,) = (folder / "sweep" / "runs").glob(f"{table['study'].values[0, 0]}.zarr")
    shutil.rmtree(stored)
    waiting = library.table("sweep")
    assert waiting["status"].values[0].tolist() == ["waiting", "failed"]
    assert np.isnan(waiting["output.w2_exact"].values[0, 0])
    np.testing.assert_array_equal(waiting["output.w2_exact"][1:], table["output.w2_exact"][1:])
    shutil.rmtree(folder / "sweep" / "failures")
    (folder / "sweep" / "sweep.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        library.table("sweep")
    with pytest.raises(StoreError, match="is not a sweep"):
        library.table("first.zarr")


def test_the_zip_holds_the_store_and_its_study(library, folder, tmp_path):
    (tmp_path / "secret").write_text("not to be handed over")
    (folder / "first.zarr" / "link").symlink_to(tmp_path / "secret")
    with (tmp_path / "first.zip").open("wb") as file:
        library.zipped("first.zarr", file)
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
        assert "first.zarr/link" not in archive.namelist()
        archive.extractall(tmp_path / "out")
    assert Study.load(tmp_path / "out" / "study.yaml") == FIRST
    xr.testing.assert_identical(
        read(tmp_path / "out" / "first.zarr").load(), read(folder / "first.zarr").load()
    )


# -- what the page says of them ------------------------------------------------------------------


def test_filter_and_order(library):
    entries = library.entries()

    def found(text="", where="anywhere", kind="all") -> set:
        return {entry.name for entry in entries if matches(entry, text, where, kind)}

    assert found(kind="sweep") == {"sweep"}
    assert found("ddim") == {"other.zarr", "file.nc"}
    assert found("DDIM zarr") == {"other.zarr"}
    assert found("gaussian", "data") == {"sweep"}
    assert found("gaussian", "process") == set()
    assert found(FIRST.hash[:10]) == {"first.zarr"}
    names = [entry.name for entry in ordered(entries, "name")]
    assert names == sorted(names)
    evaluations = [entry.nfe for entry in ordered(entries, "-nfe")]
    assert evaluations == [8, 4, 4, None]
    assert {entry.name for entry in ordered(entries, "nonsense")} == set(names)


def test_no_text_of_a_file_becomes_html(folder):
    evil = "<script>alert(1)</script>.zarr"
    name = evil.replace("/", "")
    shutil.copytree(folder / "first.zarr", folder / name)
    entry = Library(folder).entry(name)
    assert cells_of(entry)[0] == name  # the table puts it in as text
    assert "<script" not in "".join(facts_of(entry))
    assert "<script" not in html_table([evil], [[evil]], evil)


# -- what would spoil the page ---------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_what_is_odd_spoils_its_row_and_no_other(library, folder, tmp_path):
    """Links that lead out, pipes, depth, numbers and texts that no page can show."""
    outside = tmp_path / "outside"
    shutil.copytree(folder / "first.zarr", outside)
    (outside / "secret.txt").write_text("SECRET")
    (folder / "link.zarr").symlink_to(outside)
    (folder / "inside.zarr").symlink_to(folder / "first.zarr")
    said = json.loads((folder / "first.zarr" / "zarr.json").read_text())

    def spoilt(name: str, **attrs) -> None:
        (folder / name).mkdir()
        content = {**said, "attributes": {**said["attributes"], **attrs}}
        content["attributes"].pop("digest", None)
        (folder / name / "zarr.json").write_text(json.dumps(content))

    spoilt("deep.zarr")
    text = (folder / "deep.zarr" / "zarr.json").read_text()
    bomb = "[" * 3000 + "]" * 3000
    text = text.replace('"attributes": {', f'"attributes": {{"a": {bomb}, ')
    (folder / "deep.zarr" / "zarr.json").write_text(text)
    spoilt("nested.zarr", study=json.dumps({"data": json.loads("[" * 200 + "]" * 200)}))
    spoilt("text.zarr", nfe="many", seconds="long", study='{"seeds": {"count": "a lot"}}')
    spoilt("huge.zarr", nfe=10**400, seconds=1e308)
    spoilt("halves.zarr", device="\ud800", study='{"data": "\\ud800"}')
    spoilt("format.zarr", format="old")
    for place in ("pipe.zarr", "empty.zarr"):
        (folder / place).mkdir()
    os.mkfifo(folder / "pipe.zarr" / "zarr.json")
    os.mkfifo(folder / ".first.zarr.lock")
    os.mkfifo(folder / "fifo.zarr")
    shutil.copytree(folder / "first.zarr", folder / "within.zarr")
    shutil.rmtree(folder / "within.zarr" / "x")
    (folder / "within.zarr" / "x").symlink_to(outside / "x")
    shutil.copytree(folder / "first.zarr", folder / "headless.zarr")
    for part in ("final", "manifest"):  # of a store that was written without digests
        shutil.rmtree(folder / "headless.zarr" / part)
    bare = {**said, "attributes": {k: v for k, v in said["attributes"].items() if k != "digest"}}
    (folder / "headless.zarr" / "zarr.json").write_text(json.dumps(bare))
    with open(os.fsencode(folder) + b"/\xff.nc", "wb") as file:
        file.write(b"?")
    entries = {entry.name: entry for entry in library.entries()}
    assert {"first.zarr", "other.zarr", "sweep", "file.nc", "\\udcff.nc"} <= set(entries)
    for name in ("first.zarr", "inside.zarr", "text.zarr", "huge.zarr"):
        assert entries[name].state in ("whole", "broken"), name
    assert entries["first.zarr"].state == "whole"
    for name, words in (
        ("link.zarr", "link out of the folder"),
        ("deep.zarr", "cannot be read"),
        ("nested.zarr", "nested too deeply"),
        ("pipe.zarr", "not a plain file"),
        ("\\udcff.nc", "no UTF-8"),
    ):
        assert entries[name].state == "broken" and words in entries[name].problem, name
    for order in ("steps", "-steps", "samples", "nfe", "seconds", "-size", "date", "name"):
        assert len(ordered(entries.values(), order)) == len(entries)
    for entry in entries.values():  # each can be shown, and sent
        told = [
            *cells_of(entry),
            *facts_of(entry),
            entry.problem,
            yaml_of(entry),
        ]
        assert "".join(told).encode("utf-8")
    for name in ("link.zarr", "within.zarr", "first.zarr"):
        packed = io.BytesIO()
        try:
            library.zipped(name, packed)
        except StoreError as error:
            assert name == "link.zarr" and "not followed" in str(error)
            continue
        with zipfile.ZipFile(packed) as archive:
            assert "SECRET" not in "".join(archive.namelist())
            assert not [one for one in archive.namelist() if one.startswith("within.zarr/x/")]
    with pytest.raises(StoreError, match="holds a link, x; it is not followed"):
        library.compare("first.zarr", "within.zarr")
    found = library.compare("first.zarr", "headless.zarr")
    assert found.note == "headless.zarr holds no final states."
    assert (outside / "secret.txt").exists()


def test_a_damaged_run_is_compared_in_a_sentence(library, folder):
    pieces = (folder / "first.zarr" / "final" / "c").rglob("*")
    piece = next(path for path in pieces if path.is_file())
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"first\.zarr is damaged: final/c/.* is not what was"):
        library.compare("first.zarr", "other.zarr")


# -- at a glance ---------------------------------------------------------------------------------


def test_a_run_has_a_picture_and_an_error(library, folder):
    """The error is that of the lens output, measured on the way where it was not stored."""
    keep(FIRST.changed({"lenses": "output"}), folder / "lens.zarr")
    stored = read(folder / "lens.zarr")["output.w2_gaussian"].item()
    for name in ("lens.zarr", "first.zarr", "file.nc"):
        seen = library.glance(name)
        assert seen.picture["kind"] == "plane" and seen.picture["shape"] == [8, 2]
        assert "on the Gaussian with the data's covariance [x]" in seen.told
        if name != "file.nc":
            assert seen.error == pytest.approx(stored, rel=1e-9)
    table = library.table("sweep")
    assert library.glance("sweep").error == pytest.approx(float(table["output.w2_exact"].min()))
    entries = {entry.name: entry for entry in library.entries()}
    seen = glances(folder, [*entries, "gone"], lambda stage, share: None)
    library.see(seen)
    assert library.seen() == seen and set(seen) == set(entries)
    assert error_of(seen["lens.zarr"]) == f"{stored:.3g}" and error_of(Glance()) == ""
    names = [entry.name for entry in ordered(entries.values(), "error", seen)]
    assert names[0] == "sweep" and len(names) == 5
    (folder / "first.zarr" / "final" / "c" / "0" / "0").unlink()
    assert "cannot be read" in glance(folder / "first.zarr").told


def test_pictures_of_images_and_of_nothing(tmp_path):
    image = {"data": "digits", "denoiser": "Gaussian", "seeds.count": 4, "grid.steps": 2}
    keep(Study.from_flat({**image, "device": "cpu"}), tmp_path / "digits.zarr")
    assert glance(tmp_path / "digits.zarr").picture["shape"] == [2, 8, 8]
    assert glance(tmp_path / "none.zarr").picture == {}


def test_what_a_sweep_contains_is_found(library):
    entry = library.entry("sweep")
    assert entry.values == {"grid.steps": ["2", "4", "8"], "device": ["cpu", "mps"]}
    assert matches(entry, "mps", ANYWHERE, "all") and matches(entry, "8", "steps", "sweep")
    assert not matches(entry, "16", "steps", "all") and not matches(entry, "cuda", ANYWHERE, "all")


def test_what_is_hardly_comparable_is_said(library, folder):
    keep(FIRST.changed({"data": "moons", "seeds.first": 3}), folder / "moons.zarr")
    keep(FIRST.changed({"seeds.count": 4, "process": "EDM"}), folder / "few.zarr")
    assert library.compare("first.zarr", "other.zarr").warnings == ()
    data, seeds = library.compare("first.zarr", "moons.zarr").warnings
    assert "different data" in data and "Their seeds differ" in seeds
    few, process = library.compare("first.zarr", "few.zarr").warnings
    assert "8 and 4 samples" in few and "Their processes differ" in process
