"""What a page says of stored runs and sweeps: cells, facts, tables; which are meant, in what order.

Free of any toolkit; what comes from files is escaped where it becomes HTML.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from workbench.studies.entry import FIELDS, Entry
from workbench.studies.glance import Glance
from workbench.studies.sweep import MEASURES

#: Columns of the table: key, title, and how much room there must be [px].
COLUMNS = [
    ("name", "Name", 0),
    ("state", "State", 0),
    ("kind", "Kind", 700),
    ("data", "Data", 520),
    ("denoiser", "Denoiser", 1000),
    ("process", "Process", 520),
    ("sampler", "Sampler", 0),
    ("grid", "Grid", 1080),
    ("steps", "Steps", 440),
    ("samples", "Samples", 860),
    ("nfe", "NFE", 480),
    ("error", "Error", 600),
    ("seconds", "Time [s]", 860),
    ("device", "Device", 1300),
    ("date", "Date", 700),
    ("size", "Size", 1180),
]
NUMBERS = {"steps", "samples", "nfe", "error", "seconds", "size"}
KINDS = {"runs and sweeps": "all", "runs": "run", "sweeps": "sweep"}
ANYWHERE = "anywhere"
STATES = {"whole": "whole", "part": "not whole", "failed": "failed", "broken": "unreadable"}

#: Most rows of a table; a filter narrows what there is.
MOST_ROWS = 500


def values_of(entry: Entry, glance: Glance | None = None) -> dict[str, Any]:
    """An entry by the columns of the table."""
    known = {name: getattr(entry, name) for name in ("name", "kind", "nfe", "seconds", "device")}
    told = {"date": entry.written, "size": entry.size, "state": STATES[entry.state]}
    return known | entry.summary | told | {"error": glance.error if glance else None}


def error_of(glance: Glance) -> str:
    """The text of the column of errors, which is known only after a glance."""
    return "" if glance.error is None else f"{glance.error:.3g}"


def cells_of(entry: Entry) -> list[str]:
    """A text for each column, but of the error none yet."""
    shown = values_of(entry)
    shown |= {"date": f"{entry.date:%Y-%m-%d %H:%M}", "size": size_of(entry)}
    if entry.seconds is not None:
        shown["seconds"] = f"{entry.seconds:.3g}"
    if entry.axes:  # of a sweep, what its base says is changed along the axes
        keys = {name.replace(".", "_"): count for name, count in entry.axes.items()}
        keys = {key.removeprefix("grid_").removeprefix("seeds_"): n for key, n in keys.items()}
        shown |= {key: f"{n} values" for key, n in keys.items() if key in FIELDS}
    return ["" if shown.get(key) is None else str(shown[key]) for key, *_ in COLUMNS]


def size_of(entry: Entry) -> str:
    """The size in units of a thousand."""
    size, units = float(entry.size), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and unit != "GB":
        size, unit = size / 1000, next(units)
    return f"{'> ' if entry.more else ''}{size:.3g} {unit}"


def facts_of(entry: Entry) -> list[str]:
    """An entry in numbers, as short texts of HTML."""
    texts = [entry.kind, f"written {entry.date:%Y-%m-%d %H:%M:%S}", size_of(entry)]
    if entry.nfe is not None:
        texts.append(f"{entry.nfe} evaluations")
    if entry.seconds is not None:
        texts.append(f"{entry.seconds:.3g} s on {entry.device or 'an unknown device'}")
    if entry.axes:
        texts.append(" × ".join(f"{count} {name}" for name, count in entry.axes.items()))
    texts += [f"{name} {version}" for name, version in entry.versions.items()]
    return [escape(text) for text in [*texts, *([f"hash {entry.hash[:12]}"] if entry.hash else [])]]


def html_table(heads: Sequence[str], rows: Iterable[Sequence], caption: str = "") -> str:
    cell = "padding:4px 10px;text-align:left;border-bottom:1px solid"
    cell = f'style="{cell} color-mix(in srgb, currentColor 15%, transparent)"'
    top = "".join(f'<th scope="col" {cell}>{escape(str(head))}</th>' for head in heads)
    told = "".join(
        "<tr>" + "".join(f"<td {cell}>{escape(str(one))}</td>" for one in row) + "</tr>"
        for row in rows
    )
    return (
        '<div style="overflow-x:auto" tabindex="0"><table style="border-collapse:collapse;'
        f'font-variant-numeric:tabular-nums"><caption style="text-align:left;font-weight:600">'
        f"{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{told}</tbody></table></div>"
    )


def matches(entry: Entry, text: str, where: str, kind: str) -> bool:
    """Whether every word of ``text`` is somewhere in the entry, or in one column of it; of a sweep
    also in what its studies hold."""
    if kind not in ("all", entry.kind):
        return False
    cells = dict(zip((key for key, *_ in COLUMNS), cells_of(entry), strict=True))
    if where == ANYWHERE:
        every = itertools.chain.from_iterable(entry.values.values())
        held = " ".join([*cells.values(), entry.hash, *entry.values, *every])
    else:
        key = {"steps": "grid.steps", "samples": "seeds.count"}.get(where, where)
        held = " ".join([cells[where], *entry.values.get(key, ())])
    return all(word in held.lower() for word in text.lower().split())


def ordered(
    entries: Iterable[Entry], order: str, glances: Mapping[str, Glance] | None = None
) -> list[Entry]:
    """By a column, with a minus the other way; what has no value comes last."""
    key = order.removeprefix("-")

    def place(entry):
        value = values_of(entry, (glances or {}).get(entry.name)).get(key)
        if key in NUMBERS | {"date"}:  # of a store that says a text there, none
            return value if isinstance(value, int | float) else None
        return None if value is None else str(value).lower()

    entries = list(entries)
    has = [entry for entry in entries if place(entry) is not None]
    has.sort(key=lambda entry: entry.name)
    has.sort(key=place, reverse=order.startswith("-"))
    names = {entry.name for entry in has}
    return has + [entry for entry in entries if entry.name not in names]


def measured(table: xr.Dataset) -> list[str]:
    """The measures of which a sweep has any."""
    lenses = [name for name in table.data_vars if "." in str(name)]
    known = [name for name in dict.fromkeys((*MEASURES, *lenses)) if name in table]
    return [name for name in known if bool(table[name].notnull().any())]


def sweep_rows(table: xr.Dataset) -> str:
    """What a sweep measured, as HTML."""
    axes = list(table["status"].dims)
    shown = measured(table)
    index = itertools.islice(np.ndindex(table["status"].shape), MOST_ROWS)
    rows = []
    for at in index:
        one = table.isel(dict(zip(axes, at, strict=True)))
        numbers = [float(one[name]) for name in shown]
        told = ["" if math.isnan(number) else f"{number:.4g}" for number in numbers]
        rows.append([*(one[axis].item() for axis in axes), *told, one["status"].item()])
    left = table["status"].size - len(rows)
    caption = "What was measured" + (f" ({left} more points are in the store)" if left else "")
    return html_table([*axes, *shown, "status"], rows, caption)


def study_text(text: str) -> str:
    """The text of a study, as HTML."""
    line = "1px solid color-mix(in srgb, currentColor 18%, transparent)"
    style = f"overflow:auto;max-height:28em;padding:10px;border:{line};border-radius:6px"
    return f'<h4>Study</h4><pre tabindex="0" style="{style}">{escape(text)}</pre>'
