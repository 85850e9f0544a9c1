"""A study carried out: the objects it names, and the labelled arrays it leaves.

Samples are run in chunks, so that memory is bounded and known beforehand. The chunks are a matter
of the study alone: whoever runs it gets the same bytes.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.datasets import Data
from workbench.denoisers import Denoiser
from workbench.diffusion import Diffusion
from workbench.lenses import Lens
from workbench.lenses.base import OF_DATA, OnStep, Subject
from workbench.sampling import NOISES, Grid, Record, Sampler
from workbench.sampling.record import Moments, kept_shape
from workbench.studies import files
from workbench.studies.measuring import measured, parts_of, with_lenses
from workbench.studies.spec import Choice, Study, StudyError
from workbench.trajectory import FAR_NOTE, Trajectory, sample

if TYPE_CHECKING:
    import xarray

#: Version of the datasets that a run leaves; a reader refuses newer ones.
FORMAT = 1

#: What functions of a kind take before their parameters; a class with ``from_data`` takes the data.
FIRST = {"condition": "data", "spectrum": "data", "grid": "process"}

#: What the arrays of one chunk may take.
CHUNK_BYTES = 160 * 2**20
#: Live numbers for each number of the state: registers of the sampler, temporaries of a denoiser.
REGISTERS = 24
#: Bytes for each number of the state while its noise is drawn, and while it is reduced.
NOISE_BYTES, REDUCED_BYTES = {"fresh": 128, "brownian": 704}, 48
#: What does not grow with the samples: pieces of a denoiser, blocks of noise, of compression.
FIXED_BYTES = 224 * 2**20


@dataclass(frozen=True)
class Setup:
    """The objects a study names, in the study's precision and on its device.

    ``made`` is the denoiser before it was brought there; ``each`` are conditions (N, *event), where
    sample i has that of place seed modulo N.
    """

    study: Study
    data: Data
    diffusion: Diffusion
    made: Denoiser
    sampler: Sampler
    grid: Grid
    seeds: range
    record: Record
    lenses: dict[str, Lens]
    each: Tensor | None = None

    @property
    def truth(self) -> Diffusion:
        """The diffusion in float64, for exact values: not one that was rounded before."""
        device = self.diffusion.device
        device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        made = self.made.to(torch.float64, device)
        return Diffusion(self.diffusion.process, made, self.diffusion.condition)

    def subject(self, run: xarray.Dataset | None = None) -> Subject:
        """What lenses look at: the exact diffusion, with the run or some samples of it."""
        truth = self.truth
        if run is not None and self.each is not None:
            truth = truth.towards(self.conditions(run["seed"].values.tolist()))
        return Subject(truth, self.sampler, self.grid, run, self.data)

    def sample(
        self,
        on_step: OnStep | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Trajectory:
        """Run the sampler as the study says; ``seeds`` may be some of the study's."""
        seeds = self.seeds if seeds is None else seeds
        return sample(
            self.diffusion,
            self.sampler,
            self.grid,
            seeds,
            self.record,
            self.start(seeds),
            on_step=on_step,
            noise=self.study.noise,
            labels=self.labels(seeds),
            conditions=self.conditions(seeds),
        )

    def conditions(self, seeds: Sequence[int]) -> Tensor | None:
        """The condition of each seed; None where all have the same, or none."""
        return None if self.each is None else self.each[[seed % len(self.each) for seed in seeds]]

    @property
    def whole(self) -> Diffusion:
        """The diffusion of all samples of the study, each towards its condition."""
        conditions = self.conditions(self.seeds)
        return self.diffusion if conditions is None else self.diffusion.towards(conditions)

    def labels(self, seeds: Sequence[int]) -> list | None:
        """The class asked for of each seed; None where no sample is of a class of its own."""
        denoiser = self.diffusion.denoiser
        if not getattr(denoiser, "each", False):
            return None
        return [denoiser.labels[seed % len(denoiser.labels)] for seed in seeds]

    def start(self, seeds: Sequence[int]) -> Tensor | None:
        """States to start from where the process has no prior: data points, noised.

        Sample i starts from point ``seed modulo their number``.
        """
        if self.diffusion.process.has_prior:
            return None
        like = {"dtype": self.diffusion.dtype, "device": self.diffusion.device}
        points, event = self.data.points.to(**like), self.diffusion.event_shape
        noise = NOISES[self.study.noise](seeds, event, *like.values()).start()
        chosen = torch.tensor([seed % len(points) for seed in seeds], device=like["device"])
        return self.diffusion.diffuse(points[chosen], self.grid.t[0], noise)


