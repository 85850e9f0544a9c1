"""What the seed decides in a study: what the page "Seeds" shows.

The study says data, model, process, sampler, grid and seeds; the options how much fresh noise there
is on the way, and what is called good. Parts of the page are computed while they are looked at:
how fresh noise fades the mark of a seed, the same seeds under other samplers and models, and what
becomes of a noise that was changed by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr

from workbench.denoisers import Denoiser
from workbench.denoisers.neural import Neural
from workbench.diffusion import Diffusion
from workbench.lenses import surgery
from workbench.lenses.base import Subject, complete
from workbench.lenses.ranks import SCORES, Ranks, variants_of
from workbench.lenses.retention import Retention
from workbench.lenses.seeds import (
    Fading,
    Golden,
    Identification,
    Properties,
    VarianceComponents,
    affine_maps,
    another,
    by_column,
    classes_of,
    outputs_by_class,
)
from workbench.lenses.statistics import QUALITIES, bands_of
from workbench.params import Param, shown
from workbench.sampling import Grid, Record, Sampler
from workbench.sampling.methods import DDIM
from workbench.studies.limits import Report, claim, unheard
from workbench.studies.options import Options
from workbench.studies.run import build
from workbench.studies.spec import Study, StudyError
from workbench.trajectory import sample

#: Seeds and classes that are drawn, and noise levels.
SHOWN, CLASSES, LEVELS = 16, 10, 17

#: Modes of the retention curve, and seeds whose names are compared one by one.
MODES, COMPARED = 48, 64

#: Stochasticity of the runs that fade the mark of a seed.
KAPPAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)

#: Seeds of those runs, and of a network.
FADED, FADED_OF_NETWORK = 64, 16

#: Seeds that are followed through other models.
RANKED = 32

#: Iterations of a search of the noise.
SEARCHED = 12


@dataclass(frozen=True)
class Seeding(Options):
    """What is asked of the seeds beside the study."""

    eta: Annotated[
        float, Param("fresh noise on the way (DDIM); 0: the study's own sampler", ge=0, le=1)
    ] = 0.0
    quality: Annotated[Literal[QUALITIES], Param("what is called good of a sample")] = "distance"
    score: Annotated[Literal[SCORES], Param("what seeds are ranked by across models")] = (
        "fine_energy"
    )


@dataclass(frozen=True)
class SeedsSeen:
    """What :func:`seeds_of` leaves.

    Attributes:
        dataset: ``states`` (level, class, seed, *event), of the seeds that are drawn, over
            :math:`\\sqrt{\\alpha^2 + \\sigma^2/v}`; ``quality`` (class, seed) of all seeds in
            standard deviations; ``share`` (*event), the seed's part of the variance within classes
            in each coordinate; ``confusion`` (seed, named), how often the samples of a seed are
            taken for those of another.
        components, identification, properties, golden, retention: of the lenses; ``golden`` and
            ``retention`` may be None, where they have no meaning.
        facts: the result in sentences.
    """

    dataset: xr.Dataset
    components: xr.Dataset
    identification: xr.Dataset
    properties: xr.Dataset
    golden: xr.Dataset | None
    retention: xr.Dataset | None
    facts: list[str]


@dataclass(frozen=True)
class PartSeen:
    """What :func:`part_of` leaves.

    Attributes:
        part: its name, of :data:`PARTS`.
        dataset: what is drawn of samples; see there.
        lens: of the lens that measured it; None for what is not measured.
        facts: the result in sentences.
        about: what else is told of it.
    """

    part: str
    dataset: xr.Dataset
    lens: xr.Dataset | None
    facts: list[str]
    about: dict[str, Any]


def _prepared(asked: tuple[Study, Seeding], report: Report) -> Subject:
    """The study's run with its classes; what cannot be is said.

    Raises:
        StudyError: fewer than 8 seeds or 2 classes; a process that starts from data.
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
    if not setup.diffusion.process.has_prior:
        raise StudyError(
            {
                "process": f"process was {study.process.name}, which starts from noised data; "
                "seeds are compared under processes that start from noise, such as VP, EDM, OU."
            }
        )
    claim(64 * classes * count * dim + 8 * LEVELS * classes * SHOWN * dim, count, 16 * dim * dim)
    sampler = DDIM(eta=options.eta) if options.eta else setup.sampler
    # A network in its own precision: in float64 it takes ten times as long.
    network = isinstance(setup.diffusion.denoiser, Neural)
    diffusion = setup.diffusion if network else setup.truth
    run = sample(diffusion, sampler, setup.grid, setup.seeds, Record(["x"], every=10**9))
    return Subject(setup.truth, sampler, setup.grid, run.dataset, setup.data)


