"""Durable jobs: found again by their hash, killed, cancelled, queued, and their memory bounded."""

import json
import os
import signal
import time

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.studies import SweepSpec, jobs
from workbench.studies.report import Report

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks")

LONG = 180

SMALL = {"grid": {"name": "log_snr", "steps": 4}, "seeds": {"count": 8}, "device": "cpu"}

#: Long enough to be met under way: many chunks, each of which is short.
ENDLESS = SMALL | {"seeds": {"count": 1_000_000}, "grid": {"name": "log_snr", "steps": 500}}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RESULTS", str(tmp_path))
    yield tmp_path
    for job in jobs.jobs():
        job.cancel()


def becomes(job, state):
    until = time.monotonic() + LONG
    while job.state != state:
        assert time.monotonic() < until and not job.is_over, (job.state, job.reason, job.log)
        time.sleep(0.02)


def test_jobs_are_found_by_their_hash_queued_killed_and_gone_on_with(monkeypatch):
    monkeypatch.setenv("WORKBENCH_JOBS", "1")
    job = wb.submit(wb.Study(**ENDLESS))
    becomes(job, "running")
    assert wb.submit(job.study) == job  # which goes on
    study = wb.Study(**SMALL)
    waiting = wb.submit(study)
    assert (waiting.state, waiting.fraction) == ("queued", 0.0)
    os.kill(int((job.folder / "lock").read_text()), signal.SIGKILL)
    assert job.wait(LONG).state == "failed"
    assert job.reason.startswith("its process ended amid the run")
    with pytest.raises(jobs.JobError, match="failed: its process ended"):
        job.result()
    assert waiting.result(LONG).drop_attrs().equals(wb.run(study).drop_attrs())
    found = jobs.find(study.hash[:8])
    assert (found, found.study, found.state, found.fraction) == (waiting, study, "done", 1.0)
    stamp = (found.store / "zarr.json").stat().st_mtime_ns
    assert wb.submit(study).state == "done"
    assert (found.store / "zarr.json").stat().st_mtime_ns == stamp
    # A command without a place of its own asks for the same job.
    file = found.folder / "study.json"
    told = CliRunner().invoke(app, ["run", str(file)])
    assert told.exit_code == 0 and told.output.strip() == str(found.store)
    assert (found.store / "zarr.json").stat().st_mtime_ns == stamp
    listed = CliRunner().invoke(app, ["jobs"]).output.splitlines()
    assert [line.split()[:2] for line in listed] == [
        [one.hash[:12], one.state] for one in jobs.jobs()
    ]
    assert "its process ended" in CliRunner().invoke(app, ["jobs", job.hash[:9]]).output
    assert not found.log, found.log
    becomes(wb.submit(job.study), "running")
    job.cancel()
    assert job.state == "cancelled" and job.reason.startswith("it was cancelled")


def test_what_is_refused():
    with pytest.raises(TypeError, match="must be a Study, a SweepSpec or a Report"):
        wb.submit("ring")
    with pytest.raises(wb.studies.StudyError, match="takes about 235 MB, and memory was 1 MB"):
        wb.submit(wb.Study(**SMALL), memory=1_000_000)
    assert not jobs.jobs()
    with pytest.raises(jobs.JobError, match="there is no such job"):
        jobs.find("0" * 64)
    for text in ("abc", "../../etc"):
        with pytest.raises(jobs.JobError, match="no hash"):
            jobs.find(text)


def test_a_sweep_and_a_report_are_jobs_too(tmp_path):
    """Queued, found by their hash, done and failed like a study."""
    spec = SweepSpec(wb.Study(**SMALL), grid={"sampler": ["DDIM", "Heun"]})
    job = wb.submit(spec)
    table = job.result(LONG)
    assert (table["status"] == "done").all() and job.fraction == 1.0
    assert jobs.find(spec.hash[:10]).work.hash == spec.hash
    assert wb.submit(spec).state == "done"
    notebook = tmp_path / "two.ipynb"
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "n = 1"}
    last = {"cell_type": "code", "metadata": {}, "source": "assert n == 3, n"}
    cells = [one | {"outputs": [], "execution_count": None} for one in (cell, last)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}
    notebook.write_text(json.dumps(content))
    good, bad = (wb.submit(Report.of([notebook], {"n": n})) for n in (3, 4))
    assert good.result(LONG).read_text().startswith("<!doctype html>")
    assert bad.wait(LONG).state == "failed" and "AssertionError: 4" in bad.reason
    with pytest.raises(wb.studies.StudyError, match="there is no notebook"):
        Report.of(["nowhere"])
