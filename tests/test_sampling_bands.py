"""Bands of pictures: Parseval, definitions, and what a run sums of them."""

import math

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.sampling.bands import GROUPS, modes, octave, rings, wavelets

SHAPES = [(8, 8), (6, 10), (3, 7, 5), (2, 32, 48), (5,)]


def kinds(shape):
    yield rings(shape)
    if len(shape) == 1:
        yield modes(shape, torch.linalg.qr(normals(torch.Generator().manual_seed(1), 5, 5)).Q)
    if len(shape) > 1 and not any(side % 2 for side in shape[-2:]):
        yield from (wavelets(shape, name) for name in ("haar", "db2"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_energies_add_up_to_the_mean_square_and_bands_to_the_picture(shape, generator):
    x, y = normals(generator, 2, 4, *shape)
    for bands in kinds(shape):
        energy = bands.energy(x)
        torch.testing.assert_close(energy.sum(1), x.square().flatten(1).mean(1), rtol=1e-12, atol=0)
        both = bands.covariance(x, y).sum(1)
        torch.testing.assert_close(both, (x * y).flatten(1).mean(1), rtol=1e-12, atol=1e-14)
        passed = bands.passed(x)
        torch.testing.assert_close(passed.sum(0), x, rtol=1e-12, atol=1e-13)
        alone = torch.stack([bands.energy(part) for part in passed])  # (band, n, band)
        expected = torch.diag_embed(energy).transpose(0, 1)
        torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-14)
        assert bands.counts.sum() == math.prod(shape)
        assert len(bands.labels) == len(bands.counts) == energy.shape[1]


def test_rings_are_the_rings_of_the_whole_transform(generator):
    rows, columns = 6, 10
    x = normals(generator, 3, 2, rows, columns).numpy()
    power = np.abs(np.fft.fft2(x)) ** 2 / (rows * columns) ** 2
    radius = 6 * np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))
    bands = rings((2, rows, columns))
    for k, label in enumerate(bands.labels):
        inside = np.rint(radius) == label
        expected = power[:, :, inside].sum((1, 2)) / 2  # the mean square is over both channels
        np.testing.assert_allclose(bands.energy(torch.from_numpy(x))[:, k], expected, rtol=1e-12)
        assert bands.counts[k] == 2 * inside.sum()


def test_octaves():
    names = [octave(ring) for ring in range(10)]
    assert [name for _, name in names] == ["DC", "1", "2", *2 * ["3-4"], *4 * ["5-8"], "9-16"]
    assert [place for place, _ in names] == [0, 1, 2, 3, 3, 4, 4, 4, 4, 5]


def test_levels_of_a_wavelet_are_those_of_smooth_and_of_rough_pictures():
    flat, board = torch.ones(1, 8, 8), (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8))
    bands = wavelets((8, 8))
    assert bands.labels == ("A3", "D3", "D2", "D1")
    assert bands.energy(flat.double())[0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-14)
    assert bands.energy(board.double()[None])[0].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-14)


@pytest.mark.parametrize(
    ("shape", "wavelet", "said"),
    [
        ((7, 8), "haar", "need images whose sides can both be halved"),
        ((5,), "haar", r"values have the shape \(5,\)"),
        ((2, 2), "db4", "larger than its filter"),
        ((8, 8), "bior2.2", "must be orthogonal"),
    ],
)
def test_pictures_that_have_no_levels(shape, wavelet, said):
    with pytest.raises(ValueError, match=said):
        wavelets(shape, wavelet)


@pytest.mark.parametrize("count", [1, 2 * GROUPS + 3])
def test_what_a_run_sums_is_what_its_pictures_hold(count, generator):
    """About the mean of the data, under a process with a condition and one with a basis too."""
    from workbench.processes import DCT, EqualSNR
    from workbench.processes.affine import OUVE

    shape = torch.Size((4, 4))
    law = wb.Gaussian(
        normals(generator, *shape), torch.rand(16, generator=generator).double() + 0.1
    )
    plain = wb.Diffusion(OUVE(), law, normals(generator, *shape))
    spectral = EqualSNR(torch.full(shape, 0.7).double(), DCT(shape), wb.VP())
    for diffusion in (wb.Diffusion(wb.VP(), law), plain, wb.Diffusion(spectral, law)):
        grid = wb.Grid.uniform(diffusion.process, 3)
        sums = ["x.rings", "denoised.rings", "denoised.wavelets"]
        run = wb.sample(
            diffusion, wb.DDIM(), grid, range(count), wb.Record(["x", "denoised", *sums])
        )
        for how in ("rings", "wavelets"):
            bands = {"rings": rings, "wavelets": wavelets}[how](shape)
            for k, t in enumerate(run.t):
                # The mean of the marginal: what the mean itself becomes.
                x = run["x"][k] - diffusion.diffuse(
                    law.mean[None], t, torch.zeros(1, *shape).double()
                )
                denoised = run["denoised"][k] - law.mean
                got = run[f"denoised.{how}"].mean[k]  # (group, part, band)
                for part, value in enumerate(
                    (bands.energy(denoised), bands.covariance(denoised, x))
                ):
                    torch.testing.assert_close(
                        got[:, part].sum(0), value.mean(0), rtol=1e-9, atol=1e-12
                    )
                    first = value[::GROUPS].sum(0) / count
                    torch.testing.assert_close(got[0, part], first, rtol=1e-9, atol=1e-12)
