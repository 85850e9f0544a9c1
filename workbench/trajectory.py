"""What a run leaves: tensors, counts and provenance; and :func:`sample`, which makes one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from workbench.denoisers.checks import finite
from workbench.diffusion import Diffusion
from workbench.sampling import (
    FIELDS,
    NOISES,
    Grid,
    NotFinite,
    Record,
    Recorder,
    Sampler,
    walk,
)
from workbench.sampling.plan import planned
from workbench.sampling.record import REDUCTIONS, Moments

if TYPE_CHECKING:
    import xarray

#: Names of the event dimensions by their number.
EVENT_DIMS = {
    0: (),
    1: ("dim",),
    2: ("row", "column"),
    3: ("channel", "row", "column"),
}


class RunError(ValueError):
    """A run that came upon numbers that are not finite.

    Attributes:
        run: what was recorded until then, its last finite state as ``final``;
            ``run.attrs["incomplete"]`` holds this error's sentence.
    """

    def __init__(self, sentence: str, run: Trajectory) -> None:
        super().__init__(sentence)
        self.run = run


@dataclass(frozen=True)
class Trajectory:
    """A finished run.

    Attributes:
        final: final states (n, *event).
        nfe: denoiser evaluations of the sampler (those made only for the record not counted).
        seeds: one per sample.
        grid: the grid that was walked.
        fields: recorded tensors by name, (time, sample, *event).
        kept: indices of the recorded nodes.
        attrs: provenance: process, denoiser, sampler, grid, dtype, device, versions, seconds.
        reduced: what was reduced over the samples by name, e.g. ``"x.spectrum"``.
        diffusion, sampler: what made it, for lenses.
        labels: the class asked for of each sample, where they were given one by one.
    """

    final: Tensor
    nfe: int
    seeds: tuple[int, ...]
    grid: Grid
    fields: dict[str, Tensor]
    kept: tuple[int, ...]
    attrs: dict = field(default_factory=dict)
    reduced: dict[str, Moments] = field(default_factory=dict)
    diffusion: Diffusion | None = None
    sampler: Sampler | None = None
    labels: tuple | None = None

    def __getitem__(self, name: str) -> Tensor | Moments:
        try:
            return self.fields[name] if name in self.fields else self.reduced[name]
        except KeyError:
            kept = ", ".join([*self.fields, *self.reduced]) or "nothing"
            raise KeyError(
                f"{name!r} was not recorded ({kept} was); ask for it with "
                f"record=wb.Record([{name!r}])."
            ) from None

    @property
    def t(self) -> tuple[float, ...]:
        """Times of the recorded nodes, decreasing."""
        return tuple(self.grid.t[i] for i in self.kept)

    @property
    def rho(self) -> tuple[float, ...]:
        """Noise levels of the recorded nodes, decreasing."""
        return tuple(self.grid.rho[i] for i in self.kept)

    @property
    def dataset(self) -> xarray.Dataset:
        """The run as an xarray Dataset: dims (time, sample, *event); coords t, alpha, sigma, rho,
        log_snr, step and seed; under a condition ``condition`` (*event), towards a class ``label``
        (sample); ``final`` has no time. Arrays share memory with the tensors.
        """
        import xarray

        event = event_dims(self.final.ndim - 1)
        variables = {
            name: (("time", "sample", *event), value.cpu().numpy(), {"long_name": FIELDS[name]})
            for name, value in self.fields.items()
        }
        variables["final"] = (
            ("sample", *event),
            self.final.detach().cpu().numpy(),
            {"long_name": "final state"},
        )
        variables |= reductions(self.reduced, self.final.shape[1:])
        coords = coordinates(self.grid, self.kept, self.seeds, self.diffusion, self.labels)
        return xarray.Dataset(variables, coords, {"nfe": self.nfe, **self.attrs})

    def sel(self, t=None, rho=None, step=None, seed=None) -> xarray.Dataset:
        """The run at some of its recorded nodes, for some of its samples.

        Args:
            t, rho, step: one of them: a number for the recorded node nearest to it (rho on a
                logarithmic axis), which leaves no ``time``; several for those; a slice, in either
                direction, for all within.
            seed: a seed, which leaves no ``sample``, or several; these must be there.

        Raises:
            ValueError: two of t, rho and step; values beyond those recorded; a seed that was not
                run.
        """
        asked = {k: v for k, v in {"t": t, "rho": rho, "step": step}.items() if v is not None}
        if len(asked) > 1:
            raise ValueError(
                f"{' and '.join(asked)} were given; each names nodes of a run: give one of them."
            )
        where: dict[str, int | list[int]] = {}
        for name, value in asked.items():
            recorded = {"t": self.t, "rho": self.rho, "step": self.kept}[name]
            where["time"] = _nearest(name, value, [float(place) for place in recorded])
        if seed is not None:
            several = isinstance(seed, Sequence) or getattr(seed, "ndim", 0)
            places = {own: place for place, own in enumerate(self.seeds)}
            chosen = [int(one) for one in seed] if several else [int(seed)]
            lacking = [str(one) for one in chosen if one not in places]
            if lacking:
                raise ValueError(
                    f"seed {', '.join(lacking)} is not in this run of {len(self.seeds)} samples, "
                    f"of seeds {min(self.seeds)} to {max(self.seeds)}."
                )
            rows = [places[one] for one in chosen]
            where["sample"] = rows if several else rows[0]
        return self.dataset.isel(where)


def event_dims(number: int) -> tuple[str, ...]:
    """Names of the event dimensions."""
    return EVENT_DIMS.get(number) or tuple(f"event_{i}" for i in range(number))


def _nearest(name: str, value, recorded: Sequence[float]) -> int | list[int]:
    """Places among ``recorded`` of a number, several or a slice."""
    low, high = min(recorded), max(recorded)
    if isinstance(value, slice):
        ends = [float(end) for end in (value.start, value.stop) if end is not None]
        if value.start is None or value.stop is None:
            ends.append(low if value.start is None else high)
        return [i for i, one in enumerate(recorded) if min(ends) <= one <= max(ends)]
    if isinstance(value, Sequence) or getattr(value, "ndim", 0):
        return [_nearest(name, one, recorded) for one in value]
    value = float(value)
    if not low <= value <= high:
        raise ValueError(
            f"{name} was {value:g}; this run was recorded from {name} = {recorded[0]:g} to "
            f"{recorded[-1]:g}."
        )
    if value in recorded:
        return recorded.index(value)

    def apart(place: float) -> float:
        if name != "rho":
            return abs(place - value)
        return abs(math.log(place / value)) if 0 < place < math.inf else math.inf

    return min(range(len(recorded)), key=lambda i: apart(recorded[i]))


def coordinates(
    grid: Grid,
    kept: Sequence[int],
    seeds: Sequence[int],
    diffusion: Diffusion | None = None,
    labels: Sequence | None = None,
) -> dict:
    """The coordinates of a run's dataset."""
    rho = [grid.rho[i] for i in kept]
    log_snr = [
        -2 * math.log(r) if 0 < r < math.inf else (math.inf if r == 0 else -math.inf) for r in rho
    ]
    more = {}
    if diffusion is not None and diffusion.condition is not None:
        mu, dims = diffusion.condition, event_dims(len(diffusion.event_shape))
        dims = ("sample", *dims) if mu.shape != diffusion.event_shape else dims
        more["condition"] = (dims, mu.cpu().numpy(), {"long_name": "condition mu"})
    label = None if diffusion is None else getattr(diffusion.denoiser, "label", None)
    if isinstance(label, int | str):
        labels = labels or [label] * len(seeds)
    if labels:
        more["label"] = ("sample", list(labels), {"long_name": "class asked for"})
    return {
        **more,
        "t": ("time", [grid.t[i] for i in kept], {"long_name": "process time"}),
        "alpha": ("time", [grid.alpha[i] for i in kept], {"long_name": "signal"}),
        "sigma": ("time", [grid.sigma[i] for i in kept], {"long_name": "noise"}),
        "rho": ("time", rho, {"long_name": "noise level sigma/alpha"}),
        "log_snr": ("time", log_snr, {"long_name": "2 log(alpha/sigma)"}),
        "step": ("time", list(kept), {"long_name": "index of the grid node"}),
        "seed": ("sample", list(seeds), {"long_name": "seed of the sample"}),
    }


