"""The figure of any lens: each estimate with its error, its exact value and its null band.

Single numbers are rows of one panel a unit; curves run along their coordinate (noise levels on a
logarithmic axis, noise left); of two dims the shorter is told apart by colour, or by a heat map
where it is long. A lens with a figure of its own in :data:`OWN` is drawn by that.
"""

from __future__ import annotations

from collections.abc import Callable
from textwrap import wrap

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.lenses.base import estimates
from workbench.views import exact
from workbench.views.decomposition import asymmetry, gauge
from workbench.views.dimension import dimension
from workbench.views.figures import (
    BLUE,
    COLOURS,
    GREY,
    SKY,
    VERMILION,
    both,
    curve,
    filled,
    framed,
    log10,
    tiled,
)
from workbench.views.frequency import frequency
from workbench.views.portrait import portrait

#: Figures that lenses have of their own, by their names.
OWN: dict[str, Callable[[xr.Dataset], hv.Element]] = {
    "asymmetry": asymmetry,
    "dimension": dimension,
    "emergence": exact.emergence,
    "frequency": frequency,
    "gauge": gauge,
    "teleportation": exact.teleportation,
    "portrait": portrait,
    "processes": exact.processes,
}

#: Most panels of a figure, most curves of one, and the height of a frame on a page [px].
PANELS, CURVES, HEIGHT = 6, 8, 260

#: Letters in a line of a title.
TITLE = 30


def figure(dataset: xr.Dataset, name: str = "") -> hv.Layout | hv.Overlay:
    """The figure of what a lens measured.

    Args:
        dataset: of :func:`workbench.lenses.measure`.
        name: of the lens; with a figure of its own it is drawn by that.

    Raises:
        ValueError: a dataset without an estimate that can be drawn.
    """
    if name in OWN:
        return OWN[name](dataset)
    known = [
        key
        for key in estimates(dataset)
        if np.issubdtype(dataset[key].dtype, np.number) and "end" not in dataset[key].dims
    ]  # an interval is told, and stands about an estimate that is drawn
    ndim = {key: dataset[key].squeeze().ndim for key in known if dataset[key].size}
    units: dict[str, list[str]] = {}
    for key in (key for key, n in ndim.items() if n == 0):
        units.setdefault(dataset[key].attrs.get("units", ""), []).append(key)
    panels = [_readings(dataset, keys, unit) for unit, keys in units.items()]
    draws = {1: _curve_panel, 2: _surface}
    panels += [draws[n](dataset, key) for key, n in ndim.items() if n in draws]
    if not panels:
        raise ValueError(f"{name or 'this lens'} measured nothing that can be drawn.")
    return panels[0] if len(panels) == 1 else tiled(panels[:PANELS])


def _said(dataset: xr.Dataset, key: str) -> str:
    """What an estimate is, with its unit."""
    attrs = dataset[key].attrs
    return f"{attrs.get('long_name', key)}{_unit(attrs.get('units', ''))}"


def _unit(unit: str) -> str:
    return "" if unit in ("", "1") else f" [{unit}]"


def _beside(dataset: xr.Dataset, key: str) -> tuple[np.ndarray | None, ...]:
    """Standard error, exact value, and both ends of the null band, of what has them."""

    def value(end: str, **which) -> np.ndarray | None:
        if key + end not in dataset:
            return None
        return np.asarray(dataset[key + end].sel(**which).values, dtype=float).squeeze()

    return value("_se"), value("_exact"), value("_null", bound="low"), value("_null", bound="high")


def _readings(dataset: xr.Dataset, keys: list[str], unit: str) -> hv.Overlay:
    """Single numbers: a dot with two standard errors, a tick at the exact value, the null band."""
    number, row = hv.Dimension("number", label=f"value{_unit(unit)}"), "row"
    bands, bars, ticks, dots = [], [], [], []
    for i, key in enumerate(keys):
        y, value = len(keys) - i, dataset[key].values.item()
        error, known, low, high = _beside(dataset, key)
        dots.append((value, y, _said(dataset, key)))
        if error is not None and np.isfinite(error):
            bars.append((value - 2 * float(error), y, value + 2 * float(error), y))
        if known is not None:
            ticks.append((float(known), y - 0.3, float(known), y + 0.3))
        if low is not None and np.isfinite(high):
            bands.append((float(low), y - 0.36, float(high), y + 0.36))
    parts = []
    if bands:
        parts.append(filled(hv.Rectangles(bands, [number, row, "to", "row to"]), GREY, 0.3))
    for segments, color, width in ((bars, SKY, 5), (ticks, VERMILION, 2.4)):
        if segments:
            drawn = hv.Segments(segments, [number, row, "to", "row to"])
            width = {"line_width": width}, {"linewidth": 0.7 * width}
            parts.append(both(drawn, *width, color=color))
    drawn = hv.Scatter(dots, number, [row, hv.Dimension("about", label="what")])
    parts.append(both(drawn, {"size": 9, "tools": ["hover"]}, {"s": 36}, color=BLUE))
    legend = _legend(bool(bars), bool(ticks), bool(bands))
    names = [(len(keys) - i, key) for i, key in enumerate(keys)]
    common = {"yticks": names, "ylabel": "", "ylim": (0.4, len(keys) + 0.6)}
    title = _said(dataset, keys[0]) if len(keys) == 1 else "Single numbers"
    return _overlay([*parts, *legend], title, {"xlabel": number.label, **common})


