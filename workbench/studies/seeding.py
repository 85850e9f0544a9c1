"""What the seed decides in a study: what the page "Seeds" shows.

The study says data, model, process, sampler, grid and seeds; the options how much fresh noise there
is on the way, and what is called good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.diffusion import Diffusion
from workbench.lenses.base import Subject, complete
from workbench.lenses.retention import Retention
from workbench.lenses.seeds import Golden, Identification, Seeds, classes_of, outputs_by_class
from workbench.params import Param
from workbench.sampling import Record, Sampler
from workbench.sampling.methods import DDIM
from workbench.studies.limits import claim
from workbench.studies.options import Options
from workbench.studies.run import build
from workbench.studies.spec import Study, StudyError
from workbench.trajectory import sample

__all__ = ["Seeding", "SeedsSeen", "seeds_of"]

Report = Callable[[str, float], None]

#: Seeds and classes that are drawn, and noise levels.
SHOWN, CLASSES, LEVELS = 16, 10, 17

#: Modes of the retention curve.
MODES = 48


@dataclass(frozen=True)
class Seeding(Options):
    """What is asked of the seeds beside the study."""

    eta: Annotated[
        float, Param("fresh noise on the way (DDIM); 0: the study's own sampler", ge=0, le=1)
    ] = 0.0
    quality: Annotated[
        Literal["distance", "log_density"], Param("what is called good of a sample")
    ] = "distance"


@dataclass(frozen=True)
class SeedsSeen:
    """What :func:`seeds_of` leaves.

    Attributes:
        dataset: ``states`` (level, class, seed, *event), of the seeds that are drawn, over
            :math:`\\sqrt{\\alpha^2 + \\sigma^2/v}`; ``quality`` (class, seed) of all seeds in
            standard deviations; ``share`` (*event), the seed's part of the variance within classes
            in each coordinate.
        components, identification, golden, retention: of the lenses; ``golden`` and ``retention``
            may be None, where they have no meaning.
        facts: the result in sentences.
    """

    dataset: xr.Dataset
    components: xr.Dataset
    identification: xr.Dataset
    golden: xr.Dataset | None
    retention: xr.Dataset | None
    facts: list[str]


def seeds_of(asked: tuple[Study, Seeding], report: Report = lambda stage, share: None) -> SeedsSeen:
    """The seeds of a study in each of its classes.

    Raises:
        StudyError: what cannot be.
    """
    study, options = asked
    report("preparing", 0.0)
    setup = build(study)
    count, dim = len(setup.seeds), setup.diffusion.denoiser.dim
    classes = len(setup.data.labels.unique()) if setup.data.labels is not None else 0
    if count < 8:
        raise StudyError(
            {"seeds.count": f"seeds.count was {count}; at least 8 seeds are compared."}
        )
    if classes < 2:
        raise StudyError(
            {
                "data": f"{study.data.name} has {classes or 'no'} classes; seeds are compared in "
                "two or more, as of the digits or of the ring."
            }
        )
    claim(64 * classes * count * dim + 8 * LEVELS * classes * SHOWN * dim, count, 16 * dim * dim)
    sampler = DDIM(eta=options.eta) if options.eta else setup.sampler
    try:
        run = sample(setup.truth, sampler, setup.grid, setup.seeds, Record(["x"], every=10**9))
        subject = Subject(setup.truth, sampler, setup.grid, run.dataset, setup.data)
        found, facts = _measured(subject, options, report)
        dataset = _states(subject, sampler, report)
    except NotImplementedError as error:
        raise StudyError({"": str(error)}) from None
    outputs = outputs_by_class(subject)
    dataset["share"] = (_events(setup.truth), _share(outputs).reshape(setup.truth.event_shape))
    if found["golden"] is not None:
        quality = Golden(count, options.quality).qualities(subject)
        dataset["quality"] = (("class", "all_seeds"), quality[:CLASSES])
    dataset.attrs = {"eta": options.eta, "quality": options.quality, "study": study.to_yaml()}
    return SeedsSeen(dataset, **found, facts=facts)


def _measured(subject: Subject, options: Seeding, report: Report) -> tuple[dict[str, Any], list]:
    """What each lens measured, None where it has no meaning; and what they say of it."""
    count = subject.run.sizes["sample"]
    lenses = {
        "components": Seeds(count),
        "identification": Identification(min(count, 4096)),
        "golden": Golden(count, options.quality),
        "retention": Retention(count, MODES),
    }
    found: dict[str, Any] = {}
    facts: list[str] = []
    for i, (name, lens) in enumerate(lenses.items()):

        def on_step(done: int, total: int, begun: float = 0.2 * i, name: str = name) -> None:
            report(name, begun + 0.2 * done / total)

        try:
            found[name] = complete(lens, subject, on_step=on_step)
            facts += lens.findings(found[name])
        except NotImplementedError:
            if name in ("components", "identification"):
                raise
            found[name] = None
    return found, facts


def _states(subject: Subject, sampler: Sampler, report: Report) -> xr.Dataset:
    """Of the first seeds in the first classes, on the way."""
    grid, process = subject.grid, subject.process
    nodes = np.unique(np.linspace(0, grid.steps, LEVELS).round().astype(int))
    laws, states = list(classes_of(subject).items())[:CLASSES], []
    seeds = subject.seeds[:SHOWN]
    variance = max(float(subject.data.points.double().var(0).mean()), 1e-12)
    alpha, sigma = (
        np.array([np.max(getattr(grid, k)[i]) for i in nodes]) for k in ("alpha", "sigma")
    )
    scale = np.sqrt(alpha**2 + sigma**2 / variance)
    for i, (_, law) in enumerate(laws):
        diffusion = Diffusion(process, law, subject.diffusion.condition)
        run = sample(diffusion, sampler, grid, seeds, Record(["x"]))
        states.append(run["x"][nodes.tolist()].double().cpu().numpy())
        report("samples", 0.8 + 0.2 * i / len(laws))
    drawn = np.stack(states, 1) / scale.reshape(-1, *[1] * (states[0].ndim))
    with np.errstate(divide="ignore"):
        rho = sigma / alpha
    return xr.Dataset(
        {"states": (("level", "class", "seed", *_events(subject.diffusion)), drawn.astype("f4"))},
        {
            "rho": ("level", rho),
            "t": ("level", [float(grid.t[k]) for k in nodes]),
            "class": [str(label) for label, _ in laws],
            "seed": seeds,
            "all_seeds": subject.seeds,
        },
    )


def _events(diffusion: Diffusion) -> tuple[str, ...]:
    return tuple(f"axis{k}" for k in range(len(diffusion.event_shape)))


def _share(outputs: Tensor) -> np.ndarray:
    """The seed's part of the variance within classes, of each coordinate of (classes, seeds, d)."""
    classes, seeds = outputs.shape[:2]
    row, column, grand = outputs.mean(1), outputs.mean(0), outputs.mean((0, 1))
    rest = (outputs - row[:, None] - column + grand).square().sum((0, 1))
    both = rest / ((classes - 1) * (seeds - 1))
    seed = (classes * (column - grand).square().sum(0) / (seeds - 1) - both) / classes
    total = seed + both
    largest = total.max()
    return torch.where(total > 1e-9 * largest, seed / total, torch.nan).numpy()
