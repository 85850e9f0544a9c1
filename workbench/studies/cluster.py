"""A sweep carried out: on this machine's processes, or on a Dask cluster that is there already."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import pickle
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench import __version__
from workbench.registry import plugins
from workbench.studies.gather import collect, place_of, reopened
from workbench.studies.spec import Study
from workbench.studies.store import StoreError, is_whole, write
from workbench.studies.sweep import SweepError, SweepSpec
from workbench.studies.worksite import (
    check_folder,
    compute,
    holding,
    prepare,
    record_failure,
)
from workbench.workers.pool import Died, Pool

if TYPE_CHECKING:
    import xarray

#: Seconds that a scheduler has to answer, that workers have to come, and that a lost scheduler has
#: to come back.
PATIENCE = 15.0

#: One study at a time for each worker, so that a worker that dies takes no other study with it.
CONFIG = {"distributed.scheduler.worker-saturation": 1.0}

#: How many workers may die of a study before it has failed, and what a worker imports beforehand.
TRIES, PREPARE = 3, ("workbench.studies.worksite", "xarray.backends.zarr")

#: Seconds between two looks at a worker.
LOOK_EVERY = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        done: studies stored or failed, those of earlier runs included; failed: those that failed.
        total: studies that differ.
        left: expected seconds until the end; None while that is not known.
    """

    done: int
    failed: int
    total: int
    left: float | None = None

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        left = f", {_duration(self.left)} left" if self.left is not None else ""
        return f"{self.done} of {self.total} studies{failed}{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def sweep(
    spec: SweepSpec | Mapping[str, Any] | str | Path,
    out: str | Path,
    scheduler: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> xarray.Dataset:
    """Carry out every study of a sweep that is not yet stored in ``out``, and gather them.

    Called again with the same sweep it goes on where it ended, however it ended, and tries again
    what failed.

    Args:
        spec: the sweep, the path of its file, or what the file would hold.
        out: its folder, made if it is not there.
        scheduler: address of a Dask scheduler (``tcp://host:8786``), whose workers see ``out``
            under the same path; None starts workers on this machine.
        workers: processes on this machine; None: one for each graphics card if the studies may
            use one, else two. 0 computes in this process.
        overwrite: replace another sweep, or this one from the start.
        on_progress: called after each study; raise in it to end the sweep.

    Returns:
        The dataset of :func:`workbench.studies.gather.collect`, also stored as ``out/sweep.zarr``.

    Raises:
        SweepError: a sweep that cannot be read, a folder that is in use or holds something else, a
            scheduler that does not answer, workers with another workbench.
    """
    if not isinstance(spec, SweepSpec):
        spec = SweepSpec.load(spec) if isinstance(spec, str | Path) else SweepSpec.of(spec)
    if workers is not None and (
        isinstance(workers, bool) or workers != int(workers) or workers < 0
    ):
        raise SweepError(f"workers was {workers!r}; it must be a whole number, 0 or more.")
    folder = Path(out).resolve()
    check_folder(folder, spec, overwrite)
    with holding(folder):
        check_folder(folder, spec, overwrite)
        prepare(folder, spec, overwrite)
        todo = {
            key: study for key, study in spec.jobs.items() if not is_whole(place_of(folder, key))
        }
        gathered = folder / "sweep.zarr"
        if not todo and is_whole(gathered):
            dataset = reopened(gathered)
            if not dataset.attrs["failed"]:
                return dataset
        tell = _teller(spec, todo, on_progress)
        if not todo:
            pass
        elif scheduler is not None:
            _distribute(todo, folder, scheduler, tell)
        elif workers == 0:
            tell("", "")
            for key, study in todo.items():
                tell(*compute(key, study.to_json(), str(folder), __version__))
        else:
            tell("", "")
            for outcome in _by_processes(todo, folder, _environments(todo, workers)):
                tell(*outcome)
        dataset = collect(spec, folder)
        write(dataset, gathered, overwrite=True)
        return dataset


def _teller(spec: SweepSpec, todo: Mapping[str, Study], on_progress) -> Callable[..., None]:
    """Counts what is done and passes it on: ``tell(key, status)``."""
    before, began = len(spec.jobs) - len(todo), time.monotonic()
    done = failed = 0

    def tell(key: str, status: str) -> None:
        nonlocal began, done, failed
        if not key:
            began = time.monotonic()
        else:
            done, failed = done + 1, failed + (status == "failed")
        left = (time.monotonic() - began) / done * (len(todo) - done) if done else None
        if on_progress is not None:
            on_progress(Progress(before + done, failed, len(spec.jobs), left))

    return tell


# ---- processes of this machine -------------------------------------------------------------------


def _by_processes(
    todo: Mapping[str, Study], folder: Path, environments: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str]]:
    """Have the studies computed by a worker for each environment; key and status as they end."""
    waiting = deque(todo.items())
    outcomes: queue.SimpleQueue = queue.SimpleQueue()
    with Pool(len(environments), PREPARE) as pool:
        for environment in environments:
            given = (pool, waiting, folder, dict(environment), outcomes)
            threading.Thread(target=_employ, args=given, daemon=True).start()
        for _ in todo:
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome


