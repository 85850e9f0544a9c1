"""Durable jobs: a study, a sweep or a report to be carried out by a process of its own, by its
hash, in a folder.

::

    job = wb.submit(study)          # returns at once; the process outlives the one that asked
    job.state                       # queued, running, done, failed or cancelled
    job.fraction, job.reason, job.log
    job.result()                    # waits, and opens the store

Whoever knows the hash finds the job again, in another program, tomorrow: ``find(hash)``. Its folder
is ``.jobs/<hash>`` in the folder of results::

    study.json       what is to be done; or sweep.json, report.json
    job.json         state, progress, and why it failed
    log.txt          whatever its process has printed
    result.zarr      the run, written chunk by chunk; or result/, of a sweep or a report
    lock             held by its process as long as that lives

A process that was killed is one failed job; submitted again, it goes on behind the last chunk, or
with the studies of the sweep that are missing. So many jobs run at a time as ``WORKBENCH_JOBS``
says (2); the others are queued. What a page asks for does not wait for them: it is done by workers
of its own (:mod:`workbench.workers`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.lenses.base import OnStep
from workbench.studies import files
from workbench.studies.chunked import keep
from workbench.studies.cluster import sweep
from workbench.studies.gather import reopened
from workbench.studies.plain import shown
from workbench.studies.report import Report, report
from workbench.studies.run import plan
from workbench.studies.spec import Study, StudyError
from workbench.studies.store import Held, StoreError, is_whole, locked, read, replace_text
from workbench.studies.sweep import SweepSpec
from workbench.workers.memory import ALLOCATOR, bounded

if TYPE_CHECKING:
    import xarray

#: What a job may be of.
Work = Study | SweepSpec | Report

#: Seconds between two looks of somebody who waits, and between two reports of progress.
LOOK_EVERY, REPORT_EVERY = 0.05, 0.5

#: Seconds that a job has to begin, and to end when it is cancelled, before it is killed.
STARTS, POLITE = 60.0, 2.0

#: What the process of a job runs: the ``main`` of its kind's module, with its folder.
START = "import sys; from {} import main; main(sys.argv[1])"

STATES = ("queued", "running", "done", "failed", "cancelled")

#: Longest part of a log that is read [bytes].
MOST_LOG = 100_000


class JobError(RuntimeError):
    """A job that is not there, or has no result; the text says why."""


class _Cancelled(BaseException):
    """Somebody has asked for the end of this job."""


def folder() -> Path:
    """Where jobs are: ``.jobs`` in the folder of results (``WORKBENCH_RESULTS``)."""
    return Path(os.environ.get("WORKBENCH_RESULTS") or "results").resolve() / ".jobs"


@dataclass(frozen=True)
class Job:
    """A study, a sweep or a report to be done, under way or done.

    Attributes:
        hash: of what is to be done.
        folder: where everything about the job is.
    """

    hash: str
    folder: Path

    @property
    def work(self) -> Work:
        """What is to be done."""
        for kind in WORKS.values():
            if (self.folder / kind.file).is_file():
                return kind.read(self.folder / kind.file)
        raise JobError(f"{self.folder} does not say what is to be done.")

    @property
    def study(self) -> Study:
        """The study, of a job that is one."""
        return Study.load(self.folder / "study.json")

    @property
    def store(self) -> Path:
        """Where the result is, or will be: a store, or the folder of a sweep or a report."""
        return self.folder / _kind(self.work).result

    @property
    def state(self) -> str:
        """One of :data:`STATES`."""
        return self._said()["state"]

    @property
    def fraction(self) -> float:
        """The share that is done, 0 to 1."""
        return float(self._said().get("fraction", 0.0))

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds until it is done; None if that is not known."""
        said = self._said()
        return said.get("seconds_left") if said["state"] == "running" else None

    @property
    def reason(self) -> str:
        """Why it failed, in a sentence; empty if it did not."""
        return self._said().get("reason", "")

    @property
    def log(self) -> str:
        """The end of what its process has printed."""
        try:
            with open(self.folder / "log.txt", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LOG))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until it is over, however it ends; this job.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds; it goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_over:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"the job was not over after {timeout:g} s; it goes on.")
            time.sleep(LOOK_EVERY)
        return self

    def result(self, timeout: float | None = None) -> xarray.Dataset | Path:
        """The run or the table of the sweep, opened; of a report its first page. Waits for it.

        Raises:
            JobError: it failed or was cancelled, with the reason.
            TimeoutError: it takes longer than ``timeout`` seconds; it goes on.
        """
        self.wait(timeout)
        if self.state != "done":
            raise JobError(f"the job {self.hash[:12]} {self.state}: {self.reason}".rstrip(": "))
        return self._opened()

    def _opened(self) -> Any:
        return _kind(self.work).open(self.store)

    def cancel(self) -> None:
        """End it: it is asked first, and killed if it does not heed that."""
        if self.is_over:
            return
        (self.folder / "cancel").touch()
        with contextlib.suppress(TimeoutError):
            self.wait(POLITE)
            return
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.folder / "lock").read_text()), signal.SIGKILL)
        while self._is_held():
            time.sleep(LOOK_EVERY)
        self._say(state="cancelled", reason="it was cancelled, and killed as it did not end.")

    def __repr__(self) -> str:
        return f"<job {self.hash[:12]}: {self.state}, {self.fraction:.0%}>"

    # -- its folder ------------------------------------------------------------------------------

    def _said(self) -> dict[str, Any]:
        """What ``job.json`` says, as far as it still holds."""
        for _ in range(2):  # it may end between the two looks
            said = self._written()
            if said["state"] not in ("queued", "running") or self._is_held():
                return said
            if said["state"] == "queued" and time.time() - said.get("time", 0) < STARTS:
                return said  # its process is about to begin
        lines = self.log.strip().splitlines()
        last = f" Its last words: {lines[-1][:300]}" if lines else ""
        reason = f"its process ended amid the run (killed, or out of memory).{last}"
        return {**said, "state": "failed", "reason": reason}

    def _written(self) -> dict[str, Any]:
        try:
            said = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
            if said["state"] in STATES:
                return said
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise JobError(f"{self.folder} holds no job that can be read.")

    def _say(self, **said: Any) -> None:
        content = {**said, "hash": self.hash, "time": time.time()}
        replace_text(self.folder / "job.json", json.dumps(content, indent=2) + "\n")

    def _is_held(self) -> bool:
        try:
            if not (self.folder / "lock").exists():
                return False
            with locked(self.folder / "lock", wait=False):
                return False
        except Held:
            return True


