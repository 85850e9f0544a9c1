r"""What knows the way back: :math:`D(x; \alpha, \sigma) = E[x_0 | x]`.

The state is :math:`x = \alpha x_0 + \sigma\epsilon`; a denoiser knows nothing of time or schedules.
It obeys :math:`D(c x, c\alpha, c\sigma) = D(x, \alpha, \sigma)` and is regular at both ends: at
:math:`\alpha = 0` it is the mean of the data, at :math:`\sigma = 0` its limit from above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Denoiser"]


class Denoiser:
    """Base of all denoisers. A subclass works on flat states ``(n, d)`` in ``_denoise``.

    Attributes:
        event_shape: shape of one sample; ``dim`` is its number of elements.
        dtype, device: of its numbers, and so of the states it takes.
        std: root mean square standard deviation of the data per coordinate [x].
    """

    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    # -- what a subclass gives ---------------------------------------------------------------

    def _denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        """``E[x0 | x]`` for flat ``x`` (n, d); alpha, sigma floats or tensors (n or 1, d or 1)."""
        raise NotImplementedError

    def _log_prob(self, x: Tensor, alpha, sigma) -> Tensor:
        """Log-density (n,) of ``alpha x0 + sigma eps`` for flat ``x`` (n, d)."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form log-density.")

    @property
    def std(self) -> float:
        raise NotImplementedError

    def noised(self, alpha: float, sigma: float) -> Denoiser:
        """The law of ``alpha x0 + sigma eps`` as a denoiser of its own."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form marginal.")

    def flow(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        """Exact probability-flow map of ``x`` between two ``(alpha, sigma)``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form probability flow; only a Gaussian has one. "
            "Integrate it with wb.sample on a fine grid instead."
        )

    def to(self, dtype: torch.dtype | None = None, device=None) -> Denoiser:
        """The same denoiser with its numbers in another dtype or on another device."""
        raise NotImplementedError

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
            ValueError: wrong shape, negative alpha or sigma, both zero.
            TypeError: a dtype other than the denoiser's.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._denoise(flat, alpha, sigma).reshape(x.shape)

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """Log-density [nats] of ``alpha x0 + sigma eps`` at ``x``; shape ``batch``.

        Raises:
            ValueError: as :meth:`denoise`, and where the law has no density.
        """
        flat, alpha, sigma = self._flatten(x, alpha, sigma)
        return self._log_prob(flat, alpha, sigma).reshape(x.shape[: x.ndim - len(self.event_shape)])

    def _flatten(self, x: Tensor, alpha, sigma) -> tuple[Tensor, object, object]:
        """States as (n, d), coefficients as floats or broadcastable to them; checked."""
        event = len(self.event_shape)
        if x.shape[x.ndim - event :] != self.event_shape or x.ndim < event:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must end in {tuple(self.event_shape)}, "
                f"the shape of one sample of this {type(self).__name__}."
            )
        if x.dtype != self.dtype:
            raise TypeError(
                f"x is {_name(x.dtype)} but this {type(self).__name__} holds {_name(self.dtype)}; "
                f"convert one of them: x.to(torch.{_name(self.dtype)}) or "
                f".to(torch.{_name(x.dtype)}) on the denoiser."
            )
        alpha = self._coefficient("alpha", alpha, x)
        sigma = self._coefficient("sigma", sigma, x)
        both = (alpha == 0) & (sigma == 0)
        if isinstance(both, Tensor):  # looked at on the host only
            both = both.device.type == "cpu" and bool(both.any())
        if both:
            raise ValueError("alpha and sigma were both 0; at least one must be positive.")
        return x.reshape(-1, self.dim), alpha, sigma

    def _coefficient(self, name: str, value, x: Tensor) -> float | Tensor:
        if not isinstance(value, Tensor):
            value = float(value)
        elif value.ndim == 0 and value.device.type == "cpu":
            value = value.item()
        if isinstance(value, float):
            if not value >= 0 or value == math.inf:
                raise ValueError(f"{name} was {value:g}; it must be finite and at least 0.")
            return value
        if value.device.type == "cpu":
            bad = value[~((value >= 0) & (value < math.inf))]
            if bad.numel():
                raise ValueError(
                    f"{name} had a value of {bad[0].item():g}; each must be finite and at least 0."
                )
        event = len(self.event_shape)
        batch = x.shape[: x.ndim - event]
        if value.shape == batch:
            return value.reshape(-1, 1)
        try:
            if math.prod(value.shape[max(0, value.ndim - event) :]) == 1:  # no coordinate its own
                return value.expand(*batch, *(1,) * event).reshape(-1, 1)
            return value.expand(x.shape).reshape(-1, self.dim)
        except RuntimeError:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must be a number, one value per sample "
                f"{tuple(batch)}, or broadcast against x {tuple(x.shape)}."
            ) from None


def per_sample(coefficient: float | Tensor) -> bool:
    """Whether a coefficient of ``_denoise`` is the same for all coordinates of a sample."""
    return isinstance(coefficient, float) or coefficient.shape[-1] == 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite(name: str, value: Tensor) -> Tensor:
    """``value`` itself; ``ValueError`` with a sentence if any element is not finite."""
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are not finite; remove or replace them first."
        )
    return value


def floating(name: str, value, like: Tensor | None = None) -> Tensor:
    """``value`` as a floating tensor, in the dtype and on the device of ``like`` if given."""
    typed = hasattr(value, "dtype")
    try:
        tensor = torch.as_tensor(value, dtype=None if typed or like is None else like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} was {value!r}; it must be a tensor or numbers.") from error
    if like is not None:
        if tensor.dtype.is_floating_point and tensor.dtype != like.dtype and tensor.ndim > 0:
            raise TypeError(
                f"{name} is {_name(tensor.dtype)} and other arguments are {_name(like.dtype)}; "
                "give them all in one dtype."
            )
        return tensor.to(dtype=like.dtype, device=like.device)
    return tensor if tensor.dtype.is_floating_point else tensor.to(torch.get_default_dtype())
