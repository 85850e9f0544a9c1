"""Denoisers made of other denoisers: a wrong score, two models on one axis, data in classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.empirical import Empirical
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.level import Level, combining, some
from workbench.params import Param


class Composite(Denoiser):
    """A denoiser made of others, whose data change where those of all its parts do.

    A subclass names its parts to :meth:`_consist_of`, and gives ``_changed``.
    """

    def _consist_of(self, parts: Mapping[str, Denoiser]) -> None:
        """Take what its parts have in common; ``ValueError`` or ``TypeError`` unless that is so."""
        for name, part in parts.items():
            if not isinstance(part, Denoiser):
                raise TypeError(f"{name} was {part!r}; it must be a Denoiser.")
        (first, one), *others = parts.items()
        for name, other in others:
            if one.event_shape != other.event_shape:
                shape, another = tuple(one.event_shape), tuple(other.event_shape)
                raise ValueError(
                    f"{first} has event shape {shape} and {name} {another}; give all the same."
                )
            if one.dtype != other.dtype:
                raise TypeError(
                    f"{first} has dtype {one.dtype} and {name} {other.dtype}; convert one with "
                    ".to()."
                )
            if one.device != other.device:
                raise ValueError(
                    f"{first} is on {one.device} and {name} on {other.device}; move one: .to()."
                )
        self.event_shape, self.dtype, self.device = one.event_shape, one.dtype, one.device
        self.conservative = all(part.conservative for part in parts.values())
        self.notes = tuple(dict.fromkeys(note for part in parts.values() for note in part.notes))

    def _changed(self, change: Callable[[Denoiser], Denoiser]) -> Composite:
        """The same of changed parts."""
        raise NotImplementedError

    def to(self, dtype: torch.dtype | None = None, device=None) -> Composite:
        return self._changed(lambda part: part.to(dtype, device))

    def transformed(self, matrix: Tensor) -> Composite:
        return self._changed(lambda part: part.transformed(matrix))

    def translated(self, offset: Tensor) -> Composite:
        return self._changed(lambda part: part.translated(offset))


class Spliced(Composite):
    r"""Two denoisers on one axis: ``above`` answers at :math:`\sigma/\alpha \ge` ``rho``, ``below``
    at less noise.

    At high noise a Gaussian with the data's mean and covariance is nearly all of any score, and its
    probability flow has a closed form: :meth:`teleport` takes the prior's states to ``rho`` without
    an evaluation, and a sampler goes on from there with ``below``. Exact for Gaussian data at any
    ``rho``. Where coordinates differ in noise, ``above`` answers once all of them have ``rho``.

    Args:
        above: the denoiser at high noise, e.g. a Gaussian fitted to the data.
        below: the denoiser at low noise, whose data these are.
        rho: noise-to-signal ratio sigma/alpha at which they meet [x], greater than 0.

    Raises:
        TypeError: something that is not a denoiser, or two dtypes.
        ValueError: two event shapes or devices, or a ``rho`` that is not positive and finite.

    Source: Wang & Vastola 2024, arXiv:2412.09726 (analytical teleportation).
    """

    # Of the data, which are those of ``below``.
    mean = property(attrgetter("below.mean"))
    std = property(attrgetter("below.std"))

    def __init__(self, above: Denoiser, below: Denoiser, rho: float) -> None:
        self._consist_of({"above": above, "below": below})
        if not 0 < rho < math.inf:
            raise ValueError(f"rho was {rho!r}; it must be a positive, finite ratio sigma/alpha.")
        self.above, self.below, self.rho = above, below, float(rho)
        notes = [f"The denoiser changes from {above!r} to {below!r} at sigma/alpha = {rho:g}."]
        apart = (above.mean - below.mean).abs().max().item()
        if apart > 1e-5 * below.std:
            notes.append(f"The means of the two differ by up to {apart:.2g}; states drift there.")
        self.notes = (*notes, *above.notes, *below.notes)

    @classmethod
    def from_data(
        cls,
        data,
        above: Annotated[Denoiser, Param("at high noise", standard="Gaussian")] = None,
        below: Annotated[Denoiser, Param("at low noise", standard="Empirical")] = None,
        rho: Annotated[float, Param("sigma/alpha at which they meet [x]", gt=0)] = 1.0,
    ) -> Spliced:
        """Two denoisers of a data set: its Gaussian above, its points below unless given."""
        above = Gaussian.from_data(data) if above is None else above
        return cls(above, Empirical.from_data(data) if below is None else below, rho)

    def _side(self, alpha, sigma) -> Denoiser:
        high = bool(torch.as_tensor(sigma >= self.rho * alpha).all())
        return self.above if high else self.below

    def _level(self, alpha, sigma) -> Level:
        if isinstance(alpha, float) and isinstance(sigma, float):
            return self._side(alpha, sigma)._level(alpha, sigma)
        return SplicedLevel(self, alpha, sigma)

    def noised(self, alpha, sigma) -> Denoiser:
        return self._side(alpha, sigma).noised(alpha, sigma)

    def flow(self, x: Tensor, start: tuple, end: tuple) -> Tensor:
        """Exact probability-flow map: ``above``'s down to ``rho``, ``below``'s from there on."""
        first, last = self._side(*start), self._side(*end)
        if first is last:
            return first.flow(x, start, end)
        if any(isinstance(c, Tensor) and c.numel() > 1 for c in (*start, *end)):
            raise NotImplementedError(
                f"the flow crosses rho = {self.rho:g} with one noise level per coordinate, and "
                "where it does so depends on the path; go to the crossing first, then on from it."
            )
        meeting = (1.0, self.rho)
        return last.flow(first.flow(x, start, meeting), meeting, end)

    def teleport(self, x: Tensor, start: tuple, end: tuple | None = None) -> Tensor:
        """States ``x`` at ``start`` moved to ``end`` by the closed-form flow of ``above``.

        Args:
            x: states (*batch, *event) at ``start``.
            start, end: ``(alpha, sigma)``, both at sigma/alpha >= rho; ``end`` None: (1, rho).

        Raises:
            ValueError: an end below ``rho``.
            NotImplementedError: an ``above`` without a closed-form flow.
        """
        end = (1.0, self.rho) if end is None else end
        for name, (alpha, sigma) in (("start", start), ("end", end)):
            # A pair computed to stand at rho may fall short of it by rounding.
            if bool(torch.as_tensor(sigma < (1 - 1e-9) * self.rho * alpha).any()):
                raise ValueError(
                    f"{name} was (alpha, sigma) = ({alpha}, {sigma}), a ratio below rho = "
                    f"{self.rho:g}; teleportation ends at rho."
                )
        return self.above.flow(x, start, end)

    def _changed(self, change: Callable[[Denoiser], Denoiser]) -> Spliced:
        return Spliced(change(self.above), change(self.below), self.rho)

    def __repr__(self) -> str:
        return f"Spliced({self.above!r} above rho = {self.rho:g}, {self.below!r} below)"


@combining(
    *("_denoised", "_score", "_log_prob", "_jacobian", "_divergence", "_hessian", "_posterior_cov"),
    "_rate",
)
class SplicedLevel(Level):
    """Noise levels of single samples or coordinates: ``above`` or ``below`` for each sample."""

    def _answer(self, name: str, x: Tensor, *rates) -> Tensor:
        spliced, alpha, sigma = self.denoiser, self.alpha, self.sigma
        high = (sigma >= spliced.rho * alpha).all(-1).expand(len(x))
        out = None
        for side, mask in ((spliced.above, high), (spliced.below, ~high)):
            rows = mask.nonzero().squeeze(1)
            if len(rows) == 0 and (out is not None or len(x)):
                continue
            level = side._level(some(alpha, rows), some(sigma, rows))
            part = getattr(level, name)(x[rows], *(some(c, rows) for c in rates))
            part = part.expand(len(rows), *part.shape[1:])
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[rows] = part
        return out
