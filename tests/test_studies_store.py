"""Stores are whole or not there."""

import numpy as np
import pytest
import xarray as xr

from workbench.studies import store
from workbench.studies.store import StoreError, check_free, read, write


@pytest.fixture
def dataset(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((3, 4)).astype(np.float32)
    coords = {"rho": ("time", [np.inf, 1.0, 0.0]), "seed": ("sample", [2**53, 1, 2, 3])}
    return xr.Dataset({"x": (("time", "sample"), values)}, coords, {"nfe": 3, "study": "{}"})


def test_what_is_written_is_read_back(dataset, tmp_path):
    write(dataset, tmp_path / "run.zarr")
    back = read(tmp_path / "run.zarr").load()
    assert back.identical(dataset) and back["x"].dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


def test_an_existing_store_is_replaced_only_when_told(dataset, tmp_path):
    path = tmp_path / "run.zarr"
    write(dataset, path)
    with pytest.raises(
        StoreError, match=r"run\.zarr exists; choose another name or say --overwrite"
    ):
        write(2 * dataset, path)
    assert read(path)["x"].equals(dataset["x"])
    write(2 * dataset, path, overwrite=True)
    assert read(path)["x"].equals(2 * dataset["x"])
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_store_is_never_replaced(kind, dataset, tmp_path):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("keep me")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("keep me")
    with pytest.raises(StoreError, match="exists and is not a Zarr store, so it is not replaced"):
        write(dataset, path, overwrite=True)
    kept = path if kind == "file" else path / "thesis.tex"
    assert kept.read_text() == "keep me"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"the folder .*nowhere does not exist; make it first"):
        check_free(tmp_path / "nowhere" / "run.zarr")


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("odd"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_place_as_it_was(error, dataset, tmp_path, monkeypatch):
    path = tmp_path / "run.zarr"
    write(dataset, path)
    whole = xr.Dataset.to_zarr

    def breaks(self, target, **options):
        whole(self, target, **options)
        raise error

    monkeypatch.setattr(xr.Dataset, "to_zarr", breaks)
    expected = StoreError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write(2 * dataset, path, overwrite=True)
    with pytest.raises(expected):
        write(dataset, tmp_path / "other.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    assert store.read(path)["x"].equals(dataset["x"])


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none.zarr", tmp_path / "empty"):
        with pytest.raises(StoreError, match=f"{path.name} cannot be read as a Zarr store"):
            read(path)
