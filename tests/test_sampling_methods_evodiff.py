"""EVODiff: its published update worked out by hand, one evaluation a step, the flow its limit."""

import math

import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, normals, observed_orders, relative, ring, uniform

import workbench as wb
from workbench.sampling.methods.evodiff import _projection


def by_hand(denoiser, levels, times, x, published):
    """The published update for one sample of numbers in a row, alpha = 1, written once more."""

    def dot(a, b):
        return float(min(max((a @ b) / (b @ b), -2.0), 2.0))

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    denoise = lambda state, sigma: denoiser.denoise(state[None], 1.0, sigma)[0]  # noqa: E731
    euler = lambda state, d, s, t: t / s * state + t * (1 / t - 1 / s) * d  # noqa: E731
    past = [denoise(x, levels[0])]
    x = euler(x, past[0], *levels[:2])
    past.append(denoise(x, levels[1]))
    for i in range(2, len(levels) - 1):
        r, s, t = levels[i - 2 : i + 1]
        h = 1 / t - 1 / s
        q = math.log(r / s) / math.log(s / t)
        w = 0.5 * (1 - ((times[i] + times[-1]) / (times[0] + times[-1])) ** 2)
        root = math.sqrt((t / s) / (s / r))
        b1 = (1 - w) * root + w * dot(past[1], past[0])
        one = past[1] - b1 * past[0]
        first = euler(x, past[1], s, t)
        factor = min(max(sigmoid(abs(b1) / 4), 0.25), 1.5) * q
        probe = first + 0.5 * t * h / factor * one
        new = denoise(probe, t)
        two = new - ((1 - w) * root + w * dot(new, past[1])) * past[1]
        # dot() bounds a ratio, so the common factor 1 / h of both arguments drops out.
        eta = 0.5 * sigmoid(abs(0.5 * dot(q * two + one / q, q * two - one / q)))
        both = -eta * one / q + (1 - eta) * q * two
        zeta = abs(dot(probe - first - 0.5 * t * h / factor * both, one) / (h * t)) - 0.5
        if len(levels) - 1 > 20:
            zeta = -zeta * sigmoid(dot(past[1], (past[1] - past[0]) / h) * (2 - (t / s) ** 2))
        x = first + 0.5 * t * h / sigmoid(zeta) * both
        past = [past[1], new]
    s, t = levels[-2:]
    last = euler(x, past[1], s, t)
    if not published:
        return last
    beta = 1 - 0.5 * math.sqrt(t / s if t / s < 0.5 else t / s - 0.5)
    kept = 1 - math.sqrt(s * t)
    return kept * last + 0.5 * t * (1 / t - 1 / s) * (past[1] - beta * past[0])


@pytest.mark.parametrize("ending", ["ddim", "published"])
@pytest.mark.parametrize("steps", [2, 3, 9, 20, 23])
def test_the_published_update(steps, ending, generator):
    process, law = wb.EDM(0.05, uniform(generator, 5, 20)), LAWS["mixture-isotropic"](generator, 4)
    grid, x = wb.Grid.karras(process, steps), 5 * normals(generator, 6, 4)
    run = wb.sample(wb.Diffusion(process, law), wb.EVODiff(ending), grid, range(6), x=x)
    expected = [by_hand(law, grid.sigma, grid.t, one, ending == "published") for one in x]
    assert relative(run.final, torch.stack(expected)) < 1e-9
    assert run.nfe == steps


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_is_ddim(kind, generator, seed):
    diffusion = wb.Diffusion(PROCESSES[kind], LAWS["mixture-full"](generator, 3))
    grid, seeds = wb.Grid.log_snr(diffusion.process, 7, "denoise"), range(seed, seed + 4)
    mine, ddim = (
        wb.sample(diffusion, sampler, grid, seeds, wb.Record("x"))["x"]
        for sampler in (wb.EVODiff(), wb.DDIM())
    )
    first = 2 if grid.alpha[0] == 0 else 1  # pure noise has no log-SNR to remember
    assert relative(mine[: first + 1], ddim[: first + 1]) < 1e-14
    assert relative(mine[first + 1], ddim[first + 1]) > 1e-6


@pytest.mark.parametrize("kind", ["VP", "EDM", "RectifiedFlow"])
def test_it_converges_to_the_flow(kind, generator):
    """At first order; with the published ending it does not, where sigma stays at the end."""
    law = wb.Gaussian(0.3 * normals(generator, 3), torch.tensor([0.15, 0.04, 0.01]).double())
    diffusion = wb.Diffusion(PROCESSES[kind], law)

    def grid(process, steps):
        made = wb.Grid.log_snr(process, steps)
        return wb.Grid.times(process, made.t[1:]) if made.alpha[0] == 0 else made

    first = grid(diffusion.process, 10).t[0]
    start = PROCESSES[kind].prior_std(first) * normals(generator, 32, 3)

    def orders(sampler):
        truth = diffusion.flow(start, first, grid(diffusion.process, 10).t[-1])
        return observed_orders(diffusion, sampler, grid, start, truth, (160, 320))

    assert 0.7 < orders(wb.EVODiff())[0] < 1.3
    if kind == "VP":
        assert orders(wb.EVODiff("published"))[0] < 0.6


def test_products_of_images_are_taken_channel_by_channel(generator):
    a, b = normals(generator, 5, 2, 3, 4), normals(generator, 5, 2, 3, 4)
    each = (a * b).flatten(2).sum(2) / (b * b).flatten(2).sum(2)
    assert torch.allclose(_projection(a, b)[..., 0, 0], each.clamp(-2, 2), rtol=1e-12)
    flat = _projection(a.flatten(1), b.flatten(1))
    assert flat.shape == (5, 1)
    assert _projection(a[:, 0, 0, 0], b[:, 0, 0, 0]).shape == (5,)
    assert torch.equal(_projection(a, torch.zeros_like(b)), torch.zeros(5, 2, 1, 1).double())


def test_batches_recording_and_points(generator, seed):
    for law in (ring(), wb.Empirical(normals(generator, 9, 2))):
        diffusion, grid = wb.Diffusion(wb.VP(), law), wb.Grid.log_snr(wb.VP(), 25)
        seeds = range(seed, seed + 6)
        run = wb.sample(diffusion, wb.EVODiff(), grid, seeds, wb.Record(["x", "denoised"]))
        assert run.nfe == 25 and bool(run.final.isfinite().all())
        alone = torch.cat([wb.sample(diffusion, wb.EVODiff(), grid, [s]).final for s in seeds])
        assert (alone - run.final).abs().max() < 1e-9
        assert torch.equal(wb.sample(diffusion, wb.EVODiff(), grid, seeds).final, run.final)


def test_one_step_and_spectral_processes():
    grid = wb.Grid.log_snr(wb.VP(), 1)
    diffusion = wb.Diffusion(wb.VP(), ring())
    one, other = (wb.sample(diffusion, m, grid, [1]).final for m in (wb.EVODiff(), wb.DDIM()))
    assert relative(one, other) < 1e-13
    process = wb.HeatDissipation(wb.DCT((2, 2)))
    with pytest.raises(ValueError, match="not linear"):
        wb.EVODiff().program(process, wb.Grid.uniform(process, 5))
