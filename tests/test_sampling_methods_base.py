"""What holds for every sampler: counting, both ends, independence of the batch."""

import math
from itertools import product

import pytest
import torch
from helpers import KINDS, LAWS, normals, relative, ring

import workbench as wb
from workbench.sampling import Node
from workbench.sampling.methods.base import exponential_step

ALL = {
    "Euler": wb.Euler(),
    "Euler-t": wb.Euler("t"),
    "Heun": wb.Heun(),
    "Heun-t": wb.Heun("t"),
    "Midpoint": wb.Midpoint(),
    "Midpoint-t": wb.Midpoint("t"),
    "RK4": wb.RK4(),
    "RK4-t": wb.RK4("t"),
    "DDIM": wb.DDIM(),
    "DDIM-eta": wb.DDIM(0.6),
    "DDIM-1": wb.DDIM(1.0),
    "DDPM": wb.DDPM(),
    "DDPM-large": wb.DDPM("large"),
    "ReverseDiffusion": wb.ReverseDiffusion(),
    "ReverseDiffusion-0": wb.ReverseDiffusion(0.0),
    "EulerMaruyama": wb.EulerMaruyama(),
    "EulerMaruyama-0": wb.EulerMaruyama(0.0),
    "EulerMaruyama-3": wb.EulerMaruyama(3.0),
    "ExponentialSDE": wb.ExponentialSDE(),
    "ExponentialSDE-score": wb.ExponentialSDE("score"),
    "ExponentialSDE-denoised": wb.ExponentialSDE("denoised"),
    "DPMSolver": wb.DPMSolver(),
    "DPMSolver-3": wb.DPMSolver(3),
    "DPMSolverPP": wb.DPMSolverPP(),
    "DPMSolverPP-3": wb.DPMSolverPP(3),
    "DPMSolverPP-single": wb.DPMSolverPP(2, multistep=False),
    "DPMSolverPP-sde": wb.DPMSolverPP(sde=True),
    "UniPC": wb.UniPC(),
    "DEIS": wb.DEIS(),
    "IPNDM": wb.IPNDM(),
    "EDMStochastic": wb.EDMStochastic(),
    "EDMStochastic-0": wb.EDMStochastic(0.0),
}
#: Those that do more than evaluate and combine, or count otherwise: tests of their own.
OTHERS = {
    "PredictorCorrector": wb.PredictorCorrector(),
    "ReversibleHeun": wb.ReversibleHeun(),
    "GENIE": wb.GENIE(),
    "DPMSolverV3": wb.DPMSolverV3(),
    "EVODiff": wb.EVODiff(),
    "DenoisingMCMC": wb.DenoisingMCMC(),
    "DPMOT": wb.DPMOT(points=32, rounds=50),
    "RK45": wb.RK45(),
}
#: Evaluations a step takes.
STAGES = {"Heun": 2, "Midpoint": 2, "RK4": 4, "EDMStochastic": 2, "DPMSolver": 2}
STAGES |= {"DPMSolver-3": 3, "DPMSolverPP-single": 2}


def test_every_registered_sampler_is_tested_here():
    tested = {type(s) for s in [*ALL.values(), *OTHERS.values()]}
    assert tested == set(wb.SAMPLERS.values()) - {
        wb.InverseHeat
    }  # of order 0: it has a file of its own
    for name, kind in wb.SAMPLERS.items():
        assert kind.__name__ == name and kind().order in (0, 1, 2, 3, 4, 5)
        assert "arXiv" in kind.__doc__ or "19" in kind.__doc__
    for name, sampler in ALL.items():
        still = getattr(sampler, "eta", 1.0) == 0 or name == "EDMStochastic-0"
        noisy = name.startswith(("DDPM", "EDM", "Euler-M", "Exp")) or name == "DPMSolverPP-sde"
        noisy = noisy or hasattr(sampler, "eta")
        assert sampler.stochastic == (noisy and not still), name


#: How a run ends, and its steps.
RUNS = list(product(("stop", "denoise"), (1, 2, 7)))


