r"""The ideal denoiser of a finite data set, the one a perfectly trained network memorises.

With the posterior weights :math:`r_i = \mathrm{softmax}_i\, l_i` of the points,
:math:`l_i = -|x - \alpha x_i|^2 / 2\sigma^2`,

.. math:: D = \sum_i r_i x_i,\qquad C = \sum_i r_i (x_i - D)(x_i - D)^\top,\qquad
          J = \frac{\alpha}{\sigma^2} C,\qquad \dot D = \sum_i r_i (x_i - D)\, \dot l_i .

Sources: Karras et al. 2022, arXiv:2206.00364, appendix B.3; second order: Efron 2011, J. Am. Stat.
Assoc. 106.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import check_placement, floating
from workbench.denoisers.level import Level
from workbench.denoisers.mixture import Mixture
from workbench.denoisers.points import Points, as_double, split
from workbench.params import Param


class Empirical(Denoiser):
    """The law of equal point masses at ``points`` (N, *event).

    Exact at any noise level, in memory that does not grow with the batch. At ``sigma = 0`` the
    denoised state is the nearest point (of several equally near ones their mean), the limit from
    above; derivatives are then 0, save half way between points, where there are none. With one
    noise level per coordinate, a coordinate without noise beside others with noise counts as having
    1e-12 (float32: 1e-6) of the data's radius.

    Raises:
        ValueError: no points, or numbers that are not finite.

    Attributes:
        points: (N, *event); ``means`` is the same tensor, ``weights`` (N,) are all 1/N and
            ``covs`` (N,) all 0: what they are called in a mixture.
        notes: says so if points repeat others.
    """

    def __init__(self, points: Tensor) -> None:
        points = floating("points", points)
        if points.ndim < 2 or points.numel() == 0:
            raise ValueError(
                f"points has shape {tuple(points.shape)}; it must be (number of points, *event)."
            )
        self.points = self.means = points
        self._stamp("points")
        self.event_shape, self.dtype, self.device = points.shape[1:], points.dtype, points.device
        self._set = Points(points.flatten(1))
        self.mean = self._set.mean.to(self.dtype).reshape(self.event_shape)
        if self._set.repeated:
            self.notes = (
                f"{self._set.repeated} of {len(points)} points repeat another; a point counts as "
                "often as it is given.",
            )

    def _derive(self) -> None:
        self.__init__(self.points)

    @classmethod
    def from_data(
        cls,
        data,
        points: Annotated[
            int, Param("data points kept, the first of the set; 0 keeps all", ge=0, le=50_000)
        ] = 0,
    ) -> Empirical:
        """The point masses of a data set."""
        return cls(data.points[: points or None])

    @property
    def weights(self) -> Tensor:
        return self.points.new_full((len(self.points),), 1.0 / len(self.points))

    @property
    def covs(self) -> Tensor:
        return self.points.new_zeros(len(self.points))

    @property
    def std(self) -> float:
        return math.sqrt(self._set.variance / self.dim)

    def noised(self, alpha, sigma) -> Mixture:
        alpha, sigma = self._levels(alpha, sigma)
        means = torch.empty_like(self._set.flat)
        for points, piece in self._set.rows():
            means[points] = (alpha * piece).to(self.dtype)
        means = means.reshape(self.points.shape)
        if isinstance(sigma, float):
            return Mixture(self.weights, means, means.new_full((len(means),), sigma * sigma))
        variances = (sigma * sigma).to(self.dtype).expand(len(means), self.dim)
        return Mixture(self.weights, means, variances)

    def transformed(self, matrix: Tensor) -> Empirical:
        matrix, turned = self._rotation(matrix), torch.empty_like(self._set.flat)
        for points, piece in self._set.rows():
            turned[points] = (piece @ matrix).to(self.dtype)
        return Empirical(turned.reshape(self.points.shape))

    def translated(self, offset: Tensor) -> Empirical:
        return Empirical(self.points + floating("offset", offset).to(self.points))

    def to(self, dtype: torch.dtype | None = None, device=None) -> Empirical:
        check_placement(dtype, device)
        points = self.points.to(dtype=dtype or self.dtype, device=device or self.device)
        return self if points is self.points else Empirical(points)

    def __repr__(self) -> str:
        return f"Empirical({len(self.points)} points in {self.dim} dimensions)"


class EmpiricalLevel(Level):
    """A finite data set at one noise level."""

    def __init__(self, denoiser: Empirical, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        self._set = denoiser._set

    def _denoised(self, x: Tensor) -> Tensor:
        alpha, sigma = self._pair
        mean = self.denoiser.mean.flatten()
        if isinstance(alpha, float) and alpha == 0.0:  # pure noise says nothing of the point
            return mean.expand_as(x).clone()
        denoised = self._set.mean_given(x, alpha, sigma)
        if isinstance(alpha, float):
            return denoised
        return torch.where((alpha == 0).all(1, keepdim=True), mean, denoised)

    def _log_prob(self, x: Tensor) -> Tensor:
        alpha, sigma = self._pair
        if (sigma.min().item() if isinstance(sigma, Tensor) else sigma) == 0:
            raise ValueError(
                "this Empirical has no density at sigma = 0: it is a sum of point masses. "
                "Ask at sigma > 0."
            )
        out = torch.empty(len(x), dtype=torch.float64, device=x.device)
        for rows, most, _, total, *_ in self._set.weighed(x, alpha, sigma):
            out[rows] = (most + total.log())[:, 0]
        volume = as_double(sigma, x).log().expand(-1, self._set.dim).sum(1)
        norm = math.log(self._set.count) + 0.5 * self._set.dim * math.log(2 * math.pi)
        return (out - volume - norm).to(x.dtype)

    def _shares(self, x: Tensor, *levels) -> Iterator[tuple]:
        """The batch in pieces: their rows, posterior weights (rows, N) in float64, which the next
        piece overwrites, whether only some points have any, states and levels.
        """
        for rows, _, share, total, *own in self._set.weighed(x, *levels):
            yield rows, share / total if share.requires_grad else share.div_(total), *own

    def _classify(self, x: Tensor) -> Tensor:
        """Posterior weights (n, N) of the points: as large as that."""
        out = x.new_empty(len(x), self._set.count)
        for rows, share, *_ in self._shares(x, *self._pair):
            out[rows] = share.to(x.dtype)
        return out

    def _posterior_cov(self, x: Tensor) -> Tensor:
        d = self._set.dim
        out, places = x.new_empty(len(x), d, d), torch.arange(len(x), device=x.device)
        for rows, share, *_ in self._shares(x, *self._pair):
            for place, own in zip(places[rows], share, strict=True):
                cov = share.new_zeros(d, d)
                for weight, apart in self._centred(own):
                    cov.addmm_(apart.T * weight, apart)
                out[place] = cov.to(x.dtype)
        return out

    def _jacobian(self, x: Tensor) -> Tensor:
        cov = self._posterior_cov(x)
        return _scaled(cov, _gain(x, *self._pair)[:, None]).to(x.dtype)

    def _divergence(self, x: Tensor) -> Tensor:
        out = torch.empty(len(x), dtype=torch.float64, device=x.device)
        for rows, share, few, part, *levels in self._shares(x, *self._pair):
            if few:
                variance = torch.stack(
                    [sum(w @ apart.square() for w, apart in self._centred(own)) for own in share]
                )
            else:
                _, rest, near, first, shift = self._less_top(share)
                mass = rest.sum(1, keepdim=True)
                known = near * first + near * (first - near * mass) + shift.square()
                if _gain(part, *levels).shape[1] == 1:  # the sum over coordinates is enough
                    variance = self._set.square_norms(rest) - known.sum(1, keepdim=True)
                else:
                    variance = self._set.sum(rest, squared=True) - known
            out[rows] = _scaled(variance.clamp_min(0.0), _gain(part, *levels)).sum(1)
        return out.to(x.dtype)

    def _trace_slope(self, x: Tensor, weight: Tensor) -> Tensor:
        """By third moments: with c the points less D, ``gain_k sum_i w_i gain_i E[c_i^2 c_k]``."""
        out, places = torch.empty_like(x), torch.arange(len(x), device=x.device)
        for rows, share, _, part, *levels in self._shares(x, *self._pair):
            gain = _gain(part, *levels).expand(len(part), x.shape[1])
            for place, own, by in zip(places[rows], share, gain, strict=True):
                third = torch.zeros_like(by)
                for w, apart in self._centred(own):
                    third += (w * (apart.square() @ (by * weight[0].double()))) @ apart
                out[place] = (by * third).to(x.dtype)
        return out

    def _rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        return self._moving(x, x.new_zeros(1, 1), d_alpha, d_sigma)

    def _jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._moving(x, v, 0.0, 0.0)

    def _moving(self, x: Tensor, along: Tensor, d_alpha, d_sigma) -> Tensor:
        out, given = torch.empty_like(x), (*self._pair, d_alpha, d_sigma, along)
        for rows, share, few, part, *levels in self._shares(x, *given):
            y, gain, level = self._set.whitened(part, *levels[:2], torch.float64)
            a, s, d_a, d_s, d_x = (as_double(c, x) for c in levels)
            if few:
                own = (c.expand(len(part), -1) for c in (a, as_double(level, x), d_a, d_s, d_x))
                each = zip(share, part.double(), *own, strict=True)
                rate = torch.stack([self._rate_of_few(*values) for values in each])
            else:
                d_gain, d_y = (d_a - gain * d_s) / level, (d_x - y * d_s) / level
                if self._set.origin is not None:
                    d_y = d_y - d_a / level * self._set.origin
                top, rest, near, _, shift = self._less_top(share)
                linear, quadratic = d_gain * y + gain * d_y, 2 * gain * d_gain
                slope = self._set.products(linear, quadratic, torch.float64)
                if rest.requires_grad:
                    rest = rest * (slope - slope.gather(1, top))
                else:
                    rest.mul_(slope.sub_(slope.gather(1, top)))
                rate = self._set.sum(rest) - rest.sum(1, keepdim=True) * (near + shift)
            still = (s == 0).all(1, keepdim=True)
            out[rows] = torch.where(still, torch.zeros_like(rate), rate).to(x.dtype)
        return out

    # -- sums over all points less the likeliest: they keep their digits however little these weigh

    def _less_top(self, share: Tensor) -> tuple[Tensor, ...]:
        """The likeliest point, the weights of the rest, that point, the rest's sum, and the mean
        less it.
        """
        top = share.argmax(1, keepdim=True)
        rest = share.scatter(1, top, 0.0)
        near, first = self._set.around[:, top[:, 0]].T.double(), self._set.sum(rest)
        return top, rest, near, first, first - rest.sum(1, keepdim=True) * near

    def _close_up(self, share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For one state: the weights that count and their points less the likeliest, in pieces."""
        flat = self._set.flat
        top = flat[share.argmax()].double()
        for near in split((share > 1e-30).nonzero()[:, 0], self._set.dim):
            yield share[near], flat[near].double() - top

    def _centred(self, share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, and their points less the posterior mean."""
        shift = sum(weight @ apart for weight, apart in self._close_up(share))
        for weight, apart in self._close_up(share):
            yield weight, apart - shift

    def _rate_of_few(self, share: Tensor, x: Tensor, a, s, d_a, d_s, d_x) -> Tensor:
        top = self._set.flat[share.argmax()].double()
        u = x - a * top
        shift = slopes = moved = 0.0
        for weight, z in self._close_up(share):
            slope = (
                z * (d_a * (u - a * (top + z)) + a * d_x) / s
                + d_s * a * z * (a * z - 2 * u) / s / s
            )
            weighted = weight * (slope / s).sum(1)
            shift, slopes = shift + weight @ z, slopes + weighted.sum()
            moved = moved + weighted @ z
        return moved - slopes * shift


def _gain(x: Tensor, alpha, sigma) -> Tensor:
    """``alpha / sigma^2`` (n or 1, d or 1), infinite at sigma = 0."""
    return as_double(alpha, x) / as_double(sigma, x) / as_double(sigma, x)


def _scaled(value: Tensor, gain: Tensor) -> Tensor:
    """Their product, 0 where ``value`` is, however large the gain."""
    return torch.where(value == 0, torch.zeros_like(gain), value * gain)


Empirical._kind = EmpiricalLevel
