"""GENIE: order 2, the Taylor step by hand, closed forms on a Gaussian."""

import pytest
import torch
from helpers import LAWS, integrate, normals, observed_orders, relative, ring

import workbench as wb


def power_law(d: int = 64) -> wb.Gaussian:
    variances = torch.arange(1, d + 1, dtype=torch.float64) ** -1.0
    return wb.Gaussian(torch.zeros(d, dtype=torch.float64), variances)


def test_order_on_the_ring(generator, record_property):
    diffusion = wb.Diffusion(wb.VP(), ring())
    x = normals(generator, 256, 2)
    truth = integrate(diffusion, x, 1.0, 1e-3)
    found = observed_orders(diffusion, wb.GENIE(), wb.Grid.log_snr, x, truth)
    assert found[-1] == pytest.approx(2, abs=0.25)
    record_property("measured", f"order of GENIE on the ring: {found[-1]:.2f}")


@pytest.mark.parametrize("process", [wb.VP(), wb.EDM()], ids=lambda p: type(p).__name__)
def test_order_on_a_power_law(process, generator):
    diffusion = wb.Diffusion(process, power_law())
    x = process(process.t_max).sigma * normals(generator, 16, 64)
    truth = diffusion.flow(x, process.t_max, process.t_min)
    found = observed_orders(diffusion, wb.GENIE(), wb.Grid.log_snr, x, truth)
    assert found[-1] == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    "process", [wb.VP(), wb.Cosine(), wb.EDM()], ids=lambda p: type(p).__name__
)
def test_a_step_is_taylors(process, generator):
    """y + h eps + h^2 / 2 deps/drho, deps/drho by differences of the noise along the flow."""
    law = LAWS["mixture-full"](generator, 3)
    diffusion = wb.Diffusion(process, law)
    t, s = 0.5 * process.t_max, 0.4 * process.t_max
    a, b = process(t), process(s)
    x = a.sigma * normals(generator, 5, 3)
    got = wb.sample(diffusion, wb.GENIE(), wb.Grid.times(process, [t, s]), range(5), x=x)
    assert got.nfe == 2

    def noise(y, rho):
        return (y - law.denoise(y, 1.0, rho)) / rho

    y, d, h = x / a.alpha, 1e-4 * a.rho, b.rho - a.rho
    first = noise(y, a.rho)
    # A step of Euler's to either side is the flow to d^2, which the difference does not see at all.
    bend = (noise(y + d * first, a.rho + d) - noise(y - d * first, a.rho - d)) / (2 * d)
    told = b.alpha * (y + h * first + 0.5 * h * h * bend)
    assert relative(got.final, told) < 1e-6


def test_ends_and_counts(generator):
    for process in (wb.VP(), wb.Cosine(), wb.RectifiedFlow()):
        diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
        for final in ("stop", "denoise"):
            grid = wb.Grid.log_snr(process, 7, final)
            pure = grid.alpha[0] == 0
            run = wb.sample(diffusion, wb.GENIE(), grid, range(4))
            assert run.nfe == wb.GENIE().nfe(grid) == 14 - pure - (final == "denoise")
            assert bool(run.final.isfinite().all())
            alone = wb.sample(diffusion, wb.GENIE(), grid, [2]).final
            assert relative(alone, run.final[2:3]) < 1e-11


def test_modes_that_depend_on_each_other_have_no_one_slope(generator):
    process = wb.HeatDissipation(wb.DCT((4, 4)))
    grid, x = wb.Grid.uniform(process, 6), normals(generator, 3, 4, 4)
    mixed = wb.Mixture(
        torch.tensor([0.5, 0.5]).double(), normals(generator, 2, 4, 4), torch.ones(2).double()
    )
    with pytest.raises(ValueError, match=r"GENIE was given .* every mode has its own rho"):
        wb.sample(wb.Diffusion(process, mixed), wb.GENIE(), grid, range(3), x=x)
    law = wb.Gaussian(normals(generator, 4, 4), 0.5)
    run = wb.sample(wb.Diffusion(process, law), wb.GENIE(), grid, range(3), x=x)
    assert bool(run.final.isfinite().all())
