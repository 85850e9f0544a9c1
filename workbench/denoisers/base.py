r"""Denoisers: the posterior mean :math:`D(x; \alpha, \sigma) = E[x_0|x=\alpha x_0+\sigma\epsilon]`.

A denoiser knows nothing of time or schedules. It obeys
:math:`D(c x, c\alpha, c\sigma) = D(x, \alpha, \sigma)` and is regular at both ends: at
:math:`\alpha = 0` it is the mean of the data, at :math:`\sigma = 0` its limit from above.

With :math:`p` the density of :math:`x`, :math:`s = \nabla\log p`, :math:`H` the Hessian of
:math:`\log p` and :math:`J` the Jacobian of :math:`D`, Tweedie's formulas of both orders are

.. math:: \alpha D = x + \sigma^2 s,\qquad \alpha J = I + \sigma^2 H,\qquad
          \operatorname{Cov}[x_0 | x] = \frac{\sigma^2}{\alpha} J .

**A new denoiser is one method**, :meth:`Denoiser.posterior_mean`. All else follows from it: scores
by Tweedie's formula, derivatives by automatic differentiation, twins in another basis or moved by
an offset (:mod:`~workbench.denoisers.twin`), and the mean and spread of the data by asking at pure
noise. A :class:`Level` is a denoiser at one noise level; a closed form is a subclass of it that
does once what depends on the noise alone, and gives what it knows better.

Sources: Robbins 1956; Efron 2011, J. Am. Stat. Assoc. 106; Meng et al. 2021, arXiv:2111.04726.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from workbench.denoisers.checks import check_placement, dtype_name, finite, floating, orthonormal
from workbench.denoisers.level import NAMES, Level, Unmatched, not_both_zero

if TYPE_CHECKING:
    from workbench.denoisers.posterior import Softmaxes

#: What a denoiser holds that is no part of it.
KEPT = ("_programs", "_stamps")

#: States at most that the spread of the data is measured with.
MEASURED = 256


class Denoiser:
    """Base of all denoisers: a subclass gives ``event_shape`` and :meth:`posterior_mean`.

    Attributes:
        event_shape: shape of one sample; ``dim`` is its number of elements.
        dtype, device: of its numbers, and so of the states it takes.
        mean: of the data, shape ``event`` [x].
        std: root mean square standard deviation of the data per coordinate [x].
        notes: sentences that say what a reader must know of how it was made.
        per_coordinate: whether ``posterior_mean`` holds for noise levels that differ between
            coordinates, as those of spectral processes do.
        largest_rho: the largest sigma/alpha it may be asked at.
        conservative: whether its score is a gradient at every noise level, as far as is known.
        exact_marginals: whether samplers in continuous time keep the data's marginals.
    """

    registry_kind: ClassVar[str] = "denoiser"

    event_shape: torch.Size
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")
    notes: tuple[str, ...] = ()
    per_coordinate = False
    largest_rho = math.inf
    conservative = True
    exact_marginals = True
    #: What its levels are.
    _kind: type[Level] = Level

    def posterior_mean(self, x: Tensor, alpha, sigma) -> Tensor:
        """``E[x0 | x = alpha x0 + sigma eps]`` of states (n, *event), in their shape and dtype.

        Args:
            x: states (n, *event).
            alpha, sigma: floats; or tensors that broadcast against ``x``, (n or 1, 1, ...).
        """
        if type(self)._kind is Level:
            raise NotImplementedError(
                f"{type(self).__name__} has no posterior_mean(x, alpha, sigma): the one method a "
                "denoiser must have."
            )
        return self.denoise(x, alpha, sigma)

    # -- the law of the data -----------------------------------------------------------------

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the data, shape ``event``: what is said at pure noise."""
        rho = self.largest_rho
        alpha, sigma = (0.0, 1.0) if rho == math.inf else (1.0 / rho, 1.0)
        x = torch.zeros(1, *self.event_shape, dtype=self.dtype, device=self.device)
        return self.denoise(x, alpha, sigma)[0]

    @cached_property
    def std(self) -> float:
        r"""Root mean square standard deviation of the data per coordinate, measured.

        At large noise :math:`D(\alpha m + \sigma z) - m = \frac\alpha\sigma C z`, so the mean of
        :math:`z\cdot(D - m)` over orthogonal z is the trace of the covariance C: over a whole basis
        exactly (to order 1/rho²), over 256 directions of larger states as an estimate.
        """
        d, mean = self.dim, self.mean
        count = min(d, MEASURED)
        like = {"dtype": torch.float64, "device": self.device}
        if count == d:
            z = math.sqrt(d) * torch.eye(d, **like)
        else:
            generator = torch.Generator().manual_seed(0)
            z = torch.randn(d, count, generator=generator, dtype=torch.float64)
            z = math.sqrt(d) * torch.linalg.qr(z).Q.T.to(self.device)
        z = z.reshape(-1, *self.event_shape).to(self.dtype)
        spread = 1.0
        for _ in range(3):
            rho = min(1e3 * spread, self.largest_rho)
            forth, back = (self.denoise(mean + c * z, 1.0, rho) for c in (rho, -rho))
            variance = 0.5 * rho * ((forth - back) * z).double().mean().item()
            spread = math.sqrt(max(variance, 0.0)) or 1.0
        return math.sqrt(max(variance, 0.0))

    def noised(self, alpha, sigma) -> Denoiser:
        """The law of ``alpha x0 + sigma eps`` as a denoiser of its own.

        ``alpha`` and ``sigma`` are numbers; of closed forms also tensors of shape ``event``.
        """
        return self._twin(noise=(alpha, sigma))

    def transformed(self, matrix: Tensor) -> Denoiser:
        """The denoiser of the coefficients ``matrix^T flatten(x0)``, in the same event shape.

        Args:
            matrix: (d, d), orthonormal columns: the basis vectors in flattened event order.
        """
        return self._twin(matrix=self._rotation(matrix))

    def translated(self, offset: Tensor) -> Denoiser:
        """The denoiser of ``x0 + offset``; ``offset`` has shape ``event``."""
        return self._twin(offset=offset)

    def _stamp(self, *names: str) -> None:
        """Remember the tensors of these names, from which others have been derived."""
        try:
            stamps = [(name, value := getattr(self, name), value._version) for name in names]
        except RuntimeError:  # tensors made in inference mode count nothing
            stamps = []
        vars(self)["_stamps"] = stamps

    def _refresh(self) -> None:
        """Derive anew what was derived from tensors that were written to in place since."""
        for name, tensor, version in vars(self).get("_stamps", ()):
            if vars(self).get(name) is not tensor or tensor._version != version:
                self._derive()
                return

    def _derive(self) -> None:
        """What :meth:`_refresh` asks for."""

    def _twin(self, **change) -> Denoiser:
        from workbench.denoisers.twin import Twin

        return Twin(self, **change)

    def flow(self, x: Tensor, start: tuple, end: tuple) -> Tensor:
        """Exact probability-flow map of ``x`` between two ``(alpha, sigma)``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form probability flow; only a Gaussian has one. "
            "Integrate it with wb.sample on a fine grid instead."
        )

    def to(self, dtype: torch.dtype | None = None, device=None) -> Denoiser:
        """The same denoiser with its numbers in another dtype or on another device.

        Raises:
            TypeError: a dtype that is not floating.
            ValueError: a device that this machine does not have.
        """
        check_placement(dtype, device)
        dtype = dtype or self.dtype
        device = self.device if device is None else torch.device(device)
        moved, held = copy.copy(self), self.__getstate__()
        vars(moved).update(dtype=dtype, device=device)
        for name, value in held.items():
            if isinstance(value, Denoiser):
                vars(moved)[name] = value.to(dtype, device)
            elif isinstance(value, Tensor):
                vars(moved)[name] = value.to(device, dtype if value.is_floating_point() else None)
        return moved

    def __getstate__(self) -> dict:
        """Without what is only kept to be found again."""
        return {name: part for name, part in vars(self).items() if name != "_programs"}

    def __copy__(self) -> Denoiser:
        copied = type(self).__new__(type(self))
        vars(copied).update(self.__getstate__())
        return copied

    def marks(self) -> tuple[list, list] | None:
        """What tells whether it is still what it was: the objects that it and its parts are made
        of, and numbers: theirs and how often each tensor has been written to in place.

        None where that cannot be told.
        """
        held, values = [], []
        try:
            _mark(self, held, values)
        except RuntimeError:  # tensors made in inference mode count nothing
            return None
        return held, values

    # -- what a caller asks ------------------------------------------------------------------

    @property
    def dim(self) -> int:
        return math.prod(self.event_shape)

    @property
    def closed(self) -> bool:
        """Whether the Jacobian has a closed form; otherwise it is by automatic differentiation."""
        return self.at(1.0, 1.0).closed

    def at(self, alpha, sigma) -> Level:
        """This denoiser at one noise level: what depends on the noise alone is done once.

        Args:
            alpha, sigma: numbers; or tensors of shape ``batch`` (one value per sample); or tensors
                that broadcast against the states (e.g. (1, *event): one value per coordinate).

        Raises:
            ValueError: negative alpha or sigma, both zero.
        """
        if type(alpha) is float is type(sigma) and alpha >= 0 < sigma and alpha + sigma < math.inf:
            return self._level(alpha, sigma)
        alpha, sigma = (_number(n, c) for n, c in zip(NAMES, (alpha, sigma), strict=True))
        if isinstance(alpha, float) and isinstance(sigma, float):
            not_both_zero(alpha == 0 == sigma)
            return self._level(alpha, sigma)
        return Unmatched(self, alpha, sigma)

    def _level(self, alpha, sigma) -> Level:
        """The level of checked floats or tensors (n or 1, d or 1)."""
        self._refresh()
        return self._kind(self, alpha, sigma)

    def denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        """Posterior mean ``E[x0 | x = alpha x0 + sigma eps]``: ``at(alpha, sigma).denoised(x)``.

        Args:
            x: states, shape (*batch, *event), in this denoiser's dtype.
            alpha, sigma: as in :meth:`at`.

        Returns:
            Tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: wrong shape, negative alpha or sigma, both zero; a subclass whose
                ``posterior_mean`` answers in another shape or dtype than it was asked.
            TypeError: a dtype other than the denoiser's.
        """
        return self.at(alpha, sigma).denoised(x)

    def denoise_levels(self, x: Tensor, levels: Sequence[tuple[float, float]]) -> Tensor:
        """The same states at many noise levels: (levels, *batch, *event).

        What does not depend on the level is done once: for a Gaussian in data space it halves the
        work of asking for each level.

        Args:
            x: as in :meth:`denoise`.
            levels: pairs of numbers (alpha, sigma).
        """
        denoised = self._denoise_levels(self._flat(x), [self.at(*pair) for pair in levels])
        return (
            torch.stack(denoised).reshape(-1, *x.shape) if denoised else x.new_empty((0, *x.shape))
        )

    def _denoise_levels(self, x: Tensor, levels: Sequence[Level]) -> list[Tensor]:
        return [level._denoised(x) for level in levels]

    def softmaxes(self, levels: Sequence[tuple[float, float]], like: Tensor) -> Softmaxes | None:
        """This denoiser at many noise levels as a softmax over a few centres, where it is one.

        Args:
            levels: pairs of numbers (alpha, sigma).
            like: states (n, d) of the shape, dtype and device of those to be denoised.
        """
        return None

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """:meth:`Level.log_prob` at ``alpha``, ``sigma``; raises where the law has no density."""
        return self.at(alpha, sigma).log_prob(x)

    # -- checks ------------------------------------------------------------------------------

    def _rotation(self, matrix: Tensor) -> Tensor:
        """``matrix`` in float64 on this denoiser's device; checked to be (d, d) and orthonormal."""
        matrix = finite("matrix", floating("matrix", matrix))
        if matrix.shape != (self.dim, self.dim):
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}; for samples of {self.dim} numbers it "
                f"must be ({self.dim}, {self.dim}), its columns the basis vectors."
            )
        return orthonormal("matrix", matrix).to(self.device)

    def _levels(self, alpha, sigma) -> tuple[float | Tensor, float | Tensor]:
        """Numbers, or one per coordinate (d,) float64, as :meth:`noised` takes them; checked."""
        one = torch.empty(1, *self.event_shape, dtype=self.dtype, device=self.device)
        level = self.at(alpha, sigma)._seen(one)[1]
        return tuple(c.double()[0] if isinstance(c, Tensor) else c for c in level._pair)

    def _flat(self, x: Tensor) -> Tensor:
        """States as (n, d); checked."""
        event = len(self.event_shape)
        if x.shape[x.ndim - event :] != self.event_shape or x.ndim < event:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must end in {tuple(self.event_shape)}, "
                f"the shape of one sample of this {type(self).__name__}."
            )
        if x.dtype != self.dtype:
            given, held = dtype_name(x.dtype), dtype_name(self.dtype)
            raise TypeError(
                f"x is {given} but this {type(self).__name__} holds {held}; convert one of them: "
                f"x.to(torch.{held}) or .to(torch.{given}) on the denoiser."
            )
        return x if x.ndim == 2 and event == 1 else x.reshape(-1, self.dim)

    def _coefficient(self, name: str, value, x: Tensor, signed: bool = False) -> float | Tensor:
        """A number as a float, a tensor as (n or 1, 1) or (n or 1, d); checked on the host."""
        value = _number(name, value, signed)
        if isinstance(value, float):
            return value
        event = len(self.event_shape)
        batch = x.shape[: x.ndim - event]
        if value.shape == batch:
            return value.reshape(-1, 1)
        inner = max(0, value.ndim - event)
        shared = all(size == 1 for size in value.shape[:inner])  # no sample its own
        alike = math.prod(value.shape[inner:]) == 1  # no coordinate its own
        rows = (1,) * len(batch) if shared else batch
        columns = (1,) * event if alike else self.event_shape
        try:
            return value.expand(*rows, *columns).reshape(-1, 1 if alike else self.dim)
        except RuntimeError:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must be a number, one value per sample "
                f"{tuple(batch)}, or broadcast against x {tuple(x.shape)}."
            ) from None


