"""What to keep of a run, and when: a value, not a callback.

Recording never changes a run: the state at a node and, where the sampler evaluates it there anyway,
the denoised state are copied into buffers made beforehand. Where a method does not evaluate the
denoiser at a recorded node, it is evaluated once more for the record; those are not counted in NFE.

A field may be reduced over the samples instead, node by node and on the device, so that memory does
not grow with their number: ``x.spectrum``, ``denoised.moments``. Runs of other samples are merged
by :meth:`Moments.merged`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workbench.registry import View, register
from workbench.sampling.bands import Moment, rings
from workbench.sampling.grid import Grid, Node

#: What can be recorded, with its meaning.
FIELDS = {
    "x": "state x_t",
    "denoised": "posterior mean E[x0 | x_t]",
    "noise": "noise prediction E[eps | x_t]",
    "score": "gradient of the log-density",
    "velocity": "probability-flow velocity dx/dt",
}

#: How a field may be reduced over the samples: functions from values (n, *event), float64, to a
#: feature of each (n, *shape), of which the mean over samples is kept. Registered with ``dims``,
#: the names of the feature's axes (None: those of the event), and where one has labels ``coords``,
#: a function of the event's shape that gives each ``(dim, values, attributes)`` by name; with
#: ``moment`` it is also told where in the run the values were (or None), and the values are in the
#: dtype of the run; with ``groups``, a number, what is kept is not the mean over samples but what
#: each group of them adds to it, along a first dim ``group``: sample i of a chunk is of group i
#: modulo their number, and the sum over groups is the mean over samples.
REDUCTIONS = View("reduction")


def recordable() -> dict[str, str]:
    """Whatever a record may name, with its meaning: a field, or a field and its reduction."""
    return FIELDS | {
        f"{field}.{how}": f"{meaning}: {one.summary}"
        for how, one in REDUCTIONS.entries.items()
        for field, meaning in FIELDS.items()
    }


class Record:
    """Fields to keep at every ``every``-th node; the first and the last node are always kept.

    Args:
        fields: names from ``x denoised noise score velocity``; with a reduction behind a name
            (``x.spectrum``, ``x.moments``) it is reduced over the samples, see ``REDUCTIONS``.
        every: keep each ``every``-th node, at least 1.

    Raises:
        ValueError: an unknown field, none at all, or ``every`` below 1.
    """

    def __init__(self, fields: Sequence[str] = ("x",), every: int = 1) -> None:
        names = (fields,) if isinstance(fields, str) else tuple(dict.fromkeys(fields))
        known = FIELDS if set(names) <= set(FIELDS) else recordable()
        for name in names:
            if name not in known:
                raise ValueError(
                    f"record field was {name!r}; it must be one of {', '.join(FIELDS)}, or one of "
                    f"them reduced over samples: {', '.join(f'x.{how}' for how in REDUCTIONS)}."
                )
        if not names:
            raise ValueError(f"record fields were empty; name at least one of {', '.join(FIELDS)}.")
        if isinstance(every, bool) or int(every) != every or every < 1:
            raise ValueError(f"record every was {every!r}; it must be a whole number, at least 1.")
        self.fields, self.every = names, int(every)

    def indices(self, grid: Grid) -> list[int]:
        """Indices of the nodes that are kept."""
        kept = list(range(0, grid.steps + 1, self.every))
        return kept if kept[-1] == grid.steps else [*kept, grid.steps]

    @property
    def whole(self) -> tuple[str, ...]:
        """The fields kept for every sample."""
        return tuple(name for name in self.fields if name in FIELDS)

    @property
    def reduced(self) -> tuple[tuple[str, str], ...]:
        """The others, as (field, reduction)."""
        return tuple(tuple(name.split(".")) for name in self.fields if name not in FIELDS)

    @property
    def states_alone(self) -> bool:
        """Whether nothing but the states themselves is needed."""
        return all(name.split(".")[0] == "x" for name in self.fields)

    def check(self, grid: Grid) -> None:
        """Refuse what has no value at a node of ``grid``."""
        bases = [name.split(".")[0] for name in self.fields]
        derived = [name for name in bases if name in ("noise", "score", "velocity")]
        if derived and grid.sigma[-1] == 0.0:
            raise ValueError(
                f"{derived[0]} cannot be recorded at sigma = 0, where this grid ends; use "
                'final="stop" or record x and denoised only.'
            )

    def __eq__(self, other) -> bool:
        return isinstance(other, Record) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Record({list(self.fields)}, every={self.every})"


@dataclass(frozen=True)
class Moments:
    """Mean and spread over samples of what each of them gives, e.g. its power in each band.

    Attributes:
        count: number of samples.
        mean: (time, *feature).
        m2: sum of squared deviations from the mean, likewise.
    """

    count: int
    mean: Tensor
    m2: Tensor

    @property
    def variance(self) -> Tensor:
        """Unbiased variance over samples; nan for a single one."""
        return self.m2 / (self.count - 1) if self.count > 1 else torch.full_like(self.m2, math.nan)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean."""
        return (self.variance / self.count).sqrt()

    def merged(self, other: Moments) -> Moments:
        """Those of the samples of both.

        Source: Chan, Golub & LeVeque 1979, *Updating formulae and a pairwise algorithm for
        computing sample variances*, Stanford CS-79-773.
        """
        total = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / total)
        m2 = self.m2 + other.m2 + apart.square() * (self.count * other.count / total)
        return Moments(total, mean, m2)


