r"""The only source of randomness: noise is a function of (seed, draw, coordinate), nothing else.

A counter-based generator (Philox4x32-10) turns the key ``seed`` and the counter ``(pair of
coordinates, draw, stream)`` into bits, and Box-Muller turns bits into normals in float64. The noise
of a sample therefore never depends on the batch it runs in, on how the batch is cut into pieces, on
the device, or on what else is drawn. To the last bit: the logarithm, sine and cosine of a vector
unit round differently from machine to machine, and at the end of a batch differently from its
middle, so here they are polynomials of sums, products and quotients, which IEEE 754 defines.

A :class:`BrownianSource` makes the noise of a step from one Brownian path instead, the same on
every grid: runs of N and of 2N steps then solve the same stochastic equation along the same path.

Sources: Salmon, Moraes, Dror & Shaw 2011, *Parallel random numbers: as easy as 1, 2, 3* (SC11);
Lévy 1948, *Processus stochastiques et mouvement brownien* (the construction by bisection);
Sun Microsystems 1993, *fdlibm* (the polynomials of e_log.c, k_sin.c and k_cos.c);
Li, Wong, Chen & Duvenaud 2020, arXiv:2001.01328 (a tree that is never stored).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.params import shown

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

#: Streams: what a draw is for. The start of a run, its steps and the rest never share a counter.
START, STEP, PATH, TRANSPORT = 0, 1, 2, 3

#: log 2 in two parts, the first with trailing zeros so that its multiples are exact.
LOG2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)
#: Coefficients, highest first, of log(1 + f) in s^2 with s = f/(2 + f), and of cosine and sine in
#: y^2, side by side so that one pass evaluates all three.
POLYNOMIALS = (
    (1.479819860510658591e-01, 0.0, 0.0),
    (1.531383769920937332e-01, -1.13596475577881948265e-11, 1.58969099521155010221e-10),
    (1.818357216161805012e-01, 2.08757232129817482790e-09, -2.50507602534068634195e-08),
    (2.222219843214978396e-01, -2.75573143513906633035e-07, 2.75573137070700676789e-06),
    (2.857142874366239149e-01, 2.48015872894767294178e-05, -1.98412698298579493134e-04),
    (3.999999999940941908e-01, -1.38888888888741095749e-03, 8.33333333332248946124e-03),
    (6.666666666666735130e-01, 4.16666666666666019037e-02, -1.66666666666666324348e-01),
)

#: Normals made at once, so that many small steps share the cost of a call.
BLOCK = 1 << 17


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: four 32-bit words per counter.

    Args:
        counter: (4, *shape) int64 holding unsigned 32-bit words.
        key: (2, *shape) or what broadcasts to it, likewise.

    Returns:
        (4, *shape) int64 holding unsigned 32-bit words.
    """
    (a, b, c, d), (one, two) = counter, key
    for _ in range(10):
        # Products wrap modulo 2^64: their bits are those of the unsigned ones.
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a = (second >> 32).bitwise_xor_(b).bitwise_xor_(one).bitwise_and_(MASK)
        c = (first >> 32).bitwise_xor_(d).bitwise_xor_(two).bitwise_and_(MASK)
        b, d = second.bitwise_and_(MASK), first.bitwise_and_(MASK)
        one, two = (one + WEYL[0]) & MASK, (two + WEYL[1]) & MASK
    return torch.stack([a, b, c, d])


def seed_tensor(seeds: Sequence[int] | Tensor, device=None) -> Tensor:
    """Seeds as an int64 tensor (n,).

    Raises:
        ValueError: no seed, or one that is negative, fractional or beyond 2^63 - 1.
    """
    if not hasattr(seeds, "__iter__") or getattr(seeds, "ndim", 1) == 0:
        raise ValueError(
            f"seeds was {shown(seeds)}; give one seed per sample, e.g. seeds=range(256)."
        )
    ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else (-1,)
    if min(ends) >= 0 and max(ends) < (1 << 63) - 1:  # no need to look at each
        return torch.arange(seeds.start, seeds.stop, seeds.step, device=device)
    values = seeds.tolist() if hasattr(seeds, "tolist") else list(seeds)
    if not values:
        raise ValueError("seeds was empty; give one seed per sample, e.g. seeds=range(256).")
    for value in values:
        whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0
        if not whole or not 0 <= value < 1 << 63:
            raise ValueError(
                f"a seed was {shown(value)}; seeds must be whole numbers from 0 to 2^63 - 1."
            )
    return torch.tensor([int(value) for value in values], dtype=torch.int64, device=device)


def normal(seeds: Tensor, numel: int, draws: Sequence[int], stream: int) -> Tensor:
    """Standard normals, float64, of shape (len(draws), len(seeds), numel)."""
    return _normals(seeds, numel, [(draw, stream, 0) for draw in draws])


