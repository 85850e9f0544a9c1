"""What every page has: its session with a browser, its address, and small parts of its looks."""

from __future__ import annotations

import hmac
import itertools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import panel as pn
import param
from bokeh.document import Document

from workbench.ui.component import Component, together

_numbers = itertools.count(1)


def query() -> str:
    """The query of the address that the page under way was asked for, with its question mark.

    Texts alone: Panel's own location turns them into numbers, and fails at some.
    """
    document = pn.state.curdoc
    context = document.session_context if document is not None else None
    asked = context.request.arguments if context is not None and context.request else {}
    pairs = [(name, value) for name, values in asked.items() for value in values]
    return f"?{urlencode(pairs)}" if pairs else ""


#: Where a document keeps what it begins with when its browser connects: in itself, so that it goes
#: with it.
BEGIN = "workbench_begin"


def connected(document: Document) -> None:
    """A browser has connected to the page of ``document``; see :meth:`Session.soon`."""
    call = vars(document).pop(BEGIN, None)
    if call is not None:
        document.add_next_tick_callback(call)


def results_folder() -> Path:
    """The folder of results that this server lists."""
    from workbench.studies.library import default_folder  # late: studies take torch

    return Path(pn.state.cache.get("results") or default_folder())


class Session:
    """The browser that looks at a page: how work done elsewhere reaches it.

    Attributes:
        number: of this session among those of the process.
        here: whether the browser has the page, and not merely asked for it.
    """

    def __init__(self) -> None:
        self._document, self.here = pn.state.curdoc, False
        self.number = next(_numbers)
        self._waiting: list[Callable[[], None]] = []

    def open(self, on_leave: Callable[[], None]) -> None:
        """The page is made; ``on_leave`` is called when the browser has gone."""
        pn.state.onload(self._on_load)
        pn.state.on_session_destroyed(lambda _: on_leave())

    def soon(self, call: Callable[[], None]) -> None:
        """Have ``call`` run once a browser has connected, while it loads the page; never for one
        that only asked for it."""
        if self._document is None:
            call()
        else:
            setattr(self._document, BEGIN, call)

    def deliver(self, call: Callable[[], None]) -> None:
        """Have ``call`` run under the document's lock, once the browser is ready for it.

        What changes while a page is loading may never reach it.
        """

        def when_ready() -> None:
            if self.here:
                with together():
                    call()
            else:
                self._waiting.append(call)

        if self._document is None or (self.here and pn.state._unblocked(self._document)):
            call()  # it is this page's turn
        elif self._document.session_context is not None:
            self._document.add_next_tick_callback(when_ready)

    def _on_load(self) -> None:
        self.here = True
        while self._waiting:
            self._waiting.pop(0)()


class Address(Component):
    """The query of the page's URL, both ways: Panel's own location does not follow Back."""

    search = param.String("")

    _esm = """
    export default { render({ model }) {
      let replace = true;                // the address one came by is completed, not kept
      const write = () => {
        const search = model.get("search");
        if (!search || search === location.search) return;
        history[replace ? "replaceState" : "pushState"]({}, "", location.pathname + search);
        replace = false;
      };
      const read = () => workbench.send(model, { search: location.search });
      model.on("change:search", write);
      window.addEventListener("popstate", read);
      write();
      replace = false;
      return () => window.removeEventListener("popstate", read);
    } }
    """


class Confirm(Component):
    """A question with two buttons, whose yes is worth something for that question alone.

    Each question has a token of its own, which the browser's yes must bring back: a click that was
    sent to a hidden button, or meant for the question before, does nothing.

    Args:
        yes, no: what the buttons say.
        on_yes: called with what :meth:`ask` was asked for.
    """

    question = param.String("")
    token = param.String("")
    answer = param.String("")
    yes = param.String("Yes")
    no = param.String("No")

    _esm = """
    export default { render({ model, el }) {
      const { make, send } = workbench;
      const style = `.wb-confirm { display: flex; flex-wrap: wrap; gap: 8px; align-items: center;
        font: 13px/1.45 var(--wb-font); padding: 4px 10px; overflow-wrap: anywhere; }
        .wb-confirm[hidden] { display: none; }
        .wb-confirm button { font: inherit; padding: 4px 10px; border-radius: 6px; cursor: pointer;
          background: var(--wb-surface); color: inherit; border: 1px solid var(--wb-line); }
        .wb-confirm button.yes { color: var(--wb-bad); }
        .wb-confirm button:focus-visible { outline: 2px solid var(--wb-accent); }`;
      const text = make("span");
      const yes = make("button", { type: "button", className: "yes" });
      const no = make("button", { type: "button" });
      yes.addEventListener("click", () => send(model, { answer: model.get("token") }));
      no.addEventListener("click", () => send(model, { answer: "no" }));
      const box = make("div", { className: "wb-confirm", role: "group" }, text, yes, no);
      const drawn = () => {
        text.textContent = model.get("question");
        yes.textContent = model.get("yes");
        no.textContent = model.get("no");
        box.hidden = !model.get("token");
      };
      model.on("change:question", drawn);
      model.on("change:token", drawn);
      el.append(make("style", { textContent: style }), box);
      drawn();
    } }
    """

    def __init__(self, on_yes: Callable[[Any], None], **params: Any) -> None:
        super().__init__(**params)
        self._on_yes, self._asked = on_yes, None
        self.param.watch(self._answered, "answer")

    def ask(self, question: str, about: Any) -> None:
        """Ask, with a token made for this question."""
        self._asked = secrets.token_urlsafe(16), about
        self.param.update(question=question, token=self._asked[0], answer="")

    def drop(self) -> None:
        """The question is no longer asked; a yes that comes later does nothing."""
        self._asked = None
        self.param.update(question="", token="", answer="")

    def _answered(self, event) -> None:
        if not event.new:
            return
        asked = self._asked
        self.drop()
        if asked is not None and hmac.compare_digest(event.new.encode(), asked[0].encode()):
            self._on_yes(asked[1])


def chips(texts: list[str]) -> str:
    """Short texts, each in a frame of its own, as HTML."""
    style = (
        "display:inline-block;margin:2px 8px 2px 0;padding:2px 10px;border-radius:12px;"
        "border:1px solid color-mix(in srgb, currentColor 25%, transparent);font-size:13px;"
        "font-variant-numeric:tabular-nums;white-space:nowrap"
    )
    return "".join(f'<span style="{style}">{text}</span>' for text in texts)