@pytest.mark.parametrize("name", ALL)
def test_evaluations_are_counted_before_the_run(name):
    """On every process, with one of the runs in three: others for each sampler and process."""
    sampler = ALL[name]
    for row, process in enumerate(KINDS.values()):
        for final, steps in RUNS[(row + list(ALL).index(name)) % 3 :: 3]:
            grid = wb.Grid.log_snr(process, steps=steps, final=final)
            program = sampler.program(process, grid)
            # Once in a step to sigma = 0, and in one from alpha = 0 unless the method is in t.
            each = STAGES.get(name) or STAGES.get(name.partition("-")[0], 1)
            once = {steps - 1} if final == "denoise" else set()
            once |= {0} if grid.alpha[0] == 0 and not sampler.in_time else set()
            where = f"{process!r}, {steps} steps, {final}"
            assert program.nfe == sampler.nfe(grid) == each * steps - (each - 1) * len(once), where
            if not name.startswith("EDMStochastic"):  # which stirs only some of its levels
                assert program.draws == sampler.stochastic * (steps - (final == "denoise")), where
            assert [step.start for step in program.steps] == list(grid.nodes[:-1])
            assert [step.end for step in program.steps] == list(grid.nodes[1:])


@pytest.mark.parametrize("name", ALL)
def test_from_pure_noise_the_first_step_is_the_exact_one_of_the_limit(name, generator, seed):
    """At alpha = 0, D = E[x0] and the noise is x: x' = alpha' D + sqrt(sigma'^2 - s^2) x + s z."""
    law, sampler = LAWS["mixture-full"](generator, 3), ALL[name]
    process = wb.RectifiedFlow()
    if name in ("Midpoint-t", "RK4-t"):
        pytest.skip("several velocities in t make the step: tests of its own")
    run = wb.sample(
        wb.Diffusion(process, law), sampler, wb.Grid.times(process, [1.0, 0.7]), [seed, seed + 1]
    )
    noise = wb.sampling.NoiseSource([seed, seed + 1], (3,))
    x, z = noise.start(), noise.step(0)
    eta = min(getattr(sampler, "eta", 1.0 * (sampler.stochastic and "EDM" not in name)), 1.0)
    expected = 0.3 * law.mean + 0.7 * (math.sqrt(1 - eta**2) * x + eta * z)
    if name == "Heun-t":  # the trapezium of the velocities at both ends
        euler = expected
        velocity = wb.Diffusion(process, law).velocity(euler, 0.7)
        expected = x - 0.15 * ((x - law.mean) + velocity)
    assert relative(run.final, expected) < 1e-12


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_to_no_noise_is_the_denoised_state(kind, name, generator, seed):
    process, sampler = KINDS[kind], ALL[name]
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.log_snr(process, steps=6, final="denoise")
    run = wb.sample(diffusion, sampler, grid, range(seed, seed + 8), wb.Record("x"))
    last = diffusion.denoised(run["x"][-2], grid.t[-2])
    if name != "UniPC":  # whose evaluation there was made at the predicted state
        assert relative(run.final, last) < 1e-14
    if name.startswith("EDMStochastic"):
        return
    straight = wb.Grid.times(process, [grid.t[2]], final="denoise")
    x = normals(generator, 4, 3)
    final = wb.sample(diffusion, sampler, straight, range(4), x=x).final
    there = diffusion.denoised(x, grid.t[2])
    assert relative(final, process(0.0).alpha * there) < 1e-14


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("-t")])
def test_a_method_in_time_stops_at_zero_by_its_own_rule(name, generator, seed):
    """To t = 0 with sigma = 0 and final "stop": slopes there are formed with the score."""
    process, sampler = wb.VP(), ALL[name]
    diffusion = wb.Diffusion(process, LAWS["gaussian-full"](generator, 3))
    grid = wb.Grid.times(process, [1e-3, 0.0])
    x = normals(generator, 4, 3)

    def velocity(x, t):
        c = process(t)
        return c.f * x - 0.5 * c.g2 * diffusion.score(x, t)

    slopes, h = [], -1e-3
    for place, before in sampler.stages:
        moved = x + h * sum((w * s for w, s in zip(before, slopes, strict=True)), torch.zeros(3))
        slopes.append(velocity(moved, 1e-3 * (1 - place)))
    expected = x + h * sum(w * s for w, s in zip(sampler.weights, slopes, strict=True))
    final = wb.sample(diffusion, sampler, grid, range(4), x=x).final
    assert relative(final, expected) < 1e-11
    singular = wb.Diffusion(process, LAWS["empirical"](generator, 3))
    if len(sampler.stages) > 1 and name != "Midpoint-t":
        with pytest.raises(ValueError, match="sigma"):
            wb.sample(singular, sampler, grid, range(4), x=x)


