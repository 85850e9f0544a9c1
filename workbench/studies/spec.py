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
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

import yaml

from workbench import registry
from workbench.datasets import Data
from workbench.denoisers import Denoiser
from workbench.lenses import Lens
from workbench.params import Declared, Param, declared
from workbench.processes import Process
from workbench.sampling import NOISES, Sampler
from workbench.sampling.grid import Grid
from workbench.sampling.methods import Inversion
from workbench.sampling.record import recordable
from workbench.studies import files, plain
from workbench.studies.plain import nearest, part, shown

__all__ = [
    "ENTRIES",
    "SECTIONS",
    "Choice",
    "Study",
    "StudyError",
    "compact",
    "flattened",
    "pairs",
    "parts_of",
    "query_of",
]

#: The version that is written, and those that are read.
VERSION, READ = 2, (1, 2)

#: How deep objects may stand within objects.
DEEPEST = 8


class StudyError(ValueError):
    """A study that cannot be run; ``problems`` maps each path (``grid.steps``) to a sentence."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__(plain.joined(self.problems.values()))


# ---- what a study has ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeds:
    """Sample i of a run has seed ``first + i``."""

    first: Annotated[
        int, Param("seed of the first sample", ge=0, le=2**53, label="first seed")
    ] = 0
    count: Annotated[int, Param("number of samples", ge=1, le=1_000_000, label="samples")] = 256


@dataclass(frozen=True)
class Recording:
    """What is kept of the run."""

    fields: Annotated[
        tuple[str, ...],
        Param(
            "fields kept; behind a name a reduction over samples, x.spectrum",
            choices=recordable,
            fewest=1,
            label="record",
        ),
    ] = ("x", "denoised")
    every: Annotated[int, Param("keep every n-th node", ge=1, le=10_000)] = 1


@dataclass(frozen=True)
class _Entries:
    data: Annotated[Data, Param("what is to be generated", standard="ring")]
    denoiser: Annotated[Denoiser, Param("the model of the data", standard="Mixture")]
    process: Annotated[Process, Param("how data becomes noise", standard="VP")]
    sampler: Annotated[Sampler | Inversion, Param("the way back", standard="Heun")]
    grid: Annotated[
        Grid, Param("where it stops on the way", standard={"name": "log_snr", "steps": 32})
    ]
    seeds: Annotated[Seeds, Param("the samples")]
    record: Annotated[Recording, Param("what is kept")]
    lenses: Annotated[tuple[Lens, ...], Param("measured after the run and kept with it")] = ()
    noise: Annotated[
        Literal[tuple(NOISES)],
        Param("fresh in each step, or one Brownian path per seed, the same at any number of steps"),
    ] = "fresh"
    dtype: Annotated[Literal["float32", "float64"], Param("precision of the run")] = "float32"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Param("where to run")] = "auto"


#: The entries of a study, by name.
ENTRIES: dict[str, Declared] = declared(_Entries)

#: Those that name one registered object each, with what they may name.
SECTIONS = {name: registry.View(*one.kinds) for name, one in ENTRIES.items() if one.kinds}


@dataclass(frozen=True)
class Choice:
    """A registered object by its name, with every parameter; these are attributes as well."""

    registry_kind: str
    name: str
    parameters: Mapping[str, Any]

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["parameters"][key]
        except KeyError:
            raise AttributeError(f"{self.__dict__.get('name')} has no parameter {key!r}") from None

    @property
    def entry(self) -> registry.Entry:
        """The registered object."""
        return registry.entry(self.registry_kind, self.name)

    def __hash__(self) -> int:
        return hash((self.registry_kind, self.name))


class _Partial(dict):
    """Parameters of an object whose name has its default: of a flat form, ``grid.steps=5``."""


def compact(text: str) -> dict[str, Any]:
    """An object's short text, ``DPMSolverPP:order=3:sde=true``, as a mapping."""
    name, *pairs = text.split(":")
    found: dict[str, Any] = {"name": name.strip()}
    for key, _, value in (pair.partition("=") for pair in pairs):
        _put(found, key.strip().split("."), value)
    return found


