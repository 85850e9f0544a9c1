"""Every sampler on every process: it runs and stays where the data are, or says why not.

A run is one of sampler, process, grid, ending and 1, 2, 3 or 7 steps. On `HeatDissipation`, which
keeps modes of constant rho and loses others below what a float holds, all are walked. On other
processes one combination in thirteen of grid, ending and steps, others for each sampler and each
process: as there are more processes than that, every sampler meets each of them, and every process
too.
"""

import math
from itertools import product

import pytest
import torch

import workbench as wb
from workbench.trajectory import FAR_NOTE

SAMPLERS = {**wb.SAMPLERS, **wb.INVERSIONS}
SHAPE = (2, 3)
SPECTRUM = torch.tensor([[4.0, 1.0, 0.25], [1.0, 0.25, 0.05]], dtype=torch.float64)
MEAN = torch.tensor([[0.3, -0.2, 0.0], [0.1, 0.4, -0.5]], dtype=torch.float64)
CONDITION = torch.tensor([[0.5, -0.4, 0.2], [0.0, 0.6, -0.7]], dtype=torch.float64)
SEEDS = range(3)


def diffusions() -> dict[str, wb.Diffusion]:
    data, basis = wb.Gaussian(MEAN, SPECTRUM), wb.DCT(SHAPE)
    made = {name: wb.Diffusion(kind(), data) for name, kind in wb.PROCESSES.items()}
    made |= {name: wb.Diffusion(kind(), data, CONDITION) for name, kind in wb.AFFINE.items()}
    for name, kind in wb.SPECTRAL.items():
        own = {"spectrum": SPECTRUM} if name in ("ShortestPath", "EqualSNR") else {}
        made[name] = wb.Diffusion(kind(basis=basis, **own), data)
    return made


DIFFUSIONS = diffusions()
COMBINATIONS = list(product(wb.GRIDS, ("stop", "denoise"), (1, 2, 3, 7)))
SHARE = 13
assert len(DIFFUSIONS) >= SHARE

#: Samplers that refuse spectral processes: some of their steps are not linear, or not alike for all
#: modes.
NOT_BY_MODE = {
    "DPMOT", "DenoisingMCMC", "EDMStochastic", "EVODiff", "GENIE", "PredictorCorrector", "RK45",
}  # fmt: skip


def may_refuse(sampler: str, process: str) -> bool:
    if sampler == "EDICT" and process in ("HeatDissipation", "RDDM"):  # its copies drift apart
        return True
    return process in wb.SPECTRAL and sampler in NOT_BY_MODE


def start(diffusion, t: float):
    """Noised data where there is no prior."""
    if diffusion.process.has_prior:
        return None
    noise = wb.sampling.NoiseSource(SEEDS, SHAPE)
    return diffusion.diffuse(MEAN + SPECTRUM.sqrt() * noise.step(99), t, noise.start())


def is_a_sentence(error: Exception) -> bool:
    text = str(error)
    kind = isinstance(error, ValueError | TypeError | NotImplementedError)
    return kind and "\n" not in text and 30 < len(text) < 700 and text[-1] in ".)]"


def made(name: str):
    """A sampler with its defaults; a transport to few points, for its plan costs the most."""
    return wb.DPMOT(points=8, rounds=20) if name == "DPMOT" else SAMPLERS[name]()


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_runs_or_says_why_not(name):
    where = list(SAMPLERS).index(name)
    for row, (process, diffusion) in enumerate(DIFFUSIONS.items()):
        scale = SPECTRUM.mean().sqrt().item()
        if diffusion.process.has_prior:
            prior = diffusion.process.prior_std(diffusion.process.t_max)
            scale = max(scale, torch.as_tensor(prior).max().item())
        for place, (grid_name, final, steps) in enumerate(COMBINATIONS):
            if process != "HeatDissipation" and (place + 3 * where + row) % SHARE:
                continue
            told = f"{name} on {process}, {grid_name}, {final}, {steps} steps"
            try:
                grid = wb.GRIDS[grid_name](diffusion.process, steps, final)
            except ValueError as error:
                assert process in wb.SPECTRAL and is_a_sentence(error), told
                continue
            x = start(diffusion, grid.t[0])
            try:
                run = wb.sample(diffusion, made(name), grid, SEEDS, wb.Record(["x"]), x)
            except Exception as error:
                assert is_a_sentence(error), f"{told}: {error!r}"
                broke = isinstance(error, wb.RunError) and "not finite" in str(error)
                assert broke or may_refuse(name, process), f"{told}: {error}"
                continue
            reach = run["x"].abs().max().item() / scale
            assert math.isfinite(reach), told
            # The run looks at the coordinates that the sampler walks in, and at its own start too.
            slack = 2 * math.sqrt(6) if process in {**wb.SPECTRAL, **wb.AFFINE} else 1.5
            said = FAR_NOTE in run.attrs.get("notes", "")
            assert said or reach <= 100 * slack, f"{told}: {reach:g} without a word"
            assert not said or reach > 100 / slack, f"{told}: {reach:g} is not far"
