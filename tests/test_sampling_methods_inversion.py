"""Inversions: orders, exact round trips, exact gains, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import KINDS, covariance, integrate, normals, observed_orders, relative, ring

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
    back = inversion.decode(RING, grid, x)
    torch.testing.assert_close(back, run.final, rtol=1e-9, atol=1e-10)
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
@pytest.mark.parametrize("process", KINDS.values(), ids=KINDS)
def test_exact_round_trips_from_pure_noise_and_of_few_steps(process, final, generator):
    law = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    diffusion, grid = wb.Diffusion(process, law), wb.Grid.log_snr(process, final)
    x = normals(generator, 5, 3)
    for inversion in EXACT:
        gain = math.prod(
            inversion.stability(process, grid, law.variances, way) for way in ("encode", "decode")
        )
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
        for inversion in (BDIA(), EDICT(holds="denoised")):
            assert error(inversion, grid, x, diffusion) < 1e-9
        latent = DDIMInversion().encode(diffusion, grid, x)
        truth = diffusion.to_core(latent.x, grid.t[0])
        assert relative(latent.states["x"], truth) < 1e-12
        finer = wb.Grid.uniform(diffusion.process, 160)
        coarse = error(DDIMInversion(), grid, x, diffusion)
        assert error(DDIMInversion(), finer, x, diffusion) < 0.5 * coarse


def test_fixed_point_iterations_reduce_the_error_as_the_theory_says(generator):
    """On Gaussian data the round trip is a product over steps, mode by mode: the distance from the
    fixed point shrinks (1 - rho_b/rho_a) rho_a^2/(variance + rho_a^2)-fold in each iteration."""
    variances = torch.tensor([1.5, 0.4, 0.05]).double()
    diffusion = wb.Diffusion(VP, wb.Gaussian(torch.zeros(3).double(), variances))
    x = normals(generator, 4, 3)
    for grid in (wb.Grid.log_snr(VP, 50), wb.Grid.uniform(VP, 20)):
        errors = []
        for count in (0, 1, 3, 10):
            factor = torch.ones(3).double()
            for r, s in pairwise(grid.rho):  # y' = y + (s - r) eps, of y = x / alpha
                forward = 1 + (s - r) * r / (variances + r * r)
                guess = 1 - (s - r) * s / (variances + s * s)
                shrink = ((1 - s / r) * r * r / (variances + r * r)) ** count
                factor = factor * forward * (1 / forward + shrink * (guess - 1 / forward))
            inversion = FixedPointInversion(count)
            back = inversion.decode(diffusion, grid, inversion.encode(diffusion, grid, x))
            torch.testing.assert_close(back, x * factor, rtol=1e-11, atol=1e-12)
            errors.append((back - x).norm().item())
            assert inversion.encoding(VP, grid).nfe == grid.steps * (count + 1)
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 40 * errors[3]


class Published:
    """The schedule and the network of the authors' codes, which count time in nodes of a grid."""

    def __init__(self, diffusion, grid):
        self.denoiser, self.nodes = diffusion.denoiser, grid.nodes
        self.alphas_cumprod = [node.alpha**2 for node in grid.nodes]

    def noise_pred(self, latent, t):
        alpha, sigma = self.nodes[t].alpha, self.nodes[t].sigma
        return (latent - alpha * self.denoiser.denoise(latent, alpha, sigma)) / sigma

    def prev_step(self, model_output, timestep, sample):
        """DDIM's step towards the data, as in SPDInv and (``forward_step``) EDICT."""
        alpha_prod_t, alpha_prod_t_prev = self.alphas_cumprod[timestep : timestep + 2]
        pred_original_sample = (
            sample - (1 - alpha_prod_t) ** 0.5 * model_output
        ) / alpha_prod_t**0.5
        pred_sample_direction = (1 - alpha_prod_t_prev) ** 0.5 * model_output
        return alpha_prod_t_prev**0.5 * pred_original_sample + pred_sample_direction

    def next_step(self, model_output, timestep, sample):
        """Its reverse: ``sample`` is the state before it, at ``timestep + 1``."""
        alpha_prod_t_next, alpha_prod_t = self.alphas_cumprod[timestep : timestep + 2]
        next_original_sample = (
            sample - (1 - alpha_prod_t) ** 0.5 * model_output
        ) / alpha_prod_t**0.5
        next_sample_direction = (1 - alpha_prod_t_next) ** 0.5 * model_output
        return alpha_prod_t_next**0.5 * next_original_sample + next_sample_direction


