"""DPM-Solver, DPM-Solver++, UniPC, DEIS, iPNDM: orders, identities, and published loops by hand."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import LAWS, integrate, normals, observed_orders, relative, ring, states
from scipy.integrate import quad

import workbench as wb
from workbench.sampling import NoiseSource
from workbench.testing import ConformanceError, check_sampler

#: On log-SNR grids, from 160 to 320 steps; each within 0.25 of theory, UniPC-3 of 3.4 to 4.4.
ORDERS = [
    (wb.DPMSolver(1), 1),
    (wb.DPMSolver(2), 2),
    (wb.DPMSolver(3), 3),
    (wb.DPMSolver(2, taylor=True), 2),
    (wb.DPMSolver(3, taylor=True), 3),
    (wb.DPMSolver(2, multistep=True), 2),
    (wb.DPMSolver(3, multistep=True), 3),
    (wb.DPMSolverPP(1), 1),
    (wb.DPMSolverPP(2), 2),
    (wb.DPMSolverPP(3), 3),
    (wb.DPMSolverPP(3, corrected=False), 2),
    (wb.DPMSolverPP(2, multistep=False), 2),
    (wb.DPMSolverPP(3, multistep=False), 3),
    (wb.DPMSolverPP(2, multistep=False, taylor=True), 2),
    (wb.DPMSolverPP(3, multistep=False, taylor=True), 3),
    (wb.UniPC(2), 3),
    (wb.UniPC(3), 3.7),
    (wb.UniPC(3, variant="bh1"), 3.7),
    (wb.UniPC(3, corrector=False), 3),
    (wb.DEIS(2), 2),
    (wb.DEIS(3), 3),
    (wb.DEIS(4), 4),
    (wb.DEIS(3, axis="rho"), 3),
    (wb.DEIS(4, axis="rho"), 4),
    (wb.IPNDM(), 2),
]


def test_orders_on_the_ring(generator, record_property):
    diffusion = wb.Diffusion(wb.VP(), ring())
    x = normals(generator, 256, 2)
    truth = integrate(diffusion, x, 1.0, 1e-3, rtol=1e-12, atol=1e-14)
    told = []
    for sampler, order in ORDERS:
        found = observed_orders(diffusion, sampler, wb.Grid.log_snr, x, truth, (160, 320))
        allowed = 0.4 if order in (3.7, 4) else 0.25
        assert found[-1] == pytest.approx(order, abs=allowed), (sampler, found)
        told.append(f"{found[-1]:.2f}")
    record_property("measured", f"orders of multistep methods on the ring: {' '.join(told)}")


def test_the_published_third_order_is_found_out():
    with pytest.raises(ConformanceError, match="BROKEN order 3"):
        check_sampler(wb.DPMSolverPP(3, corrected=False))


@pytest.mark.parametrize(
    "process", [wb.VP(), wb.EDM(), wb.Cosine()], ids=lambda p: type(p).__name__
)
def test_identities(process, generator, seed):
    """DDIM = DPM-Solver-1 = DPM-Solver++(1) = DEIS-1; SDE-DPM-Solver++(1) = DDIM(1), same noise."""
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.log_snr(process, 12, "denoise")

    def final(sampler):
        return wb.sample(diffusion, sampler, grid, range(seed, seed + 6)).final

    ddim = final(wb.DDIM())
    for same in (wb.DPMSolver(1), wb.DPMSolverPP(1), wb.DEIS(1), wb.IPNDM(1), wb.Euler()):
        assert relative(final(same), ddim) < 1e-12
    for same in (wb.DPMSolverPP(1, sde=True), wb.ExponentialSDE("denoised")):
        assert relative(final(same), final(wb.DDIM(1.0))) < 1e-12


def test_deis_in_rho_is_the_linear_multistep_method(generator):
    """Adams-Bashforth on unequal steps, its coefficients by adaptive quadrature."""
    process = wb.EDM(sigma_max=20.0)
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.karras(process, 11), 20 * normals(generator, 5, 3)
    got = wb.sample(diffusion, wb.DEIS(4, axis="rho"), grid, range(5), x=x).final
    slopes, levels = [], list(grid.sigma)
    for i, (a, b) in enumerate(pairwise(levels)):
        slopes = [(x - diffusion.denoiser.denoise(x, 1.0, a)) / a, *slopes][:4]
        places = levels[max(0, i - 3) : i + 1][::-1]
        for j, slope in enumerate(slopes):

            def polynomial(s, j=j, places=places):
                others = [p for k, p in enumerate(places) if k != j]
                return math.prod((s - p) / (places[j] - p) for p in others)

            x = x + quad(polynomial, a, b, epsrel=1e-12)[0] * slope
    assert relative(got, x) < 1e-10


@pytest.mark.parametrize("steps", [9, 10])
@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("algorithm_type", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order", [2, 3])
def test_the_multistep_method_as_published(order, algorithm_type, solver_type, steps, generator):
    """Algorithm 2 of arXiv:2211.01095 as in the authors' code, in its own symbols: third order
    with its factor, lower orders at the end of fewer than ten steps, either prediction."""
    process, plus = wb.VP(), algorithm_type == "dpmsolver++"
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.karras(process, steps), normals(generator, 5, 3)
    sampler = (wb.DPMSolverPP if plus else wb.DPMSolver)(
        order,
        multistep=True,
        corrected=order == 2,
        taylor=solver_type == "taylor",
        lower_order_final="below_10",
    )
    got = wb.sample(diffusion, sampler, grid, range(5), x=x).final
    lam = [math.log(n.alpha / n.sigma) for n in grid.nodes]
    past = []
    for step, (s, t) in enumerate(pairwise(grid.nodes), start=1):
        past = [(diffusion.denoised if plus else diffusion.noise)(x, s.t), *past][:order]
        step_order = min(order, step, steps + 1 - step if steps < 10 else order)
        h = lam[step] - lam[step - 1]
        r0, r1 = ((lam[step - k] - lam[step - k - 1]) / h if step > k else None for k in (1, 2))
        phi_1 = math.expm1(-h) if plus else math.expm1(h)
        phi_2 = phi_1 / h + 1 if plus else phi_1 / h - 1
        phi_3 = phi_2 / h - 0.5
        scale, minus = (t.alpha, -1) if plus else (t.sigma, 1)
        x = (t.sigma / s.sigma if plus else t.alpha / s.alpha) * x - scale * phi_1 * past[0]
        if step_order == 2:
            d1_0 = (past[0] - past[1]) / r0
            x = x - scale * (0.5 * phi_1 if solver_type == "dpmsolver" else minus * phi_2) * d1_0
        if step_order == 3:
            d1_0, d1_1 = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
            d1, d2 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1), (d1_0 - d1_1) / (r0 + r1)
            x = x - scale * minus * phi_2 * d1 - scale * phi_3 * d2
    assert relative(got, x) < 1e-11


def k_diffusion_sde(denoise, x, sigmas, noise, order, solver_type):
    """``sample_dpmpp_2m_sde`` and ``sample_dpmpp_3m_sde`` of k-diffusion at eta = 1."""
    old, hs = [], []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, a)
        if b == 0:
            return denoised
        h = math.log(a / b)
        h_eta = 2 * h
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        phi_3 = phi_2 / h_eta - 0.5
        if order == 3 and len(old) == 2:
            r0, r1 = hs[0] / h, hs[1] / h
            d1_0, d1_1 = (denoised - old[0]) / r0, (old[0] - old[1]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            x = x + phi_2 * d1 - phi_3 * (d1_0 - d1_1) / (r0 + r1)
        elif old:
            half = -0.5 * math.expm1(-h_eta)
            d = (denoised - old[0]) * h / hs[0]
            x = x + (half if solver_type == "midpoint" else phi_2) * d
        x = x + noise.step(i) * b * math.sqrt(-math.expm1(-2 * h))
        old, hs = [denoised, *old][:2], [h, *hs][:2]
    return x


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize(
    ("order", "solver_type"), [(2, "midpoint"), (2, "heun"), (3, "heun")], ids=str
)
def test_the_multistep_sde_methods_as_in_k_diffusion(order, solver_type, final, generator, seed):
    process = wb.EDM(sigma_max=30.0)
    law, grid = LAWS["mixture-full"](generator, 3), wb.Grid.karras(process, 11, final)
    sampler = wb.DPMSolverPP(order, sde=True, corrected=order == 2, taylor=solver_type == "heun")
    x, seeds = 30 * normals(generator, 5, 3), range(seed, seed + 5)
    got = wb.sample(wb.Diffusion(process, law), sampler, grid, seeds, x=x).final
    noise = NoiseSource(seeds, (3,))
    expected = k_diffusion_sde(
        lambda x, s: law.denoise(x, 1.0, s), x, grid.sigma, noise, order, solver_type
    )
    assert relative(got, expected) < 1e-11


def exact_orders(diffusion, sampler, counts) -> list[float]:
    """Slopes of the exact distance between the output's law and the marginal, started from it."""
    errors = []
    for n in counts:
        grid = wb.Grid.log_snr(diffusion.process, n)
        made = wb.exact.law(diffusion, sampler, grid, diffusion.marginal(grid.t[0]))
        errors.append((n, wb.exact.w2(made, diffusion.marginal(grid.t[-1]))))
    return [math.log(a / b) / math.log(n / m) for (m, a), (n, b) in pairwise(errors)]


