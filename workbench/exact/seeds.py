r"""How much of an image the prompt decides, how much the seed, and how much only both together.

Class-conditional Gaussians :math:`N(m_c, C_c)`, sampled from the same standard noise z (the start
divided by the prior's deviation), give :math:`x_0 = m_c + A_c z`. In the two-way analysis of
variance over classes c and seeds the components, summed over coordinates, are

.. math:: \sigma^2_{class} = \sum\operatorname{Var}_c(m_c),\quad
          \sigma^2_{int} = \tfrac1{C-1}\sum_c\|A_c - \bar A\|_F^2,\quad
          \sigma^2_{seed} = \|\bar A\|_F^2 - \tfrac1C\sigma^2_{int} .

The probability flow from infinite noise has :math:`A_c = C_c^{1/2}`. From a finite one, or with
fresh noise on the way (eta), each mode keeps a part of it, and the fresh noise is a residual.

Source: derived in this project; the protocol is that of a two-way layout (Searle et al. 1992,
*Variance Components*).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.covariance import completed
from workbench.denoisers import Gaussian
from workbench.exact.reverse import transfer
from workbench.processes import Process


class VarianceComponents(NamedTuple):
    """Components of the variance of the outputs, summed over coordinates [x²].

    Attributes:
        between: of the class means, whatever the seed.
        seed: of what a seed does in all classes alike.
        interaction: of what it does in each class its own way.
        residual: of fresh noise, in which outputs of one class and seed differ.
    """

    between: float
    seed: float
    interaction: float
    residual: float

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The four as shares of their sum."""
        total = sum(self)
        return tuple(part / total for part in self)

    @property
    def icc(self) -> float:
        """Intraclass correlation of the seed, its share of the variance within classes."""
        return self.seed / (self.seed + self.interaction + self.residual)


def variance_components(
    classes: Sequence[Gaussian],
    process: Process | None = None,
    eta: float = 0.0,
    t: float | None = None,
    s: float | None = None,
) -> VarianceComponents:
    """Variance components of samples of class-conditional Gaussians over classes and seeds.

    Args:
        classes: the law of each class, at least two, all weighing alike.
        process: None is the probability flow from infinite noise to the data themselves; otherwise
            the reverse process from the prior at ``t`` (None: ``t_max``) to ``s`` (None: 0).
        eta: stochasticity; a seed fixes the start alone, not the noise on the way.

    Raises:
        ValueError: fewer than two classes, of different dimensions; eta without a process.
        TypeError: a spectral process.
    """
    if len(classes) < 2 or len({law.dim for law in classes}) > 1:
        raise ValueError(
            f"classes has {len(classes)} laws of {sorted({law.dim for law in classes})} "
            "dimensions; variance components need at least two of the same."
        )
    if process is None and eta:
        raise ValueError("eta needs a process: how much is forgotten depends on where it starts.")
    if process is not None and process.spectral:
        raise TypeError(f"{process!r} has its own alpha and sigma per mode; take a scalar process.")
    outputs = [_output(law, process, eta, t, s) for law in classes]
    means, roots, residual = zip(*outputs, strict=True)
    return components(means, roots, sum(residual) / len(classes))


def components(
    means: Sequence[Tensor], matrices: Sequence[Tensor], residual: float = 0.0
) -> VarianceComponents:
    """Components of outputs ``mean_c + matrix_c z`` over classes c and standard normal seeds z.

    Args:
        means: (d,) of each class; matrices: (d, d).
        residual: variance of what no seed fixes.
    """
    count, mean = len(matrices), sum(matrices) / len(matrices)
    interaction = sum((one - mean).square().sum().item() for one in matrices) / (count - 1)
    return VarianceComponents(
        between=torch.stack(list(means)).var(0).sum().item(),
        seed=mean.square().sum().item() - interaction / count,
        interaction=interaction,
        residual=residual,
    )


def _output(law: Gaussian, process: Process | None, eta: float, t, s) -> tuple:
    """Mean (d,) of a class's outputs, the matrix that makes them of the seed, variance of noise."""
    mean = law.mean.flatten().double()
    basis, variances = completed(law.basis, law.variances, law.rest)
    gain, noise = variances.sqrt(), torch.zeros_like(variances)
    if process is not None:
        t, s = process.t_max if t is None else float(t), 0.0 if s is None else float(s)
        gain, noise, _ = transfer(process, variances, t, s, eta, 0.0)
        start, end = process(t).alpha, process(s).alpha
        apart = gain * start * mean if basis is None else basis @ (gain * start * (basis.T @ mean))
        mean, gain = end * mean - apart, gain * process.prior_std(t)
    matrix = torch.diag(gain) if basis is None else (basis * gain) @ basis.T
    return mean, matrix, noise.sum().item()
