"""What a page shows beside its picture: sections that are computed only while they are open.

A section has its own place with the broker, so its work neither waits for nor stops the page's own,
and its own progress, cancel and error sentence. What it shows is of the study it was last computed
for; when the page's study changes while it is open, it is computed anew and the old figures stay
until the new ones are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any, ClassVar

import panel as pn
import param
from bokeh.document import Document

from workbench.registry import summary
from workbench.studies import Study
from workbench.ui.broker import Broker, Progress, Report
from workbench.ui.buttons import LOOKS
from workbench.ui.component import Component
from workbench.ui.form import progress_text, sentence_of
from workbench.ui.formulas import formulas
from workbench.ui.session import Session
from workbench.ui.tasks import through_lens

_owners = itertools.count()

#: Figures with less room than this go beneath each other.
ROOM = {"flex": "1 1 320px", "min-width": "min(320px, 100%)"}

#: A drop-down of the pages: the browser's own, which opens from the keyboard.
PLAIN = """
label { color: var(--wb-muted); font: 12px/1.4 var(--wb-font); }
.bk-input { font: 13px/1.4 var(--wb-font); height: 29px; padding: 0 6px; border-radius: 5px;
  appearance: auto; background-image: none;
  border: 1px solid var(--wb-strong); background: var(--wb-surface); color: var(--wb-text); }
.bk-input:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
"""


def choice(label: str, options: Any, width: int) -> pn.widgets.Select:
    """A drop-down, the browser's own."""
    return pn.widgets.Select(
        label=label, options=options, width=width, margin=(4, 6), stylesheets=[PLAIN]
    )


class UnderWay(Component):
    """What is being computed: what it says, how much is done [%], and a button that ends it.

    Attributes:
        said, done: what it says, and how much of it is done.
        shown: whether anything is under way.
        cancels: how often the button was pressed.
    """

    said = param.String("")
    done = param.Integer(0)
    shown = param.Boolean(False)
    cancels = param.Integer(0)

    _stylesheets: ClassVar[list[str]] = [LOOKS]
    _esm = """export default { render({ model, el }) {
      const { make, send } = workbench;
      const style = make("style", { textContent: `
        .way { display: flex; align-items: center; gap: 8px; white-space: nowrap;
          font: 13px/1.4 var(--wb-font); color: var(--wb-text); }
        .way[hidden] { display: none; }
        .bar { width: 90px; height: 6px; border-radius: 3px; overflow: hidden;
          background: var(--wb-line); }
        i { display: block; height: 100%; background: var(--wb-accent); }
        button { height: 26px; }` });
      const said = make("span"), share = make("i");
      const button = make("button", { type: "button", textContent: "Cancel" });
      const bar = make("div",
        { className: "bar", role: "progressbar", ariaLabel: "Progress" }, share);
      const box = make("div", { className: "way" }, said, bar, button);
      button.addEventListener("click", () => send(model, { cancels: model.get("cancels") + 1 }));
      const draw = () => {
        box.hidden = !model.get("shown");
        said.textContent = model.get("said");
        share.style.width = `${model.get("done")}%`;
        bar.setAttribute("aria-valuenow", model.get("done"));
      };
      for (const name of ["shown", "said", "done"]) model.on(`change:${name}`, draw);
      el.append(style, box);
      draw();
    } }"""


class Sentence(pn.pane.HTML):
    """A sentence about what went wrong, or what the reader should know; hidden while empty."""

    def __init__(self) -> None:
        super().__init__("", visible=False, sizing_mode="stretch_width", margin=(4, 10))
        self.title, self.severity = "", "error"

    def say(self, sentence: str, severity: str = "error") -> None:
        """Show ``sentence`` in the colours of ``severity``: error, warning or info."""
        self.title, self.severity = sentence, severity
        ground, ink = ("bad-bg", "bad") if severity == "error" else ("note-bg", "text")
        style = f"background:var(--wb-{ground});color:var(--wb-{ink})"
        style += ";padding:6px 10px;border-radius:6px"
        role = "alert" if severity == "error" else "status"
        html = f'<div role="{role}" style="{style}">{escape(sentence)}</div>'
        self.param.update(object=html if sentence else "", visible=bool(sentence))


