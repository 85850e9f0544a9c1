r"""Expected planarity of the probability flow of Gaussian data, without sampling.

Source: Wang & Vastola 2023, arXiv:2303.02490.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from workbench.exact.modes import alpha_sigma, checked, level
from workbench.processes import Process


def expected_explained_variance(
    process: Process,
    variances: Tensor,
    times: Sequence[float] | Tensor,
    k: int = 3,
    centred: bool = True,
    of: Literal["state", "denoised"] = "state",
) -> Tensor:
    r"""The same shares for the flow of Gaussian data, without sampling.

    From the expected Gram matrix over time :math:`K(t, t') = \sum_k f_k(t) f_k(t')`, with
    :math:`f_k = \sqrt{\ell_k}` for the state and :math:`\alpha\lambda_k/\sqrt{\ell_k}` for the
    denoised one. Single trajectories are on average a little less planar.

    Args:
        variances: of the modes, any shape; the mean of the data is taken to be zero.

    Returns:
        (k,), float64.
    """
    if of not in ("state", "denoised"):
        raise ValueError(f"of was {of!r}; it must be 'state' or 'denoised'.")
    variances = checked(variances)
    times = torch.as_tensor(times, dtype=torch.float64)
    levels = level(process, variances, times)
    if of == "denoised":
        alpha, _ = alpha_sigma(process, variances, times)
        levels = torch.where(levels > 0, (alpha * variances).square() / levels, 0.0)
    paths = levels.sqrt().flatten(1)  # (time, mode)
    energy = torch.linalg.svdvals(paths - paths.mean(0) if centred else paths).square()
    shares = energy.cumsum(0) / energy.sum()
    return torch.cat([shares, shares[-1:].expand(max(0, k - len(shares)))])[:k]
