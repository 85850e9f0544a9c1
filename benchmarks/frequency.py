"""What it costs to sum the bands of pictures while they are sampled.

Pictures of 32 x 32 pixels, float32, one thread: a run of DDIM that keeps its last states alone, and
the same run with the energies of the rings of its states and denoised states; CPU time and the
peak of memory, over the number of steps. The denoiser is the Gaussian of a power-law spectrum in a
basis of its own, the cheapest there is for such pictures beside none: with networks and finite sets
the share of the energies is smaller.

python benchmarks/frequency.py            (4096 pictures, 25 and 100 steps)
python benchmarks/frequency.py 512 8 16   (512 pictures, 8 and 16 steps)
"""

import multiprocessing
import sys
import time

import torch
from timing import peak

import workbench as wb
from workbench.processes.bases import DCT

SIDE = torch.Size((32, 32))
BANDS = ("x.rings", "denoised.rings")


def diffusion() -> wb.Diffusion:
    basis = DCT(SIDE)
    variances = (1 + basis.frequency) ** -2.0
    turn = basis.inverse(torch.eye(1024, dtype=torch.float64).reshape(-1, *SIDE)).flatten(1)
    cov = (turn.T * variances.flatten()) @ turn
    law = wb.Gaussian(torch.zeros(SIDE).double(), 0.5 * (cov + cov.T))
    return wb.Diffusion(wb.VP(), law.to(torch.float32))


def measured(count: int, steps: int, fields: tuple[str, ...], out) -> None:
    """CPU time [s] and memory [MB] that a run adds to what was there before it."""
    torch.set_num_threads(1)
    made = diffusion()
    sampler, grid = wb.DDIM(), wb.Grid.log_snr(made.process, steps)
    record = wb.Record(fields, every=1 if fields[0] in BANDS else 10_000)
    wb.sample(made, sampler, grid, range(8), record)
    before, began = peak(), time.process_time()
    wb.sample(made, sampler, grid, range(count), record)
    out.put((time.process_time() - began, (peak() - before) / 1e6))


def in_a_process(count: int, steps: int, fields: tuple[str, ...]) -> tuple[float, float]:
    """Of a fresh process, whose peak is that of this run."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    worker = context.Process(target=measured, args=(count, steps, fields, out))
    worker.start()
    found = out.get()
    worker.join()
    return found


def main() -> None:
    count, *steps = [int(word) for word in sys.argv[1:]] or [4096, 25, 100]
    print(f"{count} pictures of 32 x 32, DDIM, float32, one thread")
    print(f"{'steps':>6}{'without':>12}{'with bands':>12}{'ratio':>8}{'memory [MB], each':>30}")
    for number in steps:
        plain = in_a_process(count, number, ("x",))
        bands = in_a_process(count, number, BANDS)
        print(
            f"{number:6}{plain[0]:11.1f}s{bands[0]:11.1f}s{bands[0] / plain[0]:8.2f}"
            f"{plain[1]:20.0f}{bands[1]:10.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
