"""The gradient and the gauge part of a score: curves over the noise level, and fields as arrows."""

from __future__ import annotations

import holoviews as hv
import holoviews.plotting.bokeh
import holoviews.plotting.mpl
import numpy as np
import xarray as xr

from workbench.views.exact import RHO, RHO_HOVER, _curve, _figure
from workbench.views.figures import COLOURS, GREY, VERMILION, free, quiet, side_by_side

__all__ = ["asymmetry", "fields", "gauge"]

#: Curves of each panel, with their names in the legend.
PARTS = {"conservative": "gradient part", "gauge": "gauge part", "gauge_least": "at least"}
WRONG = {"error": "wrong", "gauge": "gauge, free", "violation": "violation"}
TURNED = {"asymmetry": "ρ²∇s, antisymmetric part", "share": "share of D's Jacobian"}

SQUARE = hv.Dimension("square", label="mean square of ρ s per coordinate")
SIZE = hv.Dimension("size", label="root mean square")
NATS = hv.Dimension("nats", label="circulation [nats]")

#: Values below this are rounding, and not drawn on a logarithmic axis.
LEAST = 1e-10

#: Arrows along each axis of a field, and the panels.
ARROWS = 18
FIELDS = {"field": "score", "conservative": "its gradient part", "gauge": "its gauge part"}


def gauge(dataset: xr.Dataset) -> hv.Layout:
    """What the score is made of at each noise level, and what of it is wrong; exact values dashed.

    Args:
        dataset: of the lens :class:`workbench.lenses.gauge.Gauge`.
    """
    left = _curves(dataset, PARTS, SQUARE, "What the score is made of")
    return side_by_side(left, _curves(dataset, WRONG, SQUARE, "What is wrong with it"))


def asymmetry(dataset: xr.Dataset) -> hv.Layout | hv.Overlay:
    """How far the score is from a gradient at each noise level, and its circulation.

    Args:
        dataset: of the lens :class:`workbench.lenses.gauge.Asymmetry`.
    """
    left = _curves(dataset, TURNED, SIZE, "Antisymmetric part")
    if "circulation" not in dataset:
        return left
    names = {"circulation": "around the data"}
    return side_by_side(left, _curves(dataset, names, NATS, "Circulation", logy=False))


def _curves(
    dataset: xr.Dataset, names: dict[str, str], value: hv.Dimension, title: str, logy: bool = True
) -> hv.Overlay:
    rho, parts = dataset["rho"].values, []
    there = [name for name in names if name in dataset]

    def shown(key: str) -> np.ndarray:
        values = np.asarray(dataset[key].values, dtype=float)
        return np.where(values > LEAST, values, np.nan) if logy else values

    any_shown = [name for name in there if np.isfinite(shown(name)).any()]
    for i, name in enumerate(there):
        columns = {"log_rho": np.log10(rho), "rho": rho, value.name: shown(name)}
        parts.append(_curve(columns, RHO, [value, RHO_HOVER], names[name], COLOURS[i], 2.0))
        if f"{name}_exact" in dataset:
            columns[value.name] = shown(f"{name}_exact")
            label = "exact" if i == 0 else ""
            style = {"color": VERMILION, "width": 1.6, "dashed": True, "hover": False}
            parts.append(_curve(columns, RHO, [value, RHO_HOVER], label, **style))
    if logy and not any_shown:
        return _figure(parts, f"{title}: zero to rounding", columns=3, ylim=(LEAST, 1.0), logy=True)
    return _figure(parts, title, columns=3, logy=logy)


def fields(found: xr.Dataset, names: dict[str, str] | None = None) -> hv.Layout:
    """A field, its gradient part and its gauge part as arrows, of one scale, over the density.

    Args:
        found: of :func:`workbench.lenses.gauge.gauge_map`.
        names: fields and the titles of their panels; None: those three.
    """
    names = FIELDS if names is None else names
    longest = float(np.sqrt((found["field"] ** 2).sum("component")).quantile(0.95)) or 1.0
    panels = [_field(found, name, title, longest) for name, title in names.items()]
    layout = hv.Layout(panels).cols(len(panels)).opts(shared_axes=False, backend="bokeh")
    return layout.opts(
        backend="matplotlib",
        shared_axes=False,
        fig_inches=(3.2 * len(panels), 3.4),
        sublabel_format="",
        tight=True,
    )


def _field(found: xr.Dataset, name: str, title: str, longest: float) -> hv.Overlay:
    x, y = found["x"].values, found["y"].values
    step = max(1, len(x) // ARROWS)
    cell = step * (x[1] - x[0])
    density = np.nan_to_num(found["density"].values)
    image = hv.Image((x, y, np.sqrt(density)), ["x", "y"], "root of the density, over its largest")
    image = image.opts(backend="bokeh", cmap="viridis", tools=["hover"])
    image = image.opts(backend="matplotlib", cmap="viridis")
    arrows = found[name].values[step // 2 :: step, step // 2 :: step]
    starts = np.stack(np.meshgrid(x[step // 2 :: step], y[step // 2 :: step]), -1)
    there = np.isfinite(arrows).all(-1)
    starts, arrows = starts[there], arrows[there] / longest
    # No arrow is longer than a cell and a half: far out scores are larger than near the data.
    length = np.linalg.norm(arrows, axis=-1, keepdims=True)
    ends = starts + cell * arrows * np.minimum(1.0, 1.5 / np.maximum(length, 1e-300))
    lines = hv.Segments((*starts.T, *ends.T), ["x", "y", "to x", "to y"])
    lines = lines.opts(backend="bokeh", color=VERMILION, line_width=1.4)
    lines = lines.opts(backend="matplotlib", color=VERMILION, linewidth=0.9)
    dots = hv.Points(starts, ["x", "y"]).opts(backend="bokeh", color=GREY, size=2)
    dots = dots.opts(backend="matplotlib", color=GREY, s=2)
    text = f"{title}, ρ = {found.attrs['rho']:.3g}"
    common = {"title": text, "xlabel": "x [x]", "ylabel": "y [x]", "show_legend": False}
    overlay = hv.Overlay([image, dots, lines]).opts(
        backend="bokeh", responsive=True, frame_height=260, hooks=[quiet], **common
    )
    return overlay.opts(backend="matplotlib", aspect="square", hooks=[free], **common)
