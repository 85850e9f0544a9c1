"""Everything that a study can name, read off the registry: for the command line and for people."""

from __future__ import annotations

import inspect

from workbench import registry
from workbench.params import Declared
from workbench.studies.plain import nearest, shown
from workbench.studies.sections import standard


def catalogue(kind: str | None = None) -> str:
    """Each registered object, of one kind or of all: its sentence and its parameters.

    Raises:
        ValueError: an unknown kind.
    """
    if kind is not None and kind not in registry.KINDS:
        kinds = ", ".join(registry.KINDS)
        raise ValueError(
            f"kind was {shown(kind)}{nearest(kind, registry.KINDS)}; it must be one of {kinds}."
        )
    blocks = []
    for name in [kind] if kind else registry.KINDS:
        known = registry.entries(name)
        if known or kind:
            title = f"{name}: {registry.KINDS[name].title}"
            blocks.append("\n".join([title, *map(_described, known.values())]))
    return "\n\n".join(blocks)


def _described(entry: registry.Entry) -> str:
    where = f" ({entry.origin})" if entry.origin else ""
    lines = [f"  {entry.name}{where}", f"      {entry.summary}"]
    return "\n".join([*lines, *(f"      {_parameter(one)}" for one in entry.parameters.values())])


def _parameter(one: Declared) -> str:
    default = standard(one)
    told = "" if default is inspect.Parameter.empty or default is None else f" = {default}"
    return f"{one.name}{told}: {one.param.help}; {one.needed}"
