"""The optimal loss, and a model beside it and beside simpler denoisers."""

import numpy as np
import pytest
import torch
from helpers import covariance, normals

import workbench as wb
from workbench.learning import Settings, train
from workbench.learning.networks.mlp import MLP
from workbench.learning.training import split
from workbench.lenses.fit import Fit, Follows, optimal_loss, trained_on
from workbench.testing import check_lens


def test_the_optimal_loss_of_a_gaussian_by_three_ways(generator):
    """Closed form, quadrature of an isotropic mixture of one, draws."""
    eye = torch.eye(2, dtype=torch.float64)
    mean, one = normals(generator, 2), torch.ones(1, dtype=torch.float64)
    for rho in (0.05, 0.7, 6.0):
        wanted = 0.3 * rho**2 / (0.3 + rho**2)
        assert optimal_loss(wb.Gaussian(mean, 0.3 * eye), rho) == (pytest.approx(wanted), 0.0)
        found = optimal_loss(wb.Mixture(one, mean[None], 0.3 * one), rho)
        assert found.value == pytest.approx(wanted, rel=1e-10) and found.error < 1e-10
        drawn = optimal_loss(wb.Mixture(one, mean[None], 0.3 * eye[None]), rho)
        assert drawn.value == pytest.approx(wanted, rel=1e-9)  # its posterior variance is constant


def test_the_optimal_loss_of_mixtures_by_quadrature_and_by_draws():
    law = wb.DATASETS["ring"]().law
    full = wb.Mixture(law.weights, law.means, torch.diag_embed(law.covs[:, None].expand(-1, 2)))
    for rho in (0.4, 0.8, 1.5):
        exact, drawn = optimal_loss(law, rho), optimal_loss(full, rho, 4000)
        assert exact.error < 1e-6 < drawn.error
        assert abs(exact.value - drawn.value) < 5 * drawn.error
    points = wb.Empirical(law.means)  # noise much smaller than the distances: nothing is left
    assert optimal_loss(points, 0.02).value < 1e-12
    spread = law.means.var(0, correction=0).mean().item()
    assert optimal_loss(points, 300.0).value == pytest.approx(spread, rel=1e-4)


def test_what_has_no_optimal_loss():
    law = wb.DATASETS["ring"]().law
    with pytest.raises(NotImplementedError, match="of a law, a Gaussian, Mixture or Empirical"):
        optimal_loss(wb.Perturbed(law), 1.0)
    for rho in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"rho was .*; it must be positive and finite"):
            optimal_loss(law, rho)


@pytest.mark.parametrize("lens", [Fit(levels=4), Follows(levels=4), Follows(4, of="denoised")])
def test_the_contract(lens):
    check_lens(lens)


def gaussian(generator, size: int = 400) -> wb.Data:
    law = wb.Gaussian(normals(generator, 3), covariance(generator, 3))
    values, basis = torch.linalg.eigh(law.cov)
    points = law.mean + normals(generator, size, 3) * values.sqrt() @ basis.T
    return wb.Data("three", points, law=law)


def test_the_loss_of_a_gaussian_is_the_exact_one(generator):
    data = gaussian(generator)
    other = wb.Gaussian(data.law.mean + 0.3, 1.4 * data.law.cov)
    for model in (data.law, other):
        found = wb.measure("fit", wb.Diffusion(wb.VP(), model), data=data, points=400, levels=8)
        unseen = found.sel(set="unseen")
        for name in ("loss", "excess"):
            apart = np.abs(unseen[name] - unseen[f"{name}_exact"])
            assert (apart < 5 * unseen[f"{name}_se"] + 1e-12).all()
        np.testing.assert_allclose(unseen["optimal"], unseen["optimal_exact"], rtol=1e-12)
        assert (unseen["excess_exact"] >= 0).all()


def test_a_finite_set_has_memorised(generator):
    """No excess on its own points, much on others, and the lens says so."""
    data = gaussian(generator, 60)
    diffusion = wb.Diffusion(wb.VP(), wb.Empirical(data.points))
    found = wb.measure("fit", diffusion, data=data, points=60)
    own, unseen = found.sel(set="training"), found.sel(set="unseen")
    assert own["excess"].max() < 1e-20 < 1e-2 < unseen["excess"].max()
    error = np.hypot(own["loss_se"], own["optimal_se"])
    assert (np.abs(own["loss"] - own["optimal"]) < 5 * error).all()
    assert "there it remembers" in Fit().findings(found)[-1]


def test_a_model_follows_itself_and_the_gaussian_at_much_noise():
    data = wb.DATASETS["digits"]()
    few = wb.Data("few", data.points[:120], data.labels[:120])
    found = wb.measure(
        "follows", wb.Diffusion(wb.EDM(), wb.Empirical(few.points)), data=few, levels=5, points=16,
        images=40,
    )  # fmt: skip
    curves = found["explained"]
    assert list(curves["model"]) == ["Gaussian", "Mixture", "Empirical", "Local 5"]
    np.testing.assert_allclose(curves.sel(model="Empirical"), 1.0, atol=1e-12)
    assert curves.sel(model="Gaussian")[0] > 0.99 > curves.sel(model="Gaussian")[-1]
    centred = wb.measure(
        "follows", wb.Diffusion(wb.EDM(), wb.Local(few.points[:40], 5)), data=few, levels=3,
        points=16, images=40, of="denoised",
    )["explained"]  # fmt: skip
    np.testing.assert_allclose(centred.sel(model="Local 5"), 1.0, atol=1e-12)
    assert centred.sel(model="Empirical").max() < 0.9


def test_a_network_is_judged_by_the_points_of_its_card(tmp_path):
    data = wb.DATASETS["ring"](size=300)
    settings = Settings(steps=2, batch=8, held_out=100)
    network = lambda event, classes: MLP(event, classes, width=8, depth=1)  # noqa: E731
    study = {"data": {"name": "ring", "size": 300}}
    net = train(data, network, tmp_path, settings=settings, study=study).denoiser
    inside, outside = split(300, settings)
    assert len(outside) == 100 and set(inside.tolist()).isdisjoint(outside.tolist())
    for given in (data, wb.DATASETS["ring"]()):  # the card says how its data are made
        subject = wb.lenses.Subject.of(wb.Diffusion(wb.VP(), net), given)
        seen, unseen = trained_on(subject)
        torch.testing.assert_close(seen.points, data.points[inside])
        torch.testing.assert_close(unseen.points, data.points[outside])
    vars(net)["card"] = {**net.card, "study": {}}
    subject = wb.lenses.Subject.of(wb.Diffusion(wb.VP(), net), wb.DATASETS["ring"]())
    with pytest.raises(NotImplementedError, match=r"trained on other data \(ring, SHA-256"):
        trained_on(subject)
