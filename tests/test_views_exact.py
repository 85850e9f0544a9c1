"""The exact figures: what is drawn is the Dataset's, and both backends draw it."""

import numpy as np
import pytest
import torch
from helpers import PROCESSES, covariance, log_uniform, normals

import workbench as wb
from workbench.lenses.emergence import across_processes, of_modes
from workbench.lenses.teleport import teleportation

hv = pytest.importorskip("holoviews", reason="needs holoviews: pip install -e '.[serve]'")
exact = pytest.importorskip("workbench.views.exact")
on_paper = pytest.importorskip("workbench.views.figures").on_paper


@pytest.fixture
def sides():
    return across_processes(1.7, PROCESSES, points=21)


def modes(count: int):
    return of_modes(torch.logspace(1, -3, count))


@pytest.fixture
def skips(generator):
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    law = wb.Mixture(weights, normals(generator, 3, 2), 0.1 + normals(generator, 3) ** 2)
    return teleportation(wb.Diffusion(wb.VP(), law), range(9), levels=4, steps=24)


@pytest.fixture
def exact_skips(generator):
    law = wb.Gaussian(normals(generator, 2), covariance(generator, 2))
    return teleportation(wb.Diffusion(wb.VP(), law), range(5), levels=4, steps=16)


def parts(overlay, kind) -> list:
    return [element for element in overlay if type(element) is kind]


def drawn(figure, backend: str):
    return hv.render(figure, backend="bokeh") if backend == "bokeh" else on_paper(figure)


# ---- one mode, every process ---------------------------------------------------------------------


def test_a_curve_for_every_process_over_t_and_over_rho(sides):
    in_time, in_rho = exact.processes(sides)
    for overlay, key in ((in_time, "share"), (in_rho, "log_rho")):
        curves = parts(overlay, hv.Curve)
        assert [curve.label for curve in curves] == list(PROCESSES)
        for curve in curves:
            one = sides.sel(process=curve.label)
            x = one["share"].values if key == "share" else np.log10(one["rho"].values)
            there = np.isfinite(x)
            np.testing.assert_array_equal(curve.dimension_values(key), x[there])
            np.testing.assert_array_equal(
                curve.dimension_values("amplitude"), one["amplitude"].values[there]
            )
            np.testing.assert_array_equal(curve.dimension_values("t"), one["t"].values[there])


def test_in_rho_each_curve_is_drawn_narrower_than_the_one_before(sides):
    _, in_rho = exact.processes(sides)
    widths = [glyph.line_width for glyph in _lines(drawn(in_rho, "bokeh"))]
    assert len(widths) == len(PROCESSES)
    assert (np.diff(widths) < -1).all()
    colours = [glyph.line_color for glyph in _lines(drawn(in_rho, "bokeh"))]
    assert len(set(colours)) == len(colours)
    on_paper = drawn(in_rho, "matplotlib").axes[0].get_lines()
    assert (np.diff([line.get_linewidth() for line in on_paper]) < -0.5).all()


def test_there_is_one_legend_and_noise_is_on_the_left(sides):
    left, right = (drawn(panel, "bokeh") for panel in exact.processes(sides))
    assert not any(legend.items for legend in left.legend)
    assert len(right.legend[0].items) == len(PROCESSES)
    for figure in (left, right):
        assert figure.x_range.start > figure.x_range.end


def test_more_processes_than_colours_are_told_apart_by_dashes():
    many = {f"VP {i}": wb.VP(beta_max=10.0 + i) for i in range(len(exact.COLOURS) + 2)}
    figure = drawn(list(exact.processes(across_processes(1.0, many, points=5)))[1], "bokeh")
    styles = [(glyph.line_color, str(glyph.line_dash)) for glyph in _lines(figure)]
    assert len(set(styles)) == len(many)


def _lines(figure) -> list:
    from bokeh.models import Line

    return [r.glyph for r in figure.renderers if isinstance(r.glyph, Line)]


