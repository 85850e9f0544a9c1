"""Two things timed in turns within one run, and the ratio of their times."""

import statistics
import time
from collections.abc import Callable

REPEATS = 15


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