def bands(event: torch.Size) -> tuple[tuple[int, ...], Tensor | None]:
    """The bands of a spectrum, and the share of each mode of ``rfft2`` in them (modes, bands).

    Of images: frequencies to the nearest whole number of cycles per shorter side, radially. Of
    anything else: the coordinates, and None.
    """
    found = rings(event[-2:])
    return found.labels, found.share / found.counts if len(event) > 1 else None


def _band_labels(event: torch.Size) -> dict[str, tuple]:
    unit = "cycles per shorter side" if len(event) > 1 else "index of the coordinate"
    return {"band": ("band", list(bands(event)[0]), {"long_name": unit})}


@register(kind="reduction", dims=("band",), coords=_band_labels)
def spectrum(value: Tensor) -> Tensor:
    """Mean power per mode of each band [x²]: radial for images, otherwise per coordinate.

    White noise of variance 1 has 1 in each.
    """
    _, share = bands(value.shape[1:])
    if share is None:
        return value.reshape(len(value), -1).square()
    modes = torch.fft.rfft2(value, norm="ortho").abs().square_().flatten(-2)
    power = modes @ share.to(value)
    return power.reshape(len(power), -1, power.shape[-1]).mean(1)  # over channels


@register(kind="reduction", dims=None, variance=True)
def moments(value: Tensor) -> Tensor:
    """Mean [x] and variance [x²] of each coordinate."""
    return value


def reduced(how: str, value: Tensor, moment: Moment | None = None) -> Tensor:
    """The feature (n, *shape) of each of the values (n, *event), by the name of a reduction.

    Args:
        moment: where in a run the values were, for a reduction registered with ``moment``.

    Raises:
        ValueError: a feature that has not the axes its reduction was registered with.
    """
    one = REDUCTIONS.entries[how]
    where = {"moment": moment} if one.facts.get("moment") else {}
    feature, dims = one.target(value, **where), one.facts.get("dims", ())
    axes = value.ndim - 1 if dims is None else len(dims) - bool(one.facts.get("groups"))
    if feature.shape[:1] != value.shape[:1] or feature.ndim != 1 + axes:
        named = "those of a sample" if dims is None else f"{axes} ({', '.join(dims) or 'none'})"
        raise ValueError(
            f"reduction {how} gave a tensor of shape {tuple(feature.shape)} for "
            f"{len(value)} samples; it must have one row for each sample and further axes: {named}."
        )
    return feature


def kept_shape(how: str, event: torch.Size) -> torch.Size:
    """Shape of what is kept of a reduction at each node."""
    groups = REDUCTIONS.entries[how].facts.get("groups")
    shape = reduced(how, torch.zeros(1, *event, dtype=torch.float64)).shape[1:]
    return torch.Size((groups, *shape)) if groups else shape


