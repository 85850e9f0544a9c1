r"""Power-function averages of weights, of a length that is a share of the training.

.. math:: \theta_t \leftarrow \beta_t\theta_{t-1} + (1 - \beta_t)\,w_t,\qquad
          \beta_t = (1 - 1/t)^{\gamma + 1},\qquad
          \sigma_{rel} = \sqrt{\frac{\gamma + 1}{(\gamma + 2)^2(\gamma + 3)}}

Source: Karras et al. 2024 (EDM2), arXiv:2312.02696, section 3.
"""

from __future__ import annotations

import math

import numpy as np


def gamma_of(length: float) -> float:
    """The exponent gamma whose average has this relative width sigma_rel.

    Raises:
        ValueError: a length that no average has; they lie between 0 and 0.2886751.
    """
    if not 0 < length < 1 / math.sqrt(12):
        raise ValueError(
            f"length was {length:g}; an average over a share of the training has one between 0 and "
            "0.288, e.g. 0.05 or 0.1."
        )
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real[np.abs(roots.imag) < 1e-6].max())


def length_of(gamma: float) -> float:
    """The relative width sigma_rel of the average with this exponent."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def decay(gamma: float, step: int) -> float:
    """The factor beta of the average at a step, counted from 1."""
    return (1 - 1 / step) ** (gamma + 1)


def mixed(kept: list[tuple[float, float]], wanted: tuple[float, float]) -> list[float]:
    """The coefficients with which averages that were kept give one of another length, post hoc.

    The sum of their profiles that is nearest to the wanted one, by least squares.

    Args:
        kept: pairs (step, gamma) of the averages.
        wanted: the pair to be approximated.

    Source: Karras et al. 2024, arXiv:2312.02696, algorithm 3.
    """

    def product(a: tuple[float, float], b: tuple[float, float]) -> float:
        (early, at_early), (late, at_late) = sorted([a, b])
        ratio = early / late
        return (at_early + 1) * (at_late + 1) * ratio**at_late / ((at_early + at_late + 1) * late)

    matrix = np.array([[product(a, b) for b in kept] for a in kept])
    right = np.array([product(a, wanted) for a in kept])
    return np.linalg.solve(matrix, right).tolist()
