"""Lens: one contract for whatever is measured of a run or of a diffusion.

A lens answers one question with estimates (``measure``), and beside each stands its exact value
where there is a closed form (``exact``), and the band it falls into when there is nothing to see
(``null``). :func:`complete` joins the three: of a variable ``share`` the dataset also has
``share_se`` (standard error), ``share_exact`` and ``share_null`` (dim ``bound``: low, high).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.diffusion import Diffusion
from workbench.params import Parameterised
from workbench.sampling import Grid, Sampler
from workbench.trajectory import Trajectory

if TYPE_CHECKING:
    from workbench.datasets import Data

OnStep = Callable[[int, int], None]

#: The coordinate of a null band.
BOUNDS = ("low", "high")

#: What stands behind the name of an estimate.
BESIDE = ("_se", "_exact", "_null")

#: What a lens may read besides recorded fields.
OF_DATA = ("data", "labels")


class LensError(ValueError):
    """A lens that breaks its contract, or that lacks what it reads."""


@dataclass(frozen=True)
class Subject:
    """What a lens looks at: a diffusion and, where there is one, a run of it.

    Attributes:
        diffusion: in float64.
        sampler, grid: of the run; None without one.
        run: the run's dataset, dims (time, sample, *event), with the fields that the lens reads, of
            the first samples only where the lens asks for some; None: the diffusion alone.
        data: the data set that the denoiser was made of, where it is at hand.
        computed: what lenses have computed of it, see :func:`remembered`.
    """

    diffusion: Diffusion
    sampler: Sampler | None = None
    grid: Grid | None = None
    run: xr.Dataset | None = None
    data: Data | None = None
    computed: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, subject: Subject | Trajectory | Diffusion, data: Data | None = None) -> Subject:
        """The subject that a run, or a diffusion alone, stands for.

        Raises:
            TypeError: anything else.
        """
        if isinstance(subject, Subject):
            return subject
        if isinstance(subject, Diffusion):
            return cls(_exact(subject), data=data)
        if isinstance(subject, Trajectory):
            if subject.diffusion is None:
                raise TypeError("this run does not hold its diffusion; give one of wb.sample.")
            diffusion = _exact(subject.diffusion)
            return cls(diffusion, subject.sampler, subject.grid, subject.dataset, data)
        raise TypeError(
            f"a lens was given {subject!r}; it looks at a run of wb.sample, a Diffusion, or a "
            "Subject."
        )

    @property
    def process(self):
        return self.diffusion.process

    @property
    def denoiser(self):
        return self.diffusion.denoiser

    def field(self, name: str) -> Tensor:
        """A field of the run as a float64 tensor on the diffusion's device."""
        values = np.ascontiguousarray(self.run[name].values)
        return torch.from_numpy(values).to(self.diffusion.device, torch.float64)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once and kept as long as the subject lives."""
        if key not in self.computed:
            self.computed[key] = make()
        return self.computed[key]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the samples looked at."""
        return self.run["seed"].values.tolist()


def stepped(items: Collection, on_step: OnStep | None) -> Iterator:
    """The items one by one; ``on_step(done, total)`` is called when each is done with."""
    for done, item in enumerate(items, 1):
        yield item
        if on_step is not None:
            on_step(done, len(items))


def remembered(method):
    """Decorate a method of a lens, ``(self, subject, on_step)``, that ``measure``, ``exact`` and
    ``null`` all ask for: done once for each subject, which keeps the answer as long as it lives.
    """

    @functools.wraps(method)
    def once(self, subject: Subject, on_step: OnStep | None = None):
        key = (self, method.__qualname__)
        return subject.once(key, lambda: method(self, subject, on_step))

    return once


def _exact(diffusion: Diffusion) -> Diffusion:
    return diffusion if diffusion.dtype == torch.float64 else diffusion.to(torch.float64)