def _employ(pool: Pool, waiting: deque, folder: Path, environment: dict, outcomes) -> None:
    """Give one worker after the other a study after the other, until there is none left."""
    worker = None
    try:
        while True:
            try:
                key, study = waiting.popleft()
            except IndexError:
                break
            ended = ""
            for _ in range(TRIES):
                try:
                    worker = worker or pool.take()
                    outcomes.put(_done_by(worker, key, study, folder, environment))
                    break
                except Died as error:
                    if worker is None:  # there is none to be had
                        raise SweepError(f"the local workers did not start: {error}") from None
                    worker, ended = None, str(error)
            else:
                reason = "the worker process died each time it computed this study (too little "
                record_failure(folder, key, study.to_json(), f"{reason}memory?).", ended)
                outcomes.put((key, "failed"))
    except OSError as error:
        outcomes.put(SweepError(f"{folder} cannot be written: {error}. What is stored is kept."))
    except BaseException as error:
        outcomes.put(error)
    if worker is not None:
        worker.close()


def _done_by(worker, key: str, study: Study, folder: Path, environment: dict) -> tuple[str, str]:
    asked = (key, study.to_json(), str(folder), __version__, plugins())
    worker.do(pickle.dumps(partial(_task, asked, environment)), None)
    while True:
        what, *rest = worker.hear(LOOK_EVERY) or ("nothing",)
        if what == "claim":
            worker.grant(None)
        elif what == "done":
            return rest[0]
        elif what == "failed":
            raise SweepError(f"a worker could not go on: {rest[0]}. What is stored is kept.")


def _task(asked: tuple, environment: dict, report) -> tuple[str, str]:
    """What a worker does; a graphics card is chosen before it is first asked for."""
    os.environ.update(environment)
    return compute(*asked)


def _environments(todo: Mapping[str, Study], workers: int | None) -> list[dict[str, str]]:
    """The environment of each local worker: one graphics card each, where there are any."""
    devices: list[str] = []
    if any(study.device in ("auto", "cuda") for study in todo.values()):
        count = torch.cuda.device_count()
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = given.split(",") if given else [str(i) for i in range(count)]
        devices = names[:count]
    number = workers or len(devices) or 2
    if not devices:
        return [{} for _ in range(number)]
    return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(number)]


# ---- Dask ----------------------------------------------------------------------------------------


def _distribute(
    todo: Mapping[str, Study], folder: Path, scheduler: str, tell: Callable[..., None]
) -> None:
    """Have the studies computed by the workers of a cluster, and tell of each that is done."""
    try:
        import dask
        from distributed import as_completed
    except ImportError as error:
        raise SweepError(
            f"{error}; a sweep on a cluster needs Dask: pip install "
            "'diffusion-workbench[distributed]'. Without a scheduler it needs none."
        ) from None
    with dask.config.set(CONFIG), _client(scheduler) as client:
        _check_workers(client)
        tell("", "")
        texts = [study.to_json() for study in todo.values()]
        session = time.time_ns()  # another session's keys may still be known to a lasting scheduler
        futures = client.map(
            compute,
            list(todo),
            texts,
            [str(folder)] * len(todo),
            [__version__] * len(todo),
            [plugins()] * len(todo),
            key=[f"study-{session}-{key}" for key in todo],
            pure=False,
            retries=0,
        )
        of = dict(zip((future.key for future in futures), todo, strict=True))
        try:
            for future in as_completed(futures, loop=client.loop):
                key = of[future.key]
                tell(*_outcome(future, key, todo[key], folder, scheduler))
                future.release()
        except BaseException:
            with contextlib.suppress(Exception):
                client.cancel(futures, force=True)
            raise


def _outcome(future, key: str, study: Study, folder: Path, scheduler: str):
    """What became of one study."""
    from distributed import KilledWorker

    if future.status == "finished":
        key, status = future.result()
        if status.startswith("version"):
            raise SweepError(_other_versions({status.partition(" ")[2]}))
        return key, status
    if future.status in ("cancelled", "lost"):
        raise SweepError(
            f"the scheduler {scheduler} was lost; what is stored is kept. Run the same "
            "command again to go on."
        )
    error = future.exception()
    if isinstance(error, KilledWorker):
        reason = "the worker process died each time it computed this study (too little memory?)."
    elif isinstance(error, StoreError | OSError):
        raise SweepError(
            f"{folder} cannot be written by a worker: {error}. What is stored is kept."
        ) from None
    else:
        reason = str(error) or repr(error)
    try:
        record_failure(folder, key, study.to_json(), reason, repr(error))
    except OSError as problem:
        raise SweepError(f"{folder} cannot be written: {problem}.") from None
    return key, "failed"


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    """A client of the scheduler."""
    from distributed import Client

    reason = ""
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        last = (str(error).strip().splitlines() or [repr(error)])[-1]
        reason = last.rstrip(".")
        traceback.clear_frames(error.__traceback__)
    if reason:
        # Now, and not amid the start of another client, where it would wait for itself.
        gc.collect()
        raise SweepError(
            f"no scheduler answers at {scheduler!r} ({reason}); start one with 'dask scheduler' "
            "and workers with 'dask worker ADDRESS', or leave --scheduler out."
        )
    with client:
        yield client


def _check_workers(client: Any) -> None:
    """Refuse a cluster without workers, or with workers of another workbench."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise SweepError(
            f"the scheduler has no workers, and none came within {PATIENCE:g} s; start some with "
            "'dask worker ADDRESS'."
        ) from None
    said = client.run(_asked(), on_error="return")
    if others := {str(found) for found in said.values()} - {__version__}:
        raise SweepError(_other_versions(others))


def _asked() -> Callable[[], str]:
    """A function that is sent by value, since a worker need not have this very module."""

    def ask() -> str:
        try:
            from workbench import __version__
        except ImportError:
            return "none"
        return __version__

    return ask


def _other_versions(others: set[str]) -> str:
    return (
        f"this is workbench {__version__}, and workers have {', '.join(sorted(others))}; install "
        "the same version on both sides."
    )
