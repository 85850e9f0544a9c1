"""One file that says everything, and what is done with it."""

from workbench.studies.explore import Exploration, explore
from workbench.studies.run import Setup, available_devices, build, run
from workbench.studies.spec import SECTIONS, Study, StudyError, parameters

__all__ = [
    "SECTIONS",
    "Exploration",
    "Setup",
    "Study",
    "StudyError",
    "available_devices",
    "build",
    "explore",
    "parameters",
    "run",
]
