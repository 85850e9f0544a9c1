"""Reversible Heun: the published recursion by hand, its order, its inverse."""

from itertools import pairwise

import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, integrate, normals, observed_orders, relative, ring

import workbench as wb
from workbench.sampling import NoiseSource, Program, walk
from workbench.sampling.noise import BrownianSource
from workbench.testing import check_sampler


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_laws_of_a_sampler_in_t(eta):
    """Among them the weak order, from the exact law of the output."""
    check_sampler(wb.ReversibleHeun("t", eta))


class Published:
    """The step in the variables of torchsde's ``ReversibleHeun``, for the SDE of a diffusion."""

    def __init__(self, diffusion, axis: str, eta: float) -> None:
        self.diffusion, self.axis, self.eta = diffusion, axis, eta

    def f_and_g(self, t: float, y):
        """Drift and diffusion at process time t: of x, or in rho of y = x/alpha."""
        c = self.diffusion.process(t)
        if self.axis == "t":
            return self.diffusion.drift(y, t, eta=self.eta), (self.eta * c.g2) ** 0.5
        noise = self.diffusion.noise(c.alpha * y, t)
        return (1 + self.eta) * noise, (2 * self.eta * c.rho) ** 0.5

    def step(self, t1, dt, dW, y0, extra0):
        f0, g0, z0 = extra0
        z1 = 2 * y0 - z0 + f0 * dt + g0 * dW
        f1, g1 = self.f_and_g(t1, z1)
        y1 = y0 + (f0 + f1) * (0.5 * dt) + (g0 + g1) * (0.5 * dW)
        return y1, (f1, g1, z1)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("axis", ["rho", "t"])
def test_it_is_the_published_recursion(axis, eta, generator, seed):
    """Kidger et al. 2021, algorithm 1, for y = x/alpha in rho or for x in t."""
    process, seeds = wb.VP(), range(seed, seed + 6)
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.log_snr(process, 12), normals(generator, 6, 3)
    run = wb.sample(diffusion, wb.ReversibleHeun(axis, eta), grid, seeds, x=x)
    places, scale = (grid.t, [1.0] * 13) if axis == "t" else (grid.rho, grid.alpha)
    sde, noise = Published(diffusion, axis, eta), NoiseSource(seeds, (3,))
    y = x / scale[0]
    extra = (*sde.f_and_g(grid.t[0], y), y)
    for i in range(12):
        dt = places[i + 1] - places[i]
        dW = abs(dt) ** 0.5 * noise.step(i)
        y, extra = sde.step(grid.t[i + 1], dt, dW, y, extra)
    assert relative(run.final, scale[-1] * y) < 1e-10
    assert run.nfe == 13


def test_the_sde_is_of_strong_order_one(seed):
    """Along one Brownian path, before the drift contracts so much that the states drift apart."""
    process, sampler = wb.VP(), wb.ReversibleHeun("t", eta=1.0)
    diffusion, seeds = wb.Diffusion(process, ring()), range(seed, seed + 512)
    x, finals = process(0.7).sigma * NoiseSource(seeds, (2,)).start(), []
    for steps in (32, 64, 128):
        grid = wb.Grid.times(process, [0.7 - 0.4 * i / steps for i in range(steps + 1)])
        finals.append(wb.sample(diffusion, sampler, grid, seeds, x=x, noise="brownian").final)
    # The mean of logarithms: no single path next to a basin boundary speaks for all.
    coarse, fine = ((a - b).norm(dim=1).log().mean().exp().item() for a, b in pairwise(finals))
    assert 1.7 < coarse / fine < 2.9


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
@pytest.mark.parametrize("name", KINDS)
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


@pytest.mark.parametrize(
    ("source", "names"),
    [(NoiseSource, PROCESSES), (BrownianSource, ["VP", "RectifiedFlow"])],
    ids=["fresh", "brownian"],
)
def test_a_run_of_the_sde_is_undone_given_its_noise(source, names, generator):
    """But for a step from pure noise, which draws too. Rounding comes back as much enlarged as a
    small change of what the run left."""
    law, sampler = LAWS["mixture-full"](generator, 3), wb.ReversibleHeun("t", eta=1.0)
    for name in names:
        process = PROCESSES[name]
        grid = wb.Grid.log_snr(process, 40)
        x = grid.sigma[0] * normals(generator, 5, 3)
        program, back = sampler.program(process, grid), sampler.back(process, grid)
        lead = Program(program.steps[: int(grid.alpha[0] == 0)])
        began = walk(lead, law, x, source(range(5), (3,)))[0] if lead.steps else x
        noise, held = source(range(5), (3,)), {}
        final = walk(program, law, x, noise, registers=held)[0]
        other = walk(program, law, x, source(range(5, 10), (3,)))[0]
        size = max(1.0, *(held[state].abs().max().item() for state in ("x", "hat")))
        drawn, change, ends = sampler.noise_back(grid, noise), 1e-7 * normals(generator, 5, 3), []
        for moved in ({}, {"x": change}, {"hat": change}):
            there = held | {"hat": held["hat"] + moved.get("hat", 0.0)}
            back_at = walk(back, law, final + moved.get("x", 0.0), drawn, registers=there)[0]
            ends.append(torch.stack([back_at, there["hat"]]))
        enlarged = max((end - ends[0]).abs().max().item() for end in ends[1:]) / 1e-7
        assert (ends[0] - began).abs().max() < 1e-14 * size * max(1.0, enlarged), name
        assert relative(final, other) > 1e-3  # it is the noise that leads there


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("name", KINDS)
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


def test_it_draws_once_a_step_of_the_sde_and_is_linear():
    grid = wb.Grid.log_snr(wb.VP(), 10)
    for eta, draws, registers in ((0.0, 0, "x hat k D"), (1.0, 10, "x hat k D z")):
        program = wb.ReversibleHeun(eta=eta).program(wb.VP(), grid)
        assert program.linear and program.draws == draws
        assert set(program.registers) == set(registers.split())
