"""The process that executes one notebook; see :mod:`workbench.studies.report`.

This file is run by its path, so it imports nothing of the package. It reads what is to be done from
its standard input: ``{"notebook": path, "out": path, "parameters": {...}}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

#: What a widget leaves on a page that has no kernel and no network.
WIDGET = (
    '<p style="padding:.6em .9em;border:1px dashed currentColor;border-radius:6px;opacity:.7">'
    "Interactive here: open the notebook to use it.</p>"
)


class Family:
    """A process and all that it started, to be ended together."""

    def __init__(self, pid: int) -> None:
        import psutil

        self.members = {psutil.Process(pid)}

    def look(self) -> bool:
        """Remember who has joined; whether somebody has."""
        import psutil

        before = len(self.members)
        for member in list(self.members):
            with contextlib.suppress(psutil.Error):
                self.members.update(member.children(recursive=True))
        return len(self.members) > before

    def end(self, but: int = 0) -> None:
        """Kill every member; each is held first, so that none has children meanwhile."""
        import psutil

        while True:
            for member in self.members:
                if member.pid != but:
                    with contextlib.suppress(psutil.Error):
                        member.suspend()
            if not self.look():
                break
        for member in self.members:
            if member.pid != but:
                with contextlib.suppress(psutil.Error):
                    member.kill()


def result_of(path: Path, failed: bool = False) -> dict[str, str]:
    """Title, first figure and failure of an executed notebook, as far as they are there.

    Of one that ``failed`` without a word (its kernel died, say) the last cell begun is to blame.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return {}
    cells = [c for c in cells if "papermill-error-cell-tag" not in c["metadata"].get("tags", ())]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    heading = re.search(r"^#+\s+(.+)$", text, re.MULTILINE)
    found = {"title": heading[1].strip() if heading else path.stem}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for output in (output for cell in code for output in cell["outputs"]):
        data = output.get("data", {})
        if "image/png" in data:
            found["figure"] = "data:image/png;base64," + "".join(data["image/png"]).strip()
            break
    begun = [cell for cell in code if cell["metadata"].get("papermill", {}).get("start_time")]
    for cell in code:
        how = cell["metadata"].get("papermill", {})
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        stopped = how.get("exception") or how.get("status") in ("running", "failed")
        if errors or stopped or (failed and begun and cell is begun[-1]):
            before = code[: code.index(cell)]
            count = cell.get("execution_count") or 1 + sum(bool(c["source"]) for c in before)
            found |= {"cell": f"In [{count}]", "source": "".join(cell["source"])}
            if errors:
                told = f"{errors[0]['ename']}: {errors[0]['evalue']}"
                found["error"] = COLOURS.sub("", told).strip()
                found["traceback"] = COLOURS.sub("", "\n".join(errors[0]["traceback"]))
            break
    return found


def to_html(path: Path) -> None:
    """Write a notebook as HTML beside it: one file, with its figures, that asks for nothing."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)  # else their manager is fetched from afar
    notebook.metadata["title"] = result_of(path).get("title", path.stem)
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            output["data"] = nbformat.from_dict({"text/html": WIDGET})
    page, _ = _exporter().from_notebook_node(notebook)
    path.with_suffix(".html").write_text(offline(page), encoding="utf-8")


def _exporter():
    """nbconvert's, with formulas as MathML, which a browser draws without a script."""
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block") or super().block_math(body)

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline") or super().inline_math(body)

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context, source):
            attachments = context.get("cell", {}).get("attachments", {})
            renderer = Renderer(escape=False, attachments=attachments, embed_images=True)
            return MarkdownWithMath(renderer=renderer).render(source)

    return Exporter(embed_images=True)


def mathml(tex: str, display: str) -> str:
    """A formula as MathML; empty if it cannot be read."""
    from latex2mathml.converter import convert

    try:
        return convert(tex.strip(), display=display)
    except Exception:  # whatever a reader's formula holds, its page is made
        return ""


def offline(page: str) -> str:
    """A page without the scripts that it would fetch: RequireJS, MathJax, Mermaid."""
    page = re.sub(r'<script[^>]*\ssrc="[^"]*"[^>]*>\s*</script>', "", page)
    page = re.sub(r'<script type="module">.*?</script>', "", page, flags=re.DOTALL)
    return re.sub(r'<script type="text/x-mathjax-config">.*?</script>', "", page, flags=re.DOTALL)


def _guard() -> None:
    """End with the process that started this one, and take the kernel along."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        Family(os.getpid()).end(but=os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    order: dict[str, Any] = json.loads(sys.stdin.read())
    _guard()
    import papermill

    out, status = Path(order["out"]), 0
    try:
        papermill.execute_notebook(
            order["notebook"], out, order["parameters"], kernel_name="python3", progress_bar=False
        )
    except papermill.PapermillExecutionError:
        status = 3  # the notebook itself says what went wrong
    to_html(out)
    return status


if __name__ == "__main__":
    sys.exit(main())