# ---- reading -------------------------------------------------------------------------------------


class _Reader:
    """Values as a study holds them, and a sentence for each that is not allowed.

    Args:
        folder: relative to which the path of a file is read; None: paths are refused.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.problems: dict[str, str] = {}
        self.folder = folder

    def tell(self, path: str, sentence: str) -> None:
        self.problems.setdefault(path, sentence)

    def refuse(self, path: str, given: Any, choices, needed: str) -> None:
        self.tell(path, f"{path} was {shown(given)}{nearest(given, choices)}; it must be {needed}.")

    def read(self, one: Declared, given: Any, path: str, depth: int = 0) -> Any:
        if one.optional and (given is None or given in ("", "none")):
            return None
        if one.item is not None:
            return self.listed(one, given, path, depth)
        if one.kinds:
            return self.named(one, given, path, depth)
        if one.type is Path:
            return self.file(given, path)
        if is_dataclass(one.type):
            if not isinstance(given, Mapping | one.type):
                return self.refuse(path, given, (), f"a mapping of {', '.join(declared(one.type))}")
            values = given if isinstance(given, Mapping) else vars(given)
            return one.type(**self.parameters(declared(one.type), values, path, path, depth))
        value = one.read(given)
        if not one.takes(value):
            self.refuse(path, given, one.choices, one.needed)
        return value

    def listed(self, one: Declared, given: Any, path: str, depth: int) -> tuple:
        item = one.item
        if isinstance(given, str):
            given = [text for text in given.split(",") if text.strip()]
        elif isinstance(given, _Partial):  # parameters of objects that are not there
            given = [self.tell(f"{path}.{key}", f"{path} names no {key}.") for key in given]
        elif isinstance(given, Mapping | Choice) and item.kinds:
            given = [given]
        if not isinstance(given, list | tuple):
            self.refuse(path, given, (), one.needed)
            return ()
        if len(given) < one.param.fewest:
            self.refuse(path, given, (), one.needed)
        values = []
        for i, each in enumerate(given):
            where = f"{path}.{i}"
            if item.kinds:
                each = compact(each) if isinstance(each, str) else each
                name = each.get("name") if isinstance(each, Mapping) else None
                where = f"{path}.{name}" if isinstance(name, str) and name.isidentifier() else path
            values.append(self.read(item, each, where, depth))
        return tuple(values)

    def named(self, one: Declared, given: Any, path: str, depth: int) -> Choice | None:
        if depth > DEEPEST:
            return self.tell(
                path,
                f"{path} is an object within {depth} others; at most {DEEPEST} are read, and none "
                "may contain itself.",
            )
        known = {name: it for kind in one.kinds for name, it in registry.entries(kind).items()}
        given = _mapping(given)
        names = f"one of {', '.join(known)}"
        if isinstance(given, Mapping) and "name" not in given:
            if not isinstance(given, _Partial):
                return self.tell(path, f"{path} was given without a name; it must be {names}.")
            given = {**_mapping(_standard(one)), **given}
        name = given["name"] if isinstance(given, Mapping) else given
        if not isinstance(name, str) or name not in known:
            return self.refuse(path, name, known, names)
        entry = known[name]
        rest = {key: value for key, value in given.items() if key != "name"}
        lead = f"{path.removesuffix('.' + name)} {name}"
        values = self.parameters(entry.parameters, rest, path, lead, depth + 1)
        return Choice(entry.kind, name, values)

    def parameters(
        self, known: Mapping[str, Declared], given: Mapping, path: str, lead: str, depth: int
    ) -> dict[str, Any]:
        """The values of all parameters of something, those that were not given by default."""
        for key in given:
            if key not in known:
                names = ", ".join(known) or "none"
                self.tell(
                    f"{path}.{part(key)}",
                    f"{lead} has no parameter {shown(key)}{nearest(key, known)}; its parameters: "
                    f"{names}.",
                )
        values = {}
        for key, one in known.items():
            value = given[key] if key in given else _standard(one)
            if value is inspect.Parameter.empty:
                self.tell(f"{path}.{key}", f"{path}.{key} is missing; give it {one.needed}.")
            else:
                values[key] = self.read(one, value, f"{path}.{key}", depth)
        return values

    def file(self, given: Any, path: str) -> str | None:
        if files.is_hash(given) or given == "":  # none yet: a form is filled in step by step
            return given
        if isinstance(given, str) and given and self.folder is not None:
            given = self.folder / given
        if not isinstance(given, Path):
            return self.refuse(
                path,
                given,
                (),
                "the SHA-256 of a stored file, 64 hexadecimal digits; a path is read in a study "
                "file and by --set alone",
            )
        try:
            return files.keep(given)
        except files.FileError as error:
            return self.tell(path, f"{path}: {error}")


def _mapping(given: Any) -> Any:
    """An object's name, its short text, a choice or the object itself as a mapping."""
    if isinstance(given, str):
        return compact(given)
    if isinstance(given, Choice):
        return plain_of(given)
    kind = getattr(type(given), "registry_kind", None)
    if kind and is_dataclass(given):
        names = [k for k, e in registry.entries(kind).items() if e.target is type(given)]
        known = declared(type(given))
        return {"name": (names or [type(given).__name__])[0]} | {k: getattr(given, k) for k in known}
    return given