def reductions(reduced: Mapping[str, Moments], event: torch.Size) -> dict[str, tuple]:
    """What was reduced as variables of a dataset, each under the name by which it was recorded.

    ``x.spectrum`` and its standard error ``x.spectrum_se`` (time, band); of ``x.moments`` also the
    variance over samples, ``x.moments_var``.
    """
    variables: dict[str, tuple] = {}
    for name, moments in reduced.items():
        base, how = name.split(".", 1)
        one = REDUCTIONS.entries[how]
        own, what = one.facts.get("dims", ()), f"{FIELDS[base]}: {one.summary.rstrip('.')}"
        dims = ("time", *(event_dims(len(event)) if own is None else own))
        variables |= one.facts.get("coords", lambda event: {})(event)
        values = {
            name: (moments.mean, f"{what}; mean over samples"),
            f"{name}_se": (moments.standard_error, f"standard error of {name}"),
        }
        if one.facts.get("variance"):
            values[f"{name}_var"] = (moments.variance, f"{what}; variance over samples")
        for key, (value, text) in values.items():
            about = {"long_name": text, "samples": moments.count}
            variables[key] = (dims, value.numpy(), about)
    return variables


def sample(
    diffusion: Diffusion,
    sampler: Sampler,
    grid: Grid,
    seeds: Sequence[int] | Tensor,
    record: Record | None = None,
    x: Tensor | None = None,
    device=None,
    dtype: torch.dtype | None = None,
    on_step: Callable[[int, int], None] | None = None,
    noise: Literal["fresh", "brownian"] = "fresh",
    gradients: bool | None = None,
    labels: Sequence | None = None,
    conditions: Tensor | None = None,
) -> Trajectory:
    """Walk from noise to data.

    Args:
        diffusion: process and denoiser.
        sampler: the method, with its parameters.
        grid: the nodes, made for the diffusion's process.
        seeds: one whole number per sample; sample i depends on seed i alone.
        record: what to keep on the way; None keeps only the final state.
        x: initial states (n, *event); None draws them from the process's prior at ``grid.t[0]``
            (about p(t) mu under an affine process, see ``prior_mean``).
        device, dtype: where and in which precision to run; None: those of the denoiser.
        on_step: called as ``on_step(done, total)`` after each step; raise in it to end the run.
        noise: "fresh", a new draw for every step; or "brownian", the increments of one Brownian
            path per seed in process time, so that runs on grids of N and of 2N nodes follow the
            same path.
        gradients: whether ``final`` can be differentiated, with respect to ``x`` and to whatever
            else of the run asks for gradients; None: if ``x`` does and grad mode is on. The states
            of all steps are then held in memory, where :func:`workbench.reversible` holds one.
            Otherwise the run keeps no graph, and a network's parameters get no gradients.
        labels: of a denoiser with classes, the class asked for of each seed; sample i is that of a
            run of its class alone. Without gradients.
        conditions: of an affine process, the condition of each seed (n, *event), in place of the
            diffusion's own.

    Raises:
        ValueError: a grid made for another process, wrong shapes, bad seeds; gradients of a run
            that is recorded, of one without grad mode, or where none arrive at the end.
        TypeError: something of the wrong kind, or ``x`` of another dtype.
        RunError: numbers that are not finite, with the run up to there.
    """
    _check_kinds(diffusion, sampler, grid, record, x)
    if conditions is not None:
        if len(conditions) != len(seeds):
            raise ValueError(
                f"there are {len(conditions)} conditions and {len(seeds)} seeds; give one each."
            )
        diffusion = diffusion.towards(conditions)
    if labels is not None:
        return _by_class(
            labels,
            diffusion,
            sampler,
            grid,
            seeds,
            record,
            x,
            on_step,
            device=device,
            dtype=dtype,
            noise=noise,
        )
    if device is not None or dtype is not None:
        diffusion = diffusion.to(dtype, device)
    if noise not in NOISES:
        choices = ", ".join(map(repr, NOISES))
        raise ValueError(f"noise was {noise!r}; it must be one of {choices}.")
    source = NOISES[noise](seeds, diffusion.event_shape, diffusion.dtype, diffusion.device)
    like = torch.empty(source.shape, dtype=source.dtype, device=diffusion.device)
    states_alone = record is None or record.states_alone
    plan = planned(diffusion, sampler, grid, like, states_alone)
    if x is None:
        u = prior_states(diffusion, grid.nodes[0].t, source.start())
    elif x.shape != source.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; for {len(source.seeds)} seeds it must be "
            f"{tuple(source.shape)}."
        )
    elif x.dtype != diffusion.dtype:
        raise TypeError(f"x is {x.dtype}; this run is in {diffusion.dtype}: give x in that dtype.")
    else:
        x = x if math.isfinite(_norm(x)) else finite("x", x)
        u = diffusion.to_core(x.to(diffusion.device), grid.nodes[0].t)
    if gradients is None:
        gradients = x is not None and x.requires_grad and torch.is_grad_enabled()
    if gradients:
        _check_gradients(record)
    u = u if gradients else u.detach()
    if not plan.notes:
        plan.notes |= _provenance(diffusion, sampler, grid)
        plan.scale = max(_scales(diffusion, grid.nodes[0].t, plan.notes.get("data_std")))
    began = time.perf_counter()

    def walked(program) -> tuple[Recorder | None, _Reach, Tensor, int]:
        columns = program is plan.bound and plan.bound.columns
        recorder = Recorder(record, diffusion, grid, u, columns) if record else None
        reach = _Reach(diffusion, grid, u, on_step, plan.scale)
        told = None if on_step is None and reach.path is not None else reach
        given = (recorder, told, reach.held)
        return (
            recorder,
            reach,
            *walk(
                program,
                diffusion.core,
                u,
                source,
                *given,
                gradients=bool(gradients),
                path=reach.path,
            ),
        )

    # What is to be differentiated is bound in grad mode, by the walk itself.
    recorder, reach, final, nfe = walked(plan.bound.program if gradients else plan.bound)
    whole = _is_finite(final)
    if not whole and plan.bound.columns and not gradients:  # states far out may have overflown
        recorder, reach, final, nfe = walked(plan.bound.program)
        whole = _is_finite(final)
    if gradients and not final.requires_grad:
        raise ValueError(
            f"nothing that asks for a gradient reaches the end of {sampler!r}: give an x or a "
            "denoiser with requires_grad, and a sampler whose steps can be differentiated."
        )
    seconds = round(time.perf_counter() - began, 6)
    attrs = plan.notes | {"noise": noise, "seconds": seconds}
    if said := reach.note(plan.bound.program, source):
        attrs["notes"] = "\n".join(filter(None, (attrs.get("notes"), said)))
    end, broken = grid.steps, ""
    if not whole:
        broken, end, final = _where_it_broke(plan.bound.program, diffusion, u, source)
        attrs["incomplete"] = broken
    kept = [i for i in recorder.kept if i <= end] if recorder else [0, end]
    fields = recorder.fields(len(kept)) if recorder else {}
    final = final.clone(memory_format=torch.contiguous_format)  # not a part of the record
    if recorder is not None:
        _leave_core(diffusion, grid, recorder, fields)
    run = Trajectory(
        final=diffusion.from_core(final, grid.nodes[end].t),
        nfe=nfe,
        seeds=_listed(seeds, source.seeds),
        grid=grid,
        fields=fields,
        kept=tuple(kept),
        attrs=attrs,
        reduced=recorder.reductions(len(kept)) if recorder else {},
        diffusion=diffusion,
        sampler=sampler,
    )
    if broken:
        raise RunError(broken, run)
    return run