def seeds_of(asked: tuple[Study, Seeding], report: Report = unheard) -> SeedsSeen:
    """The seeds of a study in each of its classes.

    Raises:
        StudyError: what cannot be.
    """
    study, options = asked
    try:
        subject = _prepared(asked, report)
        found, facts = _measured(subject, options, report)
        dataset = _states(subject, report)
    except NotImplementedError as error:
        raise StudyError({"": str(error)}) from None
    outputs, event = outputs_by_class(subject), subject.diffusion.event_shape
    _, seed, both = by_column(outputs)
    total = seed + both
    share = torch.where(total > 1e-9 * total.max(), seed / total, torch.nan)
    dataset["share"] = (_events(subject.diffusion), share.reshape(event).numpy())
    count = min(len(subject.seeds), COMPARED)
    confusion = Identification(count).confusion(subject)[:count, :count]
    dataset["confusion"] = (("of", "named"), confusion)
    if found["golden"] is not None:
        quality = Golden(len(subject.seeds), options.quality).qualities(subject)
        dataset["quality"] = (("class", "all_seeds"), quality[:CLASSES])
    dataset.attrs = {
        "eta": options.eta,
        "quality": options.quality,
        "study": study.to_yaml(),
        "of": options.mark(study),
        "kind": kind_of(subject.diffusion),
        "bands": bands_of(event)[0],
    }
    return SeedsSeen(dataset, **found, facts=facts)


def _measured(subject: Subject, options: Seeding, report: Report) -> tuple[dict[str, Any], list]:
    """What each lens measured, None where it has no meaning; and what they say of it."""
    count = subject.run.sizes["sample"]
    lenses = {
        "components": VarianceComponents(count),
        "identification": Identification(min(count, 4096)),
        "properties": Properties(count),
        "golden": Golden(count, options.quality),
        "retention": Retention(count, MODES),
    }
    found: dict[str, Any] = {}
    facts: list[str] = []
    for i, (name, lens) in enumerate(lenses.items()):

        def on_step(done: int, total: int, begun: float = 0.16 * i, name: str = name) -> None:
            report(name, begun + 0.16 * done / total)

        try:
            found[name] = complete(lens, subject, on_step=on_step)
            facts += lens.findings(found[name])
        except NotImplementedError:
            if name in ("components", "identification", "properties"):
                raise
            found[name] = None
    return found, facts


def _nodes(grid: Grid) -> np.ndarray:
    return np.unique(np.linspace(0, grid.steps, LEVELS).round().astype(int))


def _states(subject: Subject, report: Report) -> xr.Dataset:
    """Of the first seeds in the first classes, on the way."""
    grid, nodes = subject.grid, _nodes(subject.grid)
    laws, seeds = list(classes_of(subject).items())[:CLASSES], subject.seeds[:SHOWN]
    states = []
    for i, (_, law) in enumerate(laws):
        states.append(_on_the_way(subject, law, subject.sampler, grid, seeds, nodes))
        report("samples", 0.8 + 0.2 * i / len(laws))
    drawn = np.stack(states, 1)
    return xr.Dataset(
        {"states": (("level", "class", "seed", *_events(subject.diffusion)), drawn.astype("f4"))},
        {
            "rho": ("level", np.array(grid.rho)[nodes]),
            "t": ("level", np.array(grid.t)[nodes]),
            "class": [str(label) for label, _ in laws],
            "seed": seeds,
            "all_seeds": subject.seeds,
        },
    )


def _on_the_way(
    subject: Subject,
    law: Denoiser,
    sampler: Sampler,
    grid: Grid,
    seeds: list[int],
    nodes: np.ndarray,
) -> np.ndarray:
    """States (level, seed, *event) of a class at nodes of a grid, over their deviation."""
    diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
    run = sample(diffusion, sampler, grid, seeds, Record(["x"]))
    states = run["x"][nodes.tolist()].double().cpu().numpy()
    return states / _scale(subject, grid, nodes).reshape(-1, *[1] * (states.ndim - 1))