def _normals(seeds: Tensor, numel: int, places: Sequence[tuple[int, int, int]]) -> Tensor:
    """Standard normals (len(places), len(seeds), numel); a place is three words of the counter."""
    pairs = (numel + 1) // 2
    device = seeds.device
    words = torch.tensor(places, dtype=torch.int64, device=device).T[..., None, None]
    shape = (len(places), len(seeds), pairs)
    pair = torch.arange(pairs, device=device).expand(1, *shape)
    counter = torch.cat([pair, words.expand(3, *shape)])
    key = torch.stack([seeds & MASK, seeds >> 32])[:, None, :, None]
    words = philox(counter, key).flatten(1)
    # Two 53-bit uniforms: in (0, 1] for the logarithm, in [0, 1) for the angle.
    bits = (words[0::2] << 21) ^ (words[1::2] >> 11)
    normals = _box_muller((bits[0] + 1).double() * 2.0**-53, bits[1].double() * 2.0**-53)
    both = torch.stack(normals, dim=-1)
    return both.reshape(len(places), len(seeds), 2 * pairs)[..., :numel]


def _box_muller(u: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    r"""Normals :math:`\sqrt{-2\log u}\,(\cos 2\pi a, \sin 2\pi a)` of u in (0, 1], a in [0, 1).

    Only sums, products, quotients and roots, which round alike everywhere, and never a product and
    a sum in one instruction. Each function is right to about a unit in the last place.

    .. math:: u = 2^e (1 + f),\ s = f/(2 + f):\quad \log u = e\log 2 + f - s (f - s^2 R(s^2))
    .. math:: a = q/4 + y/2\pi,\ |y| \le \pi/4:\quad \cos y = 1 - y^2/2 + y^4 C(y^2),\
              \sin y = y + y^3 S(y^2)
    """
    mantissa, exponent = torch.frexp(u)
    below = (mantissa < math.sqrt(0.5)).to(u.dtype)
    f = mantissa * (1.0 + below) - 1.0
    exponent = exponent - below
    s = f / (f + 2.0)
    quarter = (4.0 * turns).round_()
    y = (turns - 0.25 * quarter) * (2.0 * math.pi)  # the difference is exact
    powers = torch.stack([s, y, y]).square_()
    first, *rest = torch.tensor(POLYNOMIALS, dtype=u.dtype, device=u.device)[..., None]
    values = powers * first
    for c in rest[:-1]:
        values.add_(c).mul_(powers)
    logs, cosines, sines = values.add_(rest[-1])
    inner = s * (f - powers[0] * logs)
    log = exponent * LOG2[0] - ((inner - exponent * LOG2[1]) - f)
    cosine = 1.0 - powers[1] * (0.5 - powers[1] * cosines)
    sine = y + y * (powers[1] * sines)
    # A quarter turn is (c, s) -> (-s, c): products with 0, 1 and -1, which are exact.
    turn = torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0], dtype=u.dtype, device=u.device)
    quarter = quarter.long()
    c, d = turn[quarter], turn[(quarter + 3) % 4]
    radius = (-2.0 * log).sqrt_()
    return radius * (c * cosine - d * sine), radius * (d * cosine + c * sine)


