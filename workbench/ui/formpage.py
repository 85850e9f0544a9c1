"""What pages with a form share: address, bar, story, work, and what the bar's menus hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import panel as pn

from workbench.params import shown
from workbench.studies import StudyError
from workbench.ui.broker import Broker, shared
from workbench.ui.form import sentence_of
from workbench.ui.formulas import formulas
from workbench.ui.section import Section, Work
from workbench.ui.session import Address, Session
from workbench.ui.shell import Bench, Form, Tab, frame
from workbench.ui.stories import Story, get, note


class FormPage:
    """One session of a page in whose frame a form stands.

    A subclass says what its address holds (``_query``) and takes one over (``_read``), which
    controls its form has (``_controls``), and what is done when the browser has come (``_begin``).

    Args:
        title: of the page.
        about: Markdown that explains it.
        handed: what the bar's menus hand over, by name: a text, or the content of a file.
        broker: who does the work; the process's shared one by default.

    Attributes:
        story: that the page was opened by.
        moment: what an address asks for beside the study, once: frame, tab, lens, view.
    """

    def __init__(
        self,
        title: str,
        about: str,
        handed: Mapping[str, Callable[[Any], dict[str, Any]]],
        broker: Broker | None = None,
    ) -> None:
        self.title, self._about, self._handed = title, about, handed
        self._broker, self._session = broker or shared(), Session()
        self._begun = False
        self.story: Story | None = None
        self.moment: dict[str, str] = {}
        self._typed: dict[str, Any] = {}  # values that were refused, as they stand in the form
        self._works: list[Work] = []
        self._sections: dict[str, Section] = {}  # by the keys of their tabs
        hidden = {"width": 0, "height": 0, "margin": 0}
        self.address, self.bench = Address(**hidden), Bench(**hidden)
        self.form = Form(sizing_mode="stretch_width", margin=0)

    def _section_tabs(self) -> list[Tab]:
        return [
            Tab(key, section.title, section.attach(self._broker, self._session))
            for key, section in self._sections.items()
        ]

    def _on_tab(self, key: str) -> None:
        """A section is open while its tab is chosen."""
        for mine, section in self._sections.items():
            section.is_open = key == mine

    def _framed(
        self,
        view: pn.viewable.Viewable,
        tabs: Sequence[Tab],
        work: Sequence[pn.viewable.Viewable],
        pins: bool = False,
    ) -> pn.Template:
        """The page around ``view``, with what explains it and its story among the tabs.

        The run begins as soon as the browser connects, while it still loads the page.
        """
        if self._about:
            text = formulas(self._about)
            text = pn.pane.Markdown(text, sizing_mode="stretch_width", margin=(0, 12))
            tabs = [Tab("about", "What is shown", text), *tabs]
        opened = next((one for one in tabs if one.title == self.moment.get("tab")), None)
        if self.story is not None:
            told = pn.pane.HTML(note(self.story), sizing_mode="stretch_width", margin=(6, 12))
            if opened is None:
                opened = Tab("story", "Story", told)
                tabs = [opened, *tabs]
            else:  # above what the story opens
                body = pn.Column(told, opened.view, sizing_mode="stretch_width", margin=0)
                tabs = [replace(one, view=body) if one is opened else one for one in tabs]
        self.address.param.watch(self._on_address, "search")
        self.bench.param.watch(lambda event: self._on_tab(event.new), "tab")
        self.bench.param.watch(lambda event: self._on_asked(event.new), "asked")
        self._session.open(on_leave=self._leave)
        self._session.soon(self._begin)
        return frame(
            self.title,
            view,
            form=self.form,
            work=pn.Row(*work, margin=0),
            tabs=tabs,
            tab=opened.key if opened else "",
            bench=self.bench,
            address=self.address,
            pins=pins,
        )

    def _new_work(
        self,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None] | None = None,
        cancelled: Callable[[], None] = lambda: None,
    ) -> Work:
        """Work of this session; what fails is said above the picture where nothing else is."""
        work = Work(self._broker, self._session, done, failed or self._say_why, cancelled)
        self._works.append(work)
        return work

    def _leave(self) -> None:
        """The session is over: nothing is to be computed for it any more."""
        for part in (*self._works, *self._sections.values()):
            part.cancel()

    # -- the address -------------------------------------------------------------------------

    def _take_moment(self, flat: dict[str, str]) -> dict[str, str]:
        """Take out of an address what it asks for beside the study; what is wrong with that."""
        keys = ("frame", "tab", "lens", "view")
        self.moment = {key: flat.pop(key) for key in keys if key in flat}
        named = flat.pop("story", "")
        if named:
            self.story = get(named)
            if self.story is None:
                return {"story": f"There is no story named {shown(named)} here."}
        return {}

    def _on_address(self, event) -> None:
        """The reader went back or forward."""
        if event.new != self._query():
            self._read(event.new)

    # -- what is said ------------------------------------------------------------------------

    def _tell(self, problems: Mapping[str, str], in_brief: str = "") -> None:
        """Show the form, and each sentence beside its control; those without one above the
        picture, or else ``in_brief``: a control may be out of sight."""
        self._say(self.form.show(self._controls(), problems, self._typed) or in_brief)

    def _say(self, sentence: str, severity: str = "error") -> None:
        self.bench.param.update(problem=sentence, severity=severity)

    def _say_why(self, error: Exception) -> None:
        self._say(sentence_of(error))

    # -- what is taken away ------------------------------------------------------------------

    def _on_asked(self, asked: dict[str, Any]) -> None:
        """A button of the bar."""
        if asked.get("what") in self._handed:
            try:
                made = self._handed[asked["what"]](self)
            except (StudyError, OSError, ValueError) as error:
                made = {"note": str(error)}
            self._answer(asked, **made)

    def _answer(self, asked: dict[str, Any], content: bytes = b"", **answer: Any) -> None:
        self.bench.content = content  # before the answer that speaks of it
        self.bench.answer = {"what": asked["what"], "count": asked.get("count"), **answer}
