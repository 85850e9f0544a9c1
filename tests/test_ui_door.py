"""The door of a served workbench, by plain HTTP and websockets: who comes in, and to what."""

import http.client
import os

import pytest
from browser.pages import served

PAGES = ("", "trajectories", "samplers", "studies")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def port(folder):
    """A workbench on whose path stands a module that must never be imported."""
    (folder / "trap.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n")
    (folder / "results").mkdir()
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        with served(folder / "log", "--results", str(folder / "results")) as number:
            yield number
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Client:
    """Requests as they are written, nothing added."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.port, self.address = port, address

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None, **headers):
        """Status, headers and body of the answer; ``X_Y`` of ``headers`` stands for X-Y."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=60)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"Host": f"{self.address}:{self.port}"} | headers).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()


@pytest.fixture(scope="module")
def client(port):
    return Client(port)


# -- what is served --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/components/trap/x/x/x", "/components/trap/x/css/x.css"])
def test_no_address_imports_a_module(client, folder, path):
    assert client.ask(path)[0] == 404
    assert not (folder / "sprung").exists()


def test_routes_that_no_page_uses_are_not_there(client):
    """Neither a page as a script for other sites, nor metadata, nor an index of what is served."""
    for page in PAGES:
        for route in ("autoload.js?bokeh-autoload-element=x", "metadata"):
            status, _, body = client.ask(f"/{page}/{route}" if page else f"/{route}")
            assert status in (403, 404) and "bokeh" not in body.lower()
    for path in ("/rest/session_info", "/admin", "/components///etc/passwd", "/components/panel"):
        assert client.ask(path)[0] == 404


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/studies", "/liveness", "/static/js/bokeh.min.js", "/no"])
def test_a_foreign_name_gets_nothing(client, path):
    """A name elsewhere that leads to this machine makes a page there one of the same origin."""
    for host in ("evil.example", f"evil.example:{client.port}", f"localhost.evil:{client.port}"):
        status, _, body = client.ask(path, Host=host, Origin=f"http://{host}")
        assert status == 403
        assert body.startswith(f"The request was for '{host}', which is no name of this server")
    assert client.ask(path, Host=f"localhost:{client.port + 1}")[0] == 403


def test_the_names_of_this_server(client):
    for host in ("localhost", "127.0.0.1", "LOCALHOST", "[::1]"):
        assert client.ask("/liveness", Host=f"{host}:{client.port}")[0] == 200


def test_a_websocket_needs_a_known_name_too(client):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec_WebSocket_Protocol": "bokeh",
    }
    evil = f"evil.example:{client.port}"
    here = f"localhost:{client.port}"
    for host, origin in ((evil, evil), (here, evil), (evil, here)):
        status, _, body = client.ask("/studies/ws", Host=host, Origin=f"http://{origin}", **upgrade)
        assert status == 403
        assert "which is no name of this server" in body
