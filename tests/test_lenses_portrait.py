"""The portrait's density and flow against closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, covariance, normals, ring

import workbench as wb
from workbench.denoisers import Neural, checkpoints
from workbench.lenses.portrait import display_scale, half_width, log_densities, portrait


def recorded(process, law, steps=6, final="stop", seeds=range(40)):
    diffusion = wb.Diffusion(process, law)
    grid = wb.Grid.log_snr(process, steps=steps, final=final)
    return diffusion, wb.sample(diffusion, wb.Heun(), grid, seeds, wb.Record("x")).dataset


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("name", KINDS)
def test_the_scale_is_that_of_data_and_of_noise(name, final, generator):
    law = LAWS["mixture-full"](generator, 2)
    _, run = recorded(PROCESSES[name], law, final=final)
    scale = display_scale(run)
    expected = np.sqrt(run["alpha"].values ** 2 + (run["sigma"].values / law.std) ** 2)
    np.testing.assert_allclose(scale, expected, rtol=1e-12)
    if final == "denoise":
        assert scale[-1] == 1.0, "data units where there is no noise"
    # N(0, v) data have u of variance v at every time: nothing grows or shrinks on the picture.
    v = law.std**2
    spread = run["alpha"].values ** 2 * v + run["sigma"].values ** 2
    np.testing.assert_allclose(spread / scale**2, v, rtol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_density_is_that_of_the_blurred_law(name, generator):
    cov, mean = covariance(generator, 2, low=0.2), 0.3 * normals(generator, 2)
    diffusion, run = recorded(PROCESSES[name], wb.Gaussian(mean, cov))
    width, cells = 3.0, 16
    out = portrait(diffusion, run, width, density=cells, field=3)
    axis = (np.arange(cells) + 0.5) * 2 * width / cells - width
    np.testing.assert_allclose(out["x"].values, axis, atol=1e-12)
    np.testing.assert_allclose(out["y"].values, axis, atol=1e-12)
    for i, s in enumerate(display_scale(run)):
        alpha, sigma = run["alpha"].values[i], run["sigma"].values[i]
        noisy = alpha**2 * cov + (sigma**2 + (s * width / cells) ** 2) * torch.eye(2).double()
        inverse = torch.linalg.inv(noisy).numpy()
        x, y = np.meshgrid(axis * s, axis * s)  # rows of ascending y
        apart = np.stack([x, y], -1) - alpha * mean.numpy()
        log_density = -0.5 * np.einsum("yxi,ij,yxj->yx", apart, inverse, apart)
        found = out["log_density"].values[i]
        np.testing.assert_allclose(found, log_density - log_density.max(), rtol=1e-4, atol=1e-4)
        assert found.max() == 0.0


@pytest.mark.parametrize("name", KINDS)
def test_flow_is_du_per_log_noise(name, generator):
    """By central differences of u = x/s along the exact flow, against -log rho."""
    process = PROCESSES[name]
    law = wb.Gaussian(0.3 * normals(generator, 2), covariance(generator, 2, low=0.2))
    diffusion, run = recorded(process, law)
    out = portrait(diffusion, run, 2.0, density=2, field=4)
    axis = out["fx"].values
    u = torch.from_numpy(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    variance, h = law.std**2, 1e-4
    for i in range(run.sizes["time"]):
        alpha, sigma = float(run["alpha"][i]), float(run["sigma"][i])
        if alpha == 0:
            assert np.allclose(out["flow"].values[i], 0.0)
            continue
        here = np.hypot(alpha, sigma / law.std)
        rho = sigma / alpha

        def shown(log_step, start=(alpha, sigma), scale=here, rho=rho):
            later = rho * math.exp(-log_step)  # at alpha = 1: the picture does not depend on it
            moved = law.flow(u * scale, start, (1.0, later))
            return moved / math.sqrt(1 + later**2 / variance)

        expected = (shown(h) - shown(-h)) / (2 * h)
        found = out["flow"].values[i].reshape(-1, 2)
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=2e-6)


def test_ends_are_regular_for_point_masses(generator):
    """At pure noise nothing flows; without noise the flow is D - u, towards the nearest point."""
    law = wb.Empirical(normals(generator, 6, 2))
    diffusion, run = recorded(wb.RectifiedFlow(), law, final="denoise")
    out = portrait(diffusion, run, 2.0, density=5, field=5)
    assert np.isfinite(out["log_density"].values).all()
    np.testing.assert_allclose(out["flow"].values[0], 0.0, atol=1e-12)
    axis = out["fx"].values
    u = np.stack(np.meshgrid(axis, axis), -1)
    apart = u[:, :, None] - law.points.numpy()
    nearest = law.points.numpy()[(apart**2).sum(-1).argmin(-1)]
    np.testing.assert_allclose(out["flow"].values[-1], nearest - u, rtol=1e-6, atol=1e-6)


def test_the_window_holds_the_run_but_is_bounded():
    _, run = recorded(wb.VP(), ring())
    u = run["x"].values / display_scale(run)[:, None, None]
    assert half_width(run) == pytest.approx(1.04 * np.abs(u).max())
    std = run.attrs["data_std"]
    assert half_width(run.assign(x=run["x"] * 1e6)) == 4.5 * std
    assert half_width(run.assign(x=run["x"] * 0.0)) == 2.0 * std
    assert half_width(run.assign(x=run["x"] * np.inf)) == 4.5 * std


def test_progress_and_refusal(generator):
    diffusion, run = recorded(wb.VP(), ring(), steps=3)
    calls = []
    portrait(diffusion, run, 1.0, 2, 2, on_step=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    solid, run = recorded(wb.VP(), LAWS["gaussian-full"](generator, 3), steps=3)
    with pytest.raises(ValueError, match=r"two-dimensional data; these have shape \(3,\)"):
        portrait(solid, run, 1.0)


def test_an_integrated_density_is_that_of_the_law(generator):
    """Of a network in a law's clothes; on the way down from noise, and up from data."""
    for law in (
        wb.Gaussian(0.3 * normals(generator, 2), covariance(generator, 2, low=0.2)),
        ring(),
    ):
        net = wb.Neural(
            lambda x, t, law=law: law.denoise(x, torch.ones_like(t)[:, None], t[:, None]),
            "denoised", wb.EDM(), (2,), dtype=torch.float64,
        )  # fmt: skip
        for process in (wb.EDM(), wb.RectifiedFlow()):
            diffusion, run = recorded(process, law)
            exact, found, up = (
                log_densities(one, nodes, 2.5, 20)
                for one, nodes in (
                    (diffusion, run),
                    (wb.Diffusion(process, net), run),
                    (wb.Diffusion(process, net), run.isel(time=slice(None, None, -1))),
                )
            )
            assert np.abs(found - exact)[exact > -6.0].max() < 0.02
            np.testing.assert_array_equal(found, up[::-1])


