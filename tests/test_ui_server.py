"""Serving: every app is found, and what prevents serving is said in a sentence."""

import socket

import pytest

from workbench.ui import broker
from workbench.ui.server import ServeError, apps, serve, worked_by
from workbench.workers.pool import Pool


def test_every_app_has_a_page():
    found = {app.slug: app for app in apps()}
    assert "trajectories" in found
    for app in found.values():
        assert app.title
        assert app.description.endswith(".")
        assert app.page() is not None


def test_a_busy_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ServeError, match=rf"port {port} on 127.0.0.1 is in use.*--port {port + 1}"
        ):
            serve("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, -1, 70_000])
def test_a_port_that_does_not_exist(port):
    with pytest.raises(ServeError, match=f"--port was {port}; it must be from 1 to 65535"):
        serve("127.0.0.1", port)


def test_an_address_of_another_machine():
    with pytest.raises(ServeError, match=r"cannot listen on 203\.0\.113\.1"):
        serve("203.0.113.1", 5006)


def test_afterwards_work_is_done_as_before(monkeypatch):
    before = broker.Broker()
    monkeypatch.setattr(broker, "_shared", before)
    pool = Pool(1)
    with pytest.raises(OSError, match="taken"), worked_by(pool, None):
        assert broker.shared() is not before and broker.shared()._pool is pool
        raise OSError("taken")
    assert broker.shared() is before
    seen = []
    assert before.submit("one", lambda report: 7, seen.append, seen.append).wait(20)
    assert seen == [7]
