"""Likelihoods along the flow against exact densities; the trace estimator by enumeration."""

import itertools

import numpy as np
import pytest
import torch
from helpers import KINDS, LAWS, covariance, normals, states, uniform
from scipy.special import stdtrit

import workbench as wb
from workbench.denoisers.perturbed import Perturbed
from workbench.exact.likelihood import hutchinson_variance, log_likelihood, log_prior


def gaussian(generator, d=3) -> wb.Gaussian:
    return wb.Gaussian(normals(generator, d), covariance(generator, d))


# ---- exact densities -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_gaussian_data(name, generator, record_property):
    """Every scalar process, from t_min to t_max, pure noise included."""
    process = wb.PROCESSES[name]()
    diffusion = wb.Diffusion(process, gaussian(generator))
    c = process(process.t_min)
    x = states(generator, diffusion.denoiser, 6, c.alpha, c.sigma)
    found = log_likelihood(diffusion, x)
    torch.testing.assert_close(
        found.log_prob, diffusion.log_prob(x, process.t_min), rtol=1e-9, atol=1e-7
    )
    torch.testing.assert_close(
        found.latent, diffusion.flow(x, process.t_min, process.t_max), rtol=1e-8, atol=1e-8
    )
    record_property("measured", f"likelihood under {name}: {found.evaluations:.0f} evaluations")


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("mixture-isotropic", wb.VP()),
        ("mixture-diagonal", wb.RectifiedFlow()),
        ("mixture-full", wb.EDM(sigma_max=20.0)),
    ],
)
def test_mixtures(name, process, generator):
    data = LAWS[name](generator, 2)
    diffusion = wb.Diffusion(process, data)
    t = process.time_of(uniform(generator, 0.2, 0.6))
    x = states(generator, data, 3, process(t).alpha, process(t).sigma)
    found = log_likelihood(diffusion, x, t, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.log_prob, diffusion.log_prob(x, t), rtol=1e-8, atol=1e-6)


def test_a_gauge_field_moves_the_latents_and_not_the_likelihood(generator):
    data = LAWS["mixture-full"](generator, 2)
    x = states(generator, data, 2, 1.0, 0.1)
    exact = wb.Diffusion(wb.VP(), data)
    turned = wb.Diffusion(wb.VP(), Perturbed(data, gauge=uniform(generator, 0.3, 0.9)))
    t = 0.2
    plain, gauge = (log_likelihood(diffusion, x, t, rtol=1e-9) for diffusion in (exact, turned))
    assert (plain.latent - gauge.latent).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(gauge.log_prob, plain.log_prob, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(plain.log_prob, exact.log_prob(x, t), rtol=1e-8, atol=1e-6)


def test_a_mis_scaled_score_has_the_likelihood_of_its_own_flow(generator):
    """Per mode the ODE of (1 + delta) s* ends with variance l0 (Y0/YT)^delta."""
    data, process = gaussian(generator), wb.VP()
    delta, t = uniform(generator, -0.2, 0.2), 0.02
    wrong = wb.Diffusion(process, Perturbed(data, scale=delta))
    exact = wb.Diffusion(process, data)
    x = states(generator, data, 4, 1.0, 0.1)
    values, vectors = torch.linalg.eigh(data.cov)
    near, far = ((values + process(s).rho ** 2) for s in (t, 1.0))
    variances = process(t).alpha ** 2 * near * (near / far) ** delta
    law = wb.Gaussian.low_rank(process(t).alpha * data.mean, vectors, variances)
    found = log_likelihood(wrong, x, t, prior=exact.marginal(1.0))
    torch.testing.assert_close(found.log_prob, law.log_prob(x), rtol=1e-9, atol=1e-7)


def test_a_samples_likelihood_does_not_depend_on_its_neighbours(generator):
    """A far outlier in the batch changes no other result, however loose the tolerance."""
    data = LAWS["mixture-full"](generator, 2)
    diffusion = wb.Diffusion(wb.VP(), data)
    x = states(generator, data, 2, 1.0, 0.1)
    few = {"t": 0.1, "rtol": 1e-6, "atol": 1e-6}
    alone = [log_likelihood(diffusion, one[None], **few) for one in x]
    together = log_likelihood(diffusion, torch.cat([x, 40 * x[:1]]), **few)
    for i, one in enumerate(alone):
        assert together.log_prob[i].item() == pytest.approx(one.log_prob.item(), abs=1e-11)
        torch.testing.assert_close(together.latent[i], one.latent[0], rtol=1e-10, atol=1e-10)


def test_shapes_dtypes_and_the_two_priors(generator):
    """A batch of any shape, float32 data, and log p = log prior(latent) + volume."""
    data = wb.Gaussian(normals(generator, 2, 2).float(), torch.rand(4, generator=generator) + 0.1)
    diffusion = wb.Diffusion(wb.VP(), data)
    x = normals(generator, 3, 1, 2, 2).float()
    marginal, prior, law = (
        log_likelihood(diffusion, x, 0.1, prior=p)
        for p in ("marginal", "prior", wb.Gaussian(torch.zeros(2, 2), 1.0))
    )
    assert marginal.log_prob.shape == (3, 1) and marginal.latent.shape == x.shape
    assert marginal.log_prob.dtype == torch.float64
    torch.testing.assert_close(marginal.log_prob.float(), diffusion.log_prob(x, 0.1))
    latent = marginal.latent
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum((-2, -1))
    torch.testing.assert_close(prior.log_prob, normal + prior.log_volume, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.log_prob, prior.log_prob, rtol=1e-12, atol=1e-12)
    assert (prior.log_prob - marginal.log_prob).abs().max() > 1e-8


def test_float64_of_nothing():
    data = wb.Gaussian(torch.zeros(2).double(), 1.0)
    found = log_likelihood(wb.Diffusion(wb.VP(), data), torch.zeros(0, 2).double())
    assert found.log_prob.shape == (0,) and found.evaluations == 0


def test_what_is_refused(generator):
    diffusion = wb.Diffusion(wb.VP(), gaussian(generator))
    x = normals(generator, 2, 3)
    with pytest.raises(ValueError, match=r"t was 0\.5 and end 0\.1"):
        log_likelihood(diffusion, x, 0.5, 0.1)
    with pytest.raises(TypeError, match=r"prior was 'normal'"):
        log_likelihood(diffusion, x, prior="normal")
    with pytest.raises(ValueError, match=r"must end in \(3,\)"):
        log_likelihood(diffusion, x.reshape(3, 2))
    turned = wb.Diffusion(wb.RectifiedFlow(), Perturbed(diffusion.denoiser, scale=0.1))
    with pytest.raises(ValueError, match=r"alpha was 0"):
        log_likelihood(turned, x)


# ---- processes with a condition or a basis -------------------------------------------------------


def test_an_affine_process(generator):
    from workbench.processes.affine import IRSDE, OUVE

    for kind in (OUVE, IRSDE):
        process, mu = kind(), normals(generator, 3)
        diffusion = wb.Diffusion(process, gaussian(generator), condition=mu)
        t, end = process.t_min + 0.05 * process.t_max, process.t_max
        x = states(generator, diffusion.denoiser, 3, 1.0, 0.3)
        found = log_likelihood(diffusion, x, t)
        torch.testing.assert_close(found.log_prob, diffusion.log_prob(x, t), rtol=1e-9, atol=1e-7)
        prior = wb.Gaussian(process.prior_mean(end) * mu, process.prior_std(end) ** 2)
        torch.testing.assert_close(log_prior(diffusion, x), prior.log_prob(x))


def test_a_spectral_process(generator):
    from workbench.processes import DCT, EqualSNR

    data = LAWS["gaussian-diagonal"](generator, 4)
    data = wb.Gaussian(data.mean.reshape(2, 2), data.variances)
    process = EqualSNR(torch.rand(2, 2, generator=generator).double() + 0.5, DCT((2, 2)))
    diffusion = wb.Diffusion(process, data)
    x = states(generator, data, 3, 1.0, 0.3)
    t = 0.1 * process.t_max
    found = log_likelihood(diffusion, x, t)
    torch.testing.assert_close(found.log_prob, diffusion.log_prob(x, t), rtol=1e-9, atol=1e-7)
    matrix = process.basis.matrix
    spread = torch.as_tensor(process.prior_std(process.t_max)).double().expand(2, 2).flatten()
    prior = wb.Gaussian.low_rank(torch.zeros(2, 2).double(), matrix, spread**2)
    torch.testing.assert_close(log_prior(diffusion, x), prior.log_prob(x))


# ---- the trace estimator -------------------------------------------------------------------------


def test_hutchinson_variance_by_enumeration(generator):
    matrix = normals(generator, 2, 4, 4)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4))).double()
    for i in range(2):
        estimates = ((signs @ matrix[i]) * signs).sum(1)
        assert estimates.mean().item() == pytest.approx(matrix[i].trace().item())
        assert hutchinson_variance(matrix)[i].item() == pytest.approx(
            estimates.var(correction=0).item()
        )


