"""One file that says everything, and what is done with it."""

from workbench.studies.cache import cached_run
from workbench.studies.chunked import keep
from workbench.studies.cluster import Progress, sweep
from workbench.studies.explore import Exploration, explore
from workbench.studies.export import export
from workbench.studies.jobs import Job, JobError, submit
from workbench.studies.run import Plan, Setup, available_devices, build, plan, run
from workbench.studies.sections import SECTIONS
from workbench.studies.spec import Study, StudyError
from workbench.studies.store import StoreError
from workbench.studies.sweep import SweepError, SweepSpec
