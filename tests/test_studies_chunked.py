"""A run in chunks is the run; a run that dies at any instant is gone on with."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.studies import Study, store
from workbench.studies.chunked import keep
from workbench.studies.run import CHUNK_BYTES, plan
from workbench.studies.store import StoreError, read

FIELDS = ["x", "denoised", "x.spectrum", "denoised.moments"]
STUDY = Study(
    sampler={"name": "DDIM", "eta": 1.0},
    grid={"name": "log_snr", "steps": 4},
    seeds={"first": 5, "count": 450},
    record={"fields": FIELDS},
    dtype="float64",
    device="cpu",
)
OTHER = Study.changed(STUDY.to_flat(), {"seeds_first": 6})

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


def same(one, other, attrs: bool = True) -> None:
    """The same variables, to the byte; the same attributes but for the time it took."""
    assert set(one.variables) == set(other.variables) and set(one.coords) == set(other.coords)
    for name, variable in other.variables.items():
        assert one[name].dims == variable.dims and one[name].dtype == variable.dtype, name
        left, right = (np.ascontiguousarray(v.values) for v in (one[name], variable))
        assert left.tobytes() == right.tobytes(), name
        assert one[name].attrs == variable.attrs
    if attrs:
        drop = {"seconds"}
        assert one.attrs.keys() == other.attrs.keys()
        assert all(one.attrs[k] == v for k, v in other.attrs.items() if k not in drop)


def test_chunks_change_no_noise_and_no_number(small, monkeypatch, tmp_path):
    chunked = wb.run(STUDY)
    stored = keep(STUDY, tmp_path / "out.zarr")
    same(stored, chunked)
    monkeypatch.setattr(sys.modules["workbench.studies.run"], "CHUNK_BYTES", CHUNK_BYTES)
    assert plan(STUDY).chunks == 1
    whole = wb.run(STUDY)
    assert whole["x"].values[0].tobytes() == chunked["x"].values[0].tobytes()
    for name in whole.data_vars:
        np.testing.assert_allclose(chunked[name], whole[name], rtol=1e-9, atol=1e-12)
    assert chunked.attrs["nfe"] == whole.attrs["nfe"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    assert not (tmp_path / "out.zarr" / ".chunks").exists()


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
    flat = spectra.to_flat()
    longer = plan(Study.changed(flat, {"grid_steps": 1000})).bytes_peak - plan(spectra).bytes_peak
    assert 0 < longer <= 900 * 16 * 64 * 3, "a mean and a spread per band and step, thrice"
    assert str(plan(STUDY)).startswith("1 chunk of 450 samples, about ")


def test_memory_is_what_was_said(tmp_path):
    """The growth of a process that has done a small run before, against the plan."""
    code = """
        import resource
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        run.CHUNK_BYTES, run.FIXED_BYTES = 8 * 2**20, 48 * 2**20
        few = study.model_copy(update={"seeds": study.seeds.model_copy(update={"count": 2})})
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
    done = process(code, tmp_path / "out.zarr", study)
    out, problems = done.communicate(timeout=120)
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
    ends = time.monotonic() + 60
    manifest = out / store.MANIFEST
    while not manifest.exists() or len(json.loads(manifest.read_text())["whole"]) < 2:
        assert time.monotonic() < ends and running.poll() is None
        time.sleep(0.02)
    with pytest.raises(StoreError, match=rf"is being written by process {running.pid}; wait"):
        keep(STUDY, out)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=30)

    with pytest.raises(StoreError, match=r"not whole: 2 of 4 chunks .* Give the command .* again"):
        read(out)
    whole, part = wb.run(STUDY), read(out, partial=True)
    assert part.attrs["complete"] is False and part.sizes["sample"] == 256
    rows = whole.isel(sample=slice(0, 256))
    for name in ("x", "denoised", "final", "seed"):
        assert part[name].values.tobytes() == np.ascontiguousarray(rows[name].values).tobytes()
    np.testing.assert_allclose(part["x_spectrum"], (rows["x"] ** 2).mean("sample"), rtol=1e-12)
    assert part["denoised_mean"].attrs["samples"] == 256

    with pytest.raises(StoreError, match=r"2 of 4 chunks\), and it is of another study; choose"):
        keep(OTHER, out)
    steps = []
    same(keep(STUDY, out, lambda done, total: steps.append((done, total))), whole)
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
    out, problems = done.communicate(timeout=150)
    assert done.returncode == 0, problems
    first, second = (line.split() for line in out.splitlines())
    assert int(first[0]) > 100 and int(second[0]) > 100
    assert {"none", "part"} <= set(first[1:]) and "whole" in second[1:]
    same(read(tmp_path / "out.zarr"), wb.run(STUDY))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "warm.zarr"]