def _listed(seeds, drawn: Tensor) -> tuple[int, ...]:
    """The seeds as numbers."""
    if isinstance(seeds, range):
        return _of_range(seeds) if len(seeds) <= LISTED else tuple(seeds)
    return tuple(drawn.tolist())


@lru_cache(maxsize=4)
def _of_range(seeds: range) -> tuple[int, ...]:
    """Kept for the calls to come: of thousands of seeds a fortieth of a short run."""
    return tuple(seeds)


def _is_finite(x: Tensor) -> bool:
    return math.isfinite(_norm(x)) or bool(x.isfinite().all())  # whose norm may have overflown


def _by_class(
    labels: Sequence, diffusion: Diffusion, sampler, grid, seeds, record, x, on_step, **options
) -> Trajectory:
    """A run of each class, and their samples in the order of the seeds."""
    seeds, labels = [int(seed) for seed in seeds], [*labels]
    if not hasattr(diffusion.denoiser, "given"):
        raise TypeError(
            f"labels were given, and {diffusion.denoiser!r} has no classes; take wb.Conditional."
        )
    if len(labels) != len(seeds) or not seeds:
        raise ValueError(f"there are {len(labels)} labels and {len(seeds)} seeds; give one each.")
    places, runs = {}, []
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    for done, (label, mine) in enumerate(places.items()):
        mu, each = diffusion.condition, None
        if mu is not None and mu.shape != diffusion.event_shape:
            mu, each = mu[0], mu[mine]
        part = Diffusion(diffusion.process, diffusion.denoiser.given(label), mu)

        def told(step: int, steps: int, done: int = done) -> None:
            on_step(done * steps + step, len(places) * steps)

        start = None if x is None else x[mine]
        step = None if on_step is None else told
        chosen = [seeds[place] for place in mine]
        runs.append(
            sample(
                part, sampler, grid, chosen, record, start, on_step=step, conditions=each, **options
            )
        )
    order = torch.tensor([place for mine in places.values() for place in mine]).argsort()
    first = runs[0]
    reduced = first.reduced
    for run in runs[1:]:
        reduced = {name: one.merged(run.reduced[name]) for name, one in reduced.items()}
    seconds = {"seconds": round(sum(run.attrs["seconds"] for run in runs), 6)}
    return replace(
        first,
        final=torch.cat([run.final for run in runs])[order.to(first.final.device)],
        nfe=max(run.nfe for run in runs),
        seeds=tuple(seeds),
        fields={
            name: torch.cat([run.fields[name] for run in runs], 1)[:, order.to(value.device)]
            for name, value in first.fields.items()
        },
        attrs=first.attrs | seconds | {"denoiser": repr(diffusion.denoiser)},
        reduced=reduced,
        diffusion=diffusion,
        labels=tuple(labels),
    )


