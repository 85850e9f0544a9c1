"""Local denoisers: published check values, an independent sum, and the laws of any denoiser."""

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb


def digits() -> torch.Tensor:
    return wb.DATASETS["digits"]().points


#: D[2, 3] and D[4, 4] of one noised digit, computed apart from this package.
KNOWN = {
    ("le", 3): (0.50720672, 0.49364497),
    ("le", 5): (0.63317022, 0.53464856),
    ("els", 3): (0.50349606, 0.65812295),
    ("bbels", 3): (0.50349606, 0.65812295),
    ("bbels", 5): (0.63252452, 0.94405674),
    ("ls", 3): (0.14634749, 0.82486700),
    ("pca", 3): (0.22157558, 0.70288818),
}


@pytest.mark.parametrize(("kind", "size"), KNOWN)
def test_known_values(kind, size):
    images = digits()
    noise = np.random.default_rng(0).standard_normal((1, 8, 8))
    y = images[1500:1501] + 0.5 * torch.from_numpy(noise)
    found = wb.Local(images[:1000], size, kind, threshold=0.02).denoise(y, 1.0, 0.5)[0]
    np.testing.assert_allclose([found[2, 3], found[4, 4]], KNOWN[kind, size], atol=1e-8)


def brute(images, y, rho, kind: str, k: int):
    """By loops over every pixel and every source, in numpy, of images (N, c, h, w)."""
    _, c, h, w = images.shape
    r = k // 2

    def patch(image, i, j):
        rows, columns = np.arange(i - r, i + r + 1), np.arange(j - r, j + r + 1)
        if kind in ("le", "els"):
            return image[:, rows % h][:, :, columns % w]
        out = np.zeros((c, k, k))
        for a, row in enumerate(rows):
            for b, column in enumerate(columns):
                if 0 <= row < h and 0 <= column < w:
                    out[:, a, b] = image[:, row, column]
        return out

    def side(i, length):
        return ("low", i) if i < r else ("high", length - i) if i >= length - r else "inside"

    def sources(i, j):
        for a in range(h):
            for b in range(w):
                inside = side(a, h) == side(b, w) == "inside"
                same = side(a, h) == side(i, h) and side(b, w) == side(j, w)
                if {"le": True, "els": inside, "bbels": same, "ls": (a, b) == (i, j)}[kind]:
                    yield from ((image, a, b) for image in images)

    out = np.empty_like(y)
    for i in range(h):
        for j in range(w):
            query, chosen = patch(y, i, j), list(sources(i, j))
            apart = [((query - patch(image, a, b)) ** 2).sum() for image, a, b in chosen]
            weight = np.exp(-(np.array(apart) - min(apart)) / (2 * rho**2))
            answers = np.array([image[:, a, b] for image, a, b in chosen])
            out[:, i, j] = weight @ answers / weight.sum()
    return out


@pytest.mark.parametrize("kind", ["le", "els", "bbels", "ls"])
def test_against_loops_over_colour_images_with_unequal_sides(kind, generator):
    images, y = normals(generator, 3, 2, 5, 6), normals(generator, 1, 2, 5, 6)
    found = wb.Local(images, 3, kind).denoise(y, 1.0, 0.6)[0]
    np.testing.assert_allclose(found, brute(images.numpy(), y[0].numpy(), 0.6, kind, 3), atol=1e-12)


def test_crops_of_the_whole_image_are_the_finite_set(generator):
    """And of one pixel the posterior means of each pixel alone, which LS gives as well."""
    images, x = normals(generator, 7, 4, 4), normals(generator, 3, 4, 4)
    whole = wb.Empirical(images).denoise(x, 0.7, 0.5)
    torch.testing.assert_close(wb.Local(images, 4, "square").denoise(x, 0.7, 0.5), whole)
    one = wb.Local(images, 1, "square").denoise(x, 0.7, 0.5)
    torch.testing.assert_close(one, wb.Local(images, 1, "ls").denoise(x, 0.7, 0.5))
    everything = wb.Local(images, kind="pca", threshold=0.0)
    torch.testing.assert_close(everything.denoise(x, 0.7, 0.5), whole)


@pytest.mark.parametrize("kind", ["le", "els", "bbels", "ls", "square", "pca"])
def test_scales_batches_and_pure_noise(kind, generator, monkeypatch):
    law = wb.Local(normals(generator, 6, 4, 4), 3, kind, 0.2)
    x = normals(generator, 4, 4, 4)
    whole = law.denoise(x, 0.8, 0.4)
    torch.testing.assert_close(law.denoise(3 * x, 2.4, 1.2), whole)
    torch.testing.assert_close(law.denoise(x[1:2], 0.8, 0.4), whole[1:2])
    sigma = torch.tensor([0.4, 0.1, 1.0, 7.0], dtype=torch.float64)
    each = [law.denoise(x[i : i + 1], 0.8, s) for i, s in enumerate(sigma.tolist())]
    torch.testing.assert_close(
        law.denoise(x, torch.full((4,), 0.8, dtype=torch.float64), sigma), torch.cat(each)
    )
    flat = law.denoise(x, 0.0, 1.0)  # nothing is known: a mean of the sources
    assert (flat - flat[:1]).abs().max() < 1e-12
    import workbench.denoisers.local as module

    monkeypatch.setattr(module, "PIECE", 4096)
    torch.testing.assert_close(law.denoise(x, 0.8, 0.4), whole)
    h = 1e-5  # derivatives are the base's, by differentiation
    v = normals(generator, 4, 4, 4)
    slope = (law.denoise(x + h * v, 0.8, 0.4) - law.denoise(x - h * v, 0.8, 0.4)) / (2 * h)
    torch.testing.assert_close(law.at(0.8, 0.4).jvp(x, v), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("points", "size", "kind", "match"),
    [
        ((5, 2), 3, "le", r"images has shape \(5, 2\); a local denoiser is made of images"),
        ((5, 4, 4), 5, "le", r"size was 5; for images of 4 x 4 it must be 1 to 4"),
        ((5, 4, 4), 2, "ls", r"size was 2; a patch about a pixel has an odd side"),
        ((5, 4, 4), 3, "ELS", r"kind was 'ELS'; it must be one of le, els"),
    ],
)
def test_what_is_no_local_denoiser(points, size, kind, match):
    with pytest.raises(ValueError, match=match):
        wb.Local(torch.zeros(points), size, kind)
