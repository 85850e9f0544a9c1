"""What a lens may need of a process."""

from __future__ import annotations

from workbench.processes import Process


def check_one_level(process: Process, why: str) -> None:
    """Raise :class:`NotImplementedError` under a process with a noise level for each mode."""
    if process.spectral:
        raise NotImplementedError(f"{process!r} has one rho per mode; {why}.")


def check_prior(process: Process, why: str) -> None:
    """Raise :class:`NotImplementedError` under a process without a prior to start from."""
    if not process.has_prior:
        raise NotImplementedError(f"{process!r} has no prior{why}; take another process.")
