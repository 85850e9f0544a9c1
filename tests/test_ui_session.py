"""A session with a browser: what it asks before it acts, and that nothing of it is left behind."""

import asyncio
import gc
import weakref
from unittest.mock import Mock

import panel as pn
import pytest
from bokeh.document import Document
from panel.io.application import build_applications
from panel.io.document import _cleanup_doc, extra_socket_handlers, schedule_write_events
from panel.io.session import generate_session

from workbench.ui.broker import Broker
from workbench.ui.page import StudyPage
from workbench.ui.session import Confirm


@pytest.fixture
def confirm():
    said = []
    made = Confirm(said.append, yes="Yes, delete it")
    made.said = said
    return made


def test_a_yes_is_worth_something_for_its_question_alone(confirm):
    confirm.answer = "yes"  # nothing was asked
    confirm.ask("Delete a?", "a")
    first = confirm.token
    confirm.token, confirm.answer = "mine", "mine"  # the browser may say what it likes
    assert confirm.said == [] and confirm.token == ""
    confirm.ask("Delete b?", "b")
    assert confirm.token != first
    confirm.answer = first
    assert confirm.said == []
    confirm.ask("Delete c?", "c")
    token = confirm.token
    confirm.drop()
    confirm.answer = token
    assert confirm.said == []
    confirm.ask("Delete d?", "d")
    confirm.answer = "no"
    confirm.ask("Delete e?", "e")
    confirm.answer = confirm.token
    assert confirm.said == ["e"]
    confirm.answer = token
    assert confirm.said == ["e"], "once"


def test_a_session_that_has_ended_leaves_nothing():
    pages, broker = [], Broker()

    def page():
        made = StudyPage(
            title="Test",
            compute=lambda study, report: 1,
            show=lambda result: None,
            view=pn.pane.HTML(""),
            summary=lambda result: [],
            dataset=lambda result: None,
            broker=broker,
        )
        shown = made.page()
        pages.extend((weakref.ref(made), weakref.ref(shown)))
        return shown

    application = build_applications({"/": page}, location=False)["/"]

    def seen() -> None:
        session = generate_session(application)
        document = session.document
        for callback in list(document.session_destroyed_callbacks):
            callback(document.session_context)
        _cleanup_doc(document, destroy=True)

    for _ in range(3):
        seen()
    broker.submit("last", lambda report: 1, repr, repr).wait(10)  # what was under way is over
    gc.collect()
    alive = [one() for one in pages if one() is not None]
    assert len(pages) == 6 and not alive


def test_the_last_message_is_not_left_behind(monkeypatch):
    """One that is put down just as the write before it ends, and that none follows."""

    class Socket:
        pass

    written = []

    async def talk() -> None:
        document, first = Document(), asyncio.get_running_loop().create_future()
        connection = Mock(_socket=Socket())
        connection.protocol.create = lambda kind, events: events

        def write(connection, events=None, msg=None):
            written.append(msg)
            return [first] if len(written) == 1 else []

        monkeypatch.setitem(extra_socket_handlers, Socket, write)
        schedule_write_events(document, [connection], ["first"])
        await asyncio.sleep(0)
        assert written == [["first"]]
        first.set_result(None)
        schedule_write_events(document, [connection], ["last"])
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(talk())
    assert written == [["first"], ["last"]]
