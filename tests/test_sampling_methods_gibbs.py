"""Denoising MCMC: the chain's exact law over states and levels, and the way down."""

import math

import numpy as np
import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, normals, relative, ring, uniform
from scipy import stats

import workbench as wb
from workbench.denoisers import Denoiser
from workbench.sampling import NoiseSource, Run
from workbench.sampling.methods.gibbs import gibbs_chain

LEVELS = np.geomspace(0.05, 5.0, 12).tolist()


def pair(generator):
    """Two normals on a line."""
    means = torch.tensor([[-1.5], [uniform(generator, 0.5, 1.5)]]).double()
    weight = uniform(generator, 0.3, 0.6)
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    return wb.Mixture(weights, means, torch.tensor([0.04, 0.2]).double())


def ends_of_chains(sampler, law, generator, seed, n=6000):
    """States, levels and indices of levels of chains that start in the exact law."""
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    rho = levels[torch.randint(len(LEVELS), (n,), generator=generator)][:, None]
    which = (torch.rand(n, generator=generator, dtype=torch.float64) > law.weights[0]).long()
    y = law.means[which] + (law.covs[which][:, None] + rho**2).sqrt() * normals(generator, n, 1)
    run = Run(law, NoiseSource(range(seed, seed + n), (1,)))
    y, rho = gibbs_chain(sampler, run, y, LEVELS, rho)
    assert run.evaluations == (1 + sampler.metropolis) * (sampler.burn_in + sampler.skip)
    return y, rho, (rho - levels).abs().argmin(1)


def uniform_given_level(law, y, rho):
    """The distribution function of y at its level: uniform if y has the law of that level."""
    z = (y - law.means.T) / (law.covs + rho**2).sqrt()
    return (torch.special.ndtr(z) * law.weights).sum(1).numpy()


@pytest.mark.parametrize(
    ("eta", "metropolis"), [(0.8, True), (0.02, False)], ids=["metropolis", "small steps"]
)
def test_the_chain_keeps_the_exact_law(eta, metropolis, generator, seed):
    """Levels have their prior, and states given the level the noised law of the data."""
    law = pair(generator)
    sampler = wb.DenoisingMCMC(eta, 10, 1, pick="last", metropolis=metropolis)
    y, rho, index = ends_of_chains(sampler, law, generator, seed)
    counts = np.bincount(index.numpy(), minlength=len(LEVELS))
    assert stats.chisquare(counts).pvalue > 1e-5
    u = uniform_given_level(law, y, rho)
    assert stats.kstest(u, "uniform").pvalue > 1e-5
    for part in (index < 4, index >= 8):
        assert stats.kstest(u[part.numpy()], "uniform").pvalue > 1e-5


def test_what_is_published_is_not_exact(generator, seed):
    """The argmax narrows the levels, the least of a window prefers small ones."""
    law = pair(generator)

    def levels(**changes):
        sampler = wb.DenoisingMCMC(0.8, 10, 5, metropolis=True, **changes)
        return ends_of_chains(sampler, law, generator, seed, 1000)[1].log()

    exact, argmax = levels(pick="last"), levels(pick="last", draw="argmax")
    assert argmax.std() < 0.8 * exact.std()
    assert levels().mean() < exact.mean() - 0.5
    coarse = wb.DenoisingMCMC(1.9, 10, 1, pick="last")  # Langevin steps of 1.9 rho^2
    index = ends_of_chains(coarse, law, generator, seed, 4000)[2]
    counts = np.bincount(index.numpy(), minlength=len(LEVELS))
    assert stats.chisquare(counts).pvalue < 1e-5


def test_one_update_by_hand(generator, seed):
    law, y, rho = ring(), normals(generator, 4, 2), torch.full((4, 1), 0.7, dtype=torch.float64)
    for units, size in (("level", 0.3 * 0.49), ("data", 0.3)):
        noise = NoiseSource(range(seed, seed + 4), (2,))
        sampler = wb.DenoisingMCMC(0.3, 0, 1, pick="last", units=units)
        state, level = gibbs_chain(sampler, Run(law, noise), y, LEVELS, rho)
        expected = y + 0.5 * size * law.score(y, 1.0, 0.7) + math.sqrt(size) * noise.step(0)
        assert relative(state, expected) < 1e-12
        logits = torch.stack([law.log_prob(expected, 1.0, r) for r in LEVELS])
        sums, u = logits.softmax(0).cumsum(0), torch.special.ndtr(noise.step(1)[:, 0])
        drawn = [LEVELS[int((sums[:, i] < u[i]).sum())] for i in range(4)]
        assert level.flatten().tolist() == pytest.approx(drawn)


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_every_process(kind, final, seed):
    diffusion, grid = wb.Diffusion(PROCESSES[kind], ring()), None
    for sampler in (
        wb.DenoisingMCMC(burn_in=2, skip=2, levels=8),
        wb.DenoisingMCMC(0.5, 0, 2, 8, 1.0, "data", "argmax", "least", "own", "ddim", True),
    ):
        for steps in (1, 2, 8):
            grid = wb.Grid.log_snr(diffusion.process, steps, final)
            program = sampler.program(diffusion.process, grid)
            run = wb.sample(diffusion, sampler, grid, range(seed, seed + 4), wb.Record("x"))
            assert run.nfe == sampler.nfe(grid) == program.nfe
            assert bool(run.final.isfinite().all())
        alone = torch.cat([wb.sample(diffusion, sampler, grid, [s]).final for s in run.seeds[:2]])
        assert (alone - run.final[:2]).abs().max() < 1e-9


@pytest.mark.parametrize("descent", ["join", "own"])
def test_the_way_down_is_the_flow_from_each_samples_own_level(descent, generator, seed):
    """On a Gaussian, in small steps; a sample that waits keeps its state until it joins."""
    law = LAWS["gaussian-diagonal"](generator, 2)
    diffusion = wb.Diffusion(wb.EDM(0.01, 20.0), law)
    sampler = wb.DenoisingMCMC(burn_in=2, skip=1, pick="last", descent=descent, largest=50.0)
    grid = wb.Grid.log_snr(diffusion.process, 200)
    seeds, x = range(seed, seed + 16), 20 * normals(generator, 16, 2)
    run = wb.sample(diffusion, sampler, grid, seeds, x=x)
    source = Run(law, NoiseSource(seeds, (2,)))
    levels = np.geomspace(grid.rho[-1], grid.rho[0], 100).tolist()
    y, rho = gibbs_chain(sampler, source, x, levels)
    ends = [law.flow(y[i : i + 1], (1.0, rho[i].item()), (1.0, 0.01)) for i in range(16)]
    assert relative(run.final, torch.cat(ends)) < 5e-3
    assert len(set(rho.flatten().tolist())) > 3


def test_a_denoiser_without_a_density_is_refused_with_a_sentence():
    class Mute(Denoiser):
        event_shape = torch.Size((65,))  # too many dimensions to integrate one

        def posterior_mean(self, x, alpha, sigma):
            return torch.zeros_like(x)

        def __repr__(self):
            return "Mute()"

    diffusion = wb.Diffusion(wb.VP(), Mute())
    with pytest.raises(ValueError, match=r"Mute\(\) has no log-density, from which DenoisingMCMC"):
        wb.sample(diffusion, wb.DenoisingMCMC(), wb.Grid.log_snr(wb.VP(), 4), [0])
    process = wb.HeatDissipation(wb.DCT((2, 2)))
    with pytest.raises(ValueError, match="not linear"):
        wb.DenoisingMCMC().program(process, wb.Grid.uniform(process, 5))
