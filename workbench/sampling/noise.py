r"""The only source of randomness: noise is a function of (seed, draw, coordinate), nothing else.

A counter-based generator (Philox4x32-10) turns the key ``seed`` and the counter ``(pair of
coordinates, draw, stream)`` into bits, and Box-Muller turns bits into normals in float64. The noise
of a sample therefore never depends on the batch it runs in, on how the batch is cut into pieces, on
the device, or on what else is drawn.

Source: Salmon, Moraes, Dror & Shaw 2011, *Parallel random numbers: as easy as 1, 2, 3* (SC11).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NoiseSource", "normal", "philox", "seed_tensor"]

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

#: Streams: what a draw is for. The start of a run and its steps never share a counter.
START, STEP = 0, 1

#: Normals made at once, so that many small steps share the cost of a call.
BLOCK = 1 << 17


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: four 32-bit words per counter.

    Args:
        counter: (4, n) int64 holding unsigned 32-bit words.
        key: (2, n) or (2, 1), likewise.

    Returns:
        (4, n) int64 holding unsigned 32-bit words.
    """
    even, odd = counter[0::2], counter[1::2]
    multiplier = torch.tensor(MULTIPLIERS, device=counter.device)[:, None]
    weyl = torch.tensor(WEYL, device=counter.device)[:, None]
    for _ in range(10):
        product = even * multiplier  # wraps modulo 2^64: the bits are those of the unsigned product
        high = (product >> 32) & MASK
        even = high.flip(0).bitwise_xor_(odd).bitwise_xor_(key)
        odd = product.bitwise_and_(MASK).flip(0)
        key = (key + weyl) & MASK
    return torch.stack([even[0], odd[0], even[1], odd[1]])


def seed_tensor(seeds: Sequence[int] | Tensor, device=None) -> Tensor:
    """Seeds as an int64 tensor (n,).

    Raises:
        ValueError: no seed, or one that is negative, fractional or beyond 2^63 - 1.
    """
    if not hasattr(seeds, "__iter__") or getattr(seeds, "ndim", 1) == 0:
        raise ValueError(f"seeds was {seeds!r}; give one seed per sample, e.g. seeds=range(256).")
    values = seeds.tolist() if hasattr(seeds, "tolist") else list(seeds)
    if not values:
        raise ValueError("seeds was empty; give one seed per sample, e.g. seeds=range(256).")
    for value in values:
        whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0
        if not whole or not 0 <= value < 1 << 63:
            raise ValueError(
                f"a seed was {value!r}; seeds must be whole numbers from 0 to 2^63 - 1."
            )
    return torch.tensor([int(value) for value in values], dtype=torch.int64, device=device)


def normal(seeds: Tensor, numel: int, draws: Sequence[int], stream: int) -> Tensor:
    """Standard normals, float64, of shape (len(draws), len(seeds), numel)."""
    pairs = (numel + 1) // 2
    device = seeds.device
    draw = torch.tensor(list(draws), dtype=torch.int64, device=device)
    shape = (len(draw), len(seeds), pairs)
    counter = torch.stack(
        [
            torch.arange(pairs, device=device).expand(shape),
            draw[:, None, None].expand(shape),
            torch.tensor(stream, device=device).expand(shape),
            torch.tensor(0, device=device).expand(shape),
        ]
    ).reshape(4, -1)
    key = torch.stack([seeds & MASK, seeds >> 32])[:, None, :, None].expand(2, *shape)
    words = philox(counter, key.reshape(2, -1))
    # Two 53-bit uniforms: in (0, 1] for the logarithm, in [0, 1) for the angle.
    bits = (words[0::2] << 21) ^ (words[1::2] >> 11)
    radius = torch.sqrt(-2.0 * torch.log((bits[0] + 1).double() * 2.0**-53))
    angle = bits[1].double() * (2.0 * math.pi * 2.0**-53)
    both = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return both.reshape(len(draw), len(seeds), 2 * pairs)[..., :numel]


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

    def step(self, draw: int) -> Tensor:
        """The standard normals (n, *event) of draw number ``draw`` of the run."""
        if self._block is None or not self._first <= draw < self._first + len(self._block):
            count = max(1, BLOCK // (len(self.seeds) * self._numel))
            self._first = draw
            self._block = self._cast(
                normal(self.seeds, self._numel, range(draw, draw + count), STEP), count
            )
        return self._block[draw - self._first]

    def _cast(self, values: Tensor, *lead: int) -> Tensor:
        return values.to(self.dtype).reshape(*lead, *self.shape)
