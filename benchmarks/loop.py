"""What the loop costs: each figure is a ratio of two things timed in turns within one run.

python benchmarks/loop.py
"""

from functools import partial
from itertools import pairwise

import torch
from timing import ratio

import workbench as wb
from workbench.sampling import NoiseSource
from workbench.studies import build


def heun_by_hand(diffusion: wb.Diffusion, grid: wb.Grid, x: torch.Tensor) -> torch.Tensor:
    """The usual loop: Heun in rho for x / alpha, coefficients as Python floats."""
    denoise = diffusion.denoiser.denoise
    nodes = list(zip(grid.alpha, grid.sigma, grid.rho, strict=True))
    y = x / nodes[0][0]
    for (a, s, r), (a_next, s_next, r_next) in pairwise(nodes):
        d = (y - denoise(a * y, a, s)) / r
        guess = y + (r_next - r) * d
        d_next = (guess - denoise(a_next * guess, a_next, s_next)) / r_next
        y = y + (r_next - r) * 0.5 * (d + d_next)
    return a_next * y


def main() -> None:
    torch.set_num_threads(1)
    heun = wb.Heun()
    print(f"{'':50}{'ours':>9}{'other':>9}   ratio")

    def show(what: str, figures: tuple[float, float, float]) -> None:
        print(f"{what:50}{figures[0]:7.2f}ms{figures[1]:7.2f}ms{figures[2]:8.2f}")

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
        show(f"{name}, by hand", ratio(plain, partial(heun_by_hand, diffusion, grid, x)))
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
