"""Samplers: which one, on which grid, with how many evaluations, for a spectrum; exactly."""

from functools import partial
from html import escape

import panel as pn

from workbench.studies.comparison import Comparing, Comparison, played
from workbench.studies.options import split
from workbench.ui import tasks
from workbench.ui.form import words
from workbench.ui.page import StudyPage
from workbench.ui.section import FigureRow, Section, brief

TITLE = "Samplers"
DESCRIPTION = (
    "Compare samplers and grids on a spectrum of your own: exact errors, without sampling."
)

ABOUT = r"""
On Gaussian data every linear sampler, stochastic ones included, takes Gaussians to Gaussians. So
the law of its output is known without sampling, and so is its distance to the truth: the marginal
at the end of the grid.

* **Error over evaluations.** Each point is a run with as many steps as that number of evaluations
  allows. A click on a point plays that run on data of this very spectrum, in a new tab; the same
  runs are listed as links below. A click on an entry of the legend hides its curves.
* **The prior alone** is what is left when the exact flow starts from the process's prior instead of
  the exact marginal: no deterministic sampler gets far below it. *Start from the exact marginal*
  leaves the sampler's own error.
* **Which modes carry the error.** $W_2^2$ and KL are sums over modes; drawn is each mode's part, by
  its variance, largest left. On a power law these are the low frequencies.
* **Spectrum.** A power law, that of the Gaussian fitted to the data of the form, or eigenvalues
  from a file: one number a line, or a NumPy array.

Sources: Wang & Vastola 2023, arXiv:2303.02490; Pierret & Galerne 2024, arXiv:2405.14250.
"""

STABILITY = """
Relative error of the standard deviation with which a mode of variance λ comes out, over steps of
the study's grid. Every run starts from the exact marginal. Dark is accurate; red is wrong by more
than the deviation itself, or unstable. The variances reach a decade beyond the spectrum on both
sides.
"""

ORDERS = """
Slope of the exact W2 between 80, 160 and 320 steps of the study's kind of grid, stopping at t_min
and started from the exact marginal; across, the order the sampler claims (of a stochastic one,
the weak order; of UniPC, that of its predictor). A grid that puts few nodes where the data emerge
shows its order only with more steps. No dot: the error is not told from rounding.
"""

GRIDS = """
The standard grids beside the one tuned for this very spectrum, sampler and number of evaluations.
Each stops at t_min. Nodes are drawn over the noise level.
"""

PATHS = """
For data of any kind: the root mean square distance, per coordinate, to a converged solution from
the same seeds, for the samplers without fresh noise. This is the data set of the form as it is,
not the Gaussian with its covariance.
"""


def links(result: Comparison) -> str:
    """The runs nearest to the evaluations looked at, as links: what a click on a point does."""
    if "play" not in result.lens:
        return ""
    at = result.lens.sel(budget=result.options.nfe)
    items = []
    for sampler in at["sampler"].values.tolist():
        for grid in at["grid"].values.tolist():
            one = at.sel(sampler=sampler, grid=grid)
            told = f"{words(sampler)}, {words(grid)}: {int(one['steps'])} steps"
            query = escape(str(one["play"].item()), quote=True)
            items.append(
                f'<li><a href="./trajectories?{query}" target="_blank" rel="noopener">'
                f"{escape(told)}</a></li>"
            )
    columns = "columns:260px;column-gap:24px;margin:4px 0;padding-left:18px;line-height:1.7"
    return f'<ul style="{columns}">{"".join(items)}</ul>'


#: What the errors are errors to, by the kind of spectrum.
TRUTHS = {
    "power": "this power law",
    "data": "the mean and covariance of the data",
    "file": "the eigenvalues of the file",
}


