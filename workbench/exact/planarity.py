r"""How nearly a trajectory lies in a plane, and how nearly it is a rotation from noise to data.

With the last state :math:`x_0` and the first :math:`x_T` in hand, every trajectory is close to

.. math:: x_t \approx \alpha_t x_0 + \frac{\sigma_t}{\sigma_T}(x_T - \alpha_T x_0),

under a variance-preserving process a quarter turn in their plane. It is exact mode by mode as
:math:`\lambda/\rho^2` goes to 0 or infinity; the error sits in the modes that are just emerging.

The numbers depend on the coordinates and on the times: a path of :math:`x/\alpha` from a very large
noise level is a straight line to many digits whatever the data. Say which were used.

Source: Wang & Vastola 2023, arXiv:2303.02490.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.exact.modes import alpha_sigma, checked, level
from workbench.processes import Process

__all__ = [
    "Planarity",
    "expected_explained_variance",
    "explained_variance",
    "planarity",
    "rotation",
    "rotation_plane",
]


class Planarity(NamedTuple):
    """What :func:`planarity` finds, float64; each of the shape of the batch.

    Attributes:
        explained: share of the variance about the mean over time in the leading principal
            directions, cumulative (*batch, k).
        in_plane: share of the energy in the plane of the first and the last state.
        residual: largest distance from that plane, relative to the state's length.
        rotation: share of the energy that the rotation explains (R²).
    """

    explained: Tensor
    in_plane: Tensor
    residual: Tensor
    rotation: Tensor


def explained_variance(path: Tensor, k: int = 3, centred: bool = True) -> Tensor:
    """Share of a trajectory's variance in its 1, 2, ..., k leading principal directions.

    Args:
        path: (time, *batch, d), all times weighing alike.
        k: how many directions.
        centred: about the mean over time; False: about the origin.

    Returns:
        (*batch, k), float64, cumulative; nan for a path that does not move.
    """
    flat = torch.as_tensor(path).double().movedim(0, -2)
    if centred:
        flat = flat - flat.mean(-2, keepdim=True)
    energy = torch.linalg.svdvals(flat).square()
    shares = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    missing = max(0, k - shares.shape[-1])
    return torch.cat([shares, shares[..., -1:].expand(*shares.shape[:-1], missing)], -1)[..., :k]


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
    return explained_variance(levels.sqrt().flatten(1), k, centred)


def rotation(process: Process, path: Tensor, times: Sequence[float] | Tensor) -> Tensor:
    """The rotation from the noisiest to the cleanest state of ``path`` (time, *batch, d).

    Raises:
        ValueError: another number of times than of states.
        TypeError: a spectral process, which turns each mode at a pace of its own.
    """
    if process.spectral:
        raise TypeError(
            f"{process!r} has a rotation per mode; give it the path of one mode and process.mode()."
        )
    path = torch.as_tensor(path).double()
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.shape != path.shape[:1]:
        raise ValueError(
            f"path has shape {tuple(path.shape)} and there are {times.numel()} times; there must "
            "be one for each state along its first axis."
        )
    first, last = _ends(path, times)
    c = process(times)
    alpha, sigma = (v.reshape(-1, *(1,) * (path.ndim - 1)).to(path) for v in (c.alpha, c.sigma))
    start = int(times.argmax())
    return alpha * last + sigma / sigma[start] * (first - alpha[start] * last)


def rotation_plane(path: Tensor, times: Sequence[float] | Tensor) -> Tensor:
    """Orthonormal columns (*batch, d, 2) that span the noisiest and the cleanest state."""
    path = torch.as_tensor(path).double()
    ends = _ends(path, torch.as_tensor(times, dtype=torch.float64))
    return torch.linalg.qr(torch.stack(ends, -1)).Q


def planarity(
    process: Process, path: Tensor, times: Sequence[float] | Tensor, k: int = 3
) -> Planarity:
    """How planar, and how much of a rotation, each trajectory of ``path`` (time, *batch, d) is.

    Arguments and errors as :func:`rotation`; principal directions about the mean over time,
    everything else about the origin.
    """
    path = torch.as_tensor(path).double()
    turned = rotation(process, path, times)
    plane = rotation_plane(path, times)
    flat = path.movedim(0, -2)
    off = flat - flat @ plane @ plane.mT
    energy = flat.square().sum((-2, -1))
    missed = (flat - turned.movedim(0, -2)).square().sum((-2, -1))
    return Planarity(
        explained=explained_variance(path, k),
        in_plane=1 - off.square().sum((-2, -1)) / energy,
        residual=(off.norm(dim=-1) / flat.norm(dim=-1)).amax(-1),
        rotation=1 - missed / energy,
    )


def _ends(path: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The states at the largest and at the smallest time."""
    return path[int(times.argmax())], path[int(times.argmin())]
