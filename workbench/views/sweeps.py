"""A sweep drawn: one measure over one of its axes."""

from __future__ import annotations

import itertools

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.figures import COLOURS, quiet

#: Most curves of a figure.
MOST_CURVES = 16


def sweep(table: xr.Dataset, measure: str, axis: str) -> hv.Overlay:
    """A measure over an axis, one curve for each combination of the others; log-log if it can.

    Of more than :data:`MOST_CURVES` combinations the first are drawn.

    Args:
        table: what :meth:`workbench.studies.library.Library.table` gives.
        measure: one of its variables.
        axis: one of its dimensions.
    """
    others = [name for name in table["status"].dims if name != axis]
    x = table[axis].values
    numeric = x.dtype.kind in "iuf"
    x = x if numeric else np.array([str(one) for one in x], dtype=object)
    values = table[measure]
    finite = values.values[np.isfinite(values.values)]
    logs = {"logy": bool(finite.size and (finite > 0).all())}
    logs["logx"] = bool(numeric and (x > 0).all() and len(x) > 1)
    told = str(values.attrs.get("long_name", measure))
    unit = f" [{told.rpartition('[')[2]}" if told.endswith("]") else ""
    dims = hv.Dimension("at", label=axis), hv.Dimension("value", label=f"{measure}{unit}")
    places, drawn = np.ndindex(*(table.sizes[n] for n in others)), []
    for i, at in enumerate(itertools.islice(places, MOST_CURVES)):
        one = values.isel(dict(zip(others, at, strict=True)))
        kept = np.isfinite(one.values)
        order = np.argsort(x[kept]) if numeric else slice(None)
        points = (x[kept][order], one.values[kept][order])
        label = ", ".join(str(one[name].item()) for name in others) or measure
        colour = COLOURS[i % len(COLOURS)]
        if numeric:
            drawn.append(hv.Curve(points, *dims, label=label).opts(color=colour, line_width=2))
        drawn.append(hv.Scatter(points, *dims, label=label).opts(color=colour, size=8))
    opts = {"height": 360, "responsive": True, "show_grid": True, "hooks": [quiet], **logs}
    title = f"{measure} over {axis}"
    if logs["logy"]:
        opts["ylim"] = (finite.min() / 1.5, finite.max() * 1.5)
    if logs["logx"]:
        opts |= {"xlim": (x.min() / 1.15, x.max() * 1.15), "xticks": _ticks(x)}
    place = {"legend_position": "bottom", "legend_cols": 3, "show_legend": len(drawn) > 2}
    return hv.Overlay(drawn).opts(title=title, **opts, **place)


def _ticks(x: np.ndarray) -> list[tuple[float, str]]:
    """The values themselves: a logarithmic axis over less than a decade would show none."""
    every = np.unique(x)
    return [(float(one), f"{one:g}") for one in every[:: -(-len(every) // 10)]]
