"""Dimension curves over the noise level, with the range shaded in which each may be read."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.exact import RHO, RHO_HOVER, _curve, _figure
from workbench.views.figures import COLOURS, GREY, INCHES, VERMILION, filled

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
    log_rho = np.log10(dataset["rho"].values)
    drawn = [_panel(dataset, log_rho, title, names) for title, names in PANELS.items()]
    for name, title in VALUES.items():
        if name in dataset and dataset.sizes["direction"] <= MOST:
            drawn.append(_values(dataset, log_rho, name, title))
    rows = -(-len(drawn) // 2)
    layout = hv.Layout(drawn).cols(2).opts(shared_axes=False, backend="bokeh")
    return layout.opts(
        backend="matplotlib",
        shared_axes=False,
        fig_inches=(2 * INCHES[0], rows * INCHES[1]),
        sublabel_format="",
        vspace=0.6,  # a legend stands beneath each panel
        hspace=0.3,
    )


def _panel(dataset: xr.Dataset, log_rho: np.ndarray, title: str, names: dict) -> hv.Overlay:
    there = [name for name in names if name in dataset]
    most = 1.08 * dataset.attrs["dim"]
    parts: list = []
    null = dataset.get(f"{there[0]}_null")
    if null is not None:
        band = hv.Area(
            (log_rho, *(null.sel(bound=b).values for b in ("low", "high"))),
            RHO,
            [VALUE, "upper"],
            label="null band",
        )
        parts.append(filled(band, GREY, 0.3))
    for i, name in enumerate(there):
        holds = dataset[name].attrs.get("holds") or []
        if len(holds):
            foot = -0.022 * most * (i + 1)
            parts.append(_box(np.log10(holds), (foot, foot + 0.016 * most), COLOURS[i], 0.9))
        if len(holds) and i == 0:
            parts.append(_box(np.log10(holds), (0.0, most), COLOURS[i], 0.08))
    for i, name in enumerate(there):
        columns = {"log_rho": log_rho, "rho": dataset["rho"].values}
        columns["value"] = dataset[name].values
        style = {"color": COLOURS[i], "width": 2.0}
        parts.append(_curve(columns, RHO, [VALUE, RHO_HOVER], names[name], **style))
        if f"{name}_exact" in dataset and name in ("flipd", "trace", "lidl"):
            columns["value"] = dataset[f"{name}_exact"].values
            label = "exact" if name == "flipd" else ""
            style = {"color": VERMILION, "width": 1.6, "dashed": True, "hover": False}
            parts.append(_curve(columns, RHO, [VALUE, RHO_HOVER], label, **style))
    return _figure(parts, title, columns=3, ylim=(-0.13 * most, most))


def _box(ends: np.ndarray, height: tuple, color: str, alpha: float) -> hv.Rectangles:
    """The range of noise in which a curve holds."""
    low, high = (float(end) for end in ends)
    pad = 0.02 if low == high else 0.0
    box = [(low - pad, height[0], high + pad, height[1])]
    dims = [RHO, VALUE, "log_rho_end", "value_end"]
    return filled(hv.Rectangles(box, dims), color, alpha)


def _values(dataset: xr.Dataset, log_rho: np.ndarray, name: str, title: str) -> hv.Overlay:
    parts = []
    for k in range(dataset.sizes["direction"]):
        columns = {"log_rho": log_rho, "rho": dataset["rho"].values}
        columns["singular"] = np.maximum(dataset[name].values[:, k], 1e-12)
        color = COLOURS[k % len(COLOURS)]
        parts.append(_curve(columns, RHO, [SINGULAR, RHO_HOVER], f"{k + 1}", color, 2.0))
        if f"{name}_exact" in dataset:
            columns["singular"] = np.maximum(dataset[f"{name}_exact"].values[:, k], 1e-12)
            label = "exact" if k == 0 else ""
            style = {"color": VERMILION, "width": 1.6, "dashed": True, "hover": False}
            parts.append(_curve(columns, RHO, [SINGULAR, RHO_HOVER], label, **style))
    return _figure(parts, title, columns=5, logy=True)
