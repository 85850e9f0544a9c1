"""Two things timed in turns within one run, the ratio of their times; the memory of a process."""

import resource
import statistics
import sys
import time
from collections.abc import Callable

REPEATS = 15


def peak() -> int:
    """The largest memory of this process until now [bytes]."""
    try:  # not ru_maxrss, which on Linux begins with that of the process it was started by
        with open("/proc/self/status") as file:
            return 1024 * int(file.read().split("VmHWM:")[1].split()[0])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def least(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = REPEATS
) -> tuple[float, float, float]:
    """Least milliseconds of both, taken in turns, and their ratio: what a busy machine adds to one
    call or the other is left out.
    """
    times: tuple[list, list] = [], []
    for call in (ours, theirs):
        call()
    for _ in range(repeats):
        for call, kept in zip((ours, theirs), times, strict=True):
            began = time.process_time()
            call()
            kept.append(1e3 * (time.process_time() - began))
    first, second = map(min, times)
    return first, second, first / second


def ratio(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = REPEATS
) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of their ratios pair by pair."""
    pairs = []
    for call in (ours, theirs):
        call()
    for _ in range(repeats):
        times = []
        for call in (ours, theirs):
            began = time.process_time()
            call()
            times.append(1e3 * (time.process_time() - began))
        pairs.append(times)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return first, second, statistics.median(a / b for a, b in pairs)
