r"""A finite set of points, and how much each weighs in the posterior of a noisy state.

Given :math:`x` the points have the log-weights :math:`l_i = -|x - \alpha x_i|^2 / 2\sigma^2`. With
:math:`y = (x - \alpha o)/\sigma`, :math:`g = \alpha/\sigma` and :math:`z_i = x_i - o` around an
origin o they are

.. math:: l_i = g\, y\cdot z_i - \tfrac12 g^2 |z_i|^2 - \tfrac12 |y|^2 :

one matrix product, less what the points share. These terms cancel at small noise, each being wrong
by its last digit; where that would be felt they are formed in float64, and where it would be felt
even there, the few points still in doubt are told apart by their differences from the state. The
noise level and the state itself decide, never its neighbours in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workbench.denoisers.level import some

#: Numbers copied or compared at once (8 MB in float64).
PIECE = 1 << 20
#: Log-weights at once: bytes that stay in a cache where products are cheap, a number where not.
CACHED, LARGEST = 1 << 20, 1 << 24
#: Dimensions up to which columns are read faster than rows.
NARROW = 16
#: Log-weights up to which a product, a softmax and a product cost less than one fused pass; and
#: products up to which float64 costs less than a search for the points in doubt.
FUSED, SMALL = 1 << 15, 1 << 20
#: Points whose largest log-weight is looked at before their own.
GROUP = 64
#: Usual error of a log-weight that is let pass, logarithm of a share too small to be seen, and the
#: least logarithm formed: numbers next to underflow are a hundred times slower than others.
PASSED = {torch.float32: 1e-4, torch.float64: 1e-10}
UNSEEN = {torch.float32: 17.0, torch.float64: 37.0}
LEAST = {torch.float32: -70.0, torch.float64: -600.0}


class Points:
    """Equal point masses at the rows of ``flat`` (N, d), which is kept as it is if contiguous.

    Attributes:
        mean: (d,) float64.
        variance: trace of the covariance.
        origin: (d,) float64, or None for zero; ``around`` (d, N) are the points less it.
        repeated: how many points repeat another.

    Raises:
        ValueError: numbers that are not finite.
    """

    def __init__(self, flat: Tensor) -> None:
        flat = flat.contiguous()
        self.flat, (self.count, self.dim) = flat, flat.shape
        self.mean, squares, self.repeated = _survey(flat)
        self.origin, self._keys, mean = None, flat, self.mean
        away = mean.square().sum()
        if away > 4 * (squares.mean() - away):
            # The products would drown what tells the points apart: a copy around their mean serves
            # instead. Data nearer the origin need none, and large ones are not held twice.
            origin = mean.to(flat.dtype)
            self.origin, self._keys, mean = origin.double(), flat - origin, mean - origin.double()
            for points, piece in _converted(self._keys.T, torch.float64, copy=True):
                squares[points] = piece.square_().sum(0)
        self.variance = max(0.0, (squares.mean() - mean.square().sum()).item())
        self._squares = {form: squares.to(form) for form in PASSED}
        self._radius = squares.max().sqrt().item() or 1.0
        self._reach = away.sqrt().item() + self._radius
        self._least = (1e-12 if flat.dtype == torch.float64 else 1e-6) * self._radius
        self.around, self._table = self._keys.T, None
        if self.dim <= NARROW:
            self.around = self.around.contiguous()
            self._table = torch.cat([self._keys, self._squares[torch.float32][:, None]], 1)

    # -- sums over the points ------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Places and points (count, d) in float64, in pieces that overwrite one another."""
        return ((points, piece.T) for points, piece in _converted(self.flat.T, torch.float64))

    def sum(self, weights: Tensor, squared: bool = False) -> Tensor:
        """Sums (rows, d) of the points around the origin, or of their squares, weighted by
        ``weights`` (rows, N), in their dtype.
        """
        if weights.dtype == self.flat.dtype and not squared:
            return (self.around @ weights.T).T if self.dim <= NARROW else weights @ self._keys
        total, followed = weights.new_zeros(len(weights), self.dim), differentiated(weights)
        for points, piece in _converted(self.around, weights.dtype, followed):
            total.addmm_(weights[:, points], (piece.square() if squared else piece).T)
        return total

    def square_norms(self, weights: Tensor) -> Tensor:
        """Sums (rows, 1) of the points' squared norms around the origin, weighted, in float64."""
        return (weights.double() @ self._squares[torch.float64])[:, None]

    def placed(self, around: Tensor) -> Tensor:
        """Means (rows, d) around the origin where they are, in the dtype of the points."""
        return (around if self.origin is None else around + self.origin).to(self.flat.dtype)

    def products(self, linear: Tensor, quadratic, form: torch.dtype, buffer=None) -> Tensor:
        """``linear . z_i - quadratic . z_i^2 / 2`` (rows, N) of the points z around the origin."""
        linear = linear.to(form)
        weight = quadratic if isinstance(quadratic, float) else quadratic.to(form)
        alike = isinstance(weight, float) or weight.shape[1] == 1
        followed, parts = differentiated(linear), []
        if buffer is None and not followed:
            buffer = linear.new_empty(len(linear), self.count)
        whole = [(slice(None), self.around)]
        once = alike and self.flat.dtype == form
        for points, piece in whole if once else _converted(self.around, form, followed):
            if alike:
                bias = (-0.5 * weight) * self._squares[form][points]
            else:
                bias = (-0.5 * weight) @ piece.square()
            place = None if followed else buffer[: len(linear), points]
            parts.append(torch.addmm(bias, linear, piece, out=place))
        if not followed:
            return buffer[: len(linear)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    # -- the posterior -------------------------------------------------------------------------

    def mean_given(self, x: Tensor, alpha, sigma) -> Tensor:
        """Posterior mean (n, d) of the points given states (n, d)."""
        levels, n = _unexpanded(alpha, sigma), len(x)
        work = x.dtype if x.dtype in PASSED else torch.float32
        fused = x.dtype == torch.float32 and x.device.type == "cpu" and not differentiated(x)
        fused = fused and all(isinstance(level, float) for level in levels)
        kinds, out = self._kinds(x, *levels, work), torch.empty_like(x)
        while kinds:
            chosen, form, settle, seen = kinds.pop()
            if fused and form == x.dtype and not settle:
                mean = self.placed(self._attended(*seen[:2]))
                if len(mean) == n:
                    return mean
                out[chosen] = mean
                continue
            own, scratch, crowded = _each(chosen, x, *levels), None, []
            small = settle and 0 < n * self.count * self.dim <= SMALL
            # What float64 would leave in doubt is told apart at once.
            small = small and seen[3].max().item() * 2.0**-29 <= PASSED[torch.float64]
            if settle and form != torch.float64 and (small or self._dense(seen[1])):
                pieces, crowded = (), [torch.arange(n, device=x.device)[chosen]]
            else:
                pieces = self._formed(form, settle, seen, *own)
            for rows, logits, _, error, *part in pieces:
                rows = _within(chosen, rows)
                pairs = self._pairs(logits, error) if settle else None
                if pairs is not None:
                    out[rows] = self._mean_of_few(*pairs, *part).to(x.dtype)
                    continue
                if settle and form != torch.float64:
                    crowded.append(torch.arange(n, device=x.device)[rows])
                    continue
                if settle:
                    logits = self._settled(logits, error, *part)[1]
                if form != work and scratch is None and not differentiated(logits):
                    scratch = torch.empty_like(logits, dtype=work)
                _, share, total = _exponentials(logits, work, settle, scratch)
                out[rows] = self.placed(self.sum(share) / total)
            if crowded:  # too many points to look at one by one
                rows = torch.cat(crowded)
                finer = self._kinds(*_each(rows, x, *levels), torch.float64)
                kinds += [(rows[those], *kind) for those, *kind in finer]
        return out

    def weighed(self, x: Tensor, *levels) -> Iterator[tuple]:
        """The batch in pieces: their rows; the largest log-weight of each (rows, 1), exponentials
        (rows, N) of all less it, which the next piece overwrites, and their sums (rows, 1), in
        float64; whether only some points weigh anything; the states and levels (alpha, sigma, any
        others) of these rows.
        """
        levels = _unexpanded(*levels)
        for chosen, form, settle, seen in self._kinds(x, *levels[:2], torch.float64):
            own = _each(chosen, x, *levels)
            for rows, logits, offset, error, *part in self._formed(form, settle, seen, *own):
                if settle:
                    offset, logits = self._settled(logits, error, *part[:3])
                most, share, total = _exponentials(logits, torch.float64, settle)
                yield _within(chosen, rows), offset + most, share, total, settle, *part

    def _attended(self, y: Tensor, gain: float) -> Tensor:
        """Posterior means around the origin by one fused pass, the fastest in float32."""
        query, quadratic, mask = gain * y, -0.5 * gain * gain, None
        if len(y) * self.count <= FUSED:
            logits = torch.addmm(quadratic * self._squares[y.dtype], query, self.around)
            return torch.softmax(logits, 1) @ self._keys
        if self._table is not None:  # squared norms as one more coordinate
            keys = self._table[None, None]
            query = torch.cat([query, query.new_full((len(y), 1), quadratic)], 1)
        else:
            keys, mask = self._keys[None, None], quadratic * self._squares[y.dtype]
        parts = []
        for part in query.split(max(1, LARGEST // self.count)):
            bias = None if mask is None else mask.expand(len(part), -1)
            part = scaled_dot_product_attention(part[None, None], keys, keys, bias, scale=1.0)
            parts.append(part[0, 0, :, : self.dim])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _kinds(self, x: Tensor, alpha, sigma, form: torch.dtype) -> list[tuple]:
        """Rows of one kind: which, the dtype of their log-weights, whether these are in doubt, and
        what :meth:`_seen` says of them.
        """
        *seen, doubtful = self._seen(x, alpha, sigma, form)
        if doubtful is None:
            return [(slice(None), form, False, seen)]
        every = bool(doubtful.all())
        if bool(doubtful.any()) == every:
            return [(slice(None), form, every, seen)]
        parts = [(doubtful == which).nonzero()[:, 0].to(x.device) for which in (False, True)]
        return [(rows, form, bool(which), _each(rows, *seen)) for which, rows in enumerate(parts)]

    def _dense(self, gain) -> bool:
        """Whether a state is likely to see many points, as if they were a Gaussian's, so that a
        search for them would be vain.
        """
        gain = gain if isinstance(gain, float) else gain.min().item()
        seen = math.sqrt(2 * math.e * (UNSEEN[torch.float32] + math.log(self.count)))
        fraction = seen / max(gain * math.sqrt(self.variance), 1e-3 * seen)
        return self.dim * math.log(fraction) > math.log(GROUP / self.count)

    def _formed(self, form, settle: bool, seen, x: Tensor, *levels) -> Iterator[tuple]:
        """A batch in pieces: rows, log-weights (rows, N) less what all points share, that, their
        error, states and levels. Each piece overwrites the log-weights of the one before.
        """
        y, gain, offset, error = seen
        wide = 0 if self.dim <= NARROW else min(max(64, self.dim // 4), LARGEST // self.count)
        cached = (4 if settle else 1) * CACHED // (self.count * y.element_size())
        height = max(1, cached, wide)  # a search has few passes and many small steps
        buffer = None
        if not differentiated(y):  # fresh memory for each piece would cost as much as its use
            buffer = y.new_empty(min(height, len(y)), self.count)
        for start in range(0, len(y), height):
            rows = slice(start, start + height)
            z, g = _each(rows, y, gain)
            logits = self.products(g * z, g * g, form, buffer)
            yield rows, logits, *_each(rows, offset, error, x, *levels)

    def _seen(self, x: Tensor, alpha, sigma, form: torch.dtype) -> tuple:
        """Whitened states, gain, log-weight that all points share, usual error of those formed in
        ``form`` (n, 1), and whether that is too large (n,), None where it is of none.

        A sum of d products, added up one by one, goes wrong by a fraction of a last digit of its
        size where they are of either sign, and by sqrt(d) of these where all are of one: as for
        the part of a state that is no noise.
        """
        y, gain, _ = self.whitened(x, alpha, sigma, form)
        reach = self._radius * (gain.amax(1, True) if isinstance(gain, Tensor) else gain)
        norm = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=torch.float64)
        offset = -0.5 * norm.square()
        plain = len(x) and x.device.type == "cpu" and not differentiated(norm)
        if plain and isinstance(reach, float):
            # Where not even the largest state is in doubt none need be looked at.
            most, root = norm.max().item(), math.sqrt(self.dim)
            signal = min(most, math.sqrt(max(most * most - self.dim, 0.0)) + 6)
            error = torch.finfo(form).eps * reach * (0.2 * (most + reach) + 0.17 * root * signal)
            if error <= PASSED[form]:
                return y, gain, offset, error, None
        # On a device a look at the states would make the host wait: their usual size stands in.
        size = norm.detach() if x.device.type == "cpu" else reach + math.sqrt(self.dim) + 4
        size = torch.as_tensor(size, dtype=torch.float64)
        signal = torch.minimum(size, (size.square() - self.dim).clamp_min(0.0).sqrt() + 6)
        error = 0.2 * (size + reach) + 0.17 * math.sqrt(self.dim) * signal
        error = (torch.finfo(form).eps * reach * error).expand(len(x), 1)
        return y, gain, offset, error, error[:, 0] > PASSED[form]

    def whitened(self, x: Tensor, alpha, sigma, form: torch.dtype) -> tuple:
        """States less alpha times the origin, and alpha, both over sigma; and sigma, kept off 0."""
        alpha, sigma = (c.double() if isinstance(c, Tensor) else c for c in (alpha, sigma))
        if isinstance(alpha, Tensor):
            least = self._least * alpha.amax(1, keepdim=True)
            level = torch.maximum(as_double(sigma, x), least)
        elif isinstance(sigma, Tensor):
            level = sigma.clamp_min(self._least * alpha)
        else:
            level = max(sigma, self._least * alpha)
        y = x.to(form) if self.origin is None else x.double() - alpha * self.origin
        return (y / level).to(form), alpha / level, level

    # -- what is in doubt ----------------------------------------------------------------------

    def _pairs(self, logits: Tensor, error: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows and points whose log-weights (rows, N) the error leaves in doubt; None if these are
        too many. What the others weigh is too little to be seen.
        """
        n, form = self.count, logits.dtype
        whole = n // GROUP * GROUP
        tops = logits[:, :whole].unflatten(1, (-1, GROUP)).amax(-1)
        if whole < n:
            tops = torch.cat([tops, logits[:, whole:].amax(1, keepdim=True)], 1)
        margin = (16 * error + math.log(n) + UNSEEN[form]).to(tops)
        least = tops.amax(1, keepdim=True) - margin
        row, group = (tops >= least).nonzero(as_tuple=True)
        most = PIECE // GROUP
        if form != torch.float64:  # to form them anew in float64 may be less work
            most = min(most, len(logits) * (8 + n // (8 * GROUP)))
        if len(row) > most and (len(logits) > 1 or form != torch.float64):
            return None
        point = group[:, None] * GROUP + torch.arange(GROUP, device=logits.device)
        near = logits[row[:, None], point.clamp(max=n - 1)] >= least[row]
        near &= point < n
        return row[:, None].expand_as(near)[near], point[near]

    def _settled(self, logits: Tensor, error: Tensor, x: Tensor, alpha, sigma) -> tuple:
        """Offsets (rows, 1) and log-weights (rows, N) in float64: those in doubt by differences,
        the others -inf.
        """
        pairs = self._pairs(logits, error)
        if pairs is None:  # too many at once: one half, then the other
            halves = torch.arange(len(x), device=x.device).chunk(2)
            found = [self._settled(*_each(h, logits, error, x, alpha, sigma)) for h in halves]
            return tuple(map(torch.cat, zip(*found, strict=True)))
        value, offset = self._differences(*pairs, x, alpha, sigma)
        out = torch.full_like(logits, -math.inf)
        out[pairs] = value
        return offset, out

    def _mean_of_few(self, row: Tensor, point: Tensor, x: Tensor, alpha, sigma) -> Tensor:
        """Posterior means (rows, d) of a few points for each state."""
        share = self._differences(row, point, x, alpha, sigma)[0].exp()
        mean = share.new_zeros(x.shape)
        for pairs in split(torch.arange(len(row), device=x.device), self.dim):
            weighted = share[pairs, None] * self.flat[point[pairs]].double()
            mean = mean.index_add(0, row[pairs], weighted)
        return mean / share.new_zeros(len(x)).index_add(0, row, share)[:, None]

    def _differences(self, row: Tensor, point: Tensor, x: Tensor, alpha, sigma) -> tuple:
        """Log-weights of pairs of row and point less the row's largest, and that (rows, 1)."""
        square = x.new_empty(len(row), dtype=torch.float64)
        noise, scale = self._noise(x, alpha, sigma)
        for pairs in split(torch.arange(len(row), device=x.device), self.dim):
            r, p = row[pairs], point[pairs]
            apart = x[r].double() - some(alpha, r) * self.flat[p].double()
            square[pairs] = (apart * some(scale, r)).square().sum(1)
        nearest = square.new_full((len(x),), math.inf).scatter_reduce(0, row, square, "amin")
        further, level = square - nearest[row], noise[row]
        value = -0.5 * (further / level) / level
        most = as_double(alpha, x).amax(1).expand(len(x))
        tie = 4 * torch.finfo(torch.float64).eps * (nearest + most * self._reach * nearest.sqrt())
        value = torch.where((level == 0) & (further <= tie[row]), torch.zeros_like(value), value)
        return value, (-0.5 * (nearest / noise) / noise)[:, None]

    def _noise(self, x: Tensor, alpha, sigma) -> tuple[Tensor, float | Tensor]:
        """Noise (rows,), and its ratio to that of each coordinate."""
        if not isinstance(sigma, Tensor) or sigma.shape[1] == 1:
            return as_double(sigma, x)[:, 0].expand(len(x)), 1.0
        level = self.whitened(x, alpha, sigma, torch.float64)[2]
        noise = level.amax(1, keepdim=True)
        own = torch.where((sigma == 0).all(1), torch.zeros_like(noise[:, 0]), noise[:, 0])
        return own.expand(len(x)), noise / level


def _exponentials(logits: Tensor, work: torch.dtype, settled: bool, scratch=None) -> tuple:
    """Largest of each row (rows, 1), exponentials of all less it, and their sums; overwrites."""
    most = logits.detach().amax(1, keepdim=True)
    share = logits.sub_(most)
    share = share.to(work) if scratch is None else scratch[: len(share)].copy_(share)
    share = share.clamp_min_(LEAST[work]).exp_()
    if settled:  # what is -inf weighs nothing
        threshold = torch.threshold if share.requires_grad else torch.threshold_
        share = threshold(share, 2 * math.exp(LEAST[work]), 0.0)
    return most, share, share.sum(1, keepdim=True)


def _survey(flat: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and squared norms of the points in float64, and how many repeat another; one pass."""
    total = flat.new_zeros(flat.shape[1], dtype=torch.float64)
    squares, keys = flat.new_empty(len(flat), dtype=torch.float64), []
    for rows, piece in _converted(flat.detach().T, torch.float64, copy=True):
        piece = piece.T.add_(0.0)  # no -0: equal points have equal bytes
        total += piece.sum(0)
        keys += [hash(row.tobytes()) for row in piece.cpu().numpy()]
        squares[rows] = piece.square_().sum(1)
    if not bool(squares.isfinite().all()):
        bad = sum(int((~part.isfinite()).sum()) for part in split(flat))
        raise ValueError(
            f"points holds {bad} values that are not finite; remove or replace them first."
            if bad
            else f"points reach {flat.abs().max():.3g}: their squares overflow; scale them down."
        )
    return total / len(flat), squares, len(keys) - len(set(keys))


def _converted(columns: Tensor, dtype: torch.dtype, fresh=False, copy=False) -> Iterator[tuple]:
    """Columns (d, N) in another dtype, in pieces with their places; each overwrites the one before
    unless ``fresh``: memory given back and asked for again in between ends in shreds.
    """
    rows, scratch = max(1, PIECE // len(columns)), None
    for start in range(0, columns.shape[1], rows):
        points = slice(start, start + rows)
        piece = columns[:, points]
        if copy or piece.dtype != dtype:
            if scratch is None or fresh:
                scratch = torch.empty_like(piece, dtype=dtype)
            piece = scratch[:, : piece.shape[1]].copy_(piece)
        yield points, piece


def split(values: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """Pieces of the first axis that are small, their elements taken to be of ``width`` numbers."""
    return values.split(max(1, PIECE // (width or values[0].numel())))


def as_double(coefficient, x: Tensor) -> Tensor:
    """A coefficient as a float64 tensor (n or 1, d or 1) beside ``x``."""
    made = torch.as_tensor(coefficient, dtype=torch.float64, device=x.device)
    return made if made.ndim else made.reshape(1, 1)


def differentiated(x: Tensor) -> bool:
    """Whether autograd follows ``x``, backward or forward: then nothing is overwritten."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None


def _unexpanded(*levels) -> list:
    """One row that was expanded over the batch is one row again."""
    return [
        c[:1] if isinstance(c, Tensor) and len(c) > 1 and c.stride(0) == 0 else c for c in levels
    ]


def _each(rows, *values) -> list:
    """What belongs to some rows of the batch; a number, or a single row, belongs to all."""
    return [some(value, rows) for value in values]


def _within(chosen, rows):
    """Rows of the chosen rows, as rows of the batch."""
    return rows if isinstance(chosen, slice) else chosen[rows]
