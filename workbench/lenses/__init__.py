"""Measurements: functions from a diffusion or a trajectory to an ``xarray.Dataset``."""

from workbench.lenses.base import Lens, Subject
from workbench.lenses.distances import Flow
from workbench.lenses.emergence import Emergence
from workbench.lenses.output import Output
from workbench.lenses.teleport import Teleportation
from workbench.registry import View, register

__all__ = ["LENSES", "Emergence", "Flow", "Lens", "Output", "Subject", "Teleportation"]

for _name, _kind in (
    ("flow", Flow),
    ("emergence", Emergence),
    ("teleportation", Teleportation),
    ("output", Output),
):
    register(_kind, name=_name)

#: Every lens by name.
LENSES = View("lens")
