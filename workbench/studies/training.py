"""Trainings: one file that says which network is trained, on what and how.

::

    data:         {name: digits}
    network:      {name: UNet, widths: [32, 64]}
    objective:    {name: EDMLoss, p_mean: -0.8}
    regularisers: [{name: Conservativity, weight: 0.1}]
    training:     {steps: 2500, batch: 128, held_out: 297, classes: true}

A training may begin with the weights of another: ``start: network.safetensors``.

``workbench train study.yaml`` carries it out; :func:`submit` has a process of its own do it, which
outlives the one that asked, in the folder ``.trainings/<hash>`` of the folder of results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from workbench.datasets import Data
from workbench.denoisers import Neural
from workbench.learning.networks import Network
from workbench.learning.objectives import Objective
from workbench.learning.regularisers import Regulariser
from workbench.learning.training import Settings, Trained, peek, train
from workbench.params import Declared, Param, declared
from workbench.studies import files
from workbench.studies.flat import query_of, salvaged
from workbench.studies.jobs import Job, begin, perform, places_of
from workbench.studies.jobs import folder as jobs_folder
from workbench.studies.plain import nearest, shown
from workbench.studies.run import made
from workbench.studies.spec import Choice, Document, StudyError

#: Seconds between two states of a job: so often can be looked at what it draws.
SAVE_EVERY = 1.5


@dataclass(frozen=True)
class _Entries:
    data: Annotated[Data, Param("what is learnt", standard="ring")]
    network: Annotated[Network, Param("what learns it", standard="MLP")]
    objective: Annotated[Objective, Param("what is minimised", standard="EDMLoss")]
    training: Annotated[Settings, Param("how long and how fast")]
    regularisers: Annotated[tuple[Regulariser, ...], Param("penalties added to it")] = ()
    start: Annotated[
        Path | None, Param("a checkpoint whose weights it begins with; none: fresh ones")
    ] = None


#: The entries of a training, by name.
ENTRIES: dict[str, Declared] = declared(_Entries)


class Training(Document):
    """A validated training, a value."""

    entries = ENTRIES
    words = ("training", "entries, e.g. 'network: {name: UNet}'")

    data: Choice
    network: Choice
    objective: Choice
    regularisers: tuple[Choice, ...]
    training: Settings
    start: str | None

    @staticmethod
    def _no_entry(key: Any) -> str:
        return (
            f"a training has no entry {shown(key)}{nearest(key, ENTRIES)}; its entries are "
            f"{', '.join(ENTRIES)}."
        )

    @classmethod
    def salvage(cls, flat: Mapping[str, Any]) -> tuple[Training, dict[str, str]]:
        """The training of what can be read of ``flat``, and a sentence for each entry left out."""
        return salvaged(cls().changed, flat)

    def to_query(self) -> str:
        """As a URL query: what differs from what its objects have by default."""
        flat, usual = self.to_flat(), Training().to_flat()
        names = {key: flat[key] for key in ("data", "network", "objective", "regularisers")}
        base = Training().changed(names).to_flat()
        told = {k: v for k, v in names.items() if v != usual[k]}
        told |= {k: v for k, v in flat.items() if k not in names and v != base.get(k)}
        return query_of(told)


def carry_out(
    training: Training,
    folder: Path,
    out: Path | None = None,
    command: str = "",
    on_step: Callable[[int, int, dict], None] | None = None,
    save_every: float = 10.0,
) -> Trained:
    """Train, or go on where an interrupted training stood; see :func:`workbench.learning.train`.

    Raises:
        StudyError: values that do not go together.
        TrainingError: a training that has failed.
    """
    data, network, options = _made(training)
    return train(
        data,
        network,
        folder,
        **options,
        out=out,
        command=command,
        save_every=save_every,
        on_step=on_step,
    )


def snapshot(training: Training, folder: Path, out: Path) -> Path | None:
    """Write the network of a training under way, as far as it has come, as a checkpoint.

    Args:
        training, folder: of it.
        out: the checkpoint; ``card["curve"]`` is what is known so far.

    Returns:
        ``out``; None while no state has been written.
    """
    data, network, options = _made(training)
    return peek(data, network, folder, **options, out=out)


def _made(training: Training) -> tuple[Data, Callable[..., Network], dict[str, Any]]:
    """The data and the network, tried on each other, and what else decides the weights."""
    try:
        data = made(training.data)
        network = functools.partial(training.network.entry.target, **training.network.parameters)
        network(data.event_shape, 0)
        options = {
            "objective": made(training.objective, data=data),
            "regularisers": [made(one, data=data) for one in training.regularisers],
            "settings": training.training,
            "study": training.to_dict(),
            "start": training.start and files.place(training.start),
        }
    except (ValueError, TypeError, NotImplementedError) as error:
        raise StudyError({"": str(error)}) from None
    return data, network, options


# ---- a process of its own ------------------------------------------------------------------------


def folder() -> Path:
    """Where trainings are: ``.trainings`` in the folder of results (``WORKBENCH_RESULTS``)."""
    return jobs_folder().with_name(".trainings")


class TrainingJob(Job):
    """A training to be done, under way or done; its result is a network."""

    @property
    def study(self) -> Training:
        return Training.load(self.folder / "study.json")

    @property
    def store(self) -> Path:
        return self.folder / "network.safetensors"

    @property
    def curve(self) -> dict[str, list]:
        """The losses so far: ``step``, ``loss``, and by noise level ``training``, ``held_out``."""
        return self._said().get("curve", {})

    def _opened(self) -> Neural:
        return Neural.load(self.store)


def job_of(training: Training) -> TrainingJob | None:
    """The job of a training, if it was ever submitted."""
    place = folder() / training.hash
    return TrainingJob(training.hash, place) if (place / "job.json").is_file() else None


def jobs() -> list[TrainingJob]:
    """Every training of the folder of results, the newest first."""
    places = places_of(folder())
    places.sort(key=lambda one: -(one / "study.json").stat().st_mtime)
    return [TrainingJob(one.name, one) for one in places]


def submit(training: Training) -> TrainingJob:
    """Have a training carried out by a process of its own, unless it is done or under way.

    One that failed, was killed or cancelled goes on where it ended.

    Raises:
        TypeError: something that is not a training.
        StoreError: the folder of results cannot be written to.
    """
    if not isinstance(training, Training):
        raise TypeError(f"training was {training!r}; it must be a Training.")
    job = TrainingJob(training.hash, folder() / training.hash)
    begin(job, "workbench.studies.training", "study.json", training.to_json(), job.store.exists)
    return job


def main(place: str) -> None:
    job = TrainingJob(Path(place).name, Path(place))

    def work(on_step: Callable[..., None]) -> None:
        def tell(done: int, total: int, curve: dict) -> None:
            on_step(done, total, curve=curve)

        carry_out(job.study, job.folder, on_step=tell, save_every=SAVE_EVERY)

    perform(job, work)
