"""The folder of a sweep, and one study of it carried out: what a worker does.

Everything about a sweep is in one folder::

    sweep.json             the sweep
    runs/<hash>.zarr       one store per study, which appears when it is whole
    runs/.<hash>.zarr      one of many chunks that is not
    failures/<hash>.json   why a study failed: sentence and traceback; tried again the next time
    events.jsonl           what the workers did, line by line
    sweep.zarr             the labelled dataset of all

A store that exists is never computed again, so the same command after any crash goes on where the
last one ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from workbench import __version__
from workbench.registry import use_plugins
from workbench.studies.chunked import keep
from workbench.studies.gather import measures, place_of
from workbench.studies.run import build, plan, run
from workbench.studies.spec import Study
from workbench.studies.store import (
    Held,
    attributes,
    is_whole,
    locked,
    read,
    remove,
    replace_text,
    set_attributes,
    write,
)
from workbench.studies.sweep import SweepError, SweepSpec


def check_folder(folder: Path, spec: SweepSpec, overwrite: bool) -> None:
    """Refuse, before any work is done, a folder where the sweep cannot go."""
    if not folder.exists():
        if not folder.parent.is_dir():
            raise SweepError(f"the folder {folder.parent} does not exist; make it first.")
        return
    if not folder.is_dir():
        raise SweepError(f"{folder} is a file; a sweep needs a folder.")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not there:
        return
    if "sweep.json" not in there:
        raise SweepError(f"{folder} is not empty and holds no sweep, so it is not used.")
    if overwrite:
        return
    try:
        stored = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        same, version = stored["sweep_hash"] == spec.hash, stored["workbench"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{folder / 'sweep.json'} cannot be read ({error}); choose another folder or say "
            "--overwrite."
        ) from None
    if not same:
        raise SweepError(f"{folder} holds another sweep; choose another folder or say --overwrite.")
    if version != __version__:
        raise SweepError(
            f"{folder} was begun by workbench {version}; this is {__version__}, which may "
            "give other numbers. Choose another folder or say --overwrite."
        )


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the folder; the system gives it free when the process ends, however it ends."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise SweepError(f"{folder} cannot be made: {error}.") from None
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except Held:
        who = "another sweep command"
        with contextlib.suppress(OSError, ValueError):
            who += f", process {int((folder / '.lock').read_text(encoding='utf-8'))}"
        raise SweepError(
            f"{folder} is in use by {who}; wait until it ends, or choose another folder."
        ) from None


def prepare(folder: Path, spec: SweepSpec, overwrite: bool) -> None:
    try:
        if overwrite:
            for name in ("sweep.zarr", "runs", "failures"):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            for name in ("events.jsonl", "sweep.json"):
                (folder / name).unlink(missing_ok=True)
        if not (folder / "sweep.json").exists():
            content = {"sweep_hash": spec.hash, "workbench": __version__, **spec.to_dict()}
            replace_text(folder / "sweep.json", json.dumps(content, indent=2) + "\n")
        for name in ("runs", "failures"):
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise SweepError(f"{folder} cannot be written: {error}.") from None


# ---- one study -----------------------------------------------------------------------------------


def compute(
    key: str, study: str, folder: str, version: str, plugins: tuple[str, ...] = ()
) -> tuple[str, str]:
    """Carry out one study and store it, unless it is stored already.

    Args:
        key: its hash; study: itself, as JSON.
        folder: of the sweep.
        version: of the workbench that asks.
        plugins: files that it uses, under the same path here.

    Returns:
        ``key`` and "done", "failed", or "version ..." where this workbench is another one.
    """
    if version != __version__:
        return key, f"version {__version__}"
    here = Path(folder)
    place, failure = place_of(here, key), here / "failures" / f"{key}.json"
    # Another worker may be at it still, left over from a client or a scheduler that died.
    with locked(here / "runs" / f".{key}.lock"):
        if is_whole(place):
            return key, "done"
        remove(place)
        _note(here, "started", key)
        try:
            use_plugins(plugins)
            _store(Study(**json.loads(study)), place)
        except (Exception, SystemExit) as error:
            record_failure(here, key, study, str(error) or repr(error), traceback.format_exc())
            return key, "failed"
        _note(here, "stored", key)
        failure.unlink(missing_ok=True)
    return key, "done"


def _store(study: Study, place: Path) -> None:
    """Carry out a study into a store that appears when it is whole, its measures in it.

    One of several chunks is written chunk by chunk, in bounded memory, and is gone on with by the
    worker that comes after one that died.
    """
    setup = build(study)
    if plan(setup).chunks == 1:
        dataset = run(study)
        write(dataset.assign_attrs(measures=json.dumps(measures(setup, dataset))), place)
        return
    part = place.with_name(f".{place.name}")
    there = attributes(part) if part.exists() else {"complete": False}
    if not there.get("complete", True) or "incomplete" in there:
        keep(study, part, overwrite=True)  # what another machinery has begun is replaced
    said = {"measures": json.dumps(measures(setup, read(part)))}
    set_attributes(part, attributes(part) | said)
    part.rename(place)


def _note(folder: Path, event: str, key: str) -> None:
    """One line of ``events.jsonl``, whole whoever else writes."""
    line = {"time": time.time(), "event": event, "study": key, "process": os.getpid()}
    with open(folder / "events.jsonl", "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


def record_failure(folder: Path, key: str, study: str, reason: str, trace: str = "") -> None:
    """Say in ``failures/<hash>.json`` why a study failed."""
    content = {"reason": reason, "time": time.time(), "process": os.getpid()}
    content |= {"hash": key, "study": json.loads(study), "traceback": trace}
    text = json.dumps(content, indent=2) + "\n"
    replace_text(folder / "failures" / f"{key}.json", text)
    _note(folder, "failed", key)
