r"""Mixtures of Gaussians, :math:`x_0 \sim \sum_k w_k N(\mu_k, C_k)`: the score is exact.

At noise :math:`(\alpha, \sigma)` a component is :math:`N(\alpha\mu_k, \alpha^2 C_k + \sigma^2 I)`;
the posterior mean is the responsibility-weighted sum of the components' own
(:mod:`~workbench.denoisers.posterior`). Responsibilities go through a softmax of log-densities, so
that points far from every mode are as safe as points near one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import check_placement, finite, floating, orthonormal, probabilities
from workbench.denoisers.components import Components, Noisy
from workbench.denoisers.fitting import by_class, eigh, non_negative
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.level import Level, any_zero, per_sample, some
from workbench.denoisers.posterior import Each, Fields, Softmaxes, Turned, lowest, softmaxes, table

#: Numbers one intermediate may hold before the batch is worked through in pieces (8 MB: a cache).
BLOCK = 1 << 20
#: The same on a device of its own.
LARGE = 1 << 28
#: Answers that take a matrix of each component.
MATRICES = ("jacobian", "hessian", "posterior_cov")


class Mixture(Denoiser):
    """A mixture of K Gaussians with isotropic, diagonal, full or low-rank covariances.

    Args:
        weights: (K,), non-negative, summing to one. A component without weight is not there.
        means: (K, *event), d elements each.
        covs: (K,) variances, (K, d) diagonals or (K, d, d) matrices [x²].

    Raises:
        ValueError: weights that do not sum to one, a covariance that is not positive semi-definite,
            wrong shapes, numbers that are not finite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        weights, means = _checked(weights, means)
        covs = finite("covs", floating("covs", covs, like=means))
        k, d = len(means), means[0].numel()
        if covs.shape not in ((k,), (k, d), (k, d, d)):
            raise ValueError(
                f"covs has shape {tuple(covs.shape)}; for {k} means of {d} numbers it must be "
                f"({k},), ({k}, {d}) or ({k}, {d}, {d})."
            )
        variances, basis, notes = covs.double().reshape(k, -1), None, ()
        if covs.ndim == 3:
            variances, basis, notes = eigh(covs)
        non_negative(variances, " of covs")
        self._set(weights, means, basis, variances, None, notes)
        self.covs = covs
        self._stamp("weights", "means", "covs")

    def _set(self, weights, means, basis, variances, rest, notes) -> None:
        self.weights, self.means = weights, means
        self.event_shape, self.dtype, self.device = means.shape[1:], means.dtype, means.device
        modes = (None if t is None else t.to(self.device) for t in (basis, variances, rest))
        self._all = Components(means.flatten(1), *modes)
        there = (weights > 0).nonzero()[:, 0]
        absent = len(weights) - len(there)
        self._there = there if absent else None
        self._parts = self._all.some(there) if absent else self._all
        exact = weights.double() / weights.double().sum()
        self._log_weights = self._parts.log_weights = exact[there].log()
        silent = f"{absent} of {len(weights)} components have weight 0 and are not there."
        self.notes = tuple(dict.fromkeys([*notes, silent] if absent else notes))
        self._stamp("weights", "means")

    def _derive(self) -> None:
        if "covs" in vars(self):
            self.__init__(self.weights, self.means, self.covs)
        else:
            parts = self._all
            given = parts.basis, parts.variances, parts.rest, self.notes
            self._set(self.weights, self.means, *given)

    @classmethod
    def _make(cls, weights, means, basis, variances, rest=None, notes=()) -> Mixture:
        """From modes, as of ``Components``, already checked."""
        mixture = Mixture.__new__(Mixture)
        mixture._set(weights, means, basis, variances, rest, notes)
        return mixture

    @classmethod
    def low_rank(
        cls, weights: Tensor, means: Tensor, bases: Tensor, variances: Tensor, rest=0.0
    ) -> Mixture:
        """Components of ``variances`` (K, r) along the orthonormal columns of ``bases`` (K, d, r).

        ``rest`` is their variance in every direction orthogonal to those, a number or one for each
        component (K,); 0: none.

        Raises:
            ValueError: as the constructor, and columns that are not orthonormal.
        """
        weights, means = _checked(weights, means)
        bases, variances, rest = (
            finite(name, floating(name, value, like=means))
            for name, value in (("bases", bases), ("variances", variances), ("rest", rest))
        )
        k, d = len(means), means[0].numel()
        if bases.ndim != 3 or bases.shape[:2] != (k, d) or variances.shape != (k, bases.shape[2]):
            raise ValueError(
                f"bases has shape {tuple(bases.shape)} and variances {tuple(variances.shape)}; for "
                f"{k} means of {d} numbers they must be ({k}, {d}, r) and ({k}, r)."
            )
        if rest.shape not in ((), (k,)):
            raise ValueError(
                f"rest has shape {tuple(rest.shape)}; it must be a number or one for each of the "
                f"{k} components."
            )
        non_negative(variances, " of variances")
        non_negative(rest, " of rest")
        basis = orthonormal("bases", bases)
        complete = bases.shape[2] == d
        rest = None if complete else rest.double().expand(k)[:, None]
        return cls._make(weights, means, basis, variances.double(), rest)

    @classmethod
    def fit(
        cls,
        points: Tensor,
        labels: Tensor,
        covariance: str = "full",
        shrinkage: float | str | None = None,
    ) -> Mixture:
        """One Gaussian fitted to each class of ``points``, in ascending order of their labels.

        Args:
            points: finite numbers (N, *event).
            labels: (N,) whole numbers.
            covariance: "full", "diagonal" or "isotropic".
            shrinkage: of each class's covariance, as in ``Gaussian.fit``.

        Raises:
            ValueError: another covariance, labels that are not one whole number per point, numbers
                that are not finite.
        """
        fitted = by_class(points, labels, covariance, shrinkage)
        means = fitted.means.reshape(-1, *points.shape[1:])
        weights, means = (value.to(points.dtype) for value in (fitted.weights, means))
        return cls._make(weights, means, fitted.basis, fitted.variances, None, fitted.notes)

    @classmethod
    def from_data(cls, data) -> Mixture:
        """The data's own law where it is a mixture, otherwise one Gaussian fitted to each class."""
        if isinstance(data.law, Mixture):
            return data.law
        if isinstance(data.law, Gaussian):
            one, law = data.law.mean.new_ones(1), data.law
            return cls(one, law.mean[None], law.cov[None])
        if data.labels is None:
            raise ValueError(
                f"{data.name} is neither a mixture nor labelled, so no mixture can be made of it; "
                "choose denoiser Gaussian or Empirical."
            )
        return cls.fit(data.points, data.labels)

    # -- the law -----------------------------------------------------------------------------

    @cached_property
    def covs(self) -> Tensor:
        """Variances (K,), diagonals (K, d) or matrices (K, d, d) of the components."""
        parts = self._all
        if parts.basis is not None:
            return parts.covs.to(self.dtype)
        isotropic = parts.variances.shape[1] == 1
        return (parts.variances[:, 0] if isotropic else parts.variances).to(self.dtype)

    @property
    def mean(self) -> Tensor:
        return torch.tensordot(self.weights, self.means, 1)

    @property
    def std(self) -> float:
        weights, means = self.weights.double(), self._all.means
        between = (means - weights @ means).square().sum(1)
        within = self._all.mode_variances().sum(1)
        return math.sqrt(((within + between) @ weights).item() / self.dim)

    def noised(self, alpha, sigma) -> Mixture:
        alpha, sigma = self._levels(alpha, sigma)
        means = (alpha * self.means.flatten(1)).reshape(self.means.shape).to(self.dtype)
        parts = self._all
        alike = isinstance(alpha, float) and isinstance(sigma, float)
        if parts.basis is None or alike:
            a2, s2 = alpha * alpha, sigma * sigma
            rest = None if parts.rest is None else a2 * parts.rest + s2
            return self._like(means, parts.basis, a2 * parts.variances + s2, rest)
        a, s = (torch.as_tensor(c).to(parts.means).expand(self.dim) for c in (alpha, sigma))
        variances, basis, notes = eigh(a[:, None] * parts.covs * a + torch.diag(s * s))
        return self._like(means, basis, variances, None, notes)

    def transformed(self, matrix: Tensor) -> Mixture:
        """The mixture of the coefficients ``matrix^T flatten(x0)``, in the same event shape.

        Its covariances are diagonal where ``matrix`` (d, d) diagonalises all of them to rounding.
        """
        exact, parts = self._rotation(matrix), self._all
        means = (parts.means @ exact).reshape(self.means.shape).to(self.dtype)
        if parts.basis is None and parts.variances.shape[1] == 1:
            return self._like(means, None, parts.variances, None)
        axes = torch.eye(self.dim).to(exact) if parts.basis is None else parts.basis
        turned = (exact.T @ axes).expand(len(means), -1, -1)
        share = turned.square()
        variances = (share @ parts.variances[..., None])[..., 0]
        if parts.rest is not None:
            variances = variances + (1 - share.sum(-1)).clamp_min(0) * parts.rest
        mixed = Components(parts.means, turned, parts.variances, parts.rest).covs
        mixed.diagonal(dim1=1, dim2=2).zero_()
        coarsest = max(torch.finfo(t).eps for t in (torch.as_tensor(matrix).dtype, self.dtype))
        if bool((mixed.abs().amax((1, 2)) <= 1e3 * coarsest * variances.amax(1)).all()):
            return self._like(means, None, variances, None)
        return self._like(means, turned, parts.variances, parts.rest)

    def translated(self, offset: Tensor) -> Mixture:
        parts = self._all
        return self._like(self.means + offset, parts.basis, parts.variances, parts.rest)

    def _like(self, means, basis, variances, rest, notes=()) -> Mixture:
        return Mixture._make(self.weights, means, basis, variances, rest, (*self.notes, *notes))

    def softmaxes(self, levels: Sequence[tuple[float, float]], like: Tensor) -> Softmaxes | None:
        self._refresh()
        self._flat(like)
        k, most = self._parts.count, BLOCK if like.device.type == "cpu" else LARGE
        small = len(like) * k <= most and len(levels) * k * (self.dim + 1) <= BLOCK
        return softmaxes(self._parts, self.dtype, levels) if small else None

    def to(self, dtype: torch.dtype | None = None, device=None) -> Mixture:
        check_placement(dtype, device)
        dtype, device = dtype or self.dtype, device or self.device
        if dtype == self.dtype and torch.device(device) == self.device:
            return self
        weights = (self.weights.double() / self.weights.double().sum()).to(device, dtype)
        parts, means = self._all, self.means.to(device, dtype)
        return Mixture._make(weights, means, parts.basis, parts.variances, parts.rest, self.notes)

    def __repr__(self) -> str:
        parts, kind = self._all, "isotropic"
        if parts.basis is not None:
            kind = "full" if parts.rest is None else f"rank-{parts.variances.shape[1]}"
        elif parts.variances.shape[1] > 1:
            kind = "diagonal"
        return f"Mixture({len(self.means)} {kind} components in {self.dim} dimensions)"


