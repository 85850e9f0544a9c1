"""Paths in the plane of their chord: from noise to sample, with the denoised state beside."""

from __future__ import annotations

import holoviews as hv
import holoviews.plotting.bokeh
import holoviews.plotting.mpl
import numpy as np
import xarray as xr

from workbench.views.figures import GREY, INCHES, VERMILION, free, quiet

__all__ = ["plane"]

ALONG = hv.Dimension("along", label="along the chord    (noise 0, sample 1)")
ACROSS = hv.Dimension("across", label="away from it [chord]")
RHO = hv.Dimension("log_rho", label="log₁₀ ρ")
TITLES = {"scaled": "scaled state", "x": "state x", "ratio": "x/α, the state of EDM"}
HEIGHT = 260  # of a frame on a page [px]
ARROWS = 4  # along each path


def plane(paths: xr.Dataset) -> hv.Overlay:
    """Each path in its own plane.

    Args:
        paths: of :func:`workbench.lenses.geometry.paths_in_plane`.
    """
    along, across = (paths[name].values for name in ("along", "across"))
    rho = paths["rho"].values
    with np.errstate(divide="ignore"):
        log = np.log10(rho)
    there = np.isfinite(log)
    lines = hv.Path(
        [np.stack([a, b], 1) for a, b in zip(along, across, strict=True)], [ALONG, ACROSS]
    )
    lines = lines.opts(backend="bokeh", color=GREY, line_width=1.2, alpha=0.7)
    lines = lines.opts(backend="matplotlib", color=GREY, linewidth=0.9, alpha=0.7)
    told = [
        np.stack([paths["along_denoised"].values[k], paths["across_denoised"].values[k]], 1)
        for k in range(len(along))
    ]
    denoised = hv.Path(told, [ALONG, ACROSS])
    denoised = denoised.opts(backend="bokeh", color=VERMILION, line_dash="dashed", alpha=0.5)
    denoised = denoised.opts(backend="matplotlib", color=VERMILION, linestyle="--", alpha=0.5)
    columns = (
        along[:, there].ravel(),
        across[:, there].ravel(),
        np.broadcast_to(log[there], along[:, there].shape).ravel(),
    )
    dots = hv.Scatter(columns, ALONG, [ACROSS, RHO])
    dots = dots.opts(backend="bokeh", color="log_rho", cmap="viridis", size=5, tools=["hover"])
    dots = dots.opts(backend="matplotlib", color="log_rho", cmap="viridis", s=9, colorbar=True)
    parts = [denoised, lines, dots, *_arrows(along, across)]
    share = float(paths["share"].mean())
    title = f"{TITLES[paths.attrs['state']]}: {share:.2%} planar"
    common = {"title": title, "show_grid": True, "show_legend": False, "xlabel": ALONG.label}
    common["ylabel"] = ACROSS.label
    both = np.concatenate([across.ravel(), paths["across_denoised"].values.ravel()])
    common["ylim"] = (min(-0.05, 1.1 * np.nanmin(both)), max(0.3, 1.15 * np.nanmax(both)))
    overlay = hv.Overlay(parts).opts(
        backend="bokeh", responsive=True, frame_height=HEIGHT, hooks=[quiet], **common
    )
    size = {"fig_inches": INCHES, "aspect": INCHES[0] / INCHES[1], "hooks": [free]}
    return overlay.opts(backend="matplotlib", **size, **common)


def _arrows(along: np.ndarray, across: np.ndarray) -> list[hv.Scatter]:
    """Heads that say which way the first path is walked, at equal parts of its length."""
    walked = np.r_[0, np.cumsum(np.hypot(np.diff(along[0]), np.diff(across[0])))]
    places = np.linspace(0, walked[-1], ARROWS + 2)[1:-1]
    x, y = np.interp(places, walked, along[0]), np.interp(places, walked, across[0])
    heads = hv.Scatter((x, y), ALONG, ACROSS)
    heads = heads.opts(backend="bokeh", color=GREY, marker="triangle", angle=-90, size=9)
    return [heads.opts(backend="matplotlib", color=GREY, marker=">", s=36)]
