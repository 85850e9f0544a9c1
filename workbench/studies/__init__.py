"""One file that says everything, and what is done with it."""

from workbench.studies.cluster import Progress, sweep
from workbench.studies.explore import Exploration, explore
from workbench.studies.run import Setup, available_devices, build, run
from workbench.studies.spec import SECTIONS, Study, StudyError, parameters
from workbench.studies.sweep import SweepError, SweepSpec

__all__ = [
    "SECTIONS",
    "Exploration",
    "Progress",
    "Setup",
    "Study",
    "StudyError",
    "SweepError",
    "SweepSpec",
    "available_devices",
    "build",
    "explore",
    "parameters",
    "run",
    "sweep",
]
