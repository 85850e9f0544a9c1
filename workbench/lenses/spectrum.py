r"""Spectrum: the energy of what a run makes in bands of frequency, beside that of its data.

Of crops a border leaks into all frequencies, so their slopes level off; under a window they come
out steeper by a bias that is said. Sources: van der Schaaf & van Hateren 1996 (spectra of natural
images); Yang et al. 2022, arXiv:2211.17106 (what a slim network lacks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.lenses.base import Lens, OnStep, Subject, estimate
from workbench.lenses.errors import central, jackknife, mean_error
from workbench.lenses.frequency import NOTHING, Kind, bands_by, modes_of, ratio, weights
from workbench.params import Param
from workbench.sampling import bands as kinds
from workbench.sampling.bands import Bands

#: The largest wavelength, in cycles per shorter side, from which a slope is fitted.
FIRST_RING = {"none": 2, "hann": 3}

#: Below which :func:`seam` is that of periodic pictures.
PERIODIC = 2.0


def windowed(images: Tensor) -> Tensor:
    """Images (n, *event) under a Hann window of mean square 1, about their weighted means.

    The window vanishes one pixel outside of the picture, so that all pixels count.
    """
    rows, columns = images.shape[-2:]
    window = torch.outer(
        *(torch.hann_window(n + 2, False, dtype=images.dtype)[1:-1] for n in (rows, columns))
    )
    window = (window / window.square().mean().sqrt()).to(images.device)
    share = window.square() / window.square().sum()
    return window * (images - (images * share).sum((-2, -1), keepdim=True))


def seam(images: Tensor) -> float:
    """Mean square jump across the borders of images (n, ..., rows, columns), one opposite to the
    other, over that between neighbours: about 1 of periodic pictures, far more of crops."""
    across = inside = 0.0
    for dim in (-2, -1):
        neighbours = images.diff(dim=dim).square().mean().item()
        border = images.select(dim, 0) - images.select(dim, -1)
        across, inside = across + border.square().mean().item(), inside + neighbours
    return across / inside if inside > 0 else math.nan


def slope(frequency: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Slope of log density over log frequency, by least squares; (..., ring) to (...)."""
    x = np.log(frequency) - np.log(frequency).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.log(density) * x).sum(-1) / (x * x).sum()


def slope_of(images: Tensor, clusters=None, window: str = "none") -> tuple[float, float, float]:
    """Slope of the spectrum of images (n, ..., rows, columns), and its 95 % bootstrap interval.

    Args:
        clusters: of each image the picture that it was cut from, (n,): crops of one picture are
            alike, and drawing them one by one gives an interval ten times too narrow. None: each
            image is on its own.
        window: "none", or "hann" for crops of steep spectra.

    Raises:
        ValueError: images too small for two rings, another window, clusters of another length.
    """
    images = torch.as_tensor(images, dtype=torch.float64)
    if window not in FIRST_RING or images.ndim < 3:
        raise ValueError(
            f"window was {window!r} and images have the shape {tuple(images.shape)}; give 'none' "
            "or 'hann' and images (n, rows, columns)."
        )
    which = np.arange(len(images)) if clusters is None else np.asarray(clusters)
    if which.shape != (len(images),):
        raise ValueError(
            f"clusters have the shape {which.shape}; there must be one for each of the "
            f"{len(images)} images."
        )
    bands, labels, counts, inside = _fitted(images.shape[1:], window)
    if inside.sum() < 2:
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels have no two rings of "
            f"{FIRST_RING[window]} and more cycles to fit a slope through; take larger ones."
        )
    seen = windowed(images) if window == "hann" else images - images.mean((-2, -1), keepdim=True)
    density = bands.energy(seen).numpy()[:, inside] / counts[inside]
    names, place = np.unique(which, return_inverse=True)
    sums = np.zeros((len(names), inside.sum()))
    np.add.at(sums, place, density)
    value = float(slope(labels[inside], sums.sum(0)))
    if len(names) < 2:
        return value, -math.inf, math.inf
    even = np.full(len(names), 1 / len(names))
    counts_drawn = np.random.default_rng(0).multinomial(len(names), even, size=400)
    return value, *central(slope(labels[inside], counts_drawn @ sums), 0.05).tolist()


