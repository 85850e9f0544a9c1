"""The process that executes one notebook; see :mod:`workbench.studies.report`.

This file is run by its path, so it imports nothing of the package. It reads what is to be done from
its standard input: ``{"notebook": path, "out": path, "parameters": {...}}``.
"""

from __future__ import annotations

import base64
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

#: Where widgets stand in a notebook: what an output shows, and what all of them hold.
VIEW = "application/vnd.jupyter.widget-view+json"
STATES = "application/vnd.jupyter.widget-state+json"

#: Where a player comes on the page, and the player: its module and its runs, in the page itself.
PLACE = "<!-- the player of the Diffusion Workbench -->"
PLAYER = """<div id="{place}" style="height:min(620px,85vh)"></div><script type="module">
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const module = new Blob([bytes("{module}")], {{ type: "text/javascript" }});
const {{ show }} = await import(URL.createObjectURL(module));
show(document.getElementById("{place}"), {{
  compare: {compare}, data: bytes("{data}"), other: bytes("{other}"),
}});
</script>"""


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
    # Not left where it is: the widgets' manager would be fetched from afar.
    states = notebook.metadata.pop("widgets", {}).get(STATES, {}).get("state", {})
    notebook.metadata["title"] = result_of(path).get("title", path.stem)
    players = []
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        if VIEW in output.get("data", {}):
            shown = player_of(states, output["data"][VIEW]["model_id"])
            output["data"] = nbformat.from_dict({"text/html": PLACE if shown else WIDGET})
            players += [shown] if shown else []
    page, _ = _exporter().from_notebook_node(notebook)
    first, *rest = offline(page).split(PLACE)
    parts = [f"{shown}{part}" for shown, part in zip(players, rest, strict=True)]
    path.with_suffix(".html").write_text("".join([first, *parts]), encoding="utf-8")


def player_of(states: dict[str, Any], model: str) -> str:
    """The player that a saved widget is or holds, as HTML that plays by itself; empty if none."""
    waiting, seen = [model], set()
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in states:
            continue
        seen.add(name)
        state = states[name].get("state", {})
        buffers = {tuple(b["path"]): b["data"] for b in states[name].get("buffers", ())}
        if "export { show }" in str(state.get("_esm", "")) and ("data",) in buffers:
            module = base64.b64encode(state["_esm"].encode()).decode()
            return PLAYER.format(
                place=f"player-{os.urandom(8).hex()}",
                module=module,
                compare=json.dumps(str(state.get("compare", "beside"))).replace("<", ""),
                data="".join(buffers["data",].split()),
                other="".join(buffers.get(("other",), "").split()),
            )
        waiting += [word[10:] for word in _texts(state) if word.startswith("IPY_MODEL_")]
    return ""


def _texts(value: Any):
    """The texts that a widget's state holds, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


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
    # jsonschema would compile a grammar of addresses, for seconds; no notebook's schema has any.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill

    out, status = Path(order["out"]), 0
    what = order["notebook"], out, order["parameters"]
    for again in (True, True, False):
        try:
            papermill.execute_notebook(*what, kernel_name="python3", progress_bar=False)
        except papermill.PapermillExecutionError:
            status = 3  # the notebook itself says what went wrong
        except RuntimeError as error:
            # A kernel's ports are chosen before it takes them: another may have been faster.
            if again and "before replying to kernel_info" in str(error):
                continue
            raise
        break
    to_html(out)
    return status


if __name__ == "__main__":
    sys.exit(main())
