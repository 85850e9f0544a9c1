r"""Levels: a denoiser at one noise level, where what depends on the noise alone is done once.

From the posterior mean alone follow the score by Tweedie's formula, derivatives by automatic
differentiation, and in few dimensions the log-density by integrating over noise levels. A closed
form is a subclass that gives what it knows better.

Sources: as of :mod:`~workbench.denoisers.base`; log-densities from denoisers: Kong, Brekelmans &
Ver Steeg 2023, *Information-Theoretic Diffusion*, arXiv:2302.03792.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers.checks import dtype_name

if TYPE_CHECKING:
    from workbench.denoisers.base import Denoiser

#: Numbers of Jacobians held at once.
MATRICES = 1 << 22
#: Dimensions up to which a log-density is integrated from divergences.
INTEGRATED = 64
#: Pieces in which such an integral begins, and how often one may be halved.
PIECES, HALVINGS = 8, 10
#: The rules of 7 and 15 points of Gauss and Kronrod on [-1, 1], the half from 0 on: the points,
#: their weights, and those of every second point alone.
KRONROD = (
    *(0.0, 0.2077849550078985, 0.4058451513773972, 0.5860872354676911),
    *(0.7415311855993945, 0.8648644233597691, 0.9491079123427585, 0.9914553711208126),
)
WEIGHTS = (
    *(0.2094821410847278, 0.2044329400752989, 0.1903505780647854, 0.1690047266392679),
    *(0.1406532597159255, 0.1047900103222502, 0.06309209262997856, 0.02293532201052922),
)
COARSE = (0.4179591836734694, 0.3818300505051189, 0.2797053914892767, 0.1294849661688697)

NAMES = ("alpha", "sigma")


class Level:
    """A denoiser at one noise level, asked as often as wanted: ``denoiser.at(alpha, sigma)``.

    States have shape (*batch, *event) and the denoiser's dtype; so has what is like ``x``. A closed
    form overrides the methods with an underscore, which take flat states (n, d).

    Attributes:
        denoiser: whose level it is.
        alpha, sigma: floats, or tensors (n or 1, d or 1); as given if they are still to be matched
            with a batch.

    Raises:
        ValueError: states of another shape than the denoiser's.
        TypeError: states of another dtype.
    """

    def __init__(self, denoiser: Denoiser, alpha, sigma) -> None:
        self.denoiser, self.alpha, self.sigma = denoiser, alpha, sigma

    # -- what a caller asks ------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the Jacobian has a closed form; otherwise it is by automatic differentiation."""
        return type(self)._jacobian is not Level._jacobian

    def denoised(self, x: Tensor) -> Tensor:
        """Posterior mean ``E[x0 | x = alpha x0 + sigma eps]``; like ``x``."""
        flat, level = self._seen(x)
        return level._denoised(flat).reshape(x.shape)

    def score(self, x: Tensor) -> Tensor:
        r"""Score :math:`s = \nabla\log p(x) = (\alpha D - x)/\sigma^2` [1/x]; like ``x``."""
        flat, level = self._seen(x)
        return level._score(flat).reshape(x.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [nats] of ``alpha x0 + sigma eps`` at ``x``; shape ``batch``."""
        flat, level = self._seen(x)
        return level._log_prob(flat).reshape(self._batch(x))

    def jacobian(self, x: Tensor) -> Tensor:
        r"""Jacobian :math:`J_{ij} = \partial D_i/\partial x_j`; shape (*batch, d, d).

        Where it is the same for all samples it is one matrix, expanded.
        """
        return self._matrices("_jacobian", x)

    def hessian(self, x: Tensor) -> Tensor:
        r"""Hessian :math:`\nabla^2\log p(x) = (\alpha J - I)/\sigma^2` [1/x²]; (*batch, d, d)."""
        return self._matrices("_hessian", x)

    def posterior_cov(self, x: Tensor) -> Tensor:
        r"""Posterior covariance :math:`\operatorname{Cov}[x_0 | x] = \sigma^2 J/\alpha` [x²].

        Shape (*batch, d, d). At ``alpha = 0`` it is the covariance of the data.
        """
        return self._matrices("_posterior_cov", x)

    def divergence(self, x: Tensor, probes: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        r"""Divergence :math:`\operatorname{tr} J` of the denoised state; shape ``batch``.

        Exact; without a closed form it takes d vector-Jacobian products. With ``probes`` it is
        Hutchinson's estimate and its standard error instead, one product a probe.

        Args:
            x: states.
            probes: (m, *event) with mean 0 and covariance I, e.g. random signs; m at least 2. The
                same for all samples.

        Source: Hutchinson 1990, Communications in Statistics 19(2).
        """
        flat, level = self._seen(x)
        batch = self._batch(x)
        if probes is None:
            return level._divergence(flat).reshape(batch)
        if len(probes) < 2:
            raise ValueError("probes were fewer than 2; a standard error needs at least 2.")
        each = [
            (level._vjp(flat, probe.expand_as(flat)) * probe).sum(1)
            for probe in probes.to(flat).reshape(len(probes), -1)
        ]
        estimates = torch.stack(each)
        error = estimates.std(0) / math.sqrt(len(each))
        return estimates.mean(0).reshape(batch), error.reshape(batch)

    def denoised_and_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`denoised` and the exact :meth:`divergence`, from one evaluation."""
        flat, level = self._seen(x)
        denoised, divergence = level._denoised_and_divergence(flat)
        return denoised.reshape(x.shape), divergence.reshape(self._batch(x))

    def rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        r"""Rate of change of the denoised state at fixed ``x``, as the noise moves; like ``x``.

        .. math:: \partial_\alpha D\,\dot\alpha + \partial_\sigma D\,\dot\sigma

        Args:
            x: states.
            d_alpha, d_sigma: time derivatives of alpha and sigma, of either sign, as these may be.
        """
        flat, level = self._seen(x)
        coefficient = self.denoiser._coefficient
        d_alpha = coefficient("d_alpha", d_alpha, x, signed=True)
        d_sigma = coefficient("d_sigma", d_sigma, x, signed=True)
        return level._rate(flat, d_alpha, d_sigma).reshape(x.shape)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Jacobian times ``v``, both like ``x``: how D changes where x moves along ``v``."""
        flat, level = self._seen(x)
        return level._jvp(flat, v.expand_as(x).reshape(flat.shape)).reshape(x.shape)

    def vjp(self, x: Tensor, u: Tensor) -> Tensor:
        """``u`` times the Jacobian, both like ``x``: the gradient of ``u . D`` in x."""
        flat, level = self._seen(x)
        return level._vjp(flat, u.expand_as(x).reshape(flat.shape)).reshape(x.shape)

    def slope(self, x: Tensor) -> Tensor:
        r"""Slope :math:`dD/d\rho` along the flow, :math:`\rho = \sigma/\alpha`; like ``x``.

        .. math:: \frac{dD}{d\rho} = J\,\alpha\hat\epsilon + \alpha\,\partial_\sigma D,\qquad
                  \hat\epsilon = (x - \alpha D)/\sigma

        With one noise level per coordinate all of them move alike. At alpha = 0 it is 0.

        Raises:
            ValueError: at sigma = 0, where the flow ends.
        """
        flat, level = self._seen(x)
        if any_zero(level.sigma):
            raise ValueError(
                "sigma was 0: the slope is a derivative along the probability flow, which ends "
                "there. Ask at sigma > 0."
            )
        return level._slope(flat).reshape(x.shape)

    def trace_slope(self, x: Tensor, weight: Tensor, probes: Tensor | None = None) -> Tensor:
        r"""Gradient :math:`\nabla_x \sum_k w_k J_{kk}` of a weighted trace of the Jacobian.

        Args:
            x: states.
            weight: w, of the shape of one state.
            probes: (m, *event), the same for all states, or (m, *x), with mean 0 and covariance I.
                None: exact.

        Returns:
            Like ``x``; with ``probes``, Hutchinson's estimate of each, (m, *x).
        """
        flat, level = self._seen(x)
        weight = weight.reshape(1, -1).to(flat)
        if probes is None:
            return level._trace_slope(flat, weight).reshape(x.shape)
        each = [
            level._probed_slope(flat, weight, probe)
            for probe in probes.to(flat).reshape(len(probes), -1, flat.shape[1])
        ]
        return torch.stack(each).reshape(len(each), *x.shape)

    def classify(self, x: Tensor) -> Tensor:
        """Posterior probabilities of the classes (components) given ``x``; shape (*batch, K)."""
        flat, level = self._seen(x)
        share = level._classify(flat)
        return share.reshape(*self._batch(x), share.shape[-1])

    def kernel(self, name: str, like: Tensor) -> Callable[[Tensor], Tensor]:
        """A method named ``"denoised"``, ``"score"`` or ``"slope"`` for states of the shape and
        dtype of ``like`` (n, *event), which are the denoiser's, without any check: what a loop
        calls.
        """
        level = self.matched(like)
        method = getattr(level, f"_{name}")
        if method.__func__ is Level._denoised and not self.denoiser.per_coordinate:
            if type(level.alpha) is float is type(level.sigma) and level.sigma:
                vars(level)["_given"] = level.alpha, level.sigma  # as it would come out
            return level._formula
        if like.ndim == 2:
            return method
        return lambda x: method(x.flatten(1)).reshape(x.shape)

    # -- what a closed form overrides: flat states (n, d) --------------------------------------

    def _denoised(self, x: Tensor) -> Tensor:
        return self._formula(x.reshape(-1, *self.denoiser.event_shape)).reshape(x.shape)

    def _formula(self, x: Tensor) -> Tensor:
        """``posterior_mean`` of states (n, *event) here, its answer checked."""
        denoised = self.denoiser.posterior_mean(x, *self._given)
        if denoised.shape != x.shape or denoised.dtype != x.dtype:
            given, wanted = (f"{tuple(v.shape)} in {dtype_name(v.dtype)}" for v in (denoised, x))
            raise ValueError(
                f"{self.denoiser!r} answered with shape {given} to states of shape {wanted}; its "
                "posterior_mean must give one value per state, in their shape and dtype."
            )
        return denoised

    @cached_property
    def _given(self) -> tuple:
        """alpha and sigma as ``posterior_mean`` takes them."""
        event = self.denoiser.event_shape
        if self.denoiser.per_coordinate:
            return tuple(_shaped(c, event) for c in self._pair)
        return self._uniform

    @cached_property
    def _uniform(self) -> tuple:
        """alpha and sigma as ``posterior_mean`` takes them: one for each sample, at most.

        At sigma = 0 stands a billionth of the data's spread: the limit from above, where a formula
        or a network has none.
        """
        if isinstance(self.alpha, float) and isinstance(self.sigma, float) and self.sigma:
            return self._pair
        uniform = []
        for c in (self.alpha, self.sigma):
            if not per_sample(c):
                if not bool((c == c[:, :1]).all()):
                    raise ValueError(
                        f"{self.denoiser!r} answers for one noise level per sample, not for one "
                        "per coordinate (as spectral processes have); take a process with one "
                        "alpha and sigma, or set per_coordinate = True in a denoiser whose formula "
                        "holds for alpha and sigma in the shape of the states."
                    )
                c = c[:, :1]
            uniform.append(_shaped(c, (1,) * len(self.denoiser.event_shape)))
        alpha, sigma = uniform
        if any_zero(sigma):
            least = 1e-9 * (self.denoiser.std or 1.0) * alpha
            if isinstance(sigma, float) and isinstance(alpha, float):
                sigma = least
            else:
                sigma = torch.where(torch.as_tensor(sigma == 0), least, sigma)
        return alpha, sigma

    def _log_prob(self, x: Tensor) -> Tensor:
        r"""By the heat equation, from where all data look Gaussian down to this level.

        With :math:`y = x/\alpha` held, :math:`d\log p/d\log\rho = \operatorname{tr} J - d +
        |D - y|^2/\rho^2`. What is integrated, by Gauss and Legendre's rule, is its difference to
        that of a Gaussian with the mean and spread of the data.
        """
        (n, d), law = x.shape, self.denoiser
        if d > INTEGRATED:
            raise NotImplementedError(
                f"{self._name} has no closed-form log-density, and integrating its divergence over "
                f"noise levels is for at most {INTEGRATED} dimensions; these data have {d}."
            )
        self._noisy("the log-density")
        a, s = (_like(c, x.double()).reshape(-1, 1).expand(n, 1) for c in self._uniform)
        mean, v = law.mean.flatten().double(), law.std**2
        y = x / a.clamp_min(1e-100)
        top = 1e3 * (v + (y - mean).square().sum(1, keepdim=True)).sqrt()
        top = torch.maximum(top.clamp_max(law.largest_rho), s / a)
        width = torch.where(a > 0, (top / (s / a)).log(), 0.0)

        def slope(row: Tensor, place: Tensor) -> Tensor:
            rho = top[row] * torch.exp(-width[row] * place[:, None])
            return growth(law, y[row], rho)

        change = torch.zeros_like(width[:, 0])
        rows = (width[:, 0] > 0).nonzero()[:, 0]
        if len(rows):
            change[rows] = _integrals(slope, rows, 1e-10 if law.dtype == torch.float64 else 1e-5)
        total = a.square() * v + s.square()
        reference = -0.5 * ((x - a * mean).square() / total + (2 * math.pi * total).log()).sum(1)
        return (reference - width[:, 0] * change).to(x.dtype)

    def _score(self, x: Tensor) -> Tensor:
        self._noisy("the score")
        alpha, sigma = self.alpha, self.sigma
        return ((alpha * self._denoised(x) - x) / sigma / sigma).to(x.dtype)

    def _jacobian(self, x: Tensor) -> Tensor:
        """(n or 1, d, d); here d vector-Jacobian products."""
        _, pull = torch.func.vjp(self._denoised, x)
        out = x.new_empty(*x.shape, x.shape[1])
        for i in range(x.shape[1]):
            out[:, i] = pull(_unit(x, i))[0]
        return out

    def _divergence(self, x: Tensor) -> Tensor:
        if self.closed:
            return self._jacobian(x).diagonal(dim1=-2, dim2=-1).sum(-1).expand(len(x))
        return self._denoised_and_divergence(x)[1]

    def _denoised_and_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both of one evaluation, where the divergence is by automatic differentiation."""
        if self.closed:
            return self._denoised(x), self._divergence(x)
        denoised, pull = torch.func.vjp(self._denoised, x)
        return denoised, sum(pull(_unit(x, i))[0][:, i] for i in range(x.shape[1]))

    def _trace_slope(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.closed:
            units = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            return sum(self._probed_slope(x, weight, unit) for unit in units)
        out, rows = torch.empty_like(x), max(1, MATRICES // x.shape[1] ** 2)
        for start in range(0, len(x), rows):
            piece = slice(start, start + rows)
            jacobian = self._rows(piece)._jacobian
            trace = lambda v: (weight * jacobian(v).diagonal(dim1=-2, dim2=-1)).sum()  # noqa: B023, E731
            out[piece] = torch.func.grad(trace)(x[piece])
        return out

    def _probed_slope(self, x: Tensor, weight: Tensor, probe: Tensor) -> Tensor:
        """Gradient of ``z . J (w z)``."""
        along = (weight * probe).expand_as(x)
        return torch.func.grad(lambda v: (probe * self._jvp(v, along)).sum())(x)

    def _hessian(self, x: Tensor) -> Tensor:
        self._noisy("the Hessian")
        jacobian = self._jacobian(x)
        eye = torch.eye(x.shape[1], dtype=jacobian.dtype, device=jacobian.device)
        alpha, sigma = (c if isinstance(c, float) else c[..., None] for c in self._pair)
        return ((alpha * jacobian - eye) / sigma / sigma).to(x.dtype)

    def _posterior_cov(self, x: Tensor) -> Tensor:
        if any_zero(self.alpha):
            raise ValueError(
                f"alpha was 0: the posterior covariance of this {self._name} comes from "
                "its Jacobian divided by alpha. Ask at alpha > 0."
            )
        alpha, sigma = (c if isinstance(c, float) else c[:, None] for c in self._pair)
        return (self._jacobian(x) * (sigma * sigma / alpha)).to(x.dtype)

    def _moving(self, x: Tensor, along: Tensor, d_alpha, d_sigma) -> Tensor:
        """``J along + D_alpha d_alpha + D_sigma d_sigma`` (n, d): the change of D where ``x`` moves
        by ``along`` (n, d) as the noise does.
        """
        if self.closed and type(self)._rate is not Level._rate:
            return self._jvp(x, along) + self._rate(x, d_alpha, d_sigma)
        given = (self.alpha, self.sigma, d_alpha, d_sigma)
        a, s, d_a, d_s = (_like(c, x) for c in given)
        at = self.denoiser._level
        function = lambda x, a, s: at(a, s)._denoised(x)  # noqa: E731
        return _directional(function, (x, a, s), (along, d_a.expand_as(a), d_s.expand_as(s)))

    def _rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        return self._moving(x, torch.zeros_like(x), d_alpha, d_sigma)

    def _jvp(self, x: Tensor, v: Tensor) -> Tensor:
        if not self.closed:
            return _directional(self._denoised, (x,), (v,))
        return self._times(x, v, transposed=False)

    def _vjp(self, x: Tensor, u: Tensor) -> Tensor:
        if not self.closed:
            return torch.func.vjp(self._denoised, x)[1](u)[0]
        return self._times(x, u, transposed=True)

    def _times(self, x: Tensor, v: Tensor, transposed: bool) -> Tensor:
        """The closed-form Jacobian times vectors, a piece of the batch at a time."""
        out, rows = torch.empty_like(x), max(1, MATRICES // x.shape[1] ** 2)
        for start in range(0, len(x), rows):
            piece = slice(start, start + rows)
            matrix = self._rows(piece)._jacobian(x[piece])
            out[piece] = ((matrix.mT if transposed else matrix) @ v[piece, :, None])[..., 0]
        return out

    def _slope(self, x: Tensor) -> Tensor:
        alpha, sigma = self._pair
        along = alpha / sigma * (x - alpha * self._denoised(x))
        return self._moving(x, along.to(x.dtype), 0.0, alpha)

    def _classify(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{self._name} has no classes to tell apart.")

    # -- inside ------------------------------------------------------------------------------

    def _seen(self, x: Tensor) -> tuple[Tensor, Level]:
        """States as (n, d), and the level for their batch; checked."""
        return self.denoiser._flat(x), self

    def matched(self, like: Tensor) -> Level:
        """The level for a batch like this one."""
        return self

    def _rows(self, which) -> Level:
        """The level of some rows of the batch."""
        alpha, sigma = self._pair
        if all(isinstance(c, float) or len(c) == 1 for c in (alpha, sigma)):
            return self
        return self.denoiser._level(some(alpha, which), some(sigma, which))

    @property
    def _pair(self) -> tuple:
        return self.alpha, self.sigma

    @property
    def _name(self) -> str:
        return type(self.denoiser).__name__

    def _batch(self, x: Tensor) -> torch.Size:
        return x.shape[: x.ndim - len(self.denoiser.event_shape)]

    def _matrices(self, name: str, x: Tensor) -> Tensor:
        """Flat matrices (n or 1, d, d) as (*batch, d, d)."""
        flat, level = self._seen(x)
        matrices, size = getattr(level, name)(flat), (self.denoiser.dim,) * 2
        return matrices.expand(len(flat), *size).reshape(*self._batch(x), *size)

    def _noisy(self, what: str) -> None:
        if any_zero(self.sigma):
            raise ValueError(
                f"sigma was 0: {what} of this {self._name} is a difference divided by sigma^2. "
                "Ask at sigma > 0."
            )


class Unmatched(Level):
    """A level of tensors: each batch says whether they are one per sample or one per coordinate."""

    def _seen(self, x: Tensor) -> tuple[Tensor, Level]:
        return self.denoiser._flat(x), self.matched(x)

    def matched(self, like: Tensor) -> Level:
        alpha, sigma = (
            self.denoiser._coefficient(name, value, like)
            for name, value in zip(NAMES, self._pair, strict=True)
        )
        both = (alpha == 0) & (sigma == 0)
        not_both_zero(both.device.type == "cpu" and bool(both.any()))
        return self.denoiser._level(alpha, sigma)


def combining(*names: str) -> Callable:
    """Decorate a level so that each of these methods is ``self._answer(name, x, *rates)``."""

    def decorate(kind: type[Level]) -> type[Level]:
        for name in names:
            setattr(kind, name, lambda self, *given, name=name: self._answer(name, *given))
        return kind

    return decorate


def per_sample(coefficient: float | Tensor) -> bool:
    """Whether a flat coefficient is the same for all coordinates of a sample."""
    return isinstance(coefficient, float) or coefficient.shape[-1] == 1


def some(coefficient, which):
    """The coefficients of some rows of the batch; as it is what is the same for all."""
    alike = not isinstance(coefficient, Tensor) or len(coefficient) == 1
    return coefficient if alike else coefficient[which]


def any_zero(coefficient: float | Tensor) -> bool:
    """Whether a coefficient vanishes anywhere; tensors are looked at on the host only."""
    if isinstance(coefficient, Tensor):
        return coefficient.device.type == "cpu" and bool((coefficient == 0).any())
    return coefficient == 0


def _shaped(coefficient: float | Tensor, event: Sequence[int]) -> float | Tensor:
    """A flat coefficient against states (n, *event)."""
    if isinstance(coefficient, float):
        return coefficient
    event = event if coefficient.shape[1] > 1 else (1,) * len(event)
    return coefficient.reshape(len(coefficient), *event)


def _like(coefficient: float | Tensor, x: Tensor) -> Tensor:
    """A coefficient as a tensor (n or 1, d or 1) like ``x``."""
    made = torch.as_tensor(coefficient, dtype=x.dtype, device=x.device)
    return made if made.ndim else made.reshape(1, 1)


@cache
def _gauss_kronrod(device: torch.device) -> tuple[Tensor, Tensor]:
    """Points on [0, 1], and with them the weights of the rule of 15 points and of that of 7."""
    points, fine = np.array(KRONROD), np.array(WEIGHTS)
    coarse = np.zeros(8)
    coarse[::2] = COARSE
    both = np.stack([fine, coarse], 1)
    sides = (np.concatenate([v[:0:-1] * sign, v]) / 2 for v, sign in ((points, -1), (both, 1)))
    places, weights = (torch.tensor(v, device=device) for v in sides)
    return places + 0.5, weights


def _integrals(f: Callable, rows: Tensor, tolerance: float) -> Tensor:
    """Integrals over [0, 1] of ``f(row, place)``, one for each row, in double precision.

    In pieces that are halved where the rules of 7 and 15 points of Gauss and Kronrod differ by
    more than ``tolerance`` of the integral: where the posterior passes from one mode to another,
    its derivative is a narrow peak.
    """
    points, weights = _gauss_kronrod(rows.device)
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    which = torch.arange(len(rows), device=rows.device).repeat_interleave(PIECES)
    left = torch.arange(PIECES, device=rows.device).double().repeat(len(rows)) / PIECES
    size = 1 / PIECES
    halvings = HALVINGS
    while True:
        places = (left[:, None] + size * points).flatten().split(1 << 14)
        of = rows[which].repeat_interleave(len(points)).split(1 << 14)
        values = torch.cat([f(*some) for some in zip(of, places, strict=True)])
        fine, coarse = (size * values.reshape(-1, len(points)) @ weights).unbind(1)
        whole = total.index_add(0, which, fine).abs().clamp_min(1.0)
        rough = (fine - coarse).abs() > tolerance * whole[which]
        if not halvings or not bool(rough.any()):
            return total.index_add(0, which, fine)
        total = total.index_add(0, which[~rough], fine[~rough])
        size, halvings = size / 2, halvings - 1
        which, left = which[rough].repeat(2), torch.cat([left[rough], left[rough] + size])


def growth(law: Denoiser, y: Tensor, rho: Tensor) -> Tensor:
    r"""Derivative of the log-density in log rho, less that of ``N(m, (v + rho^2) I)``; shape (n,).

    .. math:: \operatorname{tr} J - d + |D - y|^2/\rho^2 - \ldots

    Args:
        law: whose mean is m and whose squared spread is v.
        y: states at alpha = 1, in double precision (n, d).
        rho: noise levels (n or 1, 1).
    """
    level, states = law._level(1.0, rho), y.to(law.dtype)
    denoised, divergence = level._denoised_and_divergence(states)
    lag = (denoised.double() - y).square().sum(1) / rho[:, 0].square()
    v, apart = law.std**2, y - law.mean.flatten().double()
    total = v + rho[:, 0].square()
    gaussian = v / total * y.shape[1] + (rho[:, 0] / total).square() * apart.square().sum(1)
    return divergence.double() + lag - gaussian


def _unit(x: Tensor, i: int) -> Tensor:
    """States like ``x`` along coordinate ``i``."""
    unit = torch.zeros_like(x)
    unit[:, i] = 1.0
    return unit


def _directional(function: Callable, inputs: tuple, tangents: tuple) -> Tensor:
    """Derivative of ``function(*inputs)`` along ``tangents``, forward; where an operation has no
    forward rule, as the derivative in u of the gradient of u . function.
    """
    try:
        return torch.func.jvp(function, inputs, tangents)[1]
    except (NotImplementedError, RuntimeError) as error:
        try:
            value, pull = torch.func.vjp(function, *inputs)
            return torch.func.vjp(pull, torch.zeros_like(value))[1](tangents)[0]
        except (NotImplementedError, RuntimeError):
            raise error from None


def not_both_zero(both: bool) -> None:
    if both:
        raise ValueError("alpha and sigma were both 0; at least one must be positive.")
