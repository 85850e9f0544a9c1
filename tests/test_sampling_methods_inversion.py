"""Inversions: orders, exact round trips, exact gains, and what is refused."""

import math

import pytest
import torch
from helpers import PROCESSES, covariance, integrate, normals, observed_orders, relative, ring

import workbench as wb
from workbench.sampling import walk
from workbench.sampling.methods import (
    BDIA,
    BELM,
    EDICT,
    INVERSIONS,
    DDIMInversion,
    FixedPointInversion,
    Latent,
)
from workbench.testing import check_sampler

ALL = (
    DDIMInversion(),
    FixedPointInversion(2),
    BDIA(),
    BDIA(gamma=0.5),
    BELM(),
    EDICT(),
)
EXACT = (BDIA(), BELM(), EDICT())
VP = wb.VP()
RING = wb.Diffusion(VP, ring())


def data(generator, n: int) -> torch.Tensor:
    """Points of the ring of eight, noised to t_min."""
    law, t = RING.denoiser, VP.t_min
    modes = torch.randint(len(law.means), (n,), generator=generator)
    x0 = law.means[modes].double() + 0.1 * normals(generator, n, 2)
    return RING.diffuse(x0, t, normals(generator, n, 2))


def error(inversion, grid, x, diffusion=RING) -> float:
    back = inversion.decode(diffusion, grid, inversion.encode(diffusion, grid, x))
    return (back - x).square().mean().sqrt().item()


# ---- as samplers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inversion", ALL, ids=repr)
def test_the_kit(inversion):
    check_sampler(inversion)


@pytest.mark.parametrize("inversion", ALL, ids=repr)
def test_orders_on_the_ring_and_on_a_power_law(inversion, generator):
    start = normals(generator, 48, 2) * VP(VP.t_max).sigma
    truth = integrate(RING, start, VP.t_max, VP.t_min, rtol=1e-10, atol=1e-12)
    for order in observed_orders(RING, inversion, wb.Grid.log_snr, start, truth):
        assert abs(order - inversion.order) < 0.25
    variances = torch.arange(1, 65).double() ** -2.0
    law = wb.Gaussian(torch.zeros(64).double(), variances / variances.mean())
    power = wb.Diffusion(VP, law)
    start = normals(generator, 8, 64)
    truth = power.flow(start, VP.t_max, VP.t_min)
    for order in observed_orders(power, inversion, wb.Grid.log_snr, start, truth):
        assert abs(order - inversion.order) < 0.25


@pytest.mark.parametrize("inversion", ALL, ids=repr)
def test_a_latent_alone_is_what_sample_starts_from(inversion, generator):
    grid, x = wb.Grid.quadratic(VP, 9, "denoise"), normals(generator, 4, 2)
    run = wb.sample(RING, inversion, grid, range(4), x=x)
    assert torch.equal(inversion.decode(RING, grid, x), run.final)
    assert run.nfe == inversion.nfe(grid)


def test_as_samplers_without_a_way_back_they_are_ddim(generator):
    grid, x = wb.Grid.uniform(VP, 7), normals(generator, 4, 2)
    theirs = wb.sample(RING, wb.DDIM(), grid, range(4), x=x).final
    for inversion in (DDIMInversion(), FixedPointInversion(), BDIA(gamma=1e-12)):
        assert relative(inversion.decode(RING, grid, x), theirs) < 1e-9


# ---- round trips ---------------------------------------------------------------------------------


def test_ddim_inversion_errs_by_one_over_n(generator):
    x, counts = data(generator, 128), (50, 100, 200, 400)
    logs = []
    for inversion in (DDIMInversion(), FixedPointInversion(0)):
        for n in counts:
            grid = wb.Grid.uniform(VP, n)
            back = inversion.decode(RING, grid, inversion.encode(RING, grid, x))
            logs.append((back - x).norm(dim=1).log2().mean().item())  # no sample speaks for all
    assert 0.005 < 2 ** logs[0] < 0.1
    assert 0.7 < logs[2] - logs[3] < 1.3
    assert logs[4:] == logs[:4], "without an iteration it is DDIM inversion"


