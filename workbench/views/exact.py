"""Exact truth drawn: one mode under every process, the emergence of modes, teleportation.

Each function takes the Dataset of a lens and gives a HoloViews object with options for both
backends: Bokeh on a page, and for a notebook or paper ``holoviews.render(figure,
backend="matplotlib")``. All are drawn over log10 rho, noise on the left.
"""

from __future__ import annotations

import math

import holoviews as hv
import numpy as np
import xarray as xr

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

#: Part of the colour map "plasma" that is readable on light and on dark.
PLASMA = (0.25, 0.8)

#: Modes from which their ranks stand on a logarithmic axis.
MANY = 24

RHO = hv.Dimension("log_rho", label="log₁₀ ρ    (ρ = σ/α [x]; noise left, data right)")
RHO_HOVER, TIME = hv.Dimension("rho", label="ρ [x]"), hv.Dimension("t", label="t")
AMPLITUDE = hv.Dimension("amplitude", label="amplitude of D, relative to its end")

HEIGHT = 280  # of a frame on a page [px]


def processes(lens: xr.Dataset) -> hv.Layout:
    """One mode of the denoised state under several processes, in their time and in rho.

    In time they differ; in rho they are one curve, so there each is drawn narrower than the one
    before and all are seen.

    Args:
        lens: of :func:`workbench.lenses.emergence.across_processes`.

    Returns:
        Two overlays, one curve per process: over t / t_max, and over log10 rho.
    """
    share = hv.Dimension("share", label="t / t_max    (noise left, data right)")
    in_time, in_rho = [], []
    names = lens["process"].values.tolist()
    widths = np.linspace(2.6 * len(names), 2.0, len(names))
    for i, name in enumerate(names):
        one = lens.sel(process=name)
        columns = {key: one[key].values for key in ("share", "amplitude", "t", "rho")}
        columns["log_rho"] = log10(columns["rho"])
        style = {"color": COLOURS[i % len(COLOURS)], "dashed": i >= len(COLOURS)}
        values = [AMPLITUDE, TIME, RHO_HOVER]
        in_time.append(_curve(columns, share, values, name, width=2.0, **style))
        there = np.isfinite(columns["log_rho"])
        drawn = {key: column[there] for key, column in columns.items()}
        in_rho.append(_curve(drawn, RHO, values, name, width=float(widths[i]), **style))
    variance = lens.attrs["variance"]
    left = _figure(in_time, f"In time: a mode with √λ = {variance**0.5:.3g}")
    return tiled([left, _figure(in_rho, "In ρ: one curve for all", columns=3)], tight_padding=1.2)


def emergence(lens: xr.Dataset, curves: int = 8) -> hv.Layout:
    """When the modes of Gaussian data emerge.

    Args:
        lens: of :func:`workbench.lenses.emergence.of_modes`.
        curves: most modes whose amplitude is drawn; they are spread over the spectrum.

    Returns:
        Amplitudes over log10 rho; and for every mode, by rank, a bar from 10 % to 90 % of the
        amplitude, a dot at 50 % of it and a tick at 50 % of the power, which is at the square root
        of the mode's variance.
    """
    ranks = lens["mode"].values
    picked = np.unique(np.geomspace(1, len(ranks), min(curves, len(ranks))).round().astype(int))
    palette = hv.plotting.util.process_cmap("plasma", 256)
    rho, log_rho = lens["rho"].values, log10(lens["rho"].values)
    span = tuple(np.sort(log_rho)[[0, -1]])
    drawn = []
    for i, rank in enumerate(picked.tolist()):
        one = lens.sel(mode=rank)
        at = PLASMA[0] + (PLASMA[1] - PLASMA[0]) * i / max(1, len(picked) - 1)
        columns = {"log_rho": log_rho, "amplitude": one["amplitude"].values, "rho": rho}
        name = f"{rank}: {float(one['variance']) ** 0.5:.2g}"
        color = palette[round(255 * at)]
        width = 5.0 - 3.0 * i / max(1, len(picked) - 1)  # modes of equal variance are all seen
        drawn.append(_curve(columns, RHO, [AMPLITUDE, RHO_HOVER], name, color, width))
    left = _figure(drawn, "Amplitude of modes, by rank: √λ [x]", columns=3, xlim=span)
    return tiled([left, _intervals(lens, span)], tight_padding=1.2)


def _intervals(lens: xr.Dataset, span: tuple[float, float]) -> hv.Overlay:
    """A bar, a dot and a tick for every mode."""
    ranks = lens["mode"].values
    many = len(ranks) > MANY
    low, middle, high = (log10(lens["rho_amplitude"].sel(fraction=f)) for f in (0.1, 0.5, 0.9))
    power = log10(lens["rho_power"].sel(fraction=0.5))
    deviations = np.sqrt(lens["variance"].values)
    mode = hv.Dimension("mode", label=f"rank of the mode{' (log scale)' if many else ''}")
    deviation = hv.Dimension("deviation", label="√λ [x]")
    end = hv.Dimension("log_rho_end", label="log₁₀ ρ at 10 %")
    below, above = hv.Dimension("below", label="from"), hv.Dimension("above", label="to")
    # On the log scale the first modes are bars, and the last fill their part of the axis.
    half = np.minimum(0.4, 0.06 * ranks) if many else np.full(len(ranks), 0.18)
    dot = float(np.clip(240.0 / len(ranks), 2.5, 9.0))
    bars = hv.Rectangles(
        (high, ranks - half, low, ranks + half, deviations), [RHO, below, end, above], [deviation]
    )
    bars = filled(bars, SKY, 0.35)
    # Rectangles have no place in a legend; a square that is nowhere stands for them there.
    square = hv.Scatter((middle[:1], [np.nan]), RHO, mode, label="10–90 % amplitude")
    square = both(square, {"marker": "square", "size": 9}, {"marker": "s", "s": 40}, color=SKY)
    dots = hv.Scatter((middle, ranks, deviations), RHO, [mode, deviation], label="50 % amplitude")
    dots = both(dots, {"size": dot, "tools": ["hover"]}, {"s": 0.5 * dot**2}, color=BLUE)
    ticks = hv.Segments(
        (power, ranks - 1.6 * half, power, ranks + 1.6 * half, deviations),
        [RHO, below, end, above],
        [deviation],
    ).relabel("50 % power: ρ = √λ")
    ticks = both(ticks, {"line_width": 2.2}, {"linewidth": 1.6}, color=VERMILION)
    ends = (0.8, 1.25 * len(ranks)) if many else (0.4, len(ranks) + 0.6)
    at = [(k, str(k)) for k in _ranks_told(len(ranks), many)]
    axes = {"xlim": span, "ylim": ends, "logy": many, "invert_yaxis": True, "yticks": at}
    parts = [bars, square, ticks, dots]
    return _figure(parts, "When each mode emerges", columns=2, ylabel=mode.label, **axes)