class NoiseSource:
    """The noise of one run: sample i's draws depend on seed i alone.

    Args:
        seeds: one whole number per sample.
        event_shape: shape of one sample.
        dtype, device: of what is handed out; drawn in float64 and rounded.
    """

    def __init__(self, seeds, event_shape: torch.Size, dtype=torch.float64, device=None) -> None:
        self.seeds = seed_tensor(seeds, device)
        self.shape = torch.Size((len(self.seeds), *event_shape))
        self.dtype = dtype
        self._numel = math.prod(event_shape)
        self._first, self._block = 0, None

    def start(self) -> Tensor:
        """The standard normals (n, *event) a run starts from."""
        return self._cast(normal(self.seeds, self._numel, [0], START)[0])

    def step(self, draw: int, interval: tuple[float, float] | None = None) -> Tensor:
        """The standard normals (n, *event) of draw number ``draw`` of the run.

        ``interval`` is (from, to) in time for the first draw of a step, None for further ones;
        fresh noise does not depend on it.
        """
        if self._block is None or not self._first <= draw < self._first + len(self._block):
            # Twice as many as were drawn before: a short run makes no more than it needs.
            count = min(max(8, 2 * draw), max(1, BLOCK // (len(self.seeds) * self._numel)))
            backwards = self._block is not None and draw < self._first
            self._first = max(0, draw + 1 - count) if backwards else draw
            draws = range(self._first, self._first + count)
            self._block = self._cast(normal(self.seeds, self._numel, draws, STEP), count)
        return self._block[draw - self._first]

    def _cast(self, values: Tensor, *lead: int) -> Tensor:
        return values.to(self.dtype).reshape(*lead, *self.shape)


#: Bits of a float64 behind its leading one.
BITS = 52
#: How often an octave is halved; within the last cell W is bridged straight to the time asked for.
DEPTH = 24
#: Below 2 to this power the path is a straight line to 0: no process resolves such times.
LEAST_OCTAVE = -60


class BrownianSource(NoiseSource):
    r"""The noise of one run, each step's from the sample's own Brownian path in process time.

    .. math:: z = \frac{W(t) - W(t')}{\sqrt{t - t'}}\ \text{for a step from } t \text{ to } t' < t

    so that z is standard normal, independent over steps, and the increments of a coarse grid are
    the sums of those of any finer one. W is a function of (seed, time, coordinate) alone: at powers
    of two a sum of independent increments, between them Lévy's bisection,
    :math:`W(\tfrac{l + r}{2}) = \tfrac12 (W(l) + W(r)) + \tfrac12\sqrt{r - l}\,z`, of a
    depth of 24, and in the last cell a bridge to the time itself. The noise of a step shorter than
    two such cells, 1.2e-7 of its time, is fresh. A time costs up to 25 normals a coordinate, less
    what its path through the tree shares with that of the time before.

    Only the first draw of a step is of the path; what else a step draws (a corrector) is fresh.
    """

    def __init__(self, seeds, event_shape: torch.Size, dtype=torch.float64, device=None) -> None:
        super().__init__(seeds, event_shape, dtype, device)
        self._known: dict[float, Tensor] = {}
        self._cells: dict[tuple[int, int, int], Tensor] = {}
        self._octaves: Tensor | None = None

    def step(self, draw: int, interval: tuple[float, float] | None = None) -> Tensor:
        if interval is None:
            return super().step(draw)
        low, high = sorted(interval)
        if high - low < high * 2.0 ** (1 - DEPTH):
            return super().step(draw)
        self._known = {low: self._value(low), high: self._value(high)}
        return self._cast((self._known[high] - self._known[low]) / math.sqrt(high - low))

    def path(self, t: float) -> Tensor:
        """W(t) (n, *event), with W(0) = 0 and variance t.

        Raises:
            ValueError: a time that is negative or not finite.
        """
        if not 0 <= t < math.inf:
            raise ValueError(f"t was {t!r}; a Brownian path is known at times from 0 on.")
        return self._cast(self._value(t))

    def _value(self, t: float) -> Tensor:
        """W(t), float64, (n, numel)."""
        if t in self._known:
            return self._known[t]
        if t < 2.0**LEAST_OCTAVE:
            return self._bound(LEAST_OCTAVE) * (t * 2.0**-LEAST_OCTAVE)
        octave = math.frexp(t)[1] - 1
        start = width = 2.0**octave
        bits = int((t / start - 1) * 2**BITS)  # exact, as is all that follows
        left = self._bound(octave)
        if not bits:
            return left
        depth = min(DEPTH, BITS - (bits & -bits).bit_length() + 1)  # later bits are 0
        cells = [bits >> (BITS - level) for level in range(depth + 1)]
        places = [_place(octave, 0, 0)]
        places += [_place(octave, level + 1, cells[level]) for level in range(depth)]
        within = (t - start) / start * 2**depth - cells[depth]  # of the last cell, in [0, 1)
        if within:
            places.append(_place(octave, BITS, bits))
        first, *halves = self._normals(places)
        right = left + math.sqrt(width) * first
        for level, z in enumerate(halves[:depth]):
            middle = 0.5 * (left + right) + (0.5 * math.sqrt(width)) * z
            left, right = (middle, right) if cells[level + 1] & 1 else (left, middle)
            width *= 0.5
        if within:
            spread = math.sqrt(width * within * (1 - within))
            return left + within * (right - left) + spread * halves[depth]
        return left

    def _bound(self, octave: int) -> Tensor:
        """W(2^octave): the sum of the increments over all octaves below."""
        if self._octaves is None or octave - LEAST_OCTAVE >= len(self._octaves):
            below = range(LEAST_OCTAVE, octave)
            places = [_place(LEAST_OCTAVE, BITS + 1, 0), *(_place(k, 0, 0) for k in below)]
            scales = [2.0 ** (0.5 * k) for k in (LEAST_OCTAVE, *below)]
            steps = [c * z for c, z in zip(scales, self._normals(places), strict=True)]
            self._octaves = torch.stack(steps).cumsum(0)
        return self._octaves[octave - LEAST_OCTAVE]

    def _normals(self, places: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Standard normals (n, numel) of each place; those of the call before are still there."""
        new = [place for place in places if place not in self._cells]
        share = max(1, BLOCK // (len(self.seeds) * self._numel))
        pieces = (new[i : i + share] for i in range(0, len(new), share))
        drawn = (z for piece in pieces for z in _normals(self.seeds, self._numel, piece))
        known = self._cells | dict(zip(new, drawn, strict=True))
        self._cells = {place: known[place] for place in places}
        return list(self._cells.values())


def _place(octave: int, level: int, index: int) -> tuple[int, int, int]:
    """Counter words of cell ``index`` at bisection ``level`` of the octave [2^k, 2^(k+1)]."""
    return index & MASK, PATH | level << 8 | (octave + 1100) << 16, index >> 32


#: What the noise of a run may be, by the name that ``wb.sample`` takes.
NOISES: dict[str, type[NoiseSource]] = {"fresh": NoiseSource, "brownian": BrownianSource}
