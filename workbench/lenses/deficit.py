r"""What a small network loses of the high frequencies: the energy that it recovers, band by band.

Of pictures that a denoiser D has not been trained on, noised to :math:`y = x_0 + \rho\epsilon`, it
recovers of the energy of band b the share

.. math:: r_b = 1 - \frac{E\lVert P_b(D(y) - x_0)\rVert^2}{E\lVert P_b(x_0 - m)\rVert^2},\qquad
    \text{Gaussian data: } r_b = 1 - \frac{\sum_j w_{bj}\lambda_j\rho^2/(\lambda_j + \rho^2)}
                                         {\sum_j w_{bj}\lambda_j} .

No denoiser recovers more than the posterior mean, and no linear one more than the Wiener filter:
a difference between two denoisers of the same noised pictures is one of skill. Taken picture by
picture it has a far smaller error than the energies of generated samples have. Pictures that are
patches of one photograph are no independent draws: errors are a jackknife over groups of them, the
photographs, or blocks of a photograph where the data have but a few.

Source: Yang et al. 2022, *Diffusion Probabilistic Model Made Slim*, arXiv:2211.17106.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian, Neural, checkpoints
from workbench.lenses.base import BOUNDS, Lens, OnStep, Subject, estimate, remembered, stepped
from workbench.lenses.fit import data_of
from workbench.lenses.frequency import NOTHING, bands_by, weights
from workbench.lenses.output import draws
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param

#: The linear reference: posterior mean of the Gaussian with the mean and covariance of the data.
WIENER = "Wiener filter"

#: What a denoiser that is no network is called.
ITSELF = "the denoiser"


class _Errors(NamedTuple):
    """Of each picture: the energy of each band, and what each model gets wrong of it.

    Attributes:
        energy: (picture, band) [x²].
        wrong: by model, likewise.
        sizes: parameters of each model; 0 of one that is no network.
        groups: of each picture, (picture,); those of different groups are independent.
    """

    energy: np.ndarray
    wrong: dict[str, np.ndarray]
    sizes: dict[str, int]
    groups: np.ndarray


@dataclass(frozen=True)
class Deficit(Lens):
    """What does a network miss of each band of frequency that a larger one recovers?

    ``recovered``: share of a band's energy that is recovered of unseen pictures noised to ``rho``;
    of the study's network, of those that ship for the same training pictures, and of the Wiener
    filter. ``deficit``: how much less than the network of most parameters; where there is no larger
    one, than the Wiener filter. ``given_back``: how much more than a network of equally many
    parameters that another objective has trained. Errors are of differences pair by pair, by a
    jackknife over the groups of pictures that the data tell to be independent (``groups`` of
    :class:`workbench.datasets.Data`), or over pictures where they tell of none; 95 % intervals take
    the quantile of Student's t for so many groups, and are unbounded for one. Of patches of two
    photographs, whose groups are blocks, they are those of more blocks of these two, not of other
    photographs.
    """

    rho: Annotated[float, Param("noise level sigma/alpha [x]", gt=0, le=1e4)] = 0.1
    pictures: Annotated[int, Param("unseen pictures that are noised", ge=2, le=20_000)] = 300
    repeats: Annotated[int, Param("noises of each picture", ge=1, le=100)] = 4

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 256 * self.pictures * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        found = self._errors(subject, on_step)
        energy, wrong, sizes = found.energy, found.wrong, found.sizes
        largest = max(sizes, key=sizes.get)
        reference = largest if sizes[largest] > min(sizes.values()) else WIENER
        share = partial(_share, whole=energy, groups=found.groups)
        shares = {name: share(energy - one) for name, one in wrong.items()}
        lacks = {name: share(one - wrong[reference]) for name, one in wrong.items()}
        about = {
            "recovered": "share of a band's energy that is recovered",
            "deficit": f"share of a band's energy that {reference} recovers, and this does not",
        }
        variables = {}
        for key, of in (("recovered", shares), ("deficit", lacks)):
            value, error = (np.stack([one[i] for one in of.values()]) for i in (0, 1))
            variables |= estimate(key, ("model", "band"), value, about[key], error=error)
            variables[f"{key}_interval"] = _interval("model", value, error, found.groups)
        _, names, _ = bands_by("octaves", subject.denoiser.event_shape)
        coords = {
            "end": list(BOUNDS),
            "model": list(wrong),
            "parameters": ("model", [sizes.get(name, 0) for name in wrong]),
            "band": names,
        }
        pairs = self._pairs(found, reference)
        if pairs:
            given = [share(wrong[plain] - wrong[other]) for plain, other in pairs]
            value, errors = (np.stack([one[i] for one in given]) for i in (0, 1))
            text = "share that another objective gives back"
            variables |= estimate("given_back", ("pair", "band"), value, text, error=errors)
            variables["given_back_interval"] = _interval("pair", value, errors, found.groups)
            coords["pair"] = [f"{other} over {plain}" for plain, other in pairs]
        attrs = {"reference": reference, "rho": self.rho, "pictures": len(energy)}
        attrs["groups"] = len(np.unique(found.groups))
        return xr.Dataset(variables, coords, attrs)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Of Gaussian data, whose posterior mean is the Wiener filter."""
        law = subject.denoiser
        if not isinstance(law, Gaussian):
            return None
        bands, _, inside = bands_by("octaves", law.event_shape)
        variances, w = weights(law, bands)
        w = torch.from_numpy(inside.T) @ w
        left = variances * self.rho**2 / (variances + self.rho**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 1 - (w @ left).numpy() / (w @ variances).numpy()
        both = np.stack([share, share])
        dims = ("model", "band")
        return xr.Dataset({"recovered": (dims, both), "deficit": (dims, np.zeros_like(both))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        reference, bands = dataset.attrs["reference"], dataset["band"].values
        pictures, groups = dataset.attrs["pictures"], dataset.attrs["groups"]
        where = f"Of {pictures} unseen pictures at ρ = {dataset.attrs['rho']:.2g}"
        said = []
        for name in dataset["model"].values:
            one = dataset.sel(model=name)
            if name == reference or (name == WIENER and reference != WIENER):
                continue
            value, (low, high) = one["deficit"].values, one["deficit_interval"].values.T
            told = [
                f"{band}: {_told(v, a, b)}"
                for band, v, a, b in zip(bands, value, low, high, strict=True)
                if a > 0
            ]
            size = int(one["parameters"])
            who = f"{name} ({size} parameters)" if size else name
            text = f"{where} {who} recovers less than {reference}, by band, {', '.join(told)}"
            highest = _told(value[-1], low[-1], high[-1])
            text += "." if low[-1] > 0 else f"; of the highest {highest}, within the error."
            if not told:
                more = high[-1] < 0
                if more:
                    highest = _told(-value[-1], -high[-1], -low[-1])
                text = (
                    f"{where} {who} recovers no less than {reference}, beyond the error; of the "
                    f"highest band {highest} {'more' if more else 'less'}."
                )
            said.append(text)
        for pair in dataset["pair"].values if "pair" in dataset.coords else ():
            one = dataset.sel(pair=pair)
            value, (low, high) = (one[f"given_back{end}"].values[-1] for end in ("", "_interval"))
            sure = "" if low > 0 or high < 0 else ", which is within the error"
            said.append(
                f"Of the highest band {pair}, of equal size, gives back "
                f"{_told(value, low, high)}{sure}."
            )
        if groups < pictures:
            said.append(
                f"The pictures are of {groups} groups, such as blocks of a photograph; intervals "
                "(95 %) are over the groups, since pictures of one are alike."
            )
        if groups < 2:
            said.append("One group says nothing of the spread: the intervals are unbounded.")
        return said

    # -- numbers ---------------------------------------------------------------------------------

    @remembered
    def _errors(self, subject: Subject, on_step: OnStep | None = None) -> _Errors:
        models, clean, law, groups = self._looked_at(subject)
        bands, _, inside = bands_by("octaves", subject.denoiser.event_shape)
        mean = law.mean.double().cpu()
        energy = bands.energy(clean - mean).numpy() @ inside
        if not energy.mean(0).sum() > NOTHING * float(clean.square().mean()):
            raise NotImplementedError("all pictures are their mean: there is no energy to recover.")
        wrong = {name: np.zeros_like(energy) for name in (WIENER, *models)}
        generator = torch.Generator().manual_seed(0)
        for _ in stepped(range(self.repeats), on_step):
            noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
            noised = clean + self.rho * noise
            for name, model in {WIENER: law, **models}.items():
                denoised = model.denoise(noised.to(model.device, model.dtype), 1.0, self.rho)
                off = denoised.double().cpu() - clean
                wrong[name] += bands.energy(off).numpy() @ inside / self.repeats
        sizes = {name: _size(model) for name, model in models.items()}
        return _Errors(energy, wrong, sizes, groups)

    def _looked_at(
        self, subject: Subject
    ) -> tuple[dict[str, Denoiser], Tensor, Gaussian, np.ndarray]:
        """Denoisers by name, pictures new to them, the Gaussian of those that are not, and groups
        of the new ones."""
        own = subject.denoiser
        card = getattr(own, "card", None)
        if card and "data" in card and "settings" in card:
            seen, unseen = data_of(card, subject.data)
            if unseen is None:
                raise NotImplementedError(
                    f"the network was trained on all pictures of {seen.name}; what it recovers is "
                    "measured of pictures that it has not seen. Train it with some held out."
                )
            law = Gaussian.fit(seen.points.double().cpu())
            size = len(unseen.points)
            places = torch.linspace(0, size - 1, min(self.pictures, size), dtype=torch.float64)
            places = places.round().long()  # as far apart as possible
            clean = unseen.points[places].double().cpu()
            groups = places if unseen.groups is None else unseen.groups[places]
            return _networks(own, card), clean, law, groups.numpy()
        clean = draws(own, self.pictures, torch.Generator().manual_seed(1))
        if clean is None or isinstance(own, Neural):
            raise NotImplementedError(
                f"{own!r} does not say what data it is of; take a network of workbench train, or a "
                "denoiser that is made of its data."
            )
        law = matched_gaussian(own).to(torch.float64, "cpu")
        return {ITSELF: own}, clean.cpu(), law, np.arange(len(clean))

    def _pairs(self, found: _Errors, reference: str) -> list[tuple[str, str]]:
        """Networks of equal size, the one of the plain name first."""
        names = sorted(
            (name for name in found.sizes if found.sizes[name] and name != reference), key=len
        )
        return [
            (plain, other)
            for i, plain in enumerate(names)
            for other in names[i + 1 :]
            if found.sizes[plain] == found.sizes[other]
        ]


def _networks(own: Neural, card: dict) -> dict[str, Denoiser]:
    """A network, and those that ship and were trained on the same part of the same data."""
    found, name = {}, "this network"
    for other in checkpoints.shipped():
        path = checkpoints.shipped_folder() / f"{other}.safetensors"
        _, beside = checkpoints.read(path)
        if _part(beside) != _part(card):
            continue
        if beside == card or beside.get("sha256", "") == card.get("sha256"):
            name = other
        else:
            found[other] = Neural.load(path)
    return {name: own, **found}


def _part(card: dict) -> tuple:
    """Which pictures a network was trained on, and which of them it has not seen."""
    settings = card["settings"]
    parts = (settings.get(key, 0) for key in ("held_out", "most", "skip", "seed"))
    return (card["data"]["sha256"], settings.get("split", "random"), *parts)


def _size(model: Denoiser) -> int:
    module = getattr(model, "module", None)
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _share(
    part: np.ndarray, whole: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of means over pictures (picture, band), and its standard error by the jackknife over
    the groups of pictures; nan for one group.

    Of few groups the bootstrap's is too small, as those that weigh most draw the ratio to
    themselves (Miller 1974, *The jackknife, a review*, Biometrika 61).
    """
    names, which = np.unique(groups, return_inverse=True)
    inside = (which == np.arange(len(names))[:, None]).astype(float)
    parts, wholes = inside @ part, inside @ whole
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(wholes.sum(0) > 0, parts.sum(0) / wholes.sum(0), math.nan)
        if len(names) < 2:
            return ratio, np.full(ratio.shape, math.nan)
        without = (parts.sum(0) - parts) / (wholes.sum(0) - wholes)
        return ratio, math.sqrt(len(names) - 1) * without.std(0)


def _told(value: float, low: float, high: float) -> str:
    """A share with its interval, to a hundredth of a per cent, or to a digit if that is nothing."""
    share = lambda v: f"{v:.2%}" if not 0 < abs(v) < 5e-5 else f"{100 * v:.1g}%"  # noqa: E731
    return f"{share(value)} [{share(low)}, {share(high)}]"


def _interval(dim: str, value: np.ndarray, error: np.ndarray, groups: np.ndarray) -> tuple:
    """95 % intervals (dim, band, end) by Student's t; unbounded where there is no error."""
    from scipy.special import stdtrit

    freedom = len(np.unique(groups)) - 1
    reach = stdtrit(freedom, 0.975) * error if freedom else np.full(value.shape, math.inf)
    text = {"long_name": "95 % interval", "units": "1"}
    return (dim, "band", "end"), np.stack([value - reach, value + reach], -1), text
