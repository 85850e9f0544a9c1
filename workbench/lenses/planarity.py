r"""Planarity of trajectories: principal components, and the rotation from noise to sample.

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
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.lenses.base import Lens, OnStep, Subject, estimate
from workbench.lenses.distances import affine_paths
from workbench.lenses.errors import jackknife, mean_error
from workbench.params import Param
from workbench.processes import Process


@dataclass(frozen=True)
class Planarity(Lens):
    r"""How much of a path lies in one plane, and how nearly is it a rotation from noise to sample?

    ``share``: of the variance of the paths about their mean over time, in the leading principal
    directions, cumulative, pooled over samples (eigenvalues of the mean Gram matrix over time).
    ``rotation``: share of the energy that the rotation in the plane of the first and the last state
    explains. Exact on Gaussian data for deterministic linear samplers, from the sampler's own gain
    of each mode.

    Source: Wang & Vastola 2023, arXiv:2303.02490.
    """

    components: Annotated[int, Param("principal components", ge=1, le=16)] = 3
    coordinates: Annotated[
        Literal["scaled", "x"],
        Param("the state over sqrt(alpha^2 + sigma^2/v), v the data's variance; or as it is"),
    ] = "scaled"
    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 256

    reads = ("x",)

    def memory(self, dim: int, kept: int) -> int:
        return 32 * self.samples * kept * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        path = subject.field("x").flatten(2)
        if len(path) < 3:
            raise NotImplementedError("a path of fewer than three recorded times is always planar.")
        scale = divisor(subject, self.coordinates)
        grams = torch.einsum("tnd,snd->nts", path / scale, path / scale)
        shares = lambda some: _shares(some.mean(0), self.components).cpu().numpy()  # noqa: E731
        about, error = "share of a path's variance, cumulative", jackknife(shares, grams)
        variables = estimate("share", "component", shares(grams), about, error=error)
        if not subject.process.spectral:
            turned = rotation(subject.process, path, subject.run["t"].values)
            missed = (path - turned) / scale
            energy = (path / scale).square().sum((0, 2))
            explained = 1 - missed.square().sum((0, 2)) / energy
            about, error = "share of the energy explained by the rotation", mean_error(explained)
            value = explained.mean().item()
            variables |= estimate("rotation", (), value, about, error=error.item())
        return xr.Dataset(variables, {"component": np.arange(1, self.components + 1)})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        path = affine_paths(subject)
        if path is None:
            return None
        zero, one = (path / divisor(subject, self.coordinates)).unbind(1)
        gain = torch.cat([zero, one - zero], 1)  # its Gram matrix is the expected one of the paths
        share = _shares(gain @ gain.T, self.components)
        return xr.Dataset({"share": ("component", share.cpu().numpy())})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        shares = dataset["share"].values
        two = shares[min(1, len(shares) - 1)]
        said = f"{min(2, len(shares))} principal components hold {two:.2%} of the paths' variance"
        if "share_exact" in dataset:
            said += f" (exactly {dataset['share_exact'].values[min(1, len(shares) - 1)]:.2%})"
        if "rotation" in dataset:
            said += "; the rotation from noise to sample explains "
            said += f"{float(dataset['rotation']):.2%} of their energy"
        return [said + "."]


def divisor(subject: Subject, coordinates: Literal["scaled", "x", "ratio"]) -> Tensor:
    """What states are divided by at each recorded time, (time, 1, 1): sqrt(alpha^2 + sigma^2/v)
    with v the data's variance; 1; or alpha."""
    device = subject.diffusion.device
    if coordinates == "x" or "alpha" not in subject.run:
        return torch.ones(subject.run.sizes["time"], 1, 1, dtype=torch.float64, device=device)
    alpha, sigma = (torch.from_numpy(subject.run[key].values) for key in ("alpha", "sigma"))
    if coordinates == "scaled":
        alpha = (alpha.square() + sigma.square() / (subject.denoiser.std**2 or 1.0)).sqrt()
    return alpha[:, None, None].to(device)


def _shares(gram: Tensor, k: int) -> Tensor:
    """Cumulative shares (k,) of the eigenvalues of a Gram matrix over time, its mean removed."""
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    values = torch.linalg.eigvalsh(centred).flip(0).clamp_min(0)
    shares = values.cumsum(0) / values.sum()
    return torch.cat([shares, shares.new_ones(max(0, k - len(shares)))])[:k]


class PlanarityOfPaths(NamedTuple):
    """What :func:`planarity` finds, float64; each of the shape of the batch.

    Attributes:
        explained: share of the variance about the mean over time in the leading principal
            directions, cumulative (*batch, 3).
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


def planarity(process: Process, path: Tensor, times: Sequence[float] | Tensor) -> PlanarityOfPaths:
    """How planar, and how much of a rotation, each trajectory of ``path`` (time, *batch, d) is.

    Arguments and errors as :func:`rotation`; principal directions about the mean over time,
    everything else about the origin.
    """
    path = torch.as_tensor(path).double()
    turned = rotation(process, path, times)
    ends = _ends(path, torch.as_tensor(times, dtype=torch.float64))
    plane = torch.linalg.qr(torch.stack(ends, -1)).Q  # orthonormal columns (*batch, d, 2)
    flat = path.movedim(0, -2)
    off = flat - flat @ plane @ plane.mT
    energy = flat.square().sum((-2, -1))
    missed = (flat - turned.movedim(0, -2)).square().sum((-2, -1))
    return PlanarityOfPaths(
        explained=explained_variance(path),
        in_plane=1 - off.square().sum((-2, -1)) / energy,
        residual=(off.norm(dim=-1) / flat.norm(dim=-1)).amax(-1),
        rotation=1 - missed / energy,
    )


def _ends(path: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The states at the largest and at the smallest time."""
    return path[int(times.argmax())], path[int(times.argmin())]
