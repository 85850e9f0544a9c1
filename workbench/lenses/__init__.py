"""Lenses: what is measured of a run or of a diffusion, beside its exact value and its null band."""

from workbench.lenses.attribution import Attribution
from workbench.lenses.base import Lens, LensError, Subject, complete, estimates, measure
from workbench.lenses.bound import Bound
from workbench.lenses.convergence import Convergence
from workbench.lenses.deficit import Deficit
from workbench.lenses.density_error import DensityError
from workbench.lenses.dimension import Dimension
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence, Processes
from workbench.lenses.frequency import Frequency
from workbench.lenses.gap import FokkerPlanck, Gap
from workbench.lenses.gauge import Asymmetry, Gauge
from workbench.lenses.geometry import Commitment, Geometry, UTurn
from workbench.lenses.inversion import RoundTrip
from workbench.lenses.likelihood import Likelihood
from workbench.lenses.output import Output
from workbench.lenses.planarity import Planarity
from workbench.lenses.portrait import Portrait
from workbench.lenses.ranks import Ranks
from workbench.lenses.retention import Reproducibility, Retention
from workbench.lenses.seeds import Fading, Golden, Identification, Properties, VarianceComponents
from workbench.lenses.shortcut import Shortcut
from workbench.lenses.spectrum import Spectrum
from workbench.lenses.surgery import Surgery
from workbench.lenses.teleport import Teleportation
from workbench.lenses.tuning import Tuning
from workbench.registry import View, register

for _kind in (
    Asymmetry,
    Attribution,
    Bound,
    Commitment,
    Convergence,
    Deficit,
    Dimension,
    Emergence,
    Fading,
    Flow,
    Frequency,
    Gap,
    Gauge,
    Golden,
    Identification,
    Geometry,
    Likelihood,
    Output,
    Planarity,
    Portrait,
    Processes,
    Properties,
    Ranks,
    Reproducibility,
    Retention,
    Shortcut,
    Spectrum,
    Surgery,
    Teleportation,
    Tuning,
    UTurn,
):
    register(_kind, name=_kind.__name__.lower())
register(DensityError, name="density_error")
register(FokkerPlanck, name="fokker_planck")
register(RoundTrip, name="inversion")
register(VarianceComponents, name="variance_components")

#: Every lens by name.
LENSES = View("lens")
