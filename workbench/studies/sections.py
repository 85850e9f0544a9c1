"""What a study has: its entries, and registered objects by their names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from workbench import registry
from workbench.datasets import Data
from workbench.denoisers import Denoiser
from workbench.lenses import Lens
from workbench.params import Declared, Param, declared
from workbench.processes import Process
from workbench.sampling import NOISES, Sampler
from workbench.sampling.grid import Grid
from workbench.sampling.methods import Inversion
from workbench.sampling.record import recordable
from workbench.studies import plain


class StudyError(ValueError):
    """A study that cannot be run; ``problems`` maps each path (``grid.steps``) to a sentence."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__(plain.joined(self.problems.values()))

    def __reduce__(self):
        return type(self), (self.problems,)


@dataclass(frozen=True)
class Seeds:
    """Sample i of a run has seed ``first + i``."""

    first: Annotated[int, Param("seed of the first sample", ge=0, le=2**53, label="first seed")] = 0
    count: Annotated[int, Param("number of samples", ge=1, le=1_000_000, label="samples")] = 256


@dataclass(frozen=True)
class Recording:
    """What is kept of the run."""

    fields: Annotated[
        tuple[str, ...],
        Param(
            "fields kept; behind a name a reduction over samples, x.spectrum",
            choices=recordable,
            fewest=1,
            label="record",
        ),
    ] = ("x", "denoised")
    every: Annotated[int, Param("keep every n-th node", ge=1, le=10_000)] = 1


@dataclass(frozen=True)
class _Entries:
    data: Annotated[Data, Param("what is to be generated", standard="ring")]
    denoiser: Annotated[Denoiser, Param("the model of the data", standard="Mixture")]
    process: Annotated[Process, Param("how data becomes noise", standard="VP")]
    sampler: Annotated[Sampler | Inversion, Param("the way back", standard="Heun")]
    grid: Annotated[
        Grid, Param("where it stops on the way", standard={"name": "log_snr", "steps": 32})
    ]
    seeds: Annotated[Seeds, Param("the samples")]
    record: Annotated[Recording, Param("what is kept")]
    lenses: Annotated[tuple[Lens, ...], Param("measured after the run and kept with it")] = ()
    noise: Annotated[
        Literal[tuple(NOISES)],
        Param("fresh in each step, or one Brownian path per seed, the same at any number of steps"),
    ] = "fresh"
    dtype: Annotated[Literal["float32", "float64"], Param("precision of the run")] = "float32"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Param("where to run")] = "auto"


#: The entries of a study, by name.
ENTRIES: dict[str, Declared] = declared(_Entries)

#: Those that name one registered object each, with what they may name.
SECTIONS = {name: registry.View(*one.kinds) for name, one in ENTRIES.items() if one.kinds}


@dataclass(frozen=True)
class Choice:
    """A registered object by its name, with every parameter; these are attributes as well."""

    registry_kind: str
    name: str
    parameters: Mapping[str, Any]

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["parameters"][key]
        except KeyError:
            raise AttributeError(f"{self.__dict__.get('name')} has no parameter {key!r}") from None

    @property
    def entry(self) -> registry.Entry:
        """The registered object."""
        return registry.entry(self.registry_kind, self.name)

    def __hash__(self) -> int:
        return hash((self.registry_kind, self.name))


class Partial(dict):
    """Parameters of an object whose name has its default: of a flat form, ``grid.steps=5``."""


def standard(one: Declared) -> Any:
    """What stands where nothing is given."""
    if one.param.standard is not None:
        return one.param.standard
    if is_dataclass(one.type):
        return Partial()
    return "" if one.type is Path and one.default is inspect.Parameter.empty else one.default


def plain_of(value: Any) -> Any:
    """A value of a study as plain Python values."""
    if isinstance(value, Choice):
        return {"name": value.name, **{k: plain_of(v) for k, v in value.parameters.items()}}
    if isinstance(value, tuple):
        return [plain_of(one) for one in value]
    if is_dataclass(value):
        return {one.name: plain_of(getattr(value, one.name)) for one in fields(value)}
    return value
