"""The phase portrait at a few noise levels: density as a map, flow as arrows."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.figures import GREY, VERMILION, both, free, quiet, tiled

#: Most noise levels that are drawn, and log-density below its maximum at which a map ends [nats].
LEVELS, DEPTH = 4, 12.0


def portrait(dataset: xr.Dataset) -> hv.Layout:
    """Maps of the log-density, with the flow as arrows (the exact one in red, where it differs).

    Args:
        dataset: of the lens :class:`workbench.lenses.portrait.Portrait`.
    """
    count = dataset.sizes["node"]
    chosen = np.unique(np.linspace(0, count - 1, min(LEVELS, count)).round().astype(int))
    return tiled([_map(dataset.isel(node=int(i))) for i in chosen], inches=(3.5, 3.4))


def _map(one: xr.Dataset) -> hv.Overlay:
    parts = []
    if "log_density" in one:
        axes = one["x"].values, one["y"].values
        values = np.maximum(one["log_density"].values, -DEPTH)
        image = hv.Image((*axes, values), ["u1", "u2"], "log-density [nats]")
        parts.append(both(image, {"tools": ["hover"]}, {}, cmap="viridis"))
    for key, color in (("flow", GREY), ("flow_exact", VERMILION)):
        if key in one:
            parts.append(_arrows(one, key, color))
    title = f"ρ = {float(one['rho']):.3g}"
    common = {"title": title, "xlabel": "u₁ [x]", "ylabel": "u₂ [x]", "show_legend": False}
    page = {"responsive": True, "frame_height": 260, "hooks": [quiet]}
    return both(hv.Overlay(parts), page, {"aspect": "square", "hooks": [free]}, **common)


def _arrows(one: xr.Dataset, key: str, color: str) -> hv.Segments:
    """The longest arrow is as long as a cell; a segment leaves from the middle of its cell."""
    x, y = np.meshgrid(one["fx"].values, one["fy"].values)
    flow, cell = one[key].values, float(np.diff(one["fx"].values[:2])[0])
    longest = float(np.linalg.norm(one["flow"].values, axis=-1).max()) or 1.0
    ends = np.stack([x, y], -1) + cell * flow / longest
    columns = (x.ravel(), y.ravel(), ends[..., 0].ravel(), ends[..., 1].ravel())
    segments = hv.Segments(columns, ["u1", "u2", "end1", "end2"], label=key)
    return both(segments, {"line_width": 1.2}, {"linewidth": 0.8}, color=color)