def wide_ring() -> wb.Mixture:
    """Eight modes of standard deviation 0.5 on a circle of radius 4."""
    angle = torch.arange(8).double() * math.pi / 4
    means = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    return wb.Mixture(torch.full((8,), 1 / 8).double(), means, torch.full((8,), 0.25).double())


@pytest.mark.parametrize(
    ("law", "steps", "expected"),
    [
        (wide_ring(), 50, {0: 6.4e-2, 1: 6.6e-3, 3: 2.0e-4, 10: 2.6e-8}),
        (wb.Gaussian(torch.zeros(2).double(), torch.ones(2).double()), 20, {0: 0.17, 10: 3.5e-8}),
    ],
    ids=["wide-ring", "standard-normal"],
)
def test_fixed_point_inversion_is_the_published_iteration(law, steps, expected):
    """latent <- next_step(noise_pred(latent, t), t, latent_ztm1), as in the code of SPDInv; AIDI
    the same. On a uniform grid, whose last steps change rho more than twofold."""
    generator = torch.Generator().manual_seed(0)
    modes = getattr(law, "means", law.mean[None])
    x = modes[torch.randint(len(modes), (512,), generator=generator)].double()
    x = x + (0.5 if len(modes) > 1 else 1.0) * normals(generator, 512, 2)
    diffusion, grid = wb.Diffusion(VP, law), wb.Grid.uniform(VP, steps)
    model = Published(diffusion, grid)
    for iterations, size in expected.items():
        latent = x
        for t in reversed(range(steps)):
            latent_ztm1 = latent
            latent = model.next_step(model.noise_pred(latent_ztm1, t + 1), t, latent_ztm1)
            for _ in range(iterations):
                latent = model.next_step(model.noise_pred(latent, t), t, latent_ztm1)
        inversion = FixedPointInversion(iterations)
        made = inversion.encode(diffusion, grid, x)
        assert relative(made.x, latent) < 1e-9
        back = inversion.decode(diffusion, grid, made)
        assert (back - x).square().mean().sqrt().item() == pytest.approx(size, rel=0.3)


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


def test_edict_is_the_published_iteration(generator):
    """latent_pair[i] takes the noise predicted at latent_pair[j], in turns, then both are mixed."""
    grid, start, mix_weight = wb.Grid.log_snr(VP, 7), normals(generator, 4, 2), 0.9
    model, latent_pair = Published(RING, grid), [start, start]
    for t in range(grid.steps):
        for latent_i in range(2):
            latent_i = (latent_i + t % 2) % 2  # leapfrog_steps
            latent_j = (latent_i + 1) % 2
            noise_pred = model.noise_pred(latent_pair[latent_j], t)
            latent_pair[latent_i] = model.prev_step(noise_pred, t, latent_pair[latent_i])
        latent_pair[0] = mix_weight * latent_pair[0] + (1 - mix_weight) * latent_pair[1]
        latent_pair[1] = (1 - mix_weight) * latent_pair[0] + mix_weight * latent_pair[1]
    assert relative(EDICT(p=mix_weight).decode(RING, grid, start), latent_pair[0]) < 1e-10


def test_edict_is_unstable_at_few_steps_unless_it_holds_the_denoised_state():
    """64 modes of variance k^-2 and mean .5/k: rms distance from the exact flow."""
    k = torch.arange(1, 65).double()
    diffusion = wb.Diffusion(VP, wb.Gaussian(0.5 / k, k**-2))
    x = VP(VP.t_max).sigma * normals(torch.Generator().manual_seed(0), 512, 64)
    for steps, noise, denoised in ((5, 2.69, 0.067), (10, 0.96, 0.042), (25, 0.036, 0.019)):
        grid = wb.Grid.log_snr(VP, steps)
        truth = diffusion.flow(x, grid.t[0], grid.t[-1])
        for holds, rms in (("noise", noise), ("denoised", denoised)):
            final = EDICT(holds=holds).decode(diffusion, grid, x)
            assert (final - truth).square().mean().sqrt().item() == pytest.approx(rms, rel=0.05)


