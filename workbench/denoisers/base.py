r"""What knows the way back: :math:`D(x; \alpha, \sigma) = E[x_0 | x]`.

The state is :math:`x = \alpha x_0 + \sigma\epsilon`; a denoiser knows nothing of time or schedules.
It obeys :math:`D(c x, c\alpha, c\sigma) = D(x, \alpha, \sigma)` and is regular at both ends: at
:math:`\alpha = 0` it is the mean of the data, at :math:`\sigma = 0` its limit from above.

With :math:`p` the density of :math:`x`, :math:`s = \nabla\log p`, :math:`H` the Hessian of
:math:`\log p` and :math:`J` the Jacobian of :math:`D`, Tweedie's formulas of both orders are

.. math:: \alpha D = x + \sigma^2 s,\qquad \alpha J = I + \sigma^2 H,\qquad
          \operatorname{Cov}[x_0 | x] = \frac{\sigma^2}{\alpha} J .

Sources: Robbins 1956; Efron 2011, J. Am. Stat. Assoc. 106; Meng et al. 2021, arXiv:2111.04726.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from workbench.denoisers.checks import dtype_name, finite, floating, orthonormal

__all__ = ["Denoiser"]

#: Numbers of Jacobians held at once.
MATRICES = 1 << 22


class Denoiser:
    """Base of all denoisers. A subclass works on flat states ``(n, d)`` in ``_denoise``.

    Attributes:
        event_shape: shape of one sample; ``dim`` is its number of elements.
        dtype, device: of its numbers, and so of the states it takes.
        mean: of the data, shape ``event`` [x].
        std: root mean square standard deviation of the data per coordinate [x].
        notes: sentences that say what a reader must know of how it was made.
    """

    registry_kind: ClassVar[str] = "denoiser"

    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    mean: Tensor
    notes: tuple[str, ...] = ()

    # -- what a subclass gives ---------------------------------------------------------------

    def _denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        """``E[x0 | x]`` for flat ``x`` (n, d); alpha, sigma floats or tensors (n or 1, d or 1)."""
        raise NotImplementedError

    def _log_prob(self, x: Tensor, alpha, sigma) -> Tensor:
        """Log-density (n,) of ``alpha x0 + sigma eps`` for flat ``x`` (n, d)."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form log-density.")

    def _score(self, x: Tensor, alpha, sigma) -> Tensor:
        """Gradient (n, d) of the log-density, here by Tweedie's formula."""
        _noisy("the score", self, sigma)
        denoised = self._denoise(x, alpha, sigma)
        return ((alpha * denoised - x) / sigma / sigma).to(x.dtype)

    def _jacobian(self, x: Tensor, alpha, sigma) -> Tensor:
        """``dD_i/dx_j``, (n, d, d)."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form Jacobian.")

    def _divergence(self, x: Tensor, alpha, sigma) -> Tensor:
        """Trace (n,) of the Jacobian."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form divergence.")

    def _hessian(self, x: Tensor, alpha, sigma) -> Tensor:
        """Second derivatives (n, d, d) of the log-density, ``(alpha J - I) / sigma^2``."""
        _noisy("the Hessian", self, sigma)
        jacobian = self._jacobian(x, alpha, sigma)
        eye = torch.eye(self.dim, dtype=jacobian.dtype, device=jacobian.device)
        rows = [c if isinstance(c, float) else c[..., None] for c in (alpha, sigma)]
        return ((rows[0] * jacobian - eye) / rows[1] / rows[1]).to(x.dtype)

    def _posterior_cov(self, x: Tensor, alpha, sigma) -> Tensor:
        """``Cov[x0 | x]`` (n, d, d), here ``J sigma^2 / alpha``."""
        if any_zero(alpha):
            raise ValueError(
                f"alpha was 0: the posterior covariance of this {type(self).__name__} comes from "
                "its Jacobian divided by alpha. Ask at alpha > 0."
            )
        columns = [c if isinstance(c, float) else c[:, None] for c in (alpha, sigma)]
        jacobian = self._jacobian(x, alpha, sigma)
        return (jacobian * (columns[1] * columns[1] / columns[0])).to(x.dtype)

    def _rate(self, x: Tensor, alpha, sigma, d_alpha, d_sigma) -> Tensor:
        """``D_alpha d_alpha + D_sigma d_sigma`` (n, d) at fixed ``x``."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form rate of change.")

    def _moving(self, x: Tensor, alpha, sigma, along: Tensor, d_alpha, d_sigma) -> Tensor:
        """``J along + D_alpha d_alpha + D_sigma d_sigma`` (n, d): the change of D where ``x`` moves
        by ``along`` (n, d) as the noise does.

        From the closed forms where there are both, otherwise by forward differentiation.
        """
        kind = type(self)
        if kind._jacobian is not Denoiser._jacobian and kind._rate is not Denoiser._rate:
            moved = torch.empty_like(x)
            for start in range(0, len(x), max(1, MATRICES // self.dim**2)):
                own = slice(start, start + max(1, MATRICES // self.dim**2))
                levels = (_some(c, own) for c in (alpha, sigma))
                matrix = self._jacobian(x[own], *levels)
                moved[own] = (matrix @ along[own, :, None])[..., 0]
            return moved + self._rate(x, alpha, sigma, d_alpha, d_sigma)
        a, s, d_a, d_s = (_like(c, x) for c in (alpha, sigma, d_alpha, d_sigma))
        inputs, tangents = (x, a, s), (along, d_a.expand_as(a), d_s.expand_as(s))
        return torch.func.jvp(self._denoise, inputs, tangents)[1]

    def _slope(self, x: Tensor, alpha, sigma) -> Tensor:
        """dD/drho (n, d) along the probability flow, alpha held; sigma > 0."""
        along = alpha / sigma * (x - alpha * self._denoise(x, alpha, sigma))
        return self._moving(x, alpha, sigma, along.to(x.dtype), 0.0, alpha)

    def _classify(self, x: Tensor, alpha, sigma) -> Tensor:
        """Posterior probabilities (n, K) of the classes."""
        raise NotImplementedError(f"{type(self).__name__} has no classes to tell apart.")

    @property
    def std(self) -> float:
        raise NotImplementedError(f"{type(self).__name__} does not know the spread of its data.")

    def noised(self, alpha, sigma) -> Denoiser:
        """The law of ``alpha x0 + sigma eps`` as a denoiser of its own.

        ``alpha`` and ``sigma`` are numbers, or tensors of shape ``event`` (one per coordinate).
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form marginal.")

    def transformed(self, matrix: Tensor) -> Denoiser:
        """The denoiser of the coefficients ``matrix^T flatten(x0)``, in the same event shape.

        Args:
            matrix: (d, d), orthonormal columns: the basis vectors in flattened event order.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed form in another basis.")

    def translated(self, offset: Tensor) -> Denoiser:
        """The denoiser of ``x0 + offset``; ``offset`` has shape ``event``."""
        raise NotImplementedError(f"{type(self).__name__} cannot be translated.")

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
        raise NotImplementedError(
            f"{type(self).__name__} has no to(dtype, device), so it stays in "
            f"{dtype_name(self.dtype)} on {self.device}; give it one, or ask for no other."
        )

    # -- what a caller uses ------------------------------------------------------------------

    @property
    def dim(self) -> int:
        return math.prod(self.event_shape)

    def denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        """Posterior mean ``E[x0 | x = alpha x0 + sigma eps]``.

        Args:
            x: states, shape (*batch, *event), in this denoiser's dtype.
            alpha, sigma: numbers; or tensors of shape ``batch`` (one value per sample); or tensors
                that broadcast against ``x`` (e.g. (1, *event): one value per coordinate).

        Returns:
            Tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: wrong shape, negative alpha or sigma, both zero; a subclass whose
                ``_denoise`` answers in another shape than it was asked.
            TypeError: a dtype other than the denoiser's.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        answer = self._denoise(flat, alpha, sigma)
        if answer.shape == x.shape:
            return answer
        if answer.shape != flat.shape:
            raise ValueError(
                f"{type(self).__name__} answered with shape {tuple(answer.shape)} to flat states "
                f"of shape {tuple(flat.shape)}; its _denoise must give one posterior mean per "
                "state, in their shape."
            )
        return answer.reshape(x.shape)

    def denoise_levels(self, x: Tensor, levels: Sequence[tuple[float, float]]) -> Tensor:
        """The same states at many noise levels: (levels, *batch, *event).

        What does not depend on the level is done once: for a Gaussian in data space it halves the
        work of asking for each level.

        Args:
            x: as in :meth:`denoise`.
            levels: pairs of numbers (alpha, sigma).
        """
        checked = [self._flatten(x, float(alpha), float(sigma)) for alpha, sigma in levels]
        if not checked:
            return x.new_empty((0, *x.shape))
        made = self._denoise_levels(checked[0][0], [pair for _, *pair in checked])
        return torch.stack(made).reshape(-1, *x.shape)

    def _denoise_levels(self, x: Tensor, levels: Sequence[Sequence[float]]) -> list[Tensor]:
        return [self._denoise(x, alpha, sigma) for alpha, sigma in levels]

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """Log-density [nats] of ``alpha x0 + sigma eps`` at ``x``; shape ``batch``.

        Raises:
            ValueError: as :meth:`denoise`, and where the law has no density.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._log_prob(flat, alpha, sigma).reshape(self._batch(x))

    def score(self, x: Tensor, alpha, sigma) -> Tensor:
        r"""Score :math:`s = \nabla\log p(x) = (\alpha D - x)/\sigma^2` [1/x]; like ``x``.

        Raises:
            ValueError: as :meth:`denoise`, and at sigma = 0 where no density has a gradient.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._score(flat, alpha, sigma).reshape(x.shape)

    def jacobian(self, x: Tensor, alpha, sigma) -> Tensor:
        r"""Jacobian :math:`J_{ij} = \partial D_i/\partial x_j`; shape (*batch, d, d).

        Where it is the same for all samples it is one matrix, expanded.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._matrices(x, self._jacobian(flat, alpha, sigma))

    def divergence(self, x: Tensor, alpha, sigma) -> Tensor:
        r"""Divergence :math:`\operatorname{tr} J` of the denoised state; shape ``batch``."""
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._divergence(flat, alpha, sigma).reshape(self._batch(x))

    def hessian(self, x: Tensor, alpha, sigma) -> Tensor:
        r"""Hessian :math:`H = \nabla^2\log p(x) = (\alpha J - I)/\sigma^2` [1/x²]; (*batch, d, d).

        Raises:
            ValueError: as :meth:`score`.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._matrices(x, self._hessian(flat, alpha, sigma))

    def posterior_cov(self, x: Tensor, alpha, sigma) -> Tensor:
        r"""Posterior covariance :math:`\operatorname{Cov}[x_0 | x] = \sigma^2 J/\alpha` [x²].

        Shape (*batch, d, d). At ``alpha = 0`` it is the covariance of the data.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._matrices(x, self._posterior_cov(flat, alpha, sigma))

    def rate(self, x: Tensor, alpha, sigma, d_alpha, d_sigma) -> Tensor:
        r"""Rate of change of the denoised state at fixed ``x``, as the noise moves; like ``x``.

        .. math:: \partial_\alpha D\,\dot\alpha + \partial_\sigma D\,\dot\sigma

        Args:
            x, alpha, sigma: as in :meth:`denoise`.
            d_alpha, d_sigma: their time derivatives, of either sign, in the same shapes.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        d_alpha = self._coefficient("d_alpha", d_alpha, x, signed=True)
        d_sigma = self._coefficient("d_sigma", d_sigma, x, signed=True)
        return self._rate(flat, alpha, sigma, d_alpha, d_sigma).reshape(x.shape)

    def slope(self, x: Tensor, alpha, sigma) -> Tensor:
        r"""Slope :math:`dD/d\rho` along the flow, :math:`\rho = \sigma/\alpha`; like ``x``.

        .. math:: \frac{dD}{d\rho} = J\,\alpha\hat\epsilon + \alpha\,\partial_\sigma D,\qquad
                  \hat\epsilon = (x - \alpha D)/\sigma

        With one noise level per coordinate all of them move alike. At alpha = 0 it is 0.

        Raises:
            ValueError: as :meth:`denoise`, and at sigma = 0, where the flow ends.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        if any_zero(sigma):
            raise ValueError(
                "sigma was 0: the slope is a derivative along the probability flow, which ends "
                "there. Ask at sigma > 0."
            )
        return self._slope(flat, alpha, sigma).reshape(x.shape)

    def classify(self, x: Tensor, alpha, sigma) -> Tensor:
        """Posterior probabilities of the classes (components) given ``x``; shape (*batch, K)."""
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        share = self._classify(flat, alpha, sigma)
        return share.reshape(*self._batch(x), share.shape[-1])

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
        alpha, sigma = self._flatten(one, alpha, sigma)[1:]
        return tuple(c.double()[0] if isinstance(c, Tensor) else c for c in (alpha, sigma))

    def _batch(self, x: Tensor) -> torch.Size:
        return x.shape[: x.ndim - len(self.event_shape)]

    def _matrices(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Flat matrices (n or 1, d, d) as (*batch, d, d)."""
        n = math.prod(self._batch(x))
        return matrices.expand(n, self.dim, self.dim).reshape(*self._batch(x), self.dim, self.dim)

    def _flatten(self, x: Tensor, alpha, sigma) -> tuple[Tensor, object, object]:
        """States as (n, d), coefficients as floats or broadcastable to them; checked."""
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
        alpha = self._coefficient("alpha", alpha, x)
        sigma = self._coefficient("sigma", sigma, x)
        both = (alpha == 0) & (sigma == 0)
        if isinstance(both, Tensor):  # looked at on the host only
            both = both.device.type == "cpu" and bool(both.any())
        if both:
            raise ValueError("alpha and sigma were both 0; at least one must be positive.")
        return x.reshape(-1, self.dim), alpha, sigma

    def _coefficient(self, name: str, value, x: Tensor, signed: bool = False) -> float | Tensor:
        """A number as a float, a tensor as (n or 1, 1) or (n or 1, d); checked on the host."""
        if not isinstance(value, Tensor):
            value = float(value)
        elif value.ndim == 0 and value.device.type == "cpu":
            value = value.item()
        lowest, wanted = (-math.inf, "finite") if signed else (0.0, "finite and at least 0")
        if isinstance(value, float):
            if not value >= lowest or math.isinf(value):
                raise ValueError(f"{name} was {value:g}; it must be {wanted}.")
            return value
        if value.device.type == "cpu":
            bad = value[~((value >= lowest) & value.isfinite())]
            if bad.numel():
                raise ValueError(f"{name} had a value of {bad[0].item():g}; each must be {wanted}.")
        event = len(self.event_shape)
        batch = self._batch(x)
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


def per_sample(coefficient: float | Tensor) -> bool:
    """Whether a coefficient of ``_denoise`` is the same for all coordinates of a sample."""
    return isinstance(coefficient, float) or coefficient.shape[-1] == 1


def _some(coefficient, which):
    """The coefficients of some rows of the batch."""
    alike = isinstance(coefficient, float) or len(coefficient) == 1
    return coefficient if alike else coefficient[which]


def _like(coefficient: float | Tensor, x: Tensor) -> Tensor:
    """A coefficient as a tensor (n or 1, d or 1) like ``x``."""
    made = torch.as_tensor(coefficient, dtype=x.dtype, device=x.device)
    return made if made.ndim else made.reshape(1, 1)


def any_zero(coefficient: float | Tensor) -> bool:
    """Whether a coefficient vanishes anywhere; tensors are looked at on the host only."""
    if isinstance(coefficient, Tensor):
        return coefficient.device.type == "cpu" and bool((coefficient == 0).any())
    return coefficient == 0


def _noisy(what: str, denoiser: Denoiser, sigma) -> None:
    if any_zero(sigma):
        raise ValueError(
            f"sigma was 0: {what} of this {type(denoiser).__name__} is a difference divided by "
            "sigma^2. Ask at sigma > 0."
        )