def _norm(x: Tensor) -> float:
    """Root of the sum of squares: a number only if all are."""
    return torch.linalg.vector_norm(x.detach()).item()


def _check_gradients(record: Record | None) -> None:
    if not torch.is_grad_enabled():
        raise ValueError("gradients were asked for under torch.no_grad(); call sample outside it.")
    if record is not None:
        raise ValueError(
            "a run that is recorded cannot be differentiated: leave out record, or give "
            "x.detach() or gradients=False."
        )


class _Reach:
    """How far the states of a run go: called after each step, looked at after the last.

    It is the core variable that is looked at. Nothing waits for the device before :meth:`note`.

    Attributes:
        held: the registers of the run.
        scale: what the run begins with, or what it leads to if that is larger.
    """

    def __init__(self, diffusion: Diffusion, grid: Grid, u: Tensor, on_step, scale: float) -> None:
        self.core, self.grid, self.start, self.on_step = diffusion.core, grid, u, on_step
        self.scale = max(_norm(u) / math.sqrt(u.numel()), scale)
        if diffusion.condition is not None:
            self.scale = max(self.scale, diffusion.condition.abs().max().item())
        self.constants = diffusion.constants(u)
        self.held: dict[str, Tensor] = dict(self.constants)
        self.ends: list[Tensor] = []
        # The states of few samples are looked at all at once.
        self.path: list[Tensor] | None = [] if u.numel() * grid.steps <= HELD else None

    def __call__(self, done: int, total: int) -> None:
        x = self.held["x"]
        x = x.detach() if x.requires_grad else x
        if self.path is None:
            self.ends += torch.aminmax(x if x.is_contiguous() else x.mT)  # as they lie in memory
        if self.on_step is not None:
            self.on_step(done, total)

    def note(self, program, source) -> str:
        """A sentence where the states went too far; the run once more up to there, to count them.

        Good runs do not pay for it.
        """
        bound, path = FAR * self.scale, self.path
        if path is None:
            path = [torch.stack(self.ends).reshape(-1, 2)]
        elif path[0].ndim == self.start.ndim:
            path = [torch.stack(path).detach()]
        low, high = torch.aminmax(path[0])
        # Not finite: that has a sentence of its own.
        if not bound < max(-low.item(), high.item()) < math.inf:
            return ""
        peaks = path[0].abs().flatten(1).amax(1).cpu()
        far = (peaks > bound).nonzero().flatten().tolist()
        held, first = dict(self.constants), far[0] + 1

        def leave(done: int, total: int) -> None:
            if done == first:
                raise StopIteration

        with suppress(StopIteration):
            walk(program, self.core, self.start, source, None, leave, held)
        x = held["x"].reshape(len(self.start), -1)
        count = int((x.abs().amax(1) > bound).sum())
        return (
            f"{FAR_NOTE} ({self.scale:.3g}): after step {first} of {len(peaks)}, at t = "
            f"{self.grid.t[first]:g}, {count} of {len(x)} samples are beyond "
            f"{bound:.3g}; the farthest of the run is at {peaks.max().item():.3g}. "
            "Take more steps, another grid or another sampler."
        )


