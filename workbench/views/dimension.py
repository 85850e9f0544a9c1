"""Dimension curves over the noise level, with the range shaded in which each may be read."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.exact import RHO, _figure, over_rho
from workbench.views.figures import COLOURS, GREY, filled, tiled

VALUE = hv.Dimension("value", label="dimensions")
SINGULAR = hv.Dimension("singular", label="singular value")

#: The curves of each panel with their names in the legend; the first one's null band is drawn.
PANELS = {
    "By the field": {
        "flipd": "FLIPD",
        "trace": "trace",
        "lidl": "LIDL",
        "normal_bundle": "scores' SVD",
        "flow": "flow",
    },
    "By neighbours alone": {"mle": "MLE", "twonn": "TwoNN", "twonn_fit": "TwoNN, line"},
}

#: Singular values over the noise level, drawn where there are no more than these.
VALUES = {
    "score_values": "Singular values of ρ × score",
    "flow_values": "Singular values of the flow",
}
MOST = 8


def dimension(dataset: xr.Dataset) -> hv.Layout:
    """What each estimator says at each noise level.

    A bar at the foot, of a curve's colour, is where it may be read as a dimension; shaded is that
    of the first curve. Grey is what an even Gaussian of the same spread would show of it, dashed
    the exact value.

    Args:
        dataset: of the lens :class:`workbench.lenses.dimension.Dimension`.
    """
    drawn = [_panel(dataset, title, names) for title, names in PANELS.items()]
    for name, title in VALUES.items():
        if name in dataset and dataset.sizes["direction"] <= MOST:
            drawn.append(_values(dataset, name, title))
    # A legend stands beneath each panel.
    return tiled(drawn, tight=False, vspace=0.6, hspace=0.3)


def _panel(dataset: xr.Dataset, title: str, names: dict) -> hv.Overlay:
    there = [name for name in names if name in dataset]
    most = 1.08 * dataset.attrs["dim"]
    parts: list = []
    null = dataset.get(f"{there[0]}_null")
    if null is not None:
        ends = (null.sel(bound=b).values for b in ("low", "high"))
        columns = (np.log10(dataset["rho"].values), *ends)
        band = hv.Area(columns, RHO, [VALUE, "upper"], label="null band")
        parts.append(filled(band, GREY, 0.3))
    for i, name in enumerate(there):
        holds = dataset[name].attrs.get("holds") or []
        if len(holds):
            foot = -0.022 * most * (i + 1)
            parts.append(_box(np.log10(holds), (foot, foot + 0.016 * most), COLOURS[i], 0.9))
            if i == 0:
                parts.append(_box(np.log10(holds), (0.0, most), COLOURS[i], 0.08))
    for i, name in enumerate(there):
        exact = dataset.get(f"{name}_exact") if name in ("flipd", "trace", "lidl") else None
        drawn = dataset[name], exact, names[name], COLOURS[i], name == "flipd"
        parts += over_rho(dataset["rho"].values, VALUE, *drawn)
    return _figure(parts, title, columns=3, ylim=(-0.13 * most, most))


def _box(ends: np.ndarray, height: tuple, color: str, alpha: float) -> hv.Rectangles:
    """The range of noise in which a curve holds."""
    low, high = (float(end) for end in ends)
    pad = 0.02 if low == high else 0.0
    box = [(low - pad, height[0], high + pad, height[1])]
    dims = [RHO, VALUE, "log_rho_end", "value_end"]
    return filled(hv.Rectangles(box, dims), color, alpha)


def _values(dataset: xr.Dataset, name: str, title: str) -> hv.Overlay:
    parts, exact = [], dataset.get(f"{name}_exact")
    for k in range(dataset.sizes["direction"]):
        found = np.maximum(dataset[name][:, k], 1e-12)
        wanted = None if exact is None else np.maximum(exact[:, k], 1e-12)
        color = COLOURS[k % len(COLOURS)]
        drawn = found, wanted, f"{k + 1}", color, k == 0
        parts += over_rho(dataset["rho"].values, SINGULAR, *drawn)
    return _figure(parts, title, columns=5, logy=True)
