r"""The ideal denoiser of a finite data set, the one a perfectly trained network memorises.

.. math:: D(x) = \sum_i x_i\, \mathrm{softmax}_i\!\left(-|x - \alpha x_i|^2 / 2\sigma^2\right)

Source: Karras et al. 2022, arXiv:2206.00364, appendix B.3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import finite, floating
from workbench.denoisers.mixture import Mixture
from workbench.params import Param

__all__ = ["Empirical"]


class Empirical(Mixture):
    """The law of equal point masses at ``points`` (N, *event).

    Exact at any noise level; memory stays bounded whatever the batch. At ``sigma = 0`` the denoised
    state is the nearest point, the limit from above.
    """

    def __init__(self, points: Tensor) -> None:
        points = finite("points", floating("points", points))
        if points.ndim < 2 or len(points) == 0:
            raise ValueError(
                f"points has shape {tuple(points.shape)}; it must be (number of points, *event)."
            )
        n = len(points)
        super().__init__(points.new_full((n,), 1.0 / n), points, points.new_zeros(n))

    @classmethod
    def from_data(
        cls,
        data,
        points: Annotated[
            int, Param("data points kept, the first of the set; 0 keeps all", ge=0, le=50_000)
        ] = 0,
    ) -> Empirical:
        """The point masses of a data set."""
        return cls(data.points[: points or None])

    @property
    def points(self) -> Tensor:
        """The data points (N, *event)."""
        return self.means

    def to(self, dtype: torch.dtype | None = None, device=None) -> Empirical:
        points = self.means.to(dtype=dtype or self.dtype, device=device or self.device)
        return self if points is self.means else Empirical(points)

    def __repr__(self) -> str:
        return f"Empirical({len(self.means)} points in {self.dim} dimensions)"
