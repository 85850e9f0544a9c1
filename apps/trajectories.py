"""Trajectories: a live sampler, played and scrubbed beside the exact flow."""

from html import escape

import panel as pn

from workbench.studies import Exploration, explore
from workbench.studies.exactness import Exactness, exactness
from workbench.ui.form import facts
from workbench.ui.page import PlayerPane, StudyPage
from workbench.ui.player import scene_of
from workbench.ui.section import Section
from workbench.views import exact

TITLE = "Trajectories"
DESCRIPTION = "Watch a sampler walk from noise to data, beside the exact probability flow."

ABOUT = r"""
A run of the sampler you chose, from pure noise (left end of the time axis) to data (right end).
Space plays, the arrow keys step from node to node, dragging the axis scrubs.

* The axis is $\log \rho$ with $\rho = \sigma/\alpha$, the noise level in units of the data: on it
  every process draws the same curves. Process time $t$ stands beneath; each tick is a node of the
  grid.
* States are shown as $x/\sqrt{\alpha^2+\sigma^2/v}$, with $v$ the data's variance per coordinate,
  so that noise and data fit one picture for every process.
* For a Gaussian the probability flow has a closed form. It is drawn from the same starting points
  over the run, and the RMS distance to it, per coordinate, is the sampler's error at that node.
* For two-dimensional data the contours are the exact density $p_t$ and the arrows the exact flow.
"""

PROCESSES = r"""
#### One mode, every process

Along the probability flow of Gaussian data the denoised state $D$ carries a mode of variance
$\lambda$ with the amplitude $\sqrt{\lambda/(\lambda+\rho^2)}$ of its end: a function of
$\rho = \sigma/\alpha$ alone, whatever the process. In time each process draws it elsewhere. The mode
is that of largest variance in these data; your process is drawn with your parameters, the others
with their defaults. Source: Wang & Vastola 2023, arXiv:2303.02490.
"""

MODES = r"""
#### When the modes emerge

Modes are eigenvectors of the covariance of the data that the denoiser knows, ranked by variance. Half
of a mode's amplitude is there at $\rho = \sqrt{3\lambda}$, half of its power at
$\rho = \sqrt{\lambda}$, which is also where the ideal linear denoiser passes half of it on: what
varies most comes first. For data that are not Gaussian this is the truth about the Gaussian with
their mean and covariance. Source: Wang & Vastola 2023, arXiv:2303.02490.
"""

TELEPORT = r"""
#### How much of a run can be skipped

At high noise the score is nearly that of the Gaussian with the data's mean and covariance, whose flow
is known in closed form. Samples are carried by it from pure noise to $\rho$ in one step, and from
there by a fine solver of your denoiser's own flow; drawn is how far from the solver's they end.
Where the curve rises, the data stop being Gaussian. Below the grey band's edge a displacement cannot
be told from zero: it is what doubling the solver's steps changes, and rounding. Source: Wang &
Vastola 2024, arXiv:2412.09726.
"""


def exact_section() -> Section:
    """What is known exactly of the study, in three parts."""
    parts = {"processes": (PROCESSES, 2), "modes": (MODES, 2), "teleport": (TELEPORT, 1)}
    draw = {
        "processes": exact.processes,
        "modes": exact.emergence,
        "teleport": lambda lens: [exact.teleportation(lens)],
    }
    sentences = {name: pn.pane.HTML("", sizing_mode="stretch_width") for name in parts}
    panes = {
        name: [
            pn.pane.HoloViews(
                None,
                backend="bokeh",
                linked_axes=False,
                sizing_mode="stretch_width",
                styles={"flex": "1 1 360px", "min-width": "0"},
            )
            for _ in range(count)
        ]
        for name, (_, count) in parts.items()
    }

    def show(result: Exactness) -> None:
        for name in parts:
            lens = getattr(result, name)
            figures = [None] * len(panes[name]) if lens is None else list(draw[name](lens))
            for pane, figure in zip(panes[name], figures, strict=True):
                pane.object = figure
                pane.visible = figure is not None
            sentences[name].object = f"<p>{escape(result.sentences[name])}</p>"

    view = pn.Column(sizing_mode="stretch_width", margin=(0, 12))
    for name, (text, _) in parts.items():
        view.extend(
            [
                pn.pane.Markdown(text, sizing_mode="stretch_width"),
                sentences[name],
                pn.FlexBox(*panes[name], sizing_mode="stretch_width", gap="8px 16px"),
            ]
        )
    return Section("Exact truth", compute=exactness, show=show, view=view)


def page():
    player = PlayerPane(sizing_mode="stretch_width", min_height=640)

    def show(result: Exploration) -> None:
        # A first look is at the result; later runs keep the reader's place on the axis.
        first = {} if player.data else {"frame": float(result.run.sizes["time"] - 1)}
        player.param.update(data=scene_of(result), **first)

    return StudyPage(
        title=TITLE,
        compute=explore,
        show=show,
        view=player,
        summary=facts,
        dataset=lambda result: result.run,
        about=ABOUT,
        sections=[exact_section()],
    ).page()
