"""Lenses: what is measured of a run or of a diffusion, beside its exact value and its null band."""

from workbench.lenses.base import Lens, LensError, Subject, complete, estimates, measure
from workbench.lenses.dimension import Dimension
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence
from workbench.lenses.gap import FokkerPlanck, Gap
from workbench.lenses.likelihood import Likelihood
from workbench.lenses.output import Output
from workbench.lenses.planarity import Planarity
from workbench.lenses.teleport import Teleportation
from workbench.registry import View, register

__all__ = [
    "LENSES",
    "Dimension",
    "Emergence",
    "Flow",
    "FokkerPlanck",
    "Gap",
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

for _kind in (Flow, Emergence, Teleportation, Output, Planarity, Dimension, Likelihood, Gap):
    register(_kind, name=_kind.__name__.lower())
register(FokkerPlanck, name="fokker_planck")

#: Every lens by name.
LENSES = View("lens")
