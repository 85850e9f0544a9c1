"""A guard at the door: whether a network is what it is said to be, by its loss on a few data.

Things that are often said wrongly leave a mark that no training makes. Read as another type of
prediction the answers denoise better over all noise levels; or the network denoises best when it is
told another noise level than the true one, at every level alike; or it denoises worse than a single
Gaussian would, which any network learns first.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from workbench.denoisers.neural import Neural

#: Noise levels that are tried, in spreads of the data, and factors by which each is mistaken.
LEVELS = (0.15, 0.3, 0.6, 1.2, 2.4)
FACTORS = 10 ** np.linspace(-1.0, 1.0, 13)

#: Before a network is refused: by how much the loss of another reading is less in the mean over
#: levels, and not more at any; how far off the noise level is everywhere, and by how much the loss
#: is less there; how much more it is than a Gaussian's, at most levels. Training leaves less.
BETTER, WORSE, APART, GAIN, POOR = 1.3, 0.95, 1.5, 1.02, 1.5

#: What answers may be, with a sign: some say data minus noise for a velocity.
READINGS = {
    "noise": ("noise", 1.0),
    "denoised": ("denoised", 1.0),
    "score": ("score", 1.0),
    "velocity": ("velocity", 1.0),
    "velocity of the opposite sign": ("velocity", -1.0),
}


class MismatchError(ValueError):
    """A network that contradicts what is said of it; the text says what it seems to be."""


@dataclass(frozen=True)
class Guard:
    """What a network's answers say of it.

    Attributes:
        rho: noise levels (levels,).
        losses: squared error per coordinate [x²] at each, by how the answers are read; of a network
            inside EDM's scalings that is said alone.
        factors: at each level, by what the noise level must be multiplied that the network is told,
            for the least loss; 1 is right.
        gains: at each level, the loss at the true noise level over that.
        gaussian: the loss of the isotropic Gaussian with the spread of the data (levels,).
        said: which reading is that of the network.
    """

    rho: np.ndarray
    losses: dict[str, np.ndarray]
    factors: np.ndarray
    gains: np.ndarray
    gaussian: np.ndarray
    said: str

    def check(self) -> None:
        """Raise :class:`MismatchError` where the network seems to be something else."""
        own = self.losses[self.said]
        ratios = {name: own / loss for name, loss in self.losses.items() if name != self.said}
        means = {name: float(np.exp(np.log(ratio).mean())) for name, ratio in ratios.items()}
        better = {
            name: means[name]
            for name, ratio in ratios.items()
            if means[name] > BETTER and (ratio > WORSE).all()
        }
        if better:
            best = max(better, key=better.__getitem__)
            raise MismatchError(
                f"the network is said to predict {self.said}; read as {best} its loss is "
                f"{better[best]:.3g} times less, over {len(self.rho)} noise levels. It seems "
                "to predict that: say so, or load the weights that belong to the card."
            )
        off = np.abs(np.log(self.factors)) > math.log(APART)
        alike = (self.factors > 1).all() or (self.factors < 1).all()
        if off.all() and alike and (self.gains > GAIN).all():
            factor = float(np.exp(np.log(self.factors).mean()))
            raise MismatchError(
                f"the network denoises best when it is told {factor:.2g} times the true noise "
                f"level, at each of {len(self.rho)}: its time, or the scale of its data, is not "
                "what is said. Scale the data as they were in its training, or correct "
                "trained_under."
            )
        if (own > POOR * self.gaussian).mean() > 0.5:
            times = float(np.exp(np.log(own / self.gaussian).mean()))
            raise MismatchError(
                f"the network denoises these data worse than a single Gaussian, {times:.3g} times "
                f"in the mean over {len(self.rho)} noise levels: its weights do not belong to what "
                "is said of it, or it was trained on other data."
            )


def guard(net: Neural, points: Tensor, samples: int = 64) -> Guard:
    """Try a network on a few data, noised: which reading of its answers and which noise level fit.

    Args:
        net: the network.
        points: data (N, *event) as those it was trained on.
        samples: how many of them are taken.

    Raises:
        ValueError: fewer than two points, or of another shape.
    """
    clean = points[:samples].to(net.device, net.dtype)
    if len(clean) < 2 or clean.shape[1:] != net.event_shape:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; a network for {tuple(net.event_shape)} is "
            "tried on two data or more of that shape."
        )
    spread = clean.double().var(0, correction=0).mean().sqrt().item() or 1.0
    rho = spread * np.array(LEVELS)
    rho = rho[(rho > net.least_rho) & (rho < net.largest_rho)]
    said = next((name for name, how in READINGS.items() if how == (net.predicts, 1.0)), "edm")
    readings = READINGS if said in READINGS else {said: (net.predicts, 1.0)}
    losses = {name: [] for name in readings}
    factors, gains = [], []
    for index, level in enumerate(rho.tolist()):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64).to(clean)
        noised = clean + level * noise
        for name, (predicts, sign) in readings.items():
            losses[name].append(_loss(_read_as(net, predicts, sign), noised, clean, level))
        told = [factor for factor in FACTORS if net.least_rho < factor * level < net.largest_rho]
        found = [_loss(net, noised, clean, factor * level) for factor in told]
        least = int(np.argmin(found))
        factors.append(told[least])
        gains.append(losses[said][-1] / max(found[least], 1e-300))
    arrays = {name: np.maximum(values, 1e-300) for name, values in losses.items()}
    gaussian = spread**2 * rho**2 / (spread**2 + rho**2)
    return Guard(rho, arrays, np.array(factors), np.array(gains), gaussian, said)


def _read_as(net: Neural, predicts: str, sign: float) -> Neural:
    if predicts == net.predicts and sign == 1.0:
        return net
    other = copy.copy(net)
    module = net.module
    vars(other).update(
        predicts=predicts, module=module if sign == 1.0 else lambda *given: sign * module(*given)
    )
    return other


def _loss(net: Neural, noised: Tensor, clean: Tensor, rho: float) -> float:
    with torch.no_grad():
        error = (net.denoise(noised, 1.0, rho) - clean).double().square().mean().item()
    return error if math.isfinite(error) else math.inf
