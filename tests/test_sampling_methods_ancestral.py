"""DDPM and reverse diffusion: published steps by hand, orders, both ends."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import LAWS, PROCESSES, integrate, normals, observed_orders, relative, ring

import workbench as wb
from workbench.sampling import NoiseSource
from workbench.sampling.methods.ancestral import transition
from workbench.testing import check_sampler

#: Points so far from each other that none is mistaken for another at the end of a grid.
APART = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-2.0, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize("sampler", [wb.DDPM("large"), wb.ReverseDiffusion(0.0)], ids=repr)
def test_the_laws_of_a_sampler_with_other_parameters(sampler):
    check_sampler(sampler)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_transition_leads_from_one_marginal_to_the_next(name):
    grid = wb.Grid.uniform(PROCESSES[name], 7)
    for a, b in pairwise(grid.nodes):
        kept, v = transition(a, b)
        assert kept * b.alpha == pytest.approx(a.alpha, rel=1e-14, abs=1e-300)
        assert kept**2 * b.sigma**2 + v == pytest.approx(a.sigma**2, rel=1e-13)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_reverse_diffusion_as_published_for_vp(eta, generator, seed):
    """x_mean = (2 - sqrt(1 - beta)) x + beta s; for the flow half the score and no noise."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, seeds = wb.Grid.uniform(process, 9), range(seed, seed + 8)
    x, noise = normals(generator, 8, 3), NoiseSource(seeds, (3,))
    run = wb.sample(diffusion, wb.ReverseDiffusion(eta), grid, seeds, x=x)
    for i, (t, u) in enumerate(pairwise(grid.t)):
        beta = 1 - (process(t).alpha / process(u).alpha) ** 2
        share = 0.5 * (1 + eta)
        x = (2 - math.sqrt(1 - beta)) * x + share * beta * diffusion.score(x, t)
        x = x + eta * math.sqrt(beta) * noise.step(i)
    assert relative(run.final, x) < 1e-12


@pytest.mark.parametrize("process", [wb.VE(), wb.EDM()], ids=repr)
def test_reverse_diffusion_as_published_for_ve(process, generator, seed):
    """x_mean = x + (sigma^2 - sigma'^2) s."""
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, seeds = wb.Grid.karras(process, 9), range(seed, seed + 8)
    x, noise = grid.sigma[0] * normals(generator, 8, 3), NoiseSource(seeds, (3,))
    run = wb.sample(diffusion, wb.ReverseDiffusion(), grid, seeds, x=x)
    for i, (a, b) in enumerate(pairwise(grid.nodes)):
        gap = a.sigma**2 - b.sigma**2
        x = x + gap * diffusion.score(x, a.t) + math.sqrt(gap) * noise.step(i)
    assert relative(run.final, x) < 1e-12


def test_the_large_variance_is_right_for_data_of_unit_variance():
    """Then D = alpha x, and one step of the chain keeps N(0, I) exactly; the small one does not."""
    process, data = wb.VP(), wb.Gaussian(torch.zeros(2).double(), 1.0)
    diffusion = wb.Diffusion(process, data)
    for steps in (1, 4, 30):
        grid = wb.Grid.uniform(process, steps)
        start = diffusion.marginal(1.0)
        large = wb.exact.law(diffusion, wb.DDPM("large"), grid, start)
        small = wb.exact.law(diffusion, wb.DDPM(), grid, start)
        assert torch.allclose(large.variances, torch.ones(2).double(), rtol=1e-12, atol=0)
        assert (small.variances < 1 - 1e-4).all()


def test_the_flow_predictor_is_of_order_one_on_the_ring(generator):
    diffusion = wb.Diffusion(wb.VP(), ring())
    x = normals(generator, 128, 2)
    truth = integrate(diffusion, x, 1.0, 1e-3, rtol=1e-10, atol=1e-12)
    found = observed_orders(diffusion, wb.ReverseDiffusion(0.0), wb.Grid.log_snr, x, truth)
    assert found[-1] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("make", [wb.DDPM, lambda: wb.DDPM("large"), wb.ReverseDiffusion])
@pytest.mark.parametrize("name", PROCESSES)
def test_both_ends_of_every_process(name, make, generator, seed):
    """From pure noise where there is some, to the data themselves: a set of points is met."""
    process, points = PROCESSES[name], normals(generator, 2) + APART
    diffusion = wb.Diffusion(process, wb.Empirical(points))
    grid = wb.Grid.log_snr(process, 150, "denoise")
    final = wb.sample(diffusion, make(), grid, range(seed, seed + 40)).final
    assert torch.cdist(final, points).min(1).values.max() < 1e-6
