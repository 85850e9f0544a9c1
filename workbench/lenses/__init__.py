"""Lenses: what is measured of a run or of a diffusion, beside its exact value and its null band."""

from workbench.lenses.base import Lens, LensError, Subject, complete, estimates, measure
from workbench.lenses.convergence import Convergence
from workbench.lenses.dimension import Dimension
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence, Processes
from workbench.lenses.frequency import Frequency, Spectrum
from workbench.lenses.gap import FokkerPlanck, Gap
from workbench.lenses.geometry import Commitment, Geometry, UTurn
from workbench.lenses.inversion import RoundTrip
from workbench.lenses.likelihood import Likelihood
from workbench.lenses.output import Output
from workbench.lenses.planarity import Planarity
from workbench.lenses.portrait import Portrait
from workbench.lenses.seeds import Seeds
from workbench.lenses.teleport import Teleportation
from workbench.lenses.tuning import Tuning
from workbench.registry import View, register

__all__ = [
    "LENSES",
    "Commitment",
    "Convergence",
    "Dimension",
    "Emergence",
    "Flow",
    "FokkerPlanck",
    "Frequency",
    "Gap",
    "Geometry",
    "Lens",
    "LensError",
    "Likelihood",
    "Output",
    "Planarity",
    "Portrait",
    "Processes",
    "RoundTrip",
    "Seeds",
    "Spectrum",
    "Subject",
    "Teleportation",
    "Tuning",
    "UTurn",
    "complete",
    "estimates",
    "measure",
]

for _kind in (
    Commitment,
    Convergence,
    Dimension,
    Emergence,
    Flow,
    Frequency,
    Gap,
    Geometry,
    Likelihood,
    Output,
    Planarity,
    Portrait,
    Processes,
    Seeds,
    Spectrum,
    Teleportation,
    Tuning,
    UTurn,
):
    register(_kind, name=_kind.__name__.lower())
register(FokkerPlanck, name="fokker_planck")
register(RoundTrip, name="inversion")

#: Every lens by name.
LENSES = View("lens")
