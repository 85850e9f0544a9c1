"""What a request goes by: who hears of its progress, and how much memory it may take.

In a server's worker process each request asks for what its plan says it takes, known beforehand,
and is refused with the numbers. Elsewhere, in a script, a notebook or a command, nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from workbench.studies.sections import StudyError
from workbench.workers.worker import ask

#: Called as ``report(stage, fraction)`` along the way; what it raises ends the request.
Report = Callable[[str, float], None]


def unheard(stage: str, fraction: float) -> None:
    """The report of a request whose progress nobody follows."""


def claim(
    need: int,
    count: int = 1,
    fixed: int = 0,
    key: str = "seeds.count",
    what: str = "samples",
    else_: str = "take fewer steps or recorded fields too",
    without: str = " Without that limit: workbench run study.yaml.",
) -> None:
    """Ask for the memory of what comes next.

    Args:
        need: bytes at its peak, beside the libraries.
        count: samples, to which all of it but ``fixed`` bytes is proportional.
        key: the entry of the study that is to be made smaller.
        what: what is counted there.
        else_: what to do where not even one fits.
        without: where there is no such limit, as a sentence with a space before it.

    Raises:
        StudyError: more than may be had, with the numbers and what would fit.
    """
    free = ask(need)
    if free is None:
        return
    most = int(count * (free - fixed) / max(1, need - fixed))
    fits = f"at most {most} {what} fit" if most >= 1 else else_
    raise StudyError(
        {
            key: f"{key} was {count}; this takes about {need / 1e6:.0f} MB, and the server has "
            f"{free / 1e6:.0f} MB for it now: {fits}.{without}"
        }
    )


def size_of(text: str) -> int:
    """Bytes of a size such as ``2GB``, ``500 MB`` or ``1000000``.

    Raises:
        ValueError: no size.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not found or float(found[1]) <= 0 or (found[3] and not found[2]):
        raise ValueError(f"a size was {text[:40]!r}; write it as 500MB or 2GB.")
    power = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}[found[2]]
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
