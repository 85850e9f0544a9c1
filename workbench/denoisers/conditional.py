r"""Data in classes: every class a denoiser, all together the unconditional one; guidance to one.

With :math:`p_c(x)` the noised density of class c and :math:`r_c = w_c p_c / \sum_k w_k p_k` its
posterior probability,

.. math:: D = \sum_c r_c D_c,\qquad s = \sum_c r_c s_c,\qquad
          J = \sum_c r_c \left[J_c + (D_c - D)(s_c - s)^\top\right].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import finite, floating, probabilities
from workbench.denoisers.compose import Composite
from workbench.denoisers.empirical import Empirical
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.level import Level, any_zero, combining, per_sample
from workbench.denoisers.mixture import Mixture
from workbench.params import Param

KINDS = {"Gaussian": Gaussian, "Mixture": Mixture, "Empirical": Empirical}
Kind = Annotated[
    Literal["Gaussian", "Mixture", "Empirical"], Param("what each class is modelled by")
]


class Conditional(Composite):
    r"""Data in classes. Itself the mixture over them; ``given(label)`` is one class's denoiser.

    Args:
        classes: a denoiser for each label; of a sequence the labels are 0, 1, ...
        weights: probabilities (K,) of the classes, in their order, or by label; None: all equal.
        label: the class this object stands for; None: the mixture of all of them. The others are
            kept: ``given`` and ``guided`` know them.
        each: whether a study asks for one class after the other, seed by seed.

    Raises:
        TypeError: a class that is not a denoiser, or classes of several dtypes.
        ValueError: no classes, several event shapes, weights that do not sum to one or whose
            labels are not those of the classes, an unknown label.

    Attributes:
        classes: the denoisers by label.
        labels: in the order of the columns of ``classify``.
    """

    def __init__(
        self,
        classes: Mapping[Hashable, Denoiser] | Sequence[Denoiser],
        weights=None,
        label: Hashable | None = None,
        each: bool = False,
    ) -> None:
        classes = dict(classes if isinstance(classes, Mapping) else enumerate(classes))
        if not classes:
            raise ValueError("classes was empty; give one denoiser for each class.")
        self._consist_of({f"class {name!r}": member for name, member in classes.items()})
        self.classes, self.labels, self.label = classes, tuple(classes), label
        self.each = each
        self._weights = self._prior = self._checked(weights)
        if label is not None:
            self.given(label)
            chosen = [float(name == label) for name in self.labels]
            self._prior = torch.tensor(chosen, dtype=torch.float64, device=self.device)
        # Responsibilities are differences of large log-densities: they are formed in float64.
        self._members = [
            (k, member, member.to(torch.float64) if self.dtype != torch.float64 else member)
            for k, member in enumerate(classes.values())
            if self._prior[k] > 0
        ]
        self._least = 1e-8 * (self.std or 1.0)  # stands in for sigma = 0, where a class is points

    def _checked(self, weights) -> Tensor:
        """Weights as float64 (K,), in the order of the labels, summing to one."""
        k = len(self.classes)
        if weights is None:
            return torch.full((k,), 1.0 / k, dtype=torch.float64, device=self.device)
        if isinstance(weights, Mapping):
            if set(weights) != set(self.labels):
                raise ValueError(
                    f"weights has the labels {_listed(weights)} and classes {_listed(self.labels)};"
                    " give one weight for each class."
                )
            weights = [float(weights[name]) for name in self.labels]
        if not hasattr(weights, "dtype"):
            weights = torch.tensor(list(weights), dtype=torch.float64)
        weights = probabilities(finite("weights", floating("weights", weights)), k, "classes")
        return (weights.double() / weights.double().sum()).to(self.device)

    @classmethod
    def from_data(
        cls,
        data,
        kind: Kind = "Gaussian",
        components: Annotated[
            int, Param("Gaussians of each class's mixture, where k-means puts them", ge=1, le=64)
        ] = 3,
        each: Annotated[
            bool, Param("ask for one class after the other: seed s for class s modulo their number")
        ] = False,
        **options,
    ) -> Conditional:
        """One denoiser for each label of a data set, weighted by its share of the points.

        Args:
            data: a labelled data set.
            options: further arguments of that kind's ``from_data``.

        Raises:
            ValueError: data without labels, an unknown kind.
        """
        if data.labels is None:
            raise ValueError(
                f"{data.name} has no labels, so it has no classes; choose denoiser Gaussian or "
                "Empirical."
            )
        if kind not in KINDS:
            raise ValueError(f"kind was {kind!r}; it must be one of {_listed(KINDS)}.")
        classes, counts = {}, []
        for label in data.labels.unique().tolist():
            points = data.points[data.labels == label]
            groups = _clusters(points, components) if kind == "Mixture" else None
            own = dataclasses.replace(data, points=points, labels=groups, law=None)
            classes[label] = KINDS[kind].from_data(own, **options)
            counts.append(len(points))
        counts = torch.tensor(counts, dtype=torch.float64)
        return cls(classes, counts / counts.sum(), each=each)

    @property
    def weights(self) -> Tensor:
        """Probabilities (K,) of the classes, in the order of ``labels``."""
        return self._weights.to(self.dtype)

    def given(self, label: Hashable) -> Denoiser:
        """The denoiser of one class. ``ValueError`` if there is no such class."""
        label = label.item() if isinstance(label, Tensor) else label
        if label not in self.classes:
            raise ValueError(f"label was {label!r}; the classes are {_listed(self.labels)}.")
        return self.classes[label]

    def guided(self, label: Hashable, weight: float) -> Guided:
        """Classifier-free guidance towards one class: (1 + weight) D_label - weight D."""
        return Guided(self, label, weight)

    @property
    def mean(self) -> Tensor:
        return sum(self._prior[k] * exact.mean for k, _, exact in self._members).to(self.dtype)

    @property
    def std(self) -> float:
        mean, variance = self.mean.double(), 0.0
        for k, _, exact in self._members:
            centred = (exact.mean - mean).square().mean().item()
            variance += self._prior[k].item() * (exact.std**2 + centred)
        return math.sqrt(variance)

    def noised(self, alpha, sigma) -> Conditional:
        return self._changed(lambda member: member.noised(alpha, sigma))

    def _changed(self, change: Callable[[Denoiser], Denoiser]) -> Conditional:
        classes = {name: change(member) for name, member in self.classes.items()}
        return Conditional(classes, self._weights, self.label, self.each)

    def __repr__(self) -> str:
        first = next(iter(self.classes.values()))
        chosen = "" if self.label is None else f", label {self.label!r}"
        return f"Conditional({len(self.labels)} classes like {first!r}{chosen})"


class Guided(Composite):
    r"""Classifier-free guidance with exact parts: :math:`(1 + w) D_c - w D`.

    Its score is that of :math:`p_c^{1+w} p^{-w}` formed *at each noise level*, which is not the
    noised version of any one law: samples do not follow :math:`p_c^{1+w} p^{-w}` of the data.

    Source: Ho & Salimans 2022, arXiv:2207.12598.
    """

    def __init__(self, whole: Conditional, label: Hashable, weight: float) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"weight was {weight!r}; it must be finite, 0 for no guidance.")
        self.whole, self.label, self.weight = whole, label, float(weight)
        self.part = whole.given(label)
        self._consist_of({"whole": whole})
        caveat = (
            f"Guidance towards {label!r} with weight {weight:g}: at each noise level the score is "
            "that of p_label^(1 + w) p^-w, exactly, but these are not the noised versions of one "
            "law; only at sigma = 0 is it the power of the data's own densities.",
        )
        self.notes = (caveat if weight else ()) + self.notes

    @classmethod
    def from_data(
        cls,
        data,
        label: Annotated[int, Param("the class that is guided towards", ge=0)] = 0,
        weight: Annotated[float, Param("strength w of the guidance; 0 is none")] = 1.0,
        kind: Kind = "Gaussian",
    ) -> Guided:
        """Guidance towards one label of a labelled data set, see ``Conditional.from_data``."""
        return cls(Conditional.from_data(data, kind), label, weight)

    @property
    def mean(self) -> Tensor:
        """What it answers at pure noise, (1 + w) m_c - w m; shape ``event``."""
        return (1 + self.weight) * self.part.mean - self.weight * self.whole.mean

    @property
    def std(self) -> float:
        return self.part.std

    def _level(self, alpha, sigma) -> Level:
        return GuidedLevel(self, alpha, sigma)

    def _changed(self, change: Callable[[Denoiser], Denoiser]) -> Guided:
        return Guided(change(self.whole), self.label, self.weight)

    def __repr__(self) -> str:
        return f"Guided({self.whole!r} towards {self.label!r}, weight {self.weight:g})"


class ConditionalLevel(Level):
    """Classes at one noise level; what is asked of all of them runs along a first axis of classes.

    Attributes:
        members: the level of each class that has a weight.
        exact: those of the same classes in float64, for the log-densities.
    """

    def __init__(self, denoiser: Conditional, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        self.members = [member._level(alpha, sigma) for _, member, _ in denoiser._members]
        self.prior = denoiser._prior[[k for k, _, _ in denoiser._members], None]

    @cached_property
    def exact(self) -> list[Level]:
        pair = _double(self.alpha), _double(self.sigma)
        return [exact._level(*pair) for _, _, exact in self.denoiser._members]

    def _log_shares(self, x: Tensor, levels: list[Level]) -> Tensor:
        """log(w_c p_c(x)), (members, n), float64."""
        return self.prior.log() + torch.stack([m._log_prob(x.double()) for m in levels])

    def _shares(self, x: Tensor) -> Tensor:
        """Posterior probabilities (members, n), float64; the limit from above at sigma = 0."""
        alpha, sigma = _double(self.alpha), _double(self.sigma)
        prior = self.prior.expand(-1, len(x))
        silent = alpha == 0 if isinstance(alpha, float) else (alpha == 0).all(-1)
        if silent is True or len(self.members) == 1:  # pure noise says nothing of the class
            return prior
        least, levels = self.denoiser._least * alpha, self.exact
        if any_zero(sigma) or (torch.as_tensor(sigma < least)).any():
            if isinstance(sigma, float) and isinstance(alpha, float):
                sigma = max(sigma, least)
            else:
                sigma = torch.maximum(*(torch.as_tensor(c).to(prior) for c in (sigma, least)))
            levels = [exact._level(alpha, sigma) for _, _, exact in self.denoiser._members]
        shares = torch.softmax(self._log_shares(x, levels), 0)
        return shares if isinstance(alpha, float) else torch.where(silent, prior, shares)

    def _mixed(self, shares: Tensor, name: str, *given) -> tuple[list, Tensor]:
        """What each class answers, and its mean over the posterior; the latter in float64."""
        parts = [getattr(member, name)(*given) for member in self.members]
        mixed = 0.0
        for share, part in zip(shares, parts, strict=True):
            mixed = mixed + share.reshape(-1, *(1,) * (part.ndim - 1)) * part
        return parts, mixed

    def _classify(self, x: Tensor) -> Tensor:
        denoiser, shares = self.denoiser, self._shares(x).T.to(x.dtype)
        out = x.new_zeros(len(x), len(denoiser.labels))
        out[:, [k for k, _, _ in denoiser._members]] = shares
        return out

    def _denoised(self, x: Tensor) -> Tensor:
        return self._mixed(self._shares(x), "_denoised", x)[1].to(x.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self._log_shares(x, self.exact).logsumexp(0).to(x.dtype)

    def _score(self, x: Tensor) -> Tensor:
        return self._mixed(self._shares(x), "_score", x)[1].to(x.dtype)

    def _second(self, x: Tensor, name: str, left: str, right: str) -> Tensor:
        """sum_c r_c [name_c + (left_c - left)(right_c - right)^T], (n, d, d)."""
        shares, between = self._shares(x), 0.0
        one = self._mixed(shares, left, x)
        other = one if right == left else self._mixed(shares, right, x)
        for share, a, b in zip(shares, one[0], other[0], strict=True):
            between = between + torch.einsum("n,ni,nj->nij", share, a - one[1], b - other[1])
        return (self._mixed(shares, name, x)[1] + between).to(x.dtype)

    def _jacobian(self, x: Tensor) -> Tensor:
        return self._second(x, "_jacobian", "_denoised", "_score")

    def _hessian(self, x: Tensor) -> Tensor:
        return self._second(x, "_hessian", "_score", "_score")

    def _posterior_cov(self, x: Tensor) -> Tensor:
        return self._second(x, "_posterior_cov", "_denoised", "_denoised")

    def _divergence(self, x: Tensor) -> Tensor:
        shares = self._shares(x)
        denoised, mean = self._mixed(shares, "_denoised", x)
        scores, score = self._mixed(shares, "_score", x)
        total = self._mixed(shares, "_divergence", x)[1]
        for share, d, s in zip(shares, denoised, scores, strict=True):
            total = total + share * ((d - mean) * (s - score)).sum(-1)
        return total.to(x.dtype)

    def _rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        shares = self._shares(x)
        denoised, mean = self._mixed(shares, "_denoised", x)
        total = self._mixed(shares, "_rate", x, d_alpha, d_sigma)[1]
        pairs = zip(self.members, denoised, strict=True)
        growth = torch.stack([_log_density_rate(m, x, d, d_alpha, d_sigma) for m, d in pairs])
        growth = growth - (shares * growth).sum(0)  # of log r_c
        for share, grows, d in zip(shares, growth, denoised, strict=True):
            total = total + (share * grows)[:, None] * (d - mean)
        return total.to(x.dtype)


def _log_density_rate(member: Level, x: Tensor, denoised: Tensor, d_alpha, d_sigma) -> Tensor:
    r"""Rate of the log-density of ``alpha x0 + sigma eps`` at fixed x, (n,).

    The continuity equation of :math:`\dot x = \dot\alpha x_0 + \dot\sigma\epsilon` averaged over
    the posterior: :math:`-\dot\alpha(\nabla\cdot D + D\cdot s) + \dot\sigma\sigma(\nabla\cdot s +
    |s|^2)`, per coordinate where the coefficients are.
    """
    alpha, sigma = member.alpha, member.sigma
    score = member._score(x)
    if all(map(per_sample, (alpha, sigma, d_alpha, d_sigma))):
        inner = member._divergence(x)[:, None] / x.shape[1]  # its mean is enough
    else:
        inner = member._jacobian(x).diagonal(dim1=1, dim2=2)
    signal = inner + denoised * score
    least = torch.finfo(torch.float64).tiny  # at sigma = 0 a density does not change with sigma
    safe = sigma.clamp_min(least) if isinstance(sigma, Tensor) else max(sigma, least)
    noise = torch.where(
        torch.as_tensor(sigma > 0, device=x.device),
        (alpha * inner - 1) / safe + sigma * score.square(),
        torch.zeros_like(x),
    )
    return (d_sigma * noise - d_alpha * signal).expand_as(x).sum(-1)


@combining("_denoised", "_score", "_jacobian", "_divergence", "_hessian", "_rate")
class GuidedLevel(Level):
    """Guidance at one noise level: every answer is the combination of those of the parts."""

    def __init__(self, denoiser: Guided, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        self.part, self.whole = (d._level(alpha, sigma) for d in (denoiser.part, denoiser.whole))

    def _answer(self, name: str, *given) -> Tensor:
        towards = getattr(self.part, name)(*given)
        return towards + self.denoiser.weight * (towards - getattr(self.whole, name)(*given))

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError(
            "Guided has no log-density: its score is that of a power of densities whose integral "
            "is not known."
        )

    def _posterior_cov(self, x: Tensor) -> Tensor:
        raise NotImplementedError(
            "a guided score is not that of noised data, so nothing has this posterior covariance."
        )


def _double(value):
    return value.double() if isinstance(value, Tensor) else value


def _listed(labels) -> str:
    return ", ".join(map(repr, labels))


def _clusters(points: Tensor, count: int) -> Tensor:
    """A cluster for each point, by k-means from a fixed start: the same on every machine."""
    from scipy.cluster.vq import kmeans2

    flat = points.flatten(1).double().cpu().numpy()
    _, found = kmeans2(flat, min(count, len(flat)), minit="++", seed=0)
    return torch.from_numpy(found).long().to(points.device)


Conditional._kind = ConditionalLevel
