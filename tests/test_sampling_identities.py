"""Different names, one method: equal to rounding, in float64.

Those of the multistep methods stand with them (test_sampling_methods_multistep: DDIM = DPM-Solver-1
= DPM-Solver++(1) = DEIS-1 = Euler in rho; SDE-DPM-Solver++(1) = DDIM(1); DEIS in rho = the linear
multistep method of k-diffusion, LMS-4), Euler's rows in test_sampling_methods_exponential.
"""

import math
from itertools import pairwise

import pytest
from helpers import KINDS, LAWS, PROCESSES, normals, relative

import workbench as wb
from workbench.sampling import NoiseSource


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("name", KINDS)
def test_ancestral_sampling_has_many_names(name, final, generator, seed):
    """DDIM(1) = DDPM (small) = SDE-DPM-Solver++(1) = exponential SDE with D held, on one noise."""
    diffusion = wb.Diffusion(PROCESSES[name], LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.log_snr(diffusion.process, 12, final)

    def run(sampler):
        return wb.sample(diffusion, sampler, grid, range(seed, seed + 6)).final

    expected = run(wb.DDIM(1.0))
    for same in (
        wb.DDPM(),
        wb.DPMSolverPP(1, sde=True),
        wb.ExponentialSDE("denoised"),
        wb.PredictorCorrector("DDPM", corrector_steps=0, noise_removal=False),
    ):
        assert relative(run(same), expected) < 1e-12


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("name", KINDS)
def test_a_deterministic_predictor_without_corrector_is_itself(name, final, generator):
    process = PROCESSES[name]
    grid = wb.Grid.log_snr(process, 9, final)
    for predictor, sampler in (("DDIM", wb.DDIM()), ("Heun", wb.Heun())):
        alone = wb.PredictorCorrector(predictor, corrector_steps=0)
        assert alone.program(process, grid) == sampler.program(process, grid)
        assert not alone.stochastic


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_reverse_diffusion_under_ve_is_euler_in_the_variance(eta, generator, seed):
    """dx = -(1 + eta)/2 s d(sigma^2) + sqrt(eta) dW(sigma^2): no drift is left to discretise."""
    process = wb.VE()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, seeds = wb.Grid.karras(process, 10), range(seed, seed + 5)
    x, noise = grid.sigma[0] * normals(generator, 5, 3), NoiseSource(seeds, (3,))
    got = wb.sample(diffusion, wb.ReverseDiffusion(eta), grid, seeds, x=x).final
    for i, (a, b) in enumerate(pairwise(grid.nodes)):
        down = a.sigma**2 - b.sigma**2
        x = x + 0.5 * (1 + eta) * down * diffusion.score(x, a.t)
        x = x + math.sqrt(eta * down) * noise.step(i)
    assert relative(got, x) < 1e-12


# ---- the sampler of mean-reverting diffusion ----------------------------------------------------


def mean_reverting(diffusion, grid, x, kind, noise=None):
    """MR Sampler (Li et al. 2025, arXiv:2502.07856): with data prediction ``ode-1``, ``ode-2`` with
    the second difference by Taylor as published, or by the midpoint, ``sde-1`` and ``sde-2``; and
    ``sde-1-noise`` and ``sde-2-noise`` with noise prediction.

    In the state x itself, which is drawn to mu: alpha x0 + (1 - alpha) mu + sigma eps.
    """
    mu, past = diffusion.condition, []
    lam = [math.log(n.alpha / n.sigma) for n in grid.nodes]
    for i, (s, t) in enumerate(pairwise(grid.nodes)):
        h, ratio = lam[i + 1] - lam[i], t.sigma / s.sigma
        denoised = (x - s.sigma * diffusion.noise(x, s.t) - (1 - s.alpha) * mu) / s.alpha
        if kind.endswith("noise"):
            past, kept = [diffusion.noise(x, s.t), *past][:2], t.alpha / s.alpha
            x = kept * x - 2 * t.sigma * math.expm1(h) * past[0] + mu * (1 - kept)
            if kind == "sde-2-noise" and len(past) == 2:
                D1 = (past[0] - past[1]) * h / (lam[i] - lam[i - 1])
                x = x - 2 * t.sigma * (math.expm1(h) / h - 1) * D1
            x = x + t.sigma * math.sqrt(math.expm1(2 * h)) * noise.step(i)
            continue
        past = [denoised, *past][:2]
        if kind.startswith("sde"):
            phi = 1 - math.exp(-2 * h)
            pull = 1 - t.alpha / s.alpha * math.exp(-2 * h) - t.alpha * phi
            x = ratio * math.exp(-h) * x + t.alpha * phi * denoised + pull * mu
            if kind == "sde-2" and len(past) == 2:
                D1 = (past[0] - past[1]) * h / (lam[i] - lam[i - 1])
                x = x + t.alpha * (1 - phi / 2 / h) * D1
            x = x + t.sigma * math.sqrt(phi) * noise.step(i)
            continue
        phi_1 = math.exp(-h) - 1
        phi_2 = phi_1 / h + 1 if kind == "ode-2-taylor" else -phi_1 / 2
        change = phi_1 * denoised
        if kind != "ode-1" and len(past) == 2:
            change = change - phi_2 * (past[0] - past[1]) * h / (lam[i] - lam[i - 1])
        x = ratio * x - t.alpha * change + mu * (1 - ratio + ratio * s.alpha - t.alpha)
    return x


MEAN_REVERTING = {
    "ode-1": wb.DPMSolverPP(1),
    "ode-2-midpoint": wb.DPMSolverPP(2),
    "ode-2-taylor": wb.DPMSolverPP(2, taylor=True),
    "sde-1": wb.DPMSolverPP(1, sde=True),
    "sde-1-noise": wb.ExponentialSDE("noise"),
    "sde-2-noise": wb.DPMSolver(2, multistep=True, sde=True, taylor=True),
    "sde-2": wb.DPMSolverPP(2, sde=True, taylor=True),
}


def reverting(process, generator):
    law, mu = LAWS["mixture-full"](generator, 3), 2 * normals(generator, 3)
    diffusion = wb.Diffusion(process, law, condition=mu)
    return diffusion, mu + process.prior_std(process.t_max) * normals(generator, 6, 3)


@pytest.mark.parametrize("process", [wb.IRSDE(noise=0.5), wb.OUVE()], ids=repr)
@pytest.mark.parametrize("kind", MEAN_REVERTING)
def test_the_mean_reverting_sampler_is_a_known_one_on_what_is_left(kind, process, generator, seed):
    """That is, on x - (1 - alpha) mu, where every sampler walks."""
    diffusion, x = reverting(process, generator)
    grid, seeds = wb.Grid.log_snr(process, 12), range(seed, seed + 6)
    got = wb.sample(diffusion, MEAN_REVERTING[kind], grid, seeds, x=x).final
    expected = mean_reverting(diffusion, grid, x, kind, NoiseSource(seeds, (3,)))
    assert relative(got, expected) < 1e-12
