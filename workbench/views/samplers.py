"""Samplers compared: error over evaluations, over modes, over steps and variance; orders; grids.

Each function takes a Dataset of :mod:`workbench.lenses.convergence` and gives a HoloViews object
with options for both backends, Bokeh and matplotlib. ``names`` turns the Dataset's names of
samplers and grids into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.figures import (
    COLOURS,
    GREY,
    INCHES,
    VERMILION,
    both,
    colour,
    framed,
    log10,
    quiet,
    tiled,
)

#: By the first eight samplers, the next eight, ...: as many markers as tell forty apart.
MARKERS = {"bokeh": ("circle", "square", "triangle", "diamond", "inverted_triangle")}
MARKERS["matplotlib"] = ("o", "s", "^", "D", "v")

#: By grid: of a curve on a page, and on paper.
DASHES = {"bokeh": ("solid", "dashed", "dotted", "dotdash"), "matplotlib": ("-", "--", ":", "-.")}

#: What is drawn over the evaluations: words for the axis.
ERRORS = {
    "w2": "exact W₂ to the truth [x]",
    "kl": "exact KL to the truth [nats]",
    "rms": "RMS distance to the solution [x]",
}

NFE = hv.Dimension("nfe", label="evaluations of the denoiser (NFE)")
VARIANCE = hv.Dimension("variance", label="variance of the mode λ [x²]")

#: Most points of a curve over modes; a page is sent no more.
MOST_POINTS = 160

#: Errors told by the colours of the stability map, as powers of ten; above them it is unstable.
SPAN = (-6.0, 0.0)

#: Of maps on paper.
COLUMNS = 3

HEIGHT = 340  # of a frame on a page [px]


def convergence(
    lens: xr.Dataset, value: str = "w2", names: Mapping[str, str] | None = None
) -> hv.Overlay:
    """Error over the number of evaluations, one curve per sampler and grid, on a log-log plot.

    On a page a point leads to the run it stands for, if the Dataset has its query (``play``).

    Args:
        lens: of :func:`workbench.lenses.convergence.convergence` or ``paths``.
        value: "w2", "kl" or "rms".
    """
    error = hv.Dimension(value, label=ERRORS[value])
    curves, drawn = [], []
    for i, j, label, grid in _lines(lens, names):
        one = lens.isel(sampler=i, grid=j)
        y = one[value].values
        _, first = np.unique(one["nfe"].values, return_index=True)
        kept = first[np.isfinite(y[first]) & (y[first] > 0)]
        told = [name for name in ("nfe", value, "steps", "play") if name in lens]
        columns = {name: one[name].values[kept] for name in told}
        columns["of"] = np.full(len(kept), f"{label}, {grid}", object)
        curves.append(_styled(columns, NFE, error, i, j, label))
        drawn.append((i, columns))
    curves += _dashes(lens, NFE, error, names)
    every = np.concatenate([columns[value] for _, columns in drawn] or [np.ones(1)])
    floor = float(lens[f"floor_{value}"])
    nfe = lens["nfe"].values[lens["nfe"].values > 0]
    span = (nfe.min() / 1.15, nfe.max() * 1.15) if len(nfe) else (1.0, 10.0)
    scale = {"w2": 30 * np.linalg.norm(lens["target"]), "kl": 1e4} if value != "rms" else {}
    bottom, top = _limits(every, scale.get(value, math.inf))
    if floor > 0.03 * bottom:
        text = "the solution's own error" if value == "rms" else "the prior alone"
        bottom = min(bottom, floor / 1.6)
        level = hv.Curve((list(span), [floor] * 2), NFE, error, label=text)
        page = {"line_dash": "dashed", "line_width": 1.5}
        curves.append(both(level, page, {"linestyle": "--", "linewidth": 1.0}, color=GREY))
    tips = [("", "@of"), ("evaluations", "@nfe"), ("steps", "@steps"), (value, f"@{value}")]
    hooks = [_pointed(drawn, tips, 8)]
    title = "Distance to the solution" if value == "rms" else "Error over evaluations"
    ticks = [(2**k, f"{2**k}") for k in range(14) if span[0] <= 2**k <= span[1]]
    axes = {"logx": True, "logy": True, "xlim": span, "ylim": (bottom, top), "xticks": ticks}
    return _figure(curves, title, hooks=hooks, **axes)


def contributions(
    lens: xr.Dataset, nfe: int, names: Mapping[str, str] | None = None, value: str = "w2"
) -> hv.Overlay:
    """What each mode adds to the squared W2, or to the KL, for runs of at most ``nfe`` evaluations.

    Args:
        lens: of :func:`workbench.lenses.convergence.convergence`; ``nfe`` is one of its budgets.
        value: "w2" or "kl": both are sums over modes.
    """
    told, unit = {"w2": ("W₂²", "x²"), "kl": ("KL", "nats")}[value]
    part = hv.Dimension("part", label=f"part of {told} of the mode [{unit}]")
    at = lens.sel(budget=nfe)
    variances, ranks = lens["variance"].values, lens["mode"].values
    target = lens["target"].values
    alive = np.flatnonzero(variances > 0)
    few = len(alive) <= 24
    if len(alive) > MOST_POINTS:  # even in log rank: the last modes are many and alike
        even = np.geomspace(1, len(alive), MOST_POINTS).round().astype(int) - 1
        alive = alive[np.unique(even)]
    goal, drawn, curves = target[alive], [], []
    for i, j, label, grid in _lines(lens, names):
        one = at.isel(sampler=i, grid=j)
        std, bias = one["std"].values[alive], one["bias"].values[alive]
        if value == "w2":
            y, rounding = np.square(std - goal) + np.square(bias), np.square(1e-15 * goal)
        else:
            with np.errstate(all="ignore"):
                excess = np.square(std / goal) - 1
                y = 0.5 * (excess - np.log1p(excess)) + 0.5 * np.square(bias / goal)
            rounding = 1e-15
        kept = np.isfinite(y) & (y > rounding)
        columns = {"variance": variances[alive][kept], "part": y[kept], "mode": ranks[alive][kept]}
        columns["of"] = np.full(int(kept.sum()), f"{label}, {grid}", object)
        curves.append(_styled(columns, VARIANCE, part, i, j, label, points=few))
        drawn.append((i, columns))
    every = np.concatenate([columns["part"] for _, columns in drawn] or [np.ones(1)])
    most = 1e3 * np.square(target).max() if value == "w2" else 1e4
    limits = _limits(every, most, decades=12)
    title = f"Error by mode, {nfe} evaluations"
    tips = [("", "@of"), ("rank", "@mode"), ("λ", "@variance"), (f"part of {told}", "@part")]
    hooks = [_pointed(drawn, tips, 8 if few else 3)]
    low, high = (variances[alive].min(), variances[alive].max()) if len(alive) else (0.1, 1.0)
    axes = {"logx": True, "logy": True, "xlim": (low / 1.4, high * 1.4), "ylim": limits}
    return _figure(curves, title, legend=False, invert_xaxis=True, hooks=hooks, **axes)


def stability(lens: xr.Dataset, names: Mapping[str, str] | None = None) -> hv.Layout:
    """A map for each sampler: relative error of the standard deviation over steps and variance.

    Args:
        lens: of :func:`workbench.lenses.convergence.stability`.
    """
    steps, variance = hv.Dimension("log_steps", label="steps"), hv.Dimension("log_variance")
    variance = variance.clone(label="log₁₀ λ [x²]")
    log = hv.Dimension("log_error", label="log₁₀ |s/τ - 1|")
    x, y = np.log10(lens["steps"].values), np.log10(lens["variance"].values)
    even = np.linspace(x[0], x[-1], 4 * len(x))  # step counts are whole, so not even in the log
    nearest = np.abs(x[:, None] - even).argmin(0)
    ticks = [2**k for k in range(14) if x[0] <= np.log10(2**k) <= x[-1]]
    ticks = ticks[:: math.ceil(len(ticks) / 5)]
    maps = []
    for i, name in enumerate(lens["sampler"].values.tolist()):
        z = log10(np.abs(lens["error"].values[i]))
        z = np.where(np.isnan(z), 300.0, np.clip(z, -16.0, 300.0)).T  # what overflowed is unstable
        image = hv.Image((even, y, z[:, nearest]), [steps, variance], log)
        common = {"clim": SPAN, "cmap": "viridis", "colorbar": True, "show_grid": False}
        common |= {"title": _word(name, names), "clipping_colors": {"max": VERMILION}}
        common |= {"xticks": [(math.log10(n), str(n)) for n in ticks]}
        page = {
            "responsive": True,
            "frame_height": 200,
            "tools": ["hover"],
            "hooks": [quiet, _titled],
            "colorbar_opts": {"width": 10},
            "fontsize": {"title": "11pt", "labels": "9.5pt", "ticks": "8.5pt"},
        }
        paper = {
            "fig_inches": (3.2, 2.6),
            "aspect": 1.2,
            "hooks": [_free_image],
            "clabel": "",
            # Beside a colour bar there is no room for the label, which its row has already.
            "ylabel": "" if i % COLUMNS else variance.pprint_label,
            "fontsize": {"title": 9, "labels": 8, "ticks": 7},
        }
        maps.append(both(image, page, paper, **common))
    return tiled(maps, COLUMNS, (3.4, 2.9))


def orders(lens: xr.Dataset, names: Mapping[str, str] | None = None) -> hv.Overlay:
    """Measured orders as dots, claimed ones as bars across, one row per sampler.

    Args:
        lens: of :func:`workbench.lenses.convergence.orders`.
    """
    labels, y, rows = _rows(lens["sampler"], names)
    order = hv.Dimension("slope", label="order")
    place = hv.Dimension("place", label=" ")
    claimed = lens["claimed"].values.astype(float)
    claims = hv.Segments((claimed, y - 0.36, claimed, y + 0.36), [order, "low", "end", "high"])
    mark = hv.Scatter((claimed[:1], [math.nan]), order, place, label="claimed")
    parts = [
        both(claims, {"line_width": 3}, {"linewidth": 2.2}, color=VERMILION),
        both(mark, {"marker": "square", "size": 9}, {"marker": "s", "s": 30}, color=VERMILION),
    ]
    pairs = lens["pair"].values.tolist()
    for k, pair in enumerate(pairs):
        slope = lens["slope"].values[:, k]
        told = np.isfinite(slope)
        dots = hv.Scatter(
            (slope[told], y[told], claimed[told], np.array(labels, object)[told]),
            order,
            [place, hv.Dimension("claimed"), hv.Dimension("of")],
            label=f"measured, N = {pair}",
        )
        tips = [("sampler", "@of"), ("measured", "@slope{0.00}"), ("claimed", "@claimed")]
        last = k == len(pairs) - 1
        page = {"size": 11 if last else 8, "tools": ["hover"], "hover_tooltips": tips}
        color = COLOURS[0] if last else COLOURS[4]
        parts.append(both(dots, page, {"s": 40 if last else 22}, color=color))
    values = np.concatenate([claimed, lens["slope"].values.ravel()])
    values = values[np.isfinite(values)]
    rows |= {"xlim": (min(0.0, values.min() - 0.3), values.max() + 0.5), "hooks": [_one_column]}
    return _figure(parts, "Order of convergence", height=max(160, 30 * len(y) + 20), **rows)


def grids(lens: xr.Dataset, value: str = "w2", names: Mapping[str, str] | None = None) -> hv.Layout:
    """The error of one sampler on several grids, and their nodes as ticks on log rho.

    Args:
        lens: of :func:`workbench.lenses.convergence.grid_errors`.
        value: "w2" or "kl".
    """
    labels, y, rows = _rows(lens["grid"], names)
    error = hv.Dimension(value, label=ERRORS[value])
    place = hv.Dimension("place", label=" ")
    rho = hv.Dimension("log_rho", label="log₁₀ ρ    (ρ = σ/α; noise left, data right)")
    values = lens[value].values
    told = np.isfinite(values) & (values > 0)
    low = values[told].min() / 3 if told.any() else 0.1
    bars, ticks = [], []
    for i in range(len(labels)):
        color, at = colour(i), log10(lens["rho"].values[i])
        at = at[np.isfinite(at)]
        here = np.full(len(at), float(y[i]))
        tick = hv.Segments((at, here - 0.3, at, here + 0.3), [rho, "low", "end", "high"])
        ticks.append(both(tick, {"line_width": 2}, {"linewidth": 1.4}, color=color))
        if not told[i]:
            continue
        bar = hv.Segments(([low], [y[i]], [values[i]], [y[i]]), [error, "y", "end", "y2"])
        bars.append(both(bar, {"line_width": 9}, {"linewidth": 6}, color=color))
        columns = {value: [values[i]], "place": [y[i]], "nfe": [int(lens["nfe"][i])]}
        dot = hv.Scatter(columns, error, [place, "nfe"])
        bars.append(both(dot, {"size": 13, "tools": ["hover"]}, {"s": 50}, color=color))
    rows |= {"height": max(150, 40 * len(labels)), "legend": False}
    top = values[told].max() * 1.6 if told.any() else 1.0
    axis = {"logx": True, "xlim": (low, top), "xticks": _ticks(low, top)}
    left = _figure(bars, "Error by grid", **axis, **rows)
    return tiled([left, _figure(ticks, "Where the nodes lie", invert_xaxis=True, **rows)])


# ---- what the figures share ----------------------------------------------------------------------


def _lines(lens: xr.Dataset, names):
    """Place and words of every curve; those of one sampler share an entry of the legend."""
    for i, sampler in enumerate(lens["sampler"].values.tolist()):
        for j, grid in enumerate(lens["grid"].values.tolist()):
            yield i, j, _word(sampler, names), _word(grid, names)


def _rows(named: xr.DataArray, names) -> tuple[list[str], np.ndarray, dict]:
    """Words of what has a row each, the places of the rows, and options of their axis."""
    labels = [_word(name, names) for name in named.values.tolist()]
    y = np.arange(1, len(labels) + 1)
    options = {"yticks": list(zip(y.tolist(), labels, strict=True)), "ylabel": ""}
    return labels, y, options | {"ylim": (0.4, len(labels) + 0.6), "invert_yaxis": True}


def _dashes(lens: xr.Dataset, key, value, names) -> list[hv.Curve]:
    """Entries of the legend that tell the grids' dashes, where there are several grids."""
    grids = lens["grid"].values.tolist()
    made = []
    for j, grid in enumerate(grids if len(grids) > 1 else []):
        none = hv.Curve(([1.0], [math.nan]), key, value, label=f"{_word(grid, names)} grid")
        made.append(_dashed(none, j, GREY))
    return made


