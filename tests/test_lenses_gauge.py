"""The gauge part of scores, seen through lenses: against closed forms, on networks, and refused."""

import numpy as np
import pytest
import torch
from helpers import LAWS, covariance, normals

import workbench as wb
from workbench.exact.gauge import gauge_split
from workbench.exact.likelihood import log_likelihood
from workbench.lenses.galerkin import galerkin_split, gauge_least
from workbench.lenses.gap import Family
from workbench.lenses.gauge import Asymmetry, Gauge, determined, gauge_map
from workbench.lenses.output import draws
from workbench.lenses.two_sample import compare


def antisymmetric(generator, d: int) -> torch.Tensor:
    matrix = normals(generator, d, d)
    return matrix - matrix.T


def diffusion(denoiser) -> wb.Diffusion:
    return wb.Diffusion(wb.VP(), denoiser)


def net(name: str, **parameters) -> tuple[wb.Diffusion, object]:
    given = {} if name.startswith("digits") else {"size": 2000}
    data = wb.DATASETS[name.split("_")[0]](**given)
    return diffusion(wb.Neural.from_data(data, checkpoint=name)), data


def test_samples_split_a_linear_field_within_their_errors(generator):
    """Of samples of many laws: errors as large as they say, no bias, and of nothing nothing."""
    d, many, beside, nothing, least = 4, 30, [], [], []
    for _ in range(many):
        law = wb.Gaussian(normals(generator, d), covariance(generator, d, 0.3, 2.0))
        b, x = normals(generator, d, d), draws(law, 400, generator)
        exact = gauge_split(b, law)
        found = galerkin_split((x - law.mean) @ b.T, x, 24, generator)
        assert found.norm2 == pytest.approx(found.conservative_norm2 + found.gauge_norm2)
        beside.append(
            [
                (getattr(found, name) - getattr(exact, name)) / getattr(found, f"{name}_se")
                for name in ("norm2", "conservative_norm2", "gauge_norm2")
            ]
        )
        gauge = law.score(x, 1.0, 0.0) @ antisymmetric(generator, d).T
        found = galerkin_split(gauge, x, 24, generator)
        nothing.append(found.conservative_norm2 / found.noise)
        # Nor has a gradient a part along gauge fields.
        value, _, noise = gauge_least((x - law.mean) @ (b + b.T), x, law.score(x, 1.0, 0.0), 1.0, 8)
        least.append(value / noise)
    beside = np.array(beside)
    assert (np.abs(beside) < 5).all()
    assert (np.abs(beside.mean(0)) < 0.7).all() and (beside.std(0) < 1.6).all()
    for values in (nothing, least):  # sums of products, with the tails of such
        assert abs(np.mean(values)) < 0.9 and 0.4 < np.std(values) < 2.2


@pytest.mark.parametrize("solver", ["grid", "samples"])
def test_a_perturbed_gaussian_is_split_as_its_closed_form_says(solver, generator):
    law = wb.Gaussian(normals(generator, 2), covariance(generator, 2, 0.3, 2.0))
    wrong = wb.Perturbed(law, 0.1, bias=0.1, gauge=0.4, gradient=0.05, rotation=0.1)
    found = wb.measure("gauge", diffusion(wrong), levels=3, solver=solver)
    for name in ("field", "conservative", "gauge", "error", "violation"):
        value, exact = found[name].values, found[f"{name}_exact"].values
        error = found[f"{name}_se"].values if f"{name}_se" in found else 0.0
        assert (abs(value - exact) < 4.5 * error + 3e-3 * found["field"].values).all(), name
    np.testing.assert_allclose(found["field"], found["conservative"] + found["gauge"], rtol=1e-9)
    if solver == "samples":
        least = found["gauge_least"].values
        off = abs(least - found["gauge_exact"].values)
        assert (off < 4.5 * found["gauge_least_se"].values).all()
        assert (least > found["gauge_least_null"].values[:, 1]).any()
    # The excess of the denoising score-matching loss is what error and gauge add up to.
    x0, rho = draws(law, 4000, generator), found["rho"].values[1]
    z = normals(generator, 4000, 2)
    loss = [(rho * one.score(x0 + rho * z, 1.0, rho) + z).square().mean(1) for one in (wrong, law)]
    excess = loss[0] - loss[1]
    both = float(found["error_exact"][1] + found["gauge_exact"][1])
    assert abs(excess.mean() - both) < 4.5 * excess.std() / len(excess) ** 0.5
    turned = wb.measure("asymmetry", diffusion(wrong), levels=3)
    for name in ("asymmetry", "share", "circulation"):
        np.testing.assert_allclose(turned[name], turned[f"{name}_exact"], rtol=1e-6)
    assert (turned["asymmetry"] > turned["asymmetry_null"].values[:, 1]).all()


