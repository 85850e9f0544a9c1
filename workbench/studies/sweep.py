"""Many studies from one file: a base, and axes along which its entries change.

A sweep file names a study and its axes::

    study: {data: digits, denoiser: {name: Gaussian}}     # or the path of a study file
    grid:                                                 # each entry an axis; all combinations
      sampler: [DDIM, Heun, {name: DPMSolverPP, order: 3}]
      grid.steps: [5, 10, 20]
    list:                                                 # one more axis; entries changed together
      - {process: VP, process.beta_max: 12.0}
      - {process: EDM}

Each point is a study of its own, known by its hash. Points that are the same study are computed
once. The axes of the result have the flat names of their entries (``sampler``, ``grid.steps``);
the axis of a list is ``case``, or the name it is given: ``list: {budget: [...]}``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from workbench.studies import plain
from workbench.studies.flat import pairs, parts_of
from workbench.studies.plain import nearest, shown
from workbench.studies.spec import Study, StudyError

#: Most points of a sweep.
MOST_POINTS = 100_000

ENTRIES = ("sweep", "study", "grid", "list")

#: What is measured of each run, by the name of its variable.
MEASURES = {
    "nfe": "denoiser evaluations",
    "seconds": "time of the run [s]",
    "rms": "RMS distance of the final states to the exact flow of their starts [x]",
    "output.w2_exact": "exact W2 of the output's law to its target, Gaussian data [x]",
    "output.energy": "energy distance of the final states to the data points [x]",
    "output.energy_se": "standard error of the energy distance [x]",
}

#: Names that the result needs for itself.
RESERVED = {*MEASURES, "status", "reason", "study", "final", "sample", "seed"}
RESERVED |= {"dim", "row", "column", "channel"}


class SweepError(ValueError):
    """A sweep that cannot be read or run; the text says why and what to do."""


@dataclass(frozen=True)
class Axis:
    """One axis: what each of its positions changes.

    Attributes:
        name: of the dimension.
        changes: for each position, entries of a study by their flat keys.
        labels: for each position, the value as it is shown.
        listed: whether several entries change together, as the file's ``list`` says.
    """

    name: str
    changes: tuple[dict[str, Any], ...]
    labels: tuple[Any, ...]
    listed: bool = False

    @property
    def keys(self) -> set[str]:
        """The flat entries that this axis changes."""
        return {
            key
            for change in self.changes
            for path, value in change.items()
            for key in (path, *dict(pairs(path, value)))
        }

    def __len__(self) -> int:
        return len(self.changes)


class SweepSpec:
    """A validated sweep.

    Args:
        study: the base: a :class:`Study`, its sections, or the path of a file.
        grid: for each entry of a study (``sampler``, ``grid.steps``, ``denoiser.of``) its values.
        list: mappings of entries that change together; or several such lists by name.

    Attributes:
        axes: those of the grid, then those of the lists.
        studies: the study of each point, in the order of the axes, the last fastest.

    Raises:
        SweepError: with a sentence that says where, what and what is allowed.
    """

    def __init__(
        self,
        study: Study | Mapping[str, Any] | str | Path | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        list: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        self.study, self._folder = _base(study, folder), folder
        self.axes = (*_grid_axes(grid), *_list_axes(list))
        _check_axes(self.axes)
        self._written = _as_json({"grid": grid or {}, "list": list or {}})
        self.studies = tuple(self._expanded())

    @classmethod
    def load(cls, path: str | Path) -> SweepSpec:
        """Read a YAML or JSON file; a study's path in it is relative to the file."""
        path = Path(path)
        try:
            text = plain.read_text(path)
        except OSError as error:
            raise SweepError(f"{error}.") from None
        return cls.parse(text, path.parent)

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> SweepSpec:
        """Read YAML or JSON text."""
        try:
            content = plain.parse(text)
        except ValueError as error:
            raise SweepError(f"the sweep is not valid YAML or JSON: {error}.") from None
        return cls.of(content, folder)

    @classmethod
    def of(cls, content: Any, folder: Path | None = None) -> SweepSpec:
        """The sweep of what a file holds."""
        if not isinstance(content, Mapping):
            raise SweepError(
                "a sweep is a mapping of study, grid and list, e.g. 'grid: {grid.steps: [5, 10]}'."
            )
        for name in content:
            if name not in ENTRIES:
                raise SweepError(
                    f"a sweep has no entry {shown(name)}{nearest(name, ENTRIES)}; its entries are "
                    f"{', '.join(ENTRIES)}."
                )
        if content.get("sweep", 1) != 1 or content.get("sweep") is True:
            raise SweepError(
                f"sweep was {shown(content['sweep'])}; this workbench reads version 1 of the "
                "format."
            )
        return cls(content.get("study"), content.get("grid"), content.get("list"), folder=folder)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values: the base with every parameter, the axes as they were given."""
        return {"sweep": 1, "study": self.study.to_dict(), **self._written}

    @property
    def hash(self) -> str:
        """What identifies the sweep: the hex SHA-256 of its canonical JSON."""
        content = self.to_dict() | {"study": json.loads(self.study.canonical)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        # The order of the dimensions, by the names that they had in version 1 of the study.
        order = json.dumps([axis.name.replace(".", "_") for axis in self.axes])
        return hashlib.sha256((text + order).encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(axis) for axis in self.axes)

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The hash of each point's study."""
        return tuple(study.hash for study in self.studies)

    @cached_property
    def jobs(self) -> dict[str, Study]:
        """The studies that differ, by their hash."""
        return dict(zip(self.hashes, self.studies, strict=True))

    def __len__(self) -> int:
        return len(self.studies)

    def __eq__(self, other) -> bool:
        return isinstance(other, SweepSpec) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{len(axis)} {axis.name}" for axis in self.axes)
        return f"<SweepSpec {sizes}: {len(self)} points, {len(self.jobs)} studies>"

    def _expanded(self) -> Iterator[Study]:
        for index in np.ndindex(self.shape):
            changes = {}
            for axis, i in zip(self.axes, index, strict=True):
                changes |= axis.changes[i]
            try:
                yield self.study.changed(changes, self._folder)
            except StudyError as error:
                where = _where(self.axes, index, error.problems)
                raise SweepError(f"{where}: {error}") from None