def test_the_sde_methods_are_of_weak_order_two():
    """Those of three evaluations too, with the factor or without it."""
    diffusion = wb.Diffusion(wb.VP(), SPREAD)
    for sampler in (
        wb.DPMSolverPP(2, sde=True),
        wb.DPMSolverPP(2, sde=True, taylor=True),
        wb.DPMSolverPP(3, sde=True),
        wb.DPMSolverPP(3, sde=True, corrected=False),
        wb.DPMSolver(2, multistep=True, sde=True),
        wb.DPMSolver(2, multistep=True, sde=True, taylor=True),
    ):
        assert sampler.global_order == 2
        assert exact_orders(diffusion, sampler, (160, 320)) == [pytest.approx(2, abs=0.1)]


# ---- the first steps -----------------------------------------------------------------------------

#: Standard deviations from 1 to 0.07: not far below the noise that OUVE and this EDM begin with.
SPREAD = wb.Gaussian(torch.zeros(4).double(), torch.tensor([1.0, 0.3, 0.05, 0.005]).double())
#: The order of the published start there, and of the run that starts with single steps.
STARTED = [
    (wb.DPMSolverPP(3), 2, 3),
    (wb.DPMSolver(3, multistep=True), 2, 3),
    (wb.DEIS(3), 2, 3),
    (wb.DEIS(4), 2, 4),
    (wb.DEIS(4, axis="rho"), 2, 4),
    (wb.UniPC(3), 3, 4),
    (wb.UniPC(4), 3, 4),
]