def test_the_exponential_step_is_the_posterior_of_ddpm(generator):
    """x' given x and x0 for eta = 1; for any eta its noise and what is kept make sigma'."""
    for a, b in (
        (Node(0.9, 0.3, 0.9), Node(0.5, 0.7, 0.6)),
        (Node(1.0, 0.0, 2.0), Node(0.5, 0.7, 0.6)),
    ):
        for eta in (0.0, 0.3, 1.0):
            _, combine = exponential_step(a, b, eta)
            terms = dict(combine.terms)
            # From x = alpha x0 + sigma eps and D = x0: x' = alpha' x0 + kept eps + fresh z.
            kept = terms.get("x", 0.0) * a.sigma
            mean = terms.get("x", 0.0) * a.alpha + terms["D"]
            assert mean == pytest.approx(b.alpha, rel=1e-14)
            assert math.hypot(kept, combine.noise) == pytest.approx(b.sigma, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["gaussian", "ring", "digits"])
def test_a_sample_is_the_same_in_every_batch(kind, dtype, generator, seed):
    """Alone, among 64 and among 4096 (digits: 256): only the last bits of a product differ."""
    if kind == "digits":
        law = wb.Empirical(wb.datasets.digits().points)
    else:
        law = ring() if kind == "ring" else LAWS["gaussian-full"](generator, 5)
    size, many = {"digits": (10.0, 256)}.get(kind, (3.0, 4096))
    seeds = [(seed + 104_729 * i) % 2**63 for i in range(many)]
    rows = [0, 3, 63]
    bound = size * (1e-10 if dtype == torch.float64 else 1e-4)
    for process, sampler in ((wb.VP(), wb.Heun()), (wb.RectifiedFlow(), wb.EulerMaruyama())):
        diffusion = wb.Diffusion(process, law).to(dtype)
        grid = wb.Grid.log_snr(process, steps=16)
        whole = wb.sample(diffusion, sampler, grid, seeds).final[rows]
        some = wb.sample(diffusion, sampler, grid, seeds[:64]).final[rows]
        alone = torch.cat([wb.sample(diffusion, sampler, grid, [seeds[i]]).final for i in rows])
        assert (some - alone).abs().max() < bound and (whole - alone).abs().max() < bound


@pytest.mark.parametrize("name", [*ALL, *OTHERS])
def test_runs_repeat_with_and_without_a_record(name, generator, seed):
    """A record lays states out otherwise in memory, which a vector unit may answer in rounding."""
    sampler = (ALL | OTHERS)[name]
    diffusion = wb.Diffusion(wb.VP(), LAWS["mixture-diagonal"](generator, 3))
    grid, seeds = wb.Grid.karras(wb.VP(), steps=12), range(seed, seed + 50)
    first = wb.sample(diffusion, sampler, grid, seeds).final
    assert torch.equal(wb.sample(diffusion, sampler, grid, seeds).final, first)
    for record in (wb.Record("x"), wb.Record(["x", "denoised", "velocity"], every=5)):
        assert relative(wb.sample(diffusion, sampler, grid, seeds, record).final, first) < 1e-10


def test_parameters_out_of_range_are_named():
    for make, pieces in (
        (lambda: wb.DDIM(1.5), ["DDIM: eta was 1.5", "at least 0 and at most 1"]),
        (lambda: wb.EulerMaruyama(-1.0), ["EulerMaruyama: eta was -1.0", "at least 0"]),
        (lambda: wb.Heun("s"), ["Heun: axis was 's'", "one of 'rho', 't'"]),
        (lambda: wb.Euler(axis=None), ["Euler: axis was None", "one of 'rho', 't'"]),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert all(piece in str(caught.value) for piece in pieces)


def test_a_run_can_be_differentiated_with_respect_to_its_start():
    """Along one direction, against central differences; a transport to points is refused."""
    generator = torch.Generator().manual_seed(0)
    diffusion = wb.Diffusion(wb.VP(), LAWS["mixture-diagonal"](generator, 2))
    grid, x = wb.Grid.log_snr(wb.VP(), 8), normals(generator, 3, 2)
    direction, h = normals(generator, 3, 2), 1e-5

    def final(sampler, x):
        return wb.sample(diffusion, sampler, grid, range(3), x=x).final

    for name, sampler in (ALL | OTHERS).items():
        start = x.clone().requires_grad_()
        if name == "DPMOT":
            with pytest.raises(ValueError, match="asks for a gradient reaches the end of DPMOT"):
                final(sampler, start)
            continue
        (gradient,) = torch.autograd.grad(final(sampler, start).sum(), start)
        ahead, behind = (final(sampler, x + step * direction) for step in (h, -h))
        slope = (ahead - behind).sum() / (2 * h)
        assert abs((gradient * direction).sum() - slope) < 1e-6 * max(1.0, abs(slope)), name
