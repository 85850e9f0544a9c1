"""Pages whose panels show one result at one noise level, drawn in the browser by ``panels.js``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import panel as pn
import param

from workbench.ui.component import Component
from workbench.ui.page import StudyPage
from workbench.views.panels import header_of


class PanelsPane(Component):
    """All panels of a page; a subclass says its module.

    Attributes:
        data: bytes of :func:`workbench.views.panels.block`.
        level: the noise level that is shown; negative: the last.
        look: which of the page's views is shown, of a page that has several.
        wish: what the reader wants to see besides; of a page whose parts are computed while they
            are looked at.
        part: bytes of the part that was wished for last.
        row: bytes of a part that the page shows while the whole is being computed.
    """

    __abstract = True

    data = param.Bytes(b"")
    level = param.Integer(-1)
    look = param.String("")
    wish = param.Dict({})
    part = param.Bytes(b"")
    row = param.Bytes(b"")

    def sight(self) -> dict[str, str]:
        """Noise level and view, as an address says them."""
        level = {"frame": str(self.level)} if self.level >= 0 else {}
        return level | ({"view": self.look} if self.look else {})


def panels_page(
    pane: type[PanelsPane],
    part: Callable[..., bytes] | None = None,
    rows: int = 0,
    **page: Any,
) -> pn.Template:
    """A page of one pane.

    Args:
        pane: its class.
        part: ``(asked, wish, report) -> bytes``, a function of a module; what is computed while it
            is looked at, in a worker process. The ``findings`` of its header, sentences, join those
            above the pane.
        rows: at most how many parts ``{"part": "row", "index": k}`` are shown one by one while the
            whole is being computed.
        page: of :class:`~workbench.ui.page.StudyPage`; ``compute`` leaves the pane's bytes, the
            sentences above it, and the dataset offered for download.
    """
    panels = pane(sizing_mode="stretch_both", margin=0, min_height=320)

    def show(result: tuple) -> None:
        if not panels.data:
            frame = made.moment.get("frame", "")
            panels.level = int(frame) if re.fullmatch("[0-9]{1,6}", frame) else -1
        panels.data = result[0]

    made = StudyPage(
        show=show,
        view=pn.Column(panels, sizing_mode="stretch_both", margin=0),
        summary=lambda result: result[1],
        dataset=lambda result: result[2],
        sight=panels.sight,
        **page,
    )
    if part is not None:
        _Parts(made, panels, part, rows)
    template = made.page()
    panels.look = made.moment.get("view", "")[:40]
    return template


class _Parts:
    """What a page computes while it is looked at: the part wished for, and rows to begin with."""

    def __init__(self, page: StudyPage, panels: PanelsPane, part: Callable, rows: int) -> None:
        self._page, self._panels, self._part, self._rows = page, panels, part, rows
        self._wished = page.beside(self._on_part)
        self._following = page.beside(self._on_row, quiet=True)
        self._index = 0
        panels.param.watch(lambda event: self._on_wish(event.new), "wish")
        page.begun.append(self._begin)

    def _begin(self) -> None:
        self._index = 0
        self._wished.cancel()
        if self._rows:
            self._next()

    def _next(self) -> None:
        wish = {"part": "row", "index": self._index}
        self._following.start(partial(self._part, self._page.asked, wish))

    def _on_row(self, row: bytes) -> None:
        self._panels.row = row
        self._index += 1
        if self._index < min(self._rows, header_of(row)["count"]):
            self._next()

    def _on_wish(self, wish: dict[str, Any]) -> None:
        if wish.get("part"):
            wanted = {key: value for key, value in wish.items() if key != "count"}
            self._wished.start(partial(self._part, self._page.asked, wanted))

    def _on_part(self, part: bytes) -> None:
        self._panels.part = part
        self._page.add_facts(header_of(part).get("findings", []))
