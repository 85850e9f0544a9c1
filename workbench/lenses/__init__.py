"""Lenses: what is measured of a run or of a diffusion, beside its exact value and its null band."""

from workbench.lenses.base import Lens, LensError, Subject, complete, estimates, measure
from workbench.lenses.dimension import Dimension
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence
from workbench.lenses.likelihood import Likelihood
from workbench.lenses.output import Output
from workbench.lenses.planarity import Planarity
from workbench.lenses.teleport import Teleportation

__all__ = [
    "LENSES",
    "Dimension",
    "Emergence",
    "Flow",
    "Lens",
    "LensError",
    "Likelihood",
    "Output",
    "Planarity",
    "Subject",
    "Teleportation",
    "complete",
    "estimates",
    "measure",
]

#: What a study can have measured, by name. A new one is one class and one entry here.
LENSES: dict[str, type[Lens]] = {
    "flow": Flow,
    "emergence": Emergence,
    "teleportation": Teleportation,
    "output": Output,
    "planarity": Planarity,
    "dimension": Dimension,
    "likelihood": Likelihood,
}
