"""Emergence of the bands of a picture: a heat map over the noise level, and when each is there."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.exact import RHO
from workbench.views.figures import BLUE, GREY, SKY, VERMILION, both, log10, placed, tiled
from workbench.views.panels import block, plain

BAND = hv.Dimension("place", label="band [cycles per shorter side]")
HEIGHT = 280  # of a frame on a page [px]


def frequency(lens: xr.Dataset) -> hv.Layout:
    """The share of each band that has emerged, and the noise levels at 10, 50 and 90 %.

    Args:
        lens: of :class:`workbench.lenses.frequency.Frequency`.

    Returns:
        A heat map with where half of each band is there, measured and as Gaussian data have it; and
        for every band a bar from 10 to 90 %, a dot with its interval at 50 %, and a tick where
        Gaussian data have it.
    """
    rho, names = lens["rho"].values, [str(name) for name in lens["band"].values]
    there = np.flatnonzero(np.isfinite(rho) & (rho > 0))[::-1]
    x, places = np.log10(rho[there]), np.arange(len(names))
    share = hv.Dimension("share", label="share of the band that has emerged")
    heat = hv.QuadMesh((x, places, lens["emerged"].values[there].T), [RHO, BAND], share)
    heat = both(heat, {"tools": ["hover"]}, {}, cmap="viridis", clim=(0, 1), colorbar=True)
    when = lens["rho_power"].values
    low, middle, high = np.log10(when).T
    parts = [heat, _line(middle, places, "half of it", "#ffffff", "solid")]
    gaussian = None
    if "rho_power_gaussian" in lens:
        gaussian = np.log10(lens["rho_power_gaussian"].values[:, 1])
        parts.append(_line(gaussian, places, "Gaussian data", "#ff9d5c", "dashed"))
    ticks = list(zip(places.tolist(), names, strict=True))
    limits = (float(x.min()), float(x.max()))
    left = _panel(parts, "What has emerged", ticks, limits)

    bars = hv.Segments((high, places, low, places), [RHO, BAND, "to", "same"], label="10 to 90 %")
    bars = both(bars, {"line_width": 9}, {"linewidth": 6}, color=SKY, alpha=0.6)
    interval = lens["rho_power_interval"].values[:, 1]
    ends = np.clip(log10(interval), *limits)
    error = hv.Segments((ends[:, 0], places, ends[:, 1], places), [RHO, BAND, "to", "same"])
    error = both(error, {"line_width": 3}, {"linewidth": 2}, color=BLUE)
    dots = hv.Scatter((middle, places), RHO, BAND, label="half, with its 95 % interval")
    dots = both(dots, {"size": 9, "tools": ["hover"]}, {"s": 36}, color=BLUE)
    parts = [bars, error, dots]
    if gaussian is not None:
        tick = hv.Scatter((gaussian, places), RHO, BAND, label="Gaussian data")
        page = {"marker": "dash", "size": 14, "angle": 90}
        paper = {"marker": "|", "s": 80, "edgecolors": None}
        parts.append(both(tick, page, paper, color=VERMILION))
    return tiled([left, _panel(parts, "When each band is there", ticks, limits)])


def _line(x: np.ndarray, places: np.ndarray, label: str, color: str, dash: str) -> hv.Curve:
    there = np.isfinite(x)
    line = hv.Curve((x[there], places[there]), RHO, BAND, label=label)
    paper = {"linewidth": 1.8, "linestyle": "--" if dash == "dashed" else "-"}
    return both(line, {"line_width": 2.5, "line_dash": dash}, paper, color=color)


def _panel(parts: list, title: str, ticks: list, limits: tuple[float, float]) -> hv.Overlay:
    axes = {"yticks": ticks, "xlim": limits, "ylim": (-0.5, len(ticks) - 0.5), "invert_xaxis": True}
    legend = {"show_legend": True, "legend_position": "bottom", "legend_cols": 3}
    page = {"legend_opts": {"background_fill_color": GREY, "background_fill_alpha": 0.4}}
    return placed(parts, HEIGHT, page, title=title, **axes, **legend)


def packed(found) -> bytes:
    """What the page draws of bands: a :func:`workbench.views.panels.block`.

    Args:
        found: of :func:`workbench.studies.banded.banded`.

    Returns:
        Curves over (band, time), noise levels over (band, fraction), those of single samples, and
        pictures as bytes between the bounds that the header says; bands each on a scale of its own.
    """
    lens, times = found.lens, found.times
    curves = [key + end for key in ("emerged", "gain", "coherence") for end in ("", "_gaussian")]
    levels = ["rho_power", "rho_power_gaussian", "rho_power_interval"]
    numbers = lens[[key for key in (*curves, *levels) if key in lens]].isel(time=times)
    numbers = numbers.transpose("band", "time", "fraction", "bound", missing_dims="ignore")
    numbers["own"] = ("sample", "band"), found.own
    header: dict[str, Any] = {
        "bands": [str(name) for name in lens["band"].values],
        "rho": plain(lens["rho"].values[times]),
        "t": plain(lens["t"].values[times]),
        "seeds": found.run["seed"].values.tolist(),
        "unit": lens.attrs["bands"] if found.final is not None else "coordinates",
    }
    pictures = ("passed", "final", "denoised")
    if found.final is not None:
        size = np.abs(found.passed[-1]).max((0, 2, 3), keepdims=True)
        size = np.where(size > 0, size, 1.0)
        low, high = float(found.final.min()), float(found.final.max())
        high = high if high > low else low + 1.0
        header["bounds"] = [low, high]
        for key, values, bounds in (
            ("passed", found.passed, (-size, size)),
            ("final", found.final, (low, high)),
            ("denoised", found.denoised + found.mean, (low, high)),
        ):
            numbers[key] = [f"{key}_{i}" for i in range(values.ndim)], _bytes(values, *bounds)
    return block(header, numbers, (*curves, *levels, "own", *pictures))


def _bytes(value: np.ndarray, low, high) -> np.ndarray:
    return np.clip(np.rint(255 * (value - low) / (high - low)), 0, 255).astype(np.uint8)
