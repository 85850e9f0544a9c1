r"""A process and a denoiser: everything a sampler or a lens asks of a model at time t.

With :math:`D` the denoised state and :math:`\hat\epsilon = (x - \alpha D)/\sigma`,

.. math:: s = -\hat\epsilon/\sigma,\qquad v = \dot\alpha D + \dot\sigma\hat\epsilon,\qquad
          \text{drift}_\eta = v - \tfrac{\eta}{2} g^2 s .

The velocity is formed from D and the noise prediction, not from f and g2, so that it stays regular
where those do not (pure noise, alpha = 0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.processes import Process

__all__ = ["Diffusion"]


class Diffusion:
    """A denoiser seen through a process.

    Times are floats, or tensors with one value per sample, within ``[0, process.t_max]``. States
    have shape (*batch, *event) and the denoiser's dtype.
    """

    def __init__(self, process: Process, denoiser: Denoiser) -> None:
        for name, value, wanted in (
            ("process", process, ("alpha and sigma of a time", Process)),
            ("denoiser", denoiser, ("a denoise(x, alpha, sigma)", Denoiser)),
        ):
            if not isinstance(value, wanted[1]):
                hint = f"; call it first: {value.__name__}()" if isinstance(value, type) else ""
                raise TypeError(
                    f"{name} was {value!r}; it must be a {wanted[1].__name__}, which gives "
                    f"{wanted[0]}{hint}. The order is Diffusion(process, denoiser)."
                )
        self.process, self.denoiser = process, denoiser

    @property
    def event_shape(self) -> torch.Size:
        return self.denoiser.event_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def to(self, dtype: torch.dtype | None = None, device=None) -> Diffusion:
        """The same diffusion with its denoiser's numbers in another dtype or on another device."""
        return Diffusion(self.process, self.denoiser.to(dtype, device))

    # -- the field at time t -----------------------------------------------------------------

    def denoised(self, x: Tensor, t) -> Tensor:
        """Posterior mean E[x0 | x_t = x]."""
        c = self._at(x, t)
        return self.denoiser.denoise(x, c.alpha, c.sigma)

    def noise(self, x: Tensor, t) -> Tensor:
        """Noise prediction E[eps | x_t = x] = (x - alpha D) / sigma; needs sigma > 0."""
        return self._denoised_and_noise(x, t)[1]

    def score(self, x: Tensor, t) -> Tensor:
        """Gradient of the log-density of x_t [1/x]; needs sigma > 0."""
        c, _, noise = self._all(x, t)
        return -noise / c.sigma

    def velocity(self, x: Tensor, t) -> Tensor:
        """Probability-flow velocity dx/dt; needs sigma > 0."""
        c, denoised, noise = self._all(x, t)
        return c.d_alpha * denoised + c.d_sigma * noise

    def drift(self, x: Tensor, t, eta: float = 1.0) -> Tensor:
        """Drift of the reverse-time family: eta 0 the probability flow, 1 the reverse SDE.

        ``dx = drift dt + sqrt(eta) g dW`` with dt negative. Infinite where g is (alpha = 0) unless
        eta is 0.
        """
        if not 0 <= eta < math.inf:
            raise ValueError(f"eta was {eta!r}; it must be finite and at least 0.")
        c, denoised, noise = self._all(x, t)
        velocity = c.d_alpha * denoised + c.d_sigma * noise
        return velocity if eta == 0 else velocity + (0.5 * eta * c.g2 / c.sigma) * noise

    def _denoised_and_noise(self, x: Tensor, t) -> tuple[Tensor, Tensor]:
        return self._all(x, t)[1:]

    def _all(self, x: Tensor, t):
        c = self._at(x, t)
        silent = c.sigma == 0
        if isinstance(silent, Tensor):  # looked at on the host only
            silent = silent.device.type == "cpu" and bool(silent.any())
        if silent:
            least = float(torch.as_tensor(t).min())
            raise ValueError(
                f"t was {least:g}, where sigma is 0: noise, score and velocity exist only at "
                f"sigma > 0. Ask at t >= {self.process.t_min:g}."
            )
        denoised = self.denoiser.denoise(x, c.alpha, c.sigma)
        if isinstance(c.sigma, Tensor):
            c = c.map(lambda value: value.reshape(value.shape + (1,) * (x.ndim - value.ndim)))
        return c, denoised, (x - c.alpha * denoised) / c.sigma

    def _at(self, x: Tensor, t):
        """Coefficients as floats for one time; in the dtype of ``x`` for one time per sample."""
        if isinstance(t, Tensor):
            batch = x.shape[: x.ndim - len(self.event_shape)]
            if t.ndim == 0:
                t = t.item()
            elif t.shape != batch and t.numel() != 1:
                raise ValueError(
                    f"t has shape {tuple(t.shape)}; it must be a number or one time per sample, "
                    f"{tuple(batch)}."
                )
        c = self.process(t)
        return c.map(lambda value: value.to(x)) if isinstance(t, Tensor) else c

    # -- laws --------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, t) -> Tensor:
        """Log-density [nats] of x_t at ``x``; shape ``batch``."""
        c = self._at(x, t)
        return self.denoiser.log_prob(x, c.alpha, c.sigma)

    def marginal(self, t: float) -> Denoiser:
        """The law of x_t, itself a denoiser (Gaussian data: ``.mean`` and ``.cov``)."""
        c = self.process(float(t))
        return self.denoiser.noised(c.alpha, c.sigma)

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """Exact probability-flow map of ``x`` at time ``t`` to time ``s``, either direction.

        Raises:
            NotImplementedError: with the reason, where no closed form exists.
        """
        start, end = self.process(float(t)), self.process(float(s))
        return self.denoiser.flow(x, (start.alpha, start.sigma), (end.alpha, end.sigma))

    def __repr__(self) -> str:
        return f"Diffusion({self.process!r}, {self.denoiser!r})"
