r"""Distances between two laws that are known by samples: estimates, errors, null bands, p-values.

Each statistic is compared with itself after both sets were mixed and parted at random, which keeps
its level whatever the law (Fisher's permutation test). The energy distance and the maximum mean
discrepancy are unbiased: zero on average where the laws are the same. The squared Wasserstein
distances are above zero there, by about what the mixed sets show on average; that is subtracted.

Sources: Székely & Rizzo 2013, J. Stat. Plan. Inference 143, 1249 (energy); Gretton et al. 2012,
JMLR 13, 723 (MMD); Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22 (sliced W2); Phipson & Smyth
2010, Stat. Appl. Genet. Mol. Biol. 9, 39 (p-values).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.lenses.output import influence, transport

#: Samples of either law that a statistic needs.
LEAST = 16

#: Mixtures that are parted for a null band and a p-value; of exact transport, which is dear.
PERMUTATIONS, TRANSPORTED = 199, 39

#: Swaps of pairs, which tell the spread of a null band.
SWAPS = 99

#: Directions of the sliced distance; dimensions up to which transport between points says
#: anything, and the points of either set that are transported.
DIRECTIONS, PLANAR, POINTS = 32, 3, 256

#: Numbers held at once.
NUMBERS = 1 << 23


@dataclass(frozen=True)
class Compared:
    """What :func:`compare` finds of one statistic.

    Attributes:
        value: the distance: of squared ones the root of what is left of the square, at least 0.
        error: standard error; nan where the value is not told from zero.
        low, high: what the value falls between, with probability 1 - level, under one law.
        p: probability of a value at least as large under one law.
    """

    value: float
    error: float
    low: float
    high: float
    p: float


def compare(
    a: Tensor,
    b: Tensor,
    names: tuple[str, ...],
    level: float = 0.05,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> dict[str, Compared]:
    """Two sets of samples by several statistics.

    Args:
        a, b: as many samples of each law (n, *event), drawn independently.
        names: of :data:`STATISTICS`; ``"transport"`` is left out above three dimensions, where
            the distance between the points is that of points, not of laws.
        level: null bands hold with probability 1 - level.
        seed, permutations: of the permutations, and how many (of exact transport, 39).

    Raises:
        ValueError: sets that differ in shape, are not finite, or have too few samples.
    """
    x, y = (one.flatten(1).double().cpu() for one in (a, b))
    if x.shape != y.shape:
        raise ValueError(
            f"the sets have shapes {tuple(x.shape)} and {tuple(y.shape)}; they differ."
        )
    if len(x) < LEAST:
        raise ValueError(f"there are {len(x)} samples of each law; at least {LEAST} are needed.")
    wrong = int((~torch.cat([x, y]).isfinite().all(1)).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of {2 * len(x)} samples are not finite numbers: the sampler diverged, or "
            "they are outside of the range of floating point. Take more steps."
        )
    generator = torch.Generator().manual_seed(seed)
    n, both = len(x), torch.cat([x, y])
    first = torch.zeros(permutations + 1, 2 * n, dtype=torch.bool)
    first[0, :n] = True
    for row in first[1:]:
        row[torch.randperm(2 * n, generator=generator)[:n]] = True
    found = {}
    for name in names:
        if name == "transport" and x.shape[1] > PLANAR:
            continue
        statistic, squared = STATISTICS[name]
        values, error = statistic(both, first)
        found[name] = _judged(values, error, squared, level)
    return found


def compare_paired(
    x: Tensor, y: Tensor, reference: Tensor, level: float = 0.05, seed: int = 0
) -> Compared:
    """How much farther ``x`` is from a reference than ``y``: squared W2, the mean over columns.

    The members of each pair are swapped at random for the null band: what the difference is when
    both are of one law, however strongly a pair is correlated.

    Args:
        x, y: features of pairs of samples (n, columns), of the same seeds say.
        reference: (n, columns), independent of both.
        level: the null band holds with probability 1 - level.
        seed: of the swaps.
    """
    generator = torch.Generator().manual_seed(seed)
    n, goal = len(x), reference.sort(0)[0]
    one, other, along = (part.T.contiguous() for part in (x, y, goal))  # sorted fast along n

    def apart(some: Tensor) -> Tensor:
        return (some.sort(-1)[0] - along).square().mean((-2, -1))

    swaps = torch.rand(SWAPS, 1, n, generator=generator) < 0.5
    null = torch.cat(
        [
            apart(torch.where(swapped, one, other)) - apart(torch.where(swapped, other, one))
            for swapped in swaps.split(max(1, NUMBERS // one.numel()))
        ]
    )
    value = (apart(one) - apart(other)).item()
    each = _potential(x, goal) - _potential(y, goal)
    error = math.sqrt(each.var().item() / n)
    # To a swap of all pairs there is the swap of none, with the opposite sign: the mean is 0.
    spread = null.square().mean().sqrt().item()
    high = spread * NormalDist().inv_cdf(1 - level / 2)
    p = 1 - NormalDist(0, spread).cdf(value) if spread else 1.0
    return Compared(value, error, -high, high, p)


def _judged(values: Tensor, error: float, squared: bool, level: float) -> Compared:
    """The first value against the others, which mixed sets gave."""
    value, null = values[0], values[1:]
    # The rounding of two ways to add the same numbers is no difference.
    tie = 1e-12 * values.abs().max()
    p = (1 + int((null >= value - tie).sum())) / (1 + len(null))
    if not squared:
        tails = torch.tensor([level / 2, 1 - level / 2], dtype=torch.float64)
        low, high = torch.quantile(null, tails).tolist()
        return Compared(value.item(), error, low, high, p)
    left = (value - null.mean()).item()
    high = torch.quantile(null - null.mean(), 1 - level).clamp_min(0).sqrt().item()
    root = math.sqrt(max(0.0, left))
    return Compared(root, error / (2 * root) if left > 3 * error else math.nan, 0.0, high, p)


# ---- the statistics: of all partings, and the standard error of the first ------------------------


def _of_fits(both: Tensor, first: Tensor) -> tuple[Tensor, float]:
    """Squared W2 between the Gaussians of both means and covariances."""
    n, dim = len(both) // 2, both.shape[1]
    centre = both.mean(0)
    z = both - centre
    products = (z[:, :, None] * z[:, None]).flatten(1)
    rows = max(1, NUMBERS // (dim * dim))
    values = [_bures(part.double(), z, products, n) for part in first.split(rows)]
    x, y = both[:n], both[n:]
    fits = Gaussian.fit(x), Gaussian.fit(y)
    slopes = [
        influence(mine, other, transport(fit, other)).var() / n
        for mine, fit, other in ((x, *fits), (y, *reversed(fits)))
    ]
    return torch.cat(values), math.sqrt(sum(slopes).item())


def _bures(first: Tensor, z: Tensor, products: Tensor, n: int) -> Tensor:
    dim, fits = z.shape[1], []
    for side in (first, 1 - first):
        mean = side @ z / n
        second = (side @ products / n).reshape(-1, dim, dim)
        cov = (second - mean[:, :, None] * mean[:, None]) * (n / (n - 1))
        fits.append((mean, cov, _factor(cov)))
    (m, c, root), (other_m, other_c, other_root) = fits
    nuclear = torch.linalg.svdvals(root.mT @ other_root).sum(-1)
    traces = (c + other_c).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (m - other_m).square().sum(-1) + traces - 2 * nuclear


def _factor(cov: Tensor) -> Tensor:
    """L with ``L L^T`` the covariances (n, d, d): by Cholesky where none is singular."""
    lower, info = torch.linalg.cholesky_ex(cov)
    least, most = lower.diagonal(dim1=-2, dim2=-1).aminmax(dim=-1)
    if not bool(info.any()) and bool((least > 1e-5 * most).all()):
        return lower
    values, basis = torch.linalg.eigh(cov)
    return basis * values.clamp_min(0).sqrt()[:, None]


def _sliced(both: Tensor, first: Tensor) -> tuple[Tensor, float]:
    """Mean over directions of the squared W2 of the projections, times the dimension.

    So scaled, laws that differ by a shift are as far apart as by W2 itself.
    """
    n, dim = len(both) // 2, both.shape[1]
    if dim == 1:
        directions = both.new_ones(1, 1)
    else:
        generator = torch.Generator().manual_seed(1)
        directions = torch.randn(dim, DIRECTIONS, generator=generator, dtype=torch.float64)
        directions = directions / directions.norm(dim=0)
    projected = both @ directions
    order = projected.argsort(0)
    ranked = projected.gather(0, order).T  # sorted once; a parting keeps the order of each side
    values = []
    for part in first.split(max(1, NUMBERS // (8 * projected.numel()))):
        sides = part[:, order].mT  # (partings, directions, 2n)
        places = sides.shape
        one, other = (
            ranked.expand(places)[side].reshape(*places[:2], n) for side in (sides, ~sides)
        )
        values.append(dim * (one - other).square().mean((1, 2)))
    # Of the mean over directions, from the potentials of the transport of each projection.
    x, y = projected[:n], projected[n:]
    each = [_potential(mine, other.sort(0)[0]) for mine, other in ((x, y), (y, x))]
    return torch.cat(values), math.sqrt(sum(one.var().item() / n for one in each)) * dim


def _potential(mine: Tensor, goal: Tensor) -> Tensor:
    """What each sample (n,) adds to the mean squared W2 of projections (n, directions) to sorted
    ones: its potential of the transport, up to a constant."""
    ranked, order = mine.sort(0)
    apart = 2 * (ranked - goal)
    steps = 0.5 * (apart[1:] + apart[:-1]) * ranked.diff(dim=0)
    potential = torch.cat([torch.zeros_like(apart[:1]), steps.cumsum(0)])
    return torch.empty_like(potential).scatter_(0, order, potential).mean(1)


def _energy(both: Tensor, first: Tensor) -> tuple[Tensor, float]:
    """Energy distance, unbiased."""
    apart = torch.cdist(both, both).fill_diagonal_(0)
    return _by_kernel(-apart, first)


def _mmd(both: Tensor, first: Tensor) -> tuple[Tensor, float]:
    """Squared maximum mean discrepancy, unbiased, of a Gaussian kernel at the median distance."""
    square = torch.cdist(both, both).square()
    away = ~torch.eye(len(both), dtype=torch.bool)
    scale = square[away].median()
    return _by_kernel(torch.exp(-square / scale.clamp_min(1e-300)).fill_diagonal_(0), first)


def _by_kernel(kernel: Tensor, first: Tensor) -> tuple[Tensor, float]:
    """``E k(x, x') + E k(y, y') - 2 E k(x, y)`` over different samples, of all partings."""
    n = len(kernel) // 2
    side = first.double()
    rows = side @ kernel  # (partings, 2n): summed over the first set
    inside = (rows * side).sum(1)
    across = rows.sum(1) - inside
    other = kernel.sum() - 2 * across - inside
    pairs = n * (n - 1)
    values = inside / pairs + other / pairs - 2 * across / (n * n)
    mine = [kernel[:n, :n].sum(1), kernel[n:, n:].sum(1)]
    cross = kernel[:n, n:]
    influences = mine[0] / (n - 1) - cross.mean(1), mine[1] / (n - 1) - cross.mean(0)
    return values, 2 * math.sqrt(sum(one.var().item() for one in influences) / n)


def _transport(both: Tensor, first: Tensor) -> tuple[Tensor, float]:
    """Mean squared distance of the optimal assignment between the points."""
    from scipy.optimize import linear_sum_assignment

    n = len(both) // 2
    kept = torch.arange(min(n, POINTS))
    pool = torch.cat([both[kept], both[n + kept]])
    square = torch.cdist(pool, pool).square()
    m, values = len(kept), []
    generator = torch.Generator().manual_seed(2)
    partings = [torch.arange(2 * m)]
    partings += [torch.randperm(2 * m, generator=generator) for _ in range(TRANSPORTED)]
    for order in partings:
        costs = square[order[:m]][:, order[m:]].numpy()
        rows, columns = linear_sum_assignment(costs)
        values.append(costs[rows, columns].mean())
        if len(values) == 1:
            error = _transport_error(torch.from_numpy(costs), torch.from_numpy(columns))
    return torch.tensor(values, dtype=torch.float64), error


def _transport_error(costs: Tensor, partner: Tensor) -> float:
    """Standard error of an optimal assignment's mean cost, from its dual potentials."""
    n = len(costs)
    own = costs[torch.arange(n), partner]
    slack = costs[:, partner] - own  # [i, j]: what i pays for the place of j
    potential = torch.zeros(n, dtype=torch.float64)
    for _ in range(n):
        nearer = torch.minimum(potential, (potential + slack).min(1).values)
        if torch.equal(nearer, potential):
            break
        potential = nearer
    other = own - potential
    return math.sqrt((potential.var().item() + other.var().item()) / n)


#: By name: the statistic of all partings with the error of the first, and whether it is squared.
STATISTICS: dict[str, tuple[Callable, bool]] = {
    "w2": (_of_fits, True),
    "sliced": (_sliced, True),
    "energy": (_energy, False),
    "mmd": (_mmd, False),
    "transport": (_transport, True),
}
