"""The player as a widget for Jupyter; pages use the same module, see :mod:`workbench.ui.page`."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

from workbench.studies import Exploration, Study, explore
from workbench.views.scene import scene

__all__ = ["MODULE", "Player", "scene_of"]

#: The parts of the browser module in their order; they share one scope.
PARTS = ("run", "axis", "gpu", "plane", "images", "elements", "scrubber", "player")

#: The one browser module, used by Jupyter and by Panel alike.
MODULE = "\n".join(
    (Path(__file__).with_name("js") / f"{part}.js").read_text(encoding="utf-8") for part in PARTS
)


def scene_of(exploration: Exploration) -> bytes:
    """The player's bytes for an exploration."""
    return scene(
        exploration.run,
        exploration.flow,
        exploration.portrait,
        title=exploration.title,
        notes=exploration.notes,
    )


class Player(anywidget.AnyWidget):
    """A run, played and scrubbed in the browser with no round trip.

    Space plays, the arrow keys step. ``frame`` (0 to the number of steps) and ``playing`` follow
    the browser and can be set.

    Args:
        what: a :class:`Study`, an :class:`Exploration`, or bytes of
            :func:`workbench.views.scene.scene`.
    """

    _esm = MODULE
    data = traitlets.Bytes(b"").tag(sync=True)
    frame = traitlets.Float(0.0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)

    def __init__(self, what: Study | Exploration | bytes = b"", **kwargs) -> None:
        super().__init__(**kwargs)
        self.show(what)

    def show(self, what: Study | Exploration | bytes) -> None:
        """Show another run."""
        if isinstance(what, Study):
            what = explore(what)
        self.data = scene_of(what) if isinstance(what, Exploration) else what
