"""A sweep carried out: on this machine's processes, or on a Dask cluster that is there already."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.registry import plugins
from workbench.studies.gather import collect, reopened
from workbench.studies.spec import Study
from workbench.studies.store import StoreError, write
from workbench.studies.sweep import SweepError, SweepSpec
from workbench.studies.worksite import (
    check_folder,
    compute,
    holding,
    is_stored,
    place_of,
    prepare,
    record_failure,
    workbench_version,
)

if TYPE_CHECKING:
    import xarray

__all__ = ["Progress", "sweep"]

#: Seconds that a scheduler has to answer, that workers have to come, and that a lost scheduler has
#: to come back.
PATIENCE = 15.0

#: Whether a process of this system can be forked from one that has imported torch.
FORKS = sys.platform == "linux"

#: One study at a time for each worker, so that a worker that dies takes no other study with it.
CONFIG = {"distributed.scheduler.worker-saturation": 1.0}
CONFIG |= {"distributed.worker.multiprocessing-method": "forkserver"} if FORKS else {}

#: Ctrl-C reaches every process of a terminal; the client alone heeds it, and ends its workers.
UNDISTURBED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"

#: Workers compute on one thread each.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        done: studies stored or failed, those of earlier runs included; failed: those that failed.
        total: studies that differ.
        left: expected seconds until the end; None while that is not known.
        dashboard: address of Dask's dashboard; empty where there is none.
    """

    done: int
    failed: int
    total: int
    left: float | None = None
    dashboard: str = ""

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
    what failed. In a script, call it under ``if __name__ == "__main__":``, since the workers are
    processes that import the script.

    Args:
        spec: the sweep, the path of its file, or what the file would hold.
        out: its folder, made if it is not there.
        scheduler: address of a Dask scheduler (``tcp://host:8786``), whose workers see ``out``
            under the same path; None starts workers on this machine.
        workers: processes on this machine; None: one for each graphics card if the studies may
            use one, else two. 0 computes in this process, without Dask.
        overwrite: replace another sweep, or this one from the start.
        on_progress: called after each study; raise in it to end the sweep.

    Returns:
        The dataset of :func:`workbench.studies.gather.collect`, also stored as ``out/sweep.zarr``.

    Raises:
        SweepError: a sweep that cannot be read, a folder that is in use or holds something else, a
            scheduler that does not answer, workers with another workbench.
    """
    spec = _spec(spec)
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
            key: study for key, study in spec.jobs.items() if not is_stored(place_of(folder, key))
        }
        gathered = folder / "sweep.zarr"
        if not todo and is_stored(gathered):
            dataset = reopened(gathered)
            if not dataset.attrs["failed"]:
                return dataset
        tell = _teller(spec, todo, on_progress)
        if not todo:
            pass
        elif workers == 0 and scheduler is None:
            tell("", "")
            for key, study in todo.items():
                tell(*compute(key, study.to_json(), str(folder), workbench_version()))
        else:
            _distribute(todo, folder, scheduler, workers, tell)
        dataset = collect(spec, folder)
        write(dataset, gathered, overwrite=True)
        return dataset


def _spec(spec: Any) -> SweepSpec:
    if isinstance(spec, SweepSpec):
        return spec
    return SweepSpec.load(spec) if isinstance(spec, str | Path) else SweepSpec.of(spec)


def _teller(spec: SweepSpec, todo: Mapping[str, Study], on_progress) -> Callable[..., None]:
    """Counts what is done and passes it on: ``tell(key, status, dashboard)``."""
    before, began = len(spec.jobs) - len(todo), time.monotonic()
    count = {"done": 0, "failed": 0}
    link = ""

    def tell(key: str, status: str, dashboard: str = "") -> None:
        nonlocal began, link
        link = dashboard or link
        if not key:
            began = time.monotonic()
        else:
            count["done"] += 1
            count["failed"] += status == "failed"
        done, left = count["done"], None
        if done:
            left = (time.monotonic() - began) / done * (len(todo) - done)
        if on_progress is not None:
            on_progress(Progress(before + done, count["failed"], len(spec.jobs), left, link))

    return tell


# ---- Dask ----------------------------------------------------------------------------------------


def _distribute(
    todo: Mapping[str, Study],
    folder: Path,
    scheduler: str | None,
    workers: int | None,
    tell: Callable[..., None],
) -> None:
    """Have the studies computed by the workers of a cluster, and tell of each that is done."""
    try:
        import dask
        from distributed import as_completed
    except ImportError as error:
        raise SweepError(
            f"{error}; a sweep on several processes needs Dask: pip install "
            "'diffusion-workbench[distributed]'. workers=0 computes in this process."
        ) from None
    version = workbench_version()
    with (
        dask.config.set(CONFIG),
        _client(scheduler, _local_workers(todo, workers)) as client,
    ):
        _check_workers(client, version)
        tell("", "", client.dashboard_link or "")
        texts = [study.to_json() for study in todo.values()]
        session = time.time_ns()  # another session's keys may still be known to a lasting scheduler
        futures = client.map(
            compute,
            list(todo),
            texts,
            [str(folder)] * len(todo),
            [version] * len(todo),
            [plugins()] * len(todo),
            key=[f"study-{session}-{key}" for key in todo],
            pure=False,
            retries=0,
        )
        of = dict(zip((future.key for future in futures), todo, strict=True))
        try:
            for future in as_completed(futures, loop=client.loop):
                key = of[future.key]
                tell(*_outcome(future, key, todo[key], folder, scheduler, version))
                future.release()
        except BaseException:
            with contextlib.suppress(Exception):
                client.cancel(futures, force=True)
            raise


def _outcome(future, key: str, study: Study, folder: Path, scheduler, version: str):
    """What became of one study."""
    from distributed import KilledWorker

    if future.status == "finished":
        key, status = future.result()
        if status.startswith("version"):
            raise SweepError(_other_versions(version, {status.partition(" ")[2]}))
        return key, status
    if future.status in ("cancelled", "lost"):
        raise SweepError(
            f"the scheduler {scheduler or ''} was lost; what is stored is kept. Run the same "
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


def _local_workers(todo: Mapping[str, Study], workers: int | None) -> list[dict[str, str]]:
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


def _warm_up() -> None:
    """Import what a worker needs once, in a process that the workers are forked from.

    A worker starts, and starts again, in a fraction of a second. Nothing else has run in that
    process: no thread, no graphics card.
    """
    if not FORKS:
        return
    import multiprocessing
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(
        ["distributed", "dask.array", "xarray.backends.zarr", "zarr", "workbench.studies.worksite"]
    )
    given = {name: os.environ.get(name) for name in THREADS}
    try:
        os.environ.update(dict.fromkeys((k for k, value in given.items() if value is None), "1"))
        forkserver.ensure_running()
    finally:
        for name in (name for name, value in given.items() if value is None):
            os.environ.pop(name, None)


@contextlib.contextmanager
def _client(scheduler: str | None, environments: list[dict[str, str]]) -> Iterator[Any]:
    """A client of the scheduler, or of a cluster of this machine's own that ends with it."""
    import logging

    from distributed import Client, Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    if scheduler is not None:
        reason = ""
        try:
            client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            reason = _last(error)
            traceback.clear_frames(error.__traceback__)
        if reason:
            # Now, and not amid the start of another client, where it would wait for itself.
            gc.collect()
            raise SweepError(
                f"no scheduler answers at {scheduler!r} ({reason}); start one with 'dask "
                "scheduler' and workers with 'dask worker ADDRESS', or leave --scheduler out."
            )
        with client:
            yield client
        return
    _warm_up()
    common = {"nthreads": 1, "host": "127.0.0.1", "dashboard": False}
    common |= {"memory_limit": MEMORY_LIMIT // len(environments), "silence_logs": logging.ERROR}
    common |= {"preload": [UNDISTURBED]}
    options = {"host": "127.0.0.1", "port": 0, "dashboard": True}
    try:
        cluster = SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": {**options, "dashboard_address": "127.0.0.1:0"},
            },
            workers={
                i: {"cls": Nanny, "options": {**common, "env": environment}}
                for i, environment in enumerate(environments)
            },
            silence_logs=logging.ERROR,
        )
    except (OSError, RuntimeError, TimeoutError) as error:
        raise SweepError(
            f"the local workers did not start: {_last(error)}. In a script, call wb.sweep under "
            "'if __name__ == \"__main__\":'."
        ) from None
    with cluster, Client(cluster, timeout=PATIENCE, set_as_default=False) as client:
        yield client


def _last(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else repr(error)).rstrip(".")


def _check_workers(client: Any, version: str) -> None:
    """Refuse a cluster without workers, or with workers of another workbench."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise SweepError(
            f"the scheduler has no workers, and none came within {PATIENCE:g} s; start some with "
            "'dask worker ADDRESS'."
        ) from None
    said = client.run(_asked(), on_error="return")
    others = {str(found) for found in said.values()} - {version}
    if others:
        raise SweepError(_other_versions(version, others))


def _asked() -> Callable[[], str]:
    """A function that is sent by value, since a worker need not have this very module."""

    def ask() -> str:
        try:
            from workbench import __version__
        except ImportError:
            return "none"
        return __version__

    return ask


def _other_versions(version: str, others: set[str]) -> str:
    return (
        f"this is workbench {version}, and workers have {', '.join(sorted(others))}; install the "
        "same version on both sides."
    )
