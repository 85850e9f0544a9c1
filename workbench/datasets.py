"""Densities to explore and the real data that ship with the dependencies.

Two-dimensional sets have variance near one, so that every process's defaults suit them. The points
of a set are the same on every machine: they come from a fixed seed, which is a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian, Mixture
from workbench.denoisers.checkpoints import data_folder
from workbench.denoisers.sphere import Sphere
from workbench.params import Param, checked
from workbench.processes.bases import DCT, Basis, power_law
from workbench.registry import View, register

Size = Annotated[int, Param("data points drawn", ge=10, le=50_000)]
#: Sides of a patch along a block of a photograph, see :func:`photographs`.
BLOCK = 3

Seed = Annotated[int, Param("seed of the data points", ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class Data:
    """A set of points with what is known of it.

    Attributes:
        name: as registered.
        points: (N, *event), float64.
        labels: (N,) int64 classes, or None.
        law: the exact law as a denoiser, where there is one.
        groups: (N,) int64, or None: points of one group are no independent draws, such as patches
            of one block of a photograph; those of different groups are taken to be.
    """

    registry_kind: ClassVar[str] = "data"

    name: str
    points: Tensor
    labels: Tensor | None = None
    law: Denoiser | None = None
    groups: Tensor | None = None

    @property
    def event_shape(self) -> torch.Size:
        return self.points.shape[1:]


def _registered(kind: str) -> Callable[[Callable], Callable]:
    """Decorate a function to be registered, its declared parameters checked at each call."""
    return lambda function: register(checked(function), kind=kind)


@_registered("data")
def ring(
    modes: Annotated[int, Param("Gaussians on the ring", ge=1, le=64)] = 8,
    radius: Annotated[float, Param("radius of the ring", gt=0, le=100)] = 1.4,
    std: Annotated[float, Param("standard deviation of a Gaussian", gt=0, le=10)] = 0.1,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """Equal Gaussians on a ring: an exact mixture, labelled by component."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.full((modes,), 1.0 / modes, dtype=torch.float64)
    law = Mixture(weights, means, torch.full((modes,), std**2, dtype=torch.float64))
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.choice(modes, size, p=weights.numpy()))
    noise = torch.from_numpy(rng.standard_normal((size, 2)))
    return Data("ring", means[labels] + law.covs[labels, None].sqrt() * noise, labels, law)


@_registered("data")
def gaussian(
    ratio: Annotated[float, Param("ratio of the principal deviations", ge=1, le=1000)] = 4.0,
    angle: Annotated[float, Param("angle of the long axis [degrees]", ge=-180, le=180)] = 30.0,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """One anisotropic Gaussian of mean variance one: every law in closed form."""
    turn = math.radians(angle)
    c, s = math.cos(turn), math.sin(turn)
    axes = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    variances = torch.tensor([ratio**2, 1.0], dtype=torch.float64) * (2 / (1 + ratio**2))
    cov = (axes * variances) @ axes.T
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.standard_normal((size, 2))) * variances.sqrt() @ axes.T
    zeros = torch.zeros(2, dtype=torch.float64)
    return Data("gaussian", points, law=Gaussian(zeros, 0.5 * (cov + cov.T)))