@pytest.mark.parametrize("holds", ["noise", "denoised"])
def test_a_step_of_edict_changes_areas_as_its_docstring_says(holds, generator):
    """The determinant of a step in the plane of both copies, in any mode."""
    inversion, grid = EDICT(p=0.8, holds=holds), wb.Grid.log_snr(VP, 5)
    law = wb.Gaussian(torch.zeros(2).double(), torch.tensor([1.0, 0.01]).double())
    for step in inversion.forth(grid.nodes)[1]:
        columns = []
        for unit in ("x", "y"):
            held = {name: torch.full((1, 2), float(name == unit)).double() for name in ("x", "y")}
            walk(wb.Program((step,)), law, held["x"], None, registers=held)
            columns.append(torch.stack([held["x"][0], held["y"][0]], -1))
        a, b = step.start, step.end
        ratio = b.alpha / a.alpha if holds == "noise" else b.sigma / a.sigma
        areas = torch.linalg.det(torch.stack(columns, -1))
        torch.testing.assert_close(areas, torch.full((2,), (0.8 * ratio) ** 2).double())


# ---- stability -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("inversion", (*ALL, EDICT(holds="denoised")), ids=repr)
def test_stability_is_the_gain_of_the_program(inversion, way):
    """Against the linear map found by walking the program from unit changes of its states."""
    variances = torch.tensor([2.0, 0.3, 0.01]).double()
    law = wb.Gaussian(torch.zeros(3).double(), variances)
    grid = wb.Grid.quadratic(VP, 7)
    steps = inversion.back(grid.nodes)[1] if way == "encode" else inversion.forth(grid.nodes)[1]
    names = inversion.states
    spread = [(n.alpha**2 * variances + n.sigma**2).sqrt() for n in grid.nodes]
    place = {node.t: i for i, node in enumerate(grid.nodes)}
    lag = [0, -int(names[-1] == "past")][: len(names)]
    last, best = place[steps[-1].end.t], 0.0
    for j, step in enumerate(steps):
        first, columns = place[step.start.t], []
        for i in range(len(names)):
            held = {n: torch.zeros(1, 3).double() for n in names}
            held[names[i]] = spread[first + lag[i]][None].clone()
            walk(wb.Program(steps[j:]), law, held["x"], None, registers=held)
            columns.append(
                torch.stack([held[n][0] / spread[last + lag[k]] for k, n in enumerate(names)], -1)
            )
        norms = torch.linalg.svdvals(torch.stack(columns, -1))[:, 0]
        best = max(best, norms.max().item())
    assert inversion.stability(VP, grid, variances, way) == pytest.approx(best, rel=1e-9)


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
    with pytest.raises(ValueError, match=r"made with the inversion EDICT\(p=0.93, "):
        BDIA().decode(RING, grid, latent)
    with pytest.raises(ValueError, match="gamma was 0"):
        BDIA(gamma=0)
    with pytest.raises(TypeError, match=r"call it first: VP\(\)|must be a Diffusion"):
        BDIA().encode(wb.VP, grid, x)
    with pytest.raises(ValueError, match="each 0 or more"):
        BDIA().stability(VP, grid, torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="way was 'back'; it must be"):
        BDIA().stability(VP, grid, torch.ones(2), "back")


def test_belm_and_edict_say_where_they_cannot_go(generator):
    """Fine modes of a heat flow are pure noise for long: their rho stands still, or infinite."""
    law = wb.Gaussian(torch.zeros(8, 8).double(), torch.ones(64).double())
    diffusion = wb.Diffusion(wb.HeatDissipation(wb.DCT((8, 8))), law)
    grid, x = wb.Grid.uniform(diffusion.process, 8), normals(generator, 2, 8, 8)
    with pytest.raises(ValueError, match="cannot be undone on this grid"):
        BELM().encode(diffusion, grid, x)
    assert BELM().decode(diffusion, grid, x).isfinite().all()
    assert error(BDIA(), grid, x, diffusion) < 1e-9
    with pytest.raises(ValueError, match=r"its two copies differ by up to 1e\d+-fold"):
        EDICT().decode(diffusion, grid, x)


def test_every_inversion_is_registered():
    assert set(INVERSIONS) == {"DDIMInversion", "FixedPointInversion", "BDIA", "EDICT", "BELM"}
    for name, kind in INVERSIONS.items():
        assert kind.__name__ == name and getattr(wb, name) is kind
