"""The frame of every page: bar, form, picture, a dock of tabs, theme, keys, what is on the bench.

The frame is plain HTML with one CSS grid, there before any script of Panel's has loaded; what is
computed is embedded in its places, each as a root of its own that never moves. What the frame does
(theme, keys, menus, tabs, a lost server) it does in the browser; :class:`Bench` connects it with
the session.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
import panel as pn
import param
from panel.template.base import _env

from workbench.ui.component import Component, is_plain, together
from workbench.ui.modules import joined, text
from workbench.ui.session import Address

if TYPE_CHECKING:
    from workbench.ui.form import Control
    from workbench.ui.server import App

#: What each key does, on every page.
KEYS = (
    (("Space",), "play and pause"),
    (("←", "→"), "step from node to node"),
    (("Home", "End"), "pure noise, data"),
    (("i",), "steps within a step: predictor, stages, corrector"),
    (("f",), "open or close the form"),
    (("/",), "find a control of the form"),
    (("1", "2", "…"), "choose a tab of the panel"),
    (("d",), "close or open the panel"),
    (("p",), "pin this study as B, or let it go"),
    (("s",), "share: copy the link, Python, the command line"),
    (("e",), "export"),
    (("t",), "light or dark"),
    (("?",), "this sheet"),
    (("Tab", "Enter"), "from the top of the page: to Play"),
)

#: Drawn on a field of 20 by 20.
ICONS = {
    "form": "M3 5h14M3 10h14M3 15h14M7 3v4M13 8v4M6 13v4",
    "pin": "M7.5 3h5l-.7 5 2.7 3H5.5l2.7-3zM10 11v6",
    "share": "M14 6.5a2 2 0 1 0-2-2 2 2 0 0 0 2 2zM6 12a2 2 0 1 0-2-2 2 2 0 0 0 2 2z"
    "M14 17.5a2 2 0 1 0-2-2 2 2 0 0 0 2 2zM7.8 9.1l4.4-3.6M7.8 10.9l4.4 3.6",
    "export": "M10 3v9M6.5 8.8 10 12.3l3.5-3.5M3.5 13.5v3h13v-3",
    "theme": "M10 3.2a6.8 6.8 0 1 0 0 13.6zM10 3.2a6.8 6.8 0 0 1 0 13.6M12.5 5v10M15 7v6",
    "keys": "M7.2 7.4a2.9 2.9 0 1 1 4.2 2.6c-.9.5-1.4 1-1.4 2.1M10 15.2v.3",
    "fold": "M5 7.5 10 12.5 15 7.5",
}


@dataclass(frozen=True)
class Tab:
    """A tab of the dock: its key, its title, and what it shows."""

    key: str
    title: str
    view: pn.viewable.Viewable


class Form(Component):
    """A form of native controls.

    Attributes:
        controls: as JSON, of each a mapping of its key, section, label, help, kind (``choice``,
            ``text``, ``bool``, ``many``, ``file``), value, and the sentence that is wrong with it.
        edits: what the reader changed, the last ones: key, value, and a count from 1 on.
    """

    #: What is typed is taken up at once; Panel's components wait for 50 ms.
    _debounce: ClassVar[int] = 0

    controls = param.String("[]")
    edits = param.List([])

    _esm = joined("form")

    def show(
        self, wanted: Sequence[Control], problems: Mapping[str, str], typed: Mapping[str, Any]
    ) -> str:
        """Show controls, each with the sentence that is wrong with it.

        Args:
            wanted: the controls, in order.
            problems: sentences by the path of what they speak of.
            typed: values that were refused, which stay in the form.

        Returns:
            The sentences that belong to no control.
        """
        # Imported late: the form needs torch, and the frame is there before it.
        from workbench.ui.form import described, placed

        beside, rest = placed(problems, [control.key for control in wanted])
        told = [described(control, beside[control.key], typed) for control in wanted]
        self.controls = json.dumps(told, ensure_ascii=False)
        return rest

    def on_edit(self, call: Callable[[str, Any], None]) -> None:
        """Have ``call(key, value)`` hear of every change once; an empty key is a reset."""
        done = 0

        def hear(event: param.parameterized.Event) -> None:
            nonlocal done
            with together():
                for edit in event.new:
                    count = edit.get("count")
                    if isinstance(count, int) and count > done:
                        done = count
                        call(str(edit.get("key", "")), edit.get("value"))

        self.param.watch(hear, "edits")


class Bench(Component):
    """What the frame and the session tell each other.

    Attributes:
        chips: what is on the bench: section of the form, label, text.
        facts: the result in short texts, as HTML.
        problem, severity: a sentence above the picture; ``error`` or ``info``.
        study: the query that other pages are opened with.
        tab: key of the tab that is open; empty when the dock is closed.
        pinned, differs, compare: whether there is a study B, how it differs from A, and how the
            two are shown.
        asked: what a button asks for, by name.
        answer, content: a text or a file for it.
    """

    chips = param.List([])
    facts = param.List([])
    problem = param.String("")
    severity = param.String("error")
    study = param.String("")
    tab = param.String("")
    pinned = param.Boolean(False)
    differs = param.String("")
    compare = param.String("beside")
    asked = param.Dict({})
    answer = param.Dict({})
    content = param.Bytes(b"")

    _esm = """export default { render({ model }) { window.workbench?.connect(model); } }"""


@cache
def _shell() -> jinja2.Template:
    """The page's HTML, compiled once."""
    return _env.from_string(text("shell.html"))


