r"""A model against the truth at each noise level: the least loss possible, and what it follows.

The loss of a denoiser has a floor that is not zero, because noised data are ambiguous:

.. math:: J^*(\rho) = \frac1d E|x_0 - D^*(x_0 + \rho\epsilon)|^2
          = \frac{\rho^2}{d} E\operatorname{tr}\frac{\partial D^*}{\partial y},\qquad
          J - J^* = \frac1d E|D - D^*|^2,\qquad
          \text{Gaussian: } J^* = \frac1d\sum_k\frac{\lambda_k\rho^2}{\lambda_k+\rho^2} .

Source of the optimal loss: Xu et al. 2025, arXiv:2506.13763.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.datasets import Data
from workbench.denoisers import Denoiser, Empirical, Gaussian, Local, Mixture
from workbench.denoisers.checkpoints import data_hash
from workbench.learning.training import Settings, split
from workbench.lenses.base import Lens, OnStep, Subject, described, estimate, stepped
from workbench.lenses.errors import mean_error
from workbench.lenses.output import draws
from workbench.params import Param
from workbench.registry import entry, register

#: Nodes of the quadrature along an axis, the standard deviations it reaches, and how often a
#: component may be met in it.
NODES, REACH, MOST_MET = 96, 8.0, 2_000_000

#: Standard errors from which a difference is said.
TELLING = 3.0


class Loss(NamedTuple):
    """A loss per coordinate [x²] and its standard error; 0 where it is exact."""

    value: float
    error: float


def optimal_loss(law: Denoiser, rho: float, samples: int = 2000) -> Loss:
    """The least mean squared error per coordinate of denoising ``law`` at ``rho``.

    Exact for a Gaussian. Of isotropic mixtures and few points in one or two dimensions by
    quadrature, its error by half as many nodes; else a mean of exact posterior variances.

    Args:
        law: a Gaussian, a mixture or a finite set.
        rho: noise level sigma/alpha, greater than 0.
        samples: draws, of seed 0, where there is neither a closed form nor a quadrature.

    Raises:
        NotImplementedError: a denoiser that is not the law of any data.
        ValueError: a noise level that is not positive and finite, or fewer than two draws.
    """
    if not 0 < rho < math.inf:
        raise ValueError(f"rho was {rho!r}; it must be positive and finite.")
    if samples < 2:
        raise ValueError(f"samples was {samples}; a standard error needs at least 2.")
    if isinstance(law, Gaussian):
        variances = law.spectrum.double()
        return Loss((variances * rho**2 / (variances + rho**2)).mean().item(), 0.0)
    if not isinstance(law, Mixture | Empirical):
        raise NotImplementedError(
            f"the optimal loss is that of a law, a Gaussian, Mixture or Empirical; {law!r} is none."
        )
    law = law.to(torch.float64)
    small = law.dim <= 2 and len(law.means) ** 2 * NODES**law.dim <= MOST_MET
    if small and law.covs.ndim == 1:
        fine, coarse = (_quadrature(law, rho, nodes) for nodes in (NODES, NODES // 2))
        return Loss(fine, abs(fine - coarse))
    generator = torch.Generator().manual_seed(0)
    clean = draws(law, samples, generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64).to(clean)
    each = _variance(law, clean + rho * noise, rho)
    return Loss(each.mean().item(), mean_error(each).item())


def _variance(law: Denoiser, y: Tensor, rho: float) -> Tensor:
    """Posterior variance per coordinate at states of alpha = 1."""
    return law.divergence(y, 1.0, rho) * (rho**2 / law.dim)


def _quadrature(law: Denoiser, rho: float, nodes: int) -> float:
    """By the trapezoidal rule about each component: exponentially accurate for smooth functions."""
    z = torch.linspace(-REACH, REACH, nodes, dtype=torch.float64, device=law.device)
    one = (-0.5 * z * z).exp()
    one = one / one.sum()
    grid = torch.cartesian_prod(*[z] * law.dim).reshape(-1, law.dim)
    weight = torch.cartesian_prod(*[one] * law.dim).reshape(-1, law.dim).prod(1)
    total = 0.0
    for share, mean, variance in zip(law.weights, law.means.flatten(1), law.covs, strict=True):
        y = (mean + (variance + rho**2).sqrt() * grid).reshape(-1, *law.event_shape)
        total += (share * (weight @ _variance(law, y, rho))).item()
    return total


def trained_on(subject: Subject) -> tuple[Data, Data | None]:
    """The data that a model was trained on, and data of the same law that it has not seen.

    A checkpoint's card says which points of its set were held out. Of a formula all points are its
    own, and unseen ones are drawn from the law of the data, where that is known.

    Raises:
        NotImplementedError: a network that was trained on other data than those of the study.
    """
    data, card = subject.data, getattr(subject.denoiser, "card", None)
    if card is None or "data" not in card or "settings" not in card:
        return data, _drawn(data)
    return data_of(card, data)


def data_of(card: dict, data: Data | None = None) -> tuple[Data, Data | None]:
    """The data that the network of a card was trained on, and others that it has not seen.

    Args:
        card: of a checkpoint.
        data: what they may be a part of.

    Raises:
        NotImplementedError: data that cannot be made again.
    """
    if data is None or data_hash(data.points) != card["data"]["sha256"]:
        data = _of_card(card)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in card["settings"].items()}
    places = split(len(data.points), Settings(**settings))
    seen, unseen = (_part(data, place) for place in places)
    return seen, unseen if len(unseen.points) else _drawn(data)


def _of_card(card: dict) -> Data:
    """The data that a card names, made again."""
    said = dict(card.get("study", {}).get("data", {}))
    try:
        data = entry("data", said.pop("name")).make(**said)
    except (KeyError, ValueError, TypeError):
        data = None
    if data is None or data_hash(data.points) != card["data"]["sha256"]:
        raise NotImplementedError(
            f"the network was trained on other data ({card['data']['name']}, SHA-256 "
            f"{card['data']['sha256'][:12]}...); take these as the data of the study."
        )
    return data


def _part(data: Data, places: Tensor) -> Data:
    both = data.labels, data.groups
    labels, groups = (None if of is None else of[places.to(of.device)] for of in both)
    return Data(data.name, data.points[places], labels, data.law, groups)


def _drawn(data: Data) -> Data | None:
    if data.law is None:
        return None
    fresh = draws(data.law, len(data.points), torch.Generator().manual_seed(1))
    return None if fresh is None else Data(data.name, fresh, law=data.law)


class _Levels(Lens):
    """What lenses over noise levels share."""

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 4096 * self.points * dim

    def _rho(self, subject: Subject) -> np.ndarray:
        """Noise levels, decreasing, about the size of the data."""
        points = trained_on(subject)[0].points.double()
        spread = math.sqrt(points.var(0, correction=0).mean().item()) or 1.0
        return spread * np.logspace(1.0, -1.3, self.levels)

    def _noised(self, points: Tensor, index: int, rho: float) -> tuple[Tensor, Tensor]:
        """Some of the points, and the same noised."""
        generator = torch.Generator().manual_seed(index)
        few = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
        clean = points[few[: self.points]].double()
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        return clean, clean + rho * noise


@dataclass(frozen=True)
class Fit(_Levels):
    r"""How far is the model from the least loss it could have, at each noise level?

    ``loss``: squared error per coordinate of the denoised state, on the points it was trained on
    and on others of the same law. ``optimal``: the least that any denoiser could have: of the
    finite training set, whose best denoiser has memorised it, and of the data's law, where that is
    known. ``excess``: :math:`|D - D^*|^2/d`, their difference in expectation. On training points a
    fall below the optimum of the law is memorisation; on others the excess is what is still to be
    learnt.

    Source: Xu et al. 2025, arXiv:2506.13763.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=200)] = 13
    points: Annotated[int, Param("data points looked at, of each kind", ge=2, le=50_000)] = 256

    reads = ("data",)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        rho, model = self._rho(subject), subject.denoiser
        about = {
            "loss": ("squared error of the denoised state, per coordinate", "x²"),
            "optimal": ("least squared error of any denoiser, per coordinate", "x²"),
            "excess": ("squared distance from the best denoiser, per coordinate", "x²"),
        }
        names = [name for one in about for name in (one, f"{one}_se")]
        curves = {name: np.full((2, len(rho)), np.nan) for name in names}
        both = [*product(enumerate(self._sets(subject)), enumerate(rho.tolist()))]
        for (row, (data, best)), (column, level) in stepped(both, on_step):
            if data is None:
                continue
            clean, noised = self._noised(data.points, column, level)
            denoised = model.denoise(noised.to(model.device), 1.0, level).cpu()
            each = {"loss": (denoised - clean).square()}
            if best is not None:
                ideal = best.denoise(noised, 1.0, level)
                each["excess"] = (denoised - ideal).square()
                found = optimal_loss(best, level, max(2, self.points))
                curves["optimal"][row, column], curves["optimal_se"][row, column] = found
            for name, values in each.items():
                values = values.flatten(1).mean(1)
                curves[name][row, column] = values.mean().item()
                curves[f"{name}_se"][row, column] = mean_error(values).item()
        coords = {"set": ["training", "unseen"], "rho": rho}
        return xr.Dataset(described(curves, about, ("set", "rho")), coords)

    def _sets(self, subject: Subject) -> list[tuple[Data | None, Denoiser | None]]:
        seen, unseen = trained_on(subject)
        law = seen.law if isinstance(seen.law, Mixture | Gaussian) else None
        return [(seen, Empirical(seen.points.double().cpu())), (unseen, law)]

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Of a Gaussian denoiser, whose loss needs but the moments of the points."""
        model, law = subject.denoiser, subject.data.law
        if not isinstance(model, Gaussian) or not isinstance(law, Gaussian):
            return None
        rho, eye = self._rho(subject), torch.eye(model.dim, dtype=torch.float64)
        cov, truth = model.cov.double(), law.cov.double()
        shift = (law.mean - model.mean).double().flatten()
        spread = truth + shift[:, None] * shift
        found = {name: np.full((2, len(rho)), np.nan) for name in ("loss", "optimal", "excess")}
        for column, level in enumerate(rho):
            gain = torch.linalg.solve(cov + level**2 * eye, cov)
            rest = eye - gain
            loss = ((rest @ spread @ rest.T).trace() + level**2 * gain.square().sum()) / model.dim
            best = optimal_loss(law, level).value
            found["loss"][1, column], found["optimal"][1, column] = loss.item(), best
            found["excess"][1, column] = max(0.0, loss.item() - best)
        return xr.Dataset({name: (("set", "rho"), value) for name, value in found.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        rho, said = dataset["rho"].values, []
        share = (dataset["excess"] / dataset["optimal"]).sel(set="unseen").values
        if np.isfinite(share).any():
            worst = int(np.nanargmax(share))
            said.append(
                f"On unseen data the loss is largest above the least possible one at ρ = "
                f"{rho[worst]:.2g}, by {share[worst]:.1%} of it."
            )
        loss, error = (dataset[name].values for name in ("loss", "loss_se"))
        gap = loss[1] - loss[0]
        sure = gap > TELLING * np.hypot(error[0], error[1])
        if sure.any():
            most = int(np.nanargmax(np.where(sure, gap / loss[0], -np.inf)))
            said.append(
                f"It denoises its training points better than others where ρ is "
                f"{rho[sure].min():.2g} to {rho[sure].max():.2g}, at ρ = {rho[most]:.2g} by "
                f"{gap[most] / loss[1][most]:.0%}: there it remembers."
            )
        elif np.isfinite(gap).any():
            said.append("It denoises its training points no better than others.")
        return said or ["Nothing is known of data that the model has not seen."]


@dataclass(frozen=True)
class Follows(_Levels):
    r"""Which simpler denoiser does the model follow, at each noise level?

    ``explained``: of ``"score"`` the uncentred :math:`R^2 = 1 - E|s - s_m|^2/E|s|^2`, of
    ``"denoised"`` the centred :math:`R^2 = 1 - E|D - D_m|^2/\operatorname{Var} D_m`, with the
    simpler denoiser as the target: the Gaussian of the training points, a Gaussian for each class
    (or the data's own mixture), the finite set, and of images the local one, each at noised data
    points. The local one is the limit of a circular network of that view alone; for others it is a
    baseline.

    Sources: Wang & Vastola 2024, arXiv:2412.09726; Kamb & Ganguli 2024, arXiv:2412.20292.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=200)] = 13
    points: Annotated[int, Param("data points looked at", ge=2, le=50_000)] = 64
    of: Annotated[Literal["score", "denoised"], Param("which answer is compared")] = "score"
    on: Annotated[Literal["training", "unseen"], Param("which points are noised")] = "training"
    size: Annotated[int, Param("side of the local denoiser's square [pixels]", ge=1, le=63)] = 5
    images: Annotated[int, Param("images the local denoiser is made of, at most", ge=2)] = 200

    reads = ("data",)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        rho, model = self._rho(subject), subject.denoiser
        seen, unseen = trained_on(subject)
        data = seen if self.on == "training" else unseen
        if data is None:
            raise NotImplementedError(
                f"no data of the law of {seen.name} are known that the model has not seen; take "
                'on="training".'
            )
        simpler = self._simpler(seen)
        values = np.full((len(simpler), len(rho)), np.nan)
        errors = np.full_like(values, np.nan)
        for column, level in enumerate(stepped(rho.tolist(), on_step)):
            _, noised = self._noised(data.points, column, level)
            answer = self._answer(model, noised.to(model.device), level).cpu()
            for row, one in enumerate(simpler.values()):
                target = self._answer(one, noised, level)
                values[row, column], errors[row, column] = self._explained(answer, target)
        about = {"score": "share of the score explained", "denoised": "R² of the denoised state"}
        text = f"{about[self.of]} by a simpler denoiser"
        explained = estimate("explained", ("model", "rho"), values, text, error=errors)
        return xr.Dataset(explained, {"model": list(simpler), "rho": rho})

    def _simpler(self, data: Data) -> dict[str, Denoiser]:
        found = {"Gaussian": Gaussian.from_data(data)}
        if data.law is not None or data.labels is not None:
            found["Mixture"] = Mixture.from_data(data)
        found["Empirical"] = Empirical(data.points)
        if data.points.ndim in (3, 4):
            size = min(self.size, *data.points.shape[-2:])
            size -= 1 - size % 2
            found[f"Local {size}"] = Local(data.points[: self.images], size)
        return {name: one.to(torch.float64, "cpu") for name, one in found.items()}

    def _answer(self, denoiser: Denoiser, noised: Tensor, rho: float) -> Tensor:
        denoised = denoiser.denoise(noised, 1.0, rho)
        return (denoised if self.of == "denoised" else (denoised - noised) / rho).flatten(1)

    def _explained(self, answer: Tensor, target: Tensor) -> tuple[float, float]:
        """1 - a ratio of means over samples, and its error by the first order of each."""
        miss = (answer - target).square().mean(1)
        compared = answer if self.of == "score" else target - target.mean(0)
        size = compared.square().mean(1)
        whole = size.mean().clamp_min(1e-300)
        ratio = miss.mean() / whole
        return 1.0 - ratio.item(), (mean_error(miss - ratio * size) / whole).item()

    def findings(self, dataset: xr.Dataset) -> list[str]:
        rho, said = dataset["rho"].values, []
        for name, curve in zip(dataset["model"].values, dataset["explained"].values, strict=True):
            close = curve > 0.99
            where = "nowhere" if not close.any() else f"from ρ = {rho[close].min():.2g} up"
            if close.any() and not close[rho >= rho[close].min()].all():
                where = f"at {int(close.sum())} of {len(rho)} noise levels"
            said.append(f"{name} explains more than 99 % of it {where}.")
        return said


register(Fit, name="fit")
register(Follows, name="follows")