def test_exact_round_trips(generator):
    x = data(generator, 64)
    for grid in (wb.Grid.uniform(VP, 50), wb.Grid.uniform(VP, 100)):
        assert error(BDIA(), grid, x) < 1e-13
        assert error(BELM(), grid, x) < 1e-13
    assert error(EDICT(), wb.Grid.log_snr(VP, 50), x) < 1e-11
    single = RING.to(torch.float32)
    assert error(BDIA(), wb.Grid.uniform(VP, 50), x.float(), single) < 1e-4


def test_gamma_below_one_explodes(generator):
    """Per step of encoding the states' difference grows by 1/gamma; only rounding can tell."""
    x, inversion = data(generator, 64), BDIA(gamma=0.5)
    sizes = [
        inversion.encode(RING, wb.Grid.uniform(VP, n), x).x.norm(dim=1).log2().mean().item()
        for n in (40, 60)
    ]
    assert 0.8 < (sizes[1] - sizes[0]) / 20 < 1.1  # less what a smaller step leaves to grow
    assert error(inversion, wb.Grid.uniform(VP, 20), x) < 1e-8
    assert error(inversion, wb.Grid.uniform(VP, 100), x) > 1.0


@pytest.mark.parametrize("final", [1, 2, 3, 9], ids="{} steps".format)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_exact_round_trips_from_pure_noise_and_of_few_steps(process, final, generator):
    law = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    diffusion, grid = wb.Diffusion(process, law), wb.Grid.log_snr(process, final)
    x = normals(generator, 5, 3)
    for inversion in EXACT:
        gain = inversion.stability(process, grid, law.variances)
        latent = inversion.encode(diffusion, grid, x)
        back = inversion.decode(diffusion, grid, latent)
        size = max(1.0, *(v.abs().max().item() for v in latent.states.values()))
        assert (back - x).abs().max() < 1e-13 * size * max(gain, 10), inversion
        assert latent.x.isfinite().all() and latent.x.shape == x.shape


def test_the_noise_of_a_fine_grid_is_that_of_the_flow(generator):
    law = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    for process in (VP, wb.EDM()):
        diffusion, x = wb.Diffusion(process, law), normals(generator, 5, 3)
        grid = wb.Grid.log_snr(process, 300)
        truth = diffusion.flow(x, grid.t[-1], grid.t[0])
        for inversion in (DDIMInversion(), FixedPointInversion(4), BDIA(), EDICT(p=1)):
            near = 2e-3 if inversion.order == 2 else 0.1
            assert relative(inversion.encode(diffusion, grid, x).x, truth) < near, inversion


def test_spectral_and_affine_processes(generator):
    law = wb.Gaussian(normals(generator, 2, 3), covariance(generator, 6))
    spectral = wb.Diffusion(wb.HeatDissipation(wb.DCT((2, 3))), law)
    x = normals(generator, 4, 2, 3)
    for diffusion in (spectral, wb.Diffusion(wb.OUVE(), law, normals(generator, 2, 3))):
        grid = wb.Grid.uniform(diffusion.process, 20)
        for inversion in (BDIA(), EDICT()):
            assert error(inversion, grid, x, diffusion) < 1e-9
        latent = DDIMInversion().encode(diffusion, grid, x)
        truth = diffusion.to_core(latent.x, grid.t[0])
        assert relative(latent.states["x"], truth) < 1e-12
        finer = wb.Grid.uniform(diffusion.process, 160)
        coarse = error(DDIMInversion(), grid, x, diffusion)
        assert error(DDIMInversion(), finer, x, diffusion) < 0.5 * coarse


def test_fixed_point_iterations_reduce_the_error_as_the_theory_says(generator):
    """On Gaussian data the round trip is a product over steps, mode by mode."""
    variances = torch.tensor([1.5, 0.4, 0.05]).double()
    diffusion = wb.Diffusion(VP, wb.Gaussian(torch.zeros(3).double(), variances))
    grid, x = wb.Grid.log_snr(VP, 50), normals(generator, 4, 3)

    def gain(rho):  # of y = x / alpha under D
        return variances / (variances + rho * rho)

    errors = []
    for count in (0, 1, 3, 10):
        factor = torch.ones(3).double()
        for r, s in zip(grid.rho, grid.rho[1:], strict=False):  # DDIM: y' = (s/r) y + (1 - s/r) D
            guess = r / s + (1 - r / s) * gain(s)
            for _ in range(count):
                guess = r / s + (1 - r / s) * gain(r) * guess
            factor = factor * guess * (s / r + (1 - s / r) * gain(r))
        inversion = FixedPointInversion(count)
        back = inversion.decode(diffusion, grid, inversion.encode(diffusion, grid, x))
        torch.testing.assert_close(back, x * factor, rtol=1e-11, atol=1e-12)
        errors.append((back - x).norm().item())
        assert inversion.encoding(VP, grid).nfe == 50 * (count + 1)
    assert errors[0] > 5 * errors[1] > 100 * errors[2] > 1e4 * errors[3] > 0


