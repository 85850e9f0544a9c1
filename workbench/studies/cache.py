"""Results shared by whoever asks for the same study: pages, notebooks, commands, their processes.

An entry is a folder of plain arrays, named by the study's hash and by what else the numbers hang on
(versions, device). It appears by a rename, is read by mapping it into memory, and stays readable
for who has mapped it when it is removed. Asked for by many at once, a study is computed once: the
first holds a lock, the others wait for it. An entry whose digests do not agree is made anew. When
all entries together exceed the budget, those that were not used for the longest time go.

The folder is ``WORKBENCH_CACHE``, or the platform's own for caches.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.lenses.base import OnStep
from workbench.studies.digests import digest_of
from workbench.studies.run import resolved, run
from workbench.studies.spec import Study
from workbench.studies.store import StoreError, locked, remove

if TYPE_CHECKING:
    import xarray

#: Bytes that all entries together may take.
BUDGET = 2_000_000_000

#: Version of the entries.
LAYOUT = 2

#: Entries that this process has compared with what was written, by their folders.
_looked: dict[Path, tuple[int, int]] = {}


def default_folder() -> Path:
    """Where results are kept, unless ``WORKBENCH_CACHE`` says otherwise."""
    if chosen := os.environ.get("WORKBENCH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "diffusion-workbench"


def fetch(study: Study, make: Callable[[Study], xarray.Dataset]) -> xarray.Dataset:
    """The result of ``study`` from the shared cache, or ``make(study)``, which is then kept.

    What ``make`` gives must be a function of the study alone: the study's hash is its key.
    """
    return Cache().fetch(study, make)


def cached_run(study: Study, on_step: OnStep | None = None) -> xarray.Dataset:
    """:func:`workbench.run`, unless somebody has run ``study`` before."""
    return fetch(study, lambda study: run(study, on_step))


class Cache:
    """Results in a folder, by the study they are of; any number of processes may share it.

    Args:
        folder: None is that of :func:`default_folder`.
        budget: bytes that all entries together may take; a larger result is not kept.

    Raises:
        StoreError: the folder cannot be made.
    """

    def __init__(self, folder: Path | str | None = None, budget: int = BUDGET) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self.budget = budget
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the cache {self.folder} cannot be made: {error}. Say where results may be kept: "
                "WORKBENCH_CACHE=folder."
            ) from None

    def fetch(self, study: Study, make: Callable[[Study], xarray.Dataset]) -> xarray.Dataset:
        """As :func:`fetch`."""
        key = _key(study)
        if (found := self._open(key)) is not None:
            return found
        with locked(self.folder / f"{key}.lock"):
            if (found := self._open(key)) is not None:  # made while this one waited
                return found
            remove(self.folder / key)  # damaged
            made = make(study)
            if made.nbytes <= self.budget:
                # No space, say: the result is there all the same.
                with suppress(OSError, ValueError, TypeError):
                    self._keep(key, made)
            return made

    def open(self, study: Study) -> xarray.Dataset | None:
        """The result of ``study`` if it is here. Its arrays may be changed: the entry is not."""
        return self._open(_key(study))

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Remove all entries."""
        for _, _, place in self._entries():
            self._drop(place)

    # -- entries ---------------------------------------------------------------------------------

    def _open(self, key: str) -> xarray.Dataset | None:
        import xarray

        place = self.folder / key
        try:
            said = json.loads((place / "entry.json").read_text(encoding="utf-8"))
            self._look(place, said["digests"])
            parts: dict[str, dict] = {"coords": {}, "data_vars": {}}
            for number, (kind, name, dims, attrs) in enumerate(said["variables"]):
                parts[kind][name] = (dims, _mapped(place / f"{number}.npy"), attrs)
            dataset = xarray.Dataset(**parts, attrs=said["attrs"])
            os.utime(place / "entry.json")  # used now
        except (OSError, ValueError, KeyError, TypeError):  # not there, going, or damaged
            return None
        return dataset

    def _look(self, place: Path, digests: list[str]) -> None:
        """Compare an entry's arrays with what was written, once in a process.

        Raises:
            ValueError: one is not.
        """
        found = place.stat()
        stamp = (found.st_ino, found.st_mtime_ns)
        if _looked.get(place) == stamp:
            return
        for number, expected in enumerate(digests):
            if digest_of(place / f"{number}.npy") != expected:
                raise ValueError(f"{number}.npy is not what was written")
        _looked[place] = stamp

    def _keep(self, key: str, dataset: xarray.Dataset) -> None:
        place = self.folder / key
        partial = self.folder / f"{key}.{uuid.uuid4().hex[:8]}.partial"
        variables, digests = [], []
        try:
            partial.mkdir()
            for number, (name, variable) in enumerate(dataset.variables.items()):
                kind = "coords" if name in dataset.coords else "data_vars"
                variables.append([kind, name, list(variable.dims), _plain(variable.attrs)])
                np.save(partial / f"{number}.npy", variable.values, allow_pickle=False)
                digests.append(digest_of(partial / f"{number}.npy"))
            said = {"variables": variables, "attrs": _plain(dataset.attrs), "digests": digests}
            (partial / "entry.json").write_text(json.dumps(said), encoding="utf-8")
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        with locked(self.folder / "budget.lock"):
            self._make_room(place)

    def _make_room(self, newest: Path) -> None:
        for leftover in self.folder.glob("*.partial"):  # of processes that died
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > 3600:
                    remove(leftover)
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, place in entries:
            if total <= self.budget:
                return
            if place != newest:
                self._drop(place)
                total -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and folder of each."""
        found = []
        for place in self.folder.iterdir():
            with suppress(OSError):  # gone meanwhile
                if (place / "entry.json").is_file():
                    size = sum(file.stat().st_size for file in place.iterdir())
                    found.append(((place / "entry.json").stat().st_mtime, size, place))
        return found

    def _drop(self, place: Path) -> None:
        """Remove an entry; it is gone at once, whatever happens to this process."""
        gone = self.folder / f"{place.name}.{uuid.uuid4().hex[:8]}.partial"
        with suppress(OSError):
            place.rename(gone)
            (gone / "entry.json").unlink()
        remove(gone)


def _key(study: Study) -> str:
    """The study, and what else its numbers hang on."""
    from workbench import __version__

    around = (LAYOUT, __version__, torch.__version__, np.__version__, str(resolved(study.device)))
    return f"{study.hash}-{hashlib.sha256(repr(around).encode()).hexdigest()[:12]}"


def _mapped(file: Path) -> np.ndarray:
    """An array whose file is read when it is looked at; changes to it stay in memory."""
    try:
        return np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))
    except ValueError:  # nothing in it to be mapped
        return np.load(file, allow_pickle=False)


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes that JSON holds as they are."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in attrs.items()}
