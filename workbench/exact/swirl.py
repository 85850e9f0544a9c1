r"""Euler's method on Gaussian data whose score has a gauge part: its exact law.

The field :math:`s + cA s`, A antisymmetric, has the marginals of s in continuous time, whatever c.
A step of Euler's method is a straight line where the path is a circle: it leaves the level set of
the density and adds variance. On Gaussian data every step is affine,

.. math:: x \leftarrow x + h\,\big(f x - \tfrac{g^2}2 (I + cA)\,s(x, t)\big),\qquad
          s = -C_t^{-1}(x - \alpha m),

and the law follows from the product of its matrices: an error without sampling.

Source: derived here, with the gauge field of Horvat & Pfister 2024, arXiv:2402.03845.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion

__all__ = ["euler_law"]


def euler_law(diffusion: Diffusion, times: list[float], gauge: Tensor) -> Gaussian:
    """Law of Euler's method for the probability flow from the exact marginal at ``times[0]``.

    Args:
        diffusion: of a Gaussian, under a process with one noise level.
        times: nodes, decreasing.
        gauge: antisymmetric matrix (d, d) that multiplies the score and is added to it; zero: none.

    Raises:
        TypeError: other data or processes.
    """
    data, process = diffusion.core, diffusion.process
    if not isinstance(data, Gaussian) or process.spectral or diffusion.condition is not None:
        raise TypeError(
            f"Euler's law is for Gaussian data under one noise level; this is {diffusion!r}."
        )
    spectrum, basis = torch.linalg.eigh(data.cov.double())
    gauge, eye = gauge.double(), torch.eye(data.dim, dtype=torch.float64)
    centre = data.mean.flatten().double()
    first = process(times[0])
    mean = float(first.alpha) * centre
    cov = (basis * _level(spectrum, first)) @ basis.T
    for start, end in zip(times[:-1], times[1:], strict=True):
        c = process(start)
        precision = (basis / _level(spectrum, c)) @ basis.T
        pull = 0.5 * float(c.g2) * (eye + gauge) @ precision
        step = eye + (end - start) * (float(c.f) * eye + pull)
        mean = step @ mean - (end - start) * pull @ (float(c.alpha) * centre)
        cov = step @ cov @ step.T
    return Gaussian(mean.reshape(data.event_shape), 0.5 * (cov + cov.T))


def _level(spectrum: Tensor, c) -> Tensor:
    """Variances of the noised modes."""
    return float(c.alpha) ** 2 * spectrum.clamp_min(0) + float(c.sigma) ** 2
