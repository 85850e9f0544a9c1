"""Orders of convergence by measurement, and Heun against Karras et al.'s algorithm 1 by hand."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import KINDS, PROCESSES, integrate, normals, observed_orders, relative, ring, uniform

import workbench as wb

#: Sampler, expected order, grids it is measured on. Heun in rho has no place on a uniform grid of
#: RectifiedFlow: rho comes from infinity and 320 steps still show an order of 1.85.
METHODS = [
    (wb.Euler("rho"), 1, ["log_snr"]),
    (wb.DDIM(), 1, ["log_snr"]),
    (wb.Euler("t"), 1, ["log_snr", "uniform"]),
    (wb.Heun("rho"), 2, ["log_snr"]),
    (wb.Heun("t"), 2, ["log_snr", "uniform"]),
]
#: Of higher order here and there, or too exact for 320 steps: tried on their own.
OTHERS = [
    (wb.Midpoint("rho"), 2),
    (wb.Midpoint("t"), 2),
    (wb.RK4("rho"), 4),
    (wb.RK4("t"), 4),
]


@pytest.mark.parametrize("name", KINDS)
def test_orders_on_a_gaussian_against_its_exact_flow(name, generator):
    process = PROCESSES[name]
    variances = torch.tensor([4.0, 1.5, 0.5, 0.1]).double()
    basis = torch.linalg.qr(normals(generator, 4, 4)).Q
    law = wb.Gaussian.low_rank(
        normals(generator, 4), basis, variances * uniform(generator, 0.9, 1.1)
    )
    diffusion = wb.Diffusion(process, law)
    x = process.prior_std(process.t_max) * normals(generator, 64, 4)
    truth = diffusion.flow(x, process.t_max, process.t_min)
    for sampler, order, grids in METHODS:
        for grid in grids:
            if grid == "uniform" and name == "EDM":
                continue  # 320 equal steps from 80 to 0.002 resolve nothing at the end
            found = observed_orders(diffusion, sampler, wb.GRIDS[grid], x, truth)
            assert found == pytest.approx([order, order], abs=0.15), (sampler, grid)


@pytest.mark.parametrize("name", KINDS)
def test_orders_on_the_ring_against_its_integration(name, generator):
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, ring())
    x = process.prior_std(process.t_max) * normals(generator, 256, 2)
    truth = integrate(diffusion, x, process.t_max, process.t_min, rtol=1e-11, atol=1e-13)
    for sampler, order, _ in METHODS:
        found = observed_orders(diffusion, sampler, wb.Grid.log_snr, x, truth)
        assert found == pytest.approx([order, order], abs=0.25), sampler
        assert found[-1] == pytest.approx(order, abs=0.15), sampler


@pytest.mark.parametrize("name", KINDS)
def test_orders_of_the_other_methods(name, generator):
    """On the ring, from where a process has left pure noise: that step's error stays."""
    process = PROCESSES[name]
    diffusion, pure = wb.Diffusion(process, ring()), math.isinf(process(process.t_max).rho)
    first = process.t_max - process.t_min if pure else process.t_max

    def grid(process, steps):
        ends = (process(t).rho for t in (first, process.t_min))
        rho = torch.logspace(*(math.log10(end) for end in ends), steps + 1, dtype=torch.float64)
        inner = process.time_of(rho[1:-1]).tolist()
        return wb.Grid.times(process, [first, *inner, process.t_min])

    x = process(first).sigma * normals(generator, 256, 2)
    truth = integrate(diffusion, x, first, process.t_min, rtol=1e-12, atol=1e-14)
    for sampler, order in OTHERS:
        found = observed_orders(diffusion, sampler, grid, x, truth, steps=(80, 160))
        assert order - 0.25 < found[0] < order + 1.3, sampler  # EDM's midpoint: nearly 3