#: A run is noted whose states leave so many times its scale, and how the note begins.
FAR = 100.0
#: Numbers up to which the states of all steps are held until then.
HELD = 1 << 18
#: Seeds up to which their tuple is kept.
LISTED = 1 << 14
FAR_NOTE = f"The states leave {FAR:g} times the scale of noise and data"


def _scales(diffusion: Diffusion, t: float, spread: float | None) -> list[float]:
    """Sizes that the states of a run may have, as far as known: the prior's, the data's, whose
    standard deviation is ``spread``.
    """
    process, core, sizes = diffusion.process, diffusion.core, [spread or 0.0]
    if process.has_prior:
        std = process.prior_std(t)
        sizes.append(std.max().item() if isinstance(std, Tensor) else std)
    with suppress(Exception):  # whatever a foreign denoiser raises
        sizes.append(torch.as_tensor(core.mean).abs().max().item())
    return [size for size in sizes if math.isfinite(size)] or [0.0]


def _where_it_broke(program, diffusion: Diffusion, u: Tensor, source) -> tuple[str, int, Tensor]:
    """A sentence, the last good node and the state there: the run once more, each row looked at.

    Good runs do not pay for it.
    """
    try:
        walk(
            program,
            diffusion.core,
            u,
            source,
            registers=diffusion.constants(u),
            watch=True,
        )
    except NotFinite as error:
        return str(error), error.step, error.state
    sentence = (
        "the run ended with numbers that are not finite, but not when it was repeated to find out "
        "where: the denoiser does not give the same answer to the same question."
    )
    return sentence, 0, u


