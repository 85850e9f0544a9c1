r"""Bands of a picture: rings of spatial frequency, levels of a wavelet, principal modes.

Each kind of bands is an orthonormal change of coordinates and the share of each coordinate in each
band, so that the energies of the bands of a value x of d numbers add up to its mean square,

.. math:: E_b(x) = \frac1d\sum_{k\in b}|c_k|^2,\qquad \sum_b E_b(x) = \frac1d\sum_i x_i^2

(Parseval), and the covariances of two values likewise. Frequencies are in cycles per shorter side,
to the nearest whole number; the corners of the spectrum beyond half of the sampling rate are bands
of their own and never left out. No window is applied, which is right for whole pictures under a
model; see :class:`workbench.lenses.spectrum.Spectrum` for crops.

While a run is recorded the energies are summed over groups of samples on the device
(``x.rings``, ``denoised.wavelets``), so that memory grows neither with the samples nor with the
size of the pictures, and standard errors and intervals can be had of any ratio of them afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from workbench.registry import register
from workbench.sampling.grid import Node

if TYPE_CHECKING:
    from workbench.diffusion import Diffusion

#: Groups of samples that energies are summed over, for standard errors.
GROUPS = 20

#: Numbers that are turned into bands at a time: float32 of them, and their squares, fit a cache.
CACHED = 131_072

#: What is summed of a field: its energy, and its covariance with the state of the same node.
PARTS = ("energy", "with_state")


@dataclass(frozen=True)
class Bands:
    """A kind of bands for values of one shape.

    Attributes:
        labels: of the bands, from low frequency to high.
        counts: how many real coordinates each has, (bands,).
        event_shape: of the values.
        forward: values (n, *event) as coordinates (n, m), real or complex.
        inverse: back, exact for coordinates that ``forward`` gives.
        share: of each coordinate in each band (m, bands); one that stands for two counts twice.
    """

    labels: tuple
    counts: Tensor
    event_shape: torch.Size
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    share: Tensor
    _kept: dict = field(default_factory=dict, repr=False, compare=False)

    def energy(self, value: Tensor) -> Tensor:
        """Energy of each band of values (n, *event), (n, bands) [x²]; their sum the mean square."""
        return self.covariance(value, value)

    def covariance(self, one: Tensor, other: Tensor) -> Tensor:
        """The same of the product of two values."""
        a = self.forward(one)
        return self.summed(a, a if other is one else self.forward(other))

    def summed(self, a: Tensor, b: Tensor) -> Tensor:
        """The energies, or covariances, of coordinates (n, m)."""
        if a.is_complex():  # real and imaginary parts side by side, summed by the matrix product
            a, b = (torch.view_as_real(v).flatten(1) for v in (a, b))
        return (a * b) @ self._sums(a)

    def _sums(self, like: Tensor) -> Tensor:
        """Share of each real number of the coordinates in each band, over the size of a value."""
        key = (like.dtype, like.device)
        if key not in self._kept:
            share = self.share / max(1, math.prod(self.event_shape))
            twice = like.shape[1] // len(share)
            self._kept[key] = share.repeat_interleave(twice, 0).to(like)
        return self._kept[key]

    def passed(self, value: Tensor) -> Tensor:
        """The part of values (n, *event) in each band, (bands, n, *event); their sum the value."""
        found = self.forward(value)
        inside = (self.share > 0).T.to(value.device)
        return torch.stack([self.inverse(found * mask) for mask in inside])


class Moment(NamedTuple):
    """Where in a run a value was: what its mean and its state are.

    Attributes:
        field: of which the value is.
        x: the core variable.
        held: what reductions of the same node have in common.
    """

    diffusion: Diffusion
    field: str
    node: Node
    x: Tensor
    held: dict

    def centre(self, field: str) -> Tensor | float:
        """Expectation of a field over the marginal at this node."""
        if field not in ("x", "denoised"):
            return 0.0
        if "mean" not in self.held:
            self.held["mean"] = self.diffusion.core.mean
        mean, (t, alpha, _) = self.held["mean"], self.node
        alpha = alpha.to(mean) if isinstance(alpha, Tensor) else alpha
        core = (alpha * mean if field == "x" else mean).reshape(1, *mean.shape)
        return self.diffusion.from_core(core, t, field)

    def coordinates(self, bands: Bands, value: Tensor, field: str, rows: slice) -> Tensor:
        """Of some rows of a field about its expectation, in bands."""
        found = bands.forward(value[rows])
        key = (id(bands), field, "centre")
        if key not in self.held:
            centre = self.centre(field)
            there = isinstance(centre, Tensor) and bool((centre != 0).any())
            self.held[key] = bands.forward(centre) if there else None
        return found if self.held[key] is None else found - self.held[key].to(found)

    def state(self, bands: Bands, rows: slice) -> Tensor:
        """Coordinates of some rows of the state, computed once for all fields of the node."""
        key = (id(bands), "x", rows.start)
        if key not in self.held:
            if "x" not in self.held:
                self.held["x"] = self.diffusion.from_core(self.x, self.node.t, "x")
            self.held[key] = self.coordinates(bands, self.held["x"], "x", rows)
        return self.held[key]


@lru_cache(maxsize=8)
def rings(event: torch.Size) -> Bands:
    """Rings of spatial frequency of images; of anything else, the coordinates one by one."""
    event = torch.Size(event)
    if len(event) < 2:
        d = math.prod(event)
        eye = torch.eye(d, dtype=torch.float64)
        return _real(event, tuple(range(d)), eye, lambda v: v, lambda c: c)
    rows, columns = event[-2:]
    across = torch.arange(columns // 2 + 1, dtype=torch.float64)
    down = torch.fft.fftfreq(rows, 1.0, dtype=torch.float64)[:, None]
    radius = min(rows, columns) * torch.hypot(down, across / columns)
    twice = torch.where((across == 0) | (2 * across == columns), 1.0, 2.0).expand_as(radius)
    labels, which = radius.round().flatten().unique(return_inverse=True)
    share = torch.zeros(radius.numel(), len(labels), dtype=torch.float64)
    share[torch.arange(len(which)), which] = twice.double().flatten()
    share = share.repeat(math.prod(event[:-2]), 1)  # of each channel
    half = (*event[:-1], columns // 2 + 1)
    return Bands(
        labels=tuple(int(label) for label in labels),
        counts=share.sum(0),
        event_shape=event,
        forward=lambda value: torch.fft.rfft2(value, norm="ortho").flatten(1),
        inverse=lambda c: torch.fft.irfft2(c.reshape(-1, *half), s=(rows, columns), norm="ortho"),
        share=share,
    )


@lru_cache(maxsize=8)
def wavelets(event: torch.Size, wavelet: str = "haar") -> Bands:
    """Levels of an orthogonal wavelet of images, periodic at the borders: energies are exact.

    ``A`` is the approximation that is left, ``D1`` the finest detail. As many levels as both sides
    can be halved, and as the filter fits into the picture.

    Raises:
        ValueError: values that are no images, or images that cannot be halved once.
    """
    import pywt

    event, halved = torch.Size(event), 0
    if len(event) >= 2:
        filters = pywt.Wavelet(wavelet)
        if not filters.orthogonal:
            raise ValueError(
                f"wavelet was {wavelet!r}; it must be orthogonal, such as haar or db2."
            )
        sides = math.gcd(*event[-2:])
        halved = min(
            (sides & -sides).bit_length() - 1, pywt.dwt_max_level(min(event[-2:]), filters)
        )
    if not halved:
        raise ValueError(
            f"the values have the shape {tuple(event)}; bands of the wavelet {wavelet} need images "
            "whose sides can both be halved, and that are larger than its filter."
        )
    options = {"wavelet": wavelet, "mode": "periodization", "axes": (-2, -1)}

    def levels(value: Tensor) -> list:
        found = pywt.wavedec2(value.detach().cpu().numpy(), level=halved, **options)
        return [found[0], *(part for triple in found[1:] for part in triple)]

    like = levels(torch.zeros(1, *event, dtype=torch.float64))
    sizes, shapes = [part[0].size for part in like], [part.shape[1:] for part in like]
    band = [0, *(1 + i // 3 for i in range(len(like) - 1))]
    share = torch.zeros(sum(sizes), halved + 1, dtype=torch.float64)
    share[torch.arange(len(share)), torch.tensor(band).repeat_interleave(torch.tensor(sizes))] = 1.0

    def forward(value: Tensor) -> Tensor:
        parts = [torch.from_numpy(part).flatten(1) for part in levels(value)]
        return torch.cat(parts, 1).to(value)

    def inverse(found: Tensor) -> Tensor:
        parts = [
            part.reshape(-1, *shape).cpu().numpy()
            for part, shape in zip(found.split(sizes, 1), shapes, strict=True)
        ]
        details = [tuple(parts[i : i + 3]) for i in range(1, len(parts), 3)]
        return torch.from_numpy(pywt.waverec2([parts[0], *details], **options)).to(found)

    labels = (f"A{halved}", *(f"D{level}" for level in range(halved, 0, -1)))
    return Bands(labels, share.sum(0), event, forward, inverse, share)


@lru_cache(maxsize=8)
def _levels(event: torch.Size) -> Bands:
    """Levels of the Haar wavelet; what cannot be halved is an approximation of itself, ``A0``."""
    try:
        return wavelets(event)
    except ValueError:
        share = torch.ones(math.prod(event), 1, dtype=torch.float64)
        return _real(event, ("A0",), share, lambda v: v, lambda c: c)


def modes(event: torch.Size, turn: Tensor) -> Bands:
    """Principal modes: the orthonormal columns of ``turn`` (d, d), each a band of its own."""
    event, d = torch.Size(event), turn.shape[1]
    eye = torch.eye(d, dtype=torch.float64)
    of = tuple(range(1, d + 1))
    return _real(event, of, eye, lambda v: v @ turn.to(v), lambda c: c @ turn.to(c).T)


def _real(event: torch.Size, labels: tuple, share: Tensor, turn, back) -> Bands:
    return Bands(
        labels=labels,
        counts=share.sum(0),
        event_shape=event,
        forward=lambda value: turn(value.flatten(1)),
        inverse=lambda found: back(found).reshape(-1, *event),
        share=share,
    )


def octave(ring: int) -> tuple[int, str]:
    """Place and name of the octave of a ring: 0, 1, 2, 3-4, 5-8, ..."""
    if ring < 1:
        return 0, "DC"
    place = 1 + math.ceil(math.log2(ring))
    last = 2 ** (place - 1)
    return place, str(last) if last < 3 else f"{last // 2 + 1}-{last}"


def _parts(bands: Bands, value: Tensor, moment: Moment | None) -> Tensor:
    """Energies of values, and their covariances with the state, (n, part, band).

    A few samples at a time on a processor, so that their coordinates do not leave its cache.
    """
    parts = value.new_empty((len(value), len(PARTS), len(bands.labels)))
    step = len(value) if value.device.type != "cpu" else max(1, CACHED // max(1, value[:1].numel()))
    for first in range(0, len(value), step):
        rows = slice(first, first + step)
        if moment is None:
            one = state = bands.forward(value[rows])
        else:
            state = moment.state(bands, rows)
            is_state = moment.field == "x"
            one = state if is_state else moment.coordinates(bands, value, moment.field, rows)
        parts[rows, 0] = energy = bands.summed(one, one)
        parts[rows, 1] = energy if state is one else bands.summed(one, state)
    return parts


def _reduction(name: str, dim: str, unit: str, bands: Callable[[torch.Size], Bands]):
    """Registers under a name what sums energies of bands over groups of samples."""

    def coords(event: torch.Size) -> dict[str, tuple]:
        return {
            dim: (dim, list(bands(event).labels), {"long_name": unit}),
            "part": ("part", list(PARTS), {"long_name": "energy, or covariance with the state"}),
        }

    facts = {"dims": ("group", "part", dim), "coords": coords, "moment": True, "groups": GROUPS}
    return register(kind="reduction", name=name, **facts)


@_reduction("rings", "ring", "cycles per shorter side", rings)
def in_rings(value: Tensor, moment: Moment | None = None) -> Tensor:
    """Energy of each ring of frequency about the mean, summed over groups of samples [x²].

    With it its covariance with the state of the same node. Summed over groups it is the mean over
    samples; summed over rings too, the mean square of a coordinate.
    """
    return _parts(rings(value.shape[1:]), value, moment)


@_reduction("wavelets", "level", "level of the Haar wavelet", _levels)
def in_wavelets(value: Tensor, moment: Moment | None = None) -> Tensor:
    """The same of each level of the Haar wavelet, from coarse to fine [x²]."""
    return _parts(_levels(value.shape[1:]), value, moment)
