"""Results on disk: Zarr stores that are whole, or say that they are not.

A dataset in memory is written beside its place and moved there when it is whole. A run that is
written chunk by chunk (:mod:`workbench.studies.chunked`) stands in its place from the start, says
``complete: false`` in its attributes until the end, and lists the chunks that are whole in
``.chunks/manifest.json``. One process at a time writes to a place: a lock beside it, which the
system takes back from a process that dies.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # without it, two writers are not noticed
    fcntl = None

if TYPE_CHECKING:
    import xarray

__all__ = [
    "StoreError",
    "attributes",
    "check_free",
    "locked",
    "manifest",
    "read",
    "write",
    "writing",
]

MANIFEST = Path(".chunks") / "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ValueError):
    """A store that cannot be read or written; the text says why and what to do."""


def check_free(path: Path, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a place where the result cannot go."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists; choose another name or say --overwrite.")
    if path.exists() and not _replaceable(path):
        kind = "NetCDF file" if path.suffix == ".nc" else "Zarr store"
        raise StoreError(f"{path} exists and is not a {kind}, so it is not replaced.")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist; make it first.")


def write(dataset: xarray.Dataset, path: Path, overwrite: bool = False) -> None:
    """Write ``dataset`` to ``path``: all of it, or nothing.

    A Zarr store, or a NetCDF file if the name ends in ``.nc``.

    Raises:
        StoreError: something is there already, another process writes there, or it cannot be
            written.
    """
    path = Path(path)
    check_free(path, overwrite)
    with writing(path):
        write_held(dataset, path, overwrite)


def write_held(dataset: xarray.Dataset, path: Path, overwrite: bool = False) -> None:
    """:func:`write` for who holds the place already."""
    check_free(path, overwrite)
    partial = beside(path, f"{uuid.uuid4().hex[:8]}.partial")
    try:
        if path.suffix == ".nc":
            _to_netcdf(dataset, partial)
        else:
            dataset.to_zarr(partial, consolidated=False)
        swap(partial, path)
    except OSError as error:
        raise refusal(path, error) from None
    finally:
        remove(partial)


def read(path: Path, partial: bool = False) -> xarray.Dataset:
    """The dataset of a store or of a NetCDF file, its arrays loaded when they are used.

    Args:
        partial: of a store that is not whole, give the chunks that are; ``attrs["complete"]`` is
            then False.

    Raises:
        StoreError: nothing that can be read, a newer format, or a store that is not whole.
    """
    import xarray

    path = Path(path)
    try:
        if path.suffix == ".nc":
            return _checked(path, xarray.open_dataset(path))
        if (path / "zarr.json").is_file():
            _check_format(path, attributes(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Object at")  # the manifest
            dataset = _checked(path, xarray.open_zarr(path, consolidated=False, chunks=None))
    except StoreError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        kind = "NetCDF file" if path.suffix == ".nc" else "Zarr store"
        raise StoreError(f"{path} cannot be read as a {kind}: {error}.") from None
    if dataset.attrs.get("complete", True):
        return dataset
    found = manifest(path)
    if not partial:
        raise StoreError(
            f"{path} is not whole: {len(found['whole'])} of {found['chunks']} chunks are there. "
            "Give the command that wrote it again to finish it (workbench run study.yaml "
            f"-o {path}), or read what is there with read(path, partial=True)."
        )
    from workbench.studies.chunked import until_now

    return until_now(path, dataset, found)


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a Zarr store."""
    try:
        return json.loads((Path(path) / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read as a Zarr store: {error}.") from None


def set_attributes(path: Path, attrs: dict[str, Any]) -> None:
    """Replace the attributes of a Zarr store, at once."""
    place = Path(path) / "zarr.json"
    whole = json.loads(place.read_text(encoding="utf-8"))
    named = {k: v for k, v in whole["attributes"].items() if k == "coordinates"}  # xarray's own
    replace_text(place, json.dumps({**whole, "attributes": attrs | named}, indent=2))


def manifest(path: Path) -> dict[str, Any]:
    """What a store that is not whole says of itself: ``whole`` lists the chunks that are."""
    try:
        return json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} is not whole, and its list of chunks cannot be read: {error}. "
            "Write it anew with --overwrite."
        ) from None


# -- the ways of files ---------------------------------------------------------------------------


