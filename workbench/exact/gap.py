r"""How far apart the ODE and the SDE driven by one wrong score end, and bounds that see it coming.

Let :math:`q^O_t, q^S_t` be the laws of the probability flow and of the reverse SDE of a score s,
both started from :math:`\pi` at T. If no point is expanded faster than
:math:`L(t) \ge \lambda_{max}(-f I + \tfrac{g^2}{2}\nabla s)` going back in time,

.. math:: W_2(q^O_0, q^S_0) \le \int_0^T e^{\int_0^t L}\,\tfrac{g^2}{2}\,
          \|\nabla\log q^S_t - s\|_{L^2(q^S_t)}\,dt
          \le \int_0^T e^{\int_0^t L}\,\tfrac{g^2}{2}\left[\int_t^T \tfrac{\alpha_r}{\alpha_t}
          \|\varepsilon[s]\|_{L^2(q^S_r)} dr + \tfrac{\alpha_T}{\alpha_t}
          \|\nabla\log\tfrac{\pi}{p_{\theta,T}}\|_{L^2(\pi)}\right] dt .

The first says how wrong the score is for the SDE's own marginals; the second needs only the
Fokker-Planck residual :math:`\varepsilon` of the score and the mismatch of the start. (q^S flows
with the velocity of s plus :math:`\tfrac{g^2}{2}(\nabla\log q^S - s)`: couple both flows and use
Grönwall's lemma; then the mismatch is a mean of later residuals over the noising process.)

Source: derived in this project, in the spirit of Deveney et al. 2023, arXiv:2311.15996.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion


class GapBound(NamedTuple):
    """What :func:`gap_bound` finds [x]; each is at most the next.

    Attributes:
        w2: the distance itself.
        mismatch: the bound by the score's mismatch with the SDE's marginals.
        residual: the bound by the Fokker-Planck residual.
    """

    w2: float
    mismatch: float
    residual: float


def gap_bound(
    diffusion: Diffusion,
    delta: float,
    t: float | None = None,
    end: float | None = None,
    start: Literal["marginal", "prior"] = "marginal",
) -> GapBound:
    r"""Distance of the ODE from the SDE for the score :math:`(1+\delta)s^*` of Gaussian data.

    In the noise level :math:`w = \rho^2` nothing but the last alpha is left of the process. Per
    mode, with :math:`Y = \lambda + w` and the SDE's variance :math:`\alpha^2 V`,

    .. math:: \|\nabla\log q^S - s\|^2 = \alpha^{-2}\sum V\left(\tfrac{1+\delta}{Y}
              - \tfrac1V\right)^2,\qquad
              \|\varepsilon\|^2 = (\delta(1+\delta) g^2)^2\alpha^{-6}\sum \tfrac{V}{Y^4} .

    The inner integral is in closed form too; the outer one is integrated to 1e-10.

    Args:
        diffusion: of a Gaussian, under a process with one alpha and sigma.
        delta: relative error of the score, above -1.
        t, end: None are ``process.t_min`` and ``process.t_max``.
        start: pi: the true marginal at ``end``, or what sampling starts from there.

    Raises:
        ValueError: alpha = 0 at ``end``, where a mis-scaled flow has no start; sigma = 0 at ``t``
            for singular data, where the bounds are infinite.
    """
    process, data = diffusion.process, diffusion.denoiser
    if not isinstance(data, Gaussian) or process.spectral:
        raise TypeError(
            "this bound needs Gaussian data under a process with one alpha and sigma; "
            f"these are {data!r} under {process!r}."
        )
    if not -1 < delta < math.inf:
        raise ValueError(f"delta was {delta!r}; the score's error must be finite and above -1.")
    if start not in ("marginal", "prior"):
        raise ValueError(f"start was {start!r}; it must be 'marginal' or 'prior'.")
    first = process(float(process.t_min if t is None else t))
    last_t = float(process.t_max if end is None else end)
    last = process(last_t)
    if last.alpha == 0:
        raise ValueError(
            f"end was {last_t:g}, where alpha is 0: a mis-scaled score moves infinitely far from "
            "there. Give an end before it."
        )
    if not first.rho < last.rho:
        raise ValueError(f"t and end have rho {first.rho:g} and {last.rho:g}; rho must grow.")
    twin, matrix = data.diagonalised()
    modes = _Modes(twin.variances, 1 + delta, first.rho**2, last.rho**2)
    variances, offset = modes.variances + last.rho**2, torch.zeros_like(modes.variances)
    if start == "prior":
        variances = torch.full_like(variances, process.prior_std(last_t) ** 2 / last.alpha**2)
        mean = data.mean if diffusion.condition is None else data.mean - diffusion.condition
        offset = -mean.flatten().double() @ matrix.double()
    if not bool((modes.variances + first.rho**2 > 0).all()):
        raise ValueError("the data are singular and sigma is 0 at t: the bounds are infinite.")
    return modes.bound(first.alpha, variances, offset)


class _Modes:
    """The bounds in the eigenbasis of the data, as functions of w = rho^2 from w0 to w1."""

    def __init__(self, variances: Tensor, kappa: float, w0: float, w1: float) -> None:
        self.variances, self.kappa, self.w0, self.w1 = variances, kappa, w0, w1

    def bound(self, alpha: float, start: Tensor, offset: Tensor) -> GapBound:
        """From variances and mean offsets at w1, in the units of :meth:`_sde`."""
        from scipy.integrate import quad_vec

        kappa = self.kappa
        ends = torch.tensor([self.w0, self.w1], dtype=torch.float64, device=start.device)
        (ended, _), (shifted, _) = self._sde(ends, start, offset)
        span = self._span(ends[:1])[0]
        flowed, moved = start * (-kappa * span).exp(), offset * (-0.5 * kappa * span).exp()
        w2 = ((flowed.sqrt() - ended.sqrt()).square() + (moved - shifted).square()).sum().sqrt()

        def mismatch(v: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return (v * (kappa / y - 1 / v).square() + (kappa * b / y).square()).sum(-1).sqrt()

        least = self.variances.min().item()

        def integrands(z: float) -> np.ndarray:
            """Both, in z = log(w + least variance): every mode has a scale of its own."""
            level = math.exp(z)
            w = ends.new_tensor([min(max(level - least, self.w0), self.w1)])
            v, b = self._sde(w, start, offset)
            y = self.variances + w[:, None]
            residual = abs(kappa - 1) * kappa * ((v + b.square()) / y**4).sum(-1).sqrt()
            both = self._expansion(w) * mismatch(v, b, y), self._collected(w) * residual
            return level * torch.cat(both).cpu().numpy()

        edges = math.log(self.w0 + least), math.log(self.w1 + least)
        rounding = 1e-13 * (self.variances.max() + self.w0).sqrt().item()
        (exact, collected), _ = quad_vec(integrands, *edges, epsabs=rounding, epsrel=1e-10)
        of_start = mismatch(start, offset, self.variances + self.w1) * self._collected(ends[1:])
        total = collected + of_start.item()
        return GapBound(alpha * w2.item(), 0.5 * alpha * exact, 0.5 * alpha * total)

    def _span(self, w: Tensor) -> Tensor:
        """log(Y(w1) / Y(w)) of each mode."""
        return torch.log1p((self.w1 - w[:, None]) / (self.variances + w[:, None]))

    def _sde(self, w: Tensor, start: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Variances and mean offsets of the reverse SDE over alpha^2 and alpha (n, d)."""
        span, power = self._span(w), 2 * self.kappa
        y = self.variances + w[:, None]
        fresh = span if power == 1 else torch.expm1((1 - power) * span) / (1 - power)
        return (-power * span).exp() * start + y * fresh, (-self.kappa * span).exp() * offset

    def _expansion(self, w: Tensor) -> Tensor:
        """What the flow makes of a distance at w on its way to w0, alpha left out."""
        widest = self.variances.max()
        return ((widest + self.w0) / (widest + w)) ** (0.5 * self.kappa)

    def _collected(self, w: Tensor) -> Tensor:
        """The integral of the expansion from w0 to w, in closed form."""
        near = self.variances.max() + self.w0
        span, power = torch.log1p((w - self.w0) / near), 1 - 0.5 * self.kappa
        return near * (span if power == 0 else torch.expm1(power * span) / power)


