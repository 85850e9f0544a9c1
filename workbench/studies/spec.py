"""The study: one validated description of a run, spoken by files, URLs, pages, notebooks, commands.

A study names, entry by entry, registered objects and their parameters, which may be objects
themselves::

    data:     {name: ring, modes: 8}
    denoiser: {name: Perturbed, scale: 0.05, of: {name: Gaussian, rank: 20}}
    process:  {name: VP, beta_max: 20.0}
    sampler:  {name: Heun}
    grid:     {name: log_snr, steps: 32, final: stop}
    seeds:    {first: 0, count: 256}
    record:   {fields: [x, denoised], every: 1}
    lenses:   [output, {name: teleportation, levels: 20}]
    noise:    fresh
    dtype:    float32
    device:   auto

The same study has a *flat* form, the one dialect of URLs, ``--set``, sweeps, forms and notebooks:
``data=ring  data.modes=8  denoiser=Perturbed  denoiser.of=Gaussian  denoiser.of.rank=20 ...``. An
object with parameters also has a short text, ``DPMSolverPP:order=3``. Version 1 had no objects
within objects and wrote ``data_modes=8``; it is read as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl

import yaml

from workbench import registry
from workbench.params import Declared
from workbench.studies import plain
from workbench.studies.flat import flattened, parts_of, placed, query_of, salvaged
from workbench.studies.plain import nearest, part, shown
from workbench.studies.reading import Reader
from workbench.studies.sections import (
    ENTRIES,
    Choice,
    Recording,
    Seeds,
    StudyError,
    plain_of,
    standard,
)

#: The version that is written, and those that are read.
VERSION, READ = 2, (1, 2)


class Document:
    """What a YAML or JSON file of entries says, validated: base of studies and trainings.

    Args:
        sections: the entries by name; what is missing has its default.

    Attributes:
        entries: that it may have, by name.
        words: what it is called, and what it is a mapping of, with an example.

    Raises:
        StudyError: values that are not allowed, each by a sentence.
    """

    entries: ClassVar[Mapping[str, Declared]]
    words: ClassVar[tuple[str, str]]

    def __init__(self, /, **sections: Any) -> None:
        self._read(sections, None)

    @classmethod
    def _of(cls, sections: Mapping[str, Any], folder: Path | None = None) -> Self:
        made = cls.__new__(cls)
        made._read(sections, folder)
        return made

    def _read(self, sections: Mapping[str, Any], folder: Path | None) -> None:
        reader = Reader(folder)
        values = self._values(sections, reader)
        if reader.problems:
            raise StudyError(reader.problems)
        self.__dict__.update(values)

    def _values(self, sections: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
        for key in sections:
            if key not in self.entries:
                reader.tell(part(key), self._no_entry(key))
        return {
            key: reader.read(one, sections.get(key, standard(one)), key)
            for key, one in self.entries.items()
        }

    @staticmethod
    def _no_entry(key: Any) -> str:
        """The sentence on a key that belongs to no entry."""
        raise NotImplementedError

    # -- files -------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML or JSON file; the paths of files in it are relative to it."""
        try:
            text = plain.read_text(path)
        except OSError as error:
            raise StudyError({"file": f"{error}."}) from None
        return cls.parse(text, Path(path).parent)

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> Self:
        """Read YAML or JSON text.

        Args:
            folder: relative to which the paths of files are read; None: paths are refused.
        """
        name, mapping = cls.words
        try:
            content = plain.parse(text)
        except ValueError as error:
            raise StudyError({"file": f"the {name} is not valid YAML or JSON: {error}."}) from None
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise StudyError({"file": f"a {name} is a mapping of {mapping}."})
        return cls._of(content, folder)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, every entry with every parameter."""
        return {key: plain_of(getattr(self, key)) for key in self.entries}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @property
    def canonical(self) -> str:
        """Whatever decides the numbers, as text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """What identifies it: a hexadecimal SHA-256 of whatever decides the numbers."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    # -- the flat form -----------------------------------------------------------------------

    def to_flat(self) -> dict[str, Any]:
        """``{"process": "VP", "process.beta_max": 20.0, ...}``, every parameter present."""
        return flattened(self.to_dict())

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Self:
        """That of a flat mapping; what is missing has its default."""
        return cls._of(placed({}, flat, cls.entries, cls._no_entry))

    def changed(self, changes: Mapping[str, Any], folder: Path | None = None) -> Self:
        """The same with other values of some entries, in the flat form.

        Another name of an object resets its parameters; a grid keeps its number of steps and its
        end.

        Args:
            folder: relative to which the paths of files are read; None: paths are refused.

        Raises:
            StudyError: values that are not allowed.
        """
        return self._of(placed(self.to_dict(), changes, self.entries, self._no_entry), folder)


class Study(Document):
    """A validated study, a value: ``study.grid.steps``, ``study.changed({"grid.steps": 64})``.

    Arguments and errors are those of :class:`Document`.
    """

    entries = ENTRIES
    words = ("study", "sections, e.g. 'process: {name: VP}'")

    data: Choice
    denoiser: Choice
    process: Choice
    sampler: Choice
    grid: Choice
    seeds: Seeds
    record: Recording
    lenses: tuple[Choice, ...]
    noise: str
    dtype: str
    device: str

    def _values(self, sections: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
        version = sections.get("study", VERSION)
        if type(version) not in (int, str) or version not in {*READ, *map(str, READ)}:
            versions = " and ".join(map(str, READ))
            reader.tell(
                "study",
                f"study was {shown(version)}; this workbench reads versions {versions} of the "
                "format.",
            )
        values = super()._values({k: v for k, v in sections.items() if k != "study"}, reader)
        names = [lens.name for lens in values["lenses"] if lens]
        if twice := next((name for name in names if names.count(name) > 1), None):
            reader.tell("lenses", f"lenses held {twice} twice; name each lens once.")
        return values

    @staticmethod
    def _no_entry(key: Any) -> str:
        flat = isinstance(key, str) and ("." in key or "_" in key)
        known = Study().to_flat() if flat else ENTRIES
        return (
            f"a study has no entry {shown(key)}{nearest(key, known)}; its entries are "
            f"{', '.join(ENTRIES)}, and their parameters as in grid.steps."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a study is frozen; make another: study.changed({{{name!r}: ...}}).")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Study) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __repr__(self) -> str:
        return f"Study({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"

    def dump(self, path: str | Path) -> None:
        """Write the study as YAML, or as JSON if the name ends in ``.json``."""
        path = Path(path)
        text = self.to_json() if path.suffix == ".json" else self.to_yaml()
        path.write_text(text, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values: the version, and every entry with every parameter."""
        return {"study": VERSION} | super().to_dict()

    @cached_property
    def canonical(self) -> str:
        """Whatever decides the numbers, as text: the study, and the source of plugins it names.

        It says version 1, so that a study that version 1 could say keeps the hash it had.
        """
        content = self.to_dict() | {"study": 1}
        if sources := dict(sorted(_sources(self))):
            content["sources"] = sources
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a study file, for editors and other programs."""
        from workbench.studies.schema import json_schema

        return json_schema()

    @classmethod
    def salvage(cls, flat: Mapping[str, Any]) -> tuple[Study, dict[str, str]]:
        """The study of what can be read of ``flat``, and a sentence for each entry left out."""
        return salvaged(cls.from_flat, {".".join(parts_of(key)): flat[key] for key in flat})

    def to_query(self) -> str:
        """The flat form as a URL query, without the question mark."""
        return query_of(self.to_flat())

    @classmethod
    def from_query(cls, query: str) -> Study:
        """The study of a URL query."""
        return cls.from_flat(cls.flat_of_query(query))

    @staticmethod
    def flat_of_query(query: str) -> dict[str, str]:
        """A URL query as a flat mapping, not yet checked."""
        return dict(parse_qsl(query.lstrip("?"), keep_blank_values=True))


def _sources(value: Any) -> Iterator[tuple[str, str]]:
    """The source of each object that is not the package's own, by kind and name."""
    if isinstance(value, Study):
        for key in ENTRIES:
            yield from _sources(getattr(value, key))
        for field in value.record.fields:
            if how := field.partition(".")[2]:
                yield from _source(registry.entry("reduction", how))
    elif isinstance(value, Choice):
        yield from _source(value.entry)
        for one in value.parameters.values():
            yield from _sources(one)
    elif isinstance(value, tuple):
        for one in value:
            yield from _sources(one)


def _source(entry: registry.Entry) -> Iterator[tuple[str, str]]:
    if entry.digest:
        yield f"{entry.kind} {entry.name}", entry.digest