def _scale(subject: Subject, grid: Grid, nodes: np.ndarray) -> np.ndarray:
    """Deviation of states at nodes of a grid, of data of unit deviation."""
    variance = max(float(subject.data.points.double().var(0).mean()), 1e-12)
    alpha, sigma = np.array(grid.alpha)[nodes], np.array(grid.sigma)[nodes]
    return np.sqrt(alpha**2 + sigma**2 / variance)


def kind_of(diffusion: Diffusion) -> str:
    """What samples are drawn as: a point of the plane, an image or a curve."""
    event = diffusion.event_shape
    return "plane" if event == (2,) else "image" if len(event) > 1 else "curve"


def _events(diffusion: Diffusion) -> tuple[str, ...]:
    return tuple(f"axis{k}" for k in range(len(diffusion.event_shape)))


# -- parts that are computed while they are looked at --------------------------------------------


def part_of(
    asked: tuple[Study, Seeding],
    wish: dict[str, Any],
    report: Report = unheard,
) -> PartSeen:
    """A part of the page.

    Args:
        wish: ``part``, of :data:`PARTS`, and what that part takes besides.

    Raises:
        StudyError: what cannot be.
    """
    name = wish.get("part")
    if name not in PARTS:
        raise StudyError({"": f"there is no part {name!r}; there are {', '.join(PARTS)}."})
    try:
        return PARTS[name](asked, wish, report)
    except StudyError:
        raise
    except (NotImplementedError, ValueError) as error:
        raise StudyError({"": str(error)}) from None
    except (KeyError, TypeError):
        sentence = f"{name} was asked for with {shown(wish)}; it takes what the page sends."
        raise StudyError({"": sentence}) from None


def _row(asked: tuple[Study, Seeding], wish: dict, report: Report) -> PartSeen:
    """One class of the samples that are drawn: ``states`` (level, seed, *event)."""
    study, options = asked
    setup = build(study)
    sampler = DDIM(eta=options.eta) if options.eta else setup.sampler
    subject = Subject(setup.truth, sampler, setup.grid, None, setup.data)
    laws, index = list(classes_of(subject).items())[:CLASSES], int(wish.get("index", 0))
    if not 0 <= index < len(laws):
        raise StudyError({"": f"row {index} was asked for; there are {len(laws)}."})
    seeds, nodes = list(setup.seeds)[:SHOWN], _nodes(setup.grid)[-1:]
    label, law = laws[index]
    states = _on_the_way(subject, law, sampler, setup.grid, seeds, nodes)[-1]
    dims = ("seed", *_events(setup.truth))
    dataset = xr.Dataset({"states": (dims, states.astype("f4"))}, {"seed": seeds})
    about = {"index": index, "count": len(laws), "class": str(label), "kind": kind_of(setup.truth)}
    return PartSeen("row", dataset, None, [], {**about, "seeds": seeds})


def _fading(asked: tuple[Study, Seeding], wish: dict, report: Report) -> PartSeen:
    """Final states (kappa, class, seed, *event) of the seeds that are drawn, and the lens."""
    subject = _prepared(asked, report)
    few = _first(subject, FADED)
    count = len(few.seeds)
    lens = Fading(count, KAPPAS)
    found = complete(lens, few, on_step=lambda i, n: report("fresh noise", 0.9 * i / n))
    outputs = torch.stack([rows[:CLASSES, :SHOWN] for rows in lens._rows(few)])
    scale = _scale(subject, subject.grid, np.array([subject.grid.steps]))[0]
    drawn = (outputs / scale).reshape(*outputs.shape[:3], *subject.diffusion.event_shape)
    dims = ("kappa", "class", "seed", *_events(subject.diffusion))
    dataset = xr.Dataset({"faded": (dims, drawn.numpy().astype("f4"))}, {"kappa": list(KAPPAS)})
    kept = _kept(subject)
    if kept is not None:
        dataset["kept"] = (("kappa", "mode"), kept)
    return PartSeen("fading", dataset, found, lens.findings(found), {"seeds": count})