def _standard(one: Declared) -> Any:
    """What stands where nothing is given."""
    if one.param.standard is not None:
        return one.param.standard
    if is_dataclass(one.type):
        return _Partial()
    return "" if one.type is Path and one.default is inspect.Parameter.empty else one.default


def plain_of(value: Any) -> Any:
    """A value of a study as plain Python values."""
    if isinstance(value, Choice):
        return {"name": value.name, **{k: plain_of(v) for k, v in value.parameters.items()}}
    if isinstance(value, tuple):
        return [plain_of(one) for one in value]
    if is_dataclass(value):
        return {one.name: plain_of(getattr(value, one.name)) for one in fields(value)}
    return value


# ---- the study -----------------------------------------------------------------------------------


class Study:
    """A validated study, a value: ``study.grid.steps``, ``study.changed({"grid.steps": 64})``.

    Args:
        sections: the entries by name; what is missing has its default.

    Raises:
        StudyError: values that are not allowed, each by a sentence.
    """

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

    def __init__(self, /, **sections: Any) -> None:
        self._read(sections, None)

    @classmethod
    def _of(cls, sections: Mapping[str, Any], folder: Path | None = None) -> Study:
        study = cls.__new__(cls)
        study._read(sections, folder)
        return study

    def _read(self, sections: Mapping[str, Any], folder: Path | None) -> None:
        reader, values = _Reader(folder), {}
        for key in sections:
            if key not in ENTRIES and key != "study":
                reader.tell(part(key), _no_entry(key))
        version = sections.get("study", VERSION)
        if str(version) not in map(str, READ):
            versions = " and ".join(map(str, READ))
            reader.tell(
                "study",
                f"study was {shown(version)}; this workbench reads versions {versions} of the "
                "format.",
            )
        for key, one in ENTRIES.items():
            values[key] = reader.read(one, sections.get(key, _standard(one)), key)
        names = [lens.name for lens in values["lenses"] if lens]
        if twice := next((name for name in names if names.count(name) > 1), None):
            reader.tell("lenses", f"lenses held {twice} twice; name each lens once.")
        if reader.problems:
            raise StudyError(reader.problems)
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a study is frozen; make another: study.changed({{{name!r}: ...}}).")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Study) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __repr__(self) -> str:
        return f"Study({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"

    # -- files -------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a YAML or JSON file; the paths of files in it are relative to it."""
        try:
            text = plain.read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError({"file": f"{path} cannot be read: {error}."}) from None
        return cls.parse(text, Path(path).parent)

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> Study:
        """Read YAML or JSON text.

        Args:
            folder: relative to which the paths of files are read; None: paths are refused.
        """
        try:
            content = plain.parse(text)
        except ValueError as error:
            raise StudyError({"file": f"the study is not valid YAML or JSON: {error}."}) from None
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise StudyError(
                {"file": "a study is a mapping of sections, e.g. 'process: {name: VP}'."}
            )
        return cls._of(content, folder)

    def dump(self, path: str | Path) -> None:
        """Write the study as YAML, or as JSON if the name ends in ``.json``."""
        path = Path(path)
        text = self.to_json() if path.suffix == ".json" else self.to_yaml()
        path.write_text(text, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, every entry with every parameter."""
        return {"study": VERSION} | {key: plain_of(getattr(self, key)) for key in ENTRIES}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @cached_property
    def canonical(self) -> str:
        """Whatever decides the numbers, as text: the study, and the source of plugins it names.

        It says version 1, so that a study that version 1 could say keeps the hash it had.
        """
        content = self.to_dict() | {"study": 1}
        if sources := dict(sorted(_sources(self))):
            content["sources"] = sources
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """What identifies the study: a hexadecimal SHA-256 of whatever decides its numbers."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a study file, for editors and other programs."""
        from workbench.studies.schema import json_schema

        return json_schema()

    # -- the flat form -----------------------------------------------------------------------

    def to_flat(self) -> dict[str, Any]:
        """``{"process": "VP", "process.beta_max": 20.0, ...}``, every parameter present."""
        return flattened(self.to_dict())

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Study:
        """The study of a flat mapping; what is missing has its default."""
        return cls._of(_placed({}, flat))

    def changed(self, changes: Mapping[str, Any], folder: Path | None = None) -> Study:
        """This study with other values of some entries, in the flat form.

        Another name of an object resets its parameters; a grid keeps its number of steps and its
        end.

        Args:
            folder: relative to which the paths of files are read; None: paths are refused.

        Raises:
            StudyError: values that are not allowed.
        """
        return self._of(_placed(self.to_dict(), changes), folder)

    @classmethod
    def salvage(cls, flat: Mapping[str, Any]) -> tuple[Study, dict[str, str]]:
        """The study of what can be read of ``flat``, and a sentence for each entry left out."""
        left, problems = {".".join(parts_of(key)): value for key, value in flat.items()}, {}
        while True:
            try:
                return cls.from_flat(left), problems
            except StudyError as error:
                problems |= error.problems
                bad = [_keys_of(path, left) for path in error.problems]
                if not all(bad):  # nothing to point at: start from the defaults
                    return cls(), problems
                gone = {key for keys in bad for key in keys}
                left = {key: value for key, value in left.items() if key not in gone}

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


# ---- the flat form -------------------------------------------------------------------------------


def flattened(study: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a study in the flat form, unchecked: those of another version, too."""
    return dict(pairs("", study))


def query_of(flat: Mapping[str, Any]) -> str:
    """A flat form as a URL query."""
    return urlencode({key: str(value) for key, value in flat.items()}, safe=",:=")


def pairs(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A plain value at a place of a study as flat keys and values."""
    lead = f"{key}." if key else ""
    if isinstance(value, Mapping):
        if key and "name" in value:
            yield key, value["name"]
        for name, one in value.items():
            if name != "name" or not key:
                yield from pairs(f"{lead}{name}", one)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        names = [one.get("name", "") if isinstance(one, Mapping) else str(one) for one in value]
        yield key, ",".join(names)
        for i, (name, one) in enumerate(zip(names, value, strict=True)):
            if isinstance(one, Mapping):
                place = f"{lead}{name if names.count(name) == 1 else i}"
                yield from ((k, v) for k, v in pairs(place, one) if k != place)
    elif isinstance(value, list):
        yield key, ",".join(map(str, value))
    else:
        yield key, "" if value is None else value


def parts_of(key: str) -> list[str]:
    """The parts of a key: ``grid.steps``, or as version 1 wrote it, ``grid_steps``."""
    section, _, rest = key.partition("_")
    if "." not in key and section in ENTRIES and rest:
        return [section, rest]
    return key.split(".")


def _placed(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a study with other values at the places of flat keys.

    Raises:
        StudyError: keys that belong to no entry.
    """
    problems = {}
    parts = {key: parts_of(key) for key in changes}
    for key in sorted(changes, key=lambda key: len(parts[key])):  # a name before its parameters
        section, *rest = parts[key]
        one = ENTRIES.get(section)
        single = one and not (one.kinds or is_dataclass(one.type) or (one.item and one.item.kinds))
        if (one is None and section != "study") or (rest and (single or one is None)):
            problems[".".join(parts[key])] = _no_entry(".".join(parts[key]))
            continue
        if one and not rest and is_dataclass(one.type) and not isinstance(changes[key], Mapping):
            names = ", ".join(declared(one.type))
            given = shown(changes[key])
            problems[key] = f"{key} was {given}; it must be a mapping of {names}."
            continue
        try:
            _put(tree, parts[key], changes[key])
        except LookupError as error:
            problems[".".join(parts[key])] = str(error.args[0])
    if problems:
        raise StudyError(problems)
    return tree


def _put(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    """Put a value where a flat key says."""
    node: Any = tree
    for depth, name in enumerate(parts[:-1]):
        node = _inside(node, name, ".".join(parts[:depth]), parts[depth + 1])
    name = parts[-1]
    if isinstance(node, list):
        raise LookupError(f"{'.'.join(parts)} is an object of a list; change the whole list.")
    node[name] = _merged(node.get(name), value)


def _inside(node: Any, name: str, path: str, following: str) -> Any:
    """What stands under a name, made ready to take parameters."""
    if isinstance(node, list):
        found = [one for one in node if isinstance(one, Mapping) and one.get("name") == name]
        if name.isdecimal() and int(name) < len(node):
            found = [node[int(name)]]
        if not found:
            names = ", ".join(str(one.get("name")) for one in node) or "none"
            raise LookupError(f"{path} names no {shown(name)}; it names {names}.")
        return found[0]
    there = node.get(name)
    if isinstance(there, str):
        items = [compact(text) for text in there.split(",") if text.strip()]
        many = following in [one["name"] for one in items] or following.isdecimal()
        many = many or (not path and getattr(ENTRIES.get(name), "item", None) is not None)
        node[name] = items if many or len(items) != 1 else items[0]
    elif not isinstance(there, dict | list):
        node[name] = _Partial()
    return node[name]


def _merged(there: Any, value: Any) -> Any:
    """A new value in the place of another."""
    if isinstance(there, list) and isinstance(value, str):
        old = {one["name"]: one for one in there if isinstance(one, Mapping) and "name" in one}
        if old and ":" not in value:  # objects that stay keep their parameters
            return [old.get(name, name) for name in value.split(",") if name]
    if not (isinstance(there, Mapping) and "name" in there):
        return plain_of(value)
    new = _mapping(value)
    if not isinstance(new, Mapping):
        return value
    if new.get("name", there["name"]) == there["name"]:
        return {**there, **new}
    known = registry.entries("grid")
    if there["name"] in known and new["name"] in known:
        kept = known[new["name"]].parameters
        return {k: there[k] for k in ("steps", "final") if k in there and k in kept} | dict(new)
    return dict(new)


def _keys_of(path: str, flat: Mapping[str, Any]) -> list[str]:
    """The flat keys that a path speaks of: its own, or those of the nearest part above it."""
    parts = path.split(".")
    while parts:
        key = ".".join(parts)
        if keys := [k for k in flat if k == key or k.startswith(key + ".")]:
            return keys
        parts.pop()
    return []


def _no_entry(key: Any) -> str:
    known = Study().to_flat() if isinstance(key, str) and ("." in key or "_" in key) else ENTRIES
    return (
        f"a study has no entry {shown(key)}{nearest(key, known)}; its entries are "
        f"{', '.join(ENTRIES)}, and their parameters as in grid.steps."
    )
