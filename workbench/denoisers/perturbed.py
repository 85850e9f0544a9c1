r"""A denoiser with a wrong score, by exactly known amounts: what an error does, with its truth."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import finite, floating
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.level import Level, any_zero, per_sample
from workbench.params import Param


class Perturbed(Denoiser):
    r"""A denoiser whose score is wrong by an exactly known amount.

    With :math:`y = x/\alpha`, the base's score s and mean m, its score s' obeys

    .. math:: \alpha s' = (1 + \text{scale})\,\alpha s + \text{bias}
              + \text{gauge}\,\alpha s + (\text{gradient} + \text{rotation})\,(y - m),\qquad
              D' = (x + \sigma^2 s')/\alpha,

    so that D' still depends on :math:`(x/\alpha, \sigma/\alpha)` alone. A gauge moves probability
    along the level sets of the density, :math:`\nabla\cdot(p\,A\nabla\log p) = 0`: every marginal
    stays exact, though no sample stays where it was. The others change the marginals; a rotation,
    the naive gauge, does so unless the law is symmetric under it. Only a gauge and a rotation make
    the field one that is not a gradient.

    Args:
        base: the denoiser to perturb.
        scale: relative error of the score.
        bias: constant error of alpha times the score [1/x]: a number or a tensor of shape event.
        gauge: antisymmetric (d, d); in two dimensions also a number c for c [[0, -1], [1, 0]].
        gradient: symmetric (d, d), or a number for that multiple of the identity [1/x²].
        rotation: antisymmetric (d, d) or a number, as a gauge [1/x²].

    Raises:
        TypeError: a base that is not a denoiser, or another dtype than the base's.
        ValueError: a gauge or rotation that is not antisymmetric, a gradient that is not
            symmetric, wrong shapes, numbers that are not finite. When asked: alpha = 0, where D'
            does not exist.

    Source: Horvat & Pfister 2024, arXiv:2402.03845 (gauge freedom).
    """

    mean = property(attrgetter("base.mean"))
    std = property(attrgetter("base.std"))

    def __init__(
        self,
        base: Denoiser,
        scale: float = 0.0,
        bias=None,
        gauge=None,
        gradient=None,
        rotation=None,
    ):
        if not isinstance(base, Denoiser):
            raise TypeError(f"base was {base!r}; it must be a Denoiser, e.g. wb.Gaussian(...).")
        self.base, self.scale = base, float(scale)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale was {scale!r}; it must be a finite number, 0 for none.")
        self.event_shape, self.dtype, self.device = base.event_shape, base.dtype, base.device
        self.bias = None if bias is None else self._vector(bias)
        self.gauge = None if gauge is None else self._matrix("gauge", gauge, -1)
        self.gradient = None if gradient is None else self._matrix("gradient", gradient, 1)
        self.rotation = None if rotation is None else self._matrix("rotation", rotation, -1)
        self.notes = self._own_notes() + base.notes

    @classmethod
    def from_data(
        cls,
        data,
        of: Annotated[
            Denoiser, Param("the denoiser that is perturbed", standard="Gaussian")
        ] = None,
        scale: Annotated[float, Param("relative error of the score")] = 0.0,
        bias: Annotated[float, Param("constant error of alpha times the score [1/x]")] = 0.0,
        gauge: Annotated[float, Param("turn along level sets, of data in a plane")] = 0.0,
        gradient: Annotated[float, Param("multiple of the identity [1/x²]")] = 0.0,
        rotation: Annotated[float, Param("turn about the mean, of data in a plane [1/x²]")] = 0.0,
    ) -> Perturbed:
        """A denoiser of a data set (a Gaussian if ``of`` is None) with a wrong score."""
        of = Gaussian.from_data(data) if of is None else of
        terms = (term or None for term in (bias, gauge, gradient, rotation))
        return cls(of, scale, *terms)

    def _vector(self, bias) -> Tensor | None:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        bias = finite("bias", floating("bias", bias, like=like))
        if bias.ndim and bias.shape != self.event_shape:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}; it must be a number or of the shape of one "
                f"sample, {tuple(self.event_shape)}."
            )
        return bias.expand(self.event_shape).clone() if bool(bias.any()) else None

    def _matrix(self, name: str, value, sign: int) -> Tensor | None:
        """The (d, d) matrix that equals ``sign`` times its transpose; None if it is zero."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        matrix = finite(name, floating(name, value, like=like))
        word = "antisymmetric" if sign < 0 else "symmetric"
        if matrix.ndim == 0:
            if sign < 0 and self.dim != 2:
                raise ValueError(
                    f"{name} was the number {matrix.item():g}, which turns a plane; these data "
                    f"have {self.dim} dimensions, so give an antisymmetric matrix ({self.dim}, "
                    f"{self.dim})."
                )
            unit = torch.eye(self.dim) if sign > 0 else torch.tensor([[0.0, -1.0], [1.0, 0.0]])
            matrix = matrix * unit.to(like)
        if matrix.shape != (self.dim, self.dim):
            raise ValueError(
                f"{name} has shape {tuple(matrix.shape)}; it must be a number or "
                f"{word} ({self.dim}, {self.dim})."
            )
        off = (matrix - sign * matrix.T).abs().max().item()
        if off > 1e3 * torch.finfo(self.dtype).eps * matrix.abs().max().item():
            opposite = "minus its transpose" if sign < 0 else "its transpose"
            raise ValueError(
                f"{name} differs from {opposite} by {off:.2g}; it must be {word}, e.g. "
                f"0.5 * ({name} {'-' if sign < 0 else '+'} {name}.T)."
            )
        return 0.5 * (matrix + sign * matrix.T) if bool(matrix.any()) else None

    def _own_notes(self) -> tuple[str, ...]:
        if not self._parts:
            return ()
        what = f"The score is wrong on purpose ({', '.join(self._parts)})"
        if not self.exact_marginals:
            return (f"{what}: samples do not follow the law of the data.",)
        return (
            f"{what}: the field is not a gradient, yet the marginals of its continuous-time "
            "samplers stay exact as long as alpha and sigma are the same for all coordinates.",
        )

    # -- what is perturbed -------------------------------------------------------------------

    @property
    def _parts(self) -> list[str]:
        parts = [f"scale {self.scale:+g}"] if self.scale else []
        names = ("bias", "gauge", "gradient", "rotation")
        return parts + [name for name in names if getattr(self, name) is not None]

    @property
    def _terms(self) -> tuple[Tensor | None, ...]:
        return self.bias, self.gauge, self.gradient, self.rotation

    @property
    def linear(self) -> Tensor | None:
        """What multiplies y - m: gradient and rotation together (d, d); None without any."""
        there = [term for term in (self.gradient, self.rotation) if term is not None]
        return sum(there) if there else None

    @property
    def exact_marginals(self) -> bool:
        """Whether samplers in continuous time keep the data's marginals: nothing but one gauge."""
        alone = self._parts == ["gauge"] and self.base.conservative
        return self.base.exact_marginals and (alone or not self._parts)

    @property
    def conservative(self) -> bool:
        """Whether the score is a gradient at every noise level: no gauge, no rotation."""
        return self.gauge is None and self.rotation is None and self.base.conservative

    def _level(self, alpha, sigma) -> Level:
        right = self.base._level(alpha, sigma)
        return PerturbedLevel(self, right) if self._parts else right

    def noised(self, alpha: float, sigma: float) -> Denoiser:
        if self._parts:
            raise NotImplementedError("a wrong score is that of no law, so it has no marginals.")
        return self.base.noised(alpha, sigma)

    def flow(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        return super().flow(x, start, end) if self._parts else self.base.flow(x, start, end)

    def to(self, dtype: torch.dtype | None = None, device=None) -> Perturbed:
        base = self.base.to(dtype, device)
        terms = (None if term is None else term.to(base.mean) for term in self._terms)
        return Perturbed(base, self.scale, *terms)

    def transformed(self, matrix: Tensor) -> Perturbed:
        base = self.base.transformed(matrix)
        rotation = self._rotation(matrix).to(self.dtype)
        bias, *matrices = self._terms
        if bias is not None:
            bias = (bias.flatten() @ rotation).reshape(self.event_shape)
        turned = (None if term is None else rotation.T @ term @ rotation for term in matrices)
        return Perturbed(base, self.scale, bias, *turned)

    def translated(self, offset: Tensor) -> Perturbed:
        return Perturbed(self.base.translated(offset), self.scale, *self._terms)

    def __repr__(self) -> str:
        return f"Perturbed({self.base!r}: {', '.join(self._parts) or 'nothing'})"


class PerturbedLevel(Level):
    """A denoiser with a wrong score at one noise level.

    In y = x/alpha and rho = sigma/alpha, with v = D - y = rho^2 alpha s,

        D' = D + tilt(v) + rho^2 push(y),   tilt(v) = scale v + rho^2 gauge (v / rho^2),

    where rho^2 drops out of tilt when it is the same for all coordinates: regular at sigma = 0.
    """

    def __init__(self, denoiser: Perturbed, base: Level) -> None:
        super().__init__(denoiser, base.alpha, base.sigma)
        self.error, self.base = denoiser, base

    @property
    def _words(self) -> str:
        return " and ".join(self.error._parts)

    def _reduced(self, x: Tensor):
        """y and rho² = (sigma/alpha)²."""
        alpha, sigma = self.alpha, self.sigma
        if any_zero(alpha):
            raise ValueError(
                f"alpha was 0, where a denoiser perturbed by {self._words} does not exist: "
                "its error is a finite multiple of x/alpha. Ask at alpha > 0, e.g. stop "
                "short of pure noise (Grid.times, t_max) or use a process with alpha = 1 (EDM)."
            )
        rho2 = (sigma / alpha) ** 2
        if self.error.gauge is not None and not per_sample(rho2) and any_zero(rho2):
            raise ValueError(
                "sigma was 0 and differs between coordinates; there a gauge needs sigma > 0 for "
                "every coordinate."
            )
        return x / alpha, rho2

    def _tilt(self, v: Tensor, rho2) -> Tensor:
        """(scale + gauge) on the first event axis of ``v``, (n, d) or (n, d, d)."""
        tilted = self.error.scale * v
        if self.error.gauge is not None:
            if per_sample(rho2):
                return tilted + _on_rows(self.error.gauge, v)
            rho2 = rho2 if v.ndim == 2 else _rows(rho2)
            return tilted + rho2 * _on_rows(self.error.gauge, v / rho2)
        return tilted

    def _push(self, y: Tensor) -> Tensor | float:
        """bias + (gradient + rotation) (y - m)."""
        pushed = 0.0 if self.error.bias is None else self.error.bias.flatten()
        if self.error.linear is not None:
            pushed = pushed + _on_rows(self.error.linear, y - self.error.mean.flatten())
        return pushed

    def _denoised(self, x: Tensor) -> Tensor:
        denoised = self.base._denoised(x)
        y, rho2 = self._reduced(x)
        wrong = denoised + self._tilt(denoised - y, rho2) + rho2 * self._push(y)
        return wrong.to(x.dtype)

    def _score(self, x: Tensor) -> Tensor:
        alpha = self.alpha
        score = self.base._score(x)
        wrong = (1 + self.error.scale) * score
        if self.error.gauge is not None and per_sample(alpha):
            wrong = wrong + _on_rows(self.error.gauge, score)
        elif self.error.gauge is not None:
            wrong = wrong + _on_rows(self.error.gauge, alpha * score) / alpha
        # The others exist at alpha = 0.
        if self.error.bias is not None or self.error.linear is not None:
            wrong = wrong + self._push(self._reduced(x)[0]) / alpha
        return wrong.to(x.dtype)

    def _jacobian(self, x: Tensor) -> Tensor:
        alpha = self.alpha
        jacobian = self.base._jacobian(x)
        _, rho2 = self._reduced(x)
        eye = torch.eye(self.error.dim, dtype=x.dtype, device=x.device)
        wrong = jacobian + self._tilt(jacobian - eye / _columns(alpha), rho2)
        if self.error.linear is not None:
            wrong = wrong + _rows(rho2) * self.error.linear / _columns(alpha)
        return wrong.to(x.dtype)

    def _trace_slope(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.error.gauge is not None:
            return super()._trace_slope(x, weight)
        return (1 + self.error.scale) * self.base._trace_slope(x, weight)

    def _divergence(self, x: Tensor) -> Tensor:
        alpha = self.alpha
        divergence = self.base._divergence(x)
        _, rho2 = self._reduced(x)
        lag = divergence - (x.new_ones(()) / alpha).expand_as(x).sum(-1)
        wrong = divergence + self.error.scale * lag
        symmetric = per_sample(rho2) and self.error.base.conservative
        if self.error.gauge is not None and not symmetric:  # otherwise tr(gauge J) = 0
            turned = self._tilt(self.base._jacobian(x), rho2)
            wrong = wrong + turned.diagonal(dim1=1, dim2=2).sum(-1) - self.error.scale * divergence
        if self.error.gradient is not None:
            wrong = wrong + (rho2 / alpha * self.error.gradient.diagonal()).expand_as(x).sum(-1)
        return wrong.to(x.dtype)

    def _hessian(self, x: Tensor) -> Tensor:
        if self.error.gauge is not None or self.error.rotation is not None:
            word = "gauge" if self.error.gauge is not None else "rotation"
            raise NotImplementedError(
                f"a score with a {word} is not a gradient, so it is the score of no density and "
                "has no Hessian; ask for jacobian instead."
            )
        wrong = (1 + self.error.scale) * self.base._hessian(x)
        if self.error.gradient is not None:
            self._reduced(x)
            wrong = wrong + self.error.gradient / _rows(self.alpha) / _columns(self.alpha)
        return wrong.to(x.dtype)

    def _rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        alpha, sigma = self.alpha, self.sigma
        rate = self.base._rate(x, d_alpha, d_sigma)
        y, rho2 = self._reduced(x)
        y_rate = -y * (d_alpha / alpha)
        rho2_rate = 2 * (sigma * d_sigma - rho2 * alpha * d_alpha) / (alpha * alpha)
        wrong = rate + self._tilt(rate - y_rate, rho2) + rho2_rate * self._push(y)
        if self.error.linear is not None:
            wrong = wrong + rho2 * _on_rows(self.error.linear, y_rate)
        if self.error.gauge is not None and not (per_sample(rho2) and per_sample(rho2_rate)):
            force = (self.base._denoised(x) - y) / rho2  # alpha s
            turn = rho2_rate * _on_rows(self.error.gauge, force)
            wrong = wrong + turn - rho2 * _on_rows(self.error.gauge, force * (rho2_rate / rho2))
        return wrong.to(x.dtype)

    def _posterior_cov(self, x: Tensor) -> Tensor:
        raise NotImplementedError(
            f"a score perturbed by {self._words} is not that of noised data, so nothing "
            "has this posterior covariance; sigma²/alpha times the jacobian is what a "
            "user of the field would take for it."
        )

    def _log_prob(self, x: Tensor) -> Tensor:
        alpha, sigma = self.alpha, self.sigma
        if self.error.gauge is not None or self.error.rotation is not None:
            raise NotImplementedError(
                "a score with a gauge or a rotation is not a gradient and belongs to no "
                "log-density. The marginals of a gauge alone are the base's: ask .base.log_prob."
            )
        if self.error._parts != [f"scale {self.error.scale:+g}"] or not isinstance(
            self.error.base, Gaussian
        ):
            raise NotImplementedError(
                f"the density whose score is that of {self.error.base!r} perturbed by "
                f"{self._words} has no closed-form normalisation; only a scaled score of a "
                "Gaussian has."
            )
        if self.error.scale <= -1:
            raise NotImplementedError(
                f"scale was {self.error.scale:g}: the score points away from the data or nowhere, "
                "and no density that can be normalised has it; it must be above -1."
            )
        # N(alpha m, level / (1 + scale)): the base's log-density is -quadratic/2 + peak.
        x = x.double()
        exact = self.error.base.to(torch.float64)
        base = exact._level(alpha, sigma)
        peak = base._log_prob(alpha * exact.mean.flatten().expand_as(x))
        log_p = (1 + self.error.scale) * (base._log_prob(x) - peak) + peak
        return (log_p + 0.5 * self.error.dim * math.log1p(self.error.scale)).to(self.error.dtype)


def _on_rows(matrix: Tensor, v: Tensor) -> Tensor:
    """``matrix`` times each vector (n, d) or matrix (n, d, d) of ``v``."""
    matrix = matrix.to(v.dtype)  # coefficients in float64 may have widened v
    return v @ matrix.T if v.ndim == 2 else matrix @ v


def _rows(coefficient: float | Tensor) -> float | Tensor:
    """A coefficient (n, 1 or d) as a factor of the rows of (n, d, d)."""
    return coefficient if isinstance(coefficient, float) else coefficient[:, :, None]


def _columns(coefficient: float | Tensor) -> float | Tensor:
    """A coefficient (n, 1 or d) as a factor of the columns of (n, d, d)."""
    return coefficient if isinstance(coefficient, float) else coefficient[:, None]
