"""A run in chunks is the run; a run that dies at any instant is gone on with."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PEAK, same_run

import workbench as wb
from workbench.studies import Study, build, store
from workbench.studies.chunked import keep
from workbench.studies.run import CHUNK_BYTES, plan
from workbench.studies.store import StoreError, read
from workbench.trajectory import RunError

FIELDS = ["x", "denoised", "x.spectrum", "denoised.moments"]
STUDY = Study(
    sampler={"name": "DDIM", "eta": 1.0},
    grid={"name": "log_snr", "steps": 4},
    seeds={"first": 5, "count": 450},
    record={"fields": FIELDS},
    dtype="float64",
    device="cpu",
)
OTHER = STUDY.changed({"seeds.first": 6})

#: Run by a process of its own; small chunks, so that there are several.
HEADER = """
import os, signal, sys, time
import torch; torch.set_num_threads(1)
import importlib
run = importlib.import_module("workbench.studies.run")
run.CHUNK_BYTES = {chunk}
from pathlib import Path
from workbench.studies import Study
from workbench.studies.chunked import keep
study, out = Study.parse(sys.argv[1]), Path(sys.argv[2])
"""
SMALL = 120_000


@pytest.fixture
def small(monkeypatch):
    """Chunks of 128 samples."""
    monkeypatch.setattr(sys.modules["workbench.studies.run"], "CHUNK_BYTES", SMALL)
    assert (plan(STUDY).chunk, plan(STUDY).chunks) == (128, 4)


def process(code: str, out: Path, study: Study = STUDY, **options) -> subprocess.Popen:
    code = HEADER.format(chunk=SMALL) + textwrap.dedent(code)
    command = [sys.executable, "-c", code, study.to_json(), str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def test_chunks_change_no_noise_and_no_number(small, monkeypatch, tmp_path):
    chunked = wb.run(STUDY)
    stored = keep(STUDY, tmp_path / "out.zarr")
    same_run(stored, chunked)
    monkeypatch.setattr(sys.modules["workbench.studies.run"], "CHUNK_BYTES", CHUNK_BYTES)
    assert plan(STUDY).chunks == 1
    whole = wb.run(STUDY)
    assert whole["x"].values[0].tobytes() == chunked["x"].values[0].tobytes()
    for name in whole.data_vars:
        np.testing.assert_allclose(chunked[name], whole[name], rtol=1e-9, atol=1e-12)
    assert chunked.attrs["nfe"] == whole.attrs["nfe"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    assert not (tmp_path / "out.zarr" / ".chunks").exists()


def test_a_lens_reads_what_was_reduced_over_all_chunks(small, tmp_path):
    study = STUDY.changed({"record.fields": ("x.rings", "denoised.rings"), "lenses": "frequency"})
    assert plan(study).chunks > 1
    stored, whole = keep(study, tmp_path / "out.zarr"), wb.run(study)
    assert "absent" not in stored.attrs["lenses"]
    for name in ("denoised.rings", "frequency.emerged", "frequency.rho_power"):
        np.testing.assert_allclose(stored[name], whole[name], rtol=1e-9, atol=1e-12)


def test_pieces_on_disk_are_compressed_and_of_one_chunk(small, tmp_path):
    import zarr

    keep(STUDY, tmp_path / "out.zarr")
    array = zarr.open_group(tmp_path / "out.zarr")["x"]
    assert array.chunks[1] == 128 and array.compressors[0].cname.value == "zstd"


def test_what_it_takes_is_said_before():
    digits = {
        "data": "digits",
        "denoiser": "Gaussian",
        "device": "cpu",
        "grid": {"name": "log_snr", "steps": 100},
    }
    full = plan(Study(**digits, seeds={"count": 20_000}))
    assert full.bytes_stored == 20_000 * (4 * 64 * (2 * 101 + 1) + 8)
    assert full.chunk * full.chunks >= 20_000 and full.bytes_peak < 2**29
    spectra = Study(**digits, seeds={"count": 20_000}, record={"fields": ["x.spectrum"]})
    longer = plan(spectra.changed({"grid.steps": 1000})).bytes_peak - plan(spectra).bytes_peak
    assert 0 < longer <= 900 * 16 * 64 * 3, "a mean and a spread per band and step, thrice"
    assert str(plan(STUDY)).startswith("1 chunk of 450 samples, about ")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_what_was_said(tmp_path):
    """The growth of a process that has done a small run before, against the plan."""
    code = """
        run.CHUNK_BYTES, run.FIXED_BYTES = 8 * 2**20, 48 * 2**20
        few = study.changed({"seeds.count": 2})
        keep(few, out.with_name("few.zarr"))
        before, made = peak(), run.plan(study)
        keep(study, out)
        print(made.chunks, made.bytes_peak, made.bytes_stored, peak() - before)
    """
    study = Study(
        data="digits",
        denoiser="Gaussian",
        sampler="DDIM",
        grid={"name": "log_snr", "steps": 60},
        seeds={"count": 3500},
        device="cpu",
    )
    done = process(PEAK + textwrap.dedent(code), tmp_path / "out.zarr", study)
    out, problems = done.communicate(timeout=300)
    assert done.returncode == 0, problems
    chunks, stated, stored, grown = map(int, out.split())
    assert chunks > 8 and stored > 100e6 and stated < 60e6
    assert 0 < grown < stated


def test_a_run_that_is_killed_is_gone_on_with(small, tmp_path):
    out = tmp_path / "out.zarr"
    code = """
        def slow(done, total):
            time.sleep(0.05 if done < 9 else 60)
        keep(study, out, slow)
    """
    running = process(code, out)
    ends = time.monotonic() + 300
    while not (out / "manifest").exists() or len(store.manifest(out)["whole"]) < 2:
        assert time.monotonic() < ends and running.poll() is None
        time.sleep(0.02)
    with pytest.raises(StoreError, match=rf"is being written by process {running.pid}; wait"):
        keep(STUDY, out)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=300)

    with pytest.raises(StoreError, match=r"not whole: 2 of 4 chunks .* Give the command .* again"):
        read(out)
    whole, part = wb.run(STUDY), read(out, partial=True)
    assert part.attrs["complete"] is False and part.sizes["sample"] == 256
    rows = whole.isel(sample=slice(0, 256))
    names = ["x", "denoised", "final"]
    same_run(part[names].assign_attrs(rows.attrs), rows[names])
    np.testing.assert_allclose(part["x.spectrum"], (rows["x"] ** 2).mean("sample"), rtol=1e-12)
    assert part["denoised.moments"].attrs["samples"] == 256

    with pytest.raises(StoreError, match=r"2 of 4 chunks\), and it is of another study; choose"):
        keep(OTHER, out)
    steps = []
    same_run(keep(STUDY, out, lambda done, total: steps.append((done, total))), whole)
    assert steps == [(done, 16) for done in range(9, 17)], "the first two chunks are not run again"
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_killed_at_any_instant(small, tmp_path):
    """Processes that kill themselves as they touch the file system for the n-th time."""
    code = """
        import warnings; warnings.simplefilter("ignore")
        from workbench.studies.store import read, StoreError
        keep(study, out.with_name("warm.zarr"))
        KINDS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}

        def child(most, overwrite):
            pid = os.fork()
            if pid:
                return os.WTERMSIG(os.waitpid(pid, 0)[1])
            touched = [0]
            def hook(event, args):
                if event in KINDS and "out.zarr" in str(args[0]):
                    touched[0] += 1
                    if touched[0] == most:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(hook)
            keep(study, out, overwrite=overwrite)
            os._exit(0)

        kinds = []
        for overwrite in (False, True):
            n = 1
            while True:
                if child(n, overwrite) == 0:
                    break
                try:
                    read(out)
                    kinds.append("whole")
                except StoreError as error:
                    kinds.append("part" if "not whole" in str(error) else "none")
                    assert not overwrite or out.with_name(".out.zarr.old").exists(), error
                n += 23
            print(n, *sorted(set(kinds)))
    """
    done = process(code, tmp_path / "out.zarr")
    out, problems = done.communicate(timeout=300)
    assert done.returncode == 0, problems
    first, second = (line.split() for line in out.splitlines())
    assert int(first[0]) > 100 and int(second[0]) > 100
    assert {"none", "part"} <= set(first[1:]) and "whole" in second[1:]
    same_run(read(tmp_path / "out.zarr"), wb.run(STUDY))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "warm.zarr"]


def test_no_space_left_keeps_what_is_whole(small, tmp_path):
    """A file larger than 9 kB cannot be written: noise takes more, the last chunk less."""
    resource = pytest.importorskip("resource")
    out, seen = tmp_path / "out.zarr", []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(done, total):
        seen.append(done)
        if done == 9:  # in the third chunk
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(
            StoreError, match=r"no space is left .*: 2 of 4 chunks are whole and kept\. Make room"
        ):
            keep(STUDY, out, full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(StoreError, match="2 of 4 chunks are there"):
        read(out)
    same_run(keep(STUDY, out), wb.run(STUDY))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(StoreError, match=r"no space is left .*: nothing of it is kept"):
            keep(OTHER, out, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    same_run(read(out), wb.run(STUDY))
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_what_is_there_is_kept_or_used(small, tmp_path):
    out = tmp_path / "out.zarr"
    first = keep(STUDY, out).load()
    same_run(keep(STUDY, out, lambda done, total: pytest.fail("it is whole")), first)
    with pytest.raises(StoreError, match=r"out\.zarr exists; choose another name or say --overw"):
        keep(OTHER, out)

    def stop(done, total):
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(OTHER, out, stop, overwrite=True)
    same_run(read(out), first)  # until the new one is whole
    begun = []
    same_run(keep(OTHER, out, lambda done, total: begun.append(done), True), wb.run(OTHER))
    assert begun[0] == 13
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_a_run_begun_by_another_version_is_not_gone_on_with(small, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(STUDY, out, stop)
    monkeypatch.setattr(torch, "__version__", "9.0")
    with pytest.raises(StoreError, match=r"1 of 4 chunks\), and was begun with torch .*here 9\.0"):
        keep(STUDY, out)
    assert keep(STUDY, out, overwrite=True).attrs["torch"] == "9.0"


def test_numbers_that_are_not_finite_are_kept_until_then(small, tmp_path, monkeypatch):
    out, spoilt = tmp_path / "out.zarr", [10**9]
    law = type(build(STUDY).diffusion.denoiser)
    plain = law.denoise

    def breaks(self, x, alpha, sigma):
        spoilt[0] -= 1
        return plain(self, x, alpha, sigma) * (np.nan if spoilt[0] < 0 else 1.0)

    monkeypatch.setattr(law, "denoise", breaks)
    for calls, place in ((2, "out.zarr"), (8, "out.broken.zarr")):
        spoilt[0] = calls
        with pytest.raises(RunError, match="not finite") as caught:
            keep(STUDY, out, overwrite=True)
        assert caught.value.kept == tmp_path / place
        assert "not finite" in read(tmp_path / place).attrs["incomplete"]
    spoilt[0] = 10**9
    assert "incomplete" not in keep(STUDY, out, overwrite=True).attrs
    with pytest.raises(StoreError, match="exists"):
        keep(STUDY, tmp_path / "out.broken.zarr")


def test_netcdf(small, tmp_path):
    plans = []
    stored = keep(STUDY, tmp_path / "out.nc", on_plan=plans.append)
    whole = wb.run(STUDY)
    for name in whole.variables:
        assert np.array_equal(stored[name].values, whole[name].values)
    assert stored.attrs["study_hash"] == STUDY.hash and stored.attrs["nfe"] == 4
    assert plans[0].bytes_peak > plan(STUDY).bytes_peak


def test_damaged_chunks_are_computed_again(small, tmp_path, capfd):
    """And no others; what is not a chunk's has everything computed again."""
    out, told, steps = tmp_path / "out.zarr", [], []
    whole = keep(STUDY, out).load()
    pieces = sorted(path for path in (out / "x" / "c").rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    damaged = pieces[1]
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    with pytest.raises(StoreError, match="is not what was written"):
        read(out).load()
    again = keep(STUDY, out, lambda done, total: steps.append(done), on_damage=told.append)
    same_run(again, whole)
    assert steps == [5, 6, 7, 8], "the second chunk alone"
    key = damaged.relative_to(out).as_posix()
    assert told == [
        f"{out} is damaged: {key} is not what was written; their chunks are computed again."
    ]
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert all(before[path] == after[path] for path in before if path.name != "zarr.json")
    (out / "x.spectrum" / "zarr.json").unlink()
    steps.clear()
    same_run(keep(STUDY, out, lambda done, total: steps.append(done), on_damage=told.append), whole)
    assert len(steps) == 16 and told[-1].endswith(
        "x.spectrum/zarr.json is missing; all of it is computed again."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.parametrize("limit", [0, 300, 1000, 3000])
def test_a_full_disk_in_the_first_chunk_blocks_nothing(limit, small, tmp_path):
    """Not even where it was begun and stopped before; nothing is left that is not the store's."""
    resource = pytest.importorskip("resource")
    out, (soft, hard) = tmp_path / "out.zarr", resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(StoreError, match=r"no space is left .*: nothing of it is kept"):
                keep(STUDY, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []
    keep(OTHER, out)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert not list(out.rglob("*.partial"))
