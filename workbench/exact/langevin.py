"""What a Langevin corrector leaves: its stationary law at a step that is not small."""

from __future__ import annotations

import torch
from torch import Tensor


def langevin_variance(level: float | Tensor, step: float | Tensor) -> Tensor:
    r"""Stationary variance of unadjusted Langevin steps at one noise level, per mode.

    :math:`x \leftarrow x + \epsilon s + \sqrt{2\epsilon}\,z` with the exact score of variance l
    settles at

    .. math:: \frac{\ell}{1 - \epsilon/2\ell}

    instead of l: at a fixed step a predictor-corrector sampler does not converge to the marginals.
    Each step multiplies what is left of the start by :math:`1 - \epsilon/\ell`.

    Args:
        level: variances l of the noised data, :math:`\alpha^2\lambda + \sigma^2` [x²].
        step: epsilon [x²], greater than 0 and below 2 l.

    Raises:
        ValueError: a step at which a mode diverges.
    """
    level = torch.as_tensor(level, dtype=torch.float64)
    step = torch.as_tensor(step, dtype=torch.float64)
    if not bool(((step > 0) & (step < 2 * level)).all()):
        least = level.min().item()
        raise ValueError(
            f"step was {step.max().item():g}; it must be positive and below 2 x {least:g}, twice "
            "the least variance, or the corrector diverges."
        )
    return level / (1 - 0.5 * step / level)
