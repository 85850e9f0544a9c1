"""One file that says everything, and what is done with it."""

from workbench.studies.run import Setup, build, run
from workbench.studies.spec import SECTIONS, Study, StudyError, parameters

__all__ = ["SECTIONS", "Setup", "Study", "StudyError", "build", "parameters", "run"]