class FigureRow(pn.Row):
    """Figures beside each other where there is room, beneath each other where there is none.

    A row and no FlexBox: in that, figures that come later would not be drawn in the dark theme.

    Args:
        tall: height of each as CSS says it; that of the figure if empty.
    """

    def __init__(self, tall: str = "", **params) -> None:
        self._tall = tall
        style = {"flex-wrap": "wrap", "gap": "8px 16px"}
        if tall:
            style |= {"flex": "none", "max-height": "none"}
        common = {"sizing_mode": "stretch_width", "styles": style, "margin": (0, 0, 18, 0)}
        super().__init__(**{**common, **params})

    def put(self, made: list[dict]) -> None:
        """Show figures made by :func:`workbench.ui.tasks.figures` instead of those before."""
        made = [_figure_of(one) for one in made]
        # One that is left over by its row is as wide as the others.
        even = {"max-width": "max(50% - 8px, min(320px, 100%))"} if len(made) > 2 else {}
        if self._tall:
            even |= {"height": self._tall, "max-height": "none", "flex": "1 1 270px"}
            even |= {"min-width": "min(270px, 100%)"}
            for figure in made:
                figure.update(
                    frame_height=None, height=None, min_height=180, sizing_mode="stretch_both"
                )
        _hide_together(made)  # while they stand alone: on a page each change goes through it all
        mode = "stretch_both" if self._tall else "stretch_width"
        # A pane of Bokeh's hands no style on to its figure; a column around it takes it.
        self.objects = [
            pn.Column(
                pn.pane.Bokeh(figure, sizing_mode=mode),
                sizing_mode="stretch_width",
                styles=ROOM | even,
            )
            for figure in made
        ]


def _hide_together(figures: list) -> None:
    """What is hidden in one figure of a row by its legend is hidden in all, by its name.

    Found by the browser when it happens: figures come one by one, so none can refer to another.
    """
    from bokeh.models import CustomJS

    code = """
    for (const root of cb_obj.document.roots())
      for (const one of root.references())
        if (one.name === cb_obj.name && "glyph" in one) one.visible = cb_obj.visible;
    """
    for figure in figures if len(figures) > 1 else ():
        together = CustomJS(code=code)
        for renderer in figure.renderers:
            if renderer.name:
                renderer.js_on_change("visible", together)


def _figure_of(content: dict) -> Any:
    """A Bokeh figure that a worker has drawn."""
    document = Document.from_json(content)
    figure = document.roots[0]
    document.remove_root(figure)
    return figure


