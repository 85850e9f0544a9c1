"""Reading a study: values as it holds them, and a sentence for each that is not allowed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from workbench import registry
from workbench.params import Declared, declared
from workbench.studies import files
from workbench.studies.flat import compact, mapping_of
from workbench.studies.plain import nearest, part, shown
from workbench.studies.sections import Choice, Partial, standard

#: How deep objects may stand within objects.
DEEPEST = 8


class Reader:
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
        elif isinstance(given, Partial):  # parameters of objects that are not there
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
                known = isinstance(name, str) and any(
                    name in registry.entries(k) for k in item.kinds
                )
                where = f"{path}.{name}" if known else path
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
        given = mapping_of(given)
        names = f"one of {', '.join(known)}"
        if isinstance(given, Mapping) and "name" not in given:
            if not isinstance(given, Partial):
                return self.tell(path, f"{path} was given without a name; it must be {names}.")
            given = {**mapping_of(standard(one)), **given}
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
            value = given[key] if key in given else standard(one)
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