# ---- the emergence of modes ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 61, 1024])
def test_amplitudes_of_some_modes_and_intervals_of_all(count):
    lens = modes(count)
    amplitudes, intervals = exact.emergence(lens)
    curves = parts(amplitudes, hv.Curve)
    assert len(curves) == min(count, len(curves)) <= 8
    ranks = [int(curve.label.partition(":")[0]) for curve in curves]
    assert (ranks[0], ranks[-1]) == (1, count)
    for rank, curve in zip(ranks, curves, strict=True):
        np.testing.assert_array_equal(
            curve.dimension_values("amplitude"), lens["amplitude"].sel(mode=rank)
        )
        np.testing.assert_array_equal(
            curve.dimension_values("log_rho"), np.log10(lens["rho"].values)
        )
    (bars,), (ticks,) = parts(intervals, hv.Rectangles), parts(intervals, hv.Segments)
    (dots,) = [s for s in parts(intervals, hv.Scatter) if len(s) == count and "mode" in s][-1:]
    levels = np.log10(lens["rho_amplitude"].values)
    np.testing.assert_array_equal(bars.dimension_values("log_rho"), levels[:, 2])  # 90 %
    np.testing.assert_array_equal(bars.dimension_values("log_rho_end"), levels[:, 0])  # 10 %
    np.testing.assert_array_equal(dots.dimension_values("log_rho"), levels[:, 1])
    np.testing.assert_array_equal(dots.dimension_values("mode"), lens["mode"])
    root = np.sqrt(lens["variance"].values)
    np.testing.assert_allclose(10 ** ticks.dimension_values("log_rho"), root, rtol=1e-13)
    # No bar covers the next, on the log scale of many modes or the plain one of few.
    below, above = bars.dimension_values("below"), bars.dimension_values("above")
    assert (above[:-1] < below[1:]).all()


@pytest.mark.parametrize(("count", "log"), [(2, False), (24, False), (25, True), (1024, True)])
def test_ranks_run_downwards_on_a_scale_that_suits_their_number(count, log):
    from bokeh.models import LogScale

    figure = drawn(list(exact.emergence(modes(count)))[1], "bokeh")
    assert isinstance(figure.y_scale, LogScale) == log
    assert figure.y_range.start > count > 0.99 > figure.y_range.end
    told = figure.yaxis[0].ticker.ticks
    assert (told[0], told[-1]) == (1, count)
    assert len(told) <= 14


def test_both_panels_share_their_range_of_rho():
    ends = [
        (figure.x_range.start, figure.x_range.end)
        for figure in (drawn(panel, "bokeh") for panel in exact.emergence(modes(5)))
    ]
    assert ends[0] == ends[1]


# ---- teleportation -------------------------------------------------------------------------------


def test_the_error_its_band_and_the_null_band(skips):
    figure = exact.teleportation(skips)
    null, spread = parts(figure, hv.Area)
    level, line = parts(figure, hv.Curve)
    log_rho = np.log10(skips["rho"].values)
    np.testing.assert_array_equal(line.dimension_values("log_rho"), log_rho)
    np.testing.assert_array_equal(line.dimension_values("displacement"), skips["rms"])
    np.testing.assert_array_equal(line.dimension_values("t"), skips["t"])
    assert "floor" in null.label
    np.testing.assert_array_equal(null.dimension_values("upper"), skips["floor"])
    np.testing.assert_array_equal(
        spread.dimension_values("displacement"), skips["quantile"].sel(share=0.1)
    )
    np.testing.assert_array_equal(
        spread.dimension_values("upper"), skips["quantile"].sel(share=0.9)
    )
    assert set(level.dimension_values("displacement")) == {skips.attrs["data_std"]}


