r"""What a linear sampler does to each mode of Gaussian data: gain, shift and noise of its program.

On Gaussian data an evaluation is affine in each mode of variance :math:`\lambda` and mean
:math:`\mu`. With :math:`\ell = \alpha^2\lambda + \sigma^2`

.. math::
    D = \frac{\alpha\lambda}{\ell}\,x + \frac{\sigma^2}{\ell}\,\mu, \qquad
    s = -\frac{1}{\ell}\,(x - \alpha\mu), \qquad
    \frac{dD}{d\rho} = -\frac{\alpha^2\sigma\lambda}{\ell^2}\,(x - \alpha\mu) ,

and the final state is :math:`x_0 = g\,x_T + r\,\mu + c\,y + \sum_j w_j z_j` over the fresh noises,
with y the condition of an affine process (register ``mu``). The rows are read from the last to the
first, carrying the weight that the final state gives to each register. A register that is not used
carries none; a noise met on the way adds :math:`w_j^2`; so no covariance between registers is ever
needed, and the cost of a row is that of its terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.exact.modes import checked
from workbench.sampling import Evaluate, Node, Program
from workbench.sampling.program import Apply

#: Beside the square of sigma: a mode without variance and without noise has D = mu.
TINY = 1e-300


class Transfer(NamedTuple):
    """Per mode, the final state is ``gain * x_T + response * mean + pull * y + N(0, noise)``.

    Attributes:
        gain: of the initial state.
        response: of the data's mean.
        noise: variance of what fresh noise leaves in the final state [x²].
        pull: of the condition y; 0 but for methods in t on an affine process.
    """

    gain: Tensor
    response: Tensor
    noise: Tensor
    pull: Tensor


def transfer(program: Program | Sequence[Program], variances: Tensor) -> Transfer:
    """Gain, response to mean and condition, and noise of a program on modes of these variances.

    Args:
        program: of a linear sampler; or several, read at once if they differ in numbers only, as
            one sampler's do on grids of as many nodes.
        variances: of the modes, any shape; under a spectral process in the shape of its basis.

    Returns:
        Tensors like ``variances``, float64; with several programs, (programs, *variances.shape).

    Raises:
        TypeError: a program that is not linear.
        ValueError: variances that are negative or not finite.
    """
    variances = checked(variances)
    shape, device = variances.shape, variances.device
    flat = variances.detach().cpu().numpy().reshape(-1)
    if isinstance(program, Program):
        made = _read(list(program.rows), flat, flat.shape)
    else:
        made = _read_several([list(each.rows) for each in program], flat)
        shape = (len(program), *shape)
    return Transfer(*(torch.from_numpy(v).reshape(shape).to(device) for v in made))


def _read(rows: Sequence, variances: np.ndarray, shape: tuple[int, ...]) -> tuple:
    """The rows from last to first; ``weights`` is what the final state gives to each register."""
    if any(isinstance(row, Apply) for row in rows):
        raise TypeError(
            "the program holds rows that are not linear, so it has no exact law; sample."
        )
    weights = {"x": np.ones(shape)}
    response, noise = np.zeros(shape), np.zeros(shape)
    scratch = np.empty(shape)
    for row in reversed(rows):
        weight = weights.pop(row.out, None)
        if weight is None:
            continue
        if isinstance(row, Evaluate):
            gain, of_mean = _evaluation(row, variances)
            response += np.multiply(weight, of_mean, out=scratch)
            terms = ((row.at, gain),)
        else:
            terms = row.terms
            if row.draws:
                np.multiply(weight, _numbers(row.noise), out=scratch)
                noise += np.square(scratch, out=scratch)
        for place, (name, c) in enumerate(terms, 1):
            known = weights.get(name)
            if known is not None:
                known += np.multiply(weight, _numbers(c), out=scratch)
            elif place == len(terms):  # nobody needs it any more
                weights[name] = np.multiply(weight, _numbers(c), out=weight)
            else:
                weights[name] = weight * _numbers(c)
    gain, pull = (weights.get(name, np.zeros(shape)) for name in ("x", "mu"))
    return gain, response, noise, pull


def _evaluation(row: Evaluate, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What multiplies the state and the mean in what ``row`` evaluates."""
    a, s = _numbers(row.node.alpha), _numbers(row.node.sigma)
    square = s * s + TINY
    level = variances * (a * a)
    level += square
    if row.of == "denoised":
        of_mean = square / level
        gain = np.divide(variances, level, out=level)
        gain *= a
    elif row.of == "score":
        gain = np.divide(-1.0, level, out=level)
        of_mean = -a * gain
    else:
        gain = variances / level
        gain /= level
        gain *= -a * a * s
        of_mean = -a * gain
    return gain, of_mean


def _numbers(c):
    """A coefficient as a float, as one value per mode, or as one per program (programs, 1)."""
    return c.detach().cpu().numpy().reshape(-1) if isinstance(c, Tensor) else c


# -- several programs at once --------------------------------------------------------------------


def _read_several(programs: list[list], variances: np.ndarray) -> tuple:
    """Programs that differ in numbers only are read at once, others one by one."""
    kinds = [[(type(row), row.out) for row in rows] for rows in programs]
    if all(mine == kinds[0] for mine in kinds):
        rows = [_row(each) for each in zip(*programs, strict=True)]
        return _read(rows, variances, (len(programs), len(variances)))
    made = [_read(rows, variances, variances.shape) for rows in programs]
    return tuple(map(np.stack, zip(*made, strict=True)))


class _Combine(NamedTuple):
    out: str
    terms: tuple
    noise: np.ndarray
    draws: bool


def _row(rows: Sequence):
    first = rows[0]
    if isinstance(first, Apply):
        return first
    if isinstance(first, Evaluate):
        alpha = _column([row.node.alpha for row in rows])
        sigma = _column([row.node.sigma for row in rows])
        return Evaluate(first.out, first.at, Node(math.nan, alpha, sigma), first.of)
    each = [dict(row.terms) for row in rows]
    names = dict.fromkeys(name for terms in each for name in terms)
    terms = tuple((name, _column([terms.get(name, 0.0) for terms in each])) for name in names)
    return _Combine(
        first.out, terms, _column([row.noise for row in rows]), any(row.draws for row in rows)
    )


def _column(values: list) -> np.ndarray:
    """(programs, 1); under a spectral process (programs, modes)."""
    if isinstance(values[0], Tensor):
        return np.stack([_numbers(value) for value in values])
    return np.array(values)[:, None]