def karras(denoise, x, sigmas):
    """Algorithm 1 of arXiv:2206.00364 without churn (alpha = 1), and its evaluations."""
    evaluations = 0
    for a, b in pairwise(sigmas):
        slope = (x - denoise(x, 1.0, a)) / a
        evaluations += 1
        ahead = x + (b - a) * slope
        if b > 0:
            slope = 0.5 * (slope + (ahead - denoise(ahead, 1.0, b)) / b)
            evaluations += 1
            ahead = x + (b - a) * slope
        x = ahead
    return x, evaluations


def test_heun_is_algorithm_1_of_karras(generator):
    """18 steps of EDM, the last to sigma = 0: 35 evaluations."""
    process = wb.EDM()
    grid = wb.Grid.karras(process, steps=18, final="denoise")
    x = 80 * normals(generator, 100, 2)
    expected, evaluations = karras(ring().denoise, x, grid.sigma)
    run = wb.sample(wb.Diffusion(process, ring()), wb.Heun(), grid, range(100), x=x)
    assert relative(run.final, expected) < 1e-12
    assert run.nfe == evaluations == 35


def test_heun_in_rho_is_the_same_for_every_process(generator):
    """x/alpha on the same rho goes the same way: VP by hand as EDM."""
    process = wb.VP()
    grid = wb.Grid.log_snr(process, steps=15)
    x = normals(generator, 50, 2)
    scaled, _ = karras(ring().denoise, x / grid.alpha[0], grid.rho)
    run = wb.sample(wb.Diffusion(process, ring()), wb.Heun(), grid, range(50), x=x)
    assert relative(run.final, grid.alpha[-1] * scaled) < 1e-12


@pytest.mark.parametrize(
    ("steps", "nfe", "variances"),
    [
        (9, 17, [5.590233456379838, 1.5162327991656526, 0.40841364759337706,
                 0.02091269792788573, 0.00033621710273250873]),
        (18, 35, [4.296127520072215, 1.0916288891338515, 0.27839863209226673,
                  0.011884740349744363, 0.00013525746110992085]),
        (36, 71, [4.065307283289524, 1.020030061278838, 0.25614427164243486,
                  0.010393084158687454, 0.00010381226708524018]),
        (72, 143, [4.0154191971293285, 1.0047110263413361, 0.2514374800438429,
                   0.010088085386308773, 9.788924430757586e-05]),
    ],
)  # fmt: skip
def test_heun_of_edm_on_a_gaussian_to_ten_digits(steps, nfe, variances):
    """Output variances from the exact marginal at sigma = 80, computed by independent code.

    The method is linear here, so one standard deviation along each axis tells the variance.
    """
    law = wb.Gaussian(torch.zeros(5).double(), [4, 1, 0.25, 0.01, 1e-4])
    diffusion = wb.Diffusion(wb.EDM(), law)
    x = torch.diag(diffusion.marginal(80.0).variances.sqrt())
    grid = wb.Grid.karras(wb.EDM(), steps=steps, final="denoise")
    run = wb.sample(diffusion, wb.Heun(), grid, range(5), x=x)
    assert run.nfe == nfe
    found = run.final.diagonal().square()
    expected = torch.tensor(variances, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("name", PROCESSES)
def test_steps_in_t_are_those_of_the_velocity(name, heun, generator):
    """Explicit Euler and trapezium on dx/dt = velocity, written out; from pure noise too."""
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, ring())
    grid = wb.Grid.quadratic(process, steps=25)
    x = state = process.prior_std(grid.t[0]) * normals(generator, 40, 2)
    for t, s in zip(grid.t, grid.t[1:], strict=False):
        slope = diffusion.velocity(state, t)
        if heun:
            slope = 0.5 * (slope + diffusion.velocity(state + (s - t) * slope, s))
        state = state + (s - t) * slope
    sampler = wb.Heun("t") if heun else wb.Euler("t")
    run = wb.sample(diffusion, sampler, grid, range(40), x=x)
    assert relative(run.final, state) < 1e-10
