"""A dashboard around a study: its form, its URL, its progress, one view of its result, and sections
beside it.

An app says what to compute and how to show it; everything else is here. The URL holds the whole
study. A change in the form is validated at once; an error is shown beside its control while the
last good result stays, and a valid study goes to the broker, where it replaces an older request.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any
from urllib.parse import quote

import panel as pn
import param

from workbench.studies import Study, StudyError
from workbench.studies.export import brief, to_notebook, to_script
from workbench.studies.files import keep
from workbench.studies.library import saved
from workbench.studies.options import Options, joined
from workbench.ui.broker import Broker, Report
from workbench.ui.buttons import content_of
from workbench.ui.component import Component
from workbench.ui.form import (
    CANCELLED,
    TITLES,
    Control,
    controls,
    edited,
    option_controls,
    problems_of,
    sentence_of,
    shown_value,
    words,
)
from workbench.ui.formpage import FormPage
from workbench.ui.player import COMPARISONS, MODULE, offline
from workbench.ui.section import Section, Work
from workbench.ui.session import query, results_folder
from workbench.ui.tasks import stored

#: Sections of the study that the bar names.
ON_THE_BENCH = ("data", "denoiser", "process", "sampler", "grid")

#: What the key of the pinned study B is in an address.
PIN = "pin"


class PlayerPane(Component):
    """The player on a Panel page; see :class:`workbench.ui.player.Player`.

    Attributes:
        flow, other_flow: the exact flows of the two runs, where they come after them, see
            :func:`workbench.views.scene.flow_part`.
    """

    _esm = MODULE
    data = param.Bytes(b"")
    other = param.Bytes(b"")
    flow = param.Bytes(b"")
    other_flow = param.Bytes(b"")
    compare = param.Selector(default="beside", objects=list(COMPARISONS))
    frame = param.Number(0.0)
    playing = param.Boolean(False)
    view = param.Dict({})
    dropped = param.String("")
    inside = param.Boolean(True)

    def sight(self) -> dict[str, str]:
        """Frame, zoom and layers, as an address says them."""
        view = json.dumps(self.view, separators=(",", ":"))
        return {"frame": f"{self.frame:.4g}"} | ({"view": view} if self.view else {})


class StudyPage(FormPage):
    """One session of a dashboard.

    Args:
        title, about, broker: of :class:`workbench.ui.formpage.FormPage`.
        compute: ``(study, report) -> result``, a function of a module; runs in a worker process,
            see :mod:`workbench.ui.tasks`. Of a page with options of its own, and of its sections,
            the first argument is ``(study, options)``.
        show: ``result -> None``; puts the result into ``view``, on the page's own thread.
        view: what is shown.
        summary: ``result -> sentences`` about it, as short texts.
        dataset: ``result -> xarray.Dataset`` offered for download.
        sections: the tabs beside the picture, each computed while it is chosen.
        options: what the page asks for beside the study; it stands at the head of the form and in
            the URL.
        show_other: ``result or None -> None``; puts the result of the pinned study B into ``view``
            beside that of the page's own, or takes it away. A page without it pins nothing.
        hidden: sections and entries of the study that the page has no use for; its form leaves
            them out, and its URL keeps them.
        more: further arguments of ``compute``, which the page's own controls say.
        opens: by dotted keys, what the page opens with where the address names no data.
        sight: what a link to what is in sight says besides the study: frame, view.
    """

    def __init__(
        self,
        title: str,
        compute: Callable[[Study, Report], Any],
        show: Callable[[Any], None],
        view: pn.viewable.Viewable,
        summary: Callable[[Any], list[str]],
        dataset: Callable[[Any], Any],
        about: str = "",
        sections: Sequence[Section] = (),
        broker: Broker | None = None,
        options: type[Options] = Options,
        hidden: Sequence[str] = (),
        show_other: Callable[[Any], None] | None = None,
        more: Callable[[], dict[str, Any]] = dict,
        opens: Mapping[str, Any] | None = None,
        sight: Callable[[], dict[str, str]] = dict,
    ) -> None:
        super().__init__(title, about, HANDED, broker)
        self._opens, self.sight = opens or {}, sight
        self.study = Study()
        self.options, self._hidden = options(), set(hidden)
        self._compute, self._show, self._summary, self._dataset = compute, show, summary, dataset
        self._sections = {f"section{i}": section for i, section in enumerate(sections)}
        self._result = None
        self._show_other, self._more = show_other, more
        self.other: Study | None = None  # study B
        self._data_work = self._new_work(lambda content: None)
        self._other_work = self._new_work(
            self._on_other_done, self._on_other_failed, lambda: self._pin(None)
        )
        self._work = self._new_work(self._on_done, self._on_failed, self._on_cancelled)
        self._rows = [work.row for work in self._works]
        #: Called whenever the page's own study is being computed anew.
        self.begun: list[Callable[[], None]] = []
        self._view = view
        if isinstance(view, PlayerPane):
            view.param.watch(self._on_dropped, "dropped")

    # -- layout ------------------------------------------------------------------------------

    def page(self) -> pn.Template:
        """The page itself, with the study of its URL."""
        self._read(query())
        tabs = self._section_tabs()
        for section in self._sections.values():
            if section.title == self.moment.get("tab"):
                section.choose(self.moment.get("lens", ""))
        self.form.on_edit(self._on_edit)
        return self._framed(self._view, tabs, self._rows, pins=self._show_other is not None)

    # -- the form ----------------------------------------------------------------------------

    def _controls(self) -> list[Control]:
        shown = [c for c in controls(self.study) if not {c.section, c.key} & self._hidden]
        return option_controls(self.options) + shown

    def _on_edit(self, key: str, value: Any) -> None:
        shown = {c.key: c for c in self._controls()}
        if not key:
            self._reset()
        elif key in shown and shown[key].upload and value:
            self._on_upload(key, value)
        elif key in shown:
            self.edit(key, value)

    def edit(self, key: str, value: Any) -> None:
        """Change one control of the form, as its reader does."""
        mine = self.options.keys()
        self._typed[key] = value
        values = {
            c.key: shown_value(c)
            for c in self._controls()
            if c.key not in mine and (not c.upload or c.key == key)
        }
        values |= {k: v for k, v in self._typed.items() if k in values}
        try:
            if key in mine:  # one at a time: the study's own controls may hold what is not allowed
                value = joined(value) if isinstance(value, list) else value
                self._accept(self.study, self.options.changed({key: value}))
            else:
                self._accept(edited(self.study, key, values))
        except StudyError as error:
            self._tell(error.problems)

    def _on_upload(self, key: str, file: Any) -> None:
        content, mine = content_of(file), self.options.keys()
        if content is None:
            return
        try:
            if key in mine:
                name = str(file.get("name", ""))[:200]
                self._accept(self.study, self.options.uploaded(key, content, name))
            else:
                self._accept(self.study.changed({key: keep(content)}))
        except StudyError as error:
            self._tell(error.problems)

    def _on_dropped(self, event) -> None:
        """A study was dropped on the picture: its file, or a picture that holds it."""
        if not event.new:
            return
        self._view.dropped = ""
        try:
            self._accept(Study.parse(event.new))
        except StudyError as error:
            said = f"The study that was dropped is not opened: {_in_brief(error.problems)}."
            self._tell(error.problems, said)

    def _accept(self, study: Study, options: Options | None = None) -> None:
        self.study, self.options = study, options or self.options
        self._typed = {}
        self._tell({})
        self.address.search = self._query()
        self._name_bench()
        self._start()

    def _name_bench(self) -> None:
        """Say in the bar what is on the bench, how A and B differ, and where other pages lead."""
        shown = [name for name in ON_THE_BENCH if name not in self._hidden]
        self.bench.param.update(
            chips=[[name, TITLES[name], words(getattr(self.study, name).name)] for name in shown],
            study=f"?{self.study.to_query()}{self._pin_query()}",
            pinned=self.other is not None,
            differs=difference(self.study, self.other) if self.other else "",
        )

    def _query(self) -> str:
        """The address's query: the study, the page's own options, and the study B."""
        own = f"&{self.options.to_query()}" if self.options.keys() else ""
        story = f"&story={self.story.slug}" if self.story is not None else ""
        return f"?{self.study.to_query()}{own}{story}{self._pin_query()}"

    def _pin_query(self) -> str:
        return f"&{PIN}={quote(self.other.to_query(), safe='')}" if self.other else ""

    def _reset(self) -> None:
        self._accept(Study(), type(self.options)())

    # -- A and B -----------------------------------------------------------------------------

    def _pin(self, study: Study | None) -> None:
        """Have ``study`` beside the page's own; None lets go of what was pinned."""
        if self._show_other is None:
            return
        self.other = study
        self.address.search = self._query()
        self._name_bench()
        self._start_other()

    def _start_other(self) -> None:
        if self._show_other is None or not self._begun:
            return
        if self.other is None:
            self._other_work.cancel()
            self._show_other(None)
        else:
            study = self.other
            self._other_work.start(partial(self._compute, study, **self._more()))

    def _on_other_done(self, result: Any) -> None:
        if self.other is not None:
            self._show_other(result)

    def _on_other_failed(self, error: Exception) -> None:
        sentence = sentence_of(error)
        self._pin(None)
        self._say(f"The pinned study B cannot be shown: {sentence}")

    # -- what is taken away ------------------------------------------------------------------

    def _on_asked(self, asked: dict[str, Any]) -> None:
        """A button of the bar."""
        what = asked.get("what")
        if what == "pin":
            self._pin(self.study)
        elif what == "unpin":
            self._pin(None)
        elif what == "swap" and self.other is not None:
            study, self.other = self.other, self.study
            self._accept(study)
            self._start_other()
        elif what == "data" and self._result is not None:
            self._data_work.start(
                partial(stored, self._dataset(self._result)),
                done=lambda content: self._answer(asked, content, name="run.zarr.zip"),
            )
        elif what == "save":
            self._data_work.start(
                partial(saved, results_folder(), self.study),
                done=lambda name: self._on_saved(asked, name),
            )
        else:
            super()._on_asked(asked)

    def _on_saved(self, asked: dict[str, Any], name: str) -> None:
        self._say(f"It is in Studies as {name}.", "info")
        self._answer(asked, note=f"Saved to Studies as {name}")

    # -- the URL -----------------------------------------------------------------------------

    def _read(self, search: str) -> None:
        """Take over what can be read of an address, and say what cannot."""
        flat, mine = Study.flat_of_query(search), self.options.keys()
        others = self._take_moment(flat)
        own = {key: flat.pop(key) for key in mine if key in flat}
        options, wrong = self.options.salvage(own)
        others |= wrong
        pinned = flat.pop(PIN, "")
        before, self.other = self.other, None
        if pinned and self._show_other is not None:
            self.other, wrong = Study.salvage(Study.flat_of_query(pinned))
            if wrong:
                others[PIN] = f"Of the pinned study B: {' '.join(wrong.values())}"
        flat = flat if "data" in flat else {**self._opens, **flat}
        study, problems = Study.salvage(flat)
        said = ""
        if problems and self.story is not None:
            said = f"This story asks for what is not here: {_in_brief(problems)}."
        self._accept(study, options)
        self._tell(problems | others, said)
        if self.other != before:
            self._start_other()

    # -- the work ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """The session is there."""
        self._begun = True
        self._start()
        if self.other is not None:
            self._start_other()

    def _start(self) -> None:
        if not self._begun:
            return
        asked = self.asked
        self._work.start(partial(self._compute, asked, **self._more()))
        for section in self._sections.values():
            section.follow(asked)
        for begin in self.begun:
            begin()

    @property
    def asked(self) -> Any:
        """The study, of a page with options both."""
        return (self.study, self.options) if self.options.keys() else self.study

    def beside(self, done: Callable[[Any], None], quiet: bool = False) -> Work:
        """Work that the page's own controls ask for, beside that of its study.

        Args:
            done: called with its result, on the page's own thread.
            quiet: whether it says neither its progress nor why it failed.
        """
        failed = (lambda error: None) if quiet else None
        work = self._new_work(done, failed, self._on_cancelled)
        if not quiet:
            self._rows.append(work.row)
        return work

    def again(self) -> None:
        """What the page's own controls say has changed: compute anew."""
        self._start()
        self._start_other()

    def _on_done(self, result: Any) -> None:
        self._result = result
        self._show(result)
        self.bench.facts = self._summary(result)

    def add_facts(self, facts: list[str]) -> None:
        """Say more of the result that is shown: sentences of what came after it."""
        self.bench.facts = [*self.bench.facts, *(escape(one) for one in facts)]

    def _on_failed(self, error: Exception) -> None:
        self._tell(problems_of(error))

    def _on_cancelled(self) -> None:
        self._say(CANCELLED, "info")


