"""The loop that a researcher writes by hand, which calls are measured against."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

import workbench as wb


def heun_by_hand(denoise: Callable, grid: wb.Grid, x: Tensor) -> Tensor:
    """Heun in rho for x / alpha, coefficients as Python floats."""
    nodes = list(zip(grid.alpha, grid.sigma, grid.rho, strict=True))
    y = x / nodes[0][0]
    for (a, s, r), (a_next, s_next, r_next) in pairwise(nodes):
        d = (y - denoise(a * y, a, s)) / r
        guess = y + (r_next - r) * d
        d_next = (guess - denoise(a_next * guess, a_next, s_next)) / r_next
        y = y + (r_next - r) * 0.5 * (d + d_next)
    return a_next * y
