"""Predictor and corrector: the published loop by hand, the corrector's law, what it is good for."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, normals, relative

import workbench as wb
from workbench.processes import DCT, EqualSNR
from workbench.sampling import NoiseSource
from workbench.testing import check_sampler


def published(diffusion, grid, x, noise, count, snr, mean_norms, remove):
    """The loop of Song et al. 2021 (their code's order: corrector, then predictor)."""
    draws = iter(range(10_000))
    for i, (a, b) in enumerate(pairwise(grid.nodes)):
        kept = a.alpha / b.alpha
        for _ in range(count):
            grad, z = diffusion.score(x, a.t), noise.step(next(draws))
            norms = z.norm(dim=-1, keepdim=True), grad.norm(dim=-1, keepdim=True)
            z_norm, grad_norm = (n.mean() for n in norms) if mean_norms else norms
            step = (snr * z_norm / grad_norm) ** 2 * 2 * kept**2
            x = x + step * grad + (2 * step).sqrt() * z
        v = a.sigma**2 - kept**2 * b.sigma**2
        x = (2 - kept) * x + v * diffusion.score(x, a.t)
        if i < grid.steps - 1 or not remove:
            x = x + math.sqrt(v) * noise.step(next(draws))
    return x


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("norms", ["sample", "batch"])
@pytest.mark.parametrize("process", [wb.VP(), wb.SubVP(), wb.VE()], ids=lambda p: type(p).__name__)
def test_it_is_the_published_loop(process, norms, remove, generator, seed):
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 4))
    grid, seeds = wb.Grid.uniform(process, 12), range(seed, seed + 7)
    x = grid.sigma[0] * normals(generator, 7, 4)
    sampler = wb.PredictorCorrector(corrector_steps=2, norms=norms, noise_removal=remove)
    run = wb.sample(diffusion, sampler, grid, seeds, x=x)
    noise = NoiseSource(seeds, (4,))
    expected = published(diffusion, grid, x, noise, 2, 0.16, norms == "batch", remove)
    assert relative(run.final, expected) < 1e-10
    assert run.nfe == sampler.nfe(grid) == 36


@pytest.mark.parametrize("norms", ["sample", "expected"])
def test_each_sample_is_treated_for_itself_but_for_batch_norms(norms, generator, seed):
    diffusion = wb.Diffusion(wb.VP(), LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.log_snr(wb.VP(), 10)

    def final(norms, seeds):
        return wb.sample(diffusion, wb.PredictorCorrector(norms=norms), grid, seeds).final

    assert relative(final(norms, [seed]), final(norms, range(seed, seed + 5))[:1]) < 1e-10
    assert relative(final("batch", [seed]), final("batch", range(seed, seed + 5))[:1]) > 1e-6
    assert relative(final("batch", [seed]), final("sample", [seed])) < 1e-10


@pytest.mark.parametrize("norms", ["sample", "batch", "expected"])
@pytest.mark.parametrize("predictor", ["ReverseDiffusion", "DDPM", "DDIM", "Heun", "EulerMaruyama"])
@pytest.mark.parametrize("name", KINDS)
def test_evaluations_and_both_ends(name, predictor, norms, generator, seed):
    """A set of points is met from pure noise; at pure noise itself there is nothing to correct."""
    process, points = PROCESSES[name], normals(generator, 2) + 3 * torch.eye(2).double()
    diffusion = wb.Diffusion(process, wb.Empirical(points))
    sampler = wb.PredictorCorrector(predictor, corrector_steps=2, norms=norms)
    for steps, final in ((2, "stop"), (25, "denoise")):
        grid = wb.Grid.log_snr(process, steps, final)
        run = wb.sample(diffusion, sampler, grid, range(seed, seed + 5))
        pure = grid.alpha[0] == 0
        alone = wb.PredictorCorrector(predictor, corrector_steps=0).nfe(grid)
        assert run.nfe == sampler.nfe(grid) == alone + 2 * (steps - pure)
        assert torch.isfinite(run.final).all()
    assert torch.cdist(run.final, points).min(1).values.max() < 1e-3


def test_the_expected_norms_make_it_linear_and_its_law_exact(generator, seed, record_property):
    """Against 20 000 samples: each variance within 5.2 standard errors."""
    law = wb.Gaussian(normals(generator, 3), 0.05 + normals(generator, 3) ** 2)
    diffusion = wb.Diffusion(wb.VP(), law)
    grid = wb.Grid.log_snr(wb.VP(), 8)
    sampler = wb.PredictorCorrector(norms="expected", corrector_steps=2)
    assert sampler.program(wb.VP(), grid).linear
    exact = wb.exact.law(diffusion, sampler, grid)
    n, first = 20_000, seed % 2**50
    final = wb.sample(diffusion, sampler, grid, range(first, first + n)).final
    assert ((final - exact.mean) / exact.variances.sqrt()).mean(0).abs().max() < 5.2 / math.sqrt(n)
    found = (final - exact.mean).square().mean(0) / exact.variances
    assert (found - 1).abs().max() < 5.2 * math.sqrt(2 / n)


def test_the_corrector_leaves_the_bias_of_unadjusted_langevin():
    """On N(0, 1) as data, VE and many corrections at one level: variance / (1 - eps / (2 var))."""
    process, sigma = wb.EDM(), 0.7
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(1).double(), 1.0))
    grid = wb.Grid.times(process, [sigma, sigma * (1 - 1e-9)])
    sampler = wb.PredictorCorrector("DDIM", corrector_steps=100, snr=0.5, norms="expected")
    made = wb.exact.law(diffusion, sampler, grid, wb.Gaussian(torch.zeros(1).double(), 9.0))
    level = 1 + sigma**2
    step = 2 * (0.5 * sigma) ** 2
    # x <- (1 - e / level) x + sqrt(2 e) z keeps level / (1 - e / (2 level)).
    kept = level / (1 - step / (2 * level))
    left = (1 - step / level) ** 200 * (9.0 - kept)
    assert made.variances.item() == pytest.approx(kept + left, rel=1e-6)