def test_single_steps_at_the_start_give_the_order_back(record_property):
    begin = wb.Diffusion(wb.OUVE(), SPREAD, condition=torch.zeros(4).double())
    other = wb.Diffusion(wb.EDM(sigma_max=20.0), SPREAD)
    told = []
    for sampler, published, order in STARTED:
        (before,) = exact_orders(begin, sampler, (80, 160))
        assert before == pytest.approx(published, abs=0.25), sampler
        started = replace(sampler, start="single_steps")
        (after,) = exact_orders(begin, started, (80, 160))
        (elsewhere,) = exact_orders(other, started, (80, 160))
        assert min(after, elsewhere) > order - 0.3, (sampler, after, elsewhere)
        told.append(f"{before:.2f} -> {after:.2f}")
    record_property("measured", f"orders under OUVE, started: {', '.join(told)}")


def test_single_steps_at_the_start_give_the_order_back_on_a_mixture(generator):
    law = LAWS["mixture-full"](generator, 2)
    diffusion = wb.Diffusion(wb.OUVE(), law, condition=torch.zeros(2).double())
    begin, end = wb.Grid.log_snr(diffusion.process, 1).nodes
    x = states(generator, law, 24, begin.alpha, begin.sigma)
    truth = integrate(diffusion, x, begin.t, end.t)
    for sampler, order in ((wb.DPMSolverPP(3), 3), (wb.DPMSolverV3(3), 3), (wb.DEIS(4), 4)):
        for start, least, most in (("published", 1.7, 2.5), ("single_steps", order - 0.4, 9)):
            started = replace(sampler, start=start)
            found = observed_orders(diffusion, started, wb.Grid.log_snr, x, truth, (160, 320))
            assert least < found[-1] < most, (started, found)


def test_the_first_steps_are_those_of_the_single_step_method(generator, seed):
    """As many as there are evaluations lacking; from then on, one a step."""
    process = wb.EDM(sigma_max=20.0)
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, seeds = wb.Grid.karras(process, 9), range(seed, seed + 4)

    def trajectory(sampler):
        run = wb.sample(diffusion, sampler, grid, seeds, wb.Record("x"))
        assert run.nfe == sampler.nfe(grid)
        return run["x"], run.nfe

    for sampler, lacking in ((wb.DPMSolverPP(2), 1), (wb.UniPC(3), 2), (wb.DEIS(4), 3)):
        order = min(lacking + 1, 3)
        single, _ = trajectory(wb.DPMSolverPP(order, multistep=False))
        started, nfe = trajectory(replace(sampler, start="single_steps"))
        assert nfe == grid.steps + lacking * (order - 1)
        assert relative(started[: lacking + 1], single[: lacking + 1]) < 1e-12
        assert relative(started[lacking + 1], single[lacking + 1]) > 1e-9


def test_small_steps_lose_no_digits():
    from workbench.sampling.methods.single_steps import phis

    for h in (1e-9, -1e-4, 0.0999, -0.0999, 0.1, -0.1001, 2.0):
        exact = [sum(h**k / math.factorial(k + shift) for k in range(1, 40)) for shift in (0, 1, 2)]
        assert np.allclose(phis(h), exact, rtol=1e-12, atol=0)
