"""The densities that ODE and SDE miss, the bound on their gap, and where the gap comes from."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LAWS, covariance, halved, normals, states, uniform

import workbench as wb
from workbench.denoisers.perturbed import Perturbed
from workbench.exact import fokker_planck as fp
from workbench.lenses import density_error
from workbench.lenses.attribution import Attribution
from workbench.lenses.bound import Bound
from workbench.lenses.density_error import DensityError, flow_log_ratio, noising_log_ratio
from workbench.sampling import NoiseSource


def test_the_log_residual_is_that_of_its_gradient(generator, monkeypatch):
    """Zero of exact laws, the closed form of scaled ones, and its slope is the score's residual."""
    law = LAWS["mixture-full"](generator, 3)
    for process in (wb.VP(), wb.RectifiedFlow()):
        t, exact = process.time_of(0.7), wb.Diffusion(process, law)
        c, x = process(t), states(generator, law, 3, process(t).alpha, process(t).sigma)
        rate = c.g2 / c.sigma**2
        assert (fp.log_residual(exact, x, t).abs() < 1e-9 * rate).all()
        score, delta = exact.score(x, t), uniform(generator, -0.3, 0.3)
        wanted = -0.5 * delta * (1 + delta) * c.g2 * score.square().sum(1) - 3 * delta * c.f
        got = fp.log_residual(wb.Diffusion(process, Perturbed(law, delta)), x, t)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8 * rate)
        wrong = wb.Diffusion(process, Perturbed(law, 0.1, bias=0.2, gradient=0.05))
        units = 1e-3 * c.sigma * torch.eye(3).double()
        slope = [
            (fp.log_residual(wrong, x + e, t) - fp.log_residual(wrong, x - e, t)) / 2e-3 / c.sigma
            for e in units
        ]
        wanted = fp.score_residual(wrong, x, t).residual
        size = 1e-5 * wanted.abs().max().item()
        torch.testing.assert_close(torch.stack(slope, 1), wanted, rtol=0, atol=size)
        found = fp.score_residual(wrong, x, t, None, "time").residual
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * size)
        whole, half = (
            (fp.score_residual(wrong, x, t, None, "all").residual - wanted).abs().max().item()
            for _ in halved(monkeypatch, fp, "SPACING")
        )
        assert whole < 2000 * size and half < 0.3 * whole + 1e-3 * size  # of second order
    probes = torch.randint(0, 2, (400, 3), generator=generator).double() * 2 - 1
    found = fp.score_residual(wrong, x, t, probes, "all")
    error = found.each.std(0) / math.sqrt(len(found.each))
    assert ((found.residual - wanted).abs() < 5 * error).all()
    with pytest.raises(ValueError, match="at least 4"):
        fp.score_residual(wrong, x, t, probes[:3], "all")
    turned = Perturbed(LAWS["mixture-full"](generator, 2), gauge=0.1)
    with pytest.raises(NotImplementedError, match="gauge"):
        fp.log_residual(wb.Diffusion(wb.VP(), turned), x[:, :2], 0.5)


def test_densities_of_ode_and_sde_against_reference_values():
    """theory.json, fp_ode_path_identity and fp_sde_feynman_kac: one residual, two averages."""
    cases = json.loads((Path(__file__).parent / "reference" / "theory.json").read_text())
    theory = {one["id"]: one for one in cases}
    case = theory["fp_ode_path_identity"]
    law = wb.Gaussian(torch.zeros(1).double(), torch.full((1,), case["inputs"]["lam"]).double())
    right, delta = wb.Diffusion(wb.VP(), law), case["inputs"]["delta"]
    wrong = wb.Diffusion(wb.VP(), Perturbed(law, delta))
    x = torch.tensor([[case["expected"]["x_0"]]]).double()
    got = flow_log_ratio(wrong, x, case["inputs"]["t0"], 1.0, "marginal").item()
    assert got == pytest.approx(case["expected"]["lhs"], abs=2e-6)

    case = theory["fp_sde_feynman_kac"]
    x = torch.tensor([[case["inputs"]["x"]]]).double().expand(16, 1)
    noise = NoiseSource(range(16), (256, 1))
    t = case["inputs"]["t"]
    found, error = noising_log_ratio(wrong, x, t, 1.0, noise, prior=right.marginal(1.0))
    total = error.square().mean().sqrt().item() / 4
    assert abs(found.mean().item() - case["expected"]["h"]) < 4 * total + 1e-4
    assert 0.4 < found.std().item() / error.mean().item() < 2.0


