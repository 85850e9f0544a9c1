"""Results on disk: Zarr stores that are whole, or say that they are not.

A dataset in memory is written beside its place and moved there when it is whole. A run that is
written chunk by chunk (:mod:`workbench.studies.chunked`) stands in its place from the start, says
``complete: false`` in its attributes until the end, and lists the chunks that are whole in its
manifest. That also holds a digest of every file (:mod:`workbench.studies.digests`), which is looked
at on reading. One process at a time writes to a place: a lock beside it, which the system takes
back from a process that dies.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # without it, two writers are not noticed
    fcntl = None

from workbench.studies.digests import (
    MANIFEST,
    OWN,
    ROOT,
    digest_of,
    files_of,
    marked,
    signed,
    unsigned,
)

if TYPE_CHECKING:
    import xarray

#: What a store that is not whole holds for who goes on with it.
WORKING = ".chunks"
#: Endings of what is stored. A name without one is a Zarr folder, too.
ENDINGS = (".zarr", ".nc")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ValueError):
    """A store that cannot be read or written; the text says why and what to do."""


class Altered(StoreError):
    """A store of which files are missing or are not what was written.

    Attributes:
        files: what is wrong with each, by its key.
    """

    def __init__(self, place: Path, files: Mapping[str, str]) -> None:
        self.files = dict(files)
        super().__init__(
            f"{place} is damaged: {_listed(self.files)}. The command that wrote it, given again, "
            f"computes it again; workbench verify {place} says all that is damaged."
        )


def _listed(files: Mapping[str, str], most: int = 3) -> str:
    told = [f"{key} {problem}" for key, problem in list(files.items())[:most]]
    more = f", and {len(files) - most} more files" if len(files) > most else ""
    return ", ".join(told) + more


def check_free(path: Path, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a place where the result cannot go."""
    path = Path(path)
    if path.suffix[1:].isalpha() and path.suffix not in ENDINGS:
        raise StoreError(
            f"{path} ends in {path.suffix}; arrays are stored as a Zarr folder "
            f"({path.with_suffix('.zarr').name}) or a NetCDF file ({path.with_suffix('.nc').name})."
        )
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
            from workbench.studies.checked import Digests

            files = Digests(partial)
            dataset.to_zarr(files, consolidated=False)
            set_manifest(partial, {"digests": files.digests})
            set_attributes(partial, attributes(partial))
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
            attrs = attributes(path)
            _check_format(path, attrs)
            if not attrs.get("complete", True) and not partial:
                raise unfinished(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Object at")  # what a process left that died
            files = opened(path)
            dataset = _checked(path, xarray.open_zarr(files, consolidated=False, chunks=None))
    except StoreError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        kind = "NetCDF file" if path.suffix == ".nc" else "Zarr store"
        raise StoreError(f"{path} cannot be read as a {kind}: {error}.") from None
    if dataset.attrs.get("complete", True):
        return dataset
    if not partial:
        raise unfinished(path)
    from workbench.studies.chunked import until_now

    return until_now(path, dataset, _chunks(path))


def _chunks(path: Path) -> dict[str, Any]:
    """The manifest of a store that is written chunk by chunk."""
    found = manifest(path)
    if "whole" not in found:
        raise Altered(path, {"manifest/zarr.json": "holds no list of chunks"})
    return found


def unfinished(path: Path) -> StoreError:
    """What to say of a store that is not whole."""
    found = _chunks(path)
    return StoreError(
        f"{path} is not whole: {len(found['whole'])} of {found['chunks']} chunks are there. Give "
        f"the command that wrote it again to finish it (workbench run study.yaml -o {path}), or "
        "read what is there with read(path, partial=True)."
    )


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a Zarr store."""
    try:
        said = _attributes_in(Path(path) / "zarr.json")
    except UNREADABLE as error:
        raise StoreError(f"{path} cannot be read as a Zarr store: {error}.") from None
    plain, right = unsigned(said)
    if right is False:
        raise Altered(path, {ROOT: "is not what was written"})
    return plain


def set_attributes(path: Path, attrs: dict[str, Any]) -> None:
    """Replace the attributes of a Zarr store, at once."""
    place = Path(path) / "zarr.json"
    whole = json.loads(place.read_text(encoding="utf-8"))
    named = {k: v for k, v in whole["attributes"].items() if k == "coordinates"}  # xarray's own
    replace_text(place, json.dumps({**whole, "attributes": signed(attrs | named)}, indent=2))


def manifest(path: Path) -> dict[str, Any]:
    """What a store says of its files: the ``digests`` of all; of a run that was written chunk by
    chunk, in ``whole``, which chunks are.

    Raises:
        StoreError: it cannot be read, or is not what was written.
    """
    path = Path(path)
    try:
        plain, right = unsigned(_attributes_in(path / MANIFEST))
    except UNREADABLE as error:
        raise StoreError(
            f"{path}: its list of chunks cannot be read: {error}. Write it anew with --overwrite."
        ) from None
    if not right or not isinstance(plain.get("digests"), dict):
        raise Altered(path, {MANIFEST: "is not what was written"})
    return plain


def set_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Replace what a store says of its files, at once."""
    place = path / MANIFEST
    place.parent.mkdir(exist_ok=True)
    group = {"attributes": signed(content), "zarr_format": 3, "node_type": "group"}
    replace_text(place, json.dumps(group))


#: What a file that is gone, is not allowed, or is not what its name says is met with.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(RecursionError, ArithmeticError, MemoryError),
)

