r"""How many dimensions the data have at a noise level: exact values of the estimators.

Data of variance :math:`\lambda_k` along each mode look, at noise :math:`\rho`, like as many
dimensions as there are modes well above it. Power-law data have no intrinsic dimension but a curve
of it over :math:`\rho`; a finite set seen by its ideal denoiser has 0 below the collapse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian
from workbench.denoisers.sphere import ASYMPTOTIC, Sphere, mean_resultant
from workbench.diffusion import Diffusion
from workbench.exact.flow import flow_factor
from workbench.exact.modes import gaussian_core


def flipd(denoiser: Denoiser, x0: Tensor, rho) -> Tensor:
    r"""Local intrinsic dimension at data points by the Fokker-Planck estimator (*batch).

    .. math:: \mathrm{FLIPD} = d + \sigma^2(\nabla\!\cdot s + |s|^2)\big|_{\alpha x_0}
              = \alpha\operatorname{tr}\frac{\partial D}{\partial x}
              + \frac{|D - x_0|^2}{\rho^2}

    The second form has no difference of large terms at small noise. It depends on
    :math:`\rho = \sigma/\alpha` alone and is biased low where the noise is not small.

    Args:
        denoiser: one that knows its divergence.
        x0: data points (*batch, *event).
        rho: noise level sigma/alpha [x]; a number or one per sample, greater than 0.

    Source: Kamkari et al. 2024, arXiv:2406.03537.
    """
    level = torch.as_tensor(rho, dtype=torch.float64)
    if not bool(((level > 0) & level.isfinite()).all()):
        raise ValueError(f"rho was {rho!r}; the estimator needs noise, positive and finite.")
    batch = x0.shape[: x0.ndim - len(denoiser.event_shape)]
    away = (denoiser.denoise(x0, 1.0, rho) - x0).flatten(len(batch)).square().sum(-1)
    return denoiser.divergence(x0, 1.0, rho) + away / level.to(away).square()


def flipd_mean(spectrum: Tensor, rho: float | Tensor) -> Tensor:
    r"""Mean of :func:`flipd` over Gaussian data of these variances; the shape of ``rho``.

    .. math:: \sum_k \frac{r_k}{1+r_k} + \frac{r_k}{(1+r_k)^2},\qquad r_k = \lambda_k/\rho^2

    Args:
        spectrum: variances (d,) [x²], e.g. ``Gaussian.spectrum``.
        rho: noise levels [x], greater than 0.
    """
    share = _shares(spectrum, rho)
    return (share * (2 - share)).sum(-1)


def denoiser_trace(spectrum: Tensor, rho: float | Tensor) -> Tensor:
    r"""Trace of the Jacobian of the ideal denoiser of Gaussian data; the shape of ``rho``.

    .. math:: \sum_k \frac{\lambda_k}{\lambda_k + \rho^2}

    It is the effective number of dimensions kept (the degrees of freedom of a linear smoother) and
    a lower bound of :func:`flipd_mean`. Arguments as there.
    """
    return _shares(spectrum, rho).sum(-1)


def lidl_mean(spectrum: Tensor, deltas: Tensor) -> Tensor:
    r"""LIDL of Gaussian data, mean over them: d plus a line's slope through log-densities.

    .. math:: E\log p_\delta = -\tfrac12\sum_k \log 2\pi(\lambda_k+\delta^2)
              + \frac{\lambda_k}{\lambda_k+\delta^2}

    over :math:`\log\delta`, by least squares. Of one :math:`\delta` it is :func:`flipd_mean`: the
    slope itself.

    Args:
        spectrum: variances (d,) [x²].
        deltas: noise levels of each line (*batch, m) [x].

    Source: Tempczyk et al. 2022, arXiv:2206.14882 (the estimator); its exact value is derived here.
    """
    level = torch.as_tensor(deltas, dtype=torch.float64, device=spectrum.device)[..., None]
    total = spectrum.double() + level.square()
    density = -0.5 * (total.log() + spectrum / total).sum(-1)
    return len(spectrum) + line_slope(level[..., 0].log(), density)


def line_slope(place: Tensor, value: Tensor) -> Tensor:
    """Slope of the line of least squares through values at places, along the last dim."""
    place = place - place.mean(-1, keepdim=True)
    return (place * value).sum(-1) / place.square().sum(-1)


def sphere_flipd(law: Sphere, rho: float | Tensor) -> Tensor:
    r""":func:`flipd` of an even law on a sphere, at any of its points; the shape of ``rho``.

    .. math:: 2\kappa(1 - A_n(\kappa)) = (n-1) - \frac{(n-1)(n-3)}{4\kappa} - \dots,\qquad
              \kappa = R^2/\rho^2

    The 2-sphere has no power of the noise in it: 2 up to :math:`\rho \approx R/2`.

    Args:
        law: without a blur.
        rho: noise levels [x], greater than 0.

    Source: Kamkari et al. 2024, arXiv:2406.03537 (the estimator); its exact value is derived here.
    """
    kappa, mean, n = _resultant(law, rho)
    a = n - 1
    series = a - a * (n - 3) / (4 * kappa) - a * (n - 3) / (4 * kappa**2)
    return torch.where(kappa > ASYMPTOTIC * n * n, series, 2 * kappa * (1 - mean))


def sphere_trace(law: Sphere, rho: float | Tensor) -> Tensor:
    r"""Trace of the denoiser's Jacobian there, :math:`\kappa(1 - A_n^2)`; arguments as there."""
    return sphere_flipd(law, rho) * (1 + _resultant(law, rho)[1]) / 2


