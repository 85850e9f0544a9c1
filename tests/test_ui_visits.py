"""Readers who come and go, on a server in this process: what they begin, and what they leave."""

import asyncio
import gc
import weakref

import pytest
from helpers import free_port
from intruder import PAGES, Client
from visitor import Visitor

from workbench.ui import broker
from workbench.ui.broker import Broker
from workbench.ui.door import known_names
from workbench.ui.library import LibraryPage
from workbench.ui.page import StudyPage
from workbench.ui.server import _server, apps
from workbench.ui.training import TrainingPage

QUERY = "seeds.count=8&grid.steps=4&device=cpu"


@pytest.fixture
def work(monkeypatch):
    """What the pages have done."""
    made = Broker()
    monkeypatch.setattr(broker, "_shared", made)
    yield made
    made.close()


def visited(scenario):
    """Have ``scenario(client, server)`` run beside a server of the pages."""

    async def beside():
        port = free_port()
        server = _server("127.0.0.1", port, known_names("127.0.0.1", port), apps(), None)
        server.start()
        try:
            return await scenario(Client(port), server)
        finally:
            await forgotten(server)
            server.stop()

    return asyncio.run(beside())


async def forgotten(server) -> None:
    """Have sessions whose browsers have gone end now, not in a while."""
    contexts = server._tornado._applications.values()
    while any(session.connection_count for one in contexts for session in one.sessions):
        await asyncio.sleep(0.05)
    for context in contexts:
        for session in context.sessions:
            session.request_expiration()
        await context._cleanup_sessions(0)


def test_a_page_that_is_only_asked_for_begins_nothing(work):
    async def scenario(client, server):
        for page in PAGES:
            status, *_ = await asyncio.to_thread(client.ask, f"/{page}?{QUERY}")
            assert status == 200
        await asyncio.sleep(0.2)
        assert not work._turns and not work._running and not work._waiting
        there = await Visitor(client, QUERY).open(here=False)
        assert len(work._turns) + len(work._waiting) >= 1, "it is told by what this looks at"
        await there.close()

    visited(scenario)


def pages() -> list:
    """The pages there are in this process."""
    gc.collect()
    kinds = (StudyPage, LibraryPage, TrainingPage)
    return [one for one in gc.get_objects() if type(one) in kinds]


def test_sessions_leave_nothing(work):
    others = weakref.WeakSet(pages())  # of other tests

    async def scenario(client, server):
        one = await Visitor(client, QUERY).open()
        await one.sees(4)
        await one.change(3)
        await one.sees(3)
        await one.close()
        contexts, documents = server._tornado._applications.values(), {}
        for page in PAGES:
            token = await asyncio.to_thread(client.token, f"{page}?{QUERY}")
            (await client.connect(page, token)).close()
            sessions = [session for context in contexts for session in context.sessions]
            documents |= {session.id: weakref.ref(session.document) for session in sessions}
        del sessions
        assert len(documents) == 1 + len(PAGES)
        await forgotten(server)  # what they began is cancelled
        while work._running or work._waiting:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        return documents

    documents = visited(scenario)
    assert not [one for one in pages() if one not in others]
    # A timer that Panel starts once for all holds the document in whose turn it was started.
    assert len([one for one in documents.values() if one() is not None]) <= 1
