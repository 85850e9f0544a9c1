"""What the loop costs: each figure is a ratio of two things timed in turns within one run.

python benchmarks/loop.py
"""

from functools import partial
from itertools import pairwise

import torch
from byhand import heun_by_hand
from timing import ratio

import workbench as wb
from workbench.sampling import NoiseSource, Recorder, walk
from workbench.studies import build


class Null:
    """A denoiser that costs nothing: what is left is the loop."""

    @staticmethod
    def denoise(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        return x


def edm_by_hand(grid: wb.Grid, x: torch.Tensor) -> torch.Tensor:
    """The leanest usual loop: alpha is 1, so the state is not scaled."""
    for s, s_next in pairwise(grid.sigma):
        d = (x - Null.denoise(x, 1.0, s)) / s
        guess = x + (s_next - s) * d
        d_next = (guess - Null.denoise(guess, 1.0, s_next)) / s_next
        x = x + (s_next - s) * 0.5 * (d + d_next)
    return x


def show(what: str, figures: tuple[float, float, float], goal: str = "") -> None:
    print(f"{what:50}{figures[0]:7.2f}ms{figures[1]:7.2f}ms{figures[2]:8.2f}   {goal}", flush=True)


def overhead() -> None:
    """The loop alone: a null denoiser, 64 samples, 100 steps."""
    process, source = wb.EDM(), NoiseSource(range(64), (2,), torch.float32)
    grid, x = wb.Grid.karras(process, 100), 80 * source.start()
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(2), 1.0))
    program = wb.Heun().program(process, grid)

    def ours(*fields: str) -> torch.Tensor:
        recorder = Recorder(wb.Record(fields), diffusion, grid, x) if fields else None
        return walk(program, Null, x, source, recorder)[0]

    other = partial(edm_by_hand, grid, x)
    torch.testing.assert_close(ours(), other(), rtol=1e-4, atol=1e-4)
    show("null denoiser, 64 samples, 100 Heun steps, by hand", ratio(ours, other, 41))
    show("  with x recorded", ratio(partial(ours, "x"), other, 41), "at most 0.7")
    show("  with x and D recorded", ratio(partial(ours, "x", "denoised"), other, 41))


def main() -> None:
    torch.set_num_threads(1)
    heun = wb.Heun()
    print(f"{'':50}{'ours':>9}{'other':>9}   ratio")
    overhead()

    for data, denoiser, count in (
        ("gaussian", "Gaussian", 64),
        ("ring", "Mixture", 64),
        ("ring", "Mixture", 4096),
        ("digits", "Gaussian", 256),
    ):
        setup = build(wb.Study(data=data, denoiser=denoiser, seeds={"count": count}))
        diffusion, grid, seeds = setup.diffusion, setup.grid, setup.seeds
        x = NoiseSource(seeds, diffusion.event_shape, diffusion.dtype).start()
        name = f"{data} as {denoiser}, {count} samples, 32 steps"

        plain = partial(wb.sample, diffusion, heun, grid, seeds, x=x)
        recorded = partial(plain, record=wb.Record(["x", "denoised"]))
        show(
            f"{name}, by hand",
            ratio(plain, partial(heun_by_hand, diffusion.denoiser.denoise, grid, x)),
        )
        show("  with x and D recorded, without", ratio(recorded, plain))
    source = NoiseSource(range(4096), (2,))
    steps = iter(range(10**9))
    drawn = ratio(
        lambda: [source.step(next(steps)) for _ in range(32)],
        lambda: [torch.randn(4096, 2, dtype=torch.float64) for _ in range(32)],
    )
    show("noise of 4096 seeds, torch.randn", drawn)


if __name__ == "__main__":
    main()
