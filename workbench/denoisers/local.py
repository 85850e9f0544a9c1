r"""Local denoisers: the posterior mean of each pixel given a patch around it, on a finite set.

With :math:`y = x/\alpha`, training images :math:`\phi_i` and the patch :math:`\Omega(p)` about p,

.. math:: D[p] = \sum_{i,q} w_{iq}\,\phi_i[q],\qquad
          w_{iq} \propto \exp\!\left(-\frac{|y_{\Omega(p)} - \phi_{i,\Omega(q)}|^2}{2\rho^2}\right),

and the kinds differ in the patches, and in which q a pixel p is compared with. All channels of a
patch count together.

============  ===============  =================================================================
kind          patches          sources q of a pixel p
============  ===============  =================================================================
``le``        circular         all: the least squared error of local maps that commute with
                               circular shifts, exactly, on this very set
``els``       circular; of     interior
              images interior
``bbels``     zero padding     those as far from each border as p, where p is nearer than half
                               a patch; interior pixels with interior ones
``ls``        zero padding     p itself
``square``    all that fit     the same place; the crops' posterior means are averaged
``pca``       by covariance    p itself; the pixels that the linear denoiser of the data's
                               covariance reads with at least ``threshold`` of its largest weight
============  ===============  =================================================================

``le`` is the limit of a circular network of that view, trained on this set to convergence with
unlimited capacity. For other networks all of them are baselines: a U-Net pads with zeros and sees
more at more noise, and attention sees everything.

Sources: LE-MMSE: Nguyen et al. 2026, arXiv:2601.10334. ELS, bbELS and LS: Kamb & Ganguli 2024,
arXiv:2412.20292. Square crops: Niedoba et al. 2024, arXiv:2411.19339. PCA locality: Lukoianov et
al. 2025, arXiv:2509.09672.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import floating
from workbench.params import Param

Kind = Literal["le", "els", "bbels", "ls", "square", "pca"]

#: Logits that are held at once.
PIECE = 2**22


@dataclass(frozen=True)
class _Group:
    """Pixels that are compared with the same sources.

    Attributes:
        queries: places of the patches asked for, (P,) into the patches of a state.
        sources: patches (M, features), float64.
        responses: what each of them answers (M, R).
        targets: the numbers of a state that are answered (P, R).
    """

    queries: Tensor
    sources: Tensor
    responses: Tensor
    targets: Tensor


class Local(Denoiser):
    """A local denoiser of a set of images; see the module for the kinds.

    It is no posterior mean of any law of whole images: its score need not be a gradient.

    Args:
        images: (N, height, width) or (N, channels, height, width).
        size: side k of the square patch, odd for patches about a pixel; of no meaning for ``pca``.
        kind: which local denoiser.
        threshold: of ``pca``.

    Raises:
        ValueError: points that are no images, a patch that does not fit, an unknown kind.
    """

    def __init__(
        self, images: Tensor, size: int = 5, kind: Kind = "le", threshold: float = 0.02
    ) -> None:
        images = floating("images", images)
        if images.ndim not in (3, 4) or not images.numel():
            raise ValueError(
                f"images has shape {tuple(images.shape)}; a local denoiser is made of images, "
                "(N, height, width) or (N, channels, height, width)."
            )
        if kind not in get_args(Kind):
            raise ValueError(f"kind was {kind!r}; it must be one of {', '.join(get_args(Kind))}.")
        least = min(images.shape[-2:])
        if kind != "pca" and not 1 <= size <= least:
            raise ValueError(
                f"size was {size}; for images of {images.shape[-2]} x {images.shape[-1]} it must "
                f"be 1 to {least}."
            )
        if kind not in ("pca", "square") and size % 2 == 0:
            raise ValueError(f"size was {size}; a patch about a pixel has an odd side.")
        if kind == "pca" and not 0 <= threshold <= 1:
            raise ValueError(f"threshold was {threshold:g}; it must be 0 to 1.")
        self.images, self.size, self.kind = images, int(size), kind
        self.threshold = float(threshold)
        self.event_shape, self.dtype, self.device = images.shape[1:], images.dtype, images.device
        self.std = images.double().var(0, correction=0).mean().sqrt().item()
        channels = 1 if images.ndim == 3 else images.shape[1]
        self._shape = (channels, *images.shape[-2:])
        self._groups: list[_Group] | None = None
        self._modes: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_data(
        cls,
        data,
        size: Annotated[int, Param("side of the square patch [pixels]", ge=1, le=63)] = 5,
        kind: Annotated[
            Kind,
            Param(
                "le: LE-MMSE, local and circularly equivariant; els, bbels; ls; square crops; pca"
            ),
        ] = "le",
        points: Annotated[
            int, Param("images kept, the first of the set; 0 keeps all", ge=0, le=50_000)
        ] = 200,
        threshold: Annotated[
            float, Param("least share of the largest weight, of pca", ge=0, le=1)
        ] = 0.02,
    ) -> Local:
        """A local denoiser of the images of a data set."""
        return cls(data.points[: points or None], size, kind, threshold)

    def posterior_mean(self, x: Tensor, alpha, sigma) -> Tensor:
        column = lambda c: c.reshape(-1, 1, 1).double() if isinstance(c, Tensor) else float(c)  # noqa: E731
        alpha, sigma = column(alpha), column(sigma)
        image = x.double().reshape(len(x), *self._shape)
        if self.kind == "pca":
            return self._by_covariance(image, alpha, sigma).reshape_as(x).to(x)
        linear, quadratic = _weights(alpha, sigma)
        patches = self._patches(image)  # (n, places, features)
        total, coverage = image.new_zeros(len(x), self.dim), image.new_zeros(self.dim)
        for group in self.groups:
            asked, flat = patches[:, group.queries], group.targets.flatten()
            answer = _mean(asked * linear, quadratic, group.sources, group.responses)
            total = total.index_add(1, flat, answer.flatten(1))
            coverage = coverage.index_add(0, flat, answer.new_ones(len(flat)))
        return (total / coverage).reshape_as(x).to(x.dtype)

    # -- patches ---------------------------------------------------------------------------------

    def _patches(self, image: Tensor) -> Tensor:
        """(n, places, features) of images (n, channels, height, width)."""
        radius = 0 if self.kind == "square" else self.size // 2
        if radius:
            how = "circular" if self.kind in ("le", "els") else "constant"
            image = functional.pad(image, (radius,) * 4, mode=how)
        return functional.unfold(image, self.size).transpose(1, 2)

    @property
    def groups(self) -> list[_Group]:
        if self._groups is None:
            self._groups = list(self._grouped())
        return self._groups

    def _grouped(self) -> Iterator[_Group]:
        channels, height, width = self._shape
        images = self.images.double().reshape(-1, *self._shape)
        patches = self._patches(images)  # (N, places, features)
        pixels = images.flatten(2).transpose(1, 2)  # (N, places, channels)
        numbers = torch.arange(self.dim, device=self.device).reshape(channels, -1).T
        places = torch.arange(height * width, device=self.device)
        row, column = places // width, places % width
        if self.kind == "square":
            k = self.size
            corner = numbers.reshape(height, width, channels)
            across = width - k + 1
            for place in range(patches.shape[1]):
                i, j = divmod(place, across)
                target = corner[i : i + k, j : j + k].permute(2, 0, 1).reshape(1, -1)
                here = patches[:, place]
                yield _Group(torch.tensor([place], device=self.device), here, here, target)
            return
        radius = self.size // 2
        inner_row = (row >= radius) & (row < height - radius)
        inner_column = (column >= radius) & (column < width - radius)
        if self.kind in ("le", "els"):
            chosen = places if self.kind == "le" else places[inner_row & inner_column]
            sources = patches[:, chosen].flatten(0, 1)
            yield _Group(places, sources, pixels[:, chosen].flatten(0, 1), numbers)
            return
        kinds = places
        if self.kind == "bbels":
            kinds = _classes(row, inner_row) * (width + 1) + _classes(column, inner_column)
        for one in kinds.unique():
            here = places[kinds == one]
            sources = patches[:, here].flatten(0, 1)
            yield _Group(here, sources, pixels[:, here].flatten(0, 1), numbers[here])

    # -- locality from the covariance ------------------------------------------------------------

    def _by_covariance(self, image: Tensor, alpha, sigma) -> Tensor:
        if isinstance(alpha, Tensor) or isinstance(sigma, Tensor):
            levels = (
                torch.as_tensor(c).reshape(-1).expand(len(image)).tolist() for c in (alpha, sigma)
            )
            each = zip(image.split(1), *levels, strict=True)
            return torch.cat([self._by_covariance(*one) for one in each])
        linear, quadratic = _weights(alpha, sigma)
        flat, images = image.flatten(1), self.images.double().flatten(1)
        reads = self.reads(sigma / alpha if alpha else math.inf)
        answers = []
        for pixel in range(self.dim):
            mask = reads[:, pixel]
            answer = _mean(
                (flat[:, mask] * linear)[:, None], quadratic, images[:, mask], images[:, [pixel]]
            )
            answers.append(answer[:, 0, 0])
        return torch.stack(answers, 1)

    def reads(self, rho: float) -> Tensor:
        """Which pixels n the answer at pixel m is made of under ``pca``, (d, d) bool."""
        if self._modes is None:
            flat = self.images.double().flatten(1)
            variances, vectors = torch.linalg.eigh(torch.cov(flat.T, correction=0))
            self._modes = variances.clamp_min(0.0), vectors
        variances, vectors = self._modes
        gain = variances / (variances + rho * rho) if math.isfinite(rho) else variances
        weights = (vectors * gain) @ vectors.T
        scale = weights.diagonal()
        constant = scale <= 1e-12 * scale.max()  # pixels that are alike in all images tell nothing
        share = (weights / scale.masked_fill(constant, math.inf)[:, None]).abs()
        return share >= self.threshold * share.max()

    def to(self, dtype: torch.dtype | None = None, device=None) -> Local:
        made = super().to(dtype, device)
        return Local(made.images, self.size, self.kind, self.threshold)

    def __repr__(self) -> str:
        return f"Local({len(self.images)} images, size {self.size}, {self.kind})"


def _classes(place: Tensor, inner: Tensor) -> Tensor:
    """Rows or columns by their border class: 0 the interior, else its own."""
    return torch.where(inner, 0, place + 1)


def _weights(alpha, sigma) -> tuple:
    """a and b of (x . phi alpha - alpha^2 |phi|^2 / 2) / sigma^2: regular at pure noise."""
    square = sigma * sigma
    return alpha / square, 0.5 * alpha * alpha / square


def _mean(queries: Tensor, quadratic, sources: Tensor, responses: Tensor) -> Tensor:
    """Responses weighed by exp(q . s - quadratic |s|^2), (n, P, R); q (n, P, features).

    In pieces whose weights are normalised together, whatever their size.
    """
    n, count = queries.shape[:2]
    norms = sources.square().sum(1)
    if not isinstance(quadratic, Tensor):
        quadratic = queries.new_full((1, 1, 1), quadratic)
    quadratic = quadratic.expand(n, count, 1).flatten(0, 1)
    answers, flat = [], queries.flatten(0, 1)
    rows = max(1, min(len(flat), 2048))
    step = max(1, PIECE // rows)
    for at, by in zip(flat.split(rows), quadratic.split(rows), strict=True):
        totals, means = [], []
        for begin in range(0, len(sources), step):
            piece = slice(begin, begin + step)
            logits = at @ sources[piece].T - by * norms[piece]
            totals.append(logits.logsumexp(1))
            means.append(logits.softmax(1) @ responses[piece])
        share = torch.stack(totals, 1).softmax(1)
        answers.append((share[..., None] * torch.stack(means, 1)).sum(1))
    return torch.cat(answers).reshape(n, count, -1)
