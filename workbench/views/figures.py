"""What the figures share: colours, sizes, and how a panel sits on a page and on paper."""

from __future__ import annotations

import colorsys

import holoviews as hv
import holoviews.plotting.bokeh
import holoviews.plotting.mpl
import numpy as np

#: Colours that the colour-blind tell apart (Okabe & Ito 2008), readable on light and on dark.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#8c8c8c")
BLUE, SKY, VERMILION, GREY = COLOURS[0], COLOURS[4], COLOURS[5], COLOURS[7]

#: More of them, for what comes in large numbers (Tol 2021, muted and dark).
MORE = ("#44aa99", "#aa4499", "#999933", "#ee8866", "#882255", "#bb9966", "#117733", "#6655cc")


def colour(place: int) -> str:
    """A colour of its own for every place: of the first ones those the colour-blind tell apart."""
    known = COLOURS + MORE
    if place < len(known):
        return known[place]
    # Around the circle by the golden angle, on three levels of lightness: no two are the same.
    turn = (place * 0.6180339887498949) % 1.0
    red, green, blue = colorsys.hls_to_rgb(turn, (0.38, 0.52, 0.66)[place % 3], 0.55)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


INCHES = (4.6, 3.4)  # of a panel on paper


def free(plot, element) -> None:
    """Axes that fill their place (an aspect in units of the data suits no log axis), and a legend
    that keeps clear of the axis label."""
    axes, legend = plot.handles["axis"], plot.handles.get("legend")
    axes.set_aspect("auto")
    axes.grid(alpha=0.3, which="major")
    for line in [*axes.get_lines(), *(legend.get_lines() if legend else [])]:
        line.set_solid_capstyle("butt")  # a wide line ends where it ends
    if legend is not None:
        legend.set_bbox_to_anchor((0.0, -0.2, 1.0, 0.0), transform=axes.transAxes)


def quiet(plot, element) -> None:
    """The page's own colour behind the figure; no logo, and tools that stay away until wanted."""
    plain(plot.state)
    plot.state.min_border_bottom = 12


def plain(figure) -> None:
    """As :func:`quiet`, of a figure of Bokeh's own.

    It is filled with a clear colour: where nothing is filled, Bokeh draws the frame of an earlier
    size once more.
    """
    figure.background_fill_color, figure.border_fill_alpha = "#00000000", 0.0
    figure.toolbar.logo, figure.toolbar.autohide = None, True
    figure.toolbar.active_scroll = figure.toolbar.active_drag = None  # they scroll the page


def both(element, page: dict, paper: dict, **common):
    """The element with its options for either backend: Bokeh's on a page, matplotlib's on paper."""
    element = element.opts(backend="bokeh", **common, **page)
    return element.opts(backend="matplotlib", **common, **paper)


def curve(element: hv.Curve, color: str, width: float, dashed: bool = False, hover: bool = True):
    """A curve, two thirds as wide on paper."""
    page = {"line_width": width, "line_dash": "dashed" if dashed else "solid"}
    paper = {"linewidth": 0.7 * width, "linestyle": "--" if dashed else "-"}
    return both(element, page | {"tools": ["hover"] if hover else []}, paper, color=color)


def filled(element: hv.Rectangles, color: str, alpha: float) -> hv.Rectangles:
    """Boxes without an edge."""
    page, paper = {"color": color, "line_alpha": 0}, {"facecolor": color, "edgecolor": "none"}
    return both(element, page, paper, alpha=alpha)


def placed(parts: list, height: int, page: dict, **common) -> hv.Overlay:
    """An overlay in its place on a page and on paper; ``height`` of its frame [px]."""
    page = {"responsive": True, "frame_height": height, "hooks": [quiet], **page}
    paper = {"fig_inches": INCHES, "aspect": INCHES[0] / INCHES[1], "hooks": [free]}
    return both(hv.Overlay(parts), page, paper, **common)


def framed(parts: list, height: int, page: dict, paper: dict, **common) -> hv.Overlay:
    """The same with fonts and a legend."""
    fonts = {"title": "11pt", "labels": "10pt", "ticks": "9pt", "legend": "8.5pt"}
    legend = {"background_fill_alpha": 0.6, "border_line_alpha": 0.2, "padding": 4}
    overlay = placed(parts, height, {"fontsize": fonts, "legend_opts": legend, **page}, **common)
    fonts = {"title": 10, "labels": 9, "ticks": 8, "legend": 7.5}
    return overlay.opts(backend="matplotlib", **{"fontsize": fonts, **paper})


def on_paper(figure: hv.Element | hv.Overlay | hv.Layout):
    """The figure drawn by matplotlib: a ``matplotlib.figure.Figure``; close it when it is shown.

    What ``hv.render(figure, backend="matplotlib")`` gives, which lays everything out twice.
    """
    return hv.renderer("matplotlib").get_plot(figure).state


def tiled(
    panels: list, columns: int = 2, inches: tuple[float, float] = INCHES, tight=True, **paper
) -> hv.Layout:
    """Panels in rows; ``inches`` of one on paper, ``paper`` further options of the layout there."""
    layout = hv.Layout(panels).cols(columns).opts(shared_axes=False, backend="bokeh")
    paper["fig_inches"] = columns * inches[0], -(-len(panels) // columns) * inches[1]
    paper |= {"shared_axes": False, "sublabel_format": "", "tight": tight}
    return layout.opts(backend="matplotlib", **paper)


def log10(values) -> np.ndarray:
    """The logarithm, infinite at 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(np.asarray(values, dtype=float))