def find(hash: str) -> Job:
    """The job of the study with that hash, or with that beginning of one.

    Raises:
        JobError: there is none, or there are several.
    """
    if len(hash) < 6 or not all(digit in "0123456789abcdef" for digit in hash):
        raise JobError(f"{hash[:80]!r} is no hash of a study; give at least 6 digits of it.")
    there = [job for job in jobs() if job.hash.startswith(hash)]
    if len(there) == 1:
        return there[0]
    what = f"{len(there)} jobs begin with it; give more digits" if there else "there is no such job"
    raise JobError(f"{hash}: {what} in {folder()}.")


def jobs() -> list[Job]:
    """Every job of the folder of results, the newest last."""
    places = places_of(folder())
    places.sort(key=lambda one: (one / "job.json").stat().st_ctime)
    return [Job(one.name, one) for one in places]


def places_of(folder: Path) -> list[Path]:
    """The folders of the jobs in a folder."""
    try:
        there = [one for one in folder.iterdir() if (one / "job.json").is_file()]
    except OSError:
        return []
    return [one for one in there if files.is_hash(one.name)]


def submit(work: Work, memory: int | None = None) -> Job:
    """Have ``work`` carried out by a process of its own, unless it is done or under way.

    One that failed or was cancelled is tried again, and goes on where it ended.

    Args:
        work: a study, a sweep or a report.
        memory: bytes that the process may take beside the libraries; None: of a study what its plan
            says, twice; of a sweep and a report as much as there is.

    Raises:
        TypeError: something else.
        StudyError: values that do not go together, or more memory than is given.
        StoreError: the folder of results cannot be written to.
    """
    kind = _kind(work)
    need = plan(work).bytes_peak if isinstance(work, Study) else 0
    if memory is not None and need > memory:
        raise StudyError(
            {
                "": f"the run takes about {need / 1e6:.0f} MB, and memory was {memory / 1e6:.0f} "
                "MB; give it more."
            }
        )
    job = Job(work.hash, folder() / work.hash)
    is_whole = partial(kind.is_whole, job.folder / kind.result)
    taken = memory or 2 * need or None
    begin(job, "workbench.studies.jobs", kind.file, work.to_json(), is_whole, memory=taken)
    return job


def begin(
    job: Job, module: str, file: str, text: str, whole: Callable[[], bool], **more: Any
) -> None:
    """Have a job carried out by a process of its own, unless it is done or under way.

    Args:
        module: whose ``main`` the process calls with the job's folder, which calls :func:`perform`.
        file, text: what is to be done, and its file in that folder.
        whole: whether what a job that is done has left is there.
        more: what else its state says.

    Raises:
        StoreError: its folder cannot be written to.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if (job.folder / "job.json").exists():
            state = job.state
            if state in ("queued", "running") or (state == "done" and whole()):
                return
        replace_text(job.folder / file, text)
        (job.folder / "cancel").unlink(missing_ok=True)
        job._say(state="queued", **more)
        with open(job.folder / "log.txt", "wb") as log:
            # Of a session of its own: it goes on when the one that asked has ended.
            subprocess.Popen(
                [sys.executable, "-c", START.format(module), str(job.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | ALLOCATOR | {"WORKBENCH_FILES": str(files.folder().resolve())},
            )
    except OSError as error:
        raise StoreError(f"{job.folder} cannot be written to: {error}.") from None


# ---- what a job may be of -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How one kind of work is kept in a job's folder and done.

    Attributes:
        file: what says what is to be done; ``read`` reads it.
        result: what is left.
        carry_out: ``(work, result, on_step)``.
        open: the result as whoever asked gets it.
        is_whole: whether it is there, and undamaged.
    """

    file: str
    result: str
    read: Callable[[Path], Work]
    carry_out: Callable[[Any, Path, OnStep], Any]
    open: Callable[[Path], Any]
    is_whole: Callable[[Path], bool]


