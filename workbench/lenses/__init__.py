"""Lenses: what is measured of a run or of a diffusion, beside its exact value and its null band."""

from workbench.lenses.base import Lens, LensError, Subject, complete, estimates, measure
from workbench.lenses.convergence import Convergence
from workbench.lenses.dimension import Dimension
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence, Processes
from workbench.lenses.gap import FokkerPlanck, Gap
from workbench.lenses.inversion import RoundTrip
from workbench.lenses.likelihood import Likelihood
from workbench.lenses.output import Output
from workbench.lenses.planarity import Planarity
from workbench.lenses.portrait import Portrait
from workbench.lenses.retention import Reproducibility, Retention
from workbench.lenses.seeds import Golden, Identification, Seeds
from workbench.lenses.teleport import Teleportation
from workbench.lenses.tuning import Tuning
from workbench.registry import View, register

__all__ = [
    "LENSES",
    "Convergence",
    "Dimension",
    "Emergence",
    "Flow",
    "FokkerPlanck",
    "Gap",
    "Golden",
    "Identification",
    "Lens",
    "LensError",
    "Likelihood",
    "Output",
    "Planarity",
    "Portrait",
    "Processes",
    "Reproducibility",
    "Retention",
    "RoundTrip",
    "Seeds",
    "Subject",
    "Teleportation",
    "Tuning",
    "complete",
    "estimates",
    "measure",
]

for _kind in (
    Convergence,
    Dimension,
    Emergence,
    Flow,
    Gap,
    Golden,
    Identification,
    Likelihood,
    Output,
    Planarity,
    Portrait,
    Processes,
    Reproducibility,
    Retention,
    Seeds,
    Teleportation,
    Tuning,
):
    register(_kind, name=_kind.__name__.lower())
register(FokkerPlanck, name="fokker_planck")
register(RoundTrip, name="inversion")

#: Every lens by name.
LENSES = View("lens")
