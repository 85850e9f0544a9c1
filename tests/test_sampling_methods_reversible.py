"""Reversible Heun: the published recursion by hand, its order, its inverse."""

import pytest
import torch
from helpers import LAWS, PROCESSES, integrate, normals, observed_orders, relative, ring

import workbench as wb
from workbench.sampling import NoiseSource, walk
from workbench.testing import check_sampler


def test_the_laws_of_a_sampler_in_t():
    check_sampler(wb.ReversibleHeun("t"))


@pytest.mark.parametrize("axis", ["rho", "t"])
def test_it_is_the_published_recursion(axis, generator):
    """Kidger et al. 2021, algorithm 1, for y = x/alpha in rho or for x in t."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.log_snr(process, 12), normals(generator, 6, 3)
    run = wb.sample(diffusion, wb.ReversibleHeun(axis), grid, range(6), x=x)
    if axis == "t":
        places, scale, slope = grid.t, [1.0] * 13, diffusion.velocity
    else:
        places, scale = grid.rho, grid.alpha

        def slope(y, t):
            return diffusion.noise(process(t).alpha * y, t)

    y = hat = x / scale[0]
    k = slope(hat, grid.t[0])
    for i in range(12):
        h = places[i + 1] - places[i]
        hat = 2 * y - hat + h * k
        k, before = slope(hat, grid.t[i + 1]), k
        y = y + 0.5 * h * (before + k)
    assert relative(run.final, scale[-1] * y) < 1e-10
    assert run.nfe == 13


@pytest.mark.parametrize("axis", ["rho", "t"])
def test_it_is_of_order_two_on_the_ring(axis, generator, record_property):
    diffusion = wb.Diffusion(wb.VP(), ring())
    x = normals(generator, 64, 2)
    truth = integrate(diffusion, x, 1.0, 1e-3, rtol=1e-10, atol=1e-12)
    found = observed_orders(
        diffusion, wb.ReversibleHeun(axis), wb.Grid.log_snr, x, truth, steps=(160, 320)
    )[0]
    record_property("measured", f"order of reversible Heun in {axis} on the ring: {found:.2f}")
    assert found == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("axis", ["rho", "t"])
@pytest.mark.parametrize("name", PROCESSES)
def test_every_run_can_be_undone(name, axis, generator):
    """Back from what the run left, with as many evaluations as steps, to what it began with."""
    process, law = PROCESSES[name], LAWS["mixture-full"](generator, 3)
    grid, sampler = wb.Grid.log_snr(process, 30), wb.ReversibleHeun(axis)
    if grid.alpha[0] == 0:
        grid = wb.Grid.times(process, grid.t[1:])
    x, noise = grid.sigma[0] * normals(generator, 5, 3), NoiseSource(range(5), (3,))
    held = {}
    final, forward = walk(sampler.program(process, grid), law, x, noise, registers=held)
    began, backward = walk(sampler.back(process, grid), law, final, noise, registers=held)
    assert (forward, backward) == (grid.steps + 1, grid.steps)
    assert relative(began, x) < 1e-11 and relative(held["hat"], x) < 1e-11


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("name", PROCESSES)
def test_evaluations_at_both_ends(name, final, generator):
    """One a step and one more; the step from pure noise and the one to zero take one each."""
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, LAWS["mixture-equal"](generator, 2))
    for steps in (1, 2, 9):
        grid, sampler = wb.Grid.log_snr(process, steps, final), wb.ReversibleHeun()
        run = wb.sample(diffusion, sampler, grid, range(4))
        own = steps - (grid.alpha[0] == 0) - (grid.sigma[-1] == 0)
        assert run.nfe == sampler.nfe(grid) == steps + (own > 0)
        assert torch.isfinite(run.final).all()


def test_it_draws_no_noise_and_is_linear():
    grid = wb.Grid.log_snr(wb.VP(), 10)
    program = wb.ReversibleHeun().program(wb.VP(), grid)
    assert program.linear and program.draws == 0
    assert set(program.registers) == {"x", "hat", "k", "D"}
