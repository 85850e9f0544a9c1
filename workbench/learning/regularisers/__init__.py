"""Regularisers of a training: penalties on a network, added to its objective."""

from workbench.learning.regularisers.base import Regulariser