@pytest.mark.parametrize("d", [2, 8])
def test_a_gauge_on_a_mixture_leaves_its_score_samples_and_likelihood(d, generator):
    law, a = LAWS["mixture-isotropic"](generator, d), antisymmetric(generator, d)
    a = 0.8 * a / torch.linalg.matrix_norm(a, 2)
    turned = wb.Perturbed(law, gauge=a)
    found = wb.measure("gauge", diffusion(turned), levels=2, samples=1000, solver="samples")
    # The gradient part is the true score; all of the error is gauge, by both bounds.
    assert (abs(found["error"]) < 4.5 * found["error_se"]).all()
    assert (found["violation"] < 1e-9).all()
    between = found["gauge"] - found["gauge_least"]
    noise = np.hypot(found["gauge_se"], found["gauge_least_se"])
    assert (abs(between) < 5 * noise).all()
    # The same samples in law, on other paths.
    process, n = wb.VP(), 192
    grid = wb.Grid.log_snr(process, 64, final="stop")
    truth = law.noised(grid.alpha[-1], grid.sigma[-1])
    for eta in (0.0, 1.0):
        runs = [
            wb.sample(diffusion(one), Family(eta=eta), grid, range(n)).final
            for one in (law, turned)
        ]
        assert (runs[0] - runs[1]).norm(dim=1).mean() > 0.1
        w2 = compare(runs[1], draws(truth, n, generator), ("w2",))["w2"]
        assert w2.p > 1e-3, (eta, w2)
    if d == 2:  # the likelihood there is a case of the reference
        return
    # Two latents, one likelihood.
    x = draws(law, 1, generator)
    plain, gauge = (log_likelihood(diffusion(one), x, rtol=1e-8) for one in (law, turned))
    assert (plain.latent - gauge.latent).norm(dim=1).min() > 1e-2
    torch.testing.assert_close(gauge.log_prob, plain.log_prob, rtol=0, atol=1e-7)


def test_networks_are_gradients_where_they_are_built_to_be(generator):
    """Potential and free network of the sphere: the bounds tell them apart."""
    found = {}
    for name in ("sphere_conservative", "sphere"):
        subject, data = net(name)
        turned = wb.measure("asymmetry", subject, data=data, levels=2, samples=8)
        split = wb.measure("gauge", subject, data=data, levels=2, samples=120, features=12)
        found[name] = turned, split
        assert (split["violation"] > 1e-3).all()  # wrong in another way: trained, not exact
        both = split["error"] + split["gauge"]
        assert (both > 0).all() and (split["gauge"] < 0.5 * split["field"]).all()
    turned, split = found["sphere_conservative"]
    assert (turned["asymmetry"] < 1e-9).all() and (turned["circulation"] < 1e-6).all()
    assert (abs(split["gauge"]) < 1e-4).all() and determined(split)
    assert Asymmetry().findings(turned)[0].endswith("the score is a gradient.")
    turned, split = found["sphere"]
    assert (turned["share"] > 0.01).all() and split["gauge"][1] > 1e-3
    assert "of the denoiser's Jacobian" in Asymmetry().findings(turned)[0]
    assert split["gauge_least"][0] > split["gauge_least_null"].values[0, 1]
    assert Gauge().findings(split)[0].startswith("Between ")


