r"""The ideal denoiser of a finite data set, the one a perfectly trained network memorises.

With the posterior weights :math:`r_i = \mathrm{softmax}_i\, l_i` of the points,
:math:`l_i = -|x - \alpha x_i|^2 / 2\sigma^2`,

.. math:: D = \sum_i r_i x_i,\qquad C = \sum_i r_i (x_i - D)(x_i - D)^\top,\qquad
          J = \frac{\alpha}{\sigma^2} C,\qquad \dot D = \sum_i r_i (x_i - D)\, \dot l_i .

One matrix product gives all :math:`l_i`, less what the points share. Its terms cancel at small
noise: where that would be felt, the few points still in doubt are told apart by their differences
from the state, in float64. The noise level and the state itself decide that, never its neighbours
in the batch.

Sources: Karras et al. 2022, arXiv:2206.00364, appendix B.3; second order: Efron 2011, J. Am. Stat.
Assoc. 106.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import floating
from workbench.denoisers.mixture import Mixture
from workbench.params import Param

__all__ = ["Empirical"]

#: Numbers copied or compared at once (8 MB in float64).
PIECE = 1 << 20
#: Log-weights at once: within a cache where the products are cheap, many rows where they are not.
CACHED, LARGEST = 1 << 18, 1 << 24
#: Dimensions up to which columns are read faster than rows, and float64 is faster than a search.
NARROW, UNSEARCHED = 16, 32
#: Points whose largest log-weight is looked at before their own.
GROUP = 64
#: Error of a log-weight that is let pass, the logarithm of a share too small to be seen, and the
#: least that is formed: numbers next to underflow are a hundred times slower than others.
PASSED = {torch.float32: 1e-4, torch.float64: 1e-10}
UNSEEN = {torch.float32: 17.0, torch.float64: 37.0}
LEAST = {torch.float32: -70.0, torch.float64: -600.0}


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
        self.event_shape, self.dtype, self.device = points.shape[1:], points.dtype, points.device
        self._flat = points.flatten(1)
        mean, squares, repeated = _survey(self._flat)
        self.mean = mean.to(self.dtype).reshape(self.event_shape)
        if repeated:
            self.notes = (
                f"{repeated} of {len(points)} points repeat another; a point counts as often as "
                "it is given.",
            )
        away = mean.square().sum()
        self._origin, around = None, self._flat
        if away > 4 * (squares.mean() - away):
            # The products would drown what tells the points apart: a copy around their mean serves
            # instead. Data nearer the origin need none, and large ones are not held twice.
            self._origin = mean.to(self.dtype)
            around, mean = self._flat - self._origin, mean - self._origin.double()
            squares = torch.cat([p.double().square().sum(1) for p in around.split(_rows(around))])
        spread = (squares.mean() - mean.square().sum()).item()
        self._std = math.sqrt(max(0.0, spread) / self.dim)
        self._radius = squares.max().sqrt().item() or 1.0
        self._away = away.sqrt().item() + self._radius
        self._least = 1e-12 if self.dtype == torch.float64 else 1e-6
        self._squares = {work: squares.to(work) for work in PASSED}
        self._columns = self._flat.T.contiguous() if self.dim <= NARROW else self._flat.T
        self._around = self._columns  # (d, N) around the origin
        if self._origin is not None:
            self._around = around.T.contiguous() if self.dim <= NARROW else around.T

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
        return self._std

    def noised(self, alpha, sigma) -> Mixture:
        alpha, sigma = self._levels(alpha, sigma)
        means = (alpha * self._flat.double()).to(self.dtype).reshape(self.points.shape)
        if isinstance(sigma, float):
            return Mixture(self.weights, means, means.new_full((len(means),), sigma * sigma))
        variances = (sigma * sigma).to(self.dtype).expand(len(means), self.dim)
        return Mixture(self.weights, means, variances)

    def transformed(self, matrix: Tensor) -> Empirical:
        matrix, turned = self._rotation(matrix), torch.empty_like(self._flat)
        for points in self._pieces():
            turned[points] = (self._flat[points].double() @ matrix).to(self.dtype)
        return Empirical(turned.reshape(self.points.shape))

    def translated(self, offset: Tensor) -> Empirical:
        return Empirical(self.points + floating("offset", offset).to(self.points))

    def to(self, dtype: torch.dtype | None = None, device=None) -> Empirical:
        points = self.points.to(dtype=dtype or self.dtype, device=device or self.device)
        return self if points is self.points else Empirical(points)

    def __repr__(self) -> str:
        return f"Empirical({len(self.points)} points in {self.dim} dimensions)"

    # -- what is asked -------------------------------------------------------------------------

    def _denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        if isinstance(alpha, float) and alpha == 0.0:  # pure noise says nothing of the point
            return self.mean.flatten().expand_as(x).clone()
        out = torch.empty_like(x)
        work = self.dtype if self.dtype in PASSED else torch.float32
        for rows, _, share, total, *_ in self._posteriors(x, work, alpha, sigma):
            out[rows] = self._average(share) / total
        if isinstance(alpha, float):
            return out
        return torch.where((alpha == 0).all(1, keepdim=True), self.mean.flatten(), out)

    def _log_prob(self, x: Tensor, alpha, sigma) -> Tensor:
        if (sigma.min().item() if isinstance(sigma, Tensor) else sigma) == 0:
            raise ValueError(
                "this Empirical has no density at sigma = 0: it is a sum of point masses. "
                "Ask at sigma > 0."
            )
        out = torch.empty(len(x), dtype=torch.float64, device=x.device)
        for rows, most, _, total, *_ in self._posteriors(x, torch.float64, alpha, sigma):
            out[rows] = (most + total.log())[:, 0]
        out = out - _double(sigma, x).log().expand(-1, self.dim).sum(1)
        norm = math.log(len(self._flat)) + 0.5 * self.dim * math.log(2 * math.pi)
        return (out - norm).to(x.dtype)

    def _classify(self, x: Tensor, alpha, sigma) -> Tensor:
        """The posterior weights (n, N) of the points: as large as that."""
        out = x.new_empty(len(x), len(self._flat))
        for rows, share, *_ in self._shares(x, alpha, sigma):
            out[rows] = share
        return out

    def _posterior_cov(self, x: Tensor, alpha, sigma) -> Tensor:
        out = x.new_empty(len(x), self.dim, self.dim)
        for rows, share, *_ in self._shares(x, alpha, sigma):
            for cov, own, centre in zip(out[rows], share, self._average(share), strict=True):
                total = torch.zeros_like(cov, dtype=torch.float64)
                for near in (own > 1e-30).nonzero()[:, 0].split(_rows(self._flat)):
                    apart = self._flat[near].double() - centre
                    total.addmm_(apart.T * own[near], apart)
                cov.copy_(total)
        return out

    def _jacobian(self, x: Tensor, alpha, sigma) -> Tensor:
        cov = self._posterior_cov(x, alpha, sigma)
        return _scaled(cov, _gain(x, alpha, sigma)[:, None]).to(x.dtype)

    def _divergence(self, x: Tensor, alpha, sigma) -> Tensor:
        out = torch.empty(len(x), dtype=torch.float64, device=x.device)
        for rows, share, part, a, s in self._shares(x, alpha, sigma):
            _, rest, near, first, shift = self._less_top(share)
            second, mass = self._sum(rest, squared=True), rest.sum(1, keepdim=True)
            variance = (second - near * first) - near * (first - near * mass) - shift.square()
            out[rows] = _scaled(variance.clamp_min(0.0), _gain(part, a, s)).sum(1)
        return out.to(x.dtype)

    def _rate(self, x: Tensor, alpha, sigma, d_alpha, d_sigma) -> Tensor:
        out = torch.empty_like(x)
        blocks = self._shares(x, alpha, sigma, d_alpha, d_sigma)
        for rows, share, part, *levels in blocks:
            y, gain, level = self._whitened(part, *levels[:2], torch.float64)
            s, da, ds = (_double(c, x) for c in levels[1:])
            d_gain, d_y = (da - gain * ds) / level, -y * ds / level
            if self._origin is not None:
                d_y = d_y - da / level * self._origin.double()
            top, rest, near, _, shift = self._less_top(share)
            slope = self._products(d_gain * y + gain * d_y, 2 * gain * d_gain, torch.float64)
            rest.mul_(slope.sub_(slope.gather(1, top)))
            rate = self._sum(rest) - rest.sum(1, keepdim=True) * (near + shift)
            out[rows] = torch.where((s == 0).all(1, keepdim=True), torch.zeros_like(rate), rate)
        return out

    # -- sums over the points ------------------------------------------------------------------

    def _average(self, share: Tensor) -> Tensor:
        """Weighted means (rows, d) of the points."""
        if share.dtype == self.dtype:
            return (self._columns @ share.T).T if self.dim <= NARROW else share @ self._flat
        return sum(share[:, p] @ self._flat[p].to(share.dtype) for p in self._pieces())

    def _sum(self, weights: Tensor, squared: bool = False) -> Tensor:
        """Weighted sums (rows, d) of the points around the origin, or of their squares; float64."""
        total = weights.new_zeros(len(weights), self.dim)
        for points in self._pieces():
            piece = self._around[:, points].double()
            total.addmm_(weights[:, points], (piece.square() if squared else piece).T)
        return total

    def _less_top(self, share: Tensor) -> tuple[Tensor, ...]:
        """The likeliest point and the weights of the rest: sums over them keep their relative
        accuracy however little they weigh. Also that point, the rest's sum, and the mean less it.
        """
        top = share.argmax(1, keepdim=True)
        rest = share.scatter(1, top, 0.0)
        near, first = self._around[:, top[:, 0]].T.double(), self._sum(rest)
        return top, rest, near, first, first - rest.sum(1, keepdim=True) * near

    # -- the posterior weights -----------------------------------------------------------------

    def _pieces(self) -> Iterator[slice]:
        """Points of which a copy is small."""
        rows = _rows(self._flat)
        return (slice(start, start + rows) for start in range(0, len(self._flat), rows))

    def _shares(self, x: Tensor, alpha, sigma, *others) -> Iterator[tuple]:
        """Pieces of the batch: their rows, posterior weights in float64, states, coefficients."""
        found = self._posteriors(x, torch.float64, alpha, sigma, *others)
        for rows, _, share, total, *states in found:
            yield rows, share.div_(total), *states

    def _posteriors(self, x: Tensor, work: torch.dtype, *coefficients) -> Iterator[tuple]:
        """Pieces of the batch: their rows; the largest log-weight of each, exponentials (rows, N)
        of all less it, which the next piece overwrites, and their sums; states and coefficients.
        """
        coefficients = [  # one row that was expanded over the batch is one row again
            c[:1] if isinstance(c, Tensor) and len(c) > 1 and c.stride(0) == 0 else c
            for c in coefficients
        ]
        y, gain, offset, _, doubtful = self._seen(x, *coefficients[:2], work)
        clear = not bool(doubtful.any())
        n = len(self._flat)
        wide = 0 if self.dim < UNSEARCHED else min(max(64, self.dim // 4), LARGEST // n)
        height = max(1, CACHED // n, wide)
        buffer = None
        if clear and not (torch.is_grad_enabled() and y.requires_grad):
            buffer = y.new_empty(min(height, len(x)), n)
        for start in range(0, len(x), height):
            rows = slice(start, start + height)
            part, *own = _each(rows, x, *coefficients)
            if clear:
                y_own, g, most = _each(rows, y, gain, offset)
                logits, settled = self._products(g * y_own, g * g, work, buffer), False
            else:
                most, logits, settled = self._logits(part, *own[:2], work)
            largest, share, total = _exponentials(logits, settled)
            yield rows, most + largest, share, total, part, *own

    def _seen(self, x: Tensor, alpha, sigma, work: torch.dtype) -> tuple:
        r"""Whitened states, gain, offsets, error of the log-weights, whether that is too large.

        With :math:`y = (x - \alpha o)/\sigma`, :math:`g = \alpha/\sigma` around an origin o the
        log-weights are :math:`g y\cdot z_i - \tfrac12 g^2|z_i|^2`, the offset of them all
        :math:`-\tfrac12|y|^2`; each term may be wrong by its last digit.
        """
        y, gain, _ = self._whitened(x, alpha, sigma, work)
        reach = self._radius * (gain.amax(1, True) if isinstance(gain, Tensor) else gain)
        norm = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=torch.float64)
        # On a device a look at the states would make the host wait: their usual size stands in.
        size = norm.detach() if x.device.type == "cpu" else reach + math.sqrt(self.dim) + 4
        error = torch.finfo(work).eps * reach * (size + 0.5 * reach)
        error = torch.as_tensor(error, dtype=torch.float64).expand(len(x), 1)
        return y, gain, -0.5 * norm.square(), error, 0.25 * error[:, 0] > PASSED[work]

    def _logits(self, x: Tensor, alpha, sigma, work: torch.dtype) -> tuple[Tensor, Tensor, bool]:
        """Offsets (rows, 1), log-weights (rows, N) less them, whether some of these are -inf."""
        y, gain, offset, error, doubtful = self._seen(x, alpha, sigma, work)
        if not bool(doubtful.any()):
            return offset, self._products(gain * y, gain * gain, work), False
        if not bool(doubtful.all()):
            return _apart(doubtful, lambda r: self._logits(*_each(r, x, alpha, sigma), work))
        if work != torch.float64 and self.dim < UNSEARCHED:
            return self._rounded(x, alpha, sigma, work)
        logits = self._products(gain * y, gain * gain, work)
        return self._settled(logits, error.to(logits), x, alpha, sigma)

    def _whitened(self, x: Tensor, alpha, sigma, work: torch.dtype) -> tuple:
        """States less the origin and alpha, both over sigma, and sigma, which is kept off 0."""
        alpha, sigma = (c.double() if isinstance(c, Tensor) else c for c in (alpha, sigma))
        least = self._least * self._radius
        if isinstance(alpha, Tensor):
            level = torch.maximum(_double(sigma, x), least * alpha.amax(1, keepdim=True))
        elif isinstance(sigma, Tensor):
            level = sigma.clamp_min(least * alpha)
        else:
            level = max(sigma, least * alpha)
        y = x.to(work)
        if self._origin is not None:
            y = x.double() - alpha * self._origin.double()
        return (y / level).to(work), alpha / level, level

    def _products(self, linear: Tensor, quadratic, work: torch.dtype, buffer=None) -> Tensor:
        """``linear . z_i - quadratic . z_i^2 / 2`` (rows, N) of the points z around the origin."""
        out = None if buffer is None else buffer[: len(linear)]
        linear = linear.to(work)
        whole = isinstance(quadratic, float)
        weight = quadratic if whole else quadratic.to(work)
        alike = whole or weight.shape[1] == 1
        parts = []
        for points in [slice(None)] if alike and self.dtype == work else self._pieces():
            piece = self._around[:, points].to(work)
            if alike:
                bias = (-0.5 * weight) * self._squares[work][points]
            else:
                bias = (-0.5 * weight) @ piece.square()
            place = None if out is None else out[:, points]
            parts.append(torch.addmm(bias, linear, piece, out=place))
        if out is not None:
            return out
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _rounded(self, x: Tensor, alpha, sigma, work: torch.dtype) -> tuple:
        """Log-weights formed in float64, less their largest, in ``work``."""
        offset, logits, settled = self._logits(x, alpha, sigma, torch.float64)
        most = logits.detach().amax(1, keepdim=True)
        return offset + most, logits.sub_(most).to(work), settled

    def _settled(self, logits: Tensor, error: Tensor, x: Tensor, alpha, sigma) -> tuple:
        """Log-weights of the points that ``error`` leaves in doubt, by differences in float64.

        Those of the others, too small to be seen, are -inf.
        """
        count, n, work = len(x), len(self._flat), logits.dtype
        whole = n // GROUP * GROUP
        tops = logits[:, :whole].unflatten(1, (-1, GROUP)).amax(-1)
        if whole < n:
            tops = torch.cat([tops, logits[:, whole:].amax(1, keepdim=True)], 1)
        least = tops.amax(1, keepdim=True) - (4 * error + math.log(n) + UNSEEN[work])
        near = tops >= least
        crowded = near.sum(1) > 8 + near.shape[1] // 8
        if work != torch.float64 and bool(crowded.all()):
            return self._rounded(x, alpha, sigma, work)
        mixed = work != torch.float64 and bool(crowded.any())
        if mixed or (count > 1 and int(near.sum()) * GROUP > PIECE):
            if not mixed:  # too much at once: one half, then the other
                crowded = torch.arange(count, device=x.device) < count // 2
            return _apart(
                crowded, lambda r: self._settled(*_each(r, logits, error, x, alpha, sigma))
            )
        row, group = near.nonzero(as_tuple=True)
        point = group[:, None] * GROUP + torch.arange(GROUP, device=x.device)
        near = logits[row[:, None], point.clamp(max=n - 1)] >= least[row]
        near &= point < n
        row, point = row[:, None].expand_as(near)[near], point[near]

        square = torch.empty(len(row), dtype=torch.float64, device=x.device)
        noise, scale, most = self._noise(x, alpha, sigma)
        for pairs in torch.arange(len(row), device=x.device).split(_rows(self._flat)):
            r, p = row[pairs], point[pairs]
            apart = x[r].double() - _of(alpha, r) * self._flat[p].double()
            square[pairs] = (apart * _of(scale, r)).square().sum(1)
        nearest = square.new_full((count,), math.inf).scatter_reduce_(0, row, square, "amin")
        further = square - nearest[row]
        level = noise[row]
        value = -0.5 * (further / level) / level
        tie = 4 * torch.finfo(torch.float64).eps * (nearest + most * self._away * nearest.sqrt())
        value[(level == 0) & (further <= tie[row])] = 0.0
        out = logits.new_full((count, n), -math.inf)
        out[row, point] = value.to(work)
        return (-0.5 * (nearest / noise) / noise)[:, None], out, True

    def _noise(self, x: Tensor, alpha, sigma) -> tuple[Tensor, float | Tensor, Tensor]:
        """Noise (rows,), its ratio to each coordinate's own, and the largest alpha (rows,)."""
        most = _double(alpha, x).amax(1).expand(len(x))
        if not isinstance(sigma, Tensor) or sigma.shape[1] == 1:
            return _double(sigma, x)[:, 0].expand(len(x)), 1.0, most
        level = self._whitened(x, alpha, sigma, torch.float64)[2]
        noise = level.amax(1, keepdim=True)
        own = torch.where((sigma == 0).all(1), torch.zeros_like(noise[:, 0]), noise[:, 0])
        return own.expand(len(x)), noise / level, most