#: Most bytes of a file of attributes.
MOST_TEXT = 2**26


def text_of(file: Path) -> str:
    """The text of a plain file of moderate size: not of a pipe, which would never end.

    Raises:
        OSError, UnicodeDecodeError: no such file, or no text.
    """
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{file.name} is not a plain file")
        if found.st_size > MOST_TEXT:
            raise OSError(f"{file.name} has {found.st_size} bytes; at most {MOST_TEXT} are read")
        return stream.read().decode("utf-8")


def check_plain(place: Path) -> None:
    """Refuse a store that holds links or pipes, which may lead elsewhere, or nowhere.

    Raises:
        StoreError: it does.
    """
    if place.is_file() and not place.is_symlink():
        return
    waiting = [os.fspath(place)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as inside:
                for one in inside:
                    if one.is_dir(follow_symlinks=False):
                        waiting.append(one.path)
                    elif not one.is_file(follow_symlinks=False):
                        kind = "a link" if one.is_symlink() else "no plain file"
                        raise StoreError(f"{place} holds {kind}, {one.name}; it is not followed.")
        except OSError as error:
            raise StoreError(f"{place} cannot be read: {error}.") from None


def _attributes_in(file: Path) -> dict[str, Any]:
    said = json.loads(text_of(file))["attributes"]
    if not isinstance(said, dict):
        raise TypeError(f"{file.name} holds no attributes")
    return said


def opened(path: Path) -> Any:
    """A Zarr store for reading, whose files are looked at as they are read, where it has digests.

    For Zarr and xarray: ``xarray.open_zarr(opened(path), consolidated=False)``.

    Raises:
        StoreError: it has digests, and they cannot be read.
    """
    from workbench.studies.checked import Digests

    path = Path(path)
    if not has_digests(path):
        return path
    digests = manifest(path).get("digests", {})
    # The arrays' own descriptions at once: Zarr would read them side by side, and fail many times.
    for key, expected in digests.items():
        if key.endswith("/zarr.json"):
            try:
                same = digest_of(path / key) == expected
            except OSError:
                raise Altered(path, {key: "is missing"}) from None
            if not same:
                raise Altered(path, {key: "is not what was written"})
    return Digests(path, digests, known_only=True, read_only=True)


def has_digests(path: Path) -> bool:
    """Whether a store was written with digests; older ones were not."""
    if (path / MANIFEST).exists():
        return True
    with suppress(*UNREADABLE):
        return OWN in _attributes_in(path / "zarr.json")
    return False


@dataclass(frozen=True)
class Check:
    """What was found of a store when all its files were read.

    Attributes:
        files: how many.
        broken: what is wrong with each that is not as it was written, by its key.
        digests: whether it was written with digests; if not, nothing can be said.
        complete: whether it is whole, or will be gone on with.
    """

    files: int = 0
    broken: Mapping[str, str] = field(default_factory=dict)
    digests: bool = True
    complete: bool = True


def check(path: Path) -> Check:
    """Read every file of a Zarr store, and compare it with what was written.

    Raises:
        StoreError: nothing that can be read is there.
    """
    path = Path(path)
    if not path.is_dir() or not ((path / ROOT).exists() or (path / MANIFEST).exists()):
        raise StoreError(f"{path} is not a Zarr store.")
    if not has_digests(path):
        return Check(digests=False, complete=attributes(path).get("complete", True))
    broken: dict[str, str] = {}
    complete = True
    try:
        complete = attributes(path).get("complete", True)
    except StoreError as error:
        broken |= getattr(error, "files", {ROOT: "cannot be read"})
    try:
        digests = manifest(path).get("digests", {})
    except StoreError as error:
        broken |= getattr(error, "files", {MANIFEST: "cannot be read"})
        return Check(1, broken, True, complete)
    there = {key for key in files_of(path) if marked(key)}
    for key, expected in digests.items():
        try:
            same = key in there and digest_of(path / key) == expected
        except OSError as error:
            broken[key] = f"cannot be read ({error.strerror})"
            continue
        if not same:
            broken[key] = "is not what was written" if key in there else "is missing"
    if complete:  # a chunk that is not entered yet is overwritten
        broken |= {key: "was not written by the run" for key in sorted(there - digests.keys())}
    return Check(len(digests) + 2, broken, True, complete)


def is_whole(path: Path) -> bool:
    """Whether a Zarr store is there, and every file is what was written."""
    try:
        return path.exists() and not check(path).broken
    except StoreError:
        return False


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
        marks = ("zarr.json", "manifest/zarr.json")
        return path.is_dir() and any((path / mark).is_file() for mark in marks)
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
    dataset.attrs = {key: value for key, value in attrs.items() if key != "digest"}
    return dataset


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
