"""Stores are whole or not there."""

import os
import shutil

import numpy as np
import pytest
import xarray as xr

from workbench.studies import store
from workbench.studies.run import FORMAT
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


def test_the_name_of_another_format_is_refused(dataset, tmp_path):
    with pytest.raises(StoreError, match=r"run\.csv ends in \.csv; .* \(run\.zarr\) or a NetCDF"):
        write(dataset, tmp_path / "run.csv")
    write(dataset, tmp_path / "run.0.5")
    assert read(tmp_path / "run.0.5").load().identical(dataset)


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


def test_one_writer_at_a_time(dataset, tmp_path):
    """Another thread is another writer; when it has ended, or died, the place is free."""
    path = tmp_path / "run.zarr"
    with store.writing(path):
        with pytest.raises(
            StoreError, match=rf"run\.zarr is being written by process {os.getpid()}; wait until"
        ):
            write(dataset, path)
        assert not path.exists()
        write(dataset, tmp_path / "other.zarr")
    (tmp_path / ".run.zarr.lock").write_text("1")  # of a process that died
    write(dataset, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.zarr", "run.zarr"]


def test_what_a_dead_writer_left_is_cleared_up(dataset, tmp_path):
    """It died between the two moves that replace a store: the old one is put back."""
    path = tmp_path / "run.zarr"
    write(dataset, path)
    path.rename(tmp_path / ".run.zarr.old")
    (tmp_path / ".run.zarr.12345678.partial").mkdir()
    with store.writing(path):
        assert read(path).load().identical(dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_newer_format_is_refused(dataset, tmp_path):
    for name in ("run.zarr", "run.nc"):
        write(dataset.assign_attrs(format=FORMAT), tmp_path / name)
        assert read(tmp_path / name).attrs["format"] == FORMAT
        write(dataset.assign_attrs(format=FORMAT + 1), tmp_path / name, overwrite=True)
        with pytest.raises(StoreError, match=r"newer workbench \(format 2\).* formats up to 1"):
            read(tmp_path / name)


def test_netcdf_holds_the_same(dataset, tmp_path):
    path = tmp_path / "run.nc"
    write(dataset.assign_attrs(complete=True), path)
    back = read(path).load()
    for name, variable in dataset.variables.items():
        assert np.array_equal(back[name].values, variable.values), name
        assert back[name].dims == variable.dims
    assert back["x"].dtype == np.float32 and back.attrs["nfe"] == 3 and back.attrs["complete"] == 1
    with pytest.raises(StoreError, match=r"run\.nc exists"):
        write(dataset, path)
    write(2 * dataset, path, overwrite=True)
    assert np.array_equal(read(path)["x"], 2 * dataset["x"])
    (tmp_path / "notes.nc").write_text("keep me")
    with pytest.raises(StoreError, match="exists and is not a NetCDF file, so it is not replaced"):
        write(dataset, tmp_path / "notes.nc", overwrite=True)
    (tmp_path / "odd.nc").write_text("CDF?")
    with pytest.raises(StoreError, match=r"odd\.nc cannot be read as a NetCDF file"):
        read(tmp_path / "odd.nc")


def test_seeds_beyond_netcdf_3_are_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    odd = dataset.assign_coords(seed=("sample", [2**53 + 1, 1, 2, 3]))
    with pytest.raises(StoreError, match="seed holds 9007199254740993, and NetCDF 3 holds"):
        write(odd, tmp_path / "run.nc")
    assert list(tmp_path.iterdir()) == []


def test_no_space_left(dataset, tmp_path):
    """No file may grow beyond 20 kB: what the system then says is what a full disk says."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "run.zarr"
    write(dataset, path)
    rng = np.random.default_rng(0)
    large = xr.Dataset({"x": (("time", "sample"), rng.standard_normal((100, 100)))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(StoreError, match=r"no space is left to write .*run\.zarr.*Make room"):
            write(large, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(path).load().identical(dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


# -- digests ---------------------------------------------------------------------------------------


def damage(kind: str, file, other) -> None:
    """Alter a file of a store as a failing disk, or a careless copy, would."""
    content = bytearray(file.read_bytes())
    if kind == "flip":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif kind == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "zero":
        file.write_bytes(bytes(len(content)))
    elif kind == "delete":
        file.unlink()
    elif kind == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A store whose arrays have many pieces, all different."""
    path = tmp_path_factory.mktemp("pieces") / "run.zarr"
    values = np.random.default_rng(0).standard_normal((40, 50))
    dataset = xr.Dataset({"x": (("time", "sample"), values)}, {"t": ("time", np.arange(40.0))})
    dataset["x"].encoding["chunks"] = (10, 10)
    write(dataset.assign_attrs(study="{}"), path)
    return path


@pytest.mark.parametrize("kind", ["flip", "delete", "swap", "zero", "truncate"])
def test_damage_to_any_file_is_noticed_on_reading(kind, pieces, tmp_path):
    files = sorted(path.relative_to(pieces) for path in pieces.rglob("*") if path.is_file())
    assert len(files) == 20 + 1 + 2 + 2  # pieces of x and t, arrays, the store and its manifest
    for number, name in enumerate(files):
        path = tmp_path / f"{number}.zarr"
        shutil.copytree(pieces, path)
        damage(kind, path / name, path / files[number - 1])
        with pytest.raises(StoreError, match=str(path)):
            read(path).load()
        if (path / "zarr.json").exists():
            touched = {str(name)} | ({str(files[number - 1])} if kind == "swap" else set())
            assert touched & store.check(path).broken.keys(), name


def test_a_store_of_zeros_and_one_without_digests(tmp_path):
    """A piece that Zarr leaves out because it is zero is not missing; an older store is read."""
    import warnings

    zeros = xr.Dataset({"x": (("time", "sample"), np.zeros((4, 5)))})
    write(zeros, tmp_path / "zeros.zarr")
    assert read(tmp_path / "zeros.zarr").load().identical(zeros)
    assert not store.check(tmp_path / "zeros.zarr").broken
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # to every other reader it is plain Zarr
        back = xr.open_zarr(tmp_path / "zeros.zarr", consolidated=False)
    assert back["x"].equals(zeros["x"])
    zeros.to_zarr(tmp_path / "older.zarr", consolidated=False)
    assert read(tmp_path / "older.zarr").load().identical(zeros)
    assert not store.check(tmp_path / "older.zarr").digests


def test_what_is_damaged_is_named(pieces, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(pieces, path)
    damage("flip", path / "x/c/1/2", None)
    (path / "x/c/0/0").unlink()
    (path / "x/c/9").mkdir()
    (path / "x/c/9/9").write_bytes(b"?")
    assert store.check(path).broken == {
        "x/c/0/0": "is missing",
        "x/c/1/2": "is not what was written",
        "x/c/9/9": "was not written by the run",
    }
    with pytest.raises(store.Altered, match=r"x/c/1/2 is not what was written.*workbench verify"):
        read(path)["x"][10:20, 20:30].load()
    assert np.isfinite(read(path)["x"][30:, 40:].load()).all()  # what is read is what is looked at