def test_belm_and_bdia_are_their_published_formulas(generator):
    """Written in y = x / alpha and the noise prediction, by hand."""
    grid, x = wb.Grid.karras(VP, 6), normals(generator, 4, 2)
    nodes = grid.nodes

    def noise(x, n):
        return (x - n.alpha * RING.denoiser.denoise(x, n.alpha, n.sigma)) / n.sigma

    def ddim(x, a, b):
        return b.alpha * (x / a.alpha + (b.rho - a.rho) * noise(x, a))

    for gamma in (1.0, 0.7):
        past, now = x, ddim(x, *nodes[:2])
        for p, a, b in zip(nodes, nodes[1:], nodes[2:], strict=False):
            ahead, behind = ddim(now, a, b) - now, ddim(now, a, p) - now
            past, now = now, past - (1 - gamma) * (past - now) - gamma * behind + ahead
        assert relative(BDIA(gamma=gamma).decode(RING, grid, x), now) < 1e-12
    past, now = x / nodes[0].alpha, ddim(x, *nodes[:2]) / nodes[1].alpha
    for p, a, b in zip(nodes, nodes[1:], nodes[2:], strict=False):
        h, before = b.rho - a.rho, a.rho - p.rho
        eps = noise(a.alpha * now, a)
        new = (h / before) ** 2 * past + (1 - (h / before) ** 2) * now
        past, now = now, new + h * (h + before) / before * eps
    assert relative(BELM().decode(RING, grid, x), nodes[-1].alpha * now) < 1e-12


def test_edict_is_its_published_formula(generator):
    """Pairs, alternating; latent_i and latent_j as in the authors' code."""
    grid, start, p = wb.Grid.log_snr(VP, 7), normals(generator, 4, 2), 0.9
    pair = [start, start]
    for k, (a, b) in enumerate(zip(grid.nodes, grid.nodes[1:], strict=False)):
        for turn in range(2):
            i = (turn + k) % 2
            other = pair[1 - i]
            eps = (other - a.alpha * RING.denoiser.denoise(other, a.alpha, a.sigma)) / a.sigma
            # DDIM with the other's noise prediction, in x - alpha D of the other: the same D
            denoised = (other - a.sigma * eps) / a.alpha
            kept = b.sigma / a.sigma
            pair[i] = kept * pair[i] + (b.alpha - a.alpha * kept) * denoised
        pair[0] = p * pair[0] + (1 - p) * pair[1]
        pair[1] = p * pair[1] + (1 - p) * pair[0]
    assert relative(EDICT(p=p).decode(RING, grid, start), pair[0]) < 1e-12


# ---- stability -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inversion", ALL, ids=repr)
def test_stability_is_the_gain_of_the_encoding_program(inversion, generator):
    """Against the linear map found by walking the program from unit changes of its states."""
    variances = torch.tensor([2.0, 0.3, 0.01]).double()
    law = wb.Gaussian(torch.zeros(3).double(), variances)
    grid = wb.Grid.quadratic(VP, 7)
    steps = inversion.back(grid.nodes)[1]
    names = inversion.states
    spread = [(n.alpha**2 * variances + n.sigma**2).sqrt() for n in grid.nodes[::-1]]
    lag = [0, int(names[-1] == "past")][: len(names)]
    best = 0.0
    for j in range(len(steps)):
        columns = []
        for i in range(len(names)):
            held = {n: torch.zeros(1, 3).double() for n in names}
            held[names[i]] = spread[j + lag[i]][None].clone()
            walk(wb.Program(steps[j:]), law, held["x"], None, registers=held)
            last = len(steps)
            columns.append(
                torch.stack([held[n][0] / spread[last + lag[k]] for k, n in enumerate(names)], -1)
            )
        norms = torch.linalg.svdvals(torch.stack(columns, -1))[:, 0]
        best = max(best, norms.max().item())
    assert inversion.stability(VP, grid, variances) == pytest.approx(best, rel=1e-9)