def test_the_density_of_a_network_is_where_its_samples_are():
    """A potential fitted to its score is not: where it saw no data, its score is no gradient."""
    net = Neural.load(checkpoints.shipped_folder() / "circles.safetensors")
    diffusion = wb.Diffusion(wb.EDM(), net)
    grid = wb.Grid.karras(wb.EDM(), steps=10)
    run = wb.sample(diffusion, wb.Heun(), grid, range(200), wb.Record("x")).dataset
    width, cells = half_width(run), 56
    density = log_densities(diffusion, run, width, cells)
    for i in (3, 6, 8):
        alpha, sigma = run["alpha"].values[i], run["sigma"].values[i]
        s = display_scale(run)[i]
        level = net.at(float(alpha), float(np.hypot(sigma, s * width / cells)))
        u = run["x"].values[i] / s
        column, row = np.rint((u + width) * cells / (2 * width) - 0.5).astype(int).T
        inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < cells)
        column, row = column[inside][:60], row[inside][:60]
        axis = (np.arange(cells) + 0.5) * 2 * width / cells - width
        places = torch.from_numpy(np.stack([axis[column], axis[row]], 1) * s).float()
        wanted, found = level.log_prob(places).numpy(), density[i, row, column]
        assert np.abs(found - found.mean() - wanted + wanted.mean()).max() < 0.1
        assert found.mean() > -3.0, "the samples are where it is likely"
