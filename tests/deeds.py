"""What workers are given to do in tests: good work, slow work, and whatever ends a process."""

import ctypes
import os
import resource
import sys
import threading
import time
from pathlib import Path

import torch

from workbench.workers.pool import resident

PREPARED = []


def prepare():
    """A function that a nursery calls between two births."""
    PREPARED.append(os.getpid())


def prepared(report):
    """The processes that have prepared what this one has, and this one's parent."""
    return PREPARED, os.getppid()


def give(report, value=None):
    return value


def whoami(report):
    return os.getpid(), torch.is_grad_enabled(), torch.get_num_threads()


def churned(report, times=20, pieces=3, size=2**21):
    """Pages that the kernel has cleared for 24 MB that are asked for and freed again and again, the
    first time not counted; and the memory of this process in the end [bytes]."""
    before = 0
    for index in range(times + 1):
        held = [torch.ones(size) for _ in range(pieces)]
        del held
        if not index:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return cleared, resident(os.getpid())


def gradient(report):
    with torch.enable_grad():
        x = torch.ones(3, requires_grad=True)
        x.square().sum().backward()
    return x.grad.tolist()


def count(report, steps=20, pause=0.02):
    for step in range(1, steps + 1):
        time.sleep(pause)
        report("counting", step / steps)
    return steps


def until(report, gate, fraction=0.5, mark=None):
    """Report until the file ``gate`` is there."""
    if mark is not None:
        Path(mark).write_text(str(os.getpid()))
    while not Path(gate).exists():
        report("waiting", fraction)
        time.sleep(0.005)
    return "done"


def never(report, mark=None):
    """A loop of Python that asks nobody."""
    if mark is not None:
        Path(mark).write_text(str(os.getpid()))
    while True:
        pass


def stuck(report, mark=None):
    """A call of C that keeps every thread of its process waiting, and no signal but one ends it."""
    import signal

    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    if mark is not None:
        Path(mark).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(10_000)


def crash(report):
    ctypes.string_at(0)


def leave(report):
    os._exit(3)


def leave_politely(report):
    sys.exit(4)


def killed(report):
    os.kill(os.getpid(), 9)


def gluttonous(report):
    held = []
    while True:
        held.append(torch.ones(10_000_000))


def wrong(report):
    raise ValueError("a sentence")


def odd(report):
    raise KeyError("x")


def unsendable(report):
    return threading.Lock()


def claims(report, need, count=100, fixed=0, gate=None):
    from workbench.studies.limits import claim

    claim(need, count, fixed)
    return until(report, gate) if gate else "granted"
