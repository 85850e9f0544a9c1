r"""Sphere: posterior mean of points spread evenly on a sphere, exactly.

In the subspace of n dimensions that holds a sphere of radius R, the direction u of a noised point
:math:`x = \alpha (R u + \nu w) + \sigma\epsilon` follows the law of von Mises and Fisher about
:math:`z/|z|`, z being x in that subspace:

.. math:: p(u|x) \propto e^{\kappa\,u\cdot z/|z|},\qquad \kappa = \frac{\alpha R |z|}{s^2},\qquad
          s^2 = \alpha^2\nu^2 + \sigma^2,\qquad
          E[u|x] = A_n(\kappa)\frac z{|z|},\qquad
          A_n(\kappa) = \frac{I_{n/2}(\kappa)}{I_{n/2-1}(\kappa)},

.. math:: D = \frac{\sigma^2}{s^2} R\,E[u|x] + \frac{\alpha\nu^2}{s^2} x .

It is the simplest curved law whose score is known: what a dimension estimator says of it at each
noise level is a closed form (:func:`workbench.exact.dimension.sphere_flipd`).

Source: Mardia & Jupp 2000, *Directional Statistics*, section 9.3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import floating
from workbench.denoisers.level import Level, _like

#: The concentration, over the dimension squared, from which series replace Bessel functions.
ASYMPTOTIC = 1e4


def mean_resultant(kappa: Tensor, n: int) -> Tensor:
    r"""Length :math:`A_n(\kappa)` of the mean direction of von Mises and Fisher's law.

    Differentiable as often as is asked, by :math:`A' = 1 - A^2 - (n-1)A/\kappa`.

    Args:
        kappa: concentrations, at least 0, of any shape.
        n: dimensions of the space around the sphere.
    """
    return _Ratio.apply(kappa, n)


def _series(kappa: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A and its derivative at large kappa, to third order: without the difference of near ones."""
    a, b = n - 1, (n - 1) * (n - 3) / 8
    value = 1 - a / (2 * kappa) + b / kappa**2 + b / kappa**3
    return value, a / (2 * kappa**2) - 2 * b / kappa**3 - 3 * b / kappa**4