def test_hutchinson_variance_of_normals_by_quadrature(generator):
    """Gauss-Hermite with 4 nodes an axis is exact for polynomials of degree 7; these have 4."""
    matrix = normals(generator, 3, 3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    z = torch.tensor(list(itertools.product(nodes, repeat=3)))
    w = torch.tensor(list(itertools.product(weights, repeat=3))).prod(1)
    w = w / w.sum()
    estimates = ((z @ matrix) * z).sum(1)
    mean = (w * estimates).sum()
    assert mean.item() == pytest.approx(matrix.trace().item())
    variance = (w * (estimates - mean) ** 2).sum().item()
    assert hutchinson_variance(matrix, "gaussian").item() == pytest.approx(variance)


def test_a_likelihood_by_probes_is_within_its_stated_error():
    """In 95 of 100 of 1000 repeats of 8 probes each, of a Gaussian against its exact density."""
    generator, place = torch.Generator().manual_seed(0), torch.arange(16).double()
    law = wb.Gaussian(torch.zeros(16).double(), 0.5 ** (place[:, None] - place).abs())
    diffusion = wb.Diffusion(wb.EDM(0.2, 10.0), law)
    x = states(generator, law, 1, 1.0, 0.2)
    probes = torch.randint(0, 2, (8000, 16), generator=generator).double() * 2 - 1
    known = {"rtol": 1e-2, "atol": 1e-2, "prior": diffusion.marginal(10.0)}
    found = log_likelihood(diffusion, x, probes=probes, **known)
    exact = diffusion.log_prob(x, 0.2)
    assert abs(found.log_prob - exact).item() < 4 * found.error.item()
    few = log_likelihood(diffusion, x, probes=probes[:8], **known)
    torch.testing.assert_close(few.each, found.each[:, :8], rtol=1e-2, atol=1e-2)
    assert few.error.item() == pytest.approx(few.each.std().item() / 8**0.5)
    assert few.log_prob.item() == pytest.approx(few.each.mean().item())
    sets = found.each.reshape(1000, 8)
    off = (sets.mean(1) - exact).abs() / (sets.std(1) / 8**0.5)
    assert 0.93 <= (off < stdtrit(7, 0.975)).double().mean() <= 0.97


def test_hutchinson_refuses():
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 3\)"):
        hutchinson_variance(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"probe was 'sign'"):
        hutchinson_variance(torch.zeros(2, 2), "sign")
