"""Pages whose panels show one result at one noise level, drawn in the browser by ``panels.js``."""

from __future__ import annotations

from typing import Any

import panel as pn
import param

from workbench.ui.component import Component
from workbench.ui.page import StudyPage

__all__ = ["PanelsPane", "panels_page"]


class PanelsPane(Component):
    """All panels of a page; a subclass says its module.

    Attributes:
        data: bytes of :func:`workbench.views.panels.block`.
        level: the noise level that is shown; negative: the last.
    """

    __abstract = True

    data = param.Bytes(b"")
    level = param.Integer(-1)


def panels_page(pane: type[PanelsPane], **page: Any) -> pn.Template:
    """A page of one pane.

    Args:
        pane: its class.
        page: of :class:`~workbench.ui.page.StudyPage`; ``compute`` leaves the pane's bytes, the
            sentences above it, and the dataset offered for download.
    """
    panels = pane(sizing_mode="stretch_both", margin=0, min_height=320)

    def show(result: tuple) -> None:
        panels.data = result[0]

    return StudyPage(
        show=show,
        view=pn.Column(panels, sizing_mode="stretch_both", margin=0),
        summary=lambda result: result[1],
        dataset=lambda result: result[2],
        **page,
    ).page()
