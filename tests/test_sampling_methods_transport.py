"""DPM-OT: cells of the right mass, samples at the data, none between modes."""

import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, normals, relative, ring
from scipy import stats

import workbench as wb
from workbench.sampling import NoiseSource, walk
from workbench.sampling.methods.transport import semi_discrete


def lattice(generator, count: int = 7, gap: float = 2.0) -> torch.Tensor:
    """Some of the points of a 4 x 4 lattice, centred."""
    places = torch.randperm(16, generator=generator)[:count]
    points = gap * torch.stack([places // 4, places % 4], 1).double()
    return points - points.mean(0)


@pytest.mark.parametrize(("weighted", "source"), [(False, "normal"), (True, "uniform")])
def test_cells_have_the_mass_of_their_points(weighted, source, generator):
    """To two parts in a hundred, or to the chance of the count here, five in a thousand of it."""
    points = 3 + normals(generator, 12, 3) * torch.tensor([0.3, 1.0, 4.0])
    weights = torch.rand(12, generator=generator, dtype=torch.float64) + 0.3
    weights = weights / weights.sum() if weighted else torch.full_like(weights, 1 / 12)
    given = weights if weighted else None
    cells = semi_discrete(points, given, source=source)
    n = 1 << 18
    mass = torch.bincount(cells(normals(generator, n, 3)), minlength=12) / n
    chance = 5 * ((1 - weights) / (weights * n)).sqrt()
    assert ((mass / weights - 1).abs() < 0.02 + chance).all()
    again = semi_discrete(points, given, source=source)
    assert torch.equal(cells.heights, again.heights)


@pytest.mark.parametrize("source", ["normal", "uniform"])
def test_it_is_the_published_transport(source):
    """The iteration of the authors' ``OptimalTransport``, on normals or as there on a cube."""
    generator = torch.Generator().manual_seed(3)
    tg_fea = 2 * normals(generator, 6, 2)
    num_tg, lr, bat_size_sr = len(tg_fea), 0.1, 5000
    d_h = torch.zeros(num_tg).double()
    d_adam_m, d_adam_v = torch.zeros_like(d_h), torch.zeros_like(d_h)

    def argmax(z):
        d_volP = z if source == "normal" else torch.special.ndtr(z)
        return (tg_fea @ d_volP.T + d_h[:, None]).argmax(0)

    for steps in range(250):
        d_tot_ind = argmax(normals(generator, bat_size_sr, 2))
        d_g = torch.bincount(d_tot_ind, minlength=num_tg) / bat_size_sr
        bias_grd = d_g - 1 / num_tg
        d_adam_m = 0.9 * d_adam_m + 0.1 * bias_grd
        d_adam_v = 0.999 * d_adam_v + 0.001 * bias_grd * bias_grd
        d_h = d_h - lr * d_adam_m / (d_adam_v.sqrt() + 1e-8)
        d_h = d_h - d_h.mean()
        if steps in (120, 180):
            lr *= 0.2  # theirs falls by 0.8 each time that the error has not for 50 rounds
    z = normals(generator, 20_000, 2)
    assert (semi_discrete(tg_fea, source=source)(z) == argmax(z)).double().mean() > 0.985


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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("targets", ["noised", "walked", "clean"])
def test_states_on_the_expressway_are_noised_data(targets, generator, seed):
    """alpha y + sigma z with one y and one z for all nodes up to the level, those of the cell in
    which the start lies; there the transport is to the noised points themselves."""
    points, process = lattice(generator), wb.VP()
    diffusion, grid = wb.Diffusion(process, wb.Empirical(points)), wb.Grid.log_snr(process, 10)
    sampler, seeds = wb.DPMOT(rounds=30, targets=targets, points=7), range(seed, seed + 20)
    states = wb.sample(diffusion, sampler, grid, seeds, wb.Record("x"))["x"]
    noise, fitted = NoiseSource(seeds, (2,)), sampler.prepared(diffusion, grid).fitted
    joint = next(i for i, rho in enumerate(grid.rho) if i and rho <= sampler.level)
    _, alpha, sigma = grid.nodes[joint]
    if targets == "walked":
        states_there = alpha * fitted.cells.points
        assert relative(diffusion.denoised(states_there, grid.t[joint]), fitted.data) < 1e-12
    else:
        assert torch.equal(fitted.data, points)
    z_points = torch.zeros(7, 2).double() if targets == "clean" else fitted.noise
    tg_fea = alpha * fitted.data + sigma * z_points
    U = noise.start() @ tg_fea.T + alpha * fitted.cells.heights
    cell = U.argmax(1)
    z = noise.step(0) if targets == "clean" else fitted.noise[cell]
    for i, (_, alpha, sigma) in enumerate(grid.nodes[1 : joint + 1], 1):
        assert relative(states[i], alpha * fitted.data[cell] + sigma * z) < 1e-12
    if targets != "clean":
        assert relative(states[joint], tg_fea[cell]) < 1e-12
    ddim = wb.Grid.times(process, grid.t[joint:])
    rest = wb.sample(diffusion, wb.DDIM(), ddim, seeds, x=states[joint]).final
    assert relative(states[-1], rest) < 1e-12


def test_walked_targets_have_the_law_of_the_level():
    """On Gaussian data the states in which long runs pass the level have its variance."""
    law = wb.Gaussian(torch.zeros(2).double(), torch.tensor([1.0, 0.25]).double())
    diffusion, grid = wb.Diffusion(wb.VP(), law), wb.Grid.log_snr(wb.VP(), 10)
    sampler = wb.DPMOT(points=512, rounds=1, targets="walked")
    places = sampler.prepared(diffusion, grid).fitted.cells.points
    rho = next(rho for rho in grid.rho[1:] if rho <= sampler.level)
    ratio = places.square().mean(0) / (law.variances + rho**2)
    assert (ratio - 1).abs().max() < 0.3


def test_noise_of_the_steps_leads_to_other_samples_than_the_points():
    process = wb.VP()
    diffusion, grid = wb.Diffusion(process, ring()), wb.Grid.log_snr(process, 10)
    apart = {}
    for eta in (0.0, 1.0):
        sampler = wb.DPMOT(points=8, rounds=30, eta=eta)
        final = wb.sample(diffusion, sampler, grid, range(200)).final
        cell = sampler.prepared(diffusion, grid).fitted.cells(NoiseSource(range(200), (2,)).start())
        apart[eta] = max(
            (final[cell == i] - final[cell == i][:1]).abs().max().item() for i in cell.unique()
        )
    assert apart[0.0] < 1e-9 and apart[1.0] > 0.05


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
    fitted = sampler.prepared(diffusion, grid).fitted
    away = (fitted.data[:, None] - diffusion.denoiser.means).norm(dim=-1).min(1).values
    assert fitted.data.shape == fitted.cells.points.shape == (32, 2)
    assert away.max() < 7 * diffusion.denoiser.covs.max().sqrt()
    assert sampler.prepared(diffusion, grid).fitted is fitted  # once for a denoiser and a rho
    clean = wb.DPMOT(points=32, rounds=5, targets="clean")
    other = wb.Diffusion(wb.EDM(), diffusion.denoiser)  # known already, whatever the process
    of_other = clean.prepared(other, wb.Grid.log_snr(wb.EDM(), 5)).fitted
    assert of_other is clean.prepared(diffusion, grid).fitted
    run = wb.sample(diffusion, sampler, grid, [seed, 1])
    assert bool(run.final.isfinite().all()) and run.nfe == sampler.nfe(grid)


def test_under_an_affine_process_the_start_is_the_prior_around_the_condition(generator, seed):
    """The same cells, of the start less its mean."""
    points, mu = lattice(generator), 5 + normals(generator, 2)
    process = wb.OUVE()
    diffusion = wb.Diffusion(process, wb.Empirical(points), condition=mu)
    grid, seeds = wb.Grid.log_snr(process, 8, "denoise"), range(seed, seed + 30)
    final = wb.sample(diffusion, wb.DPMOT(0.2, rounds=100), grid, seeds).final
    cells = wb.DPMOT(0.2, rounds=100).prepared(diffusion, grid).fitted.cells
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
