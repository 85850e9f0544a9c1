"""The picture of the page Frequency: a heat map of bands, when each emerges, and pictures."""

from __future__ import annotations

import param

from workbench.ui.component import Component
from workbench.ui.modules import joined

__all__ = ["BandsPane"]


class BandsPane(Component):
    """Bands over the noise level, scrubbed in the browser with no round trip.

    Attributes:
        data: bytes of :func:`workbench.views.frequency.packed`.
        cell: the band and the drawn time that are looked at; negative for none yet.
        shown: which quantity the heat map shows.
    """

    data = param.Bytes(b"")
    cell = param.List([-1, -1])
    shown = param.String("emerged")

    _esm = joined("bands")
