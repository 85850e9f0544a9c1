"""How planar trajectories are: against principal components, planes and Monte Carlo."""

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.exact.flow import denoised_path, flow_path
from workbench.exact.planarity import expected_explained_variance
from workbench.lenses.planarity import explained_variance, planarity, rotation
from workbench.processes import HeatDissipation
from workbench.processes.bases import DCT

TIMES = torch.linspace(1.0, 1e-3, 60, dtype=torch.float64)


@pytest.mark.parametrize("centred", [True, False])
def test_explained_variance_is_that_of_the_covariance(centred, generator):
    path = normals(generator, 12, 5, 8).cumsum(0)
    got = explained_variance(path, 4, centred)
    assert got.shape == (5, 4)
    for i in range(5):
        states = path[:, i].numpy()
        scatter = np.cov(states.T, bias=True) if centred else states.T @ states / len(states)
        values = np.linalg.eigvalsh(scatter)[::-1]
        np.testing.assert_allclose(got[i], np.cumsum(values)[:4] / values.sum(), rtol=1e-12)


def test_more_directions_than_there_are(generator):
    got = explained_variance(normals(generator, 9, 2), 5)
    assert got.shape == (5,)
    assert got[1:].tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("process", [wb.VP(), wb.RectifiedFlow(), wb.EDM()], ids=repr)
def test_a_rotation_is_one(process, generator):
    """alpha a + sigma b lies in the plane of its ends and is explained by them alone."""
    times = torch.linspace(1.0, 0.0, 60, dtype=torch.float64) * process.t_max
    c = process(times)
    a, b = normals(generator, 2, 3, 16)
    found = planarity(process, c.alpha[:, None, None] * a + c.sigma[:, None, None] * b, times)
    for share in (found.explained[:, 1], found.in_plane, found.rotation):
        torch.testing.assert_close(share, torch.ones(3).double(), rtol=1e-12, atol=0)
    assert found.residual.max() < 1e-12


def test_the_measures_against_their_definitions(generator):
    process, path = wb.VP(), normals(generator, 60, 7).cumsum(0)
    found, turned = planarity(process, path, TIMES), rotation(process, path, TIMES)
    ends = torch.stack([path[0], path[-1]], 1)
    inside = (ends @ torch.linalg.lstsq(ends, path.T).solution).T
    off = (path - inside).norm(dim=1)
    assert found.in_plane.item() == pytest.approx(1 - (off**2).sum() / (path**2).sum(), rel=1e-10)
    assert found.residual.item() == pytest.approx((off / path.norm(dim=1)).max().item(), rel=1e-10)
    missed = (path - turned).square().sum() / path.square().sum()
    assert found.rotation.item() == pytest.approx(1 - missed.item(), rel=1e-10)
    torch.testing.assert_close(turned[[0, -1]][0], path[0], rtol=1e-12, atol=1e-12)


def test_times_may_run_either_way(generator):
    process, path = wb.VP(), normals(generator, 60, 2, 7).cumsum(0)
    there, back = planarity(process, path, TIMES), planarity(process, path.flip(0), TIMES.flip(0))
    for one, other in zip(there, back, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("of", ["state", "denoised"])
@pytest.mark.parametrize("centred", [True, False])
def test_the_expected_shares_are_those_of_many_trajectories_pooled(of, centred, generator):
    variances = 4 * torch.arange(1, 13).double() ** -1.5
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(torch.zeros(12).double(), variances))
    start = diffusion.marginal(1.0).variances.sqrt() * normals(generator, 4000, 12)
    path = (flow_path if of == "state" else denoised_path)(diffusion, start, 1.0, TIMES)
    path = path - path.mean(0) if centred else path
    energy = np.linalg.eigvalsh(np.einsum("tnd,snd->ts", path, path))[::-1]
    got = expected_explained_variance(wb.VP(), variances, TIMES, centred=centred, of=of)
    np.testing.assert_allclose(got, np.cumsum(energy)[:3] / energy.sum(), atol=0.02)
    assert torch.all(got.diff() > 0)


def test_what_is_refused(generator):
    path = normals(generator, 5, 4)
    with pytest.raises(ValueError, match="there are 60 times"):
        planarity(wb.VP(), path, TIMES)
    with pytest.raises(TypeError, match="has a rotation per mode"):
        rotation(HeatDissipation(DCT((2, 2))), path, TIMES[:5])
    with pytest.raises(ValueError, match="of was 'noise'"):
        expected_explained_variance(wb.VP(), torch.ones(3), TIMES, of="noise")