def _legend(error: bool, known: bool, null: bool) -> list:
    """Entries of a legend for what has no label of its own; drawn nowhere."""
    entries = [("estimate ± 2 se" if error else "estimate", BLUE, "circle", "o")]
    entries += [("exact", VERMILION, "dash", "|")] if known else []
    entries += [("null band", GREY, "square", "s")] if null else []
    return [
        both(
            hv.Scatter(([np.nan], [np.nan]), "number", "row", label=label),
            {"marker": marker, "size": 9},
            {"marker": paper, "s": 36, "edgecolors": None},
            color=color,
        )
        for label, color, marker, paper in entries
    ]


def _axis(array: xr.DataArray) -> tuple[np.ndarray, str, bool, list[tuple[int, str]] | None]:
    """Where the values of a one-dimensional array stand: places, label, reversed, names."""
    (dim,) = array.dims
    coords = {name for name, c in array.coords.items() if c.dims == (dim,)}
    name = "rho" if "rho" in coords else next((n for n in (dim, "t") if n in coords), dim)
    if name not in coords:
        return np.arange(array.sizes[dim], dtype=float), str(name), name == "t", None
    values, attrs = array.coords[name].values, array.coords[name].attrs
    if not np.issubdtype(values.dtype, np.number):
        return np.arange(len(values)), str(name), False, [(i, str(v)) for i, v in enumerate(values)]
    said = attrs.get("long_name", str(name))
    if attrs.get("scale") == "log":
        place = np.log10(values.astype(float))
        names = [(float(p), f"{v:g}") for p, v in zip(place, values, strict=True)]
        return place, said, False, names
    if name == "rho":
        return log10(values), exact.RHO.label, True, None
    return values.astype(float), said, name == "t", None


def _line(x, y, label: str, color: str, dashed: bool = False, width: float = 2.0) -> hv.Curve:
    return curve(hv.Curve((x, y), "place", "value", label=label), color, width, dashed)


def _dots(x, y, label: str, color: str, marker=("circle", "o"), size: float = 9) -> hv.Scatter:
    """Values at names."""
    dots = hv.Scatter((x, y), "place", "value", label=label)
    page = {"size": size, "marker": marker[0], "line_width": 2.4, "tools": ["hover"]}
    paper = {"s": 5 * size, "marker": marker[1], "edgecolors": None}
    return both(dots, page, paper, color=color)


def _bars(x, low, high, label: str, color: str, alpha: float, width: float = 14) -> hv.Segments:
    """Intervals at names."""
    there = np.isfinite(low) & np.isfinite(high)
    bars = hv.Segments((x[there], low[there], x[there], high[there]), label=label)
    bars = bars.redim(x0="place", y0="value", x1="end", y1="upper")
    width = {"line_width": width}, {"linewidth": 0.7 * width}
    return both(bars, *width, color=color, alpha=alpha)


def _band(x, low, high, label: str, color: str, alpha: float) -> hv.Area:
    area = hv.Area((x, low, high), "place", ["value", "upper"], label=label)
    paper = {"facecolor": color, "edgecolor": "none", "show_legend": True}
    return both(area, {"line_alpha": 0}, paper, color=color, alpha=alpha)


def _curve_panel(dataset: xr.Dataset, key: str) -> hv.Overlay:
    """One estimate along its coordinate."""
    place, label, turned, names = _axis(dataset[key].squeeze())
    parts = _curve(dataset, key, place, names, "estimate", (BLUE, SKY, VERMILION))
    options = {"xlabel": label, "ylabel": key, "invert_xaxis": turned, **_scale(dataset, key)}
    if names:
        options |= _named(place, names)
    elif len(place) <= 12 and np.array_equal(place, place.round()):
        options["xticks"] = [(float(p), f"{int(p)}") for p in place]
    return _overlay(parts, _said(dataset, key), options)


