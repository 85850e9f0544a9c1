"""A run written to a Zarr store chunk by chunk: more samples than memory holds, and none lost.

Samples run in chunks (:func:`workbench.studies.run.plan`). When the arrays of a chunk are written,
it is entered in the manifest, which is replaced at once; the same command goes on behind the last
chunk entered, so that a run may be killed at any instant. What is reduced over samples is merged
from chunk to chunk and kept in a folder of the store until it is whole. Chunks that a disk has
damaged are computed again by the same command.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.lenses.base import OnStep
from workbench.sampling.record import FIELDS, Moments, kept_shape
from workbench.studies.measuring import measured, parts_of
from workbench.studies.run import (
    Plan,
    Setup,
    build,
    join,
    plan,
    provenance,
    run,
    step_of,
    with_notes,
)
from workbench.studies.spec import Study
from workbench.studies.store import (
    WORKING,
    Altered,
    StoreError,
    attributes,
    beside,
    check,
    check_free,
    manifest,
    read,
    refusal,
    remove,
    set_attributes,
    set_manifest,
    swap,
    write_held,
    writing,
)
from workbench.trajectory import RunError, Trajectory, coordinates, reductions

if TYPE_CHECKING:
    import xarray

#: Size of a piece of an array on disk, which is compressed by itself.
PIECE_BYTES = 4 * 2**20


def keep(
    study: Study,
    path: Path | str,
    on_step: OnStep | None = None,
    overwrite: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> xarray.Dataset:
    """Carry out ``study`` into a Zarr store at ``path``, in bounded memory; the store, opened.

    A store of the same study that is not whole is continued; one that is whole is left as it is,
    unless ``overwrite`` is true; of one that is damaged, what is damaged is computed again. The
    arrays are those of :func:`workbench.run`, to the byte.

    Args:
        on_step: as for :func:`workbench.run`.
        overwrite: replace what is there, when the new store is whole.
        on_plan: told how the run will go, before it does.
        on_damage: told, in a sentence, what of a store that was whole is computed again.

    Raises:
        StudyError: values that do not go together.
        StoreError: another store is there, another process writes to it, no space is left.
        RunError: numbers that are not finite; ``kept`` is where the run until then is.
    """
    path, setup = Path(path), build(study)
    made = plan(setup)
    if path.suffix == ".nc":
        return _keep_netcdf(study, made, path, on_step, overwrite, on_plan)
    if not (path / "zarr.json").is_file():
        check_free(path, overwrite)
    with writing(path):
        place = _place(path, setup, overwrite, on_damage)
        if place is None:
            return read(path)
        if on_plan is not None:
            on_plan(made)
        begun = place.exists()
        try:
            if not begun:
                _create(place, path, setup, made)
            _go_on(place, setup, on_step)
        except OSError as error:
            raise refusal(path, error, _kept(place)) from None
        except RunError as error:
            error.kept = _keep_broken(path, place, study, error.run)
            raise
        finally:
            if not begun and _is_bare(place):
                remove(place)
        if place != path:
            swap(place, path)
    return read(path)


def _keep_netcdf(study, made: Plan, path: Path, on_step, overwrite, on_plan) -> xarray.Dataset:
    """In one go, in memory: a NetCDF file is whole or not there."""
    check_free(path, overwrite)
    with writing(path):
        if on_plan is not None:
            on_plan(replace(made, bytes_peak=made.bytes_peak + 2 * made.bytes_stored))
        try:
            write_held(run(study, on_step), path, overwrite)
        except RunError as error:
            error.kept = _keep_broken(path, path, study, error.run)
            raise
    return read(path)


def until_now(path: Path, dataset: xarray.Dataset, found: dict[str, Any]) -> xarray.Dataset:
    """What is whole of a store that is not: its samples, and what is reduced over them."""
    first = _first_missing(found)
    done = min(found["samples"], first * found["chunk"])
    if found.get("reduced") and first == found["chunks"]:
        # What lenses measured may be half there; what is reduced of a field is whole.
        dotted = [str(name) for name in dataset.data_vars if "." in str(name)]
        return dataset.drop_vars([name for name in dotted if name.split(".")[0] not in FIELDS])
    sums = _sums(path, found)
    event = torch.Size(dataset["final"].shape[1:])
    variables = reductions(sums, event)
    gone = [name for name in dataset.data_vars if "sample" not in dataset[name].dims]
    return dataset.drop_vars(gone).isel(sample=slice(0, done)).assign(variables)


def _first_missing(found: dict[str, Any]) -> int:
    """How many chunks are whole before one is not."""
    whole = set(found["whole"])
    return next((index for index in range(found["chunks"]) if index not in whole), found["chunks"])


# -- the place -----------------------------------------------------------------------------------


def _place(path: Path, setup: Setup, overwrite: bool, on_damage=None) -> Path | None:
    """The folder to write in: that of the store, or beside one that will be replaced.

    None if the store is there already and whole.
    """
    fresh = beside(path, "new")
    if not path.exists():
        remove(fresh)
        return path
    try:
        attrs = attributes(path)
    except StoreError as error:
        if not overwrite:
            raise StoreError(f"{error} Or say --overwrite to write it anew.") from None
        attrs = {}
    mine = attrs.get("study_hash") == setup.study.hash and "incomplete" not in attrs
    if not attrs.get("complete", True):
        other = _other(attrs, setup)
        if mine and not other:
            return path
        if not overwrite:
            found = manifest(path)
            raise StoreError(
                f"{path} is not whole ({len(found['whole'])} of {found['chunks']} chunks), and "
                + (f"was begun with {other}" if mine else "it is of another study")
                + "; choose another name or say --overwrite."
            )
    elif mine and not overwrite:
        broken = check(path).broken
        if not broken:
            return None
        some = _reopened(path, setup, broken)
        if on_damage is not None:
            what = "their chunks are" if some else "all of it is"
            on_damage(f"{str(Altered(path, broken)).split('. The ')[0]}; {what} computed again.")
        if some:
            return path
        check_free(path, True)
        return fresh
    check_free(path, overwrite)
    if fresh.exists():
        there = attributes(fresh)
        if there.get("study_hash") != setup.study.hash or _other(there, setup):
            remove(fresh)
    return fresh


def _reopened(path: Path, setup: Setup, broken: Mapping[str, str]) -> bool:
    """Make of a whole store one that lacks the chunks in which files are damaged.

    False where other files are: then all is to be computed again.
    """
    import zarr

    found = manifest(path) if "manifest/zarr.json" not in broken else {}
    if "whole" not in found or _other(attributes(path), setup):
        return False
    chunks = set()
    for key in broken:
        name, _, place = key.partition("/c/")
        if not place or name not in (*setup.record.whole, "final"):
            return False
        if f"{name}/zarr.json" in broken:
            return False
        array = zarr.open_array(path / name, mode="r")
        axis = list(array.metadata.dimension_names).index("sample")
        chunks.add(int(place.split("/")[axis]) * array.chunks[axis] // found["chunk"])
    if not chunks <= set(found["whole"]):
        return False
    for key in broken:
        (path / key).unlink(missing_ok=True)
        found["digests"].pop(key, None)
    found["whole"] = [index for index in found["whole"] if index not in chunks]
    set_manifest(path, found)
    set_attributes(path, attributes(path) | {"complete": False})
    return True


def _is_bare(place: Path) -> bool:
    """A store of which no chunk is whole yet."""
    if not place.is_dir():
        return False
    try:
        return "complete" in attributes(place) and not manifest(place).get("whole", [0])
    except StoreError:  # it could not even be begun
        return not (place / "manifest" / "zarr.json").exists()


def _machinery(setup: Setup) -> dict[str, str]:
    """What must agree for a run to be continued: arrays of one store come from one machinery."""
    from workbench import __version__

    return {
        "workbench": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(setup.diffusion.device),
    }


def _other(attrs: dict[str, Any], setup: Setup) -> str:
    """What another machinery a store was begun with, or nothing."""
    return ", ".join(
        f"{name} {attrs.get(name)} (here {here})"
        for name, here in _machinery(setup).items()
        if attrs.get(name) != here
    )


def _create(place: Path, path: Path, setup: Setup, made: Plan) -> None:
    """The store with its coordinates and without its arrays, which says that it is not whole."""
    import xarray
    import zarr
    from zarr.codecs import BloscCodec

    from workbench.studies.checked import Digests

    study, kept = setup.study, setup.record.indices(setup.grid)
    event, dtype = setup.diffusion.event_shape, setup.diffusion.dtype
    empty = torch.zeros(len(kept), 1, *event, dtype=dtype)
    one = Trajectory(
        final=empty[0],
        nfe=0,
        seeds=(0,),
        grid=setup.grid,
        fields=dict.fromkeys(setup.record.whole, empty),
        kept=tuple(kept),
        reduced=_nothing(setup, len(kept)),
    ).dataset
    labels = setup.labels(setup.seeds)
    coords = coordinates(setup.grid, kept, setup.seeds, setup.whole, labels)
    coords |= {name: one[name].variable for name in one.coords if name not in coords}
    attrs = {**_machinery(setup), **provenance(study), "complete": False}
    partial = beside(path, f"{uuid.uuid4().hex[:8]}.partial")
    try:
        files = Digests(partial)
        xarray.Dataset(coords=coords, attrs=attrs).to_zarr(files, consolidated=False)
        group = zarr.open_group(files, mode="r+")
        for name, variable in one.data_vars.items():
            sizes = {**variable.sizes, "sample": len(setup.seeds)}
            shape = tuple(sizes[dim] for dim in variable.dims)
            group.create_array(
                name,
                shape=shape,
                chunks=_pieces(variable.dims, shape, variable.dtype.itemsize, made.chunk),
                dtype=variable.dtype,
                compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
                dimension_names=variable.dims,
                attributes=variable.attrs,
            )
        set_attributes(partial, attributes(partial))
        counts = len(setup.seeds), made.chunk, made.chunks
        progress = _Progress(study.hash, *counts, digests=files.digests)
        set_manifest(partial, vars(progress))
        partial.rename(place)
    finally:
        remove(partial)


def _nothing(setup: Setup, kept: int) -> dict[str, Moments]:
    """Reductions over no run, for their shapes."""
    event = setup.diffusion.event_shape
    made = {}
    for base, how in setup.record.reduced:
        zeros = torch.zeros(kept, *kept_shape(how, event), dtype=torch.float64)
        made[f"{base}.{how}"] = Moments(len(setup.seeds), zeros, zeros)
    return made


def _pieces(dims, shape: tuple[int, ...], itemsize: int, chunk: int) -> tuple[int, ...]:
    """The shape of the pieces on disk: none belongs to two chunks of samples."""
    if "sample" not in dims:
        return shape
    axis = dims.index("sample")
    each = itemsize * math.prod(shape[axis + 1 :])
    samples = chunk
    while samples % 2 == 0 and samples * each > 2 * PIECE_BYTES:
        samples //= 2
    times = [max(1, min(shape[0], PIECE_BYTES // max(1, samples * each)))] * axis
    return (*times, samples, *shape[axis + 1 :])


# -- the run -------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """The content of the manifest."""

    study_hash: str
    samples: int
    chunk: int
    chunks: int
    whole: tuple[int, ...] = ()
    seconds: float = 0.0
    nfe: int = 0
    attrs: dict[str, Any] | None = None
    reduced: bool = False  # whether the reductions are in their arrays
    digests: dict[str, str] = field(default_factory=dict)


def _go_on(place: Path, setup: Setup, on_step: OnStep | None) -> None:
    """Run the chunks that are missing, and say at the end that the store is whole."""
    import zarr

    from workbench.studies.checked import Digests

    if attributes(place).get("complete", True):
        return  # the process before died just before the last move
    progress = _Progress(**manifest(place))
    for leftover in place.rglob("*.partial"):  # of a process that died
        remove(leftover)
    sums = {} if progress.reduced else _sums(place, vars(progress))
    files = Digests(place, progress.digests)
    group = zarr.open_group(files, mode="r+")
    event = setup.diffusion.event_shape
    on_step, on_lens = parts_of(on_step, len(setup.lenses))
    for index in range(progress.chunks):
        if index in progress.whole:
            continue
        rows = slice(index * progress.chunk, min(progress.samples, (index + 1) * progress.chunk))
        part = setup.sample(step_of(on_step, index, progress.chunks), setup.seeds[rows])
        _put(group, rows, part)
        if not progress.reduced:
            sums = join(sums, part.reduced)
            _keep_sums(place, index, sums)
        progress.whole = tuple(sorted((*progress.whole, index)))
        progress.seconds += part.attrs["seconds"]
        progress.nfe = max(progress.nfe, part.nfe)
        progress.attrs = with_notes(progress.attrs or {}, part.attrs)
        set_manifest(place, vars(progress))
        del part  # before the next is made
    if not progress.reduced:
        for name, (_, value, _) in reductions(sums, event).items():
            if name != "band":
                group[name][...] = value
        progress.reduced = True
        set_manifest(place, vars(progress))
    shutil.rmtree(place / WORKING, ignore_errors=True)
    _clear_lenses(place, setup, progress.digests)
    said = {"seconds": round(progress.seconds, 6)} | _put_lenses(group, place, setup, on_lens)
    set_manifest(place, vars(progress))
    set_attributes(
        place, {"nfe": progress.nfe, **progress.attrs, **said, **provenance(setup.study)}
    )


def _clear_lenses(place: Path, setup: Setup, digests: dict[str, str]) -> None:
    """Remove what a process that died had written of the lenses: none of it is entered as whole."""
    for array in place.iterdir():
        lens, dot, _ = array.name.partition(".")
        if dot and lens in setup.lenses and array.is_dir():
            shutil.rmtree(array)
            for key in [key for key in digests if key.startswith(f"{array.name}/")]:
                del digests[key]


def _put_lenses(group, place: Path, setup: Setup, on_lens) -> dict[str, str]:
    """Measure what the study asks for, of the samples on disk; what the store says of it."""
    found = measured(setup, read(place, partial=True), on_lens)
    for name, variable in found.variables.items():
        array = group.create_array(
            name,
            shape=variable.shape,
            dtype=variable.dtype,
            dimension_names=variable.dims,
            attributes=variable.attrs,
        )
        array[...] = variable.values
    return found.attrs


def _put(group, rows: slice, part: Trajectory) -> None:
    for name, value in part.fields.items():
        group[name][:, rows] = value.cpu().numpy()
    group["final"][rows] = part.final.cpu().numpy()


def _keep_sums(place: Path, index: int, sums: dict[str, Moments]) -> None:
    """Those of the chunks up to ``index``, before the manifest says that it is whole."""
    if not sums:
        return
    arrays = {f"{name}/mean": value.mean.numpy() for name, value in sums.items()}
    arrays |= {f"{name}/m2": value.m2.numpy() for name, value in sums.items()}
    folder = place / WORKING
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"sums-{index}.npz", **arrays)
    remove(folder / f"sums-{index - 2}.npz")


def _sums(place: Path, found: dict[str, Any]) -> dict[str, Moments]:
    whole = _first_missing(found)
    file = place / WORKING / f"sums-{whole - 1}.npz"
    if not file.exists():
        return {}
    count = min(found["samples"], whole * found["chunk"])
    with np.load(file) as arrays:
        names = dict.fromkeys(key.split("/")[0] for key in arrays)
        return {
            name: Moments(
                count, *(torch.from_numpy(arrays[f"{name}/{part}"]) for part in ("mean", "m2"))
            )
            for name in names
        }


def _kept(place: Path) -> str:
    """What a run that could not go on leaves, in words."""
    with suppress(StoreError):
        found = manifest(place)
        if found.get("whole"):
            return f"{len(found['whole'])} of {found['chunks']} chunks are whole and kept"
    return "nothing of it is kept"


def _keep_broken(path: Path, place: Path, study: Study, run: Trajectory) -> Path:
    """Store what was recorded until numbers were not finite; where it is."""
    if place == path and _is_bare(place):
        remove(place)
    free = path if not path.exists() else path.with_name(f"{path.stem}.broken{path.suffix}")
    dataset = run.dataset.assign_attrs(provenance(study))
    write_held(dataset, free, overwrite=True)
    return free