def _base(study: Any, folder: Path | None) -> Study:
    if isinstance(study, Study):
        return study
    try:
        if study is None:
            return Study()
        if isinstance(study, str | Path):
            return Study.load((folder or Path()) / study)
        if isinstance(study, Mapping) and all(isinstance(key, str) for key in study):
            return Study(**study)
    except StudyError as error:
        raise SweepError(f"study: {error}") from None
    raise SweepError(
        f"study was {shown(study)}; it must be a mapping of sections, or the path of a study file."
    )


def _grid_axes(grid: Any) -> list[Axis]:
    if grid is None:
        return []
    if not isinstance(grid, Mapping):
        raise SweepError(
            f"grid was {shown(grid)}; it must be a mapping of entries to lists of values, e.g. "
            "grid: {grid.steps: [5, 10]}."
        )
    axes = []
    for path, values in grid.items():
        if not isinstance(path, str):
            raise SweepError(
                f"grid has an axis {shown(path)}; an axis is an entry such as grid.steps."
            )
        if not _is_list(values):
            raise SweepError(
                f"grid axis {shown(path)} was {shown(values)}; it must be a list of one or more "
                "values."
            )
        name = ".".join(parts_of(path))
        changes = tuple({name: _plain(f"grid axis {shown(path)}", value)} for value in values)
        axes.append(Axis(name, changes, tuple(_label(value) for value in values)))
    return axes


