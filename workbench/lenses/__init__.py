"""Measurements: functions from a diffusion or a trajectory to an ``xarray.Dataset``."""
