"""What exact laws cost beside a run, and what tuned grids gain.

python benchmarks/law.py
"""

import time
from functools import partial

import torch
from timing import ratio

import workbench as wb

MODES, STEPS, COUNTS = 3072, 50, range(8, 56, 4)


def spectrum(modes: int) -> torch.Tensor:
    """A power law as of natural images, of mean variance 1."""
    values = torch.arange(1, modes + 1, dtype=torch.float64).pow(-1.5)
    return values * (modes / values.sum())


def main() -> None:
    torch.set_num_threads(1)
    process, variances = wb.EDM(), spectrum(MODES)
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(MODES).double(), variances))
    grid = wb.Grid.karras(process, STEPS)
    linear = {}
    print(f"{f'exact law of {MODES} modes, {STEPS} steps; a run of 16':50}{'law':>9}{'run':>9}")
    for name, kind in wb.SAMPLERS.items():
        sampler = kind()
        try:
            if not sampler.prepared(diffusion, grid).program(process, grid).linear:
                continue
        except ValueError:  # one that takes no process but its own
            continue
        linear[name] = sampler
        law = partial(wb.exact.law, diffusion, sampler, grid)
        run = partial(wb.sample, diffusion, sampler, grid, range(16))
        ours, theirs, share = ratio(law, run, repeats=3)
        print(f"{name:50}{ours:7.2f}ms{theirs:7.0f}ms{share:8.3f}")
    began = time.process_time()
    for sampler in linear.values():
        for steps in COUNTS:
            wb.exact.law(diffusion, sampler, wb.Grid.karras(process, steps))
    seconds = time.process_time() - began
    print(f"{len(linear)} samplers, {len(COUNTS)} step counts each: {seconds:.2f} s")

    points = wb.datasets.digits().points.flatten(1)
    digits = torch.linalg.eigvalsh(torch.cov(points.T)).clamp_min(0)
    data = wb.Diffusion(process, wb.Gaussian(torch.zeros(64).double(), digits))
    print(f"\n{'exact W2, digits, 10 evaluations':50}{'karras':>9}{'tuned':>9}{'ratio':>8}")
    for sampler in (wb.Heun(), wb.DPMSolverPP(), wb.UniPC(), wb.DDIM(), wb.DDIM(eta=1.0)):
        began = time.process_time()
        tuned = wb.exact.tuned_grid(process, digits, sampler, nfe=10)
        seconds = time.process_time() - began
        far, near = (
            wb.exact.w2(wb.exact.law(data, sampler, g), data.marginal(g.t[-1]))
            for g in (wb.Grid.karras(process, tuned.steps), tuned)
        )
        print(f"{repr(sampler)[:49]:50}{far:9.4f}{near:9.5f}{far / near:8.1f}  {seconds:.1f} s")


if __name__ == "__main__":
    main()