def test_corrections_help_a_coarse_predictor(generator):
    """Eight steps of reverse diffusion on a Gaussian: the exact law comes closer to the data."""
    law = wb.Gaussian(normals(generator, 4), torch.tensor([0.02, 0.1, 0.5, 2.0]).double())
    diffusion = wb.Diffusion(wb.VP(), law)
    grid = wb.Grid.log_snr(wb.VP(), 8)
    truth, away = diffusion.marginal(grid.t[-1]), []
    for count in (0, 1, 4):
        norms = {"norms": "expected"} if count else {}
        sampler = wb.PredictorCorrector(corrector_steps=count, **norms)
        away.append(wb.exact.w2(wb.exact.law(diffusion, sampler, grid), truth))
    assert away[0] > away[1] > away[2]


def test_the_norms_of_one_sample_agree_with_the_expected_ones_in_high_dimension(generator, seed):
    """|z|^2 / d and |s|^2 sigma^2 / d are 1 up to 1/sqrt(d) where the noise dominates."""
    process = wb.EDM()
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(4000).double(), 1e-4))
    grid = wb.Grid.times(process, [3.0, 2.0])
    x = 3 * normals(generator, 2, 4000)
    seeds = range(seed, seed + 2)
    one, other = (
        wb.sample(diffusion, wb.PredictorCorrector(norms=norms), grid, seeds, x=x).final
        for norms in ("sample", "expected")
    )
    assert relative(one, other) < 0.05


def test_a_score_of_zero_moves_nothing(generator):
    """In the middle of a Gaussian |z| / |s| is infinite; that step is left out."""
    diffusion = wb.Diffusion(wb.EDM(), wb.Gaussian(torch.zeros(2).double(), 1.0))
    grid, x = wb.Grid.times(wb.EDM(), [1.0, 0.5]), torch.zeros(3, 2).double()
    run = wb.sample(diffusion, wb.PredictorCorrector("DDIM"), grid, range(3), x=x)
    assert (run.final == 0).all()


def test_without_corrections_it_keeps_the_laws_of_a_sampler():
    check_sampler(wb.PredictorCorrector("Heun", corrector_steps=0))


def test_modes_with_coefficients_of_their_own_need_the_expected_norms():
    process = EqualSNR(torch.ones(3).double(), DCT((3,)))
    grid = wb.Grid.uniform(process, 4)
    with pytest.raises(ValueError, match="not linear"):
        wb.PredictorCorrector().program(process, grid)
    assert wb.PredictorCorrector(norms="expected").program(process, grid).linear