def _dashed(line: hv.Curve, grid: int, color: str, **paper) -> hv.Curve:
    """A line with the dashes of a grid."""
    dash = grid % len(DASHES["bokeh"])
    page = {"line_width": 2, "line_dash": DASHES["bokeh"][dash]}
    paper |= {"linewidth": 1.4, "linestyle": DASHES["matplotlib"][dash]}
    return both(line, page, paper, color=color)


def _word(name: str, names: Mapping[str, str] | None) -> str:
    return name if names is None else names.get(name, name)


def _styled(columns, key, value, i: int, j: int, label: str, points: bool = True) -> hv.Curve:
    """A line: colour and marker by sampler, dashes by grid. A page adds the points, see
    :func:`_pointed`: as elements of their own they would take as long again."""
    line = {name: columns[name] for name in (key.name, value.name)}
    marker = _marker(i, "matplotlib") if points else None
    curve = hv.Curve(line, key, value, label=label)
    return _dashed(curve, j, colour(i), ms=4, marker=marker)


def _marker(i: int, backend: str) -> str:
    return MARKERS[backend][i // len(COLOURS) % len(MARKERS[backend])]


def _pointed(drawn: list[tuple[int, dict]], tips: list[tuple[str, str]], size: float):
    """A hook that draws the points of each curve, says their numbers, and opens their runs.

    Args:
        drawn: the sampler's place and the columns of each curve, in their order.
        tips: what hovering over a point says.
    """

    def hook(plot, element) -> None:
        from bokeh.models import HoverTool, Line, OpenURL, TapTool

        figure = plot.state
        lines = [r for r in figure.renderers if isinstance(r.glyph, Line)]
        dots = []
        for line, (i, columns) in zip(lines, drawn, strict=False):
            x, y = line.glyph.x, line.glyph.y
            line.data_source.data = dict(line.data_source.data) | columns
            kind, color = _marker(i, "bokeh"), colour(i)
            dot = figure.scatter(x, y, source=line.data_source, marker=kind, size=size, color=color)
            line.name = dot.name = str(columns["of"][0]) if len(columns["of"]) else None
            dot.nonselection_glyph = dot.selection_glyph = None
            dots.append(dot)
            for item in (item for legend in figure.legend for item in legend.items):
                if line in item.renderers:
                    item.renderers = [*item.renderers, dot]
        figure.add_tools(HoverTool(renderers=dots, tooltips=tips))
        if dots and "play" in drawn[0][1]:
            tap = TapTool(renderers=dots, callback=OpenURL(url="./trajectories?@play"))
            figure.add_tools(tap)
            figure.toolbar.active_tap = tap

    return hook


def _figure(
    parts: list, title: str, legend: bool = True, hooks=(), height: int = HEIGHT, **common
) -> hv.Overlay:
    """An overlay with all that is the same for every figure; the legend beneath it."""
    common = {"title": title, "show_grid": True, "show_legend": legend, **common}
    common |= {"legend_position": "bottom"} if legend else {}
    paper = {"legend_cols": 3} if legend else {}
    paper["fig_inches"] = (1.35 * INCHES[0], 1.25 * INCHES[1])
    paper["fontsize"] = {"title": 10, "labels": 9, "ticks": 8, "legend": 7}
    page = {"hooks": [quiet, _titled, _legend, *hooks]}
    return framed(parts, height, page, paper, **common)


def _legend(plot, element) -> None:
    """A legend as narrow as a small screen needs; a click on an entry hides its curve."""
    for legend in plot.state.legend:
        legend.ncols, legend.click_policy = 2, "hide"
        legend.label_text_font_size, legend.label_height = "8.5pt", 12
        legend.glyph_width, legend.spacing, legend.margin = 16, 4, 4


def _one_column(plot, element) -> None:
    """A legend of long words, in a panel."""
    for legend in plot.state.legend:
        legend.ncols = 1


def _titled(plot, element) -> None:
    """A title that is read on light and on dark."""
    plot.state.title.text_color, plot.state.title.text_font_style = "#808080", "normal"


def _free_image(plot, element) -> None:
    plot.handles["axis"].set_aspect("auto")


def _limits(values: np.ndarray, most: float, decades: float = 14) -> tuple[float, float]:
    """The range of a log axis up to ``most``: what blew up does not set its scale."""
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 0.1, 1.0
    top = max(min(values.max(), most), values.min())
    return max(values.min(), top * 10.0**-decades) / 1.6, top * 1.6


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of a log axis: one, two and five where there are few decades."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    values = [m * 10.0**p for p in powers for m in steps]
    return [(v, f"{v:g}") for v in values if low <= v <= high]
