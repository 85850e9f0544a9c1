"""Trajectories: a live sampler, played and scrubbed beside the exact flow."""

from workbench.studies import Exploration, explore
from workbench.ui.form import facts
from workbench.ui.page import PlayerPane, StudyPage
from workbench.ui.player import scene_of

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
    ).page()