def _exponentials(logits: Tensor, settled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Largest of each row (rows, 1), exponentials less it, in place, and their sums (rows, 1)."""
    most = logits.detach().amax(1, keepdim=True)
    least = LEAST[logits.dtype]
    share = logits.sub_(most).clamp_min_(least).exp_()
    if settled:
        share = torch.threshold_(share, 2 * math.exp(least), 0.0)
    return most, share, share.sum(1, keepdim=True)


def _survey(flat: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and squared norms of the points in float64, and how many repeat another; one pass."""
    total = flat.new_zeros(flat.shape[1], dtype=torch.float64)
    squares = flat.new_empty(len(flat), dtype=torch.float64)
    keys = []
    for rows in torch.arange(len(flat)).split(_rows(flat)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        piece = flat[part].double() + 0.0  # no -0: equal points have equal bytes
        total += piece.sum(0)
        squares[part] = piece.square().sum(1)
        keys += [hash(row.tobytes()) for row in piece.detach().cpu().numpy()]
    if not bool(squares.isfinite().all()):
        bad = sum(int((~p.isfinite()).sum()) for p in flat.split(_rows(flat)))
        raise ValueError(
            f"points holds {bad} values that are not finite; remove or replace them first."
            if bad
            else f"points reach {flat.abs().max():.3g}: their squares overflow; scale them down."
        )
    return total / len(flat), squares, len(keys) - len(set(keys))


def _rows(points: Tensor) -> int:
    """Rows of which a copy is small."""
    return max(1, PIECE // points.shape[1])


def _double(coefficient, x: Tensor) -> Tensor:
    """A coefficient as a float64 tensor (n or 1, d or 1)."""
    made = torch.as_tensor(coefficient, dtype=torch.float64, device=x.device)
    return made if made.ndim else made.reshape(1, 1)


def _gain(x: Tensor, alpha, sigma) -> Tensor:
    """``alpha / sigma^2`` (n or 1, d or 1), infinite at sigma = 0."""
    return _double(alpha, x) / _double(sigma, x) / _double(sigma, x)


def _scaled(value: Tensor, gain: Tensor) -> Tensor:
    """Their product, 0 where ``value`` is, however large the gain."""
    return torch.where(value == 0, torch.zeros_like(gain), value * gain)


def _of(coefficient, rows):
    """The coefficients of some rows of the batch."""
    if isinstance(coefficient, float) or len(coefficient) == 1:
        return coefficient
    return coefficient[rows]


def _each(rows: Tensor, *values) -> list:
    return [_of(value, rows) for value in values]


def _apart(kind: Tensor, solve: Callable) -> tuple[Tensor, Tensor, bool]:
    """What ``solve`` finds for the rows of each kind on their own, in their order."""
    parts = [(kind == which).nonzero()[:, 0] for which in (False, True)]
    order = torch.cat(parts).argsort()
    offset, logits, settled = zip(*map(solve, parts), strict=True)
    return torch.cat(offset)[order], torch.cat(logits)[order], any(settled)