def _in_brief(problems: dict[str, str]) -> str:
    """What is wrong, without what it must be."""
    return "; ".join(sentence.partition(";")[0].rstrip(".") for sentence in problems.values())


def difference(a: Study, b: Study) -> str:
    """What differs between the studies A and B in one line of HTML."""
    one, other = a.to_flat(), b.to_flat()
    labels = {c.key: c.label for study in (b, a) for c in controls(study)}
    parts = []
    for key, value in other.items():
        if key in one and one[key] != value:
            label = labels.get(key, key)
            told = [words(str(each)) for each in (one[key], value)]
            parts.append(f"{escape(label)} {escape(told[0])} → <b>{escape(told[1])}</b>")
    if not parts:
        return "A and <b>B</b> are the same study: change A in the form."
    return f"A → <b>B</b>: {'; '.join(parts)}"


def _link(page: StudyPage) -> dict[str, Any]:
    """The address of what is in sight: the study, and the moment, zoom, layers and tab."""
    moment = page.sight()
    if page.bench.tab in page._sections:
        moment["tab"] = page._sections[page.bench.tab].title
    return {"text": page._query() + "".join(f"&{k}={quote(v, safe='')}" for k, v in moment.items())}


def _html(page: StudyPage) -> dict[str, Any]:
    """One file that plays the page's run with no network."""
    view = page._view
    if not isinstance(view, PlayerPane) or not view.data:
        raise ValueError("There is no run to export yet; wait until its picture is there.")
    flows = {"flow": view.flow, "other_flow": view.other_flow}
    text = offline(view.data, view.other, view.compare, view.view, **flows)
    return {"name": "run.html", "content": text.encode()}


def _command(page: StudyPage) -> dict[str, Any]:
    """The command line that runs the page's study."""
    pairs = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in brief(page.study).items()]
    return {"text": " ".join(["workbench run -", *pairs, "-o run.zarr"])}


#: What the bar's menus hand over, by name: a text, or the content of a file.
HANDED: dict[str, Callable[[StudyPage], dict[str, Any]]] = {
    "link": _link,
    "html": _html,
    "study": lambda page: {"name": "study.yaml", "text": page.study.to_yaml()},
    "data": lambda page: {"note": "There is no run to hand over yet; wait until it is there."},
    "notebook": lambda page: {"name": "study.ipynb", "text": to_notebook(page.study)},
    "script": lambda page: {"name": "study.py", "text": to_script(page.study)},
    "yaml": lambda page: {"text": page.study.to_yaml()},
    "python": lambda page: {"text": to_script(page.study)},
    "command": _command,
}
