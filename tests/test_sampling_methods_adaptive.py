"""RK45: error against tolerance, samples on their own, dense output, ends, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import LAWS, integrate, normals, relative, ring

import workbench as wb
from workbench.denoisers import Denoiser

TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)


def power_law(d: int = 64) -> wb.Gaussian:
    variances = torch.arange(1, d + 1, dtype=torch.float64) ** -1.0
    return wb.Gaussian(torch.zeros(d, dtype=torch.float64), variances)


@pytest.mark.parametrize("process", [wb.VP(), wb.EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["gaussian", "ring"])
def test_error_follows_the_tolerance(name, process, generator, record_property):
    law = power_law() if name == "gaussian" else ring()
    diffusion = wb.Diffusion(process, law)
    x = process(process.t_max).sigma * normals(generator, 32, law.dim)
    if name == "gaussian":
        truth = diffusion.flow(x, process.t_max, process.t_min)
    else:
        truth = integrate(diffusion, x, process.t_max, process.t_min, rtol=1e-11, atol=1e-12)
    grid, told = wb.Grid.log_snr(process, 6), []
    for tolerance in TOLERANCES:
        run = wb.sample(diffusion, wb.RK45(tolerance, tolerance), grid, range(32), x=x)
        each = (run.final - truth).square().mean(1).sqrt()
        assert each.median() < 10 * tolerance
        told.append((each.log().mean().exp().item(), run.nfe))
    errors, counts = zip(*told, strict=True)
    assert all(a > 2 * b for a, b in pairwise(errors))
    assert errors[0] > 100 * errors[-1]
    assert list(counts) == sorted(counts) and counts[0] < 120 and counts[-1] < 260
    words = ", ".join(f"{e:.0e} ({n})" for e, n in told)
    record_property("measured", f"RK45, {name}, error (NFE) at 1e-3 to 1e-6: {words}")


@pytest.mark.parametrize("kind", ["mixture-full", "empirical"])
def test_a_sample_alone_as_in_a_batch(kind, generator, seed):
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS[kind](generator, 3))
    grid = wb.Grid.log_snr(process, 9, "denoise")
    seeds = range(seed, seed + 9)
    batch = wb.sample(diffusion, wb.RK45(), grid, seeds)
    alone = [wb.sample(diffusion, wb.RK45(), grid, [s]) for s in seeds]
    assert relative(torch.cat([run.final for run in alone]), batch.final) < 1e-10
    assert batch.nfe == max(run.nfe for run in alone)


def test_nodes_are_read_off_and_cost_nothing(generator):
    """Coarse and fine grids walk the same steps; states between are right to order 4."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, power_law(8))
    x = normals(generator, 16, 8)
    sampler = wb.RK45(1e-6, 1e-6)
    one = wb.sample(diffusion, sampler, wb.Grid.log_snr(process, 1), range(16), x=x)
    grid = wb.Grid.log_snr(process, 40)
    many = wb.sample(diffusion, sampler, grid, range(16), record=wb.Record("x"), x=x)
    assert one.nfe == many.nfe
    assert relative(many.final, one.final) < 1e-12
    for state, t in zip(many["x"], grid.t, strict=True):
        assert relative(state, diffusion.flow(x, grid.t[0], t)) < 1e-4
    assert sampler.nfe(grid) is None and sampler.program(process, grid).nfe is None


@pytest.mark.parametrize("name", ["Cosine", "RectifiedFlow", "VE", "SubVP", "OU"])
@pytest.mark.parametrize("final", ["stop", "denoise"])
def test_both_ends(name, final, generator):
    """Pure noise and sigma = 0 by DDIM's step, the exact flow between."""
    process = wb.PROCESSES[name]()
    law = LAWS["gaussian-full"](generator, 3)
    diffusion = wb.Diffusion(process, law)
    grid = wb.Grid.log_snr(process, 5, final)
    x = process(process.t_max).sigma * normals(generator, 8, 3)
    run = wb.sample(diffusion, wb.RK45(1e-8, 1e-8), grid, range(8), record=wb.Record("x"), x=x)
    first = int(grid.alpha[0] == 0)
    last = len(grid) - 1 - (final == "denoise")
    told = diffusion.flow(run["x"][first], grid.t[first], grid.t[last])
    assert relative(run["x"][last], told) < 1e-6
    if first:
        b = process(grid.t[1])
        assert relative(run["x"][1], b.alpha * law.mean + b.sigma / grid.sigma[0] * x) < 1e-12
    if final == "denoise":
        node = grid.nodes[last]
        assert relative(run.final, law.denoise(run["x"][last], node.alpha, node.sigma)) < 1e-12
    # Too short for anything between the ends.
    assert bool(
        wb.sample(diffusion, wb.RK45(), wb.Grid.log_snr(process, 1, final), [1]).final.any()
    )


def test_in_single_precision(generator):
    law = ring()
    x = normals(generator, 16, 2)
    process = wb.VP()
    grid = wb.Grid.log_snr(process, 5)
    exact = wb.sample(wb.Diffusion(process, law), wb.RK45(1e-4, 1e-4), grid, range(16), x=x)
    single = wb.Diffusion(process, law).to(torch.float32)
    run = wb.sample(single, wb.RK45(1e-4, 1e-4), grid, range(16), x=x.float())
    assert run.final.dtype == torch.float32
    assert (run.final - exact.final).norm(dim=1).median() < 1e-3


class Jumps(Denoiser):
    """Not finite below rho = 1 for states to the right."""

    event_shape, dtype, device = torch.Size([2]), torch.float64, torch.device("cpu")
    std = 1.0

    def posterior_mean(self, x, alpha, sigma):
        bad = (sigma < alpha) & (x[:, :1] > 0)
        return torch.where(bad, math.nan, 0.5 * x)


def test_a_tolerance_that_cannot_be_met():
    process = wb.EDM()
    x = torch.tensor([[9.0, 1.0], [-9.0, 1.0], [9.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"rtol was 0.001.* nothing .* rho = 1.*, for 2 of 3 sam"):
        diffusion = wb.Diffusion(process, Jumps())
        wb.sample(diffusion, wb.RK45(), wb.Grid.log_snr(process, 4), range(3), x=x)


def test_too_many_steps(monkeypatch, generator):
    monkeypatch.setattr("workbench.sampling.methods.adaptive.MOST_STEPS", 5)
    process = wb.VP()
    with pytest.raises(ValueError, match=r"RK45: rtol was 1e-06 .* 5 steps were not enough at rho"):
        diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 2))
        wb.sample(diffusion, wb.RK45(rtol=1e-6), wb.Grid.log_snr(process, 4), range(3))


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="RK45: rtol was 0; it must be a finite number, greater"):
        wb.RK45(rtol=0)
