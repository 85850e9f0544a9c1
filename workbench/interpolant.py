r"""Two densities and a path between them: everything a sampler or a lens asks at time t.

.. math:: x_t = a(t)\,x_0 + b(t)\,x_1 + \gamma(t)\,z,\qquad
          x_0 \sim \rho_0,\; x_1 \sim \rho_1,\; z \sim N(0, I)\ \text{independent}

**Time runs from the source density (t = 0) to the target (t = 1)**, the opposite of a
:class:`~workbench.diffusion.Diffusion`. Between Gaussians x_t is Gaussian with
:math:`m = a\mu_0 + b\mu_1` and :math:`C = a^2 C_0 + b^2 C_1 + \gamma^2 I`, and

.. math:: E[\dot x_t | x] = \dot m + \tfrac12\dot C\,C^{-1}(x - m),\qquad
          \nabla\log\rho_t = -C^{-1}(x - m);

between mixtures each pair of components is such a Gaussian, and the fields are their averages under
the pairs' responsibilities. Pairs run along the first axis, through a log-sum-exp; all is computed
in float64.

Source: Albergo, Boffi & Vanden-Eijnden 2023, *Stochastic Interpolants*, arXiv:2303.08797.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical, Gaussian, Mixture
from workbench.denoisers.pairs import LEAST, ModalPairs, pair
from workbench.processes.interpolants import Path, PathCoefficients

#: Numbers one intermediate may hold before the batch is worked through in pieces (8 MB: a cache).
BLOCK = 1 << 20


class Interpolant:
    """Two laws, drawn independently, and the path between them.

    Times are floats, or tensors with one value per sample, in [0, 1]: **0 is the source, 1 the
    target**. States have shape (*batch, *event) and the laws' dtype.

    Args:
        path: weights of the ends and of the latent noise, see :mod:`~workbench.processes`.
        source: law at t = 0, a Gaussian, a Mixture or an Empirical.
        target: law at t = 1, of the same kinds and of the source's event shape and dtype.

    Attributes:
        notes: what a reader must know about the path and the ends, in sentences.
    """

    def __init__(self, path: Path, source: Denoiser, target: Denoiser) -> None:
        if not isinstance(path, Path):
            hint = f"; call it first: {path.__name__}()" if isinstance(path, type) else ""
            raise TypeError(
                f"path was {path!r}; it must be a Path, e.g. Linear(){hint}. The order is "
                "Interpolant(path, source, target)."
            )
        for name, law in (("source", source), ("target", target)):
            if not isinstance(law, Gaussian | Mixture | Empirical):
                raise TypeError(
                    f"{name} was {law!r}; the exact fields of an interpolant need a Gaussian, a "
                    "Mixture or an Empirical at each end."
                )
        for what in ("event_shape", "dtype", "device"):
            one, other = getattr(source, what), getattr(target, what)
            if one != other:
                raise ValueError(
                    f"source has {what} {one} and target {other}; they must be the same."
                )
        self.path, self.source, self.target = path, source, target
        self.event_shape, self.dtype, self.device = source.event_shape, source.dtype, source.device
        self.dim = source.dim
        self._pairs = pair(source, target)

    @property
    def notes(self) -> tuple[str, ...]:
        ends = (("Source", self.source.notes), ("Target", self.target.notes))
        return (*self.path.notes, *(f"{name}: {note}" for name, notes in ends for note in notes))

    def to(self, dtype: torch.dtype | None = None, device=None) -> Interpolant:
        """The same interpolant with its laws' numbers in another dtype or on another device."""
        return Interpolant(self.path, self.source.to(dtype, device), self.target.to(dtype, device))

    # -- the fields at time t ----------------------------------------------------------------

    def velocity(self, x: Tensor, t) -> Tensor:
        """Velocity b = E[dx_t/dt | x_t = x] of the probability flow from source to target [x/t].

        Raises:
            ValueError: where x_t has no density (a direction without variance: the score, and in
                general the velocity, do not exist there); wrong shapes; a time outside [0, 1].
            TypeError: a dtype other than the laws'.
        """
        return self._field(x, t, _half_rate, _rate)

    def score(self, x: Tensor, t) -> Tensor:
        """Gradient of the log-density of x_t [1/x]; raises as :meth:`velocity`."""
        return self._field(x, t, lambda c: (0.0, 0.0, -1.0))

    def noise(self, x: Tensor, t) -> Tensor:
        """Posterior mean of the latent noise, E[z | x_t = x] = -gamma score."""
        return self._field(x, t, lambda c: (0.0, 0.0, c.gamma))

    def conditional(self, x: Tensor, t) -> Tensor:
        r"""Velocity of the ends alone, v = E[a' x_0 + b' x_1 | x] = velocity + gamma gamma' s."""
        return self._field(x, t, lambda c: (*_half_rate(c)[:2], 0.0), _rate)

    def endpoints(self, x: Tensor, t) -> tuple[Tensor, Tensor]:
        """Posterior means of both ends, ``E[x_0 | x_t = x]`` and ``E[x_1 | x_t = x]``."""
        return (
            self._field(x, t, lambda c: (c.a, 0.0, 0.0), lambda c: (1.0, 0.0)),
            self._field(x, t, lambda c: (0.0, c.b, 0.0), lambda c: (0.0, 1.0)),
        )

    def drift(
        self,
        x: Tensor,
        t,
        epsilon: float | Tensor | Callable = 0.0,
        forward: bool = True,
    ) -> Tensor:
        r"""Drift of the family of SDEs with the marginals of x_t: b + epsilon s, or b - epsilon s.

        ``dx = drift dt + sqrt(2 epsilon) dW``, with dt positive if ``forward`` and negative if not.

        Args:
            x, t: states and times.
            epsilon: diffusivity, at least 0 [x²/t]: a number, one per sample, or a function of
                ``t``. 0 is the probability flow.
            forward: from source to target; False is the way back.
        """
        epsilon = self._epsilon(epsilon(t) if callable(epsilon) else epsilon, x)
        sign = 1.0 if forward else -1.0
        if isinstance(epsilon, Tensor):
            return self.velocity(x, t) + sign * epsilon * self.score(x, t)
        return self._field(
            x, t, lambda c: (*_half_rate(c)[:2], c.gamma_d_gamma - sign * epsilon), _rate
        )

    def divergence(self, x: Tensor, t) -> Tensor:
        r"""Divergence of the velocity [1/t]; shape ``batch``.

        .. math:: \nabla\cdot b = \sum_k r_k \operatorname{tr}(\tfrac12\dot C_k C_k^{-1})
                  + \sum_k r_k (s_k - s)\cdot(b_k - b)
        """

        def measure(p: _Posterior) -> Tensor:
            share, pairs, rate = p.share, self._pairs, _half_rate(p.c)
            trace = (share * pairs.trace(_squares(p.c), rate)).sum(0)
            if len(share) == 1:
                return trace
            velocity = pairs.mean(*_rate(p.c)) + pairs.spread(p.solved, rate)
            score = pairs.spread(p.solved, (0.0, 0.0, -1.0))
            apart = [field - (share[..., None] * field).sum(0) for field in (velocity, score)]
            return trace + (share * (apart[0] * apart[1]).sum(-1)).sum(0)

        return self._measured(x, t, measure)

    # -- laws --------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, t) -> Tensor:
        """Log-density [nats] of x_t at ``x``; shape ``batch``."""
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        return self._measured(x, t, lambda p: torch.logsumexp(p.logits, 0) - constant)

    def marginal(self, t: float) -> Denoiser:
        """The law of x_t; at t = 0 and 1 the laws of the ends themselves."""
        c, pairs = self.path(float(t)), self._pairs
        if c.gamma == 0 and (c.a, c.b) in ((1.0, 0.0), (0.0, 1.0)):
            return self.source if c.a else self.target
        means = pairs.mean(c.a, c.b)[:, 0].reshape(-1, *self.event_shape)
        if len(means) > 1:
            law = Mixture(pairs.log_weights[:, 0].softmax(0), means, pairs.covs(_squares(c)))
        elif getattr(pairs, "basis", None) is not None:
            level = pairs.combined(_squares(c)).expand(1, 1, self.dim)
            law = Gaussian.low_rank(means[0], pairs.basis[0], level[0, 0])
        else:
            law = Gaussian(means[0], pairs.covs(_squares(c))[0])
        return law.to(self.dtype)

    def interpolate(self, x0: Tensor, x1: Tensor, t: float, noise: Tensor) -> Tensor:
        """The state x_t of one draw from each end and standard normals ``noise``, all like x."""
        c = self.path(float(t))
        return c.a * x0 + c.b * x1 + c.gamma * noise

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        r"""Exact transport of ``x`` along the velocity from time ``t`` to ``s``, either direction.

        Between Gaussians whose covariances commute each common mode is stretched on its own,

        .. math:: x_s = m_s + C_s^{1/2} C_t^{-1/2} (x_t - m_t)

        Raises:
            NotImplementedError: with the reason, where no closed form exists.
            ValueError: a start at which a direction has no variance.
        """
        if len(self._pairs.log_weights) > 1:
            raise NotImplementedError(
                "an interpolant of mixtures has no closed-form flow; only one between two "
                "Gaussians has. Integrate its velocity in t instead."
            )
        if not isinstance(self._pairs, ModalPairs):
            raise NotImplementedError(
                "the covariances of source and target do not commute, so the velocity's matrices "
                "at different times do not either and its flow has no closed form. Integrate the "
                "velocity in t instead."
            )
        pairs, start, end = self._pairs, self.path(float(t)), self.path(float(s))
        before = pairs.combined(_squares(start))
        if bool((before < LEAST).any()):
            raise ValueError(_no_density(float(t), start.gamma))
        stretch = (pairs.combined(_squares(end)) / before).sqrt()
        moved = pairs.stretched(self._flatten(x) - pairs.mean(start.a, start.b), stretch)
        return (pairs.mean(end.a, end.b) + moved).reshape(x.shape).to(x.dtype)

    # -- inside ------------------------------------------------------------------------------

    def _field(self, x: Tensor, t, spread: Callable, means: Callable | None = None) -> Tensor:
        """Average over the pairs of ``m0 mu_0 + m1 mu_1 + (k0 C_0 + k1 C_1 + k2 I) C^-1 (x - m)``.

        ``spread`` and ``means`` give (k0, k1, k2) and (m0, m1) from the coefficients.
        """

        def measure(p: _Posterior) -> Tensor:
            k, share, pairs = spread(p.c), p.share, self._pairs
            if p.solved is None:
                gain = share * (pairs.combined(k) / pairs.combined(_squares(p.c)))[:, 0]
                field = gain.sum(0)[:, None] * p.x - gain.T @ pairs.mean(p.c.a, p.c.b)[:, 0]
            else:
                field = (share[..., None] * pairs.spread(p.solved, k)).sum(0)
            if means is not None:
                for weight, centres in zip(means(p.c), pairs.means, strict=True):
                    field = field + weight * (share.T @ centres)
            return field

        return self._measured(x, t, measure, whole=False).reshape(x.shape)

    def _measured(self, x: Tensor, t, measure: Callable, whole: bool = True) -> Tensor:
        """``measure`` of the posterior over pairs, a piece of the batch at a time: bounded memory.

        Without ``whole`` it may lack ``solved``, a vector for each pair and state: isotropic
        components do without it at most times (20 times faster for a thousand points).
        """
        flat, c, pairs = self._flatten(x), self._coefficients(x, t), self._pairs
        quick = not whole and isinstance(c.a, float) and pairs.expands(c.a, c.b, _squares(c))
        rows = max(1, BLOCK // (len(pairs.log_weights) * (1 if quick else pairs.numbers)))
        pieces = []
        for i in range(0, max(1, len(flat)), rows):
            part = c if isinstance(c.a, float) else c.map(lambda v, i=i: v[i : i + rows])
            pieces.append(measure(self._posterior(flat[i : i + rows], part, t, quick)))
        out = torch.cat(pieces).to(x.dtype)
        return out.reshape(self._batch(x) + out.shape[1:])

    def _posterior(self, x: Tensor, c: PathCoefficients, t, quick: bool) -> _Posterior:
        pairs, q, solved = self._pairs, _squares(c), None
        if quick:
            energy = pairs.energies(x, c.a, c.b, q)
        else:
            solved, energy, singular = pairs.solve(x - pairs.mean(c.a, c.b), q)
            if singular.device.type == "cpu" and bool(singular.any()):  # on the host only
                times = torch.as_tensor(t, dtype=torch.float64).flatten()
                nearest = times[torch.minimum(times, 1 - times).argmin()].item()
                raise ValueError(_no_density(nearest, self.path(nearest).gamma))
        logits = pairs.log_weights - 0.5 * energy
        return _Posterior(x, c, logits, torch.softmax(logits, 0), solved)

    def _batch(self, x: Tensor) -> torch.Size:
        return x.shape[: x.ndim - len(self.event_shape)]

    def _flatten(self, x: Tensor) -> Tensor:
        """States as (n, d) float64; checked."""
        return self.source._flat(x).double()

    def _coefficients(self, x: Tensor, t) -> PathCoefficients:
        """Floats for one time; (n, 1) float64 for one time per sample."""
        times = self.path.times(t)
        if times.numel() == 1 and times.device.type == "cpu":
            return self.path(times.item())
        batch = self._batch(x)
        if times.numel() != 1 and times.shape != batch:
            raise ValueError(
                f"t has shape {tuple(times.shape)}; it must be a number or one time per sample, "
                f"{tuple(batch)}."
            )
        times = times.to(x.device).expand(batch) if times.numel() == 1 else times.to(x.device)
        return self.path.at(times.reshape(-1, 1))

    def _epsilon(self, epsilon, x: Tensor) -> float | Tensor:
        """A number, or a tensor that broadcasts against ``x``; checked."""
        values = torch.as_tensor(epsilon, dtype=torch.float64)
        if values.device.type == "cpu":
            bad = values[~((values >= 0) & (values < math.inf))]
            if bad.numel():
                raise ValueError(
                    f"epsilon was {bad[0].item():g}; it must be finite and at least 0."
                )
        if values.numel() == 1:
            return values.item()
        batch = self._batch(x)
        if values.shape != batch:
            raise ValueError(
                f"epsilon has shape {tuple(values.shape)}; it must be a number or one value per "
                f"sample, {tuple(batch)}."
            )
        return values.to(x).reshape(*batch, *(1,) * len(self.event_shape))

    def __repr__(self) -> str:
        return f"Interpolant({self.path!r}, {self.source!r}, {self.target!r})"


def _rate(c: PathCoefficients) -> tuple:
    """Weights of the ends' means in the derivative of the mean of x_t."""
    return c.d_a, c.d_b


def _half_rate(c: PathCoefficients) -> tuple:
    """Weights of C_0, C_1 and I in half the derivative of the covariance of x_t."""
    return c.a * c.d_a, c.b * c.d_b, c.gamma_d_gamma


@dataclass(frozen=True)
class _Posterior:
    """What the states ``x`` (n, d) say of the pairs: logits and shares (K, n), ``C^-1 (x - m)``."""

    x: Tensor
    c: PathCoefficients
    logits: Tensor
    share: Tensor
    solved: Tensor | None  # None where the shares are found without it


def _squares(c: PathCoefficients) -> tuple:
    """Weights of C_0, C_1 and I in the covariance of x_t."""
    return c.a * c.a, c.b * c.b, c.gamma * c.gamma


def _no_density(t: float, gamma: float) -> str:
    return (
        f"t was {t:g}, where x_t has no density: gamma is {gamma:g} and a component has a "
        "direction without variance, so that score, velocity and log-density do not exist. "
        "Ask strictly between 0 and 1; where neither end has variance, on a path with gamma."
    )
