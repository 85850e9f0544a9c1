"""A folder of results: what is in it, read from metadata alone.

An entry is a run (a Zarr store or a NetCDF file) or the folder of a sweep, known by its name in the
folder. Names come from listing the folder and nothing else, so whatever a caller asks for by name
is in it. One that cannot be read is listed with the reason.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from workbench.studies.chunked import keep
from workbench.studies.entry import (
    Entry,
    files,
    kind_of,
    read_entry,
    stamp,
    unlisted,
    yaml_of,
)
from workbench.studies.flat import flattened
from workbench.studies.gather import so_far
from workbench.studies.glance import Glance, glance
from workbench.studies.limits import Report, claim
from workbench.studies.run import build, plan
from workbench.studies.spec import Study
from workbench.studies.store import (
    UNREADABLE,
    Held,
    StoreError,
    beside,
    check_plain,
    locked,
    opened,
    read,
    text_of,
)
from workbench.studies.sweep import SweepSpec

if TYPE_CHECKING:
    import xarray

#: Where deleted entries go, in the folder itself.
TRASH = ".trash"

#: Entries by their names, each with what changes whenever it does.
Known = dict[str, tuple[tuple | None, Entry]]

#: Numbers of a block while two runs are compared.
BLOCK = 2**22


@dataclass(frozen=True)
class Comparison:
    """Two entries beside each other.

    Attributes:
        fields: entries of the two studies that differ, in their flat form, each with both values.
        rms: root mean square difference of the final states, per number; None where there is none.
        note: what ``rms`` is of, or why there is none.
        warnings: in sentences, why the two are hardly comparable.
    """

    fields: Mapping[str, tuple[Any, Any]]
    rms: float | None
    note: str
    warnings: tuple[str, ...] = ()


def glances(folder: Path, names: Sequence[str], report: Report) -> dict[str, Glance]:
    """What a glance at each of some entries of a folder sees."""
    library, found = Library(folder), {}
    for done, name in enumerate(names):
        report("looking at runs", done / len(names))
        with suppress(StoreError):  # it went away
            found[name] = library.glance(name)
    return found


#: Folders that this process has read.
_read: dict[Path, Library] = {}


def look(folder: Path, report: Report) -> Known:
    """What is in a folder; a process that has looked before reads what has changed."""
    report("looking at the folder", 0.0)
    library = _read.setdefault(folder, Library(folder))
    library.entries()
    return library._known


def beside_each_other(folder: Path, a: str, b: str, report: Report) -> Comparison:
    """See :meth:`Library.compare`."""
    report("comparing", 0.0)
    return Library(folder).compare(a, b)


def packed(folder: Path, name: str, report: Report) -> bytes:
    """The content of :meth:`Library.zipped`, written to a file first."""
    report("packing", 0.0)
    with tempfile.TemporaryFile() as file:
        Library(folder).zipped(name, file)
        file.seek(0)
        return file.read()


def deleted(folder: Path, name: str, report: Report) -> Path:
    """What :meth:`Library.delete` does; where the entry is now."""
    report("moving", 0.0)
    return Library(folder).delete(name)


def saved(folder: Path, study: Study, report: Report) -> str:
    """Carry out ``study`` into ``folder``, which is made if it is not there; the entry's name.

    The name is that of its data and its sampler with the beginning of its hash, so the same study
    is saved once. Raises as :func:`workbench.studies.chunked.keep`.
    """
    report("preparing", 0.0)
    made = plan(build(study))
    claim(made.bytes_held, study.seeds.count, made.bytes_fixed)
    name = f"{study.data.name}-{study.sampler.name}-{study.hash[:8]}.zarr"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error}.") from None
    keep(study, folder / name, lambda i, n: report("sampling", i / n)).close()
    return name


def default_folder() -> Path:
    """``WORKBENCH_RESULTS``, or ``results`` in the working directory."""
    return Path(os.environ.get("WORKBENCH_RESULTS") or "results")


class Library:
    """The runs and sweeps of a folder; an empty one if the folder is not there.

    What was read stays in memory until the entry changes, so that listing again is fast.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._known: Known = {}
        self._seen: dict[str, tuple[tuple, Glance]] = {}

    def entries(self) -> list[Entry]:
        """Every entry, the newest first.

        Raises:
            StoreError: a folder that cannot be listed.
        """
        found = {}
        for name, place in self._places():
            if problem := self._unsafe(name, place):
                found[name] = (None, unlisted(place, problem))
                continue
            kind = kind_of(place)
            if kind is None:
                continue
            key = (kind, stamp(place))
            if self._known.get(name, (None,))[0] != key:
                found[name] = (key, read_entry(place, kind))
            else:
                found[name] = self._known[name]
        return self.take(found)

    def take(self, known: Known) -> list[Entry]:
        """Every entry of what :func:`look` saw, the newest first."""
        self._known = known
        listed = [entry for _, entry in known.values()]
        return sorted(listed, key=lambda entry: (-entry.written, entry.name))

    def entry(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            StoreError: there is none.
        """
        for entry in self.entries():
            if entry.name == name:
                return entry
        raise StoreError(f"{self.folder} holds no run or sweep named {str(name)[:80]!r}.")

    def place(self, name: str) -> Path:
        """Where the entry of that name is; a name of nothing in the folder has no place."""
        return self.folder / self.entry(name).name

    def glance(self, name: str) -> Glance:
        """A run's picture and error; of a sweep the smallest error of its studies."""
        place = self.place(name)
        return glance(place) if kind_of(place) == "run" else self._smallest(name)

    def seen(self) -> dict[str, Glance]:
        """What glances at entries saw that have not changed since, by their names."""
        return {
            name: self._seen[name][1]
            for name, (key, _) in self._known.items()
            if key is not None and self._seen.get(name, (None,))[0] == key
        }

    def see(self, glances: Mapping[str, Glance]) -> None:
        """Remember what glances saw, until the entries change."""
        for name, one in glances.items():
            if name in self._known:
                self._seen[name] = (self._known[name][0], one)

    def _smallest(self, name: str) -> Glance:
        """A sweep by the smallest error of its studies."""
        try:
            table = self.table(name)
            errors = table["output.w2_exact"].values.astype(float)
        except (StoreError, KeyError, ValueError, TypeError):
            return Glance()
        errors = errors[np.isfinite(errors)]
        if not errors.size:
            return Glance(told="None of its studies has a known error.")
        return Glance(error=float(errors.min()), told="Smallest W2 of its studies [x]")

    def delete(self, name: str) -> Path:
        """Move an entry to ``.trash`` in the folder; where it is now.

        Raises:
            StoreError: there is none, it is being written, or it cannot be moved.
        """
        entry = self.entry(name)
        place = self.folder / entry.name
        trash = self.folder / TRASH
        gone = trash / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}-{entry.name}"
        locks = [beside(place, "lock")]
        if entry.kind == "sweep":
            # That of the command, and of workers that may have outlived theirs.
            locks += [place / ".lock", *(place / "runs").glob(".*.lock")]
        if entry.state == "broken" and not os.path.lexists(place):
            raise StoreError(f"{place} cannot be deleted from here: {entry.problem}")
        try:
            with ExitStack() as held:
                for lock in locks:
                    held.enter_context(locked(lock, wait=False))
                trash.mkdir(exist_ok=True)
                place.rename(gone)
        except Held:
            raise StoreError(
                f"{place} is being written, so it is not deleted; wait until that has ended."
            ) from None
        except OSError as error:
            raise StoreError(f"{place} cannot be deleted: {error}.") from None
        for lock in locks[1:]:
            (gone / lock.relative_to(place)).unlink(missing_ok=True)
        return gone

    def compare(self, a: str, b: str) -> Comparison:
        """In what two entries differ.

        Raises:
            StoreError: an entry that is not there or cannot be read.
        """
        one, other = self.entry(a), self.entry(b)
        for entry in (one, other):
            if entry.state == "broken":
                raise StoreError(entry.problem)
        first, second = (
            flattened(entry.study)
            | {f"axis {name}": f"{count} values" for name, count in entry.axes.items()}
            for entry in (one, other)
        )
        pairs = {key: (first.get(key), second.get(key)) for key in first | second}
        fields = {key: (a, b) for key, (a, b) in pairs.items() if a != b}
        if one.kind != "run" or other.kind != "run":
            return Comparison(fields, None, "Final states are compared of two runs.")
        apart = _rms(self.folder / one.name, self.folder / other.name)
        return Comparison(fields, *apart, _warnings(fields, one, other))

    def table(self, name: str) -> xarray.Dataset:
        """What a sweep measured over its axes, without the final states; or has until now.

        Raises:
            StoreError: not a sweep, or one that cannot be read.
        """
        import xarray

        entry = self.entry(name)
        place = self.folder / entry.name
        if entry.kind != "sweep":
            raise StoreError(entry.problem or f"{place} is not a sweep.")
        check_plain(place)
        if not (place / "sweep.zarr").is_dir():
            try:
                said = json.loads(text_of(place / "sweep.json"))
                asked = {key: said[key] for key in ("sweep", "study", "grid", "list")}
                return so_far(SweepSpec.of(asked), place)
            except UNREADABLE as error:
                raise StoreError(f"{place / 'sweep.json'} cannot be read: {error}.") from None
        try:
            files = opened(place / "sweep.zarr")
            found = xarray.open_zarr(files, consolidated=False, chunks=None)
            return found.drop_vars("final", errors="ignore").load()
        except UNREADABLE as error:
            raise StoreError(f"{place / 'sweep.zarr'} cannot be read: {error}.") from None

    def failures(self, name: str, most: int = 200) -> list[dict[str, Any]]:
        """Why studies of a sweep failed: ``hash``, ``reason`` and ``study`` of each."""
        found = []
        for file in sorted((self.place(name) / "failures").glob("*.json"))[:most]:
            try:
                one = json.loads(text_of(file))
                told = {"hash": file.stem, "reason": str(one["reason"]), "study": one["study"]}
            except UNREADABLE as error:
                told = {"hash": file.stem, "reason": f"cannot be read: {error}", "study": {}}
            found.append(told)
        return found

    def zipped(self, name: str, into: IO[bytes]) -> None:
        """Write a zip file: the entry, and its study as ``study.yaml``."""
        entry = self.entry(name)
        place = self.folder / entry.name
        if entry.state == "broken" and place.is_symlink():
            raise StoreError(entry.problem)
        with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as archive:  # it is compressed already
            for file in files(place):
                archive.write(file.path, Path(file.path).relative_to(self.folder).as_posix())
            if entry.study:
                archive.writestr("study.yaml", yaml_of(entry))

    def _unsafe(self, name: str, place: Path) -> str:
        """Why an entry is not looked into; empty where it may be."""
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            return f"{place} has a name that is no UTF-8; rename it to see what it is."
        if place.is_symlink():
            try:
                inside = place.resolve().is_relative_to(self.folder.resolve())
            except (OSError, RuntimeError):
                inside = False
            if not inside:
                return f"{place} is a link out of the folder; it is not followed."
        return ""

    def _places(self) -> Iterator[tuple[str, Path]]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be listed: {error}.") from None
        for name in names:
            if not name.startswith("."):
                yield name, self.folder / name