def _named(place: np.ndarray, names: list) -> dict:
    room = 0.5 if np.array_equal(place, np.arange(len(place))) else 0.0
    spread = room or 0.06 * (np.ptp(place) or 1.0)
    turned = {"xrotation": 30} if sum(len(name) for _, name in names) > 36 else {}
    return turned | {
        "xticks": names,
        "xlim": (float(place.min()) - spread, float(place.max()) + spread),
    }


def _scale(dataset: xr.Dataset, key: str) -> dict:
    """A logarithmic axis for what says so in its attributes, and is positive."""
    values = np.asarray(dataset[key].values, dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if dataset[key].attrs.get("scale") != "log" or not len(positive):
        return {}
    return {"logy": True, "ylim": (float(positive.min()) / 3, float(positive.max()) * 3)}


def _curve(
    dataset: xr.Dataset, key: str, place: np.ndarray, names: list | None, label: str, colors: tuple
) -> list:
    """An estimate of one dim with its error, its null band and its exact value.

    Args:
        colors: of the estimate, of the error, and of the exact value.
    """
    color, error_color, exact_color = colors
    value = np.asarray(dataset[key].squeeze().values, dtype=float)
    error, known, low, high = _beside(dataset, key)
    there = np.isfinite(place)
    columns = (place, value, error, known, low, high)
    place, value, error, known, low, high = (c if c is None else c[there] for c in columns)
    least = _scale(dataset, key).get("ylim", (-np.inf,))[0]
    # Between names there is nothing, and no line.
    apart = bool(names) and np.array_equal(place, np.arange(len(place)))
    parts = []
    if low is not None:
        low = np.maximum(low, least)
        high = np.maximum(high, least)
        interval = _bars if apart else _band
        parts.append(interval(place, low, high, "null band", GREY, 0.3))
    if error is not None and (apart or len(place) > 1):
        ends = np.maximum(value - 2 * error, least), value + 2 * error
        if apart:
            parts.append(_bars(place, *ends, "± 2 se", error_color, 1.0, width=5))
        else:
            parts.append(_band(place, *ends, "± 2 se", error_color, 0.35))
    parts.append((_dots if apart else _line)(place, value, label, color))
    if len(place) <= 40 and not apart:
        dots = hv.Scatter((place, value), "place", "value")
        parts.append(both(dots, {"size": 6}, {"s": 16}, color=color))
    if known is not None:
        if apart:
            parts.append(_dots(place, known, "exact", exact_color, ("dash", "|"), 16))
        else:
            parts.append(_line(place, known, "exact", exact_color, dashed=True, width=1.8))
    return parts


def _surface(dataset: xr.Dataset, key: str) -> hv.Overlay:
    """Two dims: curves told apart by colour, or a heat map where there would be too many."""
    array = dataset[key].squeeze()
    # Names are told apart along the axis rather than by colour.
    short, long = sorted(array.dims, key=lambda dim: array.sizes[dim])
    array = array.transpose(short, long)
    place, label, turned, names = _axis(array.isel({short: 0}, drop=True))
    there = np.isfinite(place)
    options = {"xlabel": label, "invert_xaxis": turned}
    options |= _named(place, names) if names else {}
    rows = array.coords[short].values if short in array.coords else np.arange(array.sizes[short])
    if len(rows) <= CURVES:
        parts = []
        for i, row in enumerate(rows):
            color = COLOURS[i % len(COLOURS)]
            text = f"{short} {row:.3g}" if isinstance(row, float) else f"{short} {row}"
            one = dataset.isel({short: i}, drop=True)
            parts += _curve(one, key, place, names, text, (color, color, color))
        options |= {"ylabel": key, **_scale(dataset, key)}
        return _overlay(parts, _said(dataset, key), options)
    order = np.argsort(place[there])
    values = np.asarray(array.values, dtype=float)[:, there][:, order]
    heat = hv.QuadMesh((place[there][order], np.arange(len(rows)), values), ["place", short], key)
    heat = both(heat, {"tools": ["hover"]}, {}, cmap="viridis", colorbar=True)
    return _overlay([heat], _said(dataset, key), {**options, "ylabel": short})


def _overlay(parts: list, title: str, options: dict) -> hv.Overlay:
    # A figure in a dock is narrow, and cuts a title that does not fit on its line.
    title = "\n".join(wrap(title, TITLE))
    common = {"title": title, "show_grid": True, "padding": (0.04, 0.08), **options}
    common |= {"show_legend": True, "legend_position": "bottom", "legend_cols": 3}
    return framed(parts, HEIGHT, {}, {}, **common)