def beside(path: Path, kind: str) -> Path:
    """A hidden name beside ``path``, in the same folder so that it can be moved there."""
    return path.with_name(f".{path.name}.{kind}")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def swap(new: Path, path: Path) -> None:
    """Move ``new`` to ``path``; what was there is removed afterwards. See :func:`settle`."""
    old = beside(path, "old")
    if path.exists():
        path.rename(old)
    new.rename(path)
    remove(old)


def settle(path: Path) -> None:
    """Clear up after a process that died while it wrote to ``path``; for who holds the place."""
    old = beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    remove(old)
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(f".{path.name}.") and leftover.name.endswith(".partial"):
            remove(leftover)


def replace_text(path: Path, text: str) -> None:
    """Write a small file, at once."""
    partial = beside(path, f"{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def refusal(path: Path, error: OSError, kept: str = "nothing of it is kept") -> StoreError:
    """The sentence for an operating system that will not write."""
    if error.errno in FULL:
        return StoreError(
            f"no space is left to write {path} ({error.strerror or error}): {kept}. Make room, or "
            "choose another place, and give the command again."
        )
    return StoreError(f"{path} cannot be written: {error}.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the place ``path`` against other writers, and clear up after one that died.

    Raises:
        StoreError: another process, or another thread, writes there.
    """
    path = Path(path)
    lock = beside(path, "lock")
    try:
        with locked(lock, wait=False):
            settle(path)
            yield
    except Held:
        who = "another process"
        with suppress(OSError, ValueError):
            who = f"process {int(lock.read_text())}"
        raise StoreError(
            f"{path} is being written by {who}; wait until it has ended, or choose another name."
        ) from None


class Held(Exception):
    """Somebody else holds the lock."""


@contextmanager
def locked(lock: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, which says by whom; it is gone afterwards.

    Between processes and between threads: each call has a handle of its own.

    Raises:
        Held: somebody else holds it, and ``wait`` is false.
        StoreError: the file cannot be made.
    """
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(f"{lock.parent} cannot be written to: {error}.") from None
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The one who held it has removed the file: then this handle is of no file any more.
            if lock.exists() and os.path.samestat(os.fstat(handle), os.stat(lock)):
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(handle)
            raise Held from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        with suppress(OSError):  # a full disk is said by what is written next
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


# -- formats -------------------------------------------------------------------------------------


def _replaceable(path: Path) -> bool:
    if path.suffix != ".nc":
        return path.is_dir() and (path / "zarr.json").is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"CDF\x01", b"CDF\x02", b"CDF\x05", b"\x89HDF")


def _check_format(path: Path, attrs: dict) -> None:
    from workbench.studies.run import FORMAT

    found = attrs.get("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise StoreError(
            f"{path} was written by a newer workbench (format {found!r}); this one reads formats "
            f"up to {FORMAT}. Install a newer one: pip install -U diffusion-workbench."
        )


def _checked(path: Path, dataset: xarray.Dataset) -> xarray.Dataset:
    attrs = {k: v.item() if hasattr(v, "item") else v for k, v in dataset.attrs.items()}
    _check_format(path, attrs)
    return dataset.assign_attrs(attrs)


def _to_netcdf(dataset: xarray.Dataset, path: Path) -> None:
    """With the best backend there is; SciPy's is always there and writes NetCDF 3."""
    from importlib.util import find_spec

    truths = {k: int(v) for k, v in dataset.attrs.items() if isinstance(v, bool)}
    dataset = dataset.assign_attrs(truths)
    for engine in ("netcdf4", "h5netcdf"):
        if find_spec({"netcdf4": "netCDF4"}.get(engine, engine)):
            packed = {name: {"zlib": True, "complevel": 1} for name in dataset.data_vars}
            dataset.to_netcdf(path, engine=engine, encoding=packed)
            return
    for name, variable in dataset.variables.items():
        if variable.nbytes >= 2**32 - 4:
            raise StoreError(
                f"{name} has {variable.nbytes / 1e9:.3g} GB, and NetCDF 3 holds variables of up to "
                "4.3 GB; write a Zarr store (-o out.zarr), or pip install netCDF4."
            )
        if variable.dtype.kind in "iu" and variable.size:
            least, most = int(variable.min()), int(variable.max())
            if max(most, -least) > 2**53:
                raise StoreError(
                    f"{name} holds {most}, and NetCDF 3 holds whole numbers up to 2^53; write a "
                    "Zarr store (-o out.zarr), or pip install netCDF4."
                )
            fits = least >= -(2**31) and most < 2**31
            dataset[name] = variable.astype("int32" if fits else "float64")
    dataset.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
