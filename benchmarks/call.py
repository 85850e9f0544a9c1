"""What a whole call of ``wb.sample`` costs beside a loop written by hand for the case.

Thirty-two Heun steps in two dimensions, float32, one thread, CPU time; each figure is a ratio of
the least times of two things, taken in turns. "First" is a call whose sampler and grid were not
seen before, "another denoiser" one where only the denoiser was not; "again" the second and all
later calls.

python benchmarks/call.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from byhand import heun_by_hand
from timing import least
from torch import Tensor

import workbench as wb
from workbench.sampling import plan

COMPONENTS, STEPS, VARIANCE = 8, 32, 0.01
PROCESS = wb.VP()
GRID = wb.Grid.karras(PROCESS, steps=STEPS)


def usual_mixture(means: Tensor) -> Callable:
    """The posterior mean of equal isotropic Gaussians as it is usually written."""
    squares = means.square().sum(1)

    def denoise(x: Tensor, a: float, s: float) -> Tensor:
        level = a * a * VARIANCE + s * s
        logits = (x @ means.T) * (a / level) - squares * (a * a / (2 * level))
        share = torch.softmax(logits, -1)
        return x * (a * VARIANCE / level) + (share @ means) * (s * s / level)

    return denoise


class Null(wb.Denoiser):
    """A denoiser that costs nothing: what is left is the call."""

    event_shape, dtype = torch.Size((2,)), torch.float32

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return x


def show(what: str, figures: tuple[float, float, float], goal: str) -> None:
    print(f"{what:46}{figures[0]:8.2f}ms{figures[1]:8.2f}ms{figures[2]:8.2f}   {goal}", flush=True)


def forgetful(denoiser: wb.Denoiser, call: Callable, all_of_it: bool) -> Callable:
    """The call as if for the first time with its denoiser, or with anything of it."""

    def first() -> object:
        vars(denoiser).pop("_programs", None)
        if all_of_it:
            plan._program.cache_clear()
        return call()

    return first


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    means = 2 * torch.randn(COMPONENTS, 2)
    weights = torch.full((COMPONENTS,), 1 / COMPONENTS)
    mixture = wb.Mixture(weights, means, torch.full((COMPONENTS,), VARIANCE))
    print(f"{'':46}{'ours':>10}{'by hand':>10}   ratio")
    for name, denoiser, usual, count, goals in (
        ("mixture, 64 samples", mixture, usual_mixture(means), 64, ("0.9", "0.5")),
        ("mixture, 4096 samples", mixture, usual_mixture(means), 4096, ("0.2", "0.2")),
        ("no denoiser, 64 samples", Null(), lambda x, a, s: x, 64, ("1.2", "0.7")),
    ):
        x, diffusion = torch.randn(count, 2), wb.Diffusion(PROCESS, denoiser)
        call = partial(wb.sample, diffusion, wb.Heun(), GRID, range(count), x=x)
        other = partial(heun_by_hand, usual, GRID, x)
        torch.testing.assert_close(call().final, other(), rtol=1e-3, atol=2e-3)
        repeats = 201 if count < 1000 else 101
        for all_of_it, which in ((True, "first"), (False, "another denoiser")):
            first = forgetful(denoiser, call, all_of_it)
            show(f"{name}, {which}", least(first, other, repeats), f"at most {goals[0]}")
        show(f"{name}, again", least(call, other, repeats), f"at most {goals[1]}")
        recorded = partial(call, record=wb.Record(["x"]))
        show("  with x recorded, without", least(recorded, call, repeats), "at most 1.1")


if __name__ == "__main__":
    main()