@_registered("data")
def field(
    exponent: Annotated[
        float, Param("the k-th mode has the variance k to the minus this", ge=0, le=10)
    ] = 2.0,
    side: Annotated[int, Param("pixels along a side", ge=2, le=16)] = 8,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    r"""Gaussian images of a power-law spectrum, low frequencies first.

    .. math:: x = \sum_k k^{-exponent/2} z_k e_k,\qquad z_k \sim N(0, 1)

    with the modes e_k of the cosine transform by rising frequency: the spectrum that the comparison
    of samplers takes, as images. Of natural images the exponent in the rank is about 1.
    """
    basis = DCT((side, side))
    order = basis.frequency.flatten().argsort(stable=True)
    modes = basis.inverse(torch.eye(side**2, dtype=torch.float64).reshape(-1, side, side))
    modes = modes.flatten(1)[order]
    variances = torch.arange(1, side**2 + 1, dtype=torch.float64) ** -exponent
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(rng.standard_normal((size, side**2))) * variances.sqrt()
    points = (drawn @ modes).reshape(size, side, side)
    zeros, cov = torch.zeros(side, side, dtype=torch.float64), (modes.T * variances) @ modes
    return Data("field", points, law=Gaussian(zeros, 0.5 * (cov + cov.T)))


@_registered("data")
def checkerboard(
    cells: Annotated[int, Param("cells along a side", ge=2, le=16)] = 4,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """Uniform on the dark cells of a board over [-1.7, 1.7]²; labelled by cell."""
    rng = np.random.default_rng(seed)
    dark = np.array([(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0])
    labels = rng.integers(len(dark), size=size)
    points = (dark[labels] + rng.random((size, 2))) * (3.4 / cells) - 1.7
    return Data("checkerboard", torch.from_numpy(points), torch.from_numpy(labels))


@_registered("data")
def moons(
    noise: Annotated[float, Param("standard deviation of the blur", ge=0, le=1)] = 0.08,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """Two interleaved half circles, blurred; labelled by moon."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    turn = np.pi * rng.random(size)
    upper = np.stack([np.cos(turn), np.sin(turn)], 1)
    lower = np.stack([1 - np.cos(turn), 0.5 - np.sin(turn)], 1)
    points = np.where(labels[:, None] == 0, upper, lower) - np.array([0.5, 0.25])
    points = 1.4 * (points + noise * rng.standard_normal((size, 2)))
    return Data("moons", torch.from_numpy(points), torch.from_numpy(labels))


@_registered("data")
def circles(
    ratio: Annotated[float, Param("radius of the inner circle over the outer", gt=0, lt=1)] = 0.45,
    noise: Annotated[float, Param("standard deviation of the blur", ge=0, le=1)] = 0.08,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """Two circles about one centre, blurred; labelled by circle."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    turn = 2 * np.pi * rng.random(size)
    radius = np.where(labels == 0, 1.8, 1.8 * ratio)[:, None]
    points = radius * np.stack([np.cos(turn), np.sin(turn)], 1)
    points = points + noise * rng.standard_normal((size, 2))
    return Data("circles", torch.from_numpy(points), torch.from_numpy(labels))


@_registered("data")
def swiss_roll(
    noise: Annotated[float, Param("standard deviation of the blur", ge=0, le=1)] = 0.05,
    segments: Annotated[int, Param("labelled stretches along the roll", ge=1, le=64)] = 16,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """A plane spiral, blurred; labelled by stretch along it."""
    rng = np.random.default_rng(seed)
    u = rng.random(size)
    turn = 1.5 * np.pi * (1 + 2 * u)
    points = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / 7.0
    points = points + noise * rng.standard_normal((size, 2))
    labels = np.minimum((u * segments).astype(np.int64), segments - 1)
    return Data("swiss_roll", torch.from_numpy(points), torch.from_numpy(labels))


@_registered("data")
def digits() -> Data:
    """Handwritten digits: 1797 images of 8 x 8 pixels in [-1, 1], labelled 0 to 9.

    Source: Alpaydin & Kaynak 1998, UCI *Optical recognition of handwritten digits*, as shipped with
    scikit-learn, CC BY 4.0.
    """
    with np.load(data_folder() / "digits.npz") as file:
        images = torch.from_numpy(file["images"].astype(np.float64)) / 8.0 - 1.0
        return Data("digits", images, torch.from_numpy(file["labels"].astype(np.int64)))


@_registered("data")
def photographs(
    side: Annotated[int, Param("pixels along a side of a patch", ge=4, le=64)] = 16,
    stride: Annotated[int, Param("pixels between neighbouring patches", ge=1, le=64)] = 8,
) -> Data:
    """Square patches of two photographs, grey in [-1, 1], labelled by photograph.

    They are ordered by column, from left to right in both photographs: the last of the set come
    from their right edges, and few of the others overlap them. Two photographs are too few groups
    to tell an error from, so a group is a block of a photograph of three sides by three, that of a
    patch's corner: errors are those of more pictures of these two photographs, not of others.

    Source: ``china`` (danielbuechele) and ``flower`` (vultilion) as shipped with scikit-learn,
    CC BY 2.0, at half their size.
    """
    with np.load(data_folder() / "photographs.npz") as file:
        pictures = np.stack([file["china"], file["flower"]]) / 127.5 - 1.0
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (side, side), (1, 2))
    windows = windows[:, ::stride, ::stride].transpose(2, 1, 0, 3, 4)  # by column, row, picture
    column, row, picture = np.indices(windows.shape[:3])
    across, down = column * stride // (BLOCK * side), row * stride // (BLOCK * side)
    groups = (picture * (across.max() + 1) + across) * (down.max() + 1) + down
    patches = torch.from_numpy(windows.reshape(-1, side, side).copy())
    labels, groups = (torch.from_numpy(v.reshape(-1).astype(np.int64)) for v in (picture, groups))
    return Data("photographs", patches, labels, groups=groups)


#: The photographs of :func:`patches`: the first two of scikit-learn, the others of scikit-image.
PICTURES = ("china", "flower", "astronaut", "camera", "chelsea", "coffee", "rocket", "motorcycle")


@_registered("data")
def patches(
    side: Annotated[int, Param("pixels along a side of a patch", ge=4, le=64)] = 32,
    each: Annotated[int, Param("patches of each photograph", ge=2, le=4096)] = 512,
    seed: Seed = 0,
) -> Data:
    """Square patches at random places of eight photographs, grey in [-1, 1], labelled by those.

    Patches of one photograph may overlap, and are alike even apart: a photograph is a group.

    Source: ``china`` (danielbuechele) and ``flower`` (vultilion) of scikit-learn, CC BY 2.0;
    ``astronaut`` (NASA), ``camera``, ``chelsea``, ``coffee``, ``rocket`` (SpaceX), which are CC0 or
    in the public domain, and the left view of ``motorcycle`` (Scharstein et al. 2014, the stereo
    data of Middlebury), as shipped with scikit-image, which must be installed.

    Raises:
        NotImplementedError: scikit-image is not installed.
    """
    rng, cut = np.random.default_rng(seed), []
    for picture in _grey_photographs():
        rows, columns = picture.shape[0] - side + 1, picture.shape[1] - side + 1
        for _ in range(each):
            row, column = rng.integers(0, rows), rng.integers(0, columns)
            cut.append(picture[row : row + side, column : column + side])
    labels = torch.arange(len(PICTURES)).repeat_interleave(each)
    return Data("patches", torch.from_numpy(np.stack(cut)), labels, groups=labels)


def _grey_photographs() -> list[np.ndarray]:
    """The photographs of :data:`PICTURES` in their own size, (rows, columns) in [-1, 1]."""
    from sklearn.datasets import load_sample_image

    try:
        from skimage import data as library
    except ImportError:
        raise NotImplementedError(
            "the data set patches is cut from photographs of scikit-image, which is not installed: "
            "pip install scikit-image; or take the data photographs, which ship."
        ) from None
    pictures = [load_sample_image(f"{name}.jpg") for name in PICTURES[:2]]
    pictures += [getattr(library, name)() for name in PICTURES[2:-1]]
    pictures.append(library.stereo_motorcycle()[0])
    grey = [p @ np.array([0.2125, 0.7154, 0.0721]) if p.ndim == 3 else p for p in pictures]
    return [p / 127.5 - 1.0 for p in grey]


@_registered("data")
def sphere(
    dimension: Annotated[int, Param("dimension of the sphere", ge=1, le=63)] = 2,
    ambient: Annotated[int, Param("dimension of the space around it", ge=2, le=64)] = 5,
    radius: Annotated[float, Param("radius of the sphere", gt=0, le=100)] = 2.0,
    noise: Annotated[float, Param("standard deviation of the blur", ge=0, le=1)] = 0.0,
    size: Size = 1000,
    seed: Seed = 0,
) -> Data:
    """Uniform on a sphere that lies askew in a space of more dimensions; perhaps blurred."""
    if dimension >= ambient:
        raise ValueError(
            f"dimension was {dimension}; a sphere of {dimension} dimensions needs a space of at "
            f"least {dimension + 1}, and ambient was {ambient}."
        )
    # The same subspace for every seed: another draw of points is of the same law.
    askew = np.linalg.qr(np.random.default_rng(0).standard_normal((ambient, dimension + 1)))[0]
    rng = np.random.default_rng(seed)
    around = rng.standard_normal((size, dimension + 1))
    around *= radius / np.linalg.norm(around, axis=1, keepdims=True)
    found = around @ askew.T + noise * rng.standard_normal((size, ambient))
    law = Sphere(torch.from_numpy(np.ascontiguousarray(askew)), radius, noise)
    return Data("sphere", torch.from_numpy(found), law=law)


@_registered("data")
def points(file: Annotated[Path, Param("an .npy array of data points (N, *event)")]) -> Data:
    """Data points of a file: a NumPy array (N, *event) of numbers, a sample in each row."""
    return Data("points", _array(file, 2))


@_registered("condition")
def mean(data: Data) -> Tensor:
    """The mean of the data."""
    return data.points.mean(0)


@_registered("condition")
def point(data: Data, index: Annotated[int, Param("its place in the set", ge=0)] = 0) -> Tensor:
    """One of the data points."""
    if index >= len(data.points):
        raise ValueError(f"index was {index}; {data.name} has {len(data.points)} points.")
    return data.points[index]


@_registered("condition")
def every_point(data: Data) -> Tensor:
    """A data point for each sample: that of place seed modulo their number."""
    return data.points


@_registered("condition")
def constant(data: Data, value: Annotated[float, Param("of every coordinate [x]")] = 0.0) -> Tensor:
    """The same number in every coordinate."""
    return torch.full(tuple(data.event_shape), value, dtype=torch.float64)


@_registered("condition")
def array(
    data: Data, file: Annotated[Path, Param("an .npy array in the shape of one sample")]
) -> Tensor:
    """The array of a file, in the shape of one sample."""
    return _array(file, 0)


Spectrum = Callable[[Basis], Tensor]


@_registered("spectrum")
def variances(
    data: Data,
    floor: Annotated[
        float, Param("least variance of a mode, as a share of their mean", gt=0, le=1)
    ] = 1e-4,
) -> Spectrum:
    """The variance of the data in each mode of the basis."""

    def of(basis: Basis) -> Tensor:
        found = basis.forward(data.points - data.points.mean(0)).square().mean(0)
        return found.clamp_min(floor * found.mean())

    return of


@_registered("spectrum")
def power(
    data: Data,
    slope: Annotated[float, Param("exponent of the fall with frequency; 0 is white")] = 2.0,
    variance: Annotated[float, Param("mean variance of a coordinate [x²]", gt=0)] = 1.0,
) -> Spectrum:
    """Variances that fall as a power of the frequency."""
    return lambda basis: power_law(basis, slope, variance)


@_registered("spectrum")
def modes(
    data: Data, file: Annotated[Path, Param("an .npy array of variances, one per mode")]
) -> Spectrum:
    """The variances of a file, one per mode, in the shape of one sample."""
    found = _array(file, 0)
    return lambda basis: found


def _array(file: Path, least: int) -> Tensor:
    """An .npy array of finite numbers with at least ``least`` dimensions, float64."""
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a NumPy array (.npy): {error}.") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or not values.size:
        raise ValueError(f"{file} must hold one array of real numbers, not empty.")
    if values.ndim < least or not np.isfinite(values).all():
        raise ValueError(
            f"{file} has the shape {values.shape}; it must be (N, *event), all numbers finite."
        )
    return torch.from_numpy(values.astype(np.float64))


#: Every data set by name.
DATASETS = View("data")
