"""What the page "Gauge" draws in the browser: one block of numbers, and what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.views.panels import beside, block, plain

if TYPE_CHECKING:
    import xarray as xr

    from workbench.studies.gauging import GaugeSeen

__all__ = ["packed"]

#: Curves of each lens that are drawn.
DRAWN = {
    "asymmetry": ("share",),
    "gauge": ("violation", "gauge"),
    "dimension": ("flipd", "trace", "lidl", "normal_bundle", "flow", "mle", "twonn"),
}


def packed(seen: GaugeSeen) -> bytes:
    """A header of JSON behind its length, and the arrays as float32; what ``gauge.js`` reads."""
    dataset = seen.dataset
    header: dict[str, Any] = {
        "rho": plain(dataset["rho"].values),
        "t": plain(dataset["t"].values),
        "strength": plain(dataset["strength"].values),
        "steps": dataset["steps"].values.tolist(),
        "dim": dataset.attrs["dim"],
        "w2": [plain(row) for row in dataset["w2"].values],
        "w2_exact": [plain(row) for row in dataset["w2_exact"].values],
        "w2_null": plain(dataset["w2_null"].values),
        "models": [
            {"name": name}
            | {
                key: _curve(found[lens], key)
                for lens, keys in DRAWN.items()
                if lens in found
                for key in keys
                if key in found[lens]
            }
            for name, found in seen.curves.items()
        ],
    }
    names = ("states", "truth_states", "density", "field", "conservative", "gauge", "truth")
    return block(header, dataset, (*names, "place", "edges", "norm2"))


def _curve(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """A curve over the noise level with what stands beside it, and where it holds."""
    curve: dict[str, Any] = {"at": plain(dataset["rho"].values)} | beside(dataset, name)
    if "holds" in dataset[name].attrs:
        curve["holds"] = list(dataset[name].attrs["holds"])
    return curve
