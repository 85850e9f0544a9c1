"""JSON Schema of a study file, read off the registry when it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from workbench import registry
from workbench.params import Declared, declared
from workbench.studies.sections import ENTRIES, plain_of, standard
from workbench.studies.spec import READ

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a study file, for editors and other programs."""
    defs: dict[str, Any] = {}
    entries = {key: _value(one, defs) for key, one in ENTRIES.items()}
    version = {"enum": list(READ), "description": "version of this format"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study",
        "description": "A study; what is left out has its default.",
        "type": "object",
        "additionalProperties": False,
        "properties": {"study": version, **entries},
        "$defs": defs,
    }


def _value(one: Declared, defs: dict[str, Any]) -> dict[str, Any]:
    """What a parameter may be."""
    made = {**_kind(one, defs), "description": one.param.help}
    if one.optional:
        made = {"anyOf": [made, {"type": "null"}]}
    default = standard(one)
    if default is not inspect.Parameter.empty and _is_plain(default):
        made["default"] = plain_of(default)
    return made


def _kind(one: Declared, defs: dict[str, Any]) -> dict[str, Any]:
    if one.item is not None:
        array = {"type": "array", "items": _kind(one.item, defs), "minItems": one.param.fewest}
        least = {"minLength": 1} if one.param.fewest else {}
        text = {"type": "string", "description": "its parts by commas", **least}
        return {"anyOf": [array, text, *([array["items"]] if one.item.kinds else [])]}
    if one.choices:
        return {"enum": list(one.choices)}
    if one.kinds:
        refs = [_objects(kind, defs) for kind in one.kinds]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}
    if one.type is Path:
        return {"type": "string", "title": "SHA-256 of a stored file, or its path"}
    if is_dataclass(one.type):
        name = one.type.__name__
        if name not in defs:
            defs[name] = _mapping(declared(one.type), registry.summary(one.type), defs)
        return {"$ref": f"#/$defs/{name}"}
    bounds = {word: getattr(one.param, short) for short, word in BOUNDS.items()}
    return {"type": TYPES[one.type]} | {k: v for k, v in bounds.items() if v is not None}


def _objects(kind: str, defs: dict[str, Any]) -> dict[str, Any]:
    """Any registered object of a kind: its name, its short text, or a mapping."""
    if kind not in defs:
        defs[kind] = {}  # objects of a kind may hold others of it
        known = registry.entries(kind)
        mappings = []
        for name, entry in known.items():
            place = f"{kind.title()}_{name}"
            defs[place] = _mapping(entry.parameters, entry.summary, defs, name)
            mappings.append({"$ref": f"#/$defs/{place}"})
        bare = {"enum": list(known), "description": "a name alone stands for its defaults"}
        short = {"type": "string", "pattern": f"^({'|'.join(known)})(:[a-z_.]+=[^:,]*)+$"}
        defs[kind] = {"anyOf": [bare, short, *mappings]}
    return {"$ref": f"#/$defs/{kind}"}


def _mapping(
    parameters: Mapping[str, Declared], text: str, defs: dict[str, Any], name: str = ""
) -> dict[str, Any]:
    properties = {key: _value(one, defs) for key, one in parameters.items()}
    needed = [key for key, one in parameters.items() if standard(one) is inspect.Parameter.empty]
    return {
        "type": "object",
        "additionalProperties": False,
        "description": text,
        "properties": {**({"name": {"const": name}} if name else {}), **properties},
        "required": [*(["name"] if name else []), *needed],
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool) or value is None