def _list_axes(lists: Any) -> list[Axis]:
    if lists is None:
        return []
    axes = []
    for name, cases in (lists if isinstance(lists, Mapping) else {"case": lists}).items():
        place = "list" if not isinstance(lists, Mapping) else f"list {shown(name)}"
        if not isinstance(name, str) or not name.isidentifier():
            raise SweepError(f"list has the name {shown(name)}; it must be a word, e.g. budget.")
        if not _is_list(cases):
            raise SweepError(
                f"{place} was {shown(cases)}; it must be a list of one or more mappings of entries."
            )
        changes = []
        for i, case in enumerate(cases):
            if not isinstance(case, Mapping) or not case:
                raise SweepError(
                    f"{place}, position {i}, was {shown(case)}; it must be a mapping of entries, "
                    "e.g. {sampler: Heun, grid.steps: 10}."
                )
            merged = {}
            for path, value in case.items():
                if not isinstance(path, str):
                    raise SweepError(
                        f"{place}, position {i}, has an entry {shown(path)}; use a name."
                    )
                key = ".".join(parts_of(path))
                merged[key] = _plain(f"{place}, position {i}, {shown(path)}", value)
            changes.append(merged)
        axes.append(Axis(name, tuple(changes), tuple(range(len(cases))), listed=True))
    return axes


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes) and len(values) > 0


def _as_json(value: Any) -> Any:
    """Plain values: tuples and ranges as lists, NumPy's numbers as numbers."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_json(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _plain(place: str, value: Any) -> Any:
    """A value of a sweep as plain Python values; checked."""
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        return {key: _plain(place, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(place, one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        raise SweepError(
            f"{place} held {shown(value)}; it must be a value or a mapping of parameters."
        )
    if not isinstance(value, str | int | float):  # true and false are whole numbers
        raise SweepError(
            f"{place} held {shown(value)}; it must be a number, a text, true or false."
        )
    return value


def _label(value: Any) -> Any:
    """``DPMSolverPP:order=3`` of a mapping; numbers and texts as they are."""
    if isinstance(value, Mapping):
        told = {key[2:]: one for key, one in pairs("x", _as_json(value))}
        name = told.pop("", None)
        parts = [str(name)] if name is not None else []
        return ":".join([*parts, *(f"{key}={_word(one)}" for key, one in told.items())])
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return value.item() if isinstance(value, np.generic) else value


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(_label(value))


def _check_axes(axes: tuple[Axis, ...]) -> None:
    if not axes:
        raise SweepError(
            "a sweep needs an axis, e.g. 'grid: {grid.steps: [5, 10, 20]}' beside its study."
        )
    for axis in axes:
        if axis.name in RESERVED:
            raise SweepError(f"an axis cannot be named {axis.name!r}; the result needs that name.")
    for a, b in itertools.combinations(axes, 2):
        if a.name == b.name:
            raise SweepError(f"two axes are named {a.name!r}; give the list another name.")
        if twice := sorted(a.keys & b.keys):
            raise SweepError(
                f"{twice[0]} is changed by two axes, {a.name!r} and {b.name!r}; let one do it."
            )
    if (count := math.prod(map(len, axes))) > MOST_POINTS:
        sizes = " x ".join(str(len(axis)) for axis in axes)
        raise SweepError(f"the sweep has {sizes} = {count} points; at most {MOST_POINTS} are run.")


def _where(axes: tuple[Axis, ...], index: tuple[int, ...], problems: Mapping[str, str]) -> str:
    """The axes that a problem's path speaks of, each with its value; all of them if none is."""
    at = list(zip(axes, index, strict=True))
    sections = {path.partition(".")[0] for path in problems}
    near = [
        (axis, i) for axis, i in at if any(k.partition(".")[0] in sections for k in axis.changes[i])
    ]
    places = []
    for axis, i in near or at:
        kind = f"list {axis.name!r}" if axis.listed else f"grid axis {axis.name!r}"
        value = f"position {i}" if axis.listed else f"value {axis.labels[i]!r}"
        places.append(f"{kind}, {value}")
    return " and ".join(places)
