"""Standard errors of estimates, and bands that values fall into."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

#: Groups of samples of which each is left out once.
GROUPS = 20


def mean_error(values, axis: int = 0):
    """Standard error of the mean of an array or a tensor along an axis; nan of one value."""
    count = values.shape[axis]
    if count < 2:
        return math.nan * values.mean(axis)
    spread = values.std(axis) if isinstance(values, Tensor) else values.std(axis, ddof=1)
    return spread / math.sqrt(count)


def jackknife(measure: Callable, values, axis: int = 0) -> np.ndarray:
    """Standard errors of the numbers that ``measure`` gives of samples along an axis: one group of
    them after the other is left out; nan of one sample."""
    groups = min(GROUPS, values.shape[axis])
    if groups < 2:
        return np.full(np.shape(measure(values)), math.nan)
    which = np.arange(values.shape[axis]) % groups
    before = (slice(None),) * axis
    left = [measure(values[(*before, np.flatnonzero(which != g))]) for g in range(groups)]
    return np.sqrt((groups - 1) * np.array(left).var(0))


def root_mean(squares) -> tuple[np.ndarray, np.ndarray]:
    """Root of the mean of squares (..., n) over samples, and its standard error to first order."""
    squares = torch.as_tensor(squares).double()
    value = squares.mean(-1).sqrt()
    error = torch.where(value == 0, 0.0, mean_error(squares, -1) / (2 * value))
    return value.cpu().numpy(), error.cpu().numpy()


def central(values, level: float) -> np.ndarray:
    """Between which 1 - ``level`` of values (n, ...) are: (..., bound)."""
    return np.moveaxis(np.quantile(values, [level / 2, 1 - level / 2], axis=0), 0, -1)


def root_of_ratio(above: Tensor, below: Tensor | None = None) -> tuple[float, float]:
    """``sqrt(mean above / mean below)`` of values (n,), below None of 1; 0 if not positive, and its
    standard error: nan where the mean above is not told from zero.
    """
    below = torch.ones_like(above) if below is None else below
    size = below.mean()
    ratio = above.mean() / size
    error = (above - ratio * below).std() / (size * math.sqrt(len(above)))
    value = ratio.clamp_min(0.0).sqrt().item()
    return value, (error / (2 * value)).item() if ratio > 3 * error else math.nan