def _kept(subject: Subject) -> np.ndarray | None:
    """What each mode of the data keeps of its start at each kappa, (1 + rho_T^2/lambda)^(-kappa/2),
    (kappa, mode)."""
    try:
        variances = Retention(8, MODES)._modes(subject)[1].cpu().numpy()
    except NotImplementedError:
        return None
    c = subject.process(float(subject.grid.t[0]))
    rho = float(np.max(c.sigma)) / max(float(np.max(c.alpha)), 1e-12)
    return (1 + rho**2 / variances) ** (-np.array(KAPPAS)[:, None] / 2)


def _models(asked: tuple[Study, Seeding], wish: dict, report: Report) -> PartSeen:
    """States (variant, level, class, seed, *event) of a few seeds under variants of the run."""
    options, subject = asked[1], _prepared(asked, report)
    few = _first(subject, RANKED)
    lens = Ranks(len(few.seeds), options.score)
    found = complete(lens, few, on_step=lambda i, n: report("variants", 0.8 * i / n))
    variants, followed = variants_of(few)[0], []
    seeds = few.seeds[:SHOWN]
    for k, variant in enumerate(variants.values()):
        nodes = _nodes(variant.grid)
        nodes = nodes[np.linspace(0, len(nodes) - 1, FOLLOWED).round().astype(int)]
        states = [
            _on_the_way(few, law, variant.sampler, variant.grid, seeds, nodes)
            for law in list(variant.laws.values())[:CLASSES]
        ]
        followed.append(np.stack(states, 1))
        report("following", 0.8 + 0.2 * k / len(variants))
    dims = ("run", "level", "class", "seed", *_events(subject.diffusion))
    dataset = xr.Dataset(
        {"followed": (dims, np.stack(followed).astype("f4"))},
        {"run": list(variants), "seed": seeds},
    )
    return PartSeen("models", dataset, found, lens.findings(found), {"seeds": len(few.seeds)})


#: Noise levels at which a seed is followed.
FOLLOWED = 9


def _operated(asked: tuple[Study, Seeding], wish: dict, report: Report) -> PartSeen:
    """A noise changed by hand: ``noise`` and ``outcomes`` of receiver, donor and result."""
    study, options = asked
    report("preparing", 0.0)
    setup = build(study)
    sampler = DDIM(eta=options.eta) if options.eta else setup.sampler
    subject = Subject(setup.truth, sampler, setup.grid, None, setup.data)
    laws = dict(list(classes_of(subject).items())[:CLASSES])
    event, condition = setup.truth.event_shape, setup.truth.condition
    diffusions = [Diffusion(subject.process, law, condition) for law in laws.values()]
    if not subject.process.has_prior:
        raise NotImplementedError(
            f"{subject.process!r} has no prior, so no seed starts from noise alone; take another "
            "process."
        )
    receiver, donor = (int(wish.get(key, 0)) for key in ("receiver", "donor"))
    if min(receiver, donor) < 0:
        raise StudyError({"": f"the seeds were {receiver} and {donor}; seeds are at least 0."})
    amount = float(wish.get("amount", 0.5))
    if not 0 <= amount <= 1:
        raise StudyError({"": f"the amount was {amount:g}; it must be from 0 to 1."})
    z = surgery.noise_of(diffusions[0], [receiver, donor]).double()
    one, other = z[:1], z[1:]
    operation, part = wish.get("operation", "patch"), None
    if operation == "patch":
        part = surgery.patch(event, tuple(wish["rows"]), tuple(wish["columns"]))
        result = surgery.transplanted(one, other, part)
    elif operation == "band":
        part = surgery.band(event, str(wish.get("band", "")))
        result = surgery.transplanted(one, other, part)
    elif operation == "interpolate":
        result = surgery.interpolated(one, other, amount)
    elif operation == "rotate":
        result = surgery.rotated(one, other, amount * np.pi)
    elif operation == "average":
        result = surgery.averaged(surgery.noise_of(diffusions[0], list(setup.seeds)).double())
    elif operation == "search":
        return _searched(subject, diffusions, laws, one, other, [receiver, donor], report)
    else:
        raise StudyError({"": f"there is no operation {operation!r}; there are {OPERATIONS}."})
    finals = []
    for k, diffusion in enumerate(diffusions):
        noise = torch.cat([one, other, result])
        seeds = [receiver, donor, receiver]
        finals.append(surgery.outcome(diffusion, sampler, setup.grid, noise, seeds).double().cpu())
        report("samples", (k + 1) / len(diffusions))
    outcomes = torch.stack(finals, 1)
    return _operation(subject, torch.cat([one, other, result]), outcomes, laws, part, [])


