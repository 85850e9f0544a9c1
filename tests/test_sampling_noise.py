"""The counter-based generator: published vectors, normality, independence, and batches."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import log_uniform, normals, ring, uniform
from scipy import stats

import workbench as wb
from workbench.sampling import BrownianSource, NoiseSource, noise
from workbench.sampling.noise import START, STEP, normal, philox, seed_tensor

#: Counter, key and output of Random123's kat_vectors for philox4x32 of 10 rounds.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> torch.Tensor:
    return torch.tensor([[int(word, 16)] for word in text.split()])


def test_philox_gives_the_published_words():
    for counter, key, expected in VECTORS:
        assert torch.equal(philox(words(counter), words(key)), words(expected))
    together = [torch.cat([words(vector[i]) for vector in VECTORS], 1) for i in range(3)]
    assert torch.equal(philox(together[0], together[1]), together[2])


def test_a_normal_is_box_muller_of_its_words():
    """Coordinates 2k and 2k+1 of draw n: counter (k, n, stream, 0), key the halves of the seed."""
    seed, draw = 0xA4093822299F31D0 >> 1, 7
    z = normal(torch.tensor([seed]), 5, [draw], STEP)[0, 0]
    for pair in range(2):
        counter = torch.tensor([[pair], [draw], [STEP], [0]])
        key = torch.tensor([[seed & 0xFFFFFFFF], [seed >> 32]])
        w = [int(word) for word in philox(counter, key)]
        first = ((w[0] << 21) ^ (w[1] >> 11)) + 1
        second = (w[2] << 21) ^ (w[3] >> 11)
        radius = math.sqrt(-2 * math.log(first / 2**53))
        angle = 2 * math.pi * second / 2**53
        assert z[2 * pair].item() == pytest.approx(radius * math.cos(angle), abs=1e-14)
        assert z[2 * pair + 1].item() == pytest.approx(radius * math.sin(angle), abs=1e-14)


def test_the_bits_of_a_normal_are_the_same_on_every_machine():
    """No step of it is left to a vector unit: these are bits, not numbers to rounding."""
    z = normal(torch.tensor([7, 2**40 + 1]), 3, [0, 12], STEP)
    assert [one.hex() for one in z.flatten().tolist()] == [
        "-0x1.c7aba983983dap-2", "0x1.19647af04e040p+0", "0x1.c19a472b0af6bp-5",
        "0x1.411791abd2874p+1", "-0x1.929dde1c54d9dp-1", "-0x1.fe3bf659840c7p-1",
        "0x1.e102b1af89795p-1", "0x1.34b96410b7a75p-3", "0x1.fb4d6b81b9e51p-3",
        "-0x1.b7e26ce8f44b7p-3", "-0x1.1b757fab4839ep+1", "0x1.beff2479ea9b4p-3",
    ]  # fmt: skip


def test_draws_are_standard_normal(seed):
    """Kolmogorov-Smirnov and four moments over 400,000 draws; each fails once in 10^6 by chance."""
    first = seed % 2**50
    z = normal(torch.arange(first, first + 2000), 20, range(10), STEP).flatten().numpy()
    n = len(z)
    assert stats.kstest(z, "norm").pvalue > 1e-6
    # Mean and variance of z^k - E z^k: E z^2k - (E z^k)^2 = 1, 2, 15, 96 for k = 1 to 4.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4.9 * math.sqrt(variance / n), power
    assert abs(np.abs(z).max() - stats.norm.isf(0.5 / n)) < 1.9  # neither cut off nor too long


def test_seeds_draws_coordinates_and_streams_are_independent(seed):
    """All correlations between neighbours along each axis, of z and of z^2, are those of chance."""
    first = seed % 2**50
    seeds = torch.arange(first, first + 300)
    z = normal(seeds, 16, range(12), STEP)
    far = normal(seeds + 2**32, 16, range(12), STEP)  # another upper half of the key
    start = normal(seeds, 16, range(12), START)
    pairs = {
        "seeds": (z[:, :-1], z[:, 1:]),
        "upper key": (z, far),
        "draws": (z[:-1], z[1:]),
        "pairs": (z[..., 0::2], z[..., 1::2]),
        "coordinates": (z[..., 1:-1:2], z[..., 2::2]),
        "streams": (z, start),
    }
    for name, (a, b) in pairs.items():
        for power in (1, 2):
            one, other = a**power - (power - 1), b**power - (power - 1)
            products = (one * other).flatten()
            z_score = products.mean() / (products.std() / math.sqrt(len(products)))
            assert abs(z_score) < 5.2, (name, power)  # 12 comparisons of 2e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("event", [(), (1,), (3,), (8, 8)])
def test_noise_of_a_sample_is_the_same_in_every_batch_to_the_bit(event, dtype, seed, monkeypatch):
    seeds = [(seed + 7919 * i) % 2**63 for i in range(4096)]
    draws = (0, 1, 5, 40)

    def of(rows, block=None):
        if block is not None:
            monkeypatch.setattr(noise, "BLOCK", block)
        source = NoiseSource([seeds[i] for i in rows], torch.Size(event), dtype)
        out = torch.stack([source.start(), *(source.step(draw) for draw in draws)])
        monkeypatch.undo()
        assert out.dtype == dtype and out.shape == (5, len(rows), *event)
        return out

    rows = [0, 1, 63, 2048, 4095]
    many = of(range(4096))[:, rows]
    some = of([*rows, *range(100, 159)])[:, : len(rows)]
    alone = torch.cat([of([row]) for row in rows], 1)
    assert torch.equal(many, alone) and torch.equal(some, alone)
    for block in (1, 100, 1 << 20):
        assert torch.equal(of(rows, block), alone)


def test_draws_may_be_asked_for_in_any_order(seed):
    one, other = (NoiseSource([seed, seed + 1], torch.Size((3,))) for _ in range(2))
    order = [5, 0, 70_000, 3, 5]
    forward = {draw: one.step(draw) for draw in sorted(set(order))}
    assert all(torch.equal(other.step(draw), forward[draw]) for draw in order)
    assert not torch.equal(one.start(), forward[0])
    assert torch.equal(
        one.step(0).float(), NoiseSource([seed, seed + 1], (3,), torch.float32).step(0)
    )


def test_many_small_draws_share_the_cost_of_a_few_calls(monkeypatch, seed):
    calls, plain = [], noise.normal
    monkeypatch.setattr(noise, "normal", lambda *args: calls.append(args) or plain(*args))
    source = NoiseSource(range(seed, seed + 8), torch.Size((2,)))
    for draw in range(1000):
        source.step(draw)
    for draw in reversed(range(1000)):
        source.step(draw)
    assert len(calls) < 12


def test_seeds_of_every_kind(seed):
    given = [0, seed, 2**32, 2**63 - 1]
    for seeds in (given, tuple(given), np.array(given), torch.tensor(given), map(int, given)):
        assert seed_tensor(seeds).tolist() == given
    assert seed_tensor(range(3)).tolist() == [0, 1, 2]
    assert seed_tensor([2.0]).tolist() == [2]


@pytest.mark.parametrize(
    ("seeds", "pieces"),
    [
        ([], ["seeds was empty", "one seed per sample", "range(256)"]),
        ([1, -1], ["a seed was -1", "0 to 2^63 - 1"]),
        ([2**63], ["a seed was 9223372036854775808", "0 to 2^63 - 1"]),
        ([1.5], ["a seed was 1.5", "whole numbers"]),
        ([True], ["a seed was True", "whole numbers"]),
        ([math.nan], ["a seed was nan", "whole numbers"]),
        ([math.inf], ["a seed was inf", "whole numbers"]),
        (["a"], ["a seed was 'a'", "whole numbers"]),
        ([None], ["a seed was None", "whole numbers"]),
        (torch.zeros(2, 2), ["a seed was [0.0, 0.0]", "whole numbers"]),
        (7, ["seeds was 7", "one seed per sample", "range(256)"]),
        (torch.tensor(7), ["seeds was tensor(7)", "one seed per sample"]),
    ],
)
def test_bad_seeds_are_refused_with_a_sentence(seeds, pieces):
    with pytest.raises(ValueError) as caught:
        NoiseSource(seeds, torch.Size((2,)))
    for piece in pieces:
        assert piece in str(caught.value)


# ---- one Brownian path, whatever the grid --------------------------------------------------------


def test_increments_of_a_path_add_up_exactly(generator, seed):
    """Over [a, b] and [b, c] as over [a, c], at times of every kind and distance."""
    source = BrownianSource(range(seed, seed + 7), (3,))
    times = [0.0, 1e-25, 2.0**-60, 1e-12, 0.25, 1 / 3, 0.75, 1.0, math.pi, 80.0]
    times += [log_uniform(generator, 1e-8, 1e3) for _ in range(6)]
    a, b, c = 1.5, 1.5 - 1e-3, 0.2
    steps = {(s, t): source.step(0, (s, t)) for s, t in ((a, b), (b, c), (a, c))}
    sums = steps[a, b] * math.sqrt(a - b) + steps[b, c] * math.sqrt(b - c)
    assert (sums - steps[a, c] * math.sqrt(a - c)).abs().max() < 1e-14
    for t, s in pairwise(sorted(times)):
        made = source.step(3, (s, t)) * math.sqrt(s - t)
        assert (made - (source.path(s) - source.path(t))).abs().max() < 1e-13 * (1 + math.sqrt(s))
    assert source.path(0.0).abs().max() == 0.0


def test_paths_are_brownian(generator, seed):
    """Cov W(s), W(t) = min(s, t) for times in one cell of the tree, one octave and many; normal."""
    n, d = 4000, 4
    t = uniform(generator, 0.5, 1.0)
    times = [1e-4, 0.3, t, t + 1e-5, 1.0, 1.5, uniform(generator, 2.0, 90.0)]
    times.append(2.0 ** math.floor(math.log2(times[-1])))
    times = sorted(times)
    source = BrownianSource(range(seed, seed + n), (d,))
    order = torch.randperm(len(times), generator=generator).tolist()
    values = {i: source.path(times[i]) for i in order}
    ends = [(0.0, torch.zeros(n, d)), *((time, values[i]) for i, time in enumerate(times))]
    steps = [(w - v) / math.sqrt(t - s) for (s, v), (t, w) in pairwise(ends)]
    flat = torch.stack(steps).flatten(1)
    for row in flat:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-6
        assert abs(row.square().mean() - 1) < 5 * math.sqrt(2 / (n * d))
    products = flat @ flat.T / (n * d) - torch.eye(len(times))
    assert products.triu(1).abs().max() < 5.2 / math.sqrt(n * d)  # 28 of 2e-7
    both = steps[1][:, 0] * steps[1][:, 1]  # coordinates
    assert abs(both.mean()) < 5 / math.sqrt(n)
    fresh = NoiseSource(range(seed, seed + n), (d,)).step(0).flatten()
    assert abs((fresh * flat[2]).mean()) < 5 / math.sqrt(n * d)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_path_is_the_same_in_every_batch_and_order_to_the_bit(dtype, seed, monkeypatch):
    seeds = [seed + 7919 * i for i in range(500)]
    grid = [80.0, 3.3, 1.0, 0.7, 0.25, 0.1, 1e-3, 0.0]

    def of(rows, intervals, block=None):
        if block is not None:
            monkeypatch.setattr(noise, "BLOCK", block)
        source = BrownianSource([seeds[i] for i in rows], (3,), dtype)
        made = {interval: source.step(0, interval) for interval in intervals}
        monkeypatch.undo()
        return torch.stack([made[key] for key in sorted(made)])

    intervals = list(pairwise(grid))
    rows = [0, 1, 63, 499]
    many = of(range(500), intervals)[:, rows]
    alone = torch.cat([of([row], intervals) for row in rows], 1)
    backwards = of(rows, intervals[::-1], block=1)
    assert many.dtype == dtype
    assert torch.equal(many, alone) and torch.equal(backwards, alone)


def test_further_draws_of_a_step_and_steps_without_length_are_fresh(seed):
    plain, path = NoiseSource([seed, 5], (3,)), BrownianSource([seed, 5], (3,))
    assert torch.equal(path.step(4), plain.step(4))
    assert torch.equal(path.step(4, (0.5, 0.5)), plain.step(4))
    assert torch.equal(path.step(4, (0.5, 0.5 - 1e-9)), plain.step(4))
    assert torch.equal(path.start(), plain.start())
    assert torch.equal(plain.step(4, (0.5, 0.2)), plain.step(4))
    assert not torch.equal(path.step(4, (0.5, 0.2)), plain.step(4))
    with pytest.raises(ValueError, match="Brownian path is known at times from 0 on"):
        path.path(-1.0)


@pytest.mark.parametrize("name", ["EulerMaruyama", "ExponentialSDE", "ancestral"])
def test_runs_on_one_path_converge_to_each_other(name, generator, seed):
    """Strong order 1 (the noise is additive); with fresh noise runs stay where they are."""
    sampler = {
        "EulerMaruyama": wb.EulerMaruyama(),
        "ExponentialSDE": wb.ExponentialSDE(),
        "ancestral": wb.DDIM(1.0),
    }[name]
    law = wb.Gaussian(0.5 * normals(generator, 2), torch.tensor([0.4, 0.1]).double())
    diffusion, counts = wb.Diffusion(wb.VP(), law), (50, 100, 200)
    apart = {}
    for kind in ("fresh", "brownian"):
        ends = [
            wb.sample(
                diffusion, sampler, wb.Grid.uniform(wb.VP(), n), range(seed, seed + 150), noise=kind
            ).final
            for n in counts
        ]
        apart[kind] = [(a - b).square().mean().sqrt().item() for a, b in pairwise(ends)]
    assert math.log2(apart["brownian"][0] / apart["brownian"][1]) > 0.55
    assert apart["brownian"][0] < 0.15 * apart["fresh"][0]
    assert abs(math.log2(apart["fresh"][0] / apart["fresh"][1])) < 0.3


def test_a_run_on_a_path_says_so_and_repeats(seed):
    diffusion, grid = wb.Diffusion(wb.VP(), ring()), wb.Grid.log_snr(wb.VP(), 6)
    runs = [
        wb.sample(diffusion, wb.DDIM(1.0), grid, [seed, 3], noise=kind)
        for kind in ("brownian", "brownian", "fresh")
    ]
    assert torch.equal(runs[0].final, runs[1].final)
    assert not torch.equal(runs[0].final, runs[2].final)
    assert [run.attrs["noise"] for run in runs] == ["brownian", "brownian", "fresh"]
    alone = wb.sample(diffusion, wb.DDIM(1.0), grid, [3], noise="brownian").final
    assert (alone - runs[0].final[1:]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="noise was 'levy'; it must be one of 'fresh', 'brownian'"):
        wb.sample(diffusion, wb.DDIM(1.0), grid, [0], noise="levy")