def _resultant(law: Sphere, rho: float | Tensor) -> tuple[Tensor, Tensor, int]:
    if law.blur:
        raise ValueError(f"the sphere was blurred by {law.blur:g}; the closed form is for blur 0.")
    n = law.frame.shape[1]
    kappa = law.radius**2 / torch.as_tensor(rho, dtype=torch.float64).square()
    return kappa, mean_resultant(kappa, n), n


def _shares(spectrum: Tensor, rho: float | Tensor) -> Tensor:
    level = torch.as_tensor(rho, dtype=torch.float64, device=spectrum.device)[..., None]
    variances = spectrum.double()
    return variances / (variances + level * level)


def score_singular_values(law: Gaussian, x0: Tensor, alpha: float, sigma: float) -> Tensor:
    r"""Root mean square singular values of scores around one data point, descending (d,) [1/x].

    Of the scores at :math:`\alpha x_0 + \sigma\epsilon` with x0 held,

    .. math:: E[s s^\top] = \Sigma_t^{-1}(\sigma^2 I + \alpha^2 y y^\top)\Sigma_t^{-1},
              \qquad y = x_0 - \mu,

    they are the roots of the eigenvalues: 1/sigma along the normals of the data's plane, much less
    along it. The widest gap between neighbours counts the normals.

    Args:
        law: of the data, not of the noised ones.
        x0: one data point (*event).
        alpha, sigma: of the noise level, sigma > 0.

    Source: Stanczuk et al. 2022, arXiv:2212.12611 (the estimator); its exact value is derived here.
    """
    if x0.shape != law.event_shape:
        raise ValueError(
            f"x0 has shape {tuple(x0.shape)}; it must be one point, {tuple(law.event_shape)}."
        )
    twin, matrix = law.diagonalised()
    level = alpha * alpha * twin.variances + sigma * sigma
    if not bool((level > 0).all()):
        raise ValueError(f"sigma was {sigma!r}; the scores of singular data need noise.")
    y = (x0 - law.mean).flatten().double() @ matrix.double()
    # The root [sigma I, alpha y] itself: its squares would lose the small values to rounding.
    root = torch.cat([sigma * torch.eye(law.dim).to(level), alpha * y[:, None]], 1)
    return torch.linalg.svdvals(root / level[:, None])


def flow_singular_values(diffusion: Diffusion, t: float, s: float) -> Tensor:
    r"""Singular values of the exact flow's Jacobian from time ``t`` to ``s``, descending (d,).

    :math:`\sqrt{\ell_k(s)/\ell_k(t)}` of each mode. Towards the data those of the data's own
    directions saturate, those of their normals fall like sigma: what the flow says of the
    dimension.

    Args:
        diffusion: of a Gaussian; independent in the basis of a spectral process.
        t, s: times, either direction.

    Source: Horvat & Pfister 2024, arXiv:2402.03845 (the estimator).
    """
    data = gaussian_core(diffusion, "this closed form")
    variances = data.spectrum
    if diffusion.process.spectral:
        variances = data.variances.reshape(diffusion.event_shape)
    factor = flow_factor(diffusion.process, variances, float(t), float(s))
    return factor.flatten().sort(descending=True).values
