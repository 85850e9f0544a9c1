"""What several tests share: random laws, an integrator, orders of convergence, ports, memory."""

import contextlib
import io
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pytest import approx
from scipy.integrate import solve_ivp

import workbench as wb

#: One process of each kind, with its default parameters.
PROCESSES = {name: kind() for name, kind in wb.PROCESSES.items()}

#: One of each kind, for laws that hold on the curve that all processes are: the signal fades, it
#: stays, it is gone at the start. That each process is on that curve is tested of all.
KINDS = {name: PROCESSES[name] for name in ("VP", "EDM", "RectifiedFlow")}


def uniform(generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def log_uniform(generator, low: float, high: float) -> float:
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def normals(generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_process(name: str, generator):
    """A process of the given kind with parameters of its own."""
    kind, t_min = wb.PROCESSES[name], log_uniform(generator, 1e-4, 1e-2)
    if name in ("VP", "SubVP"):
        low, high = uniform(generator, 0.02, 1.0), uniform(generator, 5, 30)
        return kind(low, high, t_min=t_min)
    if name in ("EDM", "VE"):
        low, high = log_uniform(generator, 1e-3, 1e-1), log_uniform(generator, 5, 200)
        return kind(low, high)
    if name == "Cosine":
        return kind(log_uniform(generator, 1e-3, 0.1), t_min=t_min)
    if name == "OU":
        theta, noise = uniform(generator, 0.5, 2.0), uniform(generator, 0.5, 2.0)
        return kind(theta, noise, t_min=t_min, t_max=uniform(generator, 3, 10))
    return kind(t_min=t_min)


def covariance(generator, d: int, low: float = 0.05, high: float = 4.0) -> torch.Tensor:
    """A random full covariance with eigenvalues from ``low`` to ``high``."""
    basis = torch.linalg.qr(normals(generator, d, d)).Q
    variances = torch.tensor([log_uniform(generator, low, high) for _ in range(d)]).double()
    cov = (basis * variances) @ basis.T
    return 0.5 * (cov + cov.T)


def _weights(generator, k: int) -> torch.Tensor:
    weights = 0.2 + torch.rand(k, generator=generator, dtype=torch.float64)
    return weights / weights.sum()


def _low_rank(generator, d: int, rest: float) -> wb.Gaussian:
    basis = torch.linalg.qr(normals(generator, d, 2)).Q
    return wb.Gaussian.low_rank(
        normals(generator, d), basis, torch.tensor([2.0, 0.3]).double(), rest
    )


def _mixture(generator, d: int, covs: torch.Tensor) -> wb.Mixture:
    return wb.Mixture(_weights(generator, len(covs)), 1.5 * normals(generator, len(covs), d), covs)


#: Every kind of law: ``make(generator, d)``.
LAWS = {
    "gaussian-full": lambda g, d: wb.Gaussian(normals(g, d), covariance(g, d)),
    "gaussian-diagonal": lambda g, d: wb.Gaussian(normals(g, d), 0.1 + normals(g, d) ** 2),
    "gaussian-scalar": lambda g, d: wb.Gaussian(normals(g, d), uniform(g, 0.1, 3)),
    "gaussian-rank-2": lambda g, d: _low_rank(g, d, 0.0),
    "gaussian-rank-2-and-rest": lambda g, d: _low_rank(g, d, 0.05),
    "gaussian-fit": lambda g, d: wb.Gaussian.fit(normals(g, 20, d) @ covariance(g, d)),
    "mixture-equal": lambda g, d: _mixture(g, d, torch.full((4,), 0.2).double()),
    "mixture-isotropic": lambda g, d: _mixture(g, d, 0.05 + normals(g, 4) ** 2),
    "mixture-diagonal": lambda g, d: _mixture(g, d, 0.05 + normals(g, 4, d) ** 2),
    "mixture-full": lambda g, d: _mixture(g, d, torch.stack([covariance(g, d) for _ in range(4)])),
    "empirical": lambda g, d: wb.Empirical(normals(g, 12, d)),
}


def states(generator, law, n: int, alpha: float, sigma: float) -> torch.Tensor:
    """States spread over where the noised law lives, and beyond."""
    return alpha * law.mean + 1.5 * (alpha * law.std + sigma) * normals(
        generator, n, *law.event_shape
    )


def ring() -> wb.Mixture:
    """The ring of eight."""
    return wb.datasets.ring().law


def integrate(diffusion, x: torch.Tensor, t: float, s: float, rtol=1e-12, atol=1e-14):
    """The probability flow of ``x`` from t to s by DOP853 on ``diffusion.velocity``.

    The first step is short: next to the data the flow may go like the root of t, and the method's
    own choice now and then steps over it without seeing an error.
    """
    first = min(abs(s - t), 0.1 * min(t, s) or math.inf)

    def velocity(time, state):
        return diffusion.velocity(torch.from_numpy(state).reshape(x.shape), time).flatten().numpy()

    flat = x.flatten().numpy()
    solved = solve_ivp(velocity, (t, s), flat, "DOP853", rtol=rtol, atol=atol, first_step=first)
    assert solved.success, solved.message
    return torch.from_numpy(np.ascontiguousarray(solved.y[:, -1])).reshape(x.shape)


def halved(monkeypatch, module, *names: str):
    """The constants of a module as they are, then half of each; then as they were."""
    with monkeypatch.context() as patch:
        for share in (1.0, 0.5):
            for name in names:
                patch.setattr(module, name, getattr(module, name) * share)
            yield


def observed_orders(diffusion, sampler, make_grid, x, truth, steps=(80, 160, 320)) -> list[float]:
    """Slopes of the error between runs of each number of steps and the next.

    The mean over samples of the error's logarithm is what is compared, so that no single sample
    next to a basin boundary speaks for all.
    """
    logs = []
    for n in steps:
        grid = make_grid(diffusion.process, steps=n)
        final = wb.sample(diffusion, sampler, grid, range(len(x)), x=x).final
        logs.append((final - truth).norm(dim=-1).log2().mean().item())
    return [
        (a - b) / math.log2(n / m)
        for a, b, m, n in zip(logs, logs[1:], steps, steps[1:], strict=False)
    ]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of ``b``."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


#: Rounding between two runs of one study, in other batches or processes, relative to the largest.
ROUNDING = {"float64": 1e-12, "float32": 1e-5}


def same_run(found, expected) -> None:
    """Two datasets of one study: numbers to rounding, all else alike but for the time each took."""
    found, expected = (ds.drop_vars("seconds", errors="ignore") for ds in (found, expected))
    assert set(found.variables) == set(expected.variables)
    assert set(found.coords) == set(expected.coords)
    for name, variable in expected.variables.items():
        one, other = found[name], variable
        assert one.dims == other.dims and one.attrs == other.attrs, name
        one, other = one.values, other.values
        assert one.dtype == other.dtype or {one.dtype.kind, other.dtype.kind} <= set("OUT"), name
        if one.dtype.kind != "f":
            np.testing.assert_array_equal(one, other, name)
            continue
        size = np.abs(other[np.isfinite(other)]).max(initial=0.0)
        atol = ROUNDING[str(one.dtype)] * float(size)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)
    for name, value in expected.attrs.items():
        if name != "seconds":
            assert found.attrs[name] == (approx(value) if isinstance(value, float) else value), name


def run_notebook(notebook: Path, parameters: dict, whole: bool = True) -> str:
    """What the last cell of a notebook prints. Its cells run in this process, in this folder, or
    until the file ``parameters["out"]`` is there unless ``whole``.
    """
    import papermill

    asked = papermill.parameterize.parameterize_notebook(
        papermill.iorw.load_notebook_node(str(notebook)), parameters
    )
    names: dict = {"__name__": "__main__"}
    for cell in asked.cells:
        if cell.cell_type == "code":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(cell.source, notebook.name, "exec"), names)
            if not whole and Path(parameters["out"]).exists():
                break
    return said.getvalue()


@contextlib.contextmanager
def another_process(held: Callable[[], contextlib.AbstractContextManager]):
    """The number of a process that is inside of ``held()``; at the end it is killed.

    A child of this very process, which has imported everything.
    """
    read, write = os.pipe()
    number = os.fork()
    if not number:
        try:
            with held():
                os.write(write, b"1")
                time.sleep(600)
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b"1"
        yield number
    finally:
        os.close(read)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)


#: For a process of its own: its largest memory until now [bytes]. Not ``ru_maxrss``, which begins
#: with that of the process it was started by.
PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(file.read().split("VmHWM:")[1].split()[0])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
