"""DDIM: Euler in rho without noise, DDPM's ancestral sampling with it."""

import math

import pytest
from helpers import KINDS, LAWS, PROCESSES, normals, relative

import workbench as wb


@pytest.mark.parametrize("name", KINDS)
def test_without_noise_it_is_euler_in_rho(name, generator):
    """The same rows as Euler; and x/alpha goes by h times the noise prediction, as by hand."""
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, LAWS["mixture-equal"](generator, 2))
    grid = wb.Grid.log_snr(process, steps=20, final="denoise")
    assert wb.DDIM(0.0).program(process, grid) == wb.Euler("rho").program(process, grid)
    grid = wb.Grid.times(process, grid.t[1:])  # x/alpha does not exist at pure noise
    x = process(grid.t[0]).sigma * normals(generator, 30, 2)
    state = x / process(grid.t[0]).alpha
    for t, s in zip(grid.t, grid.t[1:], strict=False):
        a, b = process(t), process(s)
        state = state + (b.rho - a.rho) * diffusion.noise(a.alpha * state, t)
    final = wb.sample(diffusion, wb.DDIM(), grid, range(30), x=x).final
    assert relative(final, state) < 1e-12


def test_with_eta_one_it_is_the_posterior_of_ddpm(generator, seed):
    """Mean and variance of q(x' | x, x0 = D) on VP, by equations 6 and 7 of Ho et al. 2020."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.uniform(process, steps=12)
    run = wb.sample(
        diffusion, wb.DDIM(1.0), grid, range(seed, seed + 20), wb.Record(["x", "denoised"])
    )
    noise = wb.sampling.NoiseSource(range(seed, seed + 20), (3,))
    for i in range(12):
        bar, bar_next = grid.alpha[i] ** 2, grid.alpha[i + 1] ** 2
        alpha = bar / bar_next  # of one step; beta = 1 - alpha
        variance = (1 - bar_next) / (1 - bar) * (1 - alpha)
        mean = math.sqrt(bar_next) * (1 - alpha) / (1 - bar) * run["denoised"][i]
        mean = mean + math.sqrt(alpha) * (1 - bar_next) / (1 - bar) * run["x"][i]
        expected = mean + math.sqrt(variance) * noise.step(i)
        assert relative(run["x"][i + 1], expected) < 1e-11


def test_noise_of_any_size_leaves_the_marginal_of_one_point(generator, seed):
    """For a data set of one point every eta samples N(alpha x0, sigma^2 I) exactly, in one step."""
    point, process = normals(generator, 1, 4), wb.EDM()
    diffusion = wb.Diffusion(process, wb.Empirical(point))
    for eta in (0.0, 0.5, 1.0):
        grid = wb.Grid.times(process, [20.0, 0.5])
        n = 4000
        x = point + 20.0 * wb.sampling.NoiseSource(range(n), (4,)).start()
        seeds = range(seed % 2**50, seed % 2**50 + n)
        final = wb.sample(diffusion, wb.DDIM(eta), grid, seeds, x=x).final
        z = (final - point) / 0.5
        count = z.numel()
        assert abs(z.mean().item()) < 5 / math.sqrt(count)
        assert abs(z.square().mean().item() - 1) < 5 * math.sqrt(2 / count)