def told_links(result: Comparison) -> str:
    """What the links play, or why there are none."""
    shown, options = played(result.study, result.options), result.options
    if shown is None:
        wanted = "the square of 2 to 16" if options.spectrum == "power" else "of a data set"
        what = "number of modes" if options.spectrum == "power" else "spectrum"
        return escape(f"There is no run to play: the {what} must be {wanted} for that.")
    data = words(shown.data.name)
    start = " They start from the prior." if options.start == "exact" else ""
    said = f"Play a run of at most {options.nfe} evaluations on these very data"
    rest = f"{data} as Gaussian; each opens in a new tab.{start}"
    return (
        f'<details><summary style="cursor:pointer">{escape(said)}</summary>{escape(rest)}'
        f"{links(result)}</details>"
    )


def summary(result: Comparison) -> list[str]:
    """The comparison in numbers."""
    lens, options = result.lens, result.options
    texts = [escape(result.spectrum.name), f"{result.study.process.name}"]
    texts.append(f"truth: the Gaussian with {TRUTHS[options.spectrum]}")
    value = options.error
    at = lens.sel(budget=options.nfe)[value].where(lens.sel(budget=options.nfe)["nfe"] > 0)
    if at.notnull().any():
        best = at.where(at == at.min(), drop=True)
        name, grid = str(best["sampler"].values[0]), str(best["grid"].values[0])
        unit = "W₂" if value == "w2" else "KL"
        texts.append(
            f"best with {options.nfe} evaluations: {words(name)} on {words(grid)}, "
            f"{unit} {float(at.min()):.3g}"
        )
    wrong = lens[value].isnull().any(("grid", "budget"))
    if wrong.any():
        names = ", ".join(words(name) for name in lens["sampler"].values[wrong].tolist())
        texts.append(f"not all runs possible: {names}")
    return texts


def drawn_section(title: str, text: str, part: str, more=lambda lens: "") -> Section:
    """A section of figures: a ``part`` of :func:`workbench.ui.tasks.comparison_part`."""
    said = pn.pane.HTML(brief(text), sizing_mode="stretch_width", margin=(4, 10))
    row = FigureRow()

    def show(result) -> None:
        lens, drawn = result
        said.object = brief(text, more(lens))
        row.put(drawn)

    view = pn.Column(said, row, sizing_mode="stretch_width", margin=(0, 6))
    return Section(title, compute=partial(tasks.comparison_part, part=part), show=show, view=view)


def told_grids(lens) -> str:
    parts = [
        f"{words(str(grid))} {float(value):.3g}"
        for grid, value in zip(lens["grid"].values, lens["w2"].values, strict=True)
    ]
    return f"{words(lens.attrs['sampler'])}, W2 by grid: {', '.join(parts)}."


def told_paths(lens) -> str:
    left = [words(name) for name in split(lens.attrs["left_out"])]
    said = f"Data: {lens.attrs['data']}, {lens.attrs['samples']} seeds."
    return said + (f" Left out, as they draw fresh noise: {', '.join(left)}." if left else "")


def page():
    row = FigureRow(tall="max(220px, 100cqh - 44px)", margin=0)  # a window shows all of both
    play = pn.pane.HTML("", sizing_mode="stretch_width", margin=(4, 12))

    def show(made) -> None:
        result, drawn = made
        row.put(drawn)
        play.object = told_links(result)

    return StudyPage(
        title=TITLE,
        compute=tasks.compared,
        show=show,
        view=pn.Column(row, play, sizing_mode="stretch_width", margin=0),
        summary=lambda made: summary(made[0]),
        dataset=lambda made: made[0].lens,
        about=ABOUT,
        sections=[
            drawn_section("Where each is stable", STABILITY, "stability"),
            drawn_section("Measured order", ORDERS, "orders"),
            drawn_section("A grid tuned for it", GRIDS, "grids", told_grids),
            drawn_section("On data that are not Gaussian", PATHS, "paths", told_paths),
        ],
        options=Comparing,
        hidden=("sampler", "grid.steps", "run"),
    ).page()