def gradient_law(diffusion: Diffusion, eta: float, gradient: float, t: float, s: float) -> Gaussian:
    r"""Law at ``s`` of the reverse process of a Gaussian whose score has a gradient part too much.

    With :math:`\alpha s' = \alpha s^* + g\,(y - m)`, :math:`w = \rho^2` and
    :math:`Y = \lambda + w`, a mode's variance over :math:`\alpha^2` is

    .. math:: V(w_s) = V(w_t)\,K(w_t) + \eta\int_{w_s}^{w_t} K(w)\,dw,\qquad
              K(w) = \Big(\frac{Y_s}{Y}\Big)^{1+\eta} e^{(1+\eta) g (w - w_s)},

    from what sampling starts from at ``t``; the integral by Gauss and Legendre's rule in log Y.

    Args:
        diffusion: of a Gaussian, under a process with one alpha and sigma.
        eta: stochasticity.
        gradient: g, a multiple of the identity [1/x²].
        t, s: times, t the noisier.
    """
    process, data = diffusion.process, diffusion.denoiser
    start, end = process(t), process(s)
    twin, matrix = data.diagonalised()
    lam = twin.variances.double()
    top, low, power = start.rho**2, end.rho**2, 1 + eta
    points, weights = (torch.from_numpy(v).to(lam) for v in np.polynomial.legendre.leggauss(200))
    edges = (lam + low).log()[:, None], (lam + top).log()[:, None]
    z = 0.5 * (edges[1] - edges[0]) * points + 0.5 * (edges[1] + edges[0])
    y = z.exp()

    def kept(level: Tensor) -> Tensor:
        grown = power * gradient * (level - (lam + low)[:, None])
        return (power * (edges[0] - level.log()) + grown).exp()

    noise = eta * (0.5 * (edges[1] - edges[0]) * weights * kept(y) * y).sum(1)
    gain = kept((lam + top)[:, None])[:, 0]
    spread = float(torch.as_tensor(process.prior_std(t))) / start.alpha
    variances = end.alpha**2 * (spread**2 * gain + noise)
    matrix = matrix.double()
    apart = -gain.sqrt() * (data.mean.flatten().double() @ matrix)  # the prior's mean is zero
    mean = end.alpha * (data.mean.double() + (apart @ matrix.T).reshape(data.mean.shape))
    return Gaussian(mean, (matrix * variances) @ matrix.T)