def test_stability_tells_the_methods_apart():
    one = torch.ones(3).double()
    uniform, levels = wb.Grid.uniform(VP, 50), wb.Grid.log_snr(wb.EDM(), 100)
    assert DDIMInversion().stability(VP, uniform, one) < 1.1
    assert BDIA().stability(VP, uniform, one) < 20
    growth = BDIA(gamma=0.5).stability(VP, wb.Grid.uniform(VP, 60), one)
    assert growth / BDIA(gamma=0.5).stability(VP, uniform, one) == pytest.approx(2**10, rel=0.5)
    # O-BELM divides by the squared ratio of neighbouring steps in rho.
    rho = levels.rho
    ratio = ((rho[0] - rho[1]) / (rho[-2] - rho[-1])) ** 2
    found = BELM().stability(wb.EDM(), levels, 1e6 * one)  # D = x: the recursion alone, in y
    spread = math.sqrt((1e6 + rho[-2] ** 2) / (1e6 + rho[1] ** 2))
    assert found / (ratio * spread) == pytest.approx(1.0, rel=0.5)
    assert BDIA(gamma=0.5).stability(VP, wb.Grid.uniform(VP, 1200), one) == math.inf


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_refused(generator):
    grid, x = wb.Grid.uniform(VP, 6), normals(generator, 3, 2)
    for inversion in ALL:
        with pytest.raises(ValueError, match="sigma = 0, and many states"):
            inversion.encode(RING, wb.Grid.uniform(VP, 6, "denoise"), x)
        with pytest.raises(ValueError, match="was made for another process"):
            inversion.encode(RING, wb.Grid.uniform(wb.EDM(), 6), x)
        with pytest.raises(ValueError, match=r"x has shape \(3, 3\); it must be \(n, 2\)"):
            inversion.encode(RING, grid, normals(generator, 3, 3))
        with pytest.raises(TypeError, match=r"x is torch.float32; this diffusion is in"):
            inversion.encode(RING, grid, x.float())
        with pytest.raises(TypeError, match="latent was None; it must be a Tensor"):
            inversion.decode(RING, grid, None)
        with pytest.raises(ValueError, match="x holds 6 values that are not finite"):
            inversion.encode(RING, grid, x * math.nan)
        latent = inversion.encode(RING, grid, x)
        assert isinstance(latent, Latent) and latent.inversion == inversion
        with pytest.raises(ValueError, match="made with the grid"):
            inversion.decode(RING, wb.Grid.uniform(VP, 7), latent)
    with pytest.raises(ValueError, match=r"made with the inversion EDICT\(p=0.93\)"):
        BDIA().decode(RING, grid, latent)
    with pytest.raises(ValueError, match="gamma was 0"):
        BDIA(gamma=0)
    with pytest.raises(TypeError, match=r"call it first: VP\(\)|must be a Diffusion"):
        BDIA().encode(wb.VP, grid, x)
    with pytest.raises(ValueError, match="each 0 or more"):
        BDIA().stability(VP, grid, torch.tensor([-1.0]))


def test_belm_says_where_it_cannot_be_undone(generator):
    """Fine modes of a heat flow are pure noise for long: their rho stands still, or infinite."""
    law = wb.Gaussian(torch.zeros(8, 8).double(), torch.ones(64).double())
    diffusion = wb.Diffusion(wb.HeatDissipation(wb.DCT((8, 8))), law)
    grid, x = wb.Grid.uniform(diffusion.process, 8), normals(generator, 2, 8, 8)
    with pytest.raises(ValueError, match="cannot be undone on this grid"):
        BELM().encode(diffusion, grid, x)
    assert BELM().decode(diffusion, grid, x).isfinite().all()
    assert error(BDIA(), grid, x, diffusion) < 1e-9


def test_every_inversion_is_registered():
    assert set(INVERSIONS) == {"DDIMInversion", "FixedPointInversion", "BDIA", "EDICT", "BELM"}
    for name, kind in INVERSIONS.items():
        assert kind.__name__ == name and getattr(wb, name) is kind