class Work:
    """One thing under way at a time for a part of a page: the newest; its progress and its cancel.

    Args:
        broker: who does it.
        session: of the page, on whose own thread ``done``, ``failed`` and ``cancelled`` are called
            when it is over.

    Attributes:
        row: what it says while it is under way.
    """

    def __init__(
        self,
        broker: Broker,
        session: Session,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        self._broker, self._session, self._owner = broker, session, f"work {next(_owners)}"
        self._done, self._failed, self._cancelled = done, failed, cancelled
        self.row = UnderWay(margin=0)
        self.row.param.watch(lambda _: self._on_cancel(), "cancels")

    def start(
        self, compute: Callable[[Report], Any], done: Callable[[Any], None] | None = None
    ) -> None:
        """Have ``compute(report)`` done instead of what is under way.

        Args:
            compute: see :meth:`workbench.ui.broker.Broker.submit`.
            done: called with its result instead of that of all work.
        """
        self._broker.submit(
            self._owner,
            compute,
            done=lambda result: self._over(done or self._done, result),
            failed=lambda error: self._over(self._failed, error),
            progress=self._on_progress,
            deliver=self._session.deliver,
            session=self._session.number,
        )

    def cancel(self) -> None:
        """Give up what is under way, if anything."""
        self._broker.cancel(self._owner)
        self.row.shown = False

    def _over(self, callback: Callable[[Any], None], value: Any) -> None:
        self.row.shown = False
        callback(value)

    def _on_progress(self, progress: Progress) -> None:
        done, said = int(100 * progress.fraction), progress_text(progress)
        self.row.param.update(done=done, said=said, shown=True)

    def _on_cancel(self) -> None:
        self.cancel()
        self._cancelled()


class Section:
    """A part of a :class:`workbench.ui.page.StudyPage` that is computed while its tab is chosen.

    Args:
        title: of its tab.
        compute: ``(study, report, **more()) -> result``, a function of a module; runs in a worker
            process, only while the section is open. See :mod:`workbench.ui.tasks`.
        show: ``result -> None``; puts the result into ``view``, on the page's own thread.
        view: what is shown.
        choose: has it show one of what it has to choose from, by name; others change nothing.
        more: what the section's own controls say.
    """

    def __init__(
        self,
        title: str,
        compute: Callable[..., Any],
        show: Callable[[Any], None],
        view: pn.viewable.Viewable,
        choose: Callable[[str], None] = lambda name: None,
        more: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.title, self._compute, self._show, self._view = title, compute, show, view
        self.choose, self._more = choose, more
        self._study: Study | None = None  # what the page says
        self._shown: Study | None = None  # what the view shows
        self._asked: Study | None = None  # what is under way, or was given up
        self._work: Work | None = None
        self._open = False
        self._problem = Sentence()

    def attach(self, broker: Broker, session: Session) -> pn.Column:
        """The section on the page of ``session``, whose work ``broker`` does."""
        self._work = Work(broker, session, self._on_done, self._on_failed, self._on_cancelled)
        self._work.row.margin = (4, 10, 0, 10)
        parts = (self._work.row, self._problem, self._view)
        return pn.Column(*parts, sizing_mode="stretch_width", margin=0)

    @property
    def is_open(self) -> bool:
        """Whether its tab is chosen."""
        return self._open

    @is_open.setter
    def is_open(self, is_open: bool) -> None:
        if is_open == self._open:
            return
        self._open = is_open
        if not is_open:
            self.cancel()
        elif self._study is not None:
            self._start()

    def follow(self, study: Study) -> None:
        """The page's study is now ``study``."""
        self._study = study
        if self.is_open:
            self._start()

    def cancel(self) -> None:
        """Give up what is under way."""
        self._asked = None
        if self._work is not None:
            self._work.cancel()

    def refresh(self) -> None:
        """Compute anew, because something other than the study has changed."""
        self._shown = self._asked = None
        if self.is_open and self._study is not None:
            self._start()

    def _start(self) -> None:
        study = self._study
        if study == self._asked:  # it is under way
            return
        self._say("")
        if study == self._shown:  # the reader came back to what is there
            self.cancel()
            return
        self._asked = study
        self._work.start(
            partial(self._compute, study, **self._more()),
            done=lambda result: self._on_done(result, study),
        )

    def _on_done(self, result: Any, study: Study | None = None) -> None:
        if study == self._asked:
            self._asked = None
        try:
            self._show(result)
        except Exception as error:
            self._on_failed(error)
            raise
        self._shown = study

    def _on_failed(self, error: Exception) -> None:
        self._asked = None
        self._say(sentence_of(error))

    def _on_cancelled(self) -> None:
        self._asked = None
        self._say("Cancelled. Choose another tab and this one again to compute it.", "info")

    def _say(self, sentence: str, severity: str = "error") -> None:
        if sentence and self._shown is not None:
            sentence += " What is shown is of the study before."
        self._problem.say(sentence, severity)


def lens_section(first: str = "output", title: str = "") -> Section:
    """The study through any registered lens, which the reader chooses.

    The lens's question, its figure with exact values and null bands, and its findings.

    Args:
        first: the lens it opens with.
        title: of the tab of a section that shows this lens alone.
    """
    from workbench.lenses import LENSES

    names = choice("Lens", sorted(LENSES), 220)
    names.value = first
    question = pn.pane.HTML("", sizing_mode="stretch_width", margin=(4, 10))
    findings = pn.pane.HTML("", sizing_mode="stretch_width", margin=(4, 10))
    row = FigureRow()

    def show(result: tuple[str, list, list[str]]) -> None:
        name, drawn, said = result
        question.object = f"<p>{escape(summary(LENSES[name]))}</p>"
        findings.object = "".join(f"<p>{escape(one)}</p>" for one in said)
        row.put(drawn)

    head = [] if title else [names]
    view = pn.Column(*head, question, findings, row, sizing_mode="stretch_width", margin=(0, 6))

    def choose(name: str) -> None:
        if name in LENSES and not title:
            names.value = name

    section = Section(
        title or "Through a lens",
        compute=through_lens,
        show=show,
        view=view,
        choose=choose,
        more=lambda: {"name": names.value},
    )
    names.param.watch(lambda event: section.refresh(), "value")
    return section


def note(text: str, finding: str = "") -> str:
    """A text beside a figure as HTML: its heading and what was found; the rest behind a click.

    Args:
        text: Markdown, of which the first line may be a heading.
        finding: a sentence of the numbers that are drawn.
    """
    heading, rest = "", text.strip()
    if rest.startswith("## "):
        heading, _, rest = rest.removeprefix("## ").partition("\n")
        heading = f'<h2 style="font-size:14px;margin:8px 0 4px">{escape(heading)}</h2>'
    found = f'<p style="margin:4px 0">{escape(finding)}</p>' if finding else ""
    paragraphs = "".join(f"<p>{formulas(one)}</p>" for one in rest.strip().split("\n\n"))
    about = f'<summary style="cursor:pointer">What this is</summary>{paragraphs}'
    return f"{heading}{found}<details{'' if finding else ' open'}>{about}</details>"


def brief(text: str, finding: str = "") -> str:
    """The first sentence of a text as HTML, and what was found; the rest behind a click."""
    first, _, rest = " ".join(text.split()).partition(". ")
    parts = [f"{escape(first)}."] + ([escape(finding)] if finding else [])
    shown = "".join(f'<p style="margin:4px 0">{formulas(one)}</p>' for one in parts)
    more = f'<details><summary style="cursor:pointer">More</summary>{formulas(rest)}</details>'
    return shown + (more if rest else "")
