r"""A process and a denoiser: everything a sampler or a lens asks of a model at time t.

With :math:`D` the denoised state and :math:`\hat\epsilon = (x - \alpha D)/\sigma`,

.. math:: s = -\hat\epsilon/\sigma,\qquad v = \dot\alpha D + \dot\sigma\hat\epsilon,\qquad
          \text{drift}_\eta = v - \tfrac{\eta}{2} g^2 s .

The velocity is formed from D and the noise prediction, not from f and g2, so that it stays regular
where those do not (pure noise, alpha = 0).

Two families of processes reach the denoiser by way of a *core* variable u:
an affine process, :math:`x = \alpha x_0 + m\mu + \sigma\epsilon`, by :math:`u = x - m\mu`; a
spectral one, with one alpha and sigma per mode of a basis B, by :math:`u = B^\top x`. In u both are
plain :math:`\alpha u_0 + \sigma\epsilon`, which is where samplers walk. A method in t still takes
the steps of its textbook form in x: under an affine process what m adds to them is a multiple of
:math:`\mu` (:meth:`Diffusion.constants`).
"""

from __future__ import annotations

import copy
import math
from functools import cached_property
from operator import attrgetter

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian
from workbench.denoisers.checks import check_placement, finite, floating
from workbench.denoisers.level import any_zero
from workbench.processes import Process
from workbench.processes.bases import Basis, Columns


