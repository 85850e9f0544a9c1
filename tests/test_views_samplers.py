"""The pictures of the comparison: what is drawn is the Dataset's, and both backends draw it."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.lenses.convergence import convergence, grid_errors, orders, stability

hv = pytest.importorskip("holoviews", reason="needs holoviews: pip install -e '.[serve]'")
views = pytest.importorskip("workbench.views.samplers")
figures = pytest.importorskip("workbench.views.figures")
colour, on_paper = figures.colour, figures.on_paper

METHODS = {"DDIM": wb.DDIM(), "Heun": wb.Heun(), "EulerMaruyama": wb.EulerMaruyama()}
NAMES = {"EulerMaruyama": "Euler–Maruyama", "a": "first"}
MANY = {f"DDIM {i}": wb.DDIM(eta=i / 20) for i in range(20)}
VARIANCES = torch.logspace(0, -3, 7, dtype=torch.float64)


def log_snr(process, steps):
    return wb.Grid.log_snr(process, steps)


def karras(process, steps):
    return wb.Grid.karras(process, steps)


def lens(methods=METHODS, grids=("a", "b"), variances=VARIANCES, play=True):
    makers = dict(zip(("a", "b"), (log_snr, karras), strict=True))
    made = convergence(
        wb.VP(), variances, methods, {name: makers[name] for name in grids}, [4, 8, 9, 20]
    )
    if play:
        made["play"] = made["steps"].astype(str).astype(object)
    return made


def on_page(figure) -> list:
    """Bokeh's figures, one for each panel."""
    panels = list(figure) if isinstance(figure, hv.Layout) else [figure]
    return [hv.render(panel, backend="bokeh") for panel in panels]


def glyphs(figure, kind: str) -> list:
    return [r for r in figure.renderers if type(r.glyph).__name__ == kind]


