"""The study file: one validated specification of a run, spoken by pages, notebooks and commands.

A study names, section by section, an entry of a registry and its parameters::

    data:     {name: ring, modes: 8}
    denoiser: {name: Mixture}
    process:  {name: VP, beta_max: 20.0}
    sampler:  {name: Heun}
    grid:     {name: log_snr, steps: 32, final: stop}
    seeds:    {first: 0, count: 256}
    record:   {fields: [x, denoised], every: 1}
    lenses:   [output, {name: teleportation, levels: 20}]
    noise:    fresh
    dtype:    float32
    device:   auto

The same study has a *flat* form, the one dialect of URLs, notebook parameters and command lines:
``data=ring  data_modes=8  process=VP  grid_steps=32 ...``; its lenses are one text,
``lenses=output,teleportation:levels=20``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union
from urllib.parse import parse_qsl, urlencode

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)
from pydantic_core import PydanticCustomError

from workbench.datasets import DATASETS
from workbench.denoisers import DENOISERS
from workbench.lenses import LENSES
from workbench.params import Declared, Param, declared
from workbench.processes import PROCESSES
from workbench.sampling import FIELDS, GRIDS, NOISES, SAMPLERS
from workbench.sampling.record import ENTRIES, REDUCTIONS
from workbench.studies import plain
from workbench.studies.plain import nearest, shown

__all__ = ["SECTIONS", "Study", "StudyError", "parameters"]

DTYPES = ("float32", "float64")
NOISE_HELP = "fresh in each step, or one Brownian path per seed, the same at any number of steps"
DEVICES = ("auto", "cpu", "cuda", "mps")

#: What each section may name: registry name -> what takes the section's parameters.
SECTIONS: dict[str, dict[str, Callable]] = {
    "data": DATASETS,
    "denoiser": {name: kind.from_data for name, kind in DENOISERS.items()},
    "process": PROCESSES,
    "sampler": SAMPLERS,
    "grid": GRIDS,
}

#: The sections, and the one that names any number of entries.
NAMED = {**SECTIONS, "lenses": LENSES}


def parameters(section: str, name: str) -> dict[str, Declared]:
    """The declared parameters of an entry of a section, by name."""
    return declared(NAMED[section][name])


class StudyError(ValueError):
    """A study that cannot be run; ``problems`` maps each path (``grid.steps``) to a sentence."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__(plain.joined(self.problems.values()))


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _not_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("truth", "Input should be a number, not true or false")
    return value


#: For numbers: text is read as a number (URLs have nothing else), true and false are not.
_number = BeforeValidator(_not_truth)


def _field(parameter: Declared) -> tuple[Any, Any]:
    """A declared parameter as a pydantic field."""
    kind = Literal[parameter.choices] if parameter.choices else parameter.type
    bounds = {name: getattr(parameter.param, name) for name in ("ge", "gt", "le", "lt")}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    finite = {"allow_inf_nan": False} if parameter.type is float else {}
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    field = Field(description=parameter.param.help, **bounds, **finite)
    if parameter.type in (int, float):
        return Annotated[kind, field, _number], default
    return Annotated[kind, field], default


def _tagged(section: str, read: Callable[[str], Any]) -> Any:
    """A union of models tagged by ``name``; ``read`` makes a mapping of a text."""
    models = []
    for name in NAMED[section]:
        fields = {key: _field(value) for key, value in parameters(section, name).items()}
        model = create_model(
            f"{section.title()}_{name}", __base__=_Model, name=(Literal[name], name), **fields
        )
        models.append(model)
    tagged = Annotated[Union[tuple(models)], Field(discriminator="name")]  # noqa: UP007
    return Annotated[tagged, BeforeValidator(lambda v: read(v) if isinstance(v, str) else v)]


def _section(section: str, **default: Any) -> tuple[Any, Any]:
    """A section; a bare name stands for its defaults."""
    kind = _tagged(section, lambda name: {"name": name})
    return kind, Field(default=default, validate_default=True)