def _sweep(spec: SweepSpec, out: Path, on_step: OnStep) -> None:
    sweep(spec, out, on_progress=lambda progress: on_step(progress.done, progress.total))


def _table(out: Path) -> xarray.Dataset:
    return reopened(out / "sweep.zarr")


def _report(work: Report, out: Path, on_step: OnStep) -> None:
    done = itertools.count(1)
    outcomes = report(
        work.notebooks,
        work.parameters,
        out,
        work.timeout,
        overwrite=True,
        on_done=lambda outcome: on_step(next(done), max(1, len(work.notebooks))),
    )
    if failed := [str(outcome) for outcome in outcomes if not outcome.ok]:
        raise JobError(f"{len(failed)} of {len(outcomes)} notebooks failed: {'; '.join(failed)}")


WORKS: dict[type, _Kind] = {
    Study: _Kind("study.json", "result.zarr", Study.load, keep, read, is_whole),
    SweepSpec: _Kind(
        "sweep.json",
        "result",
        SweepSpec.load,
        _sweep,
        _table,
        lambda out: is_whole(out / "sweep.zarr") and not _table(out).attrs["failed"],
    ),
    Report: _Kind(
        "report.json",
        "result",
        Report.load,
        _report,
        lambda out: out / "index.html",
        lambda out: (out / "index.html").is_file(),
    ),
}


def _kind(work: Any) -> _Kind:
    if type(work) not in WORKS:
        raise TypeError(
            f"what to do was {shown(work)}; it must be a Study, a SweepSpec or a Report, e.g. "
            "wb.Study(data='ring')."
        )
    return WORKS[type(work)]


# ---- the process of a job ------------------------------------------------------------------------


def perform(job: Job, work: Callable[[Callable[..., None]], None]) -> None:
    """Do the work of a job in this process, when a place is free: what its ``main`` calls.

    Args:
        work: called as ``work(on_step)``; it calls ``on_step(done, total, **more)`` along the way,
            which ends it when the job is cancelled. The last ``more`` stays in the job's state.
    """
    with contextlib.suppress(Held), locked(job.folder / "lock", wait=False), _place(job):
        memory = job._written().get("memory")
        about: dict[str, Any] = {"process": os.getpid(), "memory": memory}
        job._say(state="running", fraction=0.0, **about)
        began = reported = time.monotonic()
        first, last = None, {}

        def on_step(done: int, total: int, **more: Any) -> None:
            nonlocal reported, first, last
            first, last, now = done if first is None else first, more, time.monotonic()
            if now - reported < REPORT_EVERY and done < total:
                return
            reported = now
            if (job.folder / "cancel").exists():
                raise _Cancelled
            left = round((now - began) * (total - done) / max(1, done - first), 1)
            share = {"fraction": done / max(1, total), "seconds_left": left}
            job._say(state="running", **about, **share, **more)

        end: dict[str, Any]
        try:
            with bounded(memory):
                work(on_step)
            end = {"state": "done", "fraction": 1.0}
        except _Cancelled:
            end = {"state": "cancelled", "reason": "it was cancelled."}
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            sentence = str(error) or repr(error)
            if memory and (isinstance(error, MemoryError) or "allocate memory" in sentence):
                sentence = f"it needed more than the {memory / 1e6:.0f} MB that it was given."
            elif isinstance(error, SystemExit):
                sentence = f"it ended itself by {error!r}; what a run calls must not do so."
            end = {"state": "failed", "reason": sentence}
        job._say(**end, **last, seconds=round(time.monotonic() - began, 3))


@contextlib.contextmanager
def _place(job: Job) -> Iterator[None]:
    """Wait in the queue, and hold one of the places where jobs run at a time."""
    many = max(1, int(os.environ.get("WORKBENCH_JOBS") or 2))
    while True:
        if (job.folder / "cancel").exists():
            job._say(state="cancelled", reason="it was cancelled before it began.")
            raise SystemExit(0)
        for number in range(many):
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(locked(job.folder.parent / f".{number}.lock", wait=False))
                except Held:
                    continue
                yield
                return
        time.sleep(LOOK_EVERY)


def main(place: str) -> None:
    job = Job(Path(place).name, Path(place))

    def work(on_step: Callable[..., None]) -> None:
        wanted = job.work
        _kind(wanted).carry_out(wanted, job.store, on_step)

    perform(job, work)
