"""A network as it is now: its losses beside the least possible ones, its samples, its field."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench import registry
from workbench.datasets import Data
from workbench.denoisers import Denoiser, Empirical, Gaussian, Mixture, Neural
from workbench.denoisers.checkpoints import CheckpointError
from workbench.diffusion import Diffusion
from workbench.learning.training import JUDGED, draws
from workbench.lenses.fit import data_of
from workbench.processes import EDM
from workbench.sampling import SAMPLERS, Grid
from workbench.studies import files
from workbench.studies.limits import Report
from workbench.studies.run import made
from workbench.studies.sections import StudyError
from workbench.studies.training import Training, TrainingJob, snapshot
from workbench.trajectory import sample

#: Samples that are drawn: of images, and of points in the plane; steps of each run.
IMAGES, POINTS, STEPS = 36, 300, 12

#: Arrows along a side of a field, at which share of the spread of the data, and how far it reaches.
ARROWS, AT, REACH = 15, 0.35, 2.2


@dataclass(frozen=True)
class Watched:
    """A network as it is now.

    Attributes:
        card: of its checkpoint.
        file: the hash under which the checkpoint is kept.
        step: steps of its training.
        rho: noise levels of the curve.
        curve: ``step``, ``loss``, and by noise level ``training`` and ``held_out``.
        floors: see :func:`floors`.
        samples: from fixed seeds (n, *event).
        points: some that it was trained on (n, *event).
        places, denoised, truth: of a network in the plane: states (m, 2), where it moves them to at
            the noise level ``at``, and where the best denoiser does; empty for others.
        at: that noise level.
    """

    card: dict[str, Any]
    file: str
    step: int
    rho: list[float]
    curve: dict[str, list]
    floors: dict[str, dict[str, list[float]]]
    samples: np.ndarray
    points: np.ndarray
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    denoised: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    truth: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    at: float = 0.0


@dataclass(frozen=True)
class Pipeline:
    """A network of others, kept as a file that studies name.

    Attributes:
        file: the hash under which it is kept.
        said: what it is, in a few words.
        shape: of one sample.
        label: the class that it has to be asked with, of one that is never without.
        data: names of data sets of its shape.
    """

    file: str
    said: str
    shape: tuple[int, ...]
    label: int | None
    data: tuple[str, ...]


def is_pipeline(place: Path) -> bool:
    """Whether a path is a network of others, by its looks: a pipeline of diffusers, its folder or a
    zip file; a file with a card.
    """
    return (place / "model_index.json").is_file() or place.suffix in (".zip", *files.CARDED)


def pipeline(place: Path, report: Report) -> Pipeline:
    """Keep a network of others as a file, and say what it is.

    Raises:
        CheckpointError: none, or one that is not understood.
    """
    report("reading", 0.0)
    key = files.keep(place)
    report("loading", 0.3)
    label = None
    try:
        net = Neural.load(files.place(key))
    except CheckpointError:
        raise
    except ValueError:  # it has no class that stands for none
        net, label = Neural.load(files.place(key), label=0), 0
    shape = tuple(net.event_shape)
    agree = []
    for name, entry in registry.entries("data").items():
        try:
            event = tuple(entry.make().event_shape)
        except (TypeError, ValueError):  # it takes a file
            continue
        if shape in (event, (1, *event)):
            agree.append(name)
    return Pipeline(key, repr(net), shape, label, tuple(agree))


def watch(place: Path, report: Report) -> Watched | None:
    """The network of a checkpoint, or of the folder of a training that is done or under way.

    Returns:
        None for a training that has written no state yet.

    Raises:
        CheckpointError: a file that is no checkpoint.
        NotImplementedError: data that cannot be made again.
    """
    report("reading", 0.0)
    if place.is_dir():
        job, file = TrainingJob(place.name, place), place / "network.safetensors"
        if not file.exists():
            file = snapshot(job.study, place, place / "snapshot.safetensors")
            if file is None:
                return None
        place = file
    net, key = Neural.load(place), files.keep(place)
    card = net.card
    seen, _ = _data(card)
    curve = card["curve"]
    step = card.get("step", card["settings"]["steps"])
    report("sampling", 0.3)
    plane = tuple(net.event_shape) == (2,)
    spread = card["sigma_data"]
    process = EDM(sigma_min=0.01 * spread, sigma_max=min(card["largest_rho"], 100 * spread))
    grid = Grid.karras(process, steps=STEPS)
    count = POINTS if plane else IMAGES
    run = sample(Diffusion(process, net), SAMPLERS["Heun"](), grid, range(count))
    points = seen.points[:: max(1, len(seen.points) // 400)][:400]
    more: dict[str, Any] = {}
    if plane:
        best = seen.law if isinstance(seen.law, Mixture | Gaussian) else Empirical(seen.points)
        more = _field(net, best, AT * spread)
    report("comparing", 0.7)
    levels = tuple(curve["rho"])
    about = json.dumps({key: card[key] for key in ("data", "settings", "study")})
    return Watched(
        card=card,
        file=key,
        step=step,
        rho=list(levels),
        curve={name: curve[name] for name in ("step", "loss", "training", "held_out")},
        floors=floors(about, levels),
        samples=run.final.numpy(),
        points=points.float().numpy(),
        **more,
    )


def _field(net: Neural, best: Denoiser, rho: float) -> dict[str, Any]:
    side = torch.linspace(-REACH, REACH, ARROWS)
    places = torch.cartesian_prod(side, side)
    there = best.denoise(places.double(), 1.0, rho)
    return {
        "places": places.numpy(),
        "denoised": net.denoise(places, 1.0, rho).numpy(),
        "truth": there.float().numpy(),
        "at": rho,
    }


def _data(card: dict[str, Any]) -> tuple[Data, Data | None]:
    """The data that the network of a card was trained on, and others that it has not seen."""
    try:
        data = made(Training(**card["study"]).data)
    except (StudyError, ValueError, TypeError):
        data = None  # not of a training file: by the name of the data
    return data_of(card, data)


@functools.lru_cache(maxsize=16)
def floors(card: str, levels: tuple[float, ...]) -> dict[str, dict[str, list[float]]]:
    """What other denoisers lose on the very draws of a curve, per coordinate [x²].

    ``training`` and ``held_out``: by kind of points, the loss of ``linear``, the Gaussian denoiser
    with their mean and covariance; of ``law``, the best denoiser of the data's law, where that is
    known; and of ``memorised``, the best one of the finite set that was trained on. Their draws
    are the network's, so that differences are not those of the draws.

    Args:
        card: the entries ``data``, ``settings`` and ``study`` of a card, as JSON.
    """
    said = json.loads(card)
    seen, unseen = _data(said)
    laws: dict[str, Denoiser] = {"linear": Gaussian.from_data(seen)}
    if isinstance(seen.law, Mixture | Gaussian):
        laws["law"] = seen.law
    sets = {"training": (seen, {**laws, "memorised": Empirical(seen.points)})}
    if said["data"]["held_out"]:
        sets["held_out"] = (unseen, laws)
    found: dict[str, dict[str, list[float]]] = {}
    for kind, (data, known) in sets.items():
        points = data.points[:JUDGED].double()
        found[kind] = {name: [] for name in known}
        for index, level in enumerate(levels):
            noised = points + level * draws(points.shape, index)
            for name, law in known.items():
                error = (law.denoise(noised, 1.0, level) - points).square().mean()
                found[kind][name].append(error.item())
    return found
