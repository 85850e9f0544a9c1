"""Regularisers of a training: penalties on a network, added to its objective."""

from workbench.learning.regularisers.base import Regulariser
from workbench.registry import View

#: Every regulariser by name.
REGULARISERS = View("regulariser")
