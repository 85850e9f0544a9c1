"""The bytes the player draws: their layout, and what they say when unpacked."""

import json
import struct

import numpy as np
import pytest
import xarray as xr
from helpers import normals, ring

import workbench as wb
from workbench.lenses.distances import to_flow
from workbench.lenses.portrait import display_scale, half_width, portrait
from workbench.views import scene as scenes
from workbench.views.scene import flow_part, scene, unpack

GAUSSIAN = wb.datasets.gaussian().law


def recorded(law, process=None, count=31, final="stop", fields=("x", "denoised")):
    process = process or wb.VP()
    diffusion = wb.Diffusion(process, law)
    grid = wb.Grid.log_snr(process, steps=6, final=final)
    return diffusion, wb.sample(diffusion, wb.Heun(), grid, range(count), wb.Record(fields)).dataset


def check_layout(content: bytes) -> dict:
    """Header padded to a multiple of eight, arrays at multiples of eight, nothing left over."""
    (length,) = struct.unpack_from("<I", content)
    assert (4 + length) % 8 == 0
    header = json.loads(content[4 : 4 + length].decode(), parse_constant=pytest.fail)
    end = 0
    for spec in header["arrays"].values():
        assert spec["offset"] % 8 == 0 and spec["offset"] == end
        size = int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
        end = spec["offset"] + size + -size % 8
    assert len(content) == 4 + length + end
    return header


def check_values(header, arrays, name, values):
    """Quantised values are within half a step of those inside the limits, and cut at these."""
    spec = header["arrays"][name]
    step = (spec["high"] - spec["low"]) / np.iinfo(spec["dtype"]).max
    inside = np.clip(values, spec["low"], spec["high"])
    np.testing.assert_allclose(arrays[name], inside, rtol=0, atol=0.501 * step)