def test_the_lens_of_densities(generator, monkeypatch):
    law = LAWS["gaussian-full"](generator, 2)
    grid = wb.Grid.log_snr(wb.VP(), 6, final="stop")
    for wrong in (Perturbed(law, 0.1), Perturbed(LAWS["mixture-full"](generator, 2), -0.05)):
        run = wb.sample(wb.Diffusion(wb.VP(), wrong), wb.Heun(), grid, range(4))
        found = wb.measure(DensityError(samples=4, paths=64), run)
        with monkeypatch.context() as patch:  # order four: twice as many steps are 16 times closer
            patch.setattr(density_error, "PER_FOLD", 2 * density_error.PER_FOLD)
            finer = wb.measure(DensityError(samples=4, paths=2), run)["ode"]
        own = abs(found["ode"] - finer)
        assert (abs(finer - found["ode_exact"]) < 0.3 * own + 2e-6).all()
        assert np.median(own) < 1e-4  # what the null band says
        if "sde_exact" in found:
            apart = abs(found["sde"] - found["sde_exact"]) / found["sde_error"]
            assert (apart < 5).all()
    assert "nats from what the model claims" in DensityError().findings(found)[0]
    final = wb.sample(
        wb.Diffusion(wb.VP(), law),
        wb.Heun(),
        wb.Grid.log_snr(wb.VP(), 4, final="denoise"),
        range(2),
    )
    with pytest.raises(NotImplementedError, match="sigma = 0"):
        wb.measure("density_error", final)


def test_the_distance_is_never_above_its_bound(generator):
    """25 random Gaussians by exact laws and 8 mixtures by their samples; the bound of Gaussians is
    that of its closed form."""
    ratios = []
    for i in range(33):
        d, delta = 1 + i % 2, uniform(generator, 0.05, 0.3) * (-1) ** i
        if i < 25:
            law = wb.Gaussian(normals(generator, d), covariance(generator, d, 0.2, 2.0))
            wrong = Perturbed(law, delta)
        else:
            law = LAWS["mixture-full"](generator, 2)
            wrong = Perturbed(law, delta, bias=0.01 * normals(generator, 2))
        diffusion = wb.Diffusion(wb.EDM(0.02, 40.0), wrong)
        if i < 25:
            right = wb.Diffusion(diffusion.process, law)
            exact = wb.exact.gap_bound(right, delta, start="prior")
            assert exact.w2 <= exact.mismatch <= exact.residual
        if i >= 25 or i % 5 == 0:
            found = wb.measure(Bound(samples=16, steps=16), diffusion)
            limit, noise = float(found["limit"]), float(found["w2_null"][1])
            assert float(found["w2"]) <= limit + noise
            if i < 25:
                ratios.append(limit / exact.residual)
    assert 0.7 < np.median(ratios) < 1.3 and max(ratios) < 2.5 and min(ratios) > 0.4


def test_where_the_gap_comes_from(generator):
    """Of a scaled score by level, mode and frequency: the closed forms."""
    law = wb.Gaussian(normals(generator, 3, 3), 0.5)
    found = wb.measure(
        Attribution(samples=256, steps=24), wb.Diffusion(wb.EDM(0.02, 40.0), Perturbed(law, 0.15))
    )
    seen = found["level_se"].notnull()
    off = abs(found["level"] - found["level_exact"])[seen] / found["level_se"][seen]
    assert seen.sum() >= 3 and (off < 5).all() and found["level_exact"].diff("rho").min() >= 0
    assert (abs(found["mode"] - found["mode_exact"]) < 5 * found["mode_se"] + 0.01).all()
    total = float(found["frequency"].sum())
    assert total == pytest.approx(float(found["mode"].sum()), rel=0.05)
    said = Attribution().findings(found)
    assert "half of it is there when noise stops at ρ" in said[0] and len(said) == 3
    right = wb.measure(Attribution(samples=64, steps=12), wb.Diffusion(wb.EDM(), law))
    assert (right["mode"] < right["mode_null"][:, 1] + 0.05).all()
    assert "no gap to attribute" in Attribution().findings(right)[0]
