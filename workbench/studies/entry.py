"""One run or sweep of a folder of results, read from its metadata alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from workbench.studies.flat import flattened
from workbench.studies.spec import Study
from workbench.studies.store import (
    StoreError,
    _check_format,
    attributes,
    beside,
    manifest,
    text_of,
)

#: What a listing says of a study.
FIELDS = ("data", "denoiser", "process", "sampler", "grid", "steps", "samples")

#: Most files whose sizes are added up; a sweep may have millions.
MOST_FILES = 20_000

#: Most values of an axis that are searched.
MOST_VALUES = 200

#: Deepest nesting of a study that is listed.
DEEPEST = 32

#: What of an entry may be read; a link in its place is not followed.
INSIDE = ("zarr.json", "manifest", "sweep.json", "sweep.zarr", "runs", "failures")


@dataclass(frozen=True)
class Entry:
    """One run or sweep of a library.

    Attributes:
        name: in the folder.
        kind: "run" or "sweep".
        hash: of the study or of the sweep.
        study: the study, or a sweep's base, as plain values.
        nfe, seconds, device, versions: of a run; None and empty where it says nothing.
        written: when it was last changed [s since 1970].
        size: bytes on disk; ``more`` if that is not all, because there are too many files to count.
        state: "whole", "part" (it can be continued), "failed" (studies of a sweep) or "broken".
        problem: a sentence where it is not whole.
        axes: of a sweep, the number of values by name; points: their product.
        values: of a sweep, what its studies hold along its axes, as texts by entry.
    """

    name: str
    kind: str
    hash: str = ""
    study: Mapping[str, Any] = field(default_factory=dict)
    nfe: int | None = None
    seconds: float | None = None
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    written: float = 0.0
    size: int = 0
    more: bool = False
    state: str = "whole"
    problem: str = ""
    axes: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def points(self) -> int:
        return math.prod(self.axes.values()) if self.axes else 0

    @property
    def summary(self) -> dict[str, Any]:
        """The study by :data:`FIELDS`."""
        flat = flattened(self.study)
        flat |= {"steps": flat.get("grid.steps"), "samples": flat.get("seeds.count")}
        return {name: flat[name] for name in FIELDS if flat.get(name) is not None}

    @property
    def date(self) -> datetime:
        try:
            return datetime.fromtimestamp(self.written)
        except (OSError, ValueError, OverflowError):  # a clock that was wrong
            return datetime.fromtimestamp(0)

    def checked(self) -> Study:
        """The study.

        Raises:
            StudyError: one that this workbench does not read.
        """
        return Study(**self.study)


def yaml_of(entry: Entry) -> str:
    """The study of an entry as a file."""
    return yaml.safe_dump(dict(entry.study), sort_keys=False, allow_unicode=True)


def kind_of(place: Path) -> str | None:
    """What a name in the folder stands for, or None if it is no result."""
    if place.suffix == ".nc":
        return "run" if place.is_file() else None
    if (place / "sweep.json").exists():
        return "sweep"
    return "run" if place.suffix == ".zarr" or (place / "zarr.json").exists() else None


def stamp(place: Path) -> tuple:
    """What changes whenever an entry does."""
    return (*(_changed(place / name) for name in ("", *INSIDE)), writer(place))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def writer(place: Path) -> int | None:
    """The process that says it is writing there, if it is alive on this machine."""
    for lock in (beside(place, "lock"), place / ".lock"):
        try:
            process = int(text_of(lock))
            os.kill(process, 0)
        except PermissionError:
            return process
        except (OSError, ValueError, OverflowError):
            continue
        return process
    return None


def read_entry(place: Path, kind: str) -> Entry:
    """Read an entry; one that cannot be read says why."""
    stamps = [t for t in stamp(place)[:-1] if t]
    size, more = _size(place)
    facts = {"written": max(stamps, default=0) / 1e9, "size": size, "more": more}
    try:
        for name in INSIDE:
            if (place / name).is_symlink():
                raise StoreError(f"{place} holds a link, {name}; it is not followed.")
        found = _cleaned(_sweep(place) if kind == "sweep" else _run(place))
    except StoreError as error:
        found = {"state": "broken", "problem": str(error)}
    except Exception as error:  # whatever there is, it spoils one entry and not the list
        found = {"state": "broken", "problem": f"{place} cannot be read: {repr(error)[:200]}."}
    if found.get("state", "whole") == "part" and (process := writer(place)):
        found["problem"] = f"{place} is being written by process {process}."
    return Entry(_cleaned(place.name), kind, **{**facts, **_cleaned(found)})


def unlisted(place: Path, problem: str) -> Entry:
    """An entry that is not looked into, and why."""
    kind = "run" if place.suffix in (".zarr", ".nc") else "sweep"
    return Entry(_cleaned(place.name), kind, state="broken", problem=_cleaned(problem))


def _cleaned(value: Any, depth: int = 0) -> Any:
    """Plain values that can be shown and sent: texts without halves of characters, of bounded
    depth."""
    if depth > DEEPEST:
        raise StoreError("what it says of itself is nested too deeply.")
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_cleaned(k, depth): _cleaned(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(one, depth + 1) for one in value]
    return value


def _run(place: Path) -> dict[str, Any]:
    attrs = _netcdf_attributes(place) if place.suffix == ".nc" else attributes(place)
    if "study" not in attrs:
        raise StoreError(f"{place} names no study: it was not written by workbench run.")
    _check_format(place, attrs)
    study = json.loads(attrs["study"])
    if not isinstance(study, dict):
        raise StoreError(f"{place} names no study: what it holds in its place is no mapping.")
    names = ("workbench", "torch", "numpy", "python")
    found = {
        "hash": str(attrs.get("study_hash", "")),
        "study": study,
        "nfe": _number(attrs.get("nfe"), int),
        "seconds": _number(attrs.get("seconds"), float),
        "device": str(attrs.get("device", "")),
        "versions": {name: str(attrs[name]) for name in names if name in attrs},
    }
    if not attrs.get("complete", True):
        told = manifest(place)
        found |= {
            "state": "part",
            "problem": f"{place} is not whole: {len(told['whole'])} of {told['chunks']} chunks are "
            "there; the command that wrote it, given again, goes on.",
            "nfe": told.get("nfe") or None,
            "seconds": told.get("seconds") or None,
        }
    elif "incomplete" in attrs:
        said = f"{place} was stopped: {attrs['incomplete']}"
        found |= {"state": "failed", "problem": said}
    return found


def _netcdf_attributes(place: Path) -> dict[str, Any]:
    import xarray

    with xarray.open_dataset(place, decode_cf=False) as dataset:
        return {k: v.item() if hasattr(v, "item") else v for k, v in dataset.attrs.items()}


def _sweep(place: Path) -> dict[str, Any]:
    said = json.loads(text_of(place / "sweep.json"))
    axes = {name: len(values) for name, values in said["grid"].items()}
    lists = said["list"] if isinstance(said["list"], dict) else {"case": said["list"]}
    axes |= {name: len(cases) for name, cases in lists.items() if cases}
    values = {
        name: [_text(one) for one in told[:MOST_VALUES]] for name, told in said["grid"].items()
    }
    for cases in lists.values():
        for case in cases[:MOST_VALUES]:
            for name, value in case.items():
                values.setdefault(name, []).append(_text(value))
    found = {
        "values": values,
        "hash": str(said["sweep_hash"]),
        "study": dict(said["study"]),
        "versions": {"workbench": str(said["workbench"])},
        "axes": axes,
    }
    failed = _count(place / "failures", ".json")
    stored = _count(place / "runs", ".zarr")
    if not (place / "sweep.zarr").is_dir():
        problem = (
            f"{place} has not ended: {stored} studies are stored, {failed} failed, of "
            f"{math.prod(axes.values())} points; the same command goes on."
        )
        return found | {"state": "part", "problem": problem}
    if failed:
        problem = f"{failed} of the studies of {place} failed; the same command tries again."
        return found | {"state": "failed", "problem": problem}
    return found


def _text(value: Any) -> str:
    """A value of an axis: a name with what it was changed by."""
    if isinstance(value, Mapping):
        return " ".join(
            f"{key}={told}" if key != "name" else str(told) for key, told in value.items()
        )
    return str(value)


def _count(folder: Path, end: str) -> int:
    try:
        return sum(name.endswith(end) and name[0] != "." for name in os.listdir(folder))
    except OSError:
        return 0


def _number(value: Any, kind: type) -> Any:
    return kind(value) if isinstance(value, int | float) and math.isfinite(value) else None


def files(place: Path) -> Iterator[os.DirEntry]:
    """The files of an entry; links lead elsewhere and are left out."""
    if place.is_file():
        with os.scandir(place.parent) as there:
            yield from (one for one in there if one.name == place.name)
        return
    waiting = [str(place)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as there:
                inside = sorted(there, key=lambda one: one.name)
        except OSError:  # it went away
            continue
        for one in inside:
            if one.is_dir(follow_symlinks=False):
                waiting.append(one.path)
            elif one.is_file(follow_symlinks=False):
                yield one


def _size(place: Path) -> tuple[int, bool]:
    total = 0
    for count, file in enumerate(files(place), 1):
        try:
            total += file.stat(follow_symlinks=False).st_size
        except OSError:
            continue
        if count == MOST_FILES:
            return total, True
    return total, False