def _warnings(fields: Mapping[str, Any], one: Entry, other: Entry) -> tuple[str, ...]:
    """Why two runs are hardly comparable."""
    said = []
    sections = {key.partition(".")[0] for key in fields}
    if "data" in sections:
        said.append("They are of different data, so that their ends have no reason to agree.")
    if "seeds.first" in fields:
        said.append("Their seeds differ: samples of one rank began from different noise.")
    elif "seeds.count" in fields:
        counts = [str(flattened(entry.study).get("seeds.count")) for entry in (one, other)]
        said.append(f"They have {' and '.join(counts)} samples: only the common seeds are matched.")
    if "noise" in fields:
        said.append("Their noise is drawn in different ways.")
    if "process" in sections:
        said.append("Their processes differ: compare them at one rho, not at one time.")
    for entry in (one, other):
        if entry.state != "whole":
            said.append(f"{entry.name} is not whole.")
    return tuple(said)


def _rms(a: Path, b: Path) -> tuple[float | None, str]:
    """Of the final states of two runs, block by block."""
    for place in (a, b):
        check_plain(place)
    one, other = read(a, partial=True), read(b, partial=True)
    with one, other:
        bare = [place for place, each in ((a, one), (b, other)) if "final" not in each]
        if bare:
            return None, f"{bare[0].name} holds no final states."
        x, y = one["final"], other["final"]
        if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
            return None, "The final states are not numbers."
        if x.shape != y.shape:
            shapes = [" x ".join(map(str, each.shape)) for each in (x, y)]
            return None, f"The final states have other shapes: {shapes[0]} and {shapes[1]}."
        if not x.size:
            return None, "There are no final states."
        rows = max(1, BLOCK * len(x) // x.size)
        squares = 0.0
        for start in range(0, len(x), rows):
            block = slice(start, start + rows)
            apart = x[block].values.astype(np.float64) - y[block].values.astype(np.float64)
            squares += float(np.square(apart).sum())
        same = np.array_equal(one["seed"].values, other["seed"].values)
    note = "Sample by sample, from the same seeds." if same else "The seeds differ."
    rms = math.sqrt(squares / x.size) if squares == squares else math.nan
    if not math.isfinite(rms):
        return None, "Final states are not finite."
    return rms, note