def _asked(name: str) -> Callable:
    def ask(self: Denoiser, x: Tensor, alpha, sigma, *given) -> Tensor:
        return getattr(self.at(alpha, sigma), name)(x, *given)

    ask.__name__, ask.__doc__ = name, getattr(Level, name).__doc__
    return ask


# ``denoiser.score(x, alpha, sigma)`` is ``denoiser.at(alpha, sigma).score(x)``, and so on.
for _name in [
    "score",
    "jacobian",
    "divergence",
    "hessian",
    "posterior_cov",
    "rate",
    "slope",
    "classify",
]:
    setattr(Denoiser, _name, _asked(_name))


def _number(name: str, value, signed: bool = False) -> float | Tensor:
    """A number as a float, or the tensor; checked on the host."""
    if not isinstance(value, Tensor):
        value = float(value)
    elif value.ndim == 0 and value.device.type == "cpu":
        value = value.item()
    lowest, wanted = (-math.inf, "finite") if signed else (0.0, "finite and at least 0")
    if isinstance(value, float):
        if not value >= lowest or math.isinf(value):
            raise ValueError(f"{name} was {value:g}; it must be {wanted}.")
    elif value.device.type == "cpu":
        bad = value[~((value >= lowest) & value.isfinite())]
        if bad.numel():
            raise ValueError(f"{name} had a value of {bad[0].item():g}; each must be {wanted}.")
    return value


def _mark(value, held: list, values: list) -> None:
    if isinstance(value, Tensor):
        held.append(value)
        values.append(value._version)
    elif isinstance(value, Denoiser):
        held.append(value)
        kind, sources = type(value), {name for name, *_ in vars(value).get("_stamps", ())}
        for name, part in vars(value).items():
            derived = isinstance(getattr(kind, name, None), cached_property)
            if name in sources or not (derived or name in KEPT):
                _mark(part, held, values)
    elif isinstance(value, torch.nn.Module):
        for part in (*value.parameters(), *value.buffers()):
            _mark(part, held, values)
    elif isinstance(value, dict):
        for part in value.values():
            _mark(part, held, values)
    elif isinstance(value, list | tuple):
        for part in value:
            _mark(part, held, values)
    elif value is None or isinstance(value, int | float | str):
        values.append(value)
    else:
        held.append(value)
