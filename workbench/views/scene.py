"""A run as the bytes the player draws: quantised once, sent once, scrubbed in the browser.

Layout, little endian: the length of the header (uint32), the header (JSON, padded so that what
follows starts at a multiple of eight), then the arrays, each at a multiple of eight. A quantised
array holds ``low + q / (2**bits - 1) * (high - low)``.
"""

from __future__ import annotations

import json
import math
import struct
import zlib

import numpy as np
import xarray as xr

from workbench.lenses.portrait import display_scale, half_width
from workbench.studies import Study
from workbench.views.panels import plain

#: Most particles and most images drawn; numbers shown beside them use all samples.
PARTICLES, TILES = 100_000, 144

#: Most samples whose denoised estimate and exact state are drawn, most nodes, and most states of a
#: field: of more, fewer samples are drawn, but not below the first of these; then fewer nodes.
BESIDE, NODES, STATES = 4000, 2001, 4_200_000


def scene(
    run: xr.Dataset,
    flow: xr.Dataset | None = None,
    portrait: xr.Dataset | None = None,
    title: str = "",
    notes: tuple[str, ...] = (),
    study: Study | None = None,
    groups: dict[str, np.ndarray] | None = None,
) -> bytes:
    """The player's bytes for a two-dimensional run or a run of images.

    Args:
        run: a trajectory's dataset with ``x`` (and ``denoised``) recorded.
        flow: of :func:`workbench.lenses.distances.to_flow`, to draw the exact flow over the run.
        portrait: of :func:`workbench.lenses.portrait.portrait`, for two-dimensional runs.
        title, notes: shown above and below the picture.
        study: that made it; pictures taken from the player hold it.
        groups: by name, whole numbers (sample) that samples can be coloured by.

    Raises:
        ValueError: a run that is neither two-dimensional nor of images, or without ``x``.
    """
    run, nodes, header = _drawn(run, notes)
    header |= {
        "title": title,
        "axis": {
            "rho": plain(run["rho"].values),
            "t": run["t"].values.tolist(),
            "step": run["step"].values.tolist(),
            **({"stage": run["stage"].values.tolist()} if "stage" in run.coords else {}),
            **{name: _brief(run[name]) for name in ("alpha", "sigma")},
        },
        "variance": float(spread) ** 2 if (spread := run.attrs.get("data_std")) else None,
        "seeds": run["seed"].values.tolist(),
    }
    if study is not None:
        header |= {"study": study.to_yaml(), "entries": study.to_flat()}
    pack = _Packer()
    quantise = DRAWN_AS[header["kind"]](header, pack, run, portrait)
    for name, values in (groups or {}).items():
        pack.add(f"group_{name}", (np.asarray(values)[: header["samples"]] % 256).astype("u1"))
    if flow is not None:
        _add_flow(header, pack, flow.isel(time=nodes), quantise)
    return pack.finish(header)


def flow_part(
    run: xr.Dataset,
    flow: xr.Dataset | None,
    notes: tuple[str, ...] = (),
    density: np.ndarray | None = None,
) -> bytes:
    """What a scene that was made without ``flow`` lacks: the player draws it over the same run.

    Args:
        run, flow: as of :func:`scene`; without a flow, only the rest.
        notes: instead of those of the scene.
        density: the log-density of the scene's portrait, if that was made without.
    """
    run, nodes, header = _drawn(run, notes)
    pack = _Packer()
    if flow is not None:
        quantise = DRAWN_AS[header["kind"]]({}, _Packer(), run)
        _add_flow(header, pack, flow.isel(time=nodes), quantise)
    if density is not None:
        _add_density(pack, density)
    return pack.finish(header)


