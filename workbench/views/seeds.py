"""What the page "Seeds" draws in the browser: one block of numbers, and what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.views.panels import beside, block, plain

if TYPE_CHECKING:
    from workbench.studies.seeding import PartSeen, SeedsSeen


def packed(seen: SeedsSeen, query: str) -> bytes:
    """A header of JSON behind its length, and the arrays as float32; what ``seeds.js`` reads.

    Args:
        query: of the study, for links to the page that follows a seed.
    """
    dataset = seen.dataset
    header: dict[str, Any] = {
        "kind": dataset.attrs["kind"],
        "eta": dataset.attrs["eta"],
        "query": query,
        "rho": plain(dataset["rho"].values),
        "t": plain(dataset["t"].values),
        "classes": dataset["class"].values.tolist(),
        "seeds": dataset["seed"].values.tolist(),
        "all": dataset["all_seeds"].values.tolist(),
        "parts": beside(seen.components, "variance", names="part"),
        "icc": beside(seen.components, "icc"),
        "named": beside(seen.identification, "accuracy", names="shared"),
        "chance": 1 / seen.identification.attrs["seeds"],
        "properties": beside(seen.properties, "icc", names="property"),
        "interval": plain(seen.components["interval"].values),
        "of": dataset.attrs["of"],
        "bands": dataset.attrs["bands"],
    }
    if seen.golden is not None:
        header["best"] = beside(seen.golden, "best")
        header["p"] = float(seen.golden["p"])
    if seen.retention is not None:
        header["retention"] = beside(seen.retention, "correlation")
    return block(header, dataset, ("states", "share", "quality", "confusion"))


def packed_part(seen: PartSeen, of: str) -> bytes:
    """A part of the page, as :func:`packed`.

    Args:
        of: what says of which study and options it is.
    """
    dataset, lens = seen.dataset, seen.lens
    header: dict[str, Any] = {"part": seen.part, "of": of, "facts": seen.facts, **seen.about}
    if seen.part == "fading":
        header["kappa"] = plain(lens["kappa"].values)
        header["icc"], header["told"] = beside(lens, "icc"), beside(lens, "accuracy")
    elif seen.part == "models":
        header["runs"] = dataset["run"].values.tolist()
        for name in ("spearman", "kendall", "cosine"):
            header[name] = beside(lens, name, names="variant")
        header["score"] = lens.attrs["score"].replace("_", " ")
    names = ("states", "faded", "kept", "followed", "noise", "outcomes")
    return block(header, dataset, names)