class Seeds(_Model):
    """Sample i of a run has seed ``first + i``."""

    first: Annotated[
        int, Field(ge=0, le=2**53, description="seed of the first sample"), _number
    ] = 0
    count: Annotated[int, Field(ge=1, le=1_000_000, description="number of samples"), _number] = 256


def _names(value: Any) -> Any:
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class Recording(_Model):
    """What is kept of the run."""

    fields: Annotated[
        tuple[Literal[tuple(ENTRIES)], ...],
        BeforeValidator(_names),
        Field(
            min_length=1,
            description=f"fields kept: {', '.join(FIELDS)}; each may be reduced over samples: "
            + ", ".join(f"x.{how}" for how in REDUCTIONS),
        ),
    ] = ("x", "denoised")
    every: Annotated[int, Field(ge=1, le=10_000, description="keep every n-th node"), _number] = 1


def _entry(text: str) -> dict[str, str]:
    """``name:key=value:...`` as a mapping."""
    name, *parts = text.split(":")
    pairs = (part.partition("=") for part in parts)
    return {"name": name.strip(), **{key.strip(): value for key, _, value in pairs}}


def _text(entry: Mapping[str, Any]) -> str:
    """A lens as ``name:key=value:...``, with the parameters that differ from their defaults."""
    known = parameters("lenses", entry["name"])
    told = (f"{k}={entry[k]}" for k, one in known.items() if entry[k] != one.default)
    return ":".join([entry["name"], *told])


def _each_once(entries: tuple) -> tuple:
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PydanticCustomError("twice", f"{twice} stands there twice; name each lens once")
    return entries


_Lenses = Annotated[
    tuple[_tagged("lenses", _entry), ...],
    BeforeValidator(lambda v: (v,) if isinstance(v, dict) else _names(v)),
    AfterValidator(_each_once),
    Field(description="what is measured, and kept with the run"),
]

_Base = create_model(
    "_Base",
    __base__=_Model,
    study=(Annotated[int, Field(ge=1, le=1, description="version of this format"), _number], 1),
    data=_section("data", name="ring"),
    denoiser=_section("denoiser", name="Mixture"),
    process=_section("process", name="VP"),
    sampler=_section("sampler", name="Heun"),
    grid=_section("grid", name="log_snr", steps=32),
    seeds=(Seeds, Seeds()),
    record=(Recording, Recording()),
    lenses=(_Lenses, ()),
    noise=(Annotated[Literal[tuple(NOISES)], Field(description=NOISE_HELP)], "fresh"),
    dtype=(Annotated[Literal[DTYPES], Field(description="precision")], "float32"),
    device=(
        Annotated[Literal[DEVICES], Field(description="where to run")],
        "auto",
    ),
)


