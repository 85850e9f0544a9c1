"""Scalings that keep a network's input and target at unit variance at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Preconditioning(NamedTuple):
    r"""Scalings of :math:`D(x;\sigma) = c_{skip} x + c_{out} F(c_{in} x;\, c_{noise})`.

    Attributes:
        skip, out, input, noise: as in the formula; floats, or tensors of sigma's shape.
        weight: of the squared error of D at which that of F counts alike at every noise level.
    """

    skip: float | Tensor
    out: float | Tensor
    input: float | Tensor
    noise: float | Tensor
    weight: float | Tensor


def edm_preconditioning(sigma: float | Tensor, sigma_data: float = 0.5) -> Preconditioning:
    r"""EDM's scalings for a network F inside a denoiser of states of ``alpha = 1``.

    .. math:: c_{skip} = \frac{\sigma_d^2}{\sigma^2+\sigma_d^2},\quad
              c_{out} = \frac{\sigma\,\sigma_d}{\sqrt{\sigma^2+\sigma_d^2}},\quad
              c_{in} = \frac{1}{\sqrt{\sigma^2+\sigma_d^2}},\quad
              c_{noise} = \tfrac14\log\sigma,\quad
              \text{weight} = \frac{1}{c_{out}^2}

    For data :math:`N(0, \sigma_d^2 I)` the ideal denoiser is ``skip * x``, and F is zero.

    Args:
        sigma: noise level [x]; a number or a tensor, greater than 0.
        sigma_data: standard deviation of the data [x].

    Raises:
        ValueError: a noise level or ``sigma_data`` that is not positive and finite.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 and appendix B.6.
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data was {sigma_data!r}; it must be positive and finite.")
    if isinstance(sigma, Tensor):
        bad = sigma[~((sigma > 0) & (sigma < math.inf))]
        root, log = torch.sqrt, torch.log
    else:
        bad = () if 0 < sigma < math.inf else (sigma,)
        root, log = math.sqrt, math.log
    if len(bad):
        raise ValueError(
            f"sigma was {float(bad[0]):g}; the scalings exist at positive, finite noise levels."
        )
    total = sigma * sigma + sigma_data * sigma_data
    out = sigma * sigma_data / root(total)
    return Preconditioning(
        skip=sigma_data * sigma_data / total,
        out=out,
        input=1 / root(total),
        noise=0.25 * log(sigma),
        weight=1 / (out * out),
    )


def edm_denoised(
    network: Callable, y: Tensor, rho: Tensor, sigma_data: float, centre: Tensor | None = None
) -> Tensor:
    r"""The denoised state of a network F inside EDM's scalings; like ``y``.

    .. math:: D = m + c_{skip}\,(y - m) + c_{out}\,F(c_{in}\,(y - m);\, c_{noise})

    Args:
        network: F, called with scaled states and a quarter of log rho (n,).
        y: states of ``alpha = 1`` (n, *event).
        rho: noise levels (n, 1, ...), greater than 0, in any dtype.
        sigma_data: root mean square deviation of the data from ``centre`` [x].
        centre: m, shape ``event`` or a number; None: 0.
    """
    c = edm_preconditioning(rho, sigma_data)
    skip, out, into, noise = (v.to(y.dtype) for v in c[:4])
    if centre is not None:
        y = y - centre
    answer = network(into * y, noise.flatten())
    denoised = skip * y + out * answer
    return denoised if centre is None else denoised + centre


def edm_log_density(
    potential: Callable, y: Tensor, rho: Tensor, sigma_data: float, centre: Tensor | None = None
) -> Tensor:
    r"""Logarithm of the density whose score is that of :func:`edm_denoised` with a gradient (n,).

    .. math:: \log p = \frac{1}{\rho^2}\left[\frac{c_{skip}-1}{2}|y-m|^2
              + \frac{c_{out}}{c_{in}}\,U(c_{in}(y-m);\,c_{noise})\right]
              - \frac d2\log 2\pi(\sigma_d^2+\rho^2)

    for :math:`F = \nabla U`; up to what a potential leaves open, a function of the noise alone.
    Without U it is that of :math:`N(m, \sigma_d^2 I)`, noised.

    Args:
        potential: U, called as the network is, with an answer (n,).
        y, rho, sigma_data, centre: as of :func:`edm_denoised`.
    """
    c = edm_preconditioning(rho, sigma_data)
    skip, out, into, noise = (v.to(y.dtype).reshape(len(y)) for v in c[:4])
    centred = y if centre is None else y - centre
    value = potential(into.reshape(-1, *(1,) * (y.ndim - 1)) * centred, noise)
    level, square = rho.reshape(len(y)).to(y.dtype), centred.square().flatten(1).sum(1)
    normal = 0.5 * y[0].numel() * (2 * math.pi * (sigma_data**2 + level.square())).log()
    return (0.5 * (skip - 1) * square + out / into * value) / level.square() - normal