class Diffusion:
    """A denoiser seen through a process.

    Times are floats, or tensors with one value per sample, within ``[0, process.t_max]``. States
    have shape (*batch, *event) and the denoiser's dtype.

    Args:
        process: alpha and sigma of a time.
        denoiser: of the data x0; under an affine process, of the data given the condition.
        condition: mu of an affine process, in the shape of one sample; for others None.

    Raises:
        TypeError: something of the wrong kind, or a condition missing or not wanted.
        ValueError: a condition or a basis of another shape than the data.
    """

    event_shape = property(attrgetter("denoiser.event_shape"))
    dtype = property(attrgetter("denoiser.dtype"))
    device = property(attrgetter("denoiser.device"))

    def __init__(
        self, process: Process, denoiser: Denoiser, condition: Tensor | None = None
    ) -> None:
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
        self.condition = self._checked_condition(condition)
        if process.spectral and process.basis.event_shape != denoiser.event_shape:
            raise ValueError(
                f"{process!r} has a basis of shape {tuple(process.basis.event_shape)} and the data "
                f"{tuple(denoiser.event_shape)}; make the basis for the shape of the data."
            )

    def _checked_condition(self, condition) -> Tensor | None:
        affine = self.process.affine
        if affine != (condition is not None):
            raise TypeError(
                f"{self.process!r} draws the data towards a condition; give it as "
                "Diffusion(process, denoiser, condition=mu)."
                if affine
                else f"{self.process!r} takes no condition; an affine process (OUVE, IRSDE, RDDM, "
                "Resfusion) does."
            )
        if condition is None:
            return None
        condition = finite("condition", floating("condition", condition)).to(
            dtype=self.denoiser.dtype, device=self.denoiser.device
        )
        if condition.shape not in ((), self.denoiser.event_shape):
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; it must be that of one sample, "
                f"{tuple(self.denoiser.event_shape)}."
            )
        return condition.expand(self.denoiser.event_shape)

    def to(self, dtype: torch.dtype | None = None, device=None) -> Diffusion:
        """The same diffusion with its denoiser in another dtype or on another device, and raises as
        :meth:`Denoiser.to <workbench.denoisers.Denoiser.to>`.
        """
        check_placement(dtype, device)
        there = device is None or torch.device(device) == self.device
        if there and dtype in (None, self.dtype):
            return self
        denoiser = self.denoiser.to(dtype, device)
        if self.condition is None or self.condition.shape == self.event_shape:
            return Diffusion(self.process, denoiser, self.condition)
        return Diffusion(self.process, denoiser, self.condition[0]).towards(self.condition)

    def towards(self, conditions: Tensor) -> Diffusion:
        """The same with a condition for each sample, of states (n, *event).

        Args:
            conditions: (n, *event).

        Raises:
            TypeError: a process without a condition.
            ValueError: another shape.
        """
        if self.condition is None:
            raise TypeError(f"conditions were given, and {self.process!r} takes none.")
        conditions = finite("conditions", floating("conditions", conditions))
        if conditions.shape[1:] != self.event_shape or conditions.ndim != self._events + 1:
            raise ValueError(
                f"conditions has shape {tuple(conditions.shape)}; it must be (samples, "
                f"*{tuple(self.event_shape)})."
            )
        twin = copy.copy(self)
        twin.condition = conditions.to(dtype=self.dtype, device=self.device)
        return twin

    # -- the field at time t -----------------------------------------------------------------

    def denoised(self, x: Tensor, t) -> Tensor:
        """Posterior mean E[x0 | x_t = x]."""
        u, c = self._seen(x, t)
        return self.process.from_modes(self.core.denoise(u, c.alpha, c.sigma))

    def noise(self, x: Tensor, t) -> Tensor:
        """Noise prediction E[eps | x_t = x] = (x - alpha D) / sigma; needs sigma > 0."""
        return self.process.from_modes(self._all(x, t)[2])

    def score(self, x: Tensor, t) -> Tensor:
        """Gradient of the log-density of x_t [1/x]; at sigma = 0 only where the data have one."""
        u, c = self._seen(x, t)
        return self.process.from_modes(self.core.score(u, c.alpha, c.sigma))

    def velocity(self, x: Tensor, t) -> Tensor:
        """Probability-flow velocity dx/dt; needs sigma > 0."""
        return self.drift(x, t, eta=0.0)

    def drift(self, x: Tensor, t, eta: float = 1.0) -> Tensor:
        """Drift of the reverse-time family: eta 0 the probability flow, 1 the reverse SDE.

        ``dx = drift dt + sqrt(eta) g dW`` with dt negative. Infinite where g is (alpha = 0) unless
        eta is 0.
        """
        if not 0 <= eta < math.inf:
            raise ValueError(f"eta was {eta!r}; it must be finite and at least 0.")
        c, denoised, noise = self._all(x, t)
        velocity = c.d_alpha * denoised + c.d_sigma * noise
        if eta:
            velocity = velocity + (0.5 * eta * c.g2 / c.sigma) * noise
        return self.process.from_modes(velocity) + self._pull(x, t)

    # -- its derivatives, where the denoiser has them in closed form ---------------------------

    def jacobian(self, x: Tensor, t) -> Tensor:
        """Jacobian of the denoised state, dD_i/dx_j (*batch, d, d)."""
        u, c = self._seen(x, t)
        return self.process.turned(self.core.jacobian(u, c.alpha, c.sigma))

    def hessian(self, x: Tensor, t) -> Tensor:
        """Hessian of the log-density of x_t (*batch, d, d) [1/x²]."""
        u, c = self._seen(x, t)
        return self.process.turned(self.core.hessian(u, c.alpha, c.sigma))

    def posterior_cov(self, x: Tensor, t) -> Tensor:
        """Covariance of x0 given x_t = x (*batch, d, d) [x²]."""
        u, c = self._seen(x, t)
        return self.process.turned(self.core.posterior_cov(u, c.alpha, c.sigma))

    def divergence(self, x: Tensor, t) -> Tensor:
        r"""Divergence of the probability-flow velocity (*batch) [1/t]; needs sigma > 0.

        .. math:: \nabla\!\cdot v = \sum_k (\dot\alpha_k - \alpha_k\dot\sigma_k/\sigma_k) J_{kk}
                  + \dot\sigma_k/\sigma_k
        """
        u, c = self._seen(x, t)
        self._check_sigma(c, t)
        if self.process.spectral:
            inner, outer = stretch(c)
            diagonal = self.core.jacobian(u, c.alpha, c.sigma).diagonal(dim1=-2, dim2=-1)
            each = inner * diagonal.reshape(u.shape) + outer
            return each.flatten(u.ndim - len(self.event_shape)).sum(-1)
        return self._spread(c, self.core.divergence(u, c.alpha, c.sigma))

    def velocity_and_divergence(self, x: Tensor, t) -> tuple[Tensor, Tensor]:
        """:meth:`velocity` and :meth:`divergence`: without a closed form of one evaluation."""
        if self.process.spectral:
            return self.velocity(x, t), self.divergence(x, t)
        u, c = self._seen(x, t)
        self._check_sigma(c, t)
        denoised, trace = self.core.at(c.alpha, c.sigma).denoised_and_divergence(u)
        noise = (u - c.alpha * denoised) / c.sigma
        velocity = self.process.from_modes(c.d_alpha * denoised + c.d_sigma * noise)
        return velocity + self._pull(x, t), self._spread(c, trace)

    def _spread(self, c, trace: Tensor) -> Tensor:
        """Divergence of the velocity (*batch), where the Jacobian of D has this trace (*batch)."""
        inner, outer = stretch(c)
        if isinstance(inner, Tensor):  # one time per sample
            inner, outer = (
                v.reshape(-1).expand(trace.numel()).reshape(trace.shape) for v in (inner, outer)
            )
        return inner * trace + self.denoiser.dim * outer

    def denoised_rate(self, x: Tensor, t) -> Tensor:
        """Partial derivative of the denoised state in t at fixed x [x/t]."""
        u, c = self._seen(x, t)
        rate = self.core.rate(u, c.alpha, c.sigma, c.d_alpha, c.d_sigma)
        return self.process.from_modes(rate) - self._along_pull(x, t, self.jacobian)

    def score_rate(self, x: Tensor, t) -> Tensor:
        """Partial derivative of the score in t at fixed x [1/(x t)]; needs sigma > 0."""
        u, c = self._seen(x, t)
        self._check_sigma(c, t)
        denoised = self.core.denoise(u, c.alpha, c.sigma)
        rate = self.core.rate(u, c.alpha, c.sigma, c.d_alpha, c.d_sigma)
        score = self.core.score(u, c.alpha, c.sigma)
        rate = (
            c.d_alpha * denoised + c.alpha * rate
        ) / c.sigma**2 - 2 * c.d_sigma / c.sigma * score
        return self.process.from_modes(rate) - self._along_pull(x, t, self.hessian)

    # -- the core variable ---------------------------------------------------------------------

    @cached_property
    def core(self) -> Denoiser:
        """The denoiser of the core variable u, in which x is plain alpha u0 + sigma eps."""
        return self.process.core(self.denoiser)

    def to_core(self, x: Tensor, t: float) -> Tensor:
        """The state ``x`` at time ``t`` as the core variable u."""
        if self.condition is not None:
            x = x - self.process.shift(t)[0] * self.condition
        return self.process.to_modes(x)

    def constants(self, u: Tensor) -> dict[str, Tensor]:
        """What a program may read beside the state ``u``: the condition as ``mu``, in u's shape."""
        return {} if self.condition is None else {"mu": self.condition.expand_as(u)}

    def from_core(self, u: Tensor, t: float, field: str = "x") -> Tensor:
        """A field of the core variable at time ``t`` (named as in ``Record``) as that of x."""
        value = self.process.from_modes(u)
        if self.condition is not None and field in ("x", "velocity"):
            value = value + self.process.shift(t)[field == "velocity"] * self.condition
        return value

    def _shift(self, x: Tensor, t, index: int) -> Tensor | float:
        """m mu (index 0) or its time derivative (1), broadcast to ``x``."""
        if self.condition is None:
            return 0.0
        amount = self.process.shift(t)[index]
        if isinstance(amount, Tensor):
            amount = amount.to(x).reshape(amount.shape + (1,) * (x.ndim - amount.ndim))
        return amount * self.condition

    def _pull(self, x: Tensor, t) -> Tensor | float:
        return self._shift(x, self._time(x, t), 1)

    def _along_pull(self, x: Tensor, t, matrix) -> Tensor | float:
        """What the drift of m mu adds to a time derivative at fixed x."""
        if self.condition is None:
            return 0.0
        pull = self._pull(x, t).expand(x.shape).reshape(*x.shape[: x.ndim - self._events], -1, 1)
        return (matrix(x, t) @ pull).reshape(x.shape)

    @property
    def _events(self) -> int:
        return len(self.event_shape)

    def _seen(self, x: Tensor, t):
        """The core variable and the coefficients, floats or tensors that broadcast against it."""
        t = self._time(x, t)
        c = self.process(t)
        if self.process.spectral:
            each = isinstance(t, Tensor) and t.ndim
            lead = () if each or x.ndim == self._events else (1,)
            c = c.map(lambda v: v.to(x).reshape(*lead, *v.shape))
            return self.process.to_modes(x), c
        if isinstance(t, Tensor):
            c = c.map(lambda v: v.to(x).reshape(v.shape + (1,) * (x.ndim - v.ndim)))
        return (x if self.condition is None else x - self._shift(x, t, 0)), c

    def _time(self, x: Tensor, t):
        """One time as a float; a tensor if there is one per sample."""
        if not isinstance(t, Tensor):
            return float(t)
        batch = x.shape[: x.ndim - self._events]
        if t.ndim == 0:
            return t.item()
        if t.shape != batch and t.numel() != 1:
            raise ValueError(
                f"t has shape {tuple(t.shape)}; it must be a number or one time per sample, "
                f"{tuple(batch)}."
            )
        return t

    def _all(self, x: Tensor, t):
        u, c = self._seen(x, t)
        self._check_sigma(c, t)
        denoised = self.core.denoise(u, c.alpha, c.sigma)
        return c, denoised, (u - c.alpha * denoised) / c.sigma

    def _check_sigma(self, c, t) -> None:
        if any_zero(c.sigma):
            least = float(torch.as_tensor(t).min())
            raise ValueError(
                f"t was {least:g}, where sigma is 0: noise and velocity exist only at "
                f"sigma > 0. Ask at t >= {self.process.t_min:g}."
            )

    # -- laws --------------------------------------------------------------------------------

    def diffuse(self, x0: Tensor, t: float, noise: Tensor) -> Tensor:
        """The state x_t of data ``x0`` with the standard normals ``noise``, both (*batch, *event).

        Under a spectral process the noise belongs to the pixels too: it is carried into the basis.
        """
        process = self.process
        c = process(float(t)).map(lambda v: v.to(x0) if isinstance(v, Tensor) else v)
        u = c.alpha * process.to_modes(x0) + c.sigma * process.to_modes(noise)
        return process.from_modes(u) + self._shift(x0, float(t), 0)

    def log_prob(self, x: Tensor, t) -> Tensor:
        """Log-density [nats] of x_t at ``x``; shape ``batch``."""
        u, c = self._seen(x, t)
        return self.core.log_prob(u, c.alpha, c.sigma)

    def marginal(self, t: float) -> Denoiser:
        """The law of x_t, itself a denoiser (Gaussian data: ``.mean`` and ``.cov``)."""
        c = self.process(float(t))
        return self.law_from_core(self.core.noised(c.alpha, c.sigma), t)

    def law_from_core(self, law: Denoiser, t: float) -> Denoiser:
        """A law of the core variable at time ``t`` as that of x."""
        law = self.process.off_core(law)
        if self.condition is None:
            return law
        return law.translated(self.process.shift(float(t))[0] * self.condition.to(law.dtype))

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """Exact probability-flow map of ``x`` at time ``t`` to time ``s``, either direction.

        Raises:
            NotImplementedError: with the reason, where no closed form exists.
        """
        t, s = float(t), float(s)
        (u, start), (_, end) = self._seen(x, t), self._seen(x, s)
        moved = self.core.flow(u, (start.alpha, start.sigma), (end.alpha, end.sigma))
        return self.from_core(moved, s)

    def diagonalised(self) -> tuple[Diffusion, Basis]:
        """The twin of this diffusion in the eigenbasis of its Gaussian data, and that basis.

        A run of the twin from ``basis.forward(x)`` is the run of this one from ``x``, and each
        evaluation costs d products instead of d²: transform once at either end.

        Raises:
            NotImplementedError: data that are not Gaussian, or a process with a basis of its own.
        """
        if not isinstance(self.denoiser, Gaussian) or self.process.spectral:
            raise NotImplementedError(
                f"{self!r} has no diagonal twin; only Gaussian data under a process with one alpha "
                "and sigma have one."
            )
        twin, matrix = self.denoiser.diagonalised()
        basis = Columns(matrix, self.event_shape)
        condition = None if self.condition is None else basis.forward(self.condition)
        return Diffusion(self.process, twin, condition), basis

    def __repr__(self) -> str:
        return f"Diffusion({self.process!r}, {self.denoiser!r})"


def stretch(c) -> tuple:
    """Of coefficients, the factors of the Jacobian of D and of I in that of the velocity."""
    return c.d_alpha - c.alpha * c.d_sigma / c.sigma, c.d_sigma / c.sigma
