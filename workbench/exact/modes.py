r"""A process seen by the modes of a Gaussian: per-mode coefficients, levels and times.

A mode of variance :math:`\lambda` has, at time t, the variance :math:`\ell = \alpha^2\lambda +
\sigma^2`. Under a scalar process alpha and sigma are the same for all modes; under a spectral one
each mode has its own, and the variances come in the layout of the basis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.processes import Process


def checked(variances, name: str = "variances") -> Tensor:
    """Variances as a float64 tensor; ``ValueError`` unless finite and at least 0."""
    variances = torch.as_tensor(variances, dtype=torch.float64)
    bad = variances[~((variances >= 0) & (variances < math.inf))]
    if bad.numel():
        raise ValueError(
            f"{name} held {bad[0].item():g}; a variance must be finite and at least 0 (set tiny "
            "negative eigenvalues to 0)."
        )
    return variances


def alpha_sigma(process: Process, variances: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma, float64, so that they broadcast to (*t.shape, *variances.shape).

    Raises:
        ValueError: variances in another shape than that of a spectral process's basis.
    """
    times = torch.as_tensor(t, dtype=torch.float64)
    c = process(times)
    pair = []
    for value in (c.alpha, c.sigma):
        own = value.shape[times.ndim :]
        if own and own != variances.shape:
            raise ValueError(
                f"variances have shape {tuple(variances.shape)}; {process!r} has one mode for each "
                f"of {tuple(own)}."
            )
        shape = value.shape if own else value.shape + (1,) * variances.ndim
        pair.append(value.reshape(shape).to(variances))
    return pair[0], pair[1]


def level(process: Process, variances: Tensor, t: float | Tensor) -> Tensor:
    """Variance of each mode at each time, (*t.shape, *variances.shape) [x²]."""
    alpha, sigma = alpha_sigma(process, variances, t)
    return alpha.square() * variances + sigma.square()


def times_of(process: Process, rho: Tensor) -> Tensor:
    """Times at which the noise levels ``rho`` are reached; nan where the process has none such."""
    if process.spectral:
        times = torch.full_like(rho, math.nan)
        kinds, index = process.distinct()
        for i, kind in enumerate(kinds):
            mine = (index == i).to(rho.device)
            times[mine] = times_of(kind, rho[mine])
        return times
    ends = torch.tensor([0.0, process.t_max], dtype=torch.float64)
    least, largest = process(ends).rho.to(rho)
    inside = (rho >= least) & (rho <= largest) & (least < largest)
    times = torch.full_like(rho, math.nan)
    times[inside] = process.time_of(rho[inside])
    return times


def gaussian_core(diffusion: Diffusion, of: str) -> Gaussian:
    """The data of the core variable: a Gaussian, of one variance for each mode.

    Raises:
        TypeError: data that are not Gaussian, or not independent in the basis of the process.
    """
    data = diffusion.core
    if not isinstance(data, Gaussian):
        raise TypeError(f"{of} needs Gaussian data; these are {data!r}. For others, sample.")
    if diffusion.process.spectral and data.basis is not None:
        raise TypeError(
            f"the modes of {diffusion.process!r} are correlated in these data, so there is no law "
            "mode by mode; sample, or use data with a diagonal covariance in that basis."
        )
    return data


def isotropic(law: Gaussian) -> bool:
    """Whether the covariance is a multiple of the identity."""
    first = law.variances[0] if len(law.variances) else law.rest
    outside = len(law.variances) == law.dim or law.rest == first
    return bool((law.variances == first).all()) and bool(outside)
