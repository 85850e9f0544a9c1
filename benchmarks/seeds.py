"""What it costs to run every seed in every class.

CPU time of 1024 seeds in the 10 classes of digits, one thread, with progress at each step: one
Gaussian for each class in float64 with the shares of the variance, and the shipped network; how
long after a cancel the run has ended; and how often the test for golden seeds calls one in pure
noise at a level of 5 %.

python benchmarks/seeds.py              (1024 seeds)
python benchmarks/seeds.py 128          (so many seeds)
"""

import sys
import time

import numpy as np
import torch

import workbench as wb
from workbench.lenses.base import Subject, complete
from workbench.lenses.seeds import VarianceComponents, chance_of_best, outputs_by_class

STEPS = 18


class Stop(Exception):
    """Raised in the report of progress: a cancel."""


def subject_of(diffusion: wb.Diffusion, sampler, count: int) -> Subject:
    """Of a run of the first seeds: what a lens asks of it besides is made anew in every class."""
    grid = wb.Grid.karras(diffusion.process, STEPS)
    run = wb.sample(diffusion, sampler, grid, range(count))
    return Subject.of(run, wb.datasets.digits())


def timed(name: str, diffusion: wb.Diffusion, sampler, count: int) -> None:
    subject, told = subject_of(diffusion, sampler, count), []
    began = time.process_time()

    def on_step(done: int, total: int) -> None:
        told.append((time.process_time() - began, done / total))

    found = complete(VarianceComponents(count), subject, on_step=on_step)
    seconds = time.process_time() - began
    apart = max(np.diff([0.0, *(moment for moment, _ in told)]))
    stopped = Subject(diffusion, sampler, subject.grid, subject.run, subject.data)
    cancelled = time.process_time()

    def stop(done: int, total: int) -> None:
        raise Stop

    try:
        outputs_by_class(stopped, on_step=stop)
    except Stop:
        cancelled = time.process_time() - cancelled
    print(
        f"{name:>28}{count:8} seeds{seconds:9.1f} s   {len(told)} reports, at most {apart:.2f} s "
        f"apart   a cancel ends it within {cancelled:.2f} s   ICC {float(found['icc']):.3f} "
        f"± {2 * float(found['icc_se']):.3f}",
        flush=True,
    )


def called(repeats: int = 1000, classes: int = 10, seeds: int = 64) -> float:
    """Share of repeats of pure noise in which the best of the seeds is called golden at 5 %."""
    draw = np.random.default_rng(0)
    p = [chance_of_best(draw.normal(size=(classes, seeds))) for _ in range(repeats)]
    return float(np.mean(np.array(p) <= 0.05))


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    digits = wb.datasets.digits()
    print(f"CPU time of every seed in 10 classes of digits, {STEPS} steps, one thread")
    laws = [wb.Gaussian.fit(digits.points[digits.labels == k]) for k in range(10)]
    timed("Gaussians, Heun", wb.Diffusion(wb.EDM(), wb.Conditional(laws)), wb.Heun(), count)
    network = wb.Neural.from_data(digits)
    timed("network, DPM-Solver++", wb.Diffusion(wb.EDM(), network), wb.DPMSolverPP(), count)
    began = time.process_time()
    share = called()
    spent = time.process_time() - began
    print(f"golden seeds called in pure noise: {share:.1%} of 1000 repeats ({spent:.1f} s)")


if __name__ == "__main__":
    main()
