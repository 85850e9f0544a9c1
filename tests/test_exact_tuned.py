"""Tuned grids: what they gain in exact W2, their floors and ends, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import PROCESSES, log_uniform

import workbench as wb
from workbench.exact.tuned import LogSteps, steps_within
from workbench.processes import DCT, HeatDissipation
from workbench.processes.affine import OUVE


def error(process, spectrum, sampler, grid) -> float:
    """Exact W2 of the output, from the prior, to the marginal at the last node."""
    data = wb.Gaussian(torch.zeros(len(spectrum)).double(), spectrum)
    end = grid.nodes[-1]
    law = wb.exact.law(wb.Diffusion(process, data), sampler, grid)
    return wb.exact.w2(law, data.noised(end.alpha, end.sigma))


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    points = wb.datasets.digits().points.flatten(1)
    return torch.linalg.eigvalsh(torch.cov(points.T)).clamp_min(0)


@pytest.mark.parametrize(
    ("sampler", "final", "gain"),
    [
        (wb.Heun(), "stop", 2.4),
        (wb.Heun(), "denoise", 6.0),
        (wb.DPMSolverPP(2), "stop", 300.0),
        (wb.DPMSolverPP(2), "denoise", 200.0),
        (wb.DDIM(eta=1.0), "stop", 1.9),
    ],
    ids=str,
)
def test_gain_over_karras_on_digits_with_ten_evaluations(
    sampler, final, gain, digits, record_property
):
    process = wb.EDM()
    tuned = wb.exact.tuned_grid(process, digits, sampler, nfe=10, final=final)
    karras = wb.Grid.karras(process, tuned.steps, final)
    assert sampler.nfe(tuned) == sampler.nfe(karras) in (9, 10)
    errors = [error(process, digits, sampler, grid) for grid in (karras, tuned)]
    record_property("measured", f"{sampler}, {final}: W2 {errors[0]:.4f} -> {errors[1]:.5f}")
    assert errors[0] > gain * errors[1]


def test_the_example_of_three_modes():
    grid = wb.exact.tuned_grid(wb.EDM(), torch.tensor([4.0, 1.0, 0.1]), wb.Heun(), nfe=10)
    assert len(grid.t) == 6
    again = wb.exact.tuned_grid(wb.EDM(), torch.tensor([4.0, 1.0, 0.1]), wb.Heun(), nfe=10)
    assert grid == again
    assert grid.t[0] == 80.0
    assert grid.t[-1] == 0.002
    whole = math.log(80 / 0.002)
    assert min(math.log(a / b) for a, b in pairwise(grid.rho)) >= 0.1 * whole / 5 * (1 - 1e-9)


# Without the one whose inverse is bisected: a search asks for it at every grid.
@pytest.mark.parametrize("name", ["VP", "EDM", "RectifiedFlow", "OU"])
@pytest.mark.parametrize("final", ["stop", "denoise"])
def test_any_process_from_its_prior_to_its_end(name, final, generator):
    """No worse than the standard grids, and a grid that samples; pure noise and sigma = 0 too."""
    process, sampler = PROCESSES[name], wb.DPMSolverPP(2)
    spectrum = torch.tensor([log_uniform(generator, 0.01, 4) for _ in range(6)]).double()
    for nfe in (1, 4):
        tuned = wb.exact.tuned_grid(process, spectrum, sampler, nfe, final)
        assert tuned.steps == nfe
        assert all(a > b for a, b in pairwise(tuned.t))
        assert (tuned.t[0], tuned.final) == (process.t_max, final)
        standard = [
            make(process, nfe, final)
            for make in (wb.Grid.karras, wb.Grid.log_snr, wb.Grid.quadratic)
        ]
        assert tuned.t[-1] == standard[0].t[-1]
        if nfe == 4:
            best = min(error(process, spectrum, sampler, grid) for grid in standard)
            assert error(process, spectrum, sampler, tuned) < best
        diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(6).double(), spectrum))
        assert wb.sample(diffusion, sampler, tuned, range(2)).final.isfinite().all()


@pytest.mark.parametrize("sampler", [wb.EulerMaruyama(), wb.DPMSolverV3()], ids=repr)
def test_a_process_with_a_condition_is_tuned_for_centred_data(sampler):
    """One that steps the state in t, and one that is prepared for the data."""
    process, spectrum = OUVE(), torch.tensor([1.0, 0.3, 0.01]).double()
    zero = torch.zeros(3).double()
    diffusion = wb.Diffusion(process, wb.Gaussian(zero, spectrum), zero)
    tuned = wb.exact.tuned_grid(process, spectrum, sampler, 5)
    away = [
        wb.exact.w2(wb.exact.law(diffusion, sampler, grid), diffusion.marginal(grid.t[-1]))
        for grid in (tuned, wb.Grid.log_snr(process, 5), wb.Grid.uniform(process, 5))
    ]
    assert away[0] < min(away[1:])


def test_coordinates_and_grids_are_inverse(generator):
    """Shares above the floor come back; both ends free or fixed."""
    for process in (wb.EDM(), wb.RectifiedFlow()):
        for final in ("stop", "denoise"):
            path = LogSteps(process, 6, final, 0.1)
            v = 0.3 * torch.randn(path.free, generator=generator, dtype=torch.float64).numpy()
            assert path.coordinates(path.grid(v)) == pytest.approx(v, abs=1e-6)


def test_a_family_is_better_over_its_members_than_any_one_of_them(digits):
    process, sampler = wb.EDM(), wb.Heun()
    family = [0.1 * digits, digits]

    def loss(grid) -> float:
        return sum(
            error(process, each, sampler, grid) ** 2 / (each + 0.002**2).sum().item()
            for each in family
        )

    both, *single = (wb.exact.tuned_grid(process, s, sampler, 10) for s in (family, *family))
    assert loss(both) < 0.999 * min(map(loss, single))
    stacked = wb.exact.tuned_grid(process, torch.stack(family), sampler, 10)
    assert stacked == both


def test_a_larger_floor_cannot_help(digits):
    process, sampler = wb.EDM(), wb.DPMSolverPP(2)
    low, high = (wb.exact.tuned_grid(process, digits, sampler, 6, floor=f) for f in (0.0, 0.9))
    assert error(process, digits, sampler, low) < error(process, digits, sampler, high)
    logs = [math.log(r) for r in high.rho]
    steps = [a - b for a, b in pairwise(logs)]
    assert min(steps) >= 0.9 * (logs[0] - logs[-1]) / 6 * (1 - 1e-9)


def test_steps_within_a_budget():
    process = wb.EDM()
    assert steps_within(process, wb.Heun(), 10) == 5
    assert steps_within(process, wb.Heun(), 11) == 5
    assert steps_within(process, wb.Heun(), 11, "denoise") == 6
    assert steps_within(process, wb.RK4(), 9) == 2
    assert steps_within(wb.RectifiedFlow(), wb.Heun(), 5) == 3  # one evaluation leaves pure noise
    with pytest.raises(ValueError, match=r"one step of RK4.* takes 4 evaluations"):
        steps_within(process, wb.RK4(), 3)


def test_what_cannot_be_tuned_is_said_in_a_sentence():
    process, spectrum, heun = wb.EDM(), torch.ones(2), wb.Heun()
    tune = wb.exact.tuned_grid
    with pytest.raises(ValueError, match=r"one step of Heun.* takes 2 evaluations"):
        tune(process, spectrum, heun, 1)
    with pytest.raises(ValueError, match=r"nfe was 2\.5; it must be a whole number"):
        tune(process, spectrum, heun, 2.5)
    with pytest.raises(ValueError, match="spectrum held -1; a variance must be"):
        tune(process, torch.tensor([1.0, -1.0]), heun, 10)
    with pytest.raises(ValueError, match="spectrum was empty"):
        tune(process, torch.ones(0), heun, 10)
    with pytest.raises(ValueError, match="floor was 1; it must be at least 0 and below 1"):
        tune(process, spectrum, heun, 10, floor=1)
    with pytest.raises(ValueError, match="final was 'end'"):
        tune(process, spectrum, heun, 10, final="end")
    with pytest.raises(TypeError, match=r"call it first: Heun\(\)"):
        tune(process, spectrum, wb.Heun, 10)
    with pytest.raises(ValueError, match="one rho per mode"):
        tune(HeatDissipation(DCT((4,))), spectrum, heun, 10)
    for sampler in (wb.SAMPLERS["RK45"](), wb.SAMPLERS["PredictorCorrector"]()):
        with pytest.raises(TypeError, match="is not linear"):
            tune(process, spectrum, sampler, 40)
