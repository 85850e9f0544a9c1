r"""Orthonormal real bases of the state space, for processes with one noise level per mode.

``forward`` gives the coefficients :math:`c = B^\top x` of states, in the shape of the states;
``inverse`` the states of coefficients. White noise stays white noise in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from workbench.registry import register


class Basis:
    """Base of all bases. A subclass gives ``_forward``, ``_inverse`` and ``frequency``.

    Attributes:
        event_shape: shape of one state, and of its coefficients.
    """

    registry_kind: ClassVar[str] = "basis"

    event_shape: torch.Size

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _inverse(self, c: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def frequency(self) -> Tensor:
        """Angular frequency of each mode [radians per pixel], in the layout of ``forward``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The coefficients of states ``x`` (*batch, *event), in the same shape and dtype.

        Raises:
            ValueError: a state of another shape.
        """
        return self._forward(self._checked("x", x))

    def inverse(self, c: Tensor) -> Tensor:
        """The states of coefficients ``c`` (*batch, *event), in the same shape and dtype.

        Raises:
            ValueError: coefficients of another shape.
        """
        return self._inverse(self._checked("c", c))

    @property
    def dim(self) -> int:
        return math.prod(self.event_shape)

    @cached_property
    def matrix(self) -> Tensor:
        """The basis vectors as columns (d, d), in flattened event order; float64."""
        units = torch.eye(self.dim, dtype=torch.float64)
        return self.inverse(units.reshape(-1, *self.event_shape)).reshape(self.dim, -1).T

    def _checked(self, name: str, value: Tensor) -> Tensor:
        event = len(self.event_shape)
        if value.ndim < event or value.shape[value.ndim - event :] != self.event_shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must end in "
                f"{tuple(self.event_shape)}, the shape of {self!r}."
            )
        return value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({tuple(self.event_shape)})"


class _Regular(Basis):
    """A basis of signals (n,), images (h, w) or channels of images (c, h, w).

    Of the latter the last two axes are transformed, each channel alone.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        self.event_shape = _shape(event_shape)
        if not 1 <= len(self.event_shape) <= 3:
            raise ValueError(
                f"event_shape was {tuple(self.event_shape)}; {type(self).__name__} takes a signal "
                "(n,), an image (height, width) or channels of images (channels, height, width)."
            )

    @classmethod
    def from_data(cls, data) -> _Regular:
        """The basis for the samples of a data set."""
        return cls(data.event_shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that are transformed, counted from the last."""
        return (-1,) if len(self.event_shape) == 1 else (-2, -1)

    def _radial(self, along) -> Tensor:
        """Root of the sum of squares of ``along(n)`` over the axes, in the event's shape."""
        parts = [along(self.event_shape[axis]) for axis in self.axes]
        grids = torch.meshgrid(*parts, indexing="ij")
        return sum(grid.square() for grid in grids).sqrt().expand(self.event_shape)


@register
class DCT(_Regular):
    r"""The orthonormal cosine transform (DCT-II) along each axis.

    .. math:: c_k = \sqrt{\tfrac{2 - \delta_{k0}}{n}}\sum_j x_j \cos\frac{\pi(2j+1)k}{2n}

    The modes of an image with mirrored edges: heat flow and Gaussian blur are diagonal here. One
    matrix product per axis; equal to ``scipy.fft.dctn(x, norm="ortho")``.

    Args:
        event_shape: (n,), (height, width) or (channels, height, width).

    Source: Ahmed, Natarajan & Rao 1974, *Discrete Cosine Transform*.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        self._cache: dict = {}

    @cached_property
    def frequency(self) -> Tensor:
        r""":math:`\pi\sqrt{(k_y/h)^2 + (k_x/w)^2}` [radians per pixel]; 0 for the mean."""
        return self._radial(lambda n: math.pi * torch.arange(n, dtype=torch.float64) / n)

    def _forward(self, x: Tensor) -> Tensor:
        matrices = self._matrices(x)
        x = x @ matrices[-1].T
        return x if len(matrices) == 1 else matrices[0] @ x

    def _inverse(self, c: Tensor) -> Tensor:
        matrices = self._matrices(c)
        c = c @ matrices[-1]
        return c if len(matrices) == 1 else matrices[0].T @ c

    def _matrices(self, like: Tensor) -> list[Tensor]:
        key = (like.dtype, like.device)
        if key not in self._cache:
            self._cache[key] = [_cosines(self.event_shape[axis]).to(like) for axis in self.axes]
        return self._cache[key]


@register
class Hartley(_Regular):
    r"""The real twin of the Fourier transform: real part minus imaginary part; its own inverse.

    .. math:: c_k = \frac{1}{\sqrt n}\sum_j x_j
              \Big(\cos\frac{2\pi jk}{n} + \sin\frac{2\pi jk}{n}\Big)

    with :math:`jk/n` summed over the axes. The modes of a periodic image: any circular convolution
    with a symmetric kernel, and any stationary covariance, is diagonal here, with the same
    eigenvalues as in the Fourier basis. Layout and frequencies are those of ``torch.fft.fftn``.

    Args:
        event_shape: (n,), (height, width) or (channels, height, width).

    Source: Bracewell 1983, *Discrete Hartley Transform*.
    """

    @cached_property
    def frequency(self) -> Tensor:
        r""":math:`2\pi` times the cycles per pixel, radially [radians per pixel]."""
        return self._radial(lambda n: 2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64))

    def _forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fftn(x, dim=self.axes, norm="ortho")
        return spectrum.real - spectrum.imag

    _inverse = _forward


@register
class Columns(Basis):
    """A basis of one's own: principal components, eigenvectors of a graph.

    Args:
        matrix: orthonormal basis vectors as columns (d, d), in flattened event order.
        event_shape: shape of one state, d elements.
        frequency: of each mode, in the event's shape, where there is one.

    Raises:
        ValueError: wrong shapes, or columns that are not orthonormal.
    """

    def __init__(
        self, matrix: Tensor, event_shape: int | Sequence[int], frequency: Tensor | None = None
    ) -> None:
        self.event_shape = _shape(event_shape)
        matrix = torch.as_tensor(matrix)
        if matrix.shape != (self.dim, self.dim):
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}; states of shape "
                f"{tuple(self.event_shape)} need ({self.dim}, {self.dim}), one basis vector per "
                "column."
            )
        allowed = 1e-10 if matrix.dtype == torch.float64 else 1e-4
        matrix = matrix.to(torch.float64)
        unit = torch.eye(self.dim, dtype=torch.float64, device=matrix.device)
        off = (matrix.T @ matrix - unit).abs().max().item()
        if not off <= allowed:
            raise ValueError(
                f"The columns of matrix are not orthonormal: a product of two is off by {off:.2g}, "
                f"allowed {allowed:g}. Orthonormalise them first, e.g. torch.linalg.qr(matrix).Q."
            )
        self.matrix = matrix
        self._frequency = frequency
        if frequency is not None:
            frequency = torch.as_tensor(frequency, dtype=torch.float64)
            self._frequency = self._checked("frequency", frequency)
        self._cache: dict = {}

    @classmethod
    def from_data(cls, data) -> Columns:
        """The principal components of a data set, the one of largest variance first."""
        points = data.points.flatten(1).double()
        return cls(torch.linalg.eigh(points.T.cov()).eigenvectors.flip(1), data.event_shape)

    @property
    def frequency(self) -> Tensor:
        """The frequencies given; ``ValueError`` if none were."""
        if self._frequency is None:
            raise ValueError(
                f"{self!r} has no frequencies; give one per mode: "
                "Columns(matrix, event_shape, frequency=...)."
            )
        return self._frequency

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(x.ndim - len(self.event_shape)) @ self._like(x)).reshape(x.shape)

    def _inverse(self, c: Tensor) -> Tensor:
        return (c.flatten(c.ndim - len(self.event_shape)) @ self._like(c).T).reshape(c.shape)

    def _like(self, x: Tensor) -> Tensor:
        key = (x.dtype, x.device)
        if key not in self._cache:
            self._cache[key] = self.matrix.to(x)
        return self._cache[key]


def power_law(basis: Basis, slope: float = 2.0, variance: float = 1.0) -> Tensor:
    r"""Variances that fall as a power of the frequency, one per mode of ``basis``.

    .. math:: \lambda_k \propto \omega_k^{-slope},\qquad \frac1d\sum_k\lambda_k = variance

    The mean (frequency 0) takes the largest of the others. Natural images have a slope of about 2.

    Args:
        basis: a basis with frequencies.
        slope: exponent of the power spectrum; 0 is white.
        variance: per pixel [x²].

    Returns:
        Tensor of the event's shape, float64.
    """
    if not (math.isfinite(slope) and math.isfinite(variance) and variance > 0):
        raise ValueError(
            f"slope was {slope!r} and variance {variance!r}; slope must be finite, variance "
            "finite and greater than 0."
        )
    frequency = basis.frequency
    known = frequency > 0
    if not known.any():
        return torch.full_like(frequency, variance)
    # Relative to the lowest, so that no power overflows.
    relative = (frequency / frequency[known].min()).pow(-slope)
    shape = torch.where(known, relative, relative[known].max())
    return shape * (variance / shape.mean())


def _shape(event_shape: int | Sequence[int]) -> torch.Size:
    if isinstance(event_shape, int):
        event_shape = (event_shape,)
    shape = torch.Size(event_shape)
    if not shape or min(shape) < 1:
        raise ValueError(
            f"event_shape was {tuple(shape)}; each of its lengths must be at least 1, and there "
            "must be one."
        )
    return shape


def _cosines(n: int) -> Tensor:
    """The DCT-II matrix (n, n), one mode per row."""
    k, j = torch.arange(n).unsqueeze(1), torch.arange(n).unsqueeze(0)
    # The angle is reduced to a period in whole numbers: exact for every n.
    angle = ((2 * j + 1) * k) % (4 * n)
    cosines = torch.cos(0.5 * math.pi / n * angle.to(torch.float64)) * math.sqrt(2 / n)
    cosines[0] = 1 / math.sqrt(n)
    return cosines