def made(choice: Choice, **context: Any) -> Any:
    """The registered object that a study's choice stands for, in float64.

    Args:
        context: what objects are made of beside their parameters, ``data`` and ``process``.

    Raises:
        ValueError, NotImplementedError: values that do not go together, or what is not there.
    """
    entry, parameters = choice.entry, choice.entry.parameters

    def value(key: str, given: Any) -> Any:
        if isinstance(given, Choice):
            return made(given, **context)
        if isinstance(given, tuple):
            return tuple(value(key, one) for one in given)
        one = parameters[key].item or parameters[key]
        if one.type is not Path or given is None:
            return given
        if not given:
            raise ValueError(
                f"{key} names no file yet; give its path in a study file or by --set, or bring it "
                "to the page."
            )
        return files.place(given)

    chosen = {key: given for key, given in choice.parameters.items() if key not in entry.asks}
    options = {key: value(key, given) for key, given in chosen.items()}
    first = "data" if hasattr(entry.target, "from_data") else FIRST.get(entry.kind)
    if first and first not in context:
        raise ValueError(
            f"{choice.name} is made of the {first} of a study, and there is none here."
        )
    return entry.make(*([context[first]] if first else []), **options)


def build(study: Study) -> Setup:
    """The objects that ``study`` names.

    Raises:
        StudyError: values that are each allowed but do not go together.
    """

    def of(entry: str, choice: Choice, **context: Any) -> Any:
        try:
            return made(choice, **context)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise StudyError({entry: f"{entry}: {error}"}) from None

    data = of("data", study.data)
    exact = of("denoiser", study.denoiser, data=data)
    process = of("process", study.process, data=data)
    condition, each = study.process.parameters.get("condition"), None
    if condition is not None:
        condition = of("process.condition", condition, data=data)
        if condition.ndim == len(data.event_shape) + 1:
            condition, each = condition[0], condition
    sampler = of("sampler", study.sampler, data=data)
    grid = of("grid", study.grid, process=process)
    denoiser = exact.to(getattr(torch, study.dtype), resolved(study.device))
    try:
        record = Record(study.record.fields, study.record.every)
        diffusion = Diffusion(process, denoiser, condition)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise StudyError({"record" if "record" in str(error) else "process": str(error)}) from None
    lenses = {one.name: of(f"lenses.{one.name}", one, data=data) for one in study.lenses}
    for name, lens in lenses.items():
        given = (*study.record.fields, "final", *OF_DATA)
        lacking = [field for field in lens.reads if field not in given]
        if lacking:
            raise StudyError(
                {
                    f"lenses.{name}": f"lenses held {name}, which reads {', '.join(lacking)}; "
                    f"record it too: record.fields was {', '.join(study.record.fields)}."
                }
            )
    first = study.seeds.first
    return Setup(
        study=study,
        data=data,
        diffusion=diffusion,
        made=exact,
        sampler=sampler,
        grid=grid,
        seeds=range(first, first + study.seeds.count),
        record=record,
        lenses=lenses,
        each=each,
    )


@dataclass(frozen=True)
class Plan:
    """How a run is cut, and what it takes, known before it.

    Attributes:
        chunk: samples run at once.
        chunks: how many such.
        bytes_peak: most memory of a run written to a store, beside the libraries. A run that is
            returned holds its result, ``bytes_stored``, as well: ``bytes_held``.
        bytes_stored: size of the result before compression.
    """

    chunk: int
    chunks: int
    bytes_peak: int
    bytes_stored: int

    @property
    def bytes_held(self) -> int:
        """Most memory of a run whose result is returned."""
        return self.bytes_peak + self.bytes_stored

    @property
    def bytes_fixed(self) -> int:
        """The part of that which does not grow with the samples."""
        return FIXED_BYTES if self.chunks == 1 else self.bytes_peak

    def rows(self, index: int, count: int) -> slice:
        """The samples of a chunk, of ``count``."""
        return slice(index * self.chunk, min(count, (index + 1) * self.chunk))

    def __str__(self) -> str:
        many = "1 chunk" if self.chunks == 1 else f"{self.chunks} chunks"
        return (
            f"{many} of {self.chunk} samples, about {self.bytes_peak / 1e6:.0f} MB of memory, "
            f"{self.bytes_stored / 1e6:.3g} MB to store"
        )