def _drawn(run: xr.Dataset, notes: tuple[str, ...]) -> tuple[xr.Dataset, np.ndarray, dict]:
    """What of a run is drawn, at which of its nodes, and the header that says so.

    Its ``mark`` is of the states that are drawn last: a flow that comes later names its run by it.
    """
    if "x" not in run:
        raise ValueError("the run has no recorded x; record it with wb.Record(['x', ...]).")
    event = run["x"].shape[2:]
    if event == (2,):
        kind, most = "plane", PARTICLES
    elif len(event) == 2:
        kind, most = "image", TILES
    else:
        raise ValueError(
            f"the player draws states of shape (2,) or (rows, columns); these have shape {event}."
        )
    times, count, said = run.sizes["time"], run.sizes["sample"], []
    # The first samples, not some at random: so two runs that are compared share their seeds.
    drawn = min(count, most, max(BESIDE, STATES // min(times, NODES)))
    if drawn < count:
        said.append(f"The first {drawn} of {count} samples are drawn.")
    stride = math.ceil(max((times - 1) / (NODES - 1), times * drawn * np.prod(event) / STATES / 2))
    nodes = np.arange(times)
    if stride > 1:
        nodes = np.unique(np.append(nodes[::stride], times - 1))
        said.append(f"Of {times} recorded nodes one in {stride} is drawn, and the last.")
    run = run.isel(sample=slice(drawn), time=nodes)
    header = {"version": 1, "kind": kind, "frames": len(nodes), "samples": drawn}
    header["mark"] = zlib.crc32(np.ascontiguousarray(run["x"].values[-1]))
    return run, nodes, header | {"readouts": [], "notes": [*notes, *said]}


def _add_density(pack: _Packer, log_density: np.ndarray) -> None:
    pack.add("density", np.maximum(log_density, -30.0).astype("<f2"))


def _add_flow(header: dict, pack: _Packer, flow: xr.Dataset, quantise) -> None:
    """The exact states, and the run's distance to them."""
    quantise(pack, "exact", flow["exact"].values[:, : min(BESIDE, header["samples"])])
    pack.add("rms", flow["rms"].values.astype("<f4"))
    readout = {"array": "rms", "label": flow["rms"].attrs["long_name"], "brief": "RMS error"}
    header["readouts"].append(readout | {"unit": "per coordinate"})


def _brief(values) -> list[float]:
    """Numbers that are read, and not computed with."""
    return [float(f"{value:.6g}") for value in values.values.tolist()]


def _plane(header, pack, run, portrait=None):
    """Fill in what a plane draws; how further states x are packed for it is returned."""
    width = portrait.attrs["half_width"] if portrait is not None else half_width(run)
    scale = display_scale(run)
    header["window"] = {"x": [-width, width], "y": [-width, width]}
    header["labels"] = {"x": "x₁ / √(α² + σ²/v)", "y": "x₂ / √(α² + σ²/v)"}
    shown = run["x"].values / scale[:, None, None]
    # Positions may leave the window: room for them keeps paths continuous at its edges, and lets
    # the reader zoom out to what left it; no more than positions stay finer than a pixel.
    far = np.abs(shown[np.isfinite(shown)]).max(initial=0.0)
    reach = float(np.clip(1.02 * far, 2.0 * width, 8.0 * width))
    pack.quantise("x", shown, -reach, reach, "<u2")
    if "denoised" in run:
        # The estimate is in data units; it is drawn where that x0 would sit on the picture.
        denoised = run["denoised"].values[:, :BESIDE] * (run["alpha"].values / scale)[:, None, None]
        pack.quantise("denoised", denoised, -reach, reach, "<u2")
    if portrait is not None:
        # Of many nodes some are portrayed; here is where they stand among the frames.
        steps, portrayed = run["step"].values, portrait["step"].values
        header["fields"] = np.interp(portrayed, steps, np.arange(len(steps))).tolist()
        if portrait["log_density"].size:
            _add_density(pack, portrait["log_density"].values)
        pack.add("velocity", portrait["flow"].values.astype("<f2"))
    return lambda pack, name, states: pack.quantise(
        name, states / scale[:, None, None], -reach, reach, "<u2"
    )


def _images(header, pack, run, portrait=None):
    """Fill in what a sheet of images draws; how further states x are packed is returned."""
    scale = display_scale(run)[:, None, None, None]
    header["image"] = {"rows": run["x"].shape[2], "columns": run["x"].shape[3]}
    last = run["x"].values[-1] / scale[-1]
    last = last[np.isfinite(last)]  # a run may diverge
    low, high = (float(v) for v in np.quantile(last, [0.01, 0.99])) if last.size else (0.0, 0.0)
    low, high = (low, high) if high > low else (low - 1, high + 1)
    pack.quantise("x", run["x"].values / scale, low, high, "u1")
    if "denoised" in run:
        pack.quantise("denoised", run["denoised"].values, low, high, "u1")
    return lambda pack, name, states: pack.quantise(name, states / scale, low, high, "u1")


#: How each kind of run is drawn.
DRAWN_AS = {"plane": _plane, "image": _images}


class _Packer:
    """Arrays laid one after the other, each at a multiple of eight."""

    def __init__(self) -> None:
        self.arrays, self.parts, self.size = {}, [], 0

    def add(self, name: str, values: np.ndarray, low: float = 0.0, high: float = 1.0) -> None:
        raw = np.ascontiguousarray(values).tobytes()
        raw += b"\0" * (-len(raw) % 8)
        spec = {"offset": self.size, "dtype": values.dtype.name, "shape": list(values.shape)}
        self.arrays[name] = spec | {"low": low, "high": high}
        self.parts.append(raw)
        self.size += len(raw)

    def quantise(self, name: str, values, low: float, high: float, dtype: str) -> None:
        top = np.iinfo(np.dtype(dtype)).max
        above = np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low
        unit = above * (top / (high - low))
        self.add(name, np.clip(np.rint(unit), 0, top).astype(dtype), low, high)

    def finish(self, header: dict) -> bytes:
        text = json.dumps({**header, "arrays": self.arrays}, allow_nan=False).encode()
        text += b" " * (-(4 + len(text)) % 8)
        return b"".join([struct.pack("<I", len(text)), text, *self.parts])


def unpack(scene: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The header and the arrays of a scene, quantised ones back in their units."""
    (length,) = struct.unpack_from("<I", scene)
    header = json.loads(scene[4 : 4 + length])
    arrays = {}
    for name, spec in header["arrays"].items():
        dtype = np.dtype(spec["dtype"]).newbyteorder("<")
        count = int(np.prod(spec["shape"]))
        flat = np.frombuffer(scene, dtype, count, 4 + length + spec["offset"])
        values = flat.reshape(spec["shape"])
        if dtype.kind == "u":
            values = spec["low"] + values / np.iinfo(dtype).max * (spec["high"] - spec["low"])
        arrays[name] = values
    return header, arrays
