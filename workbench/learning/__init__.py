"""Learning: small networks trained here, with the truth beside them."""

from workbench.learning.training import Settings, Trained, TrainingError, train