class MixtureLevel(Level):
    """A mixture of Gaussians at one noise level.

    What :func:`~workbench.denoisers.posterior.table` gives by matrix products is asked there, all
    else (and what would cancel there) of the components' fields.
    """

    def __init__(self, denoiser: Mixture, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        self.parts, self._tables = denoiser._parts, {}
        self.floor = lowest(self.parts, alpha)

    @cached_property
    def _noisy(self) -> Noisy:
        return self.parts.at(self.alpha, self.sigma, floor=self.floor)

    def _table(self, exact: bool = False):
        if exact not in self._tables:
            law = self.denoiser
            given = (law.dtype, self.alpha, self.sigma, self.floor, exact)
            self._tables[exact] = table(self.parts, law._log_weights, *given)
        return self._tables[exact]

    # -- flat states -------------------------------------------------------------------------

    def _denoised(self, x: Tensor) -> Tensor:
        if isinstance(self.alpha, float) and self.alpha == 0.0:  # nothing is said of the component
            return self.denoiser.mean.flatten().expand_as(x).clone()
        return self._ask("denoised", x)

    def _log_prob(self, x: Tensor) -> Tensor:
        self._check_regular("density")
        return self._ask("log_density", x)

    def _score(self, x: Tensor) -> Tensor:
        self._check_regular("score")
        return self._ask("score", x)

    def _classify(self, x: Tensor) -> Tensor:
        law, share = self.denoiser, self._ask("shares", x).contiguous()
        if law._there is None:
            return share
        return share.new_zeros(len(x), len(law.weights)).index_copy_(1, law._there, share)

    def _jacobian(self, x: Tensor) -> Tensor:
        return self._average("jacobian", x)

    def _divergence(self, x: Tensor) -> Tensor:
        out = self._ask("divergence", x)
        those = out.isnan().nonzero()[:, 0]  # where a table's terms would cancel
        if not len(those):
            return out
        return out.index_copy(0, those, self._rows(those)._average("divergence", x[those]))

    def _hessian(self, x: Tensor) -> Tensor:
        self._check_regular("score")
        return self._average("hessian", x)

    def _posterior_cov(self, x: Tensor) -> Tensor:
        return self._average("posterior_cov", x)

    def _rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        return self._average("rate", x, d_alpha, d_sigma)

    def _moving(self, x: Tensor, along: Tensor, d_alpha, d_sigma) -> Tensor:
        return self._average("moving", x, d_alpha, d_sigma, along=along)

    def _jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._moving(x, v, 0.0, 0.0)

    # -- inside ------------------------------------------------------------------------------

    def _check_regular(self, what: str) -> None:
        if any_zero(self.sigma) and self.parts.smallest == 0 and self._noisy.singular:
            raise ValueError(
                f"this {self._name} has no {what} at sigma = 0: a component has a "
                "direction without variance. Ask at sigma > 0."
            )

    def _ask(self, what: str, x: Tensor) -> Tensor:
        """Of the table if there is one, a piece of the batch at a time: bounded memory."""
        rule = self._table(exact=what in ("log_density", "divergence"))
        if rule is None or not hasattr(rule, what):
            return self._average(what, x)
        width = self.denoiser.dim if isinstance(rule, Turned) else 1
        rows = max(1, BLOCK // (self.parts.count * width))
        if len(x) > rows:
            starts = range(0, len(x), rows)
            pieces = (slice(start, start + rows) for start in starts)
            return torch.cat([self._rows(piece)._ask(what, x[piece]) for piece in pieces])
        answer = getattr(rule, what)(x)
        if isinstance(rule, Each) and bool((cancels := rule.cancels()).any()):
            those = cancels.expand(len(x)).nonzero()[:, 0]  # those samples alone by their fields
            answer = answer.index_copy(0, those, self._rows(those)._average(what, x[those]))
        return answer

    def _average(self, what: str, x: Tensor, *rates, along=None) -> Tensor:
        """An answer of the components' fields, a piece of the batch at a time."""
        given, width = (*self._pair, *rates), self.denoiser.dim
        shared = all(isinstance(c, float) or len(c) == 1 for c in given)
        mixed = what in MATRICES or not all(map(per_sample, given))
        if mixed and not shared and self.parts.basis is not None:  # a matrix for each sample
            width *= 2 * self.denoiser.dim
        rows = max(1, BLOCK // (self.parts.count * width))
        pieces = []
        for start in range(0, max(1, len(x)), rows):
            own = slice(start, start + rows)
            level, mine = self._rows(own), [some(rate, own) for rate in rates]
            noisy = level._noisy
            if mine and not all(map(per_sample, mine)):
                noisy = self.parts.at(*level._pair, *mine, floor=level.floor)
            answer = getattr(Fields(noisy, self.denoiser._log_weights, x[own]), what)
            mine += [] if along is None else [along[own]]
            pieces.append((answer(*mine) if callable(answer) else answer).to(x.dtype))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _checked(weights, means) -> tuple[Tensor, Tensor]:
    """Weights (K,) summing to one and means (K, *event), of one dtype."""
    means = finite("means", floating("means", means))
    if means.ndim < 2 or len(means) == 0:
        raise ValueError(f"means has shape {tuple(means.shape)}; it must be (K, *event).")
    weights = finite("weights", floating("weights", weights, like=means))
    return probabilities(weights, len(means), "means"), means


Mixture._kind = MixtureLevel
