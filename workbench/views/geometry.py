"""Paths in planes of their own: from noise to sample, with the denoised state beside."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.views.figures import GREY, VERMILION, both, log10, placed

ALONG, ACROSS = hv.Dimension("along"), hv.Dimension("across")
LABELS = {
    "principal": ("1st principal direction [chord]", "2nd principal direction [chord]"),
    "chord": ("along the chord    (noise 0, sample 1)", "away from it [chord]"),
}
RHO = hv.Dimension("log_rho", label="log₁₀ ρ")
TITLES = {"scaled": "scaled state", "x": "state x", "ratio": "x/α (EDM)"}
HEIGHT = 260  # of a frame on a page [px]
ARROWS = 4  # along each path
SHOWN = 10  # images whose nudges are shown


def plane(paths: xr.Dataset) -> hv.Overlay:
    """Each path in its own plane, with at least a third as much room across as along.

    Args:
        paths: of :func:`workbench.lenses.geometry.paths_in_plane`.
    """
    along, across = (paths[name].values for name in ("along", "across"))
    log = log10(paths["rho"].values)
    there = np.isfinite(log)
    width = {"line_width": 1.2}, {"linewidth": 0.9}
    lines = both(_lines(along, across), *width, color=GREY, alpha=0.7)
    estimates = (paths[f"{name}_denoised"].values for name in ("along", "across"))
    dashes = {"line_dash": "dashed"}, {"linestyle": "--"}
    denoised = both(_lines(*estimates), *dashes, color=VERMILION, alpha=0.5)
    columns = (
        along[:, there].ravel(),
        across[:, there].ravel(),
        np.broadcast_to(log[there], along[:, there].shape).ravel(),
    )
    dots = hv.Scatter(columns, ALONG, [ACROSS, RHO])
    page, paper = {"size": 5, "tools": ["hover"]}, {"s": 9, "colorbar": True}
    dots = both(dots, page, paper, color="log_rho", cmap="viridis")
    parts = [denoised, lines, dots, *_arrows(along, across)]
    share = float(paths["share"].sel(component=2).mean())
    planar = f"{share:.2%}" if share < 0.9999 else f"all but {max(0.0, 1 - share):.1g}"
    title = f"{TITLES[paths.attrs['state']]}: {planar} planar"
    labels = LABELS[paths.attrs["plane"]]
    common = {"title": title, "show_grid": True, "show_legend": False}
    common |= {"xlabel": labels[0], "ylabel": labels[1]}
    every = np.concatenate([across.ravel(), paths["across_denoised"].values.ravel()])
    if paths.attrs["plane"] == "chord":
        common["ylim"] = (min(-0.05, 1.1 * np.nanmin(every)), max(0.3, 1.15 * np.nanmax(every)))
    else:
        reach = max(0.17, 1.1 * np.nanmax(abs(every)))
        common["ylim"] = (-reach, reach)
    return placed(parts, HEIGHT, {}, **common)


def _lines(along: np.ndarray, across: np.ndarray) -> hv.Path:
    return hv.Path([np.stack(ab, 1) for ab in zip(along, across, strict=True)], [ALONG, ACROSS])


def _arrows(along: np.ndarray, across: np.ndarray) -> list[hv.Scatter]:
    """Heads that say which way the first path is walked, at equal parts of its length."""
    walked = np.r_[0, np.cumsum(np.hypot(np.diff(along[0]), np.diff(across[0])))]
    places = np.linspace(0, walked[-1], ARROWS + 2)[1:-1]
    x, y = np.interp(places, walked, along[0]), np.interp(places, walked, across[0])
    heads = hv.Scatter((x, y), ALONG, ACROSS)
    page = {"marker": "triangle", "angle": -90, "size": 9}
    return [both(heads, page, {"marker": ">", "s": 36}, color=GREY)]


def nudges(ends: xr.Dataset) -> hv.Overlay:
    """Samples, and what a nudge at each noise level makes of them.

    Args:
        ends: of :func:`workbench.lenses.geometry.nudged`.

    Returns:
        Of images a row for each level beneath the samples themselves; of a plane a line from each
        sample to what it becomes, coloured by the level. Of others nothing but their first two
        coordinates.
    """
    level, end, moved = ends["level"].values, ends["end"].values, ends["nudged"].values
    title = f"samples, nudged by {ends.attrs['nudge']:g}"
    if end.ndim < 3:
        from_x, from_y = (np.broadcast_to(end[:, i], moved.shape[:2]).ravel() for i in (0, 1))
        to_x, to_y = (moved[..., i].ravel() for i in (0, 1))
        log = np.repeat(np.log10(level), len(end))
        x, y = hv.Dimension("first", label="x₁"), hv.Dimension("second", label="x₂")
        lines = hv.Segments((from_x, from_y, to_x, to_y, log), [x, y, "to_x", "to_y"], RHO)
        lines = both(lines, {"line_width": 2}, {}, color="log_rho", cmap="viridis")
        parts, common = [lines], {"title": title}
    else:
        rows = np.concatenate([end[None], moved])[:, :SHOWN]
        rows = rows.reshape(*rows.shape[:2], -1, *rows.shape[-2:]).mean(2)
        high, wide = rows.shape[-2:]
        low, top = np.quantile(end, (0.01, 0.99))
        tiles = np.full((len(rows), high + 1, rows.shape[1], wide + 1), np.nan)
        tiles[:, 1:, :, :-1] = rows.clip(low, top).transpose(0, 2, 1, 3)
        mosaic = tiles.reshape(len(rows) * (high + 1), -1)
        across, place = hv.Dimension("column", label="sample"), hv.Dimension("row", label=" ")
        bounds = (0, 0, rows.shape[1], len(rows))
        image = hv.Image(mosaic, bounds=bounds, kdims=[across, place], vdims=["value"])
        parts = [both(image, {}, {}, cmap="gray")]
        names = ["samples", *(f"ρ = {one:.3g}" for one in level)]
        ticks = [(len(rows) - i - 0.5, name) for i, name in enumerate(names)]
        common = {"title": title, "yticks": ticks, "xticks": 0}
    return placed(parts, HEIGHT, {}, **common)