def _fitted(event: torch.Size, window: str) -> tuple[Bands, np.ndarray, np.ndarray, np.ndarray]:
    """Rings, their cycles, their counts, and through which of them a slope is fitted."""
    bands = kinds.rings(event)
    labels = np.array(bands.labels)
    inside = (labels >= FIRST_RING[window]) & (labels <= min(event[-2:]) // 2)
    return bands, labels, bands.counts.numpy(), inside


@dataclass(frozen=True)
class Spectrum(Lens):
    """Which spectrum have the pictures that come out, and what do they lack of the data's?

    ``density`` is the mean energy of a mode of each band about the mean of the data (white noise of
    variance v has v in all of them: the spectrum whose slope is told); ``energy`` that of the whole
    band, which adds up to the mean square. ``deficit`` is the share of the data's energy that is
    missing; its null band is what as many samples of the data themselves would show. The slope is
    fitted over rings from 2 cycles (3 under a window) to half of the sampling rate.

    Without a window the slope of crops of steep spectra levels off near -2.8, since a crop's border
    leaks into all frequencies; under the Hann window that of spectra from -2 to -3.5 comes out
    steeper by 0.04 to 0.21. Of whole, periodic pictures no window is right, and a window is wrong.
    Errors are over samples, which are independent; crops of a few photographs are not, see
    :func:`slope_of`.
    """

    bands: Annotated[
        Kind, Param("rings of frequency by octaves or one by one, or levels of a wavelet")
    ] = "rings"
    window: Annotated[
        Literal["none", "hann"], Param("for crops of larger pictures; with rings alone")
    ] = "none"
    wavelet: Annotated[
        Literal["haar", "db2", "db4"], Param("orthogonal wavelet, of bands=wavelets")
    ] = "haar"

    reads = ("final",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != "none" and self.bands == "wavelets":
            raise ValueError(
                "Spectrum: a window has no meaning for wavelets, which are local; use window=none."
            )

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        final = subject.field("final").cpu()
        event = subject.diffusion.event_shape
        bands, names, inside = self._bands(event)
        counts = bands.counts.numpy() @ inside
        energy = self.energies(final, subject)  # (sample, band)
        target, _ = self._target(subject)
        size, mean, error = math.prod(event), energy.mean(0), mean_error(energy)
        density, spread = (value * size / counts for value in (mean, error))
        each = ("density", "band", density, "mean energy of a mode", "x²", spread)
        variables = estimate(*each, scale="log")
        each = ("energy", "band", mean, "energy of the band", "x²", error)
        variables |= estimate(*each, scale="log")
        if target is not None:
            about, value = "mean energy of a mode of the data", target * size / counts
            variables |= estimate("density_data", "band", value, about, "x²", scale="log")
            about = "share of the data's energy that is missing"
            value, error = _lacking(mean, target), ratio(error, target)
            variables |= estimate("deficit", "band", value, about, error=error)
        if len(event) > 1 and self.bands != "wavelets":
            energy = self._energy(kinds.rings(event), final, subject)
            variables |= self._slope(energy, event)
        square = self._prepared(final, subject).square().mean().item()
        coords = {"band": names, "modes": ("band", counts)}
        attrs = {}
        if len(event) > 1:
            attrs = {"seam": seam(final.double()), "rows": event[-2], "columns": event[-1]}
        attrs |= {"samples": len(final), "parseval": abs(mean.sum() - square) / (square or 1.0)}
        return xr.Dataset(variables, coords, {**attrs, "window": self.window, "bands": self.bands})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        law = self._law_out(subject)
        if law is None or self.window != "none":
            return None
        event = subject.diffusion.event_shape
        bands, _, inside = self._bands(event)
        counts = bands.counts.numpy() @ inside
        variances, w = weights(law, bands)
        off = (law.mean - subject.denoiser.mean)[None].cpu()
        energy = ((w @ variances) + bands.energy(off)[0]).numpy() @ inside
        found = {"energy": ("band", energy), "density": ("band", energy * law.dim / counts)}
        target, _ = self._target(subject)
        return xr.Dataset(found | {"deficit": ("band", _lacking(energy, target))})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        target, spread = self._target(subject)
        if target is None:
            return None
        z = float(torch.special.ndtri(torch.tensor(1 - level / 2, dtype=torch.float64)))
        half = z * ratio(spread, target) / math.sqrt(subject.run.sizes["sample"])
        return xr.Dataset({"deficit": (("band", "bound"), np.stack([-half, half], -1))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said = []
        if "deficit" in dataset:
            value, band = dataset["deficit"].values, dataset["deficit_null"].values
            error = dataset["deficit_se"].values
            sure = np.abs(value) > 2 * np.hypot(error, (band[:, 1] - band[:, 0]) / 4)
            names = dataset["band"].values
            lacks = [f"{n}: {v:.0%}" for n, v, s in zip(names, value, sure, strict=True) if s]
            text = "missing (minus: too much) of the data's energy"
            said.append(
                f"By band, {text}: {', '.join(lacks[:8])}."
                if lacks
                else "No band lacks or exceeds the data's energy by more than the sampling error."
            )
        if "slope" in dataset:
            value, se = float(dataset["slope"]), float(dataset["slope_se"])
            if np.isfinite(value):
                error = f" ± {2 * se:.2f}" if np.isfinite(se) else ""
                said.append(f"The spectrum falls with a slope of {value:.2f}{error}.")
                said += self._said_of_window(dataset.attrs.get("seam", np.nan))
            else:
                said.append("A band has no energy at all: the spectrum has no slope.")
        elif self.bands != "wavelets" and "rows" in dataset.attrs:
            said.append(
                f"Pictures of {dataset.attrs['rows']} x {dataset.attrs['columns']} pixels have no "
                f"two rings from {FIRST_RING[self.window]} cycles to half of the sampling rate: "
                "there is no slope."
            )
        if dataset.attrs["samples"] < 2:
            said.append("One sample says nothing of the spread: there are no errors.")
        return said

    def _said_of_window(self, jump: float) -> list[str]:
        periodic = jump < PERIODIC
        if self.window == "hann" and periodic:
            return [
                "The pictures go on across their borders, as periodic ones do: there the window is "
                "wrong and makes the slope steeper; use window=none."
            ]
        if self.window == "hann":
            return ["Under the window slopes from -2 to -3.5 come out steeper by 0.04 to 0.21."]
        if not periodic and np.isfinite(jump):
            return [
                f"Across their borders the pictures jump {jump:.2g} times as far (mean square) as "
                "between neighbours, as crops do: a slope steeper than -2.5 is flattened by that; "
                "window=hann shows it."
            ]
        return []

    # -- numbers ---------------------------------------------------------------------------------

    def energies(self, images: Tensor, subject: Subject) -> np.ndarray:
        """Energies of images in the bands, (n, bands)."""
        bands, _, inside = self._bands(subject.diffusion.event_shape)
        return self._energy(bands, images, subject) @ inside

    def _energy(self, bands: Bands, images: Tensor, subject: Subject) -> np.ndarray:
        """Energies (n, bands), of which those that are rounding of the mean are none."""
        energy = bands.energy(self._prepared(images, subject)).numpy()
        least = NOTHING * subject.denoiser.mean.double().square().mean().item()
        return np.where(energy > least, energy, 0.0)

    def _prepared(self, images: Tensor, subject: Subject) -> Tensor:
        if self.window == "hann":
            if images.ndim < 3:
                raise NotImplementedError("a window is for images, and these values are none.")
            return windowed(images)
        return images - subject.denoiser.mean.cpu().to(images)

    def _bands(self, event: torch.Size) -> tuple[Bands, list[str], np.ndarray]:
        try:
            return bands_by(self.bands, event, self.wavelet)
        except ValueError as error:
            raise NotImplementedError(str(error)) from None

    def _target(self, subject: Subject) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Energies of the data, (band,), and their deviation from picture to picture."""
        bands, _, inside = self._bands(subject.diffusion.event_shape)
        if isinstance(subject.denoiser, Gaussian) and self.window == "none":
            variances, w = weights(subject.denoiser, bands)
            root = torch.from_numpy(inside.T) @ w * variances
            spread = self._spread_of_law(subject.denoiser, bands, inside)
            return root.sum(1).numpy(), spread
        if subject.data is None:
            return None, None
        energy = self.energies(subject.data.points.to(torch.float64).cpu(), subject)
        return energy.mean(0), energy.std(0)

    def _spread_of_law(self, law: Gaussian, bands: Bands, inside: np.ndarray) -> np.ndarray:
        r"""Deviation of a Gaussian picture's energies: :math:`2\,\mathrm{tr}(W_b C W_b C)`."""
        variances, turn = modes_of(law)
        root = (turn * variances.sqrt()).T.cpu()
        found = bands.forward(root.reshape(-1, *law.event_shape))  # (mode, coordinate)
        spreads = []
        for column in (bands.share.numpy() @ inside).T:
            share = torch.from_numpy(column)
            half = found * share.sqrt().to(found)
            gram = (half @ half.conj().T).real if half.is_complex() else half @ half.T
            spreads.append(math.sqrt(2) * gram.norm().item() / law.dim)
        return np.array(spreads)

    def _law_out(self, subject: Subject) -> Gaussian | None:
        """The exact law of what comes out, on Gaussian data with a linear sampler."""
        from workbench.exact.law import law

        if subject.sampler is None or not isinstance(subject.denoiser, Gaussian):
            return None
        try:
            return law(subject.diffusion, subject.sampler, subject.grid)
        except (NotImplementedError, TypeError, ValueError):
            return None

    def _slope(self, energy: np.ndarray, event: torch.Size) -> dict:
        """Slope of the density over the rings up to half of the sampling rate, with its error."""
        _, labels, counts, inside = _fitted(event, self.window)
        if inside.sum() < 2:
            return {}
        density = energy[:, inside] / counts[inside]
        slopes = lambda some: slope(labels[inside], some.mean(0))  # noqa: E731
        value, error = slopes(density), jackknife(slopes, density)
        about = "slope of log density over log frequency"
        return estimate("slope", (), float(value), about, error=float(error))


def _lacking(energy: np.ndarray, target: np.ndarray) -> np.ndarray:
    return 1 - ratio(energy, target)
