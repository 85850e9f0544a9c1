"""A sweep by processes: these die, nothing is lost, and nothing is computed a second time."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers import free_port, same_run

import workbench as wb
from workbench.studies import SweepError, SweepSpec, cluster

#: Forty small studies.
MANY = {
    "study": {
        "data": {"name": "gaussian", "size": 20},
        "denoiser": "Gaussian",
        "seeds": {"count": 2},
        "record": {"fields": ["x"], "every": 1000},
        "device": "cpu",
    },
    "grid": {
        "sampler": ["DDIM", "Heun", {"name": "DPMSolverPP", "order": 3}, "EulerMaruyama"],
        "grid.steps": list(range(2, 7)),
        "process": ["VP", "RectifiedFlow"],
    },
}

PATH = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path(wb.__file__).parents[1]), *sys.path]))}


def start(*arguments, **options) -> subprocess.Popen:
    """A process of its own, in a group of its own, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | PATH | options.pop("environment", {}),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process: subprocess.Popen) -> tuple[str, str]:
    """Kill a process and all that it started, whatever happened to it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=300)


def events(out: Path) -> list[dict]:
    if not (out / "events.jsonl").exists():
        return []
    lines = (out / "events.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def until(condition, process: subprocess.Popen | None = None, seconds: float = 300):
    """Wait until something is true; a process that ends before says why."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            pytest.fail(f"it ended early: {process.communicate(timeout=300)}")
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def stored(out: Path, count: int):
    """Whether so many studies are stored."""
    return lambda: sum(entry["event"] == "stored" for entry in events(out)) >= count


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_many_studies_survive_the_death_of_a_worker_and_of_the_client(tmp_path, record_property):
    began = time.monotonic()
    out, file = tmp_path / "out", tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(MANY, sort_keys=False))
    spec = SweepSpec.load(file)
    assert len(spec) == len(spec.jobs) == 40
    command = ("-m", "workbench.cli", "sweep", file, "-o", out, "--workers", "2")

    client = start(*command)
    try:
        # A worker dies in the middle of a study; another is started, the study is done again.
        until(stored(out, 6), client)
        victim = events(out)[-1]["process"]
        os.kill(victim, signal.SIGKILL)
        at_death = {entry["process"] for entry in events(out)}
        # However soon the rest would be done: nobody else goes on before the new one is there.
        others = [one for one in at_death - {victim} if alive(one)]
        for one in others:
            os.kill(one, signal.SIGSTOP)
        until(lambda: {entry["process"] for entry in events(out)} > at_death, client)
        until(stored(out, 14), client)
        with pytest.raises(SweepError, match=rf"in use by .*, process {client.pid}; wait"):
            wb.sweep(file, out, workers=0)
        # The client dies, and its workers with it.
        os.kill(client.pid, signal.SIGKILL)
        workers = {entry["process"] for entry in events(out)}
        for one in filter(alive, others):
            os.kill(one, signal.SIGCONT)
        until(lambda: not any(map(alive, workers)))
    finally:
        end(client)
    first = events(out)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.zarr")}
    assert 14 <= len(before) < 40

    # The same command again goes on: every result is there once, none computed after it was stored.
    found = wb.sweep(file, out, workers=2)
    assert (found["status"] == "done").all()
    after = {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.zarr")}
    assert set(after) == {f"{key}.zarr" for key in spec.jobs}
    assert {name: after[name] for name in before} == before
    seen, started = set(), Counter()
    for entry in events(out):
        assert entry["event"] in ("started", "stored")
        assert entry["study"] not in seen, "computed, or stored, again after it was stored"
        started[entry["study"]] += entry["event"] == "started"
        if entry["event"] == "stored":
            seen.add(entry["study"])
    again = {entry["study"] for entry in events(out)[len(first) :]}
    assert not again & {name.removesuffix(".zarr") for name in before}
    # Only what a process was at when it died was begun twice: one study each for three deaths.
    assert sum(started.values()) <= 40 + 3 and set(started) == set(spec.jobs)

    # And the numbers are those of a run that nothing disturbed.
    same_run(found, wb.sweep(file, tmp_path / "undisturbed", workers=0))
    count = len(events(out))
    assert wb.sweep(file, out).identical(found) and len(events(out)) == count
    record_property("measured", f"sweep of 40, two deaths: {time.monotonic() - began:.0f} s")


SMALL = {**MANY, "grid": {"sampler": ["DDIM", "Heun"], "grid.steps": list(range(2, 16))}}


def test_a_scheduler_that_is_there_or_not(tmp_path, monkeypatch):
    """No scheduler, no workers, other workers, Ctrl-C, a scheduler that dies: nothing is lost."""
    pytest.importorskip("distributed", reason="needs Dask: pip install -e '.[distributed]'")
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    out, address = tmp_path / "out", f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(SweepError, match=rf"no scheduler answers at '{address}'"):
        wb.sweep(SMALL, out, scheduler=address)
    with pytest.raises(SweepError, match="no scheduler answers at 'somewhere'"):
        wb.sweep(SMALL, out, scheduler="somewhere")

    fake = tmp_path / "other" / "workbench"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text('__version__ = "0.0.9"\n')
    quiet = {"cwd": tmp_path, "environment": {"DASK_LOGGING__DISTRIBUTED": "critical"}}
    port = address.rpartition(":")[2]
    local = ("--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show")
    begun = [start("-m", "distributed.cli.dask_scheduler", *local, **quiet)]
    worker = ("-m", "distributed.cli.dask_worker", address, "--nthreads", 1, "--no-dashboard")
    worker += ("--no-nanny",)
    try:
        until(lambda: _answers(int(port)), begun[0])
        with pytest.raises(SweepError, match="the scheduler has no workers, and none came within"):
            wb.sweep(SMALL, out, scheduler=address)

        monkeypatch.setattr(cluster, "PATIENCE", 60.0)
        path = {"PYTHONPATH": os.pathsep.join([str(fake.parent), PATH["PYTHONPATH"]])}
        environment = quiet["environment"] | path
        begun.append(start(*worker, cwd=tmp_path, environment=environment))
        sentence = (
            rf"this is workbench {wb.__version__}, and workers have 0\.0\.9; install the same"
        )
        with pytest.raises(SweepError, match=sentence):
            wb.sweep(SMALL, out, scheduler=address)
        assert events(out) == []
        end(begun.pop())

        begun.append(start(*worker, **quiet))

        def interrupt(progress):
            if progress.done >= 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)  # where the signal is met

        monkeypatch.setattr(cluster, "PATIENCE", 60.0)
        # A suite that runs in the background of a shell is started with the signal ignored.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                wb.sweep(SMALL, out, scheduler=address, on_progress=interrupt)
        finally:
            signal.signal(signal.SIGINT, handler)
        kept = len(list((out / "runs").glob("*.zarr")))
        assert 3 <= kept < 28

        def lose(progress):
            if progress.done >= kept + 4 and begun[0].poll() is None:
                os.kill(begun[0].pid, signal.SIGKILL)

        monkeypatch.setattr(cluster, "PATIENCE", 2.0)
        with pytest.raises(
            SweepError, match=rf"scheduler {address} was lost; what is stored is kept"
        ):
            wb.sweep(SMALL, out, scheduler=address, on_progress=lose)
    finally:
        for process in begun:
            end(process)
    kept = {path.name for path in (out / "runs").glob("*.zarr")}
    assert 7 <= len(kept) < 28
    found = wb.sweep(SMALL, out, workers=0)
    same_run(found, wb.sweep(SMALL, tmp_path / "undisturbed", workers=0))
    counts = Counter(entry["study"] for entry in events(out) if entry["event"] == "stored")
    assert set(counts.values()) == {1} and len(counts) == 28


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_each_local_worker_has_a_card_of_its_own(monkeypatch):
    jobs = SweepSpec.of({"study": {"device": "auto"}, "grid": {"grid.steps": [2, 3]}}).jobs
    on_cpu = SweepSpec.of({"study": {"device": "cpu"}, "grid": {"grid.steps": [2, 3]}}).jobs
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    cards = [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(3)]
    assert cluster._environments(jobs, None) == cards
    assert cluster._environments(jobs, 4) == [*cards, cards[0]]
    assert cluster._environments(on_cpu, None) == [{}, {}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-1")
    names = [worker["CUDA_VISIBLE_DEVICES"] for worker in cluster._environments(jobs, None)]
    assert names == ["5", "7", "GPU-1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert cluster._environments(jobs, None) == [{}, {}]
    assert cluster._environments(jobs, 5) == [{}] * 5


def test_progress_is_a_line():
    line = cluster.Progress
    assert str(line(0, 0, 40)) == "0 of 40 studies"
    assert str(line(3, 1, 40, 59.2)) == "3 of 40 studies, 1 failed, 1 min 0 s left"
    assert str(line(3, 0, 40, 7300.0)) == "3 of 40 studies, 2 h 1 min left"
    assert str(line(40, 0, 40, 0.0)) == "40 of 40 studies, 0 s left"