class Recorder:
    """The buffers of one run, filled node by node."""

    def __init__(
        self, record: Record, diffusion, grid: Grid, like: Tensor, columns: bool = False
    ) -> None:
        """``columns``: states come with each coordinate of all of them side by side."""
        record.check(grid)
        self.kept = record.indices(grid)
        self._slots = {index: slot for slot, index in enumerate(self.kept)}
        self._diffusion, self._denoiser = diffusion, diffusion.core
        self._process, self._reduced = diffusion.process, record.reduced
        self.needs_denoised = not record.states_alone
        shape = like.shape[::-1] if columns else like.shape
        self.buffers = {
            name: like.new_empty((len(self.kept), *shape)).mT
            if columns
            else like.new_empty((len(self.kept), *shape))
            for name in record.whole
        }
        self._sums: dict[str, Tensor] = {}  # mean and m2, (2, time, *feature)
        self._count = len(like)

    @cached_property
    def _rooms(self) -> dict[str, tuple[Tensor, ...]]:
        return {name: buffer.unbind() for name, buffer in self.buffers.items()}

    def wants(self, index: int) -> bool:
        return index in self._slots

    def room(self, index: int) -> Tensor | None:
        """Where the state at node ``index`` may be written at once, if it is kept.

        Not where something is reduced: such a node has to be seen by :meth:`keep`.
        """
        slot = self._slots.get(index)
        states = self._rooms.get("x")
        return None if slot is None or states is None or self._reduced else states[slot]

    def states_of_all(self) -> Tensor | None:
        """The states at all nodes (time, n, *event), if all are kept."""
        return self.buffers.get("x") if self.kept[-1] + 1 == len(self.kept) else None

    def states_alone(self) -> Tensor | None:
        """The same, if nothing else is kept: then they may be written without this recorder."""
        return None if len(self.buffers) > 1 or self._reduced else self.states_of_all()

    def keep(self, index: int, node: Node, x: Tensor, denoised: Tensor | None) -> None:
        """Store node ``index``; ``denoised`` is D(x) there, or None to have it evaluated."""
        slot, (_, alpha, sigma) = self._slots[index], node
        if self.needs_denoised and denoised is None:
            denoised = self._denoiser.denoise(x, alpha, sigma)
        for name, rooms in self._rooms.items():
            room = rooms[slot]
            if name != "x":
                room.copy_(self._field(name, node, x, denoised))
            elif x is not room:  # it may be there already
                room.copy_(x)
        held: dict = {}
        for field, how in self._reduced:
            facts = REDUCTIONS.entries[how].facts
            value = self._field(field, node, x, denoised)
            value = self._diffusion.from_core(value, node.t, field)
            if value.device.type != "mps" and not facts.get("moment"):
                value = value.double()
            feature = reduced(how, value, Moment(self._diffusion, field, node, x, held))
            feature = feature if feature.device.type == "mps" else feature.double()
            groups, name = facts.get("groups"), f"{field}.{how}"
            if name not in self._sums:
                shape = ((groups,) if groups else ()) + feature.shape[1:]
                self._sums[name] = feature.new_empty((2, len(self.kept), *shape))
            mean, m2 = self._sums[name][:, slot]
            if groups:
                _in_groups(feature, mean, m2)
            else:
                torch.mean(feature, 0, out=mean)
                torch.sum((feature - mean).square_(), 0, out=m2)

    def fields(self, kept: int) -> dict[str, Tensor]:
        """What was kept of every sample, at the first ``kept`` nodes, (time, sample, *event)."""
        return {name: buffer[:kept] for name, buffer in self.buffers.items()}

    def reductions(self, kept: int) -> dict[str, Moments]:
        """What was reduced, at the first ``kept`` nodes."""
        made = {}
        for name, sums in self._sums.items():
            mean, m2 = sums[:, :kept].cpu().double()
            made[name] = Moments(self._count, mean, m2)
        return made

    def _field(self, name: str, node: Node, x: Tensor, denoised: Tensor | None) -> Tensor:
        """A field of the core variable at ``node``."""
        if name in ("x", "denoised"):
            return x if name == "x" else denoised
        t, alpha, sigma = node
        noise = (x - alpha * denoised).div_(sigma)
        if name == "score":
            noise.mul_(-1.0 / sigma)
        elif name == "velocity":
            c = self._process(t)
            if isinstance(alpha, Tensor):
                c = c.map(lambda v: v.to(x))
            noise.mul_(c.d_sigma).add_(c.d_alpha * denoised)
        return noise


def _in_groups(feature: Tensor, mean: Tensor, m2: Tensor) -> None:
    """What each group of samples adds to the mean, and the spread of that over samples."""
    count = len(feature)
    which = torch.arange(count, device=feature.device) % len(mean)
    mean.zero_().index_add_(0, which, feature).div_(count)
    m2.zero_().index_add_(0, which, feature.square())
    m2.sub_(count * mean.square()).clamp_(min=0)