class Lens(Parameterised, ABC):
    """A measurement; a subclass is a frozen dataclass of declared parameters.

    The first sentence of its docstring is the question that it answers. Every estimate has a
    ``long_name`` and ``units`` ("1" for a pure number) in its attributes.

    Attributes:
        reads: recorded fields that it needs (``"x"``, ``"x.spectrum"``, ``"final"``), ``"data"``
            or ``"labels"``. Without any it looks at the diffusion alone.
        bytes_each: memory for each number of a sample [bytes], see :meth:`memory`.
    """

    registry_kind: ClassVar[str] = "lens"
    reads: ClassVar[tuple[str, ...]] = ()
    bytes_each: ClassVar[int] = 0

    @property
    def looks_at(self) -> int | None:
        """How many samples it looks at: its parameter ``samples``; None: all of them."""
        return getattr(self, "samples", None)

    def memory(self, dim: int, kept: int) -> int:
        """About what it takes at most [bytes], of states with ``dim`` numbers at ``kept`` nodes.

        A covariance and its eigenvectors, and ``bytes_each`` for each number of each sample that it
        looks at, unless a lens says otherwise.
        """
        return 48 * dim * dim + self.bytes_each * (self.looks_at or 0) * dim

    @abstractmethod
    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        """The estimates, along ``time`` and ``sample`` of the run and along dims of its own; each
        with ``<name>_se`` where it has a sampling error.

        Args:
            on_step: called as ``on_step(done, total)`` along the way; raise in it to stop.

        Raises:
            NotImplementedError: it has no meaning for this subject, with the reason.
        """

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Some of the same variables in closed form; None where there is none."""
        return None

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """The band that some of the same variables fall into, with probability 1 - ``level``, when
        there is nothing to see: a further dim ``bound`` (low, high). None where there is none.
        """
        return None

    def findings(self, dataset: xr.Dataset) -> list[str]:
        """Sentences made of the numbers of :func:`complete`, the most telling first."""
        return []


#: Attributes of the coordinate ``rho``.
LEVEL = {"long_name": "noise level sigma/alpha", "units": "x"}


def estimate(name: str, dims, value, about: str, units: str = "1", error=None, **attrs) -> dict:
    """An estimate as a variable of a dataset and, where there is one, its standard error."""
    variables = {name: (dims, value, {"long_name": about, "units": units, **attrs})}
    if error is not None:
        variables[f"{name}_se"] = (dims, error, {"units": units})
    return variables


def described(
    values: Mapping, about: Mapping[str, tuple[str, str]], dims: str | tuple = (), **attrs
) -> dict:
    """Estimates and their standard errors as variables, by a table of what each is and its unit."""
    variables = {}
    for name, value in values.items():
        long_name, units = about[name.removesuffix("_se")]
        full = {"long_name": long_name, "units": units, **attrs}
        variables[name] = (dims, value, {"units": units} if name.endswith("_se") else full)
    return variables


def spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of the places 0 to count - 1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


def estimates(dataset: xr.Dataset) -> list[str]:
    """The names of the estimates, without what stands beside them."""
    names = [str(name) for name in dataset.data_vars]
    beside = {name + end for name in names for end in BESIDE}
    return [name for name in names if name not in beside]


def check_reads(lens: Lens, subject: Subject) -> None:
    """Raise :class:`LensError` where ``subject`` lacks what ``lens`` reads."""
    name = type(lens).__name__
    if lens.reads and any(field not in OF_DATA for field in lens.reads) and subject.run is None:
        raise LensError(
            f"{name} reads {', '.join(lens.reads)} of a run and was given a diffusion alone; give "
            "a run of wb.sample."
        )
    for name_read in lens.reads:
        if name_read in OF_DATA:
            if getattr(subject, "data", None) is None:
                raise LensError(f"{name} reads {name_read}, and none was given: data=wb.Data(...).")
            if name_read == "labels" and subject.data.labels is None:
                raise LensError(f"{name} reads labels, and {subject.data.name} has none.")
        elif name_read not in subject.run:
            raise LensError(
                f"{name} reads {name_read}, which was not recorded; record it too: "
                f"wb.Record([{name_read!r}, ...])."
            )


def complete(
    lens: Lens, subject: Subject, level: float = 0.05, on_step: OnStep | None = None
) -> xr.Dataset:
    """What ``lens`` measures of ``subject``, with exact values and null bands beside.

    Raises:
        NotImplementedError: the lens has no meaning for this subject, with the reason.
        LensError: the subject lacks what the lens reads, or an exact value or null band has no
            estimate beside it.
    """
    name = type(lens).__name__
    check_reads(lens, subject)
    with torch.no_grad():
        dataset = lens.measure(subject, on_step)
        beside = {"_exact": lens.exact(subject), "_null": lens.null(subject, level)}
    for end, found in beside.items():
        for key, value in () if found is None else found.data_vars.items():
            if key not in dataset:
                raise LensError(f"{name}: {end[1:]} has {key!r}, which measure does not give.")
            dims = dataset[key].dims
            if end == "_null":
                value, dims = value.assign_coords(bound=list(BOUNDS)), (*dims, "bound")
            value = value.expand_dims({d: dataset.sizes[d] for d in dims if d not in value.dims})
            value = value.transpose(*dims)
            text = {"_exact": "exact", "_null": f"{1 - level:.0%} null band"}[end]
            attrs = {"long_name": f"{dataset[key].attrs.get('long_name', key)}, {text}"}
            if "units" in dataset[key].attrs:
                attrs["units"] = dataset[key].attrs["units"]
            dataset[key + end] = value.assign_attrs(attrs | value.attrs)
    return dataset


#: Dimensions up to which a network is differentiated in the precision it is given in.
SMALL = 8


def quick(denoiser: Denoiser) -> Denoiser:
    """The denoiser in which many derivatives are taken: of a network for many numbers, float32."""
    if denoiser.closed or denoiser.dim <= SMALL:
        return denoiser
    return denoiser.to(torch.float32)


def resolved(lens: str | Lens | type[Lens], parameters: dict) -> Lens:
    """The lens that a name (in any case), a class or an object stands for."""
    from workbench.lenses import LENSES

    if isinstance(lens, Lens):
        if parameters:
            raise TypeError(f"{lens!r} is made; give its parameters where it is made.")
        return lens
    if isinstance(lens, str):
        names = {name.lower(): name for name in LENSES}
        if lens.lower() not in names:
            raise KeyError(f"there is no lens {lens!r}; there are {', '.join(sorted(LENSES))}.")
        lens = LENSES[names[lens.lower()]]
    try:
        return lens(**parameters)
    except TypeError as error:
        raise TypeError(f"{lens.__name__}: {error}") from None


def measure(
    lens: str | Lens,
    subject: Subject | Trajectory | Diffusion,
    *,
    data: Data | None = None,
    level: float = 0.05,
    on_step: OnStep | None = None,
    **parameters,
) -> xr.Dataset:
    """Look at a run, or at a diffusion, through a lens.

    Args:
        lens: a registered name, or an object.
        subject: a run of ``wb.sample``, or a diffusion where the lens reads nothing of a run.
        data: the data set, for lenses that read ``"data"`` or ``"labels"``.
        level: null bands hold with probability 1 - level.
        on_step: called as ``on_step(done, total)`` along the way; raise in it to stop.
        parameters: of the lens, by name.

    Returns:
        Dataset with the estimates; beside each, where they exist, ``<name>_se``, ``<name>_exact``
        and ``<name>_null`` (dim ``bound``).

    Raises:
        KeyError: no lens of that name.
        NotImplementedError: the lens has no meaning for this subject, with the reason.
        LensError: the subject lacks what the lens reads.
    """
    lens = resolved(lens, parameters)
    subject = Subject.of(subject, data)
    if subject.run is not None and lens.looks_at is not None:
        run = subject.run.isel(sample=slice(0, lens.looks_at))
        subject = replace(subject, run=run, computed={})
    return complete(lens, subject, level, on_step)