#: How modules are imported: by the shim, or by the browser itself.
IMPORTS = {
    False: '<script type="esms-options">{"shimMode": true}</script>',
    True: "<script>window.importShim = Object.assign((address) => import(address), "
    "{ addImportMap() {} });</script>",
}

#: Scripts of the toolkit that no page uses: WebGL plots, formulas in labels of figures.
UNUSED = ("bokeh-gl", "bokeh-mathjax")


def lean(scripts: str, plain: bool) -> str:
    """The toolkit's scripts without those that no page uses, run when the frame has been drawn.

    Args:
        scripts: as Panel would have them in the page.
        plain: whether all modules of the page are such that a browser imports them by itself.
    """
    found = re.findall(r'<script type="text/javascript" src="[^"]*"></script>', scripts)
    left = (*UNUSED, *(("es-module-shims",) if plain else ()))
    used = [one for one in found if not any(f"/{name}." in one for name in left)]
    return "\n".join([IMPORTS[plain], *(one.replace("<script ", "<script defer ") for one in used)])


class Frame(pn.Template):
    """A template without what Panel shows of one in a notebook, most of what making one takes."""

    def __repr__(self) -> str:
        return "Frame"

    def _init_doc(self, doc=None, *args, **kwargs):
        document = doc or pn.state.curdoc
        with document.models.freeze():  # else it is gone through anew with every root
            return super()._init_doc(document, *args, **kwargs)

    def _build_layout(self) -> pn.Column:
        return pn.Column(pn.pane.Str(""))


_pages: list[App] = []


def use_pages(pages: Sequence[App]) -> None:
    """Have the bar of every page list ``pages``."""
    _pages[:] = pages


def page_of(title: str, *main: pn.viewable.Viewable) -> pn.Template:
    """A page of text and tables in the workbench's frame; it scrolls in its place."""
    narrow = {"min-width": "0", "max-width": "100%"}  # as the window, whatever is inside
    return frame(title, pn.Column(*main, sizing_mode="stretch_width", margin=0, styles=narrow))


def frame(
    title: str,
    view: pn.viewable.Viewable,
    *,
    form: pn.viewable.Viewable | None = None,
    work: pn.viewable.Viewable | None = None,
    tabs: Sequence[Tab] = (),
    tab: str = "",
    bench: Bench | None = None,
    address: Address | None = None,
    pins: bool = False,
) -> pn.Template:
    """A page in the workbench's frame.

    Args:
        title: of the page; its one heading.
        view: the picture.
        form, work: of a page around a study: its form, and what it has under way.
        tabs: of the dock beside or beneath the picture.
        tab: key of the one that is open at first; the reader's last one if empty.
        bench, address: what connects the frame with the session.
        pins: whether the picture is a player, which fits its place and shows a second study beside
            the first; others scroll in theirs.
    """
    items: dict[str, Any] = {
        "view": view,
        "bench": bench or Bench(width=0, height=0, margin=0),
        "address": address or pn.Spacer(width=0, height=0, margin=0),
        **{f"tab_{tab.key}": tab.view for tab in tabs},
    }
    if form is not None:
        items |= {"form": form, "work": work or pn.Spacer(width=0, height=0)}
    made = Frame(_shell(), items=items)
    if pn.state.curdoc is not None:
        whole = "Diffusion Workbench"
        pn.state.curdoc.title = title if title == whole else f"{title} · {whole}"
    variables: Mapping[str, Any] = {
        "heading": title,
        "slug": next((page.slug for page in _pages if page.title == title), ""),
        "kind": "study" if form is not None else "page",
        "pages": list(_pages),
        "tabs": [{"key": tab.key, "title": tab.title} for tab in tabs],
        "tab": tab,
        "scrolls": not pins,
        "pins": pins,
        "skip": "Skip to Play" if form is not None and pins else "Skip to the page",
        "keys": KEYS,
        "icons": ICONS,
        "css": text("shell.css"),
        "js": text("shell.js"),
        "lean": partial(lean, plain=all(map(is_plain, items.values()))),
    }
    for name, value in variables.items():
        made.add_variable(name, value)
    return made