OPERATIONS = "patch, band, interpolate, rotate, average, search"


def _searched(subject, diffusions, laws, one, other, seeds, report) -> PartSeen:
    """The one noise whose samples in all classes come closest to the donor's of the first class."""
    grid, sampler = subject.grid, subject.sampler
    ends = [surgery.outcome(d, sampler, grid, torch.cat([one, other]), seeds) for d in diffusions]
    before = torch.stack([end.double().cpu() for end in ends], 1)
    targets = before[1, :1].expand(len(diffusions), *before.shape[2:])
    maps = affine_maps(subject)
    start = None
    if maps is not None:
        gram = sum(a.T @ a for a in maps.matrices) + PRIOR * torch.eye(targets[0].numel()).double()
        pull = sum(
            a.T @ (targets[0].flatten() - m) for a, m in zip(maps.matrices, maps.means, strict=True)
        )
        start = torch.linalg.solve(gram, pull).reshape(one.shape)
    found = surgery.sought(
        diffusions,
        sampler,
        grid,
        targets,
        PRIOR,
        start,
        1 if maps is not None else SEARCHED,
        on_step=lambda i, n: report("searching", i / n),
    )
    away = (before[0] - targets).square().mean().sqrt().item()
    said = (
        f"The noise that was sought comes within {found.distance:.3f} of the target in the "
        f"{len(laws)} classes, seed {seeds[0]} within {away:.3f} [root mean square, x]; the target "
        f"is the sample of seed {seeds[1]} in the first class."
    )
    outcomes = torch.cat([before, found.outcomes[None]])
    noise = torch.cat([one, other, found.noise])
    return _operation(subject, noise, outcomes, laws, None, [said])


#: Weight of the prior in a search of the noise.
PRIOR = 1e-2


def _operation(subject, noise, outcomes, laws, part, facts) -> PartSeen:
    event = subject.diffusion.event_shape
    norm = noise[2].norm().item() / np.sqrt(noise[2].numel())
    if part is not None:
        change = (outcomes[2] - outcomes[0]).flatten(1)
        inside = (change @ part).square().sum().item() / max(change.square().sum().item(), 1e-300)
        held = part.diagonal().sum().item() / len(part)
        maps = affine_maps(subject)
        exact = ""
        if maps is not None:
            within = sum((part @ a @ part).square().sum().item() for a in maps.matrices)
            whole = sum((a @ part).square().sum().item() for a in maps.matrices)
            exact = f" (expected over seeds {within / whole:.0%}, exact)"
        facts = [
            f"{held:.0%} of the noise was replaced; {inside:.0%} of the change of the samples lies "
            f"in the same part{exact}."
        ]
    facts = [*facts, f"The noise has {norm:.2f} of the length of a standard normal."]
    scale = _scale(subject, subject.grid, np.array([subject.grid.steps]))[0]
    axes = _events(subject.diffusion)
    dataset = xr.Dataset(
        {
            "noise": (("who", *axes), noise.reshape(3, *event).cpu().numpy().astype("f4")),
            "outcomes": (("who", "class", *axes), (outcomes / scale).numpy().astype("f4")),
        },
        {"who": ["receiver", "donor", "result"], "class": [str(label) for label in laws]},
    )
    return PartSeen("surgery", dataset, None, facts, {})


def _first(subject: Subject, most: int) -> Subject:
    """The subject of the first seeds alone; where a class is a network, of fewer."""
    laws = classes_of(subject).values()
    if affine_maps(subject) is None and any(isinstance(law, Neural) for law in laws):
        most = FADED_OF_NETWORK
    return another(subject, run=subject.run.isel(sample=slice(0, most)))


#: Parts by name: functions of what is asked, the wish, and the report of progress.
PARTS: dict[str, Callable[[tuple[Study, Seeding], dict, Report], PartSeen]] = {
    "row": _row,
    "fading": _fading,
    "models": _models,
    "surgery": _operated,
}
