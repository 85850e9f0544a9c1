"""The gradient and the gauge part of a score over the noise level, and how far it is from one."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.exact import _figure, over_rho
from workbench.views.figures import COLOURS, tiled

#: Curves of each panel, with their names in the legend.
PARTS = {"conservative": "gradient part", "gauge": "gauge part", "gauge_least": "at least"}
WRONG = {"error": "wrong", "gauge": "gauge, free", "violation": "violation"}
TURNED = {"asymmetry": "ρ²∇s, antisymmetric part", "share": "share of D's Jacobian"}

SQUARE = hv.Dimension("square", label="mean square of ρ s per coordinate")
SIZE = hv.Dimension("size", label="root mean square")
NATS = hv.Dimension("nats", label="circulation [nats]")

#: Values below this are rounding, and not drawn on a logarithmic axis.
LEAST = 1e-10


def gauge(dataset: xr.Dataset) -> hv.Layout:
    """What the score is made of at each noise level, and what of it is wrong; exact values dashed.

    Args:
        dataset: of the lens :class:`workbench.lenses.gauge.Gauge`.
    """
    left = _curves(dataset, PARTS, SQUARE, "What the score is made of")
    return tiled([left, _curves(dataset, WRONG, SQUARE, "What is wrong with it")])


def asymmetry(dataset: xr.Dataset) -> hv.Layout | hv.Overlay:
    """How far the score is from a gradient at each noise level, and its circulation.

    Args:
        dataset: of the lens :class:`workbench.lenses.gauge.Asymmetry`.
    """
    left = _curves(dataset, TURNED, SIZE, "Antisymmetric part")
    if "circulation" not in dataset:
        return left
    names = {"circulation": "around the data"}
    return tiled([left, _curves(dataset, names, NATS, "Circulation", logy=False)])


def _curves(
    dataset: xr.Dataset, names: dict[str, str], value: hv.Dimension, title: str, logy: bool = True
) -> hv.Overlay:
    parts: list = []
    there = [name for name in names if name in dataset]
    if logy and not any((dataset[name].values > LEAST).any() for name in there):
        title, logy = f"{title}: zero to rounding", False

    def shown(key: str) -> np.ndarray | None:
        if key not in dataset:
            return None
        values = np.asarray(dataset[key].values, dtype=float)
        return np.where(values > LEAST, values, np.nan) if logy else values

    for i, name in enumerate(there):
        drawn = shown(name), shown(f"{name}_exact"), names[name], COLOURS[i], i == 0
        parts += over_rho(dataset["rho"].values, value, *drawn)
    return _figure(parts, title, columns=3, logy=logy)