def teleportation(lens: xr.Dataset) -> hv.Overlay:
    """Error of skipping to a noise level by the matched Gaussian's flow, on a log-log plot.

    Args:
        lens: of :func:`workbench.lenses.teleport.teleportation`.

    Returns:
        The RMS displacement of the endpoint with its 10 to 90 % band over samples, the band below
        the solver's floor (not told from zero), and the data's standard deviation for scale.
    """
    rms, floor = lens["rms"].values, lens["floor"].values
    low, high = (lens["quantile"].sel(share=s).values for s in (0.1, 0.9))
    bottom = 10.0 ** math.floor(math.log10(max(floor.min() / 300, rms.min() / 1000)))
    std = float(lens.attrs["data_std"])
    top = 3 * max(rms.max(), high.max(), std)
    log_rho = log10(lens["rho"].values)
    error = hv.Dimension("displacement", label="displacement of the endpoint [x]")
    upper = hv.Dimension("upper", label="upper")

    def band(lower, higher, label: str, color: str, alpha: float) -> hv.Area:
        ends = (log_rho, np.maximum(lower, bottom), np.maximum(higher, bottom))
        area = hv.Area(ends, RHO, [error, upper], label=label)
        paper = {"facecolor": color, "edgecolor": "none", "show_legend": True}
        return both(area, {"line_alpha": 0}, paper, color=color, alpha=alpha)

    columns = {"log_rho": log_rho, "displacement": np.maximum(rms, bottom), "exactly": rms}
    columns |= {key: lens[key].values for key in ("t", "rho")}
    values = [error, TIME, RHO_HOVER, hv.Dimension("exactly", label="RMS [x]")]
    line = _curve(columns, RHO, values, "RMS", BLUE, width=2.0)
    points = hv.Scatter(columns, RHO, values)
    points = both(points, {"size": 7, "tools": ["hover"]}, {"s": 22}, color=BLUE)
    scale = {"log_rho": log_rho[[0, -1]], "displacement": np.full(2, std)}
    level = _curve(scale, RHO, [error], "std of data", GREY, width=1.2, dashed=True, hover=False)
    nothing = np.full_like(floor, bottom)
    parts = [
        band(nothing, floor, "null: solver's floor", GREY, 0.3),
        band(low, high, "10–90 % of samples", SKY, 0.35),
        level,
        line,
        points,
    ]
    title = "Endpoint error of a skip to ρ"
    return _figure(parts, title, columns=2, ylim=(bottom, top), logy=True)


# ---- what the figures share ----------------------------------------------------------------------


def _curve(
    columns: dict, key: hv.Dimension, values: list, label: str, color: str, width: float, **style
) -> hv.Curve:
    dims = [d.name for d in (key, *values)]
    line = hv.Curve({name: columns[name] for name in dims}, key, values, label=label)
    return curve(line, color, width, **style)


def over_rho(
    rho: np.ndarray, value: hv.Dimension, values, exact, label: str, color: str, told: bool
) -> list[hv.Curve]:
    """Values over the noise level and, dashed, the exact ones, if any.

    Args:
        told: whether the legend says what is dashed.
    """
    columns, dims = {"log_rho": log10(rho), "rho": rho, value.name: values}, [value, RHO_HOVER]
    drawn = [_curve(columns, RHO, dims, label, color, 2.0)]
    if exact is not None:
        columns, label = columns | {value.name: exact}, "exact" if told else ""
        drawn.append(_curve(columns, RHO, dims, label, VERMILION, 1.6, dashed=True, hover=False))
    return drawn


def _figure(parts: list, title: str, columns: int = 0, **axes) -> hv.Overlay:
    """An overlay with all that is the same for every figure; a legend of ``columns`` beneath it."""
    common = {"title": title, "invert_xaxis": True, "logy": False, "show_grid": True}
    common |= {"show_legend": columns > 0, "padding": (0.02, 0.04), **axes}
    common |= {"legend_position": "bottom", "legend_cols": columns} if columns else {}
    return framed(parts, HEIGHT, {}, {"legend_opts": {"handletextpad": 1.3}}, **common)


def _ranks_told(count: int, many: bool) -> list[int]:
    """Ranks that stand at the axis."""
    if many:
        told = [m * 10**p for p in range(5) for m in (1, 2, 5) if m * 10**p <= count / 1.2]
    else:
        told = list(range(1, count + 1, max(1, math.ceil(count / 12))))
    return [*told, count] if told[-1] < count else told
