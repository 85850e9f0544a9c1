"""Training objectives: which noise levels are drawn, and what is minimised there."""

from workbench.learning.objectives.base import Objective
