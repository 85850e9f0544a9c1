"""Results on disk: Zarr stores that are either whole or not there."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray

__all__ = ["StoreError", "check_free", "read", "write"]


class StoreError(ValueError):
    """A store that cannot be read or written; the text says why and what to do."""


def check_free(path: Path, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a place where the result cannot go."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists; choose another name or say --overwrite.")
    if path.exists() and not (path.is_dir() and (path / "zarr.json").is_file()):
        raise StoreError(f"{path} exists and is not a Zarr store, so it is not replaced.")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist; make it first.")


def write(dataset: xarray.Dataset, path: Path, overwrite: bool = False) -> None:
    """Write ``dataset`` to a Zarr store at ``path``: all of it, or nothing.

    It is written beside its place and moved there when it is whole.
    """
    path = Path(path)
    check_free(path, overwrite)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        dataset.to_zarr(partial, consolidated=False)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read(path: Path) -> xarray.Dataset:
    """The dataset of a store."""
    import xarray

    try:
        return xarray.open_zarr(path, consolidated=False)
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as a Zarr store: {error}.") from None
