"""DPM-OT: cells of the right mass, samples at the data, none between modes."""

import math

import pytest
import torch
from helpers import LAWS, PROCESSES, normals, relative, ring
from scipy import stats

import workbench as wb
from workbench.sampling import NoiseSource, walk
from workbench.sampling.methods.transport import semi_discrete


def lattice(generator, count: int = 7, gap: float = 2.0) -> torch.Tensor:
    """Some of the points of a 4 x 4 lattice, centred."""
    places = torch.randperm(16, generator=generator)[:count]
    points = gap * torch.stack([places // 4, places % 4], 1).double()
    return points - points.mean(0)


@pytest.mark.parametrize("weighted", [False, True])
def test_cells_have_the_mass_of_their_points(weighted, generator):
    points = 3 + normals(generator, 12, 3) * torch.tensor([0.3, 1.0, 4.0])
    weights = torch.rand(12, generator=generator, dtype=torch.float64) + 0.3
    weights = weights / weights.sum() if weighted else torch.full_like(weights, 1 / 12)
    cells = semi_discrete(points, weights if weighted else None, 250)
    n = 20_000
    mass = torch.bincount(cells(normals(generator, n, 3)), minlength=12) / n
    # Chance of the count here, and of the million normals that the fit has seen.
    sd = (weights * (1 - weights)).sqrt() * math.sqrt(1 / n + 1 / 1e5)
    assert ((mass - weights) / sd).abs().max() < 5.5
    again = semi_discrete(points, weights if weighted else None, 250)
    assert torch.equal(cells.heights, again.heights)


def test_on_a_line_it_is_the_monotone_map(generator):
    """Cells are the intervals between quantiles of the normal, in the order of the points."""
    points = 2 * normals(generator, 6, 1)
    weights = torch.rand(6, generator=generator, dtype=torch.float64) + 0.3
    weights = weights / weights.sum()
    cells = semi_discrete(points, weights, 300)
    order = points[:, 0].argsort()
    y, h = points[order, 0], cells.heights[order]
    bounds = (h[:-1] - h[1:]) / (y[1:] - y[:-1])  # where neighbours are equally good
    masses = stats.norm.cdf(bounds.numpy())
    assert abs(masses - weights[order].cumsum(0)[:-1].numpy()).max() < 0.012


@pytest.mark.parametrize("kind", PROCESSES)
def test_samples_end_at_the_data_and_are_evenly_shared(kind, generator, seed):
    points = lattice(generator)
    process = PROCESSES[kind]
    diffusion, n = wb.Diffusion(process, wb.Empirical(points)), 700
    grid = wb.Grid.log_snr(process, 12, "denoise")
    sampler = wb.DPMOT(level=0.3, rounds=150)
    run = wb.sample(diffusion, sampler, grid, range(seed, seed + n), wb.Record(["x", "denoised"]))
    joint = next(i for i, rho in enumerate(grid.rho) if i and rho <= 0.3)
    assert run.nfe == sampler.nfe(grid) == sampler.program(process, grid).nfe == 12 - joint
    away, nearest = (run.final / grid.alpha[-1] - points[:, None]).norm(dim=-1).min(0)
    assert away.max() < 0.05
    # A cell is off by what the fit leaves, 2 % of its mass at most.
    chi2 = stats.chisquare(torch.bincount(nearest, minlength=len(points)).numpy())
    assert chi2.pvalue > 1e-5
    alone = wb.sample(diffusion, sampler, grid, [seed + 3]).final
    assert (alone - run.final[3:4]).abs().max() < 1e-9


def test_states_on_the_expressway_are_noised_data(generator, seed):
    """alpha y + sigma z with one y and one z for all nodes up to the level, the y of the cell."""
    points = lattice(generator)
    diffusion, grid = wb.Diffusion(wb.VP(), wb.Empirical(points)), wb.Grid.log_snr(wb.VP(), 10)
    sampler, seeds = wb.DPMOT(rounds=30), range(seed, seed + 20)
    states = wb.sample(diffusion, sampler, grid, seeds, wb.Record("x"))["x"]
    noise = NoiseSource(seeds, (2,))
    cells = sampler.prepared(diffusion, grid).cells
    target, z = points[cells(noise.start())], noise.step(0)
    for i, (_, alpha, sigma) in enumerate(grid.nodes):
        if i:
            assert relative(states[i], alpha * target + sigma * z) < 1e-12
        if i and grid.rho[i] <= sampler.level:
            break
    ddim = wb.Grid.times(wb.VP(), grid.t[i:])
    rest = wb.sample(diffusion, wb.DDIM(), ddim, seeds, x=states[i]).final
    assert relative(states[-1], rest) < 1e-12


def test_fewer_samples_between_modes_than_ddim(generator, seed):
    """Five evaluations each; between modes: farther from a point than a quarter of the gap."""
    points, process = lattice(generator, 12), wb.VP()
    diffusion, n = wb.Diffusion(process, wb.Empirical(points)), 1000
    low, sampler = process(process.t_min).rho, wb.DPMOT(level=0.3)
    times = [process.time_of(0.3 * (low / 0.3) ** (i / 5)) for i in range(5)]
    short = wb.Grid.times(process, [1.0, *times, process.t_min])
    between = {}
    for name, method, grid in (
        ("DPMOT", sampler, short),
        ("DDIM", wb.DDIM(), wb.Grid.uniform(process, 5)),
    ):
        run = wb.sample(diffusion, method, grid, range(seed, seed + n))
        assert run.nfe == 5
        away = (run.final[:, None] - points).norm(dim=-1).min(1).values
        between[name] = (away > 0.5).double().mean().item()
    assert between["DPMOT"] == 0.0 and between["DDIM"] > 0.05


def test_points_are_drawn_where_the_denoiser_has_none(seed):
    diffusion = wb.Diffusion(wb.RectifiedFlow(), ring())
    grid = wb.Grid.log_snr(diffusion.process, 8)
    sampler = wb.DPMOT(points=32, rounds=50, seed=seed % 1000)
    cells = sampler.prepared(diffusion, grid).cells
    away = (cells.points[:, None] - diffusion.denoiser.means).norm(dim=-1).min(1).values
    assert cells.points.shape == (32, 2)
    assert away.max() < 7 * diffusion.denoiser.covs.max().sqrt()
    other = wb.Diffusion(wb.EDM(), diffusion.denoiser)  # known already, whatever the process
    assert sampler.prepared(other, wb.Grid.log_snr(wb.EDM(), 5)).cells is cells
    run = wb.sample(diffusion, sampler, grid, [seed, 1])
    assert bool(run.final.isfinite().all()) and run.nfe == sampler.nfe(grid)


def test_under_an_affine_process_the_start_is_the_prior_around_the_condition(generator, seed):
    """The same cells, of the start less its mean."""
    points, mu = lattice(generator), 5 + normals(generator, 2)
    process = wb.OUVE()
    diffusion = wb.Diffusion(process, wb.Empirical(points), condition=mu)
    grid, seeds = wb.Grid.log_snr(process, 8, "denoise"), range(seed, seed + 30)
    final = wb.sample(diffusion, wb.DPMOT(0.2, rounds=100), grid, seeds).final
    cells = wb.DPMOT(0.2, rounds=100).prepared(diffusion, grid).cells
    expected = points[cells(NoiseSource(seeds, (2,)).start())]
    assert relative(final, expected) < 0.05


def test_what_cannot_run_is_refused_with_a_sentence(generator):
    grid = wb.Grid.log_snr(wb.VP(), 5)
    diffusion = wb.Diffusion(wb.VP(), LAWS["empirical"](generator, 2))
    program = wb.DPMOT().program(wb.VP(), grid)
    with pytest.raises(ValueError, match="no data points yet"):
        walk(program, diffusion.core, normals(generator, 2, 2), NoiseSource([1, 2], (2,)))
    process = wb.HeatDissipation(wb.DCT((2, 2)))
    with pytest.raises(ValueError, match="not linear"):
        wb.DPMOT().program(process, wb.Grid.uniform(process, 5))
    with pytest.raises(ValueError, match="DPMOT: level was 0"):
        wb.DPMOT(level=0.0)