def plan(study: Study | Setup) -> Plan:
    """How ``study`` will be run, and what that takes.

    Raises:
        StudyError: values that do not go together.
    """
    setup = study if isinstance(study, Setup) else build(study)
    setup.record.check(setup.grid)
    count, numbers = len(setup.seeds), max(1, setup.diffusion.denoiser.dim)
    itemsize = setup.diffusion.dtype.itemsize
    kept, reduced = len(setup.record.indices(setup.grid)), len(setup.record.reduced)
    stored = itemsize * numbers * (kept * len(setup.record.whole) + 1) + 8
    drawn = NOISE_BYTES[setup.study.noise]
    work = numbers * (REGISTERS * itemsize + drawn + (REDUCED_BYTES if reduced else 0))
    most = min(count, max(1, CHUNK_BYTES // (stored + work)))
    chunk = -(-count // -(-count // most))  # of equal size,
    chunk = min(most, -(-chunk // 64) * 64)  # and in whole vectors
    event = setup.diffusion.event_shape
    features = sum(math.prod(kept_shape(how, event)) for _, how in setup.record.reduced)
    sums = 16 * features * kept  # a mean and a spread each
    running = chunk * (stored + work) + 3 * sums
    looking = [lens.memory(numbers, kept) for lens in setup.lenses.values()]  # after the run
    return Plan(
        chunk=chunk,
        chunks=-(-count // chunk),
        bytes_peak=FIXED_BYTES + max(running, *looking, 0),
        bytes_stored=count * stored + sums,
    )


def run(study: Study, on_step: OnStep | None = None) -> xarray.Dataset:
    """Carry out ``study``: dims (time, sample, *event), see :class:`workbench.Trajectory`.

    ``attrs["study"]`` holds the study as JSON, so that a stored result can be run again, and
    ``attrs["study_hash"]`` its hash. What its lenses measure stands under their names; see
    :mod:`workbench.studies.measuring`.

    Args:
        on_step: called as ``on_step(done, total)`` after each step of each chunk; what it raises
            ends the run.

    Raises:
        StudyError: values that do not go together.
        RunError: numbers that are not finite, with the run of those samples up to there.
    """
    setup = build(study)
    made = plan(setup)
    on_run, on_lens = parts_of(on_step, len(setup.lenses))
    dataset = sampled(setup, made, on_run).dataset.assign_attrs(provenance(study))
    return with_lenses(dataset, measured(setup, dataset, on_lens))


def sampled(setup: Setup, made: Plan, on_step: OnStep | None = None) -> Trajectory:
    """The run of all samples, chunk by chunk as it was planned."""
    if made.chunks == 1:
        return setup.sample(on_step)
    count, arrays, reduced, seconds, nfe = len(setup.seeds), {}, {}, 0.0, 0
    attrs: dict = {}
    for index in range(made.chunks):
        rows = made.rows(index, count)
        run = setup.sample(step_of(on_step, index, made.chunks), setup.seeds[rows])
        for name, value in {**run.fields, "final": run.final}.items():
            before = () if name == "final" else value.shape[:1]
            if name not in arrays:
                shape = (*before, count, *run.final.shape[1:])
                arrays[name] = torch.empty(shape, dtype=value.dtype)
            arrays[name][(*(slice(None) for _ in before), rows)] = value.cpu()
        reduced = join(reduced, run.reduced)
        seconds, nfe = seconds + run.attrs["seconds"], max(nfe, run.nfe)
        attrs = with_notes(attrs, run.attrs)
    attrs["seconds"] = round(seconds, 6)
    final, labels = arrays.pop("final"), setup.labels(setup.seeds)
    seeds, whole = tuple(setup.seeds), (setup.whole, setup.sampler)
    rest = (run.kept, attrs, reduced, *whole, labels)
    return Trajectory(final, nfe, seeds, setup.grid, arrays, *rest)


def with_notes(before: dict, after: dict) -> dict:
    """The attributes ``after`` of a chunk, with the notes of those before it; one of states that
    went too far is enough."""
    lines = [line for attrs in (before, after) for line in attrs.get("notes", "").split("\n")]
    notes = list(dict.fromkeys(filter(None, lines)))
    far = [note for note in notes if note.startswith(FAR_NOTE)]
    notes = [note for note in notes if note not in far[1:]]
    return {**after, "notes": "\n".join(notes)} if notes else dict(after)


def join(one: dict[str, Moments], other: dict[str, Moments]) -> dict[str, Moments]:
    """What was reduced over the samples of both runs; {} stands for a run of none."""
    return {name: one[name].merged(value) for name, value in other.items()} if one else other


def step_of(on_step: OnStep | None, index: int, chunks: int) -> OnStep | None:
    """``on_step`` for one chunk of several."""
    if on_step is None:
        return None
    return lambda done, total: on_step(index * total + done, chunks * total)


def provenance(study: Study) -> dict[str, str | int]:
    """What a result says of its study, beside what its trajectory says."""
    return {
        "study": study.to_json(),
        "study_hash": study.hash,
        "format": FORMAT,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def available_devices() -> tuple[str, ...]:
    """The values of ``device`` that this machine can serve."""
    there = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return tuple(name for name, available in there.items() if available)


def resolved(name: str) -> torch.device:
    """The device that a study's ``device`` stands for on this machine."""
    available = available_devices()
    if name == "auto":
        return torch.device("cuda" if "cuda" in available else "cpu")
    if name not in available:
        raise StudyError(
            {"device": f"device was {name!r}; on this machine it may be {', '.join(available)}."}
        )
    return torch.device(name)
