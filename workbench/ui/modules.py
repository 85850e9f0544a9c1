"""The files of ``workbench/ui/js``: parts of pages, and modules put together of them."""

from functools import cache
from pathlib import Path


@cache
def text(name: str) -> str:
    """A file of ``workbench/ui/js``."""
    return Path(__file__).with_name("js").joinpath(name).read_text(encoding="utf-8")


def joined(*names: str) -> str:
    """Scripts of ``workbench/ui/js`` by their names as one module; they share one scope."""
    return "\n".join(text(f"{name}.js") for name in names)
