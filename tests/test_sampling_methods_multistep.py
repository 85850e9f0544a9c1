"""DPM-Solver, DPM-Solver++, UniPC, DEIS, iPNDM: orders, identities, and published loops by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
from helpers import LAWS, integrate, normals, observed_orders, relative, ring
from scipy.integrate import quad

import workbench as wb
from workbench.testing import ConformanceError, check_sampler

#: On log-SNR grids, from 80 to 160 to 320 steps; each within 0.25 of theory, UniPC-3 of 3.4 to 4.4.
ORDERS = [
    (wb.DPMSolver(1), 1),
    (wb.DPMSolver(2), 2),
    (wb.DPMSolver(3), 3),
    (wb.DPMSolverPP(1), 1),
    (wb.DPMSolverPP(2), 2),
    (wb.DPMSolverPP(3), 3),
    (wb.DPMSolverPP(3, corrected=False), 2),
    (wb.DPMSolverPP(2, multistep=False), 2),
    (wb.DPMSolverPP(3, multistep=False), 3),
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
        found = observed_orders(diffusion, sampler, wb.Grid.log_snr, x, truth)
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


@pytest.mark.parametrize("order", [2, 3])
def test_the_multistep_method_as_published(order, generator):
    """Algorithm 2 of arXiv:2211.01095 (and its third order as released), in its own symbols."""
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid, x = wb.Grid.karras(process, 9), normals(generator, 5, 3)
    sampler = wb.DPMSolverPP(order, corrected=False)
    got = wb.sample(diffusion, sampler, grid, range(5), x=x).final
    lam = [math.log(n.alpha / n.sigma) for n in grid.nodes]
    past = []
    for i, (s, t) in enumerate(pairwise(grid.nodes)):
        past = [diffusion.denoiser.denoise(x, s.alpha, s.sigma), *past][:order]
        h = lam[i + 1] - lam[i]
        phi_1 = math.expm1(-h)
        x_next = t.sigma / s.sigma * x - t.alpha * phi_1 * past[0]
        if len(past) == 2:
            r0 = (lam[i] - lam[i - 1]) / h
            x_next = x_next - 0.5 * t.alpha * phi_1 * (past[0] - past[1]) / r0
        if len(past) == 3:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            d10, d11 = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
            d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
            phi_2 = phi_1 / h + 1
            phi_3 = phi_2 / h - 0.5
            x_next = x_next + t.alpha * phi_2 * d1 - t.alpha * phi_3 * d2
        x = x_next
    assert relative(got, x) < 1e-11


def test_small_steps_lose_no_digits():
    from workbench.sampling.methods.dpm import _phis

    for h in (1e-9, -1e-4, 0.0999, -0.0999, 0.1, -0.1001, 2.0):
        exact = [sum(h**k / math.factorial(k + shift) for k in range(1, 40)) for shift in (0, 1, 2)]
        assert np.allclose(_phis(h), exact, rtol=1e-12, atol=0)


def test_the_sde_variant_is_of_order_one_or_two():
    for make in (
        lambda: wb.DPMSolverPP(3, sde=True),
        lambda: wb.DPMSolverPP(2, multistep=False, sde=True),
    ):
        with pytest.raises(ValueError, match="the SDE variant is a multistep method of order 1 or"):
            make()
