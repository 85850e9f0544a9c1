r"""Mixtures of Gaussians, :math:`x_0 \sim \sum_k w_k N(\mu_k, C_k)`: the score is exact.

At noise :math:`(\alpha, \sigma)` a component is :math:`N(\alpha\mu_k, \alpha^2 C_k + \sigma^2 I)`;
the posterior mean is the responsibility-weighted sum of the components' own. Components run along
the *first* axis of every intermediate, where a softmax is fast, and responsibilities go through a
log-sum-exp, so that points far from every mode are as safe as points near one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser, finite, floating, per_sample
from workbench.denoisers.gaussian import Gaussian, eigh

__all__ = ["Mixture"]

#: Numbers one intermediate may hold before the batch is worked through in pieces (8 MB: a cache).
BLOCK = 1 << 20


class Mixture(Denoiser):
    """A mixture of K Gaussians with isotropic, diagonal or full covariances.

    Args:
        weights: (K,), non-negative, summing to one.
        means: (K, *event), d elements each.
        covs: (K,) variances, (K, d) diagonals or (K, d, d) matrices [x²].

    Raises:
        ValueError: weights that do not sum to one, a covariance that is not positive semi-definite,
            wrong shapes, numbers that are not finite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        means = finite("means", floating("means", means))
        if means.ndim < 2 or len(means) == 0:
            raise ValueError(f"means has shape {tuple(means.shape)}; it must be (K, *event).")
        weights = finite("weights", floating("weights", weights, like=means))
        covs = finite("covs", floating("covs", covs, like=means))
        k, d = len(means), means[0].numel()
        if weights.shape != (k,):
            raise ValueError(
                f"weights has shape {tuple(weights.shape)}; for {k} means it must be ({k},)."
            )
        if bool((weights < 0).any()):
            raise ValueError(
                f"a weight was {weights.min().item():.4g}; weights must be at least 0."
            )
        total = weights.double().sum().item()
        if abs(total - 1) > k * 1e3 * torch.finfo(weights.dtype).eps:
            raise ValueError(f"the weights sum to {total:.10g}; they must sum to 1.")
        if covs.shape not in ((k,), (k, d), (k, d, d)):
            raise ValueError(
                f"covs has shape {tuple(covs.shape)}; for {k} means of {d} numbers it must be "
                f"({k},), ({k}, {d}) or ({k}, {d}, {d})."
            )
        self.weights, self.means, self.covs = weights, means, covs
        self.event_shape, self.dtype, self.device = means.shape[1:], means.dtype, means.device
        self._flat = means.flatten(1)
        self._log_weights = (weights.double() / total).log()
        self._basis, self._variances = _modes(covs)
        self._square_norms = self._flat.double().square().sum(1, keepdim=True)
        self._radius = self._square_norms.max().sqrt().item()
        self._smallest = self._variances.min().item()
        self._equal = covs.ndim == 1 and bool((covs == covs[0]).all())

    @classmethod
    def from_data(cls, data) -> Mixture:
        """The data's own law where it is a mixture, otherwise one Gaussian fitted to each class."""
        if isinstance(data.law, Mixture):
            return data.law
        if isinstance(data.law, Gaussian):
            one = torch.ones(1, dtype=data.law.dtype)
            return cls(one, data.law.mean[None], data.law.cov[None])
        if data.labels is None:
            raise ValueError(
                f"{data.name} is neither a mixture nor labelled, so no mixture can be made of it; "
                "choose denoiser Gaussian or Empirical."
            )
        classes = data.labels.unique()
        groups = [data.points[data.labels == label].flatten(1).double() for label in classes]
        means = torch.stack([group.mean(0) for group in groups])
        covs = torch.stack(
            [(g - m).T @ (g - m) / len(g) for g, m in zip(groups, means, strict=True)]
        )
        weights = torch.tensor([len(group) for group in groups], dtype=torch.float64)
        shape = (len(classes), *data.points.shape[1:])
        dtype = data.points.dtype
        return cls(
            (weights / weights.sum()).to(dtype), means.reshape(shape).to(dtype), covs.to(dtype)
        )

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, shape ``event``."""
        return torch.tensordot(self.weights, self.means, 1)

    @property
    def std(self) -> float:
        weights, means = self.weights.double(), self._flat.double()
        trace = self._variances.expand(len(means), self.dim).sum(1)
        centred = (means - weights @ means).square().sum(1)
        return math.sqrt(((trace + centred) @ weights).item() / self.dim)

    def _denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        if isinstance(alpha, float) and alpha == 0.0:  # pure noise says nothing of the component
            return self.mean.flatten().expand_as(x).clone()
        return self._in_blocks(x, alpha, sigma, density=False)

    def _log_prob(self, x: Tensor, alpha, sigma) -> Tensor:
        lowest = sigma.min().item() if isinstance(sigma, Tensor) else sigma
        if lowest == 0 and self._smallest == 0:
            raise ValueError(
                f"this {type(self).__name__} has no density at sigma = 0: a component has a "
                "direction without variance. Ask at sigma > 0."
            )
        return self._in_blocks(x, alpha, sigma, density=True).to(x.dtype)

    def _in_blocks(self, x: Tensor, alpha, sigma, density: bool) -> Tensor:
        """Posterior mean or log-density, a piece of the batch at a time: bounded memory."""
        isotropic = self._variances.shape[1] == 1 and per_sample(alpha) and per_sample(sigma)
        posterior = self._isotropic if isotropic else self._anisotropic
        rows = max(1, BLOCK // (len(self._flat) * (1 if isotropic else self.dim)))
        if len(x) <= rows:
            return posterior(x, alpha, sigma, density)
        pieces = [
            posterior(x[i : i + rows], _rows(alpha, i, rows), _rows(sigma, i, rows), density)
            for i in range(0, len(x), rows)
        ]
        return torch.cat(pieces)

    def _isotropic(self, x: Tensor, alpha, sigma, density: bool) -> Tensor:
        r"""Components of one variance each: a single matrix product gives all logits.

        With :math:`v_k = \alpha^2 c_k + \sigma^2` they are :math:`\log w_k - \tfrac d2\log v_k +
        (\alpha\, x\cdot\mu_k - \tfrac12\alpha^2|\mu_k|^2 - \tfrac12|x|^2)/v_k`. These terms cancel
        at small noise; where that could cost more than 1e-5 of a logit in the state's dtype they
        are formed in float64. The coefficients alone decide, never the other samples of the batch.
        """
        scalar = isinstance(alpha, float) and isinstance(sigma, float)
        a, s = (c if isinstance(c, float) else c.double().T for c in (alpha, sigma))
        level = a * a * self._variances + s * s
        safe = level.clamp_min(self._floor(a))
        exact = density or not scalar
        work = torch.float64 if exact else self._working_dtype(alpha, sigma)
        means = self._flat.to(work)
        bias = self._log_weights[:, None] - 0.5 * (
            self.dim * safe.log() + a * a * self._square_norms / safe
        )
        if scalar:
            logits = torch.addmm(bias.to(work), (a / safe).to(work) * means, x.to(work).T)
        else:
            logits = bias + (a / safe) * (means @ x.to(work).T)
        if density or not self._equal:  # otherwise the same for all components
            logits = logits - 0.5 * x.to(work).square().sum(1) / safe.to(work)
        if density:
            return _log_sum_exp(logits) - 0.5 * self.dim * math.log(2 * math.pi)
        share = torch.softmax(logits, 0).to(x.dtype)
        if self._equal and scalar:  # one gain for all: numbers of the host, no look at the device
            variance = alpha * alpha * self._smallest + sigma * sigma
            gain, keep = (
                (alpha * self._smallest / variance, sigma * sigma / variance)
                if variance
                else (0.0, 1.0)
            )
            return torch.addmm(x, share.T, self._flat, beta=gain, alpha=keep)
        gain = a * self._variances / level.clamp_min(1e-300)
        keep = torch.where(level > 0, s * s / level.clamp_min(1e-300), torch.ones_like(level))
        denoised = (share * keep.to(x.dtype)).T @ self._flat
        return denoised + (share * gain.to(x.dtype)).sum(0)[:, None] * x

    def _working_dtype(self, alpha: float, sigma: float) -> torch.dtype:
        reach = alpha * self._radius + 4 * sigma * math.sqrt(self.dim)
        level = max(alpha * alpha * self._smallest + sigma * sigma, self._floor(alpha))
        error = torch.finfo(self.dtype).eps * reach * reach / level
        return self.dtype if error < 1e-5 else torch.float64

    def _anisotropic(self, x: Tensor, alpha, sigma, density: bool) -> Tensor:
        """Diagonal or full components, or one noise level per coordinate."""
        alpha64, sigma64 = (c.double() if isinstance(c, Tensor) else c for c in (alpha, sigma))
        if self._basis is not None and not (per_sample(alpha) and per_sample(sigma)):
            raise ValueError(
                "alpha or sigma has one value per coordinate; only a mixture with isotropic or "
                "diagonal covariances can be denoised so."
            )
        level = alpha64 * alpha64 * self._variances[:, None] + sigma64 * sigma64
        safe = level.clamp_min(self._floor(alpha64))
        y = x.double() - alpha64 * self._flat[:, None].double()
        if self._basis is not None:
            y = y @ self._basis
        quadratic = (y.square() / safe).sum(-1)
        log_det = safe.log().expand(*safe.shape[:2], self.dim).sum(-1)
        logits = self._log_weights[:, None] - 0.5 * (quadratic + log_det)
        if density:
            return _log_sum_exp(logits) - 0.5 * self.dim * math.log(2 * math.pi)
        share = torch.softmax(logits, 0)
        shift = alpha64 * self._variances[:, None] / level.clamp_min(1e-300) * y
        if self._basis is not None:
            shift = shift @ self._basis.mT
        denoised = share.T @ self._flat.double() + (share[..., None] * shift).sum(0)
        return denoised.to(x.dtype)

    def _floor(self, alpha) -> float | Tensor:
        """Least variance in a log-density: stands in for zero, where a component is a point."""
        if isinstance(alpha, Tensor):
            return (1e-8 * self._radius * alpha).square().clamp_min(1e-280)
        return max((1e-8 * self._radius * alpha) ** 2, 1e-280)

    def noised(self, alpha: float, sigma: float) -> Mixture:
        covs = alpha * alpha * self.covs.double()
        if covs.ndim == 3:
            covs = covs + sigma * sigma * torch.eye(self.dim, dtype=covs.dtype, device=covs.device)
        else:
            covs = covs + sigma * sigma
        return Mixture(self.weights, alpha * self.means, covs.to(self.dtype))

    def to(self, dtype: torch.dtype | None = None, device=None) -> Mixture:
        dtype, device = dtype or self.dtype, device or self.device
        if dtype == self.dtype and torch.device(device) == self.device:
            return self
        move = lambda value: value.to(device=device, dtype=dtype)  # noqa: E731
        weights = self.weights.double() / self.weights.double().sum()
        return Mixture(move(weights), move(self.means), move(self.covs))

    def __repr__(self) -> str:
        kind = ("isotropic", "diagonal", "full")[self.covs.ndim - 1]
        return f"Mixture({len(self.means)} {kind} components in {self.dim} dimensions)"


def _modes(covs: Tensor) -> tuple[Tensor | None, Tensor]:
    """Eigenbases (K, d, d) or None, and float64 variances (K, 1) or (K, d), of checked covs."""
    if covs.ndim < 3:
        if bool((covs < 0).any()):
            raise ValueError(
                f"a variance of covs was {covs.min().item():.4g}; variances must be at least 0."
            )
        return None, covs.double().reshape(len(covs), -1)
    pairs = [eigh(cov) for cov in covs]
    return torch.stack([b for _, b in pairs]), torch.stack([v for v, _ in pairs])


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Over the first axis. Terms below e^-60 of the largest cannot change a float64 sum; cutting
    them there keeps ``exp`` off its slow path for numbers that underflow (8x faster).
    """
    most = logits.amax(0)
    return (logits - most).clamp_(min=-60.0).exp_().sum(0).log_().add_(most)


def _rows(coefficient, start: int, count: int):
    """The coefficients of some rows of the batch."""
    if isinstance(coefficient, float) or len(coefficient) == 1:
        return coefficient
    return coefficient[start : start + count]