def prior_states(diffusion: Diffusion, t: float, z: Tensor) -> Tensor:
    """Where sampling starts at ``t`` with the standard normals z (n, *event), as the core variable.

    Raises:
        ValueError: a process without a prior, which keeps part of the data.
    """
    process = diffusion.process
    if not process.has_prior:
        raise ValueError(
            f"{process!r} keeps part of the data at t = {t:g}, so there is no prior to start from; "
            "give the states, e.g. x=diffusion.diffuse(points, grid.t[0], noise)."
        )
    std = process.prior_std(t)
    u = process.to_modes(z) * (std.to(z) if isinstance(std, Tensor) else std)
    if diffusion.condition is None:
        return u
    return u + (process.prior_mean(t) - process.shift(t)[0]) * diffusion.condition


def _leave_core(diffusion: Diffusion, grid: Grid, recorder: Recorder, fields: dict) -> None:
    """Bring the recorded fields from the core variable to the state itself."""
    if diffusion.process.single_level:
        return
    for name, buffer in fields.items():
        for slot, index in enumerate(recorder.kept[: len(buffer)]):
            buffer[slot] = diffusion.from_core(buffer[slot], grid.t[index], name)


def _check_kinds(diffusion, sampler, grid, record, x) -> None:
    for name, value, kind in (
        ("diffusion", diffusion, Diffusion),
        ("sampler", sampler, Sampler),
        ("grid", grid, Grid),
        ("record", record, Record | None),
        ("x", x, Tensor | None),
    ):
        if not isinstance(value, kind):
            kind = kind if isinstance(kind, type) else kind.__args__[0]
            hint = f"; call it first, e.g. wb.{value.__name__}()" if isinstance(value, type) else ""
            raise TypeError(f"{name} was {value!r}; it must be a {kind.__name__}{hint}.")


def _provenance(diffusion: Diffusion, sampler: Sampler, grid: Grid) -> dict:
    """What made the run, without its duration; ``data_std`` only where the denoiser knows it."""
    from workbench import __version__

    try:
        spread = {"data_std": float(diffusion.denoiser.std)}
    except Exception:  # whatever a foreign denoiser raises: no run is lost for want of a note
        spread = {}
    said = (*diffusion.denoiser.notes, *sampler.notes(grid))
    notes = {"notes": "\n".join(said)} if said else {}
    return {
        "process": repr(diffusion.process),
        "denoiser": repr(diffusion.denoiser),
        "sampler": repr(sampler),
        "grid": repr(grid),
        **spread,
        "stochastic": int(sampler.stochastic),
        "dtype": str(diffusion.dtype).removeprefix("torch."),
        "device": str(diffusion.device),
        "workbench": __version__,
        "torch": torch.__version__,
        **notes,
    }
