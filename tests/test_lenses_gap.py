"""Where a score breaks the Fokker-Planck equation, seen through a lens."""

import numpy as np
import pytest
import torch
from helpers import LAWS

import workbench as wb
from workbench.denoisers.perturbed import Perturbed
from workbench.lenses.gap import _parted
from workbench.lenses.output import energy_distance
from workbench.testing import check_lens
from workbench.testing.lenses import _mixture, _run


def measured(denoiser, process=None, **options):
    diffusion = wb.Diffusion(process or wb.VP(), denoiser)
    grid = wb.Grid.log_snr(diffusion.process, 6)
    run = wb.sample(diffusion, wb.Heun(), grid, range(48), wb.Record(["x"]))
    lens = wb.lenses.LENSES["fokker_planck"](**options)
    found = wb.measure("fokker_planck", run, **options)
    return found, lens.findings(found)[0]


def test_an_exact_score_has_none_and_a_wrong_one_what_its_closed_form_says(generator):
    law = LAWS["mixture-full"](generator, 3)
    found, said = measured(law)
    assert (found["residual"] < 1e-9).all() and "obeys the Fokker-Planck equation" in said
    found, said = measured(Perturbed(law, 0.05))
    np.testing.assert_allclose(found["residual"], found["residual_exact"], rtol=1e-6)
    assert found["relative"].values[0] == pytest.approx(0.05, rel=1e-3)  # near pure noise
    assert "breaks the Fokker-Planck equation at 7 of 7 noise levels" in said
    found, _ = measured(Perturbed(law, bias=0.1))
    assert "residual_exact" not in found


def test_it_is_the_same_number_under_every_process(generator):
    """A function of the states and rho alone."""
    law, x = Perturbed(LAWS["mixture-full"](generator, 2), 0.1), torch.zeros(8, 2).double()
    x += torch.randn(8, 2, generator=generator, dtype=torch.float64)
    rho = (3.0, 1.0, 0.4)
    values = []
    for process in (wb.EDM(), wb.VP(), wb.RectifiedFlow(), wb.OU()):
        grid = wb.Grid.times(process, [process.time_of(one) for one in rho])
        start = x * process(grid.t[0]).alpha
        diffusion = wb.Diffusion(process, law)
        run = wb.sample(diffusion, wb.Euler(), grid, range(8), wb.Record(["x"]), x=start)
        values.append(wb.measure("fokker_planck", run)["residual"].values)
    np.testing.assert_allclose(values, np.broadcast_to(values[0], (4, 3)), rtol=1e-9)


def test_estimated_traces_keep_the_contract():
    lens = wb.lenses.LENSES["fokker_planck"](samples=32, levels=1, probes=4)
    run = _run(lens, _mixture())
    assert check_lens(lens, {"a mixture": run}, nothing=run).laws


def test_the_gap_of_a_wrong_score_is_what_the_closed_forms_say(generator):
    """And two sets of one law stay inside the null band as often as it claims."""
    law = wb.Gaussian(torch.tensor([0.3, -0.2]).double(), torch.tensor([1.0, 0.4]).double())
    wrong = wb.Diffusion(wb.EDM(), Perturbed(law, bias=0.02))
    found = wb.measure("gap", wrong, steps=32)
    exact, error = found["w2_exact"].values, found["w2_se"].values
    np.testing.assert_allclose(exact[:2], [1.6806, 1.8698], rtol=1e-3)
    assert (
        abs(found["w2"].values - exact)[:2] < 5 * error[:2] + found["step_error"][0].item()
    ).all()
    assert (found["energy"].values[:2] > found["energy_null"].values[:2, 1]).all()
    said = wb.lenses.LENSES["gap"]().findings(found)
    assert said[0].startswith("ODE and SDE are apart: W2 1.") and "(exactly 1.68)" in said[0]

    gauge = wb.Diffusion(wb.EDM(), Perturbed(LAWS["mixture-full"](generator, 2), gauge=0.2))
    found = wb.measure("gap", gauge, samples=128, steps=24)
    assert "w2_exact" not in found

    missed = []
    for _ in range(60):
        a, b = torch.randn(2, 24, 2, generator=generator, dtype=torch.float64).exp()
        energies = _parted(a, b, 60)[1]
        low, high = torch.quantile(energies, torch.tensor([0.05, 0.95]).double())
        missed.append(not low <= energy_distance(a, b, drawn=True)[0] <= high)
    assert 0 < sum(missed) <= 15  # 6 expected of 60; beyond with probability 1e-3


def test_what_it_cannot_measure_is_a_sentence(generator):
    law = LAWS["mixture-full"](generator, 2)
    with pytest.raises(NotImplementedError, match="at least 2 probes"):
        measured(law, probes=1)

    class Plain(wb.Denoiser):
        event_shape, dtype, device = torch.Size([65]), torch.float64, torch.device("cpu")
        mean, std = torch.zeros(65).double(), 1.0

        def posterior_mean(self, x, alpha, sigma):
            return alpha * x / (alpha * alpha + sigma * sigma)

    with pytest.raises(NotImplementedError, match="probes=8"):
        measured(Plain())
    found, said = measured(Plain(), probes=2, samples=8)
    assert (found["residual"] < 1e-9).all() and "obeys" in said
