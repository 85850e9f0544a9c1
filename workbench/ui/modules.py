"""The browser's modules, put together from the files of ``workbench/ui/js``."""

from pathlib import Path


def joined(*names: str) -> str:
    """Files of ``workbench/ui/js`` by their names as one module; they share one scope."""
    folder = Path(__file__).with_name("js")
    return "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in names)
