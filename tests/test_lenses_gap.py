"""Where a score breaks the Fokker-Planck equation, seen through a lens."""

import math

import numpy as np
import pytest
import torch
from helpers import LAWS
from scipy.stats import kstest

import workbench as wb
from workbench.denoisers.perturbed import Perturbed
from workbench.exact.reverse import reverse_law
from workbench.lenses.gap import Family
from workbench.lenses.two_sample import STATISTICS, compare
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
    lens = wb.lenses.LENSES["fokker_planck"](samples=16, levels=1, probes=4)
    run = _run(lens, _mixture())
    assert check_lens(lens, {"a mixture": run}, nothing=run).laws


def test_a_gauge_is_named(generator):
    """It has a residual and an antisymmetric Jacobian in closed form, and moves no density."""
    law = LAWS["mixture-full"](generator, 2)
    found, _ = measured(Perturbed(law, gauge=0.2))
    assert found["residual"].max() > 0.01 and (found["violation"] < 1e-12).all()
    np.testing.assert_allclose(found["asymmetry"], found["asymmetry_exact"], rtol=1e-9)
    said = wb.lenses.LENSES["fokker_planck"]().findings(found)
    assert said[1].startswith("It is a gauge: the error of the score moves no density")
    found, _ = measured(Perturbed(law, 0.1, gauge=0.2))
    assert (found["asymmetry"] > 1e-3).any() and found["violation"].max() > 1e-2
    assert "not a gradient field" in wb.lenses.LENSES["fokker_planck"]().findings(found)[1]
    found, _ = measured(Perturbed(law, 0.1, bias=0.3), differences="time")
    assert (found["asymmetry"] < 1e-12).all() and found["log_residual"].max() > 0.01


def test_the_gap_of_a_wrong_score_is_what_the_closed_forms_say(generator):
    law = wb.Gaussian(torch.tensor([0.3, -0.2]).double(), torch.tensor([1.0, 0.4]).double())
    wrong = wb.Diffusion(wb.EDM(), Perturbed(law, bias=0.02))
    found = wb.measure("gap", wrong, samples=128, steps=32)
    exact, error = found["w2_exact"].values, found["w2_se"].values
    np.testing.assert_allclose(exact[:2], [1.6806, 1.8698], rtol=1e-3)
    assert (
        abs(found["w2"].values - exact)[:2] < 5 * error[:2] + found["step_error"][0].item()
    ).all()
    assert (found["energy"].values[:2] > found["energy_null"].values[:2, 1]).all()
    said = wb.lenses.LENSES["gap"]().findings(found)
    assert said[0].startswith("ODE and SDE are apart: W2 1.") and "(exactly 1.68)" in said[0]
    right = wb.measure("gap", wb.Diffusion(wb.EDM(), law), samples=256, steps=24, eta=0.5)
    assert right["pair"].values.tolist()[0] == "ODE and eta 0.5" and (right["p"] > 0.002).all()
    # Of what the steps have moved, the estimate is what the exact laws say, to its order.
    ratio = right["step_error"].values / right["step_error_exact"].values
    assert ((ratio > 0.3) & (ratio < 3)).all() and (right["coupled"] > right["step_error"]).all()

    gauge = wb.Diffusion(wb.EDM(), Perturbed(LAWS["mixture-full"](generator, 2), gauge=0.2))
    assert "w2_exact" not in wb.measure("gap", gauge, samples=32, steps=8)


def test_every_eta_is_sampled_with_order_two(generator):
    """The output's law of ever more steps against the continuous one, from the marginal."""
    process, law = wb.VP(), LAWS["gaussian-full"](generator, 2)
    diffusion, (t, s) = wb.Diffusion(process, law), (process.time_of(20.0), process.time_of(0.05))
    start = diffusion.marginal(t)
    for eta in (0.0, 0.3, 1.0, 2.0):
        goal, off = reverse_law(diffusion, eta, start=start, t=t, s=s), []
        for steps in (64, 128):
            rho = np.geomspace(20.0, 0.05, steps + 1)
            grid = wb.Grid.times(process, [t, *map(process.time_of, rho[1:-1]), s])
            off.append(wb.exact.w2(wb.exact.law(diffusion, Family(eta=eta), grid, start), goal))
        assert 3.2 < off[0] / off[1] < 5.5, (eta, off)


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

    class Opaque(Plain):
        """The same in the plane, and scaled, behind what automatic differentiation cannot see."""

        event_shape, mean = torch.Size([2]), torch.zeros(2).double()

        def posterior_mean(self, x, alpha, sigma):
            return 1.1 * super().posterior_mean(x, alpha, sigma).detach() - 0.1 * x.detach() / alpha

    truth = wb.Gaussian(torch.zeros(2).double(), torch.ones(2).double())
    wanted, _ = measured(Perturbed(truth, 0.1))
    found, _ = measured(Opaque())
    np.testing.assert_allclose(found["residual"], wanted["residual"], rtol=2e-3)
    said = wb.lenses.LENSES["fokker_planck"]().findings(found)
    assert "cannot be differentiated" in said[-1]
    with pytest.raises(ValueError, match="at least 16 are needed"):
        compare(torch.zeros(5, 2), torch.ones(5, 2), ("w2",))
    with pytest.raises(ValueError, match="1 of 40 samples are not finite"):
        compare(
            torch.full((20, 1), 1.0).index_fill(0, torch.tensor(3), math.inf),
            torch.ones(20, 1),
            ("w2",),
        )


def test_p_values_of_one_law_are_uniform(generator):
    """Of every statistic; and far from it of two laws."""
    p = {name: [] for name in STATISTICS}
    for _ in range(200):
        a, b = torch.randn(2, 20, 1, generator=generator, dtype=torch.float64).exp()
        for name, one in compare(a, b, tuple(STATISTICS)).items():
            p[name].append(one.p)
    for name, values in p.items():
        assert kstest(np.array(values), "uniform").pvalue > 1e-5, name
    apart = compare(a.log(), a.log() + 5.0, tuple(STATISTICS))
    assert all(one.p <= 0.03 for one in apart.values())


def test_distances_are_those_of_their_definitions(generator):
    """And as far off as they say."""
    shift, n = torch.tensor([1.0, 0.0]).double(), 200
    values: dict[str, list] = {name: [] for name in ("w2", "sliced", "energy", "mmd")}
    for _ in range(60):
        a, b = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
        for name, one in compare(a, 1.3 * b + shift, tuple(values)).items():
            values[name].append((one.value, one.error))
    exact = {"w2": math.sqrt(1.0 + 2 * 0.09), "sliced": math.sqrt(1.0 + 2 * 0.09)}
    for name, pairs in values.items():
        value, error = np.array(pairs).T
        assert 0.6 < value.std(ddof=1) / np.nanmean(error) < 1.7, name
        if name in exact:
            assert abs(value.mean() - exact[name]) < 5 * np.nanmean(error) / 60**0.5, name
    c, m = a, 1.3 * b + shift
    gap = 2 * torch.cdist(c, m).mean() - sum(
        torch.cdist(x, x).sum() / (n * (n - 1)) for x in (c, m)
    )
    assert compare(c, m, ("energy",))["energy"].value == pytest.approx(gap.item(), rel=1e-9)
