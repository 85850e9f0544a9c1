"""What the page "Gauge" draws in the browser: one block of numbers, and what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench.lenses.gauge import determined
from workbench.views.panels import beside, block, plain

if TYPE_CHECKING:
    from workbench.studies.gauging import GaugeCurves, GaugeSeen

#: Curves of each lens that are drawn.
DRAWN = {
    "asymmetry": ("share",),
    "gauge": ("violation", "gauge", "gauge_least"),
    "dimension": ("flipd", "trace", "lidl", "normal_bundle", "flow", "mle", "twonn"),
}


def packed(seen: GaugeSeen, of: str) -> bytes:
    """A header of JSON behind its length, and the arrays as float32; what ``gauge.js`` reads.

    Args:
        of: what says of which study and options it is.
    """
    dataset = seen.dataset
    header: dict[str, Any] = {
        **{name: plain(dataset[name].values) for name in ("rho", "t", "strength")},
        "steps": dataset["steps"].values.tolist(),
        "dim": dataset.attrs["dim"],
        **{name: [plain(row) for row in dataset[name].values] for name in ("w2", "w2_exact")},
        "w2_null": plain(dataset["w2_null"].values),
        "of": of,
    }
    names = ("states", "truth_states", "density", "field", "conservative", "gauge", "truth")
    return block(header, dataset, (*names, "place", "edges", "norm2"))


def packed_part(seen: GaugeCurves, of: str) -> bytes:
    """Curves of one lens, as :func:`packed`: of each model those that are drawn."""
    models = [
        {"name": name} | {key: _curve(found, key) for key in DRAWN[seen.part] if key in found}
        for name, found in seen.curves.items()
    ]
    header = {"part": seen.part, "of": of, "findings": seen.facts, "models": models}
    if seen.part == "gauge":
        header["undetermined"] = [name for name, one in seen.curves.items() if not determined(one)]
    return block(header, xr.Dataset(), ())


def _curve(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """A curve over the noise level with what stands beside it, and where it holds."""
    curve: dict[str, Any] = {"at": plain(dataset["rho"].values)} | beside(dataset, name)
    if "holds" in dataset[name].attrs:
        curve["holds"] = list(dataset[name].attrs["holds"])
    return curve