class _Ratio(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(kappa: Tensor, n: int) -> Tensor:
        from scipy.special import ive

        k = kappa.detach().cpu().double()
        values = k.clamp(1e-12, ASYMPTOTIC * n * n).numpy()
        ratio = torch.from_numpy(np.asarray(ive(n / 2, values) / ive(n / 2 - 1, values)))
        ratio = torch.where(k > ASYMPTOTIC * n * n, _series(k.clamp_min(1.0), n)[0], ratio)
        return torch.where(k < 1e-6, k / n, ratio).to(kappa)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.n = inputs[1]
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        kappa, ratio = ctx.saved_tensors
        return grad * _slope(kappa, ratio, ctx.n), None


def _slope(kappa: Tensor, ratio: Tensor, n: int) -> Tensor:
    small = kappa < 1e-6
    over = torch.where(small, 1.0 / n, ratio / torch.where(small, torch.ones_like(kappa), kappa))
    exact = 1 - ratio.square() - (n - 1) * over
    return torch.where(kappa > ASYMPTOTIC * n * n, _series(kappa.clamp_min(1.0), n)[1], exact)


class _SphereLevel(Level):
    def _denoised(self, x: Tensor) -> Tensor:
        return self._parts(x)[0]

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """D; and z/|z|, kappa, A and the factors of direction and state in D."""
        law = self.denoiser
        alpha, sigma, total, z, size, kappa = self._projected(x)
        mean = mean_resultant(kappa, law.frame.shape[1])
        of_direction = law.radius * sigma.square() / total
        of_state = alpha * law.blur**2 / total
        unit = z / size
        denoised = of_direction * mean * (unit @ law.frame.mT) + of_state * x
        return denoised, unit, size, kappa, mean, of_direction, of_state

    def _jacobian(self, x: Tensor) -> Tensor:
        _, unit, size, kappa, mean, of_direction, of_state = self._parts(x)
        n, d = self.denoiser.frame.shape[1], x.shape[1]
        around = (mean / size)[..., None]
        across = (_slope(kappa, mean, n) * kappa / size)[..., None]
        outer = unit[:, :, None] * unit[:, None, :]
        inner = around * torch.eye(n).to(x) + (across - around) * outer
        frame = self.denoiser.frame
        embedded = frame @ inner @ frame.mT
        return of_direction[..., None] * embedded + of_state[..., None] * torch.eye(d).to(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        self._noisy("the log-density")
        law = self.denoiser
        alpha, _, total, _, size, kappa = self._projected(x)
        off = x.square().sum(1, keepdim=True) - size.square()
        square = off.clamp_min(0) + (size - alpha * law.radius).square()
        both = -0.5 * square / total - 0.5 * x.shape[1] * (2 * math.pi * total).log()
        return (both + _log_bessel(kappa, law.frame.shape[1]))[:, 0]

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """alpha, sigma, s^2, z, |z| and kappa."""
        law = self.denoiser
        alpha, sigma = (_like(c, x) for c in self._uniform)
        total = (alpha * law.blur).square() + sigma.square()
        z = x @ law.frame
        size = z.square().sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
        return alpha, sigma, total, z, size, alpha * law.radius * size / total


def _log_bessel(kappa: Tensor, n: int) -> Tensor:
    r"""Log of :math:`\Gamma(n/2)(2/\kappa)^{n/2-1} e^{-\kappa} I_{n/2-1}(\kappa)`; 0 at 0."""
    from scipy.special import gammaln, ive

    k = kappa.detach().cpu().double().numpy()
    order, safe = n / 2 - 1, np.maximum(k, 1e-8)
    values = gammaln(n / 2) + order * np.log(2 / safe) + np.log(ive(order, safe))
    return torch.from_numpy(np.where(k < 1e-8, -k, values)).to(kappa)


class Sphere(Denoiser):
    """The even law on a sphere in a subspace, blurred by a normal of its own where asked.

    Args:
        frame: (d, n) orthonormal columns that span the subspace of the sphere; it has n - 1
            dimensions.
        radius: of the sphere [x].
        blur: standard deviation of the normal in all d dimensions [x].

    Raises:
        ValueError: columns that are not orthonormal, fewer than two of them, a radius that is not
            positive.
    """

    _kind = _SphereLevel

    def __init__(self, frame: Tensor, radius: float, blur: float = 0.0) -> None:
        frame = floating("frame", frame)
        if frame.ndim != 2 or frame.shape[1] < 2 or frame.shape[1] > frame.shape[0]:
            raise ValueError(
                f"frame has shape {tuple(frame.shape)}; a sphere needs (d, n) with n from 2 to d."
            )
        off = (frame.mT @ frame - torch.eye(frame.shape[1]).to(frame)).abs().max().item()
        if not off < 1e-6:
            raise ValueError(
                f"the columns of frame are not orthonormal: they are off by {off:.2g}."
            )
        if not (radius > 0 and math.isfinite(radius) and blur >= 0):
            raise ValueError(
                f"radius was {radius!r} and blur {blur!r}; a sphere has a positive radius and a "
                "blur of at least 0."
            )
        self.frame, self.radius, self.blur = frame, float(radius), float(blur)
        self.event_shape = torch.Size(frame.shape[:1])
        self.dtype, self.device = frame.dtype, frame.device
        self.mean = torch.zeros(frame.shape[0]).to(frame)
        self.std = math.sqrt(self.radius**2 / frame.shape[0] + self.blur**2)

    def draws(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` points (n, d) of the law, float64; ``generator`` on the CPU."""
        normal = lambda size: torch.randn(n, size, generator=generator, dtype=torch.float64)  # noqa: E731
        around = normal(self.frame.shape[1])
        around = self.radius * around / around.norm(dim=1, keepdim=True)
        points = around.to(self.device) @ self.frame.double().mT
        return points + self.blur * normal(self.dim).to(self.device)

    def __repr__(self) -> str:
        n, d = self.frame.shape[1] - 1, self.dim
        return f"Sphere({n} dimensions of radius {self.radius:g} in {d} dimensions)"