class Study(_Base):
    """A validated study. ``Study(**sections)`` raises :class:`StudyError` with sentences."""

    def __init__(self, /, **sections: Any) -> None:
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise StudyError(_sentences(error)) from None

    # -- files -------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a YAML or JSON file."""
        try:
            text = plain.read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError({"file": f"{path} cannot be read: {error}."}) from None
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> Study:
        """Read YAML or JSON text."""
        try:
            content = plain.parse(text)
        except ValueError as error:
            raise StudyError({"file": f"the study is not valid YAML or JSON: {error}."}) from None
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise StudyError(
                {"file": "a study is a mapping of sections, e.g. 'process: {name: VP}'."}
            )
        return cls(**content)

    def dump(self, path: str | Path) -> None:
        """Write the study as YAML, or as JSON if the name ends in ``.json``."""
        path = Path(path)
        text = self.to_json() if path.suffix == ".json" else self.to_yaml()
        path.write_text(text, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, every section with every parameter."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @property
    def hash(self) -> str:
        """What identifies the study: the hex SHA-256 of its canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a study file, for editors and other programs."""
        schema = cls.model_json_schema()
        for section, known in NAMED.items():
            if section in SECTIONS:
                entry = schema["properties"][section]
                del entry["discriminator"]  # of OpenAPI; not a word of JSON Schema
                bare = {"enum": list(known), "description": "a name alone stands for its defaults"}
                entry["anyOf"] = [bare, *entry.pop("oneOf")]
            for name, made_by in known.items():
                model = schema["$defs"][f"{section.title()}_{name}"]
                model["required"] = ["name", *model.get("required", ())]
                said = (inspect.getdoc(made_by) or "").split("\n\n")[0]
                model["description"] = re.sub(r":\w+:(?=`)|\s*\n", " ", said)
        lenses = schema["properties"]["lenses"]
        one = f"({'|'.join(LENSES)})(:[a-z_]+=[^:,]+)*"
        models = lenses["items"]["oneOf"]
        lenses["items"] = {"anyOf": [{"type": "string", "pattern": f"^{one}$"}, *models]}
        text = {"type": "string", "pattern": f"^({one}(,{one})*)?$"}
        array = {key: lenses.pop(key) for key in ("type", "items")}
        lenses["anyOf"] = [array, text, *models]
        fields = schema["$defs"]["Recording"]["properties"]["fields"]
        fields["minItems"] = fields.pop("minLength")
        schema["description"] = "A study; what is left out has its default."
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    # -- the flat form -----------------------------------------------------------------------

    def to_flat(self) -> dict[str, Any]:
        """``{"process": "VP", "process_beta_max": 20.0, ...}``, every parameter present."""
        flat: dict[str, Any] = {}
        for section, value in self.to_dict().items():
            if not isinstance(value, dict):
                flat[section] = value if section != "lenses" else ",".join(map(_text, value))
                continue
            if "name" in value:
                flat[section] = value["name"]
            for key, item in value.items():
                if key != "name":
                    text = ",".join(item) if isinstance(item, list) else item
                    flat[f"{section}_{key}"] = text
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Study:
        """The study of a flat mapping; what is missing has its default."""
        nested, problems = {}, {}
        for key, value in flat.items():
            section, _, name = key.partition("_")
            if section not in cls.model_fields:
                problems[key] = _no_entry(key)
            elif section in SECTIONS or section in ("seeds", "record"):
                nested.setdefault(section, {})[name or "name"] = value
            elif name:
                problems[key] = _no_entry(key)
            else:
                nested[section] = value
        for section in SECTIONS:
            if section in nested and "name" not in nested[section]:
                nested[section] = {**cls.model_fields[section].default, **nested[section]}
        if problems:
            raise StudyError(problems)
        return cls(**nested)

    @classmethod
    def changed(cls, flat: Mapping[str, Any], changes: Mapping[str, Any]) -> Study:
        """The study of ``flat`` with ``changes``; naming another entry of a section resets it."""
        kept = dict(flat)
        for section in SECTIONS:
            if section in changes and changes[section] != kept.get(section):
                mine = [key for key in kept if key.startswith(section + "_")]
                for key in mine:
                    if section != "grid" or key not in ("grid_steps", "grid_final"):
                        del kept[key]
        return cls.from_flat({**kept, **changes})

    @classmethod
    def salvage(cls, flat: Mapping[str, Any]) -> tuple[Study, dict[str, str]]:
        """The study of what can be read of ``flat``, and a sentence for each entry left out."""
        left, problems = dict(flat), {}
        while True:
            try:
                return cls.from_flat(left), problems
            except StudyError as error:
                problems |= error.problems
                bad = [[path] if path in left else _keys_of(path, left) for path in error.problems]
                if not all(bad):  # nothing to point at: start from the defaults
                    return cls(), problems
                gone = {key for keys in bad for key in keys}
                left = {key: value for key, value in left.items() if key not in gone}

    def to_query(self) -> str:
        """The flat form as a URL query, without the question mark."""
        return urlencode({key: str(value) for key, value in self.to_flat().items()}, safe=",")

    @classmethod
    def from_query(cls, query: str) -> Study:
        """The study of a URL query."""
        return cls.from_flat(cls.flat_of_query(query))

    @staticmethod
    def flat_of_query(query: str) -> dict[str, str]:
        """A URL query as a flat mapping, not yet checked."""
        return dict(parse_qsl(query.lstrip("?"), keep_blank_values=True))


def _keys_of(path: str, flat: Mapping[str, Any]) -> list[str]:
    """The flat keys that a path speaks of: its own, or those of the nearest part above it."""
    parts = path.split(".")
    while parts:
        key = "_".join(parts)
        keys = [k for k in flat if k == key or k.startswith(key + "_")]
        if keys:
            return keys
        parts.pop()
    return []


def _no_entry(key: str) -> str:
    hint = nearest(key, Study().to_flat())
    sections = ", ".join(Study.model_fields)
    return (
        f"a study has no entry {shown(key)}{hint}; its entries are {sections}, and their "
        "parameters as in grid_steps."
    )


def _unknown(lead: str, given: Any, known: list[str]) -> str:
    return f"{lead} {shown(given)}{nearest(given, known)}; it must be one of {', '.join(known)}."


def _sentences(error: ValidationError) -> dict[str, str]:
    """Each pydantic error as one sentence, by its path in the study."""
    problems = {}
    for item in error.errors():
        loc = [plain.part(each) for each in item["loc"]]
        section = loc[0] if loc else ""
        if section == "lenses":  # which of them is said by its name
            del loc[1:2]
        tagged = section in NAMED and len(loc) > 1
        path = ".".join([section, *loc[2:]] if tagged else loc)
        problems.setdefault(path, _sentence(item, section, loc, path))
    return problems


def _sentence(item: dict, section: str, loc: list[str], path: str) -> str:
    kind, value = item["type"], item.get("input")
    if kind == "twice":
        return f"{section} was {shown(value)}; {item['msg']}."
    if section in NAMED and len(loc) == 1:  # no entry of that name, or no name at all
        names = list(NAMED[section])
        if isinstance(value, dict) and "name" not in value:
            return f"{section} was given without a name; it must be one of {', '.join(names)}."
        given = value["name"] if isinstance(value, dict) else value
        return _unknown(f"{section} was", given, names)
    if kind == "extra_forbidden":
        if section in NAMED and len(loc) > 2:
            known = list(parameters(section, loc[1]))
            what = f"{section} {loc[1]} has no parameter {loc[-1]!r}{nearest(loc[-1], known)}"
            return f"{what}; its parameters: {', '.join(known) or 'none'}."
        known = list(Study.model_fields if len(loc) == 1 else _plain_fields(section))
        return _unknown(
            "a study has no entry" if len(loc) == 1 else path + " is not known:", loc[-1], known
        )
    if section in NAMED and len(loc) > 2 and kind != "missing":
        parameter = parameters(section, loc[1]).get(loc[2])
        if parameter:
            rest = parameter.refusal(value)
            if hint := nearest(value, parameter.choices):
                rest = rest.replace(";", f"{hint};", 1)
            return f"{section}.{rest}"
    if section == "study":
        return f"study was {shown(value)}; this workbench reads version 1 of the format."
    if kind == "missing":
        return f"{path} is missing; give it a value."
    if kind == "int_parsing_size":
        return f"{path} was {shown(value)}; it must be a whole number, and this one is too long."
    if kind == "literal_error":
        hint = nearest(value, re.findall("'([^']*)'", item["ctx"]["expected"]))
        return f"{path} was {shown(value)}{hint}; it must be {item['ctx']['expected']}."
    return f"{path} was {shown(value)}; {item['msg'][0].lower()}{item['msg'][1:]}."


def _plain_fields(section: str) -> dict:
    return {"seeds": Seeds, "record": Recording}[section].model_fields


#: Declared parameters outside the registries, by their flat names, for forms and help.
PLAIN: dict[str, Declared] = {
    "seeds_count": Declared("samples", int, 256, Param("number of samples", ge=1, le=1_000_000)),
    "seeds_first": Declared("first seed", int, 0, Param("seed of the first sample", ge=0)),
    "lenses": Declared(
        "lenses",
        str,
        "",
        Param(f"measured after the run and kept with it, by commas: {', '.join(LENSES)}"),
    ),
    "noise": Declared("noise", str, "fresh", Param(NOISE_HELP), tuple(NOISES)),
    "dtype": Declared("dtype", str, "float32", Param("precision of the run"), DTYPES),
    "device": Declared("device", str, "auto", Param("where to run"), DEVICES),
}
