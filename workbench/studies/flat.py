"""The flat form of a study: dotted keys, the one dialect of URLs, ``--set``, sweeps and forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any
from urllib.parse import urlencode

from workbench import registry
from workbench.params import Declared, declared
from workbench.studies.plain import shown
from workbench.studies.sections import ENTRIES, Choice, Partial, StudyError, plain_of


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


def placed(
    tree: dict[str, Any],
    changes: Mapping[str, Any],
    entries: Mapping[str, Declared],
    unknown: Callable[[Any], str],
) -> dict[str, Any]:
    """Plain values of a study with other values at the places of flat keys.

    Args:
        entries: that it may have.
        unknown: the sentence on a key that belongs to none of them.

    Raises:
        StudyError: keys that belong to no entry.
    """
    problems = {}
    parts = {key: parts_of(key) for key in changes}
    for key in sorted(changes, key=lambda key: len(parts[key])):  # a name before its parameters
        section, *rest = parts[key]
        one = entries.get(section)
        single = one and not (one.kinds or is_dataclass(one.type) or (one.item and one.item.kinds))
        if (one is None and section != "study") or (rest and (single or one is None)):
            problems[".".join(parts[key])] = unknown(".".join(parts[key]))
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
        node[name] = Partial()
    return node[name]


def _merged(there: Any, value: Any) -> Any:
    """A new value in the place of another."""
    if isinstance(there, list) and isinstance(value, str):
        old = {one["name"]: one for one in there if isinstance(one, Mapping) and "name" in one}
        if old and ":" not in value:  # objects that stay keep their parameters
            return [old.get(name, name) for name in value.split(",") if name]
    if not (isinstance(there, Mapping) and "name" in there):
        return plain_of(value)
    new = mapping_of(value)
    if not isinstance(new, Mapping):
        return value
    if new.get("name", there["name"]) == there["name"]:
        return {**there, **new}
    known = registry.entries("grid")
    if there["name"] in known and new["name"] in known:
        kept = known[new["name"]].parameters
        return {k: there[k] for k in ("steps", "final") if k in there and k in kept} | dict(new)
    return dict(new)


def keys_of(path: str, flat: Mapping[str, Any]) -> list[str]:
    """The flat keys that a path speaks of: its own, or those of the nearest part above it."""
    parts = path.split(".")
    while parts:
        key = ".".join(parts)
        if keys := [k for k in flat if k == key or k.startswith(key + ".")]:
            return keys
        parts.pop()
    return []


def salvaged(
    read: Callable[[Mapping[str, Any]], Any], flat: Mapping[str, Any]
) -> tuple[Any, dict[str, str]]:
    """What ``read`` makes of as much of ``flat`` as it takes, and a sentence for each key left out.

    Where a problem is of none of the keys, all are left out.
    """
    left, problems = dict(flat), {}
    while True:
        try:
            return read(left), problems
        except StudyError as error:
            if not left:
                raise
            problems |= error.problems
            bad = {key for path in error.problems for key in keys_of(path, left)} or set(left)
            left = {key: value for key, value in left.items() if key not in bad}


def compact(text: str) -> dict[str, Any]:
    """An object's short text, ``DPMSolverPP:order=3:sde=true``, as a mapping."""
    name, *pairs = text.split(":")
    found: dict[str, Any] = {"name": name.strip()}
    for key, _, value in (pair.partition("=") for pair in pairs):
        _put(found, key.strip().split("."), value)
    return found


def mapping_of(given: Any) -> Any:
    """An object's name, its short text, a choice or the object itself as a mapping."""
    if isinstance(given, str):
        return compact(given)
    if isinstance(given, Choice):
        return plain_of(given)
    kind = getattr(type(given), "registry_kind", None)
    if kind and is_dataclass(given):
        names = [k for k, e in registry.entries(kind).items() if e.target is type(given)]
        known = declared(type(given))
        return {"name": (names or [type(given).__name__])[0]} | {
            k: getattr(given, k) for k in known
        }
    return given