def test_zeros_stand_at_the_bottom_of_the_log_axis_and_keep_their_value(exact_skips):
    lens = exact_skips.copy(deep=True)
    lens["rms"][0] = 0.0
    figure = exact.teleportation(lens)
    line = parts(figure, hv.Curve)[1]
    heights = line.dimension_values("displacement")
    assert (heights > 0).all()
    assert heights.max() <= lens["floor"].max()
    np.testing.assert_array_equal(line.dimension_values("exactly"), lens["rms"])
    bokeh = drawn(figure, "bokeh")
    assert 0 < bokeh.y_range.start == heights[0] < lens["floor"].min() / 100
    assert bokeh.y_range.end > lens.attrs["data_std"]


# ---- both backends -------------------------------------------------------------------------------


def figures(sides, skips, exact_skips) -> dict:
    return {
        "processes": exact.processes(sides),
        "two modes": exact.emergence(modes(2)),
        "many modes": exact.emergence(modes(1024)),
        "teleportation": exact.teleportation(skips),
        "teleportation, Gaussian": exact.teleportation(exact_skips),
    }


def test_matplotlib_draws_each_with_nothing_cut_off(sides, skips, exact_skips):
    every = figures(sides, skips, exact_skips)
    for name in ("processes", "many modes", "teleportation"):
        figure, page = every[name], drawn(every[name], "matplotlib")
        page.canvas.draw()
        whole = page.get_tightbbox()
        assert len(page.axes) == (2 if isinstance(figure, hv.Layout) else 1)
        for axes in page.axes:
            assert axes.get_xlabel() and axes.get_ylabel(), name
            assert "[" in axes.get_xlabel() + axes.get_ylabel() or "t_max" in axes.get_xlabel()
            assert axes.get_xlim()[0] > axes.get_xlim()[1], name
            low, high = sorted(axes.get_ylim())
            shown = axes.get_window_extent().height / page.bbox.height
            assert shown > 0.4, f"{name}: the axes fill {shown:.0%} of the height"
            assert low < high
            legend = axes.get_legend()
            if legend is not None:
                box = legend.get_window_extent()
                label = axes.xaxis.label.get_window_extent()
                assert not box.overlaps(label), name
                assert whole.x0 * page.dpi - 1 <= box.x0 <= box.x1 <= whole.x1 * page.dpi + 1
        import matplotlib.pyplot

        matplotlib.pyplot.close(page)


def test_bokeh_draws_each_without_a_logo_as_wide_as_there_is_room(sides, skips, exact_skips):
    for name, figure in figures(sides, skips, exact_skips).items():
        for panel in figure if isinstance(figure, hv.Layout) else [figure]:
            page = drawn(panel, "bokeh")
            assert page.toolbar.logo is None
            assert page.toolbar.active_scroll is None  # the wheel scrolls the page
            assert page.toolbar.active_drag is None
            assert page.sizing_mode == "stretch_width", name
            assert page.border_fill_alpha == 0 and page.background_fill_color == "#00000000"
            assert page.xaxis[0].axis_label and page.yaxis[0].axis_label
            assert page.title.text
            assert page.renderers
            for renderer in page.renderers:
                drawn_at = {"log_rho", "share", "amplitude", "displacement", "mode"}
                for key, column in renderer.data_source.data.items():
                    values = np.asarray(column, dtype=float)
                    assert key not in drawn_at or np.isfinite(values).all() or len(values) == 1


def test_hovering_tells_t_as_well(skips):
    from bokeh.models import HoverTool

    page = drawn(exact.teleportation(skips), "bokeh")
    told = {label for tool in page.select(HoverTool) for label, _ in tool.tooltips}
    assert {"t", "ρ [x]"} <= told


def test_a_random_spectrum_is_drawn(generator):
    """Sizes of a spectrum from nearly nothing to a great deal."""
    variances = torch.tensor([log_uniform(generator, 1e-12, 1e6) for _ in range(40)]).double()
    for panel in exact.emergence(of_modes(variances)):
        assert drawn(panel, "bokeh").renderers