@pytest.mark.parametrize("value", ["w2", "kl"])
def test_every_curve_is_the_dataset_s(value):
    shown = lens()
    drawn = views.convergence(shown, value, NAMES)
    (figure,) = on_page(drawn)
    lines, points = glyphs(figure, "Line"), glyphs(figure, "Scatter")
    assert len(points) == 6
    for k, (line, point) in enumerate(zip(lines, points, strict=False)):
        one = shown.isel(sampler=k // 2, grid=k % 2)
        _, first = np.unique(one["nfe"], return_index=True)
        assert line.data_source is point.data_source
        data = point.data_source.data
        np.testing.assert_array_equal(data["nfe"], one["nfe"][first])
        np.testing.assert_array_equal(data[value], one[value][first])
        np.testing.assert_array_equal(data["play"], one["play"][first])
    labels = [item.label.value for item in figure.legend[0].items]
    assert labels[:3] == ["DDIM", "Heun", "Euler–Maruyama"]
    assert labels[3:5] == ["first grid", "b grid"]
    assert [len(item.renderers) for item in figure.legend[0].items[:3]] == [4, 4, 4]
    if value == "kl":
        texts = on_paper(drawn).axes[0].get_legend().get_texts()
        assert {text.get_text() for text in texts} == set(labels)


def test_a_click_on_a_point_opens_its_run():
    (figure,) = on_page(views.convergence(lens(grids=["a"])))
    (tap,) = [tool for tool in figure.tools if type(tool).__name__ == "TapTool"]
    assert tap.callback.url == "./trajectories?@play"
    assert set(tap.renderers) == set(glyphs(figure, "Scatter"))
    (figure,) = on_page(views.convergence(lens(play=False)))
    assert not [tool for tool in figure.tools if type(tool).__name__ == "TapTool"]


def test_the_prior_s_own_error_is_a_level():
    shown = lens(variances=torch.full((3,), 4.0).double())
    shown["floor_w2"] = 0.9 * float(shown["w2"].min())
    (figure,) = on_page(views.convergence(shown))
    assert "the prior alone" in [item.label.value for item in figure.legend[0].items]
    level = glyphs(figure, "Line")[-1].data_source.data["w2"]
    np.testing.assert_array_equal(level, [float(shown["floor_w2"])] * 2)
    assert figure.y_range.start < level[0]


def test_twenty_samplers_are_told_apart():
    (figure,) = on_page(views.convergence(lens(MANY, ["a"])))
    points = glyphs(figure, "Scatter")
    assert len({point.glyph.fill_color for point in points}) == len(points) == 20
    assert len({colour(place) for place in range(60)}) == 60


def test_nan_and_overflow_leave_the_picture_of_the_others():
    shown = lens()
    shown["w2"][0, 0, :3] = math.nan
    shown["w2"][1, 1, 0] = 1e100
    (figure,) = on_page(views.convergence(shown))
    assert len(glyphs(figure, "Scatter")[0].data_source.data["w2"]) == 1
    assert figure.y_range.end < 1e4


@pytest.mark.parametrize(("value", "power"), [("w2", 2), ("kl", 1)])
def test_parts_of_the_distance_by_mode(value, power):
    shown = lens()
    drawn = views.contributions(shown, 9, NAMES, value)
    (figure,) = on_page(drawn)
    assert len(on_paper(drawn).axes[0].get_lines()) == 6
    assert figure.x_range.start > figure.x_range.end  # large variances, which emerge first, left
    for k, point in enumerate(glyphs(figure, "Scatter")):
        one = shown.isel(sampler=k // 2, grid=k % 2).sel(budget=9)
        part = point.data_source.data["part"]
        assert part.sum() == pytest.approx(float(one[value]) ** power, rel=1e-6)
        np.testing.assert_array_equal(point.data_source.data["variance"], shown["variance"])


def test_of_many_modes_some_are_drawn_first_and_last_among_them():
    variances = torch.arange(1, 3001, dtype=torch.float64) ** -1.5
    (figure,) = on_page(views.contributions(lens(variances=variances), 9))
    for point in glyphs(figure, "Scatter"):
        ranks = point.data_source.data["mode"]
        assert (ranks[0], ranks[-1]) == (1, 3000)
        assert len(ranks) <= views.MOST_POINTS


def test_a_map_for_each_sampler():
    shown = stability(wb.VP(), METHODS, log_snr, [2, 3, 5, 9], VARIANCES)
    shown["error"][1, 0, 2] = math.nan
    figures = on_page(views.stability(shown, NAMES))
    assert [figure.title.text for figure in figures] == ["DDIM", "Heun", "Euler–Maruyama"]
    for k, figure in enumerate(figures):
        (image,) = glyphs(figure, "Image")
        drawn = np.asarray(image.data_source.data["image"][0])
        with np.errstate(divide="ignore"):
            exact = np.log10(np.abs(shown["error"].values[k])).T
        exact = np.where(np.isnan(exact), 300.0, np.maximum(exact, -16))
        exact = exact[::-1]  # variances rise upwards
        np.testing.assert_allclose(drawn[:, [0, -1]], exact[:, [0, -1]])
        mapper = image.glyph.color_mapper
        assert (mapper.low, mapper.high) == views.SPAN
        assert mapper.high_color == views.VERMILION
    one = on_paper(views.stability(shown.isel(sampler=[0]), NAMES))
    np.testing.assert_allclose(one.axes[0].get_images()[0].get_clim(), views.SPAN)


def test_orders_measured_and_claimed():
    shown = orders(wb.VP(), VARIANCES, METHODS, log_snr, (8, 16, 32))
    shown["slope"][2, 1] = math.nan
    drawn = views.orders(shown, NAMES)
    (figure,) = on_page(drawn)
    assert on_paper(drawn).axes[0].get_yticklabels()[2].get_text() == "Euler–Maruyama"
    claims, *_ = glyphs(figure, "Segment")
    np.testing.assert_array_equal(claims.data_source.data["slope"], [1, 2, 1])
    dots = [d for d in glyphs(figure, "Scatter") if "of" in d.data_source.data]
    assert [len(d.data_source.data["slope"]) for d in dots] == [3, 2]
    np.testing.assert_array_equal(dots[0].data_source.data["slope"], shown["slope"][:, 0])
    assert list(figure.yaxis[0].major_label_overrides.values()) == [
        "DDIM",
        "Heun",
        "Euler–Maruyama",
    ]


def test_grids_by_error_and_by_nodes():
    grids = {"karras": wb.Grid.karras(wb.VP(), 5), "own": wb.Grid.times(wb.VP(), [1.0, 0.2, 0.05])}
    shown = grid_errors(wb.VP(), VARIANCES, wb.Heun(), grids)
    left, right = on_page(views.grids(shown))
    ends = [d.data_source.data["w2"][0] for d in glyphs(left, "Scatter")]
    np.testing.assert_array_equal(ends, shown["w2"])
    for ticks, grid in zip(glyphs(right, "Segment"), grids.values(), strict=True):
        np.testing.assert_allclose(
            ticks.data_source.data["log_rho"], np.log10(grid.rho), rtol=1e-12, atol=1e-12
        )
    assert right.x_range.start > right.x_range.end
