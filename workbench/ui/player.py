"""The player as a widget for Jupyter; pages use the same module, see :mod:`workbench.ui.page`."""

from __future__ import annotations

import base64
import json
from html import escape

import anywidget
import traitlets

from workbench.studies import Exploration, Study, explore
from workbench.ui.modules import joined
from workbench.ui.tasks import scene_of
from workbench.views.scene import unpack

#: The parts of the browser module in their order; they share one scope.
PARTS = ("run", "axis", "pair", "splat", "gpu", "plane", "images", "elements", "scrubber",
         "take", "gif", "player")  # fmt: skip

#: The one browser module, used by Jupyter and by Panel alike.
MODULE = joined(*PARTS)

#: How two runs can be drawn together.
COMPARISONS = ("beside", "over", "difference")

#: Height of the widget in a notebook: no more than its window shows.
HEIGHT = "min(600px, 74vh)"


#: A player on a page of its own: one file that asks for nothing. Braces are filled, see `offline`.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>html, body, main {{ margin: 0; height: 100%; background: Canvas; }}</style>
</head><body><main></main>
{scripts}
</body></html>
"""


def offline(
    what: Study | Exploration | bytes,
    other: Study | Exploration | bytes = b"",
    compare: str = "beside",
    view: dict | None = None,
    flow: bytes = b"",
    other_flow: bytes = b"",
) -> str:
    """An HTML page that plays and scrubs a run with no network, no server and no kernel.

    Args:
        what, other, compare, view: as of :class:`Player`.
        flow, other_flow: of :class:`workbench.ui.page.PlayerPane`.

    Returns:
        The text of one file, with the browser module and the run in it. Its study can be had back
        from it by :meth:`workbench.Study.parse` on the text of its element ``#study``.
    """
    scenes = {"data": _bytes(what), "other": _bytes(other), "flow": flow, "other_flow": other_flow}
    header, _ = unpack(scenes["data"])
    scripts = f"""<pre id="study" hidden>{escape(header.get("study", ""))}</pre>
<script type="module">
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const module = new Blob([bytes("{_text(MODULE.encode())}")], {{ type: "text/javascript" }});
const {{ show }} = await import(URL.createObjectURL(module));
globalThis.player = show(document.querySelector("main"), {{
  compare: {_script(compare)}, view: {_script(view or {})}, playing: true,
  {", ".join(f'{name}: bytes("{_text(one)}")' for name, one in scenes.items())},
}});
</script>"""
    return PAGE.format(title=escape(header["title"] or "Diffusion Workbench"), scripts=scripts)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _script(value) -> str:
    """A plain value as JavaScript inside of a script element."""
    return json.dumps(value).replace("<", "\\u003c")


class Player(anywidget.AnyWidget):
    """A run, played and scrubbed in the browser with no round trip; a second one beside it.

    Space plays, the arrow keys step. It is as high as its ``layout.height`` says. All traits but
    ``data``, ``other`` and ``compare`` follow the browser and can be set.

    Args:
        what: a :class:`Study`, an :class:`Exploration`, or bytes of
            :func:`workbench.views.scene.scene`.
        other: a second run, drawn on the time axis of the first.

    Attributes:
        compare: how the two are drawn: "beside" each other, "over" each other, or their
            "difference", sample by sample.
        frame: place on the time axis, from 0 to the number of drawn steps.
        playing: whether it plays.
        view: zoom (``window``), ``layers``, ``trail``, ``colour``, chosen seeds (``selected``), the
            magnified ``image`` and whether states ``within`` the steps are shown, as far as they
            differ from what a player opens with.
        dropped: the text of a study that was dropped on the picture.
        inside: whether the states within the steps can be asked for: of a study.
    """

    _esm = MODULE
    data = traitlets.Bytes(b"").tag(sync=True)
    other = traitlets.Bytes(b"").tag(sync=True)
    compare = traitlets.Enum(COMPARISONS, "beside").tag(sync=True)
    frame = traitlets.Float(0.0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    dropped = traitlets.Unicode("").tag(sync=True)
    inside = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        what: Study | Exploration | bytes = b"",
        other: Study | Exploration | bytes = b"",
        **kwargs,
    ) -> None:
        super().__init__(**{"layout": {"height": HEIGHT}, **kwargs})
        self._shown = {"data": what, "other": other}
        self.observe(lambda change: self._on_view(change.old, change.new), "view")
        self._draw("data", "other")

    def show(self, what: Study | Exploration | bytes) -> None:
        """Show another run."""
        self._shown["data"] = what
        self._draw("data")

    def _draw(self, *names: str) -> None:
        within = self.view.get("within") is True
        self.inside = isinstance(self._shown["data"], Study | Exploration)
        for name in names:
            setattr(self, name, _bytes(self._shown[name], within))

    def _on_view(self, before: dict, now: dict) -> None:
        """The states within the steps are recorded when they are asked for."""
        if bool(before.get("within")) != bool(now.get("within")):
            self._draw("data", "other")


def _bytes(what: Study | Exploration | bytes, within: bool = False) -> bytes:
    if within and isinstance(what, Exploration):
        what = what.study
    if isinstance(what, Study):
        what = explore(what, within=within)
    return scene_of(what) if isinstance(what, Exploration) else what