def test_of_images_there_are_errors_and_a_sentence():
    """Violation by probes, bounds of the gauge part that are apart; whose density it is."""
    subject, data = net("digits_slim")
    lens = Gauge(levels=2, samples=288, features=8, probes=4)
    found = wb.measure(lens, subject, data=data)
    assert (found["violation"] > 3 * found["violation_se"]).all()
    assert (found["gauge"] > 3 * found["gauge_se"]).any()
    assert (found["gauge_least"] < 0.5 * found["gauge"]).any() and not determined(found)
    said = " ".join(lens.findings(found))
    assert "samples and features do not determine it" in said
    assert "the density is that of the noised data points" in said


def test_a_map_adds_up_and_knows_what_was_added():
    law, c = wb.datasets.ring().law, 0.5
    found = gauge_map(wb.Perturbed(law, gauge=c), law, 0.3, nodes=64, naive=True)
    field, parts = found["field"], found["conservative"] + found["gauge"]
    np.testing.assert_allclose(field, parts, rtol=1e-12)
    added = field - found["truth"]
    off = (found["gauge"] - added) ** 2 * found["density"]
    assert float(off.sum() / (added**2 * found["density"]).sum()) < 2e-3
    # Of a gauge the violation vanishes; the naive symmetrisation is not the gradient part.
    assert float(abs(found["violation"]).max()) < 1e-9 and float(abs(found["curl"]).max()) > 0.1
    wrong = (found["naive"] - found["truth"]) ** 2 * found["density"]
    assert float(wrong.sum()) > 10 * float(off.sum())
    share = found.attrs["gauge_norm2"] / found.attrs["field_norm2"]
    assert share == pytest.approx(c**2 / (1 + c**2), rel=2e-2)
    # x runs along columns: component 0 is along x.
    x, row = found["x"].values, found["potential"].values[32]
    slope = np.gradient(row, x) * found.attrs["rho"]
    np.testing.assert_allclose(slope[20:44], found["conservative"].values[32, 20:44, 0], atol=0.25)
    with pytest.raises(ValueError, match="too narrow for"):
        gauge_map(law, wb.Empirical(wb.datasets.ring().points), 1e-3)
    with pytest.raises(NotImplementedError, match="5 numbers each"):
        gauge_map(*2 * (wb.Gaussian(torch.zeros(5).double(), 1.0),), 0.1)


def test_what_does_not_determine_it_is_a_sentence(generator):
    x = normals(generator, 40, 5)
    with pytest.raises(ValueError, match="40 samples do not determine"):
        galerkin_split(x, x)
    with pytest.raises(ValueError, match=r"1 of 40 samples.*off its support"):
        galerkin_split(x.index_fill(0, torch.tensor(3), torch.nan), x, 4)
    law = LAWS["mixture-full"](generator, 3)
    with pytest.raises(NotImplementedError, match="the lens's grid is in the plane"):
        wb.measure("gauge", diffusion(law), solver="grid")
    with pytest.raises(NotImplementedError, match="16 samples do not determine"):
        wb.measure("gauge", diffusion(law), levels=2, samples=16)
    wide = wb.Gaussian(torch.zeros(300).double(), 1.0)
    with pytest.raises(NotImplementedError, match=r"300 numbers each.*Take smaller images"):
        wb.measure("gauge", diffusion(wide), levels=2)
    subject, _ = net("sphere")
    with pytest.raises(NotImplementedError, match="give the data"):
        wb.measure("asymmetry", subject)
    points = wb.Empirical(normals(generator, 30, 2))
    found = wb.measure("gauge", diffusion(points), levels=3)
    assert np.isnan(found["gauge"].values[-1])
    assert "too narrow for the grid" in Gauge().findings(found)[-1]