@pytest.mark.parametrize("final", ["stop", "denoise"])
def test_a_plane_comes_back_within_quantisation(final):
    diffusion, run = recorded(GAUSSIAN, wb.RectifiedFlow(), final=final)
    flow = to_flow(diffusion, run)
    picture = portrait(diffusion, run, half_width(run))
    content = scene(run, flow, picture, title="A title", notes=("A note.",))
    header, arrays = unpack(content)
    assert header == check_layout(content)
    scale = display_scale(run)[:, None, None]
    check_values(header, arrays, "x", run["x"].values / scale)
    drawn = run["denoised"].values * run["alpha"].values[:, None, None] / scale
    check_values(header, arrays, "denoised", drawn)
    check_values(header, arrays, "exact", flow["exact"].values / scale)
    width = picture.attrs["half_width"]
    assert header["window"] == {"x": [-width, width], "y": [-width, width]}
    density = np.maximum(picture["log_density"].values, -30)
    np.testing.assert_allclose(arrays["density"], density, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(arrays["velocity"], picture["flow"].values, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(arrays["rms"], flow["rms"].values, rtol=1e-6)
    assert (header["version"], header["kind"]) == (1, "plane")
    assert (header["frames"], header["samples"]) == (7, 31)
    assert (header["title"], header["notes"]) == ("A title", ["A note."])
    assert header["axis"]["t"] == run["t"].values.tolist()
    assert header["axis"]["rho"] == [None, *run["rho"].values[1:].tolist()], "infinity is no JSON"
    assert [readout["array"] for readout in header["readouts"]] == ["rms"]


def test_the_quantisation_of_positions_is_finer_than_a_pixel():
    _, run = recorded(ring())
    spec = unpack(scene(run))[0]["arrays"]["x"]
    assert spec["dtype"] == "uint16"
    assert (spec["high"] - spec["low"]) / 65535 < half_width(run) / 8000


def test_images_come_back_within_quantisation(generator):
    law = wb.Gaussian(normals(generator, 3, 5), 0.4)
    diffusion, run = recorded(law, wb.EDM(), count=20)
    flow = to_flow(diffusion, run)
    content = scene(run, flow)
    header, arrays = unpack(content)
    check_layout(content)
    assert header["kind"] == "image" and header["image"] == {"rows": 3, "columns": 5}
    scale = display_scale(run)[:, None, None, None]
    check_values(header, arrays, "x", run["x"].values / scale)
    check_values(header, arrays, "denoised", run["denoised"].values)
    check_values(header, arrays, "exact", flow["exact"].values / scale)
    low, high = np.quantile(run["x"].values[-1] / scale[-1], [0.01, 0.99])
    for name in ("x", "denoised", "exact"):  # one grey scale: that of the final images
        spec = header["arrays"][name]
        assert (spec["low"], spec["high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("kind", ["plane", "image"])
def test_too_many_samples_are_cut_and_it_is_said(kind, generator, monkeypatch):
    """The numbers beside the picture still come from all of them."""
    monkeypatch.setattr(scenes, "PARTICLES" if kind == "plane" else "TILES", 10)
    law = GAUSSIAN if kind == "plane" else wb.Gaussian(normals(generator, 2, 3), 1.0)
    diffusion, run = recorded(law, count=25)
    flow = to_flow(diffusion, run)
    header, arrays = unpack(scene(run, flow, notes=("First.",)))
    assert header["notes"] == ["First.", "The first 10 of 25 samples are drawn."]
    assert header["samples"] == 10 and arrays["x"].shape[1] == arrays["exact"].shape[1] == 10
    np.testing.assert_allclose(arrays["rms"], flow["rms"].values, rtol=1e-6)
    exact, _ = unpack(scene(run.isel(sample=slice(10))))
    assert exact["notes"] == []


@pytest.mark.parametrize("kind", ["plane", "image"])
def test_states_that_ran_away_are_drawn_at_the_limits(kind, generator):
    law = GAUSSIAN if kind == "plane" else wb.Gaussian(normals(generator, 2, 3), 1.0)
    _, run = recorded(law, count=4)
    values = run["x"].values.copy()
    values[2, 0], values[2, 1], values[2, 2] = np.nan, np.inf, -np.inf
    header, arrays = unpack(scene(run.assign(x=(run["x"].dims, values))))
    spec = header["arrays"]["x"]
    for sample, limit in ((0, "low"), (1, "high"), (2, "low")):
        np.testing.assert_allclose(arrays["x"][2, sample], spec[limit], rtol=1e-12)


@pytest.mark.parametrize("everywhere", [False, True])
def test_images_that_diverged_to_the_end_still_have_a_scale(everywhere, generator):
    _, run = recorded(wb.Gaussian(normals(generator, 2, 3), 1.0), count=4)
    values = run["x"].values.copy()
    last = values[-1, 1:].copy()
    values[-1, : 4 if everywhere else 1] = np.nan
    header, _ = unpack(scene(run.assign(x=(run["x"].dims, values))))
    spec = header["arrays"]["x"]
    expected = (-1.0, 1.0) if everywhere else tuple(np.quantile(last, [0.01, 0.99]))
    assert (spec["low"], spec["high"]) == pytest.approx(expected, rel=1e-3)


def test_images_of_one_grey_have_a_range(generator):
    _, run = recorded(
        wb.Empirical(normals(generator, 1, 1, 1).expand(1, 2, 2)), count=3, final="denoise"
    )
    header, arrays = unpack(scene(run))
    grey = run["x"].values[-1].flat[0]
    assert header["arrays"]["denoised"]["low"] == pytest.approx(grey - 1)
    assert header["arrays"]["denoised"]["high"] == pytest.approx(grey + 1)
    check_values(header, arrays, "denoised", run["denoised"].values)


def test_refusals(generator):
    _, run = recorded(wb.Gaussian(normals(generator, 3), 1.0))
    with pytest.raises(
        ValueError, match=r"shape \(2,\) or \(rows, columns\); these have shape \(3,\)"
    ):
        scene(run)
    with pytest.raises(ValueError, match=r"no recorded x.*wb\.Record"):
        scene(recorded(GAUSSIAN, fields=("denoised",))[1])


def test_of_very_many_nodes_and_states_some_are_drawn_and_it_is_said(monkeypatch):
    """Then what stands beside them is of the same nodes; positions outside keep their place."""
    monkeypatch.setattr(scenes, "NODES", 5)
    monkeypatch.setattr(scenes, "BESIDE", 4)
    diffusion, run = recorded(GAUSSIAN, count=9)
    run = xr.concat([run, run.isel(time=[-1] * 4)], "time")  # eleven nodes
    run = run.assign_coords(step=("time", range(11)))
    run["x"][-1, 0, 0] = 60.0
    flow = to_flow(diffusion, run)
    header, arrays = unpack(scene(run, flow))
    assert header["frames"] == 5 and header["axis"]["step"] == [0, 3, 6, 9, 10]
    assert header["notes"] == ["Of 11 recorded nodes one in 3 is drawn, and the last."]
    np.testing.assert_allclose(arrays["rms"], flow["rms"].values[[0, 3, 6, 9, 10]], rtol=1e-6)
    assert arrays["x"].shape == (5, 9, 2) and arrays["exact"].shape == (5, 4, 2)
    assert header["arrays"]["x"]["high"] == pytest.approx(8 * header["window"]["x"][1])
    monkeypatch.setattr(scenes, "STATES", 40)
    header, _ = unpack(scene(run))
    assert header["samples"] == 8 and "The first 8 of 9 samples are drawn." in header["notes"]


def test_a_flow_that_comes_later_is_the_one_that_would_have_been_there(generator, monkeypatch):
    """In a plane and of images, of all samples or of the first ones; without one, only words."""
    for law, few in ((GAUSSIAN, 31), (wb.Gaussian(normals(generator, 2, 3), 1.0), 5)):
        diffusion, run = recorded(law)
        flow = to_flow(diffusion, run)
        flow = flow.isel(sample=slice(few))
        at_once, part = scene(run, flow, notes=("Told.",)), flow_part(run, flow, ("Told.",))
        header, arrays = unpack(part)
        assert header == check_layout(part)
        wanted, both = unpack(at_once)
        for name in ("kind", "frames", "samples", "mark", "notes", "readouts"):
            assert header[name] == wanted[name], name
        assert set(arrays) == {"exact", "rms"}
        for name, values in arrays.items():
            assert np.array_equal(values, both[name]), name
        header, arrays = unpack(flow_part(run, None, ("There is none.",)))
        assert not arrays and header["notes"] == ["There is none."]
        monkeypatch.setattr(scenes, "NODES", 4)  # of which fewer are drawn than portrayed
        if law is GAUSSIAN:
            whole = scene(run, None, portrait(diffusion, run, 1.5 * half_width(run)))
            part = unpack(flow_part(run, flow))[0]
            same = unpack(whole)[0]
            assert part["mark"] == same["mark"] and part["frames"] == same["frames"] < 7
            late = portrait(diffusion, run, 2.0)
            early = unpack(scene(run, None, portrait(diffusion, run, 2.0, density=0)))[1]
            assert "velocity" in early and "density" not in early
            _, found = unpack(flow_part(run, None, density=late["log_density"].values))
            assert np.array_equal(found["density"], unpack(scene(run, None, late))[1]["density"])
        monkeypatch.undo()
        other = scene(run.isel(sample=slice(1, None)))
        assert unpack(other)[0]["mark"] != header["mark"] == unpack(scene(run))[0]["mark"]
