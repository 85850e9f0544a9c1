"""The door of a served workbench, by plain HTTP and websockets: who comes in, and to what."""

import asyncio
import base64
import contextlib
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import panel as pn
import pytest
from browser.pages import served
from helpers import free_port
from intruder import LEAKS, PAGES, Client, address, heard
from tornado.httpclient import HTTPClientError

from workbench.studies import Study
from workbench.studies.chunked import keep
from workbench.ui.door import known_names
from workbench.ui.login import LoginError, Passwords, hashed, is_right, oauth, read_users
from workbench.ui.server import _server, apps

#: Addresses and messages that a test draws.
ADDRESSES, MESSAGES = 16, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def port(folder):
    """A workbench on whose path stands a module that must never be imported."""
    (folder / "trap.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n")
    (folder / "results").mkdir()
    (folder / "canary.txt").write_text("CANARY")
    study = Study(seeds={"count": 4}, grid={"name": "log_snr", "steps": 4}, device="cpu")
    keep(study, folder / "results" / "first.zarr")
    keep(study, folder / "results" / "other.zarr")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        with served(folder / "log", "--results", str(folder / "results"), silent=False) as number:
            yield number
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


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


def test_the_head_of_a_page_comes_before_its_body_is_made(client):
    """Whole and the same, but that its scripts run at once; nothing of it in a redirection."""

    def visit(path):
        with contextlib.closing(HTTPConnection("127.0.0.1", client.port, timeout=60)) as link:
            link.request("GET", path)
            answer = link.getresponse()
            return answer.getheader("Transfer-Encoding"), answer.read().decode()

    _, before = visit("/samplers")
    in_parts, after = visit("/samplers?sampler=DDIM")
    assert in_parts == "chunked"
    assert "<script defer " in before and "<script defer " not in after
    assert after.count("</head>") == after.count("</html>") == 1
    assert after.split("</head>")[0] == before.split("</head>")[0].replace(
        "<script defer ", "<script "
    )


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


def test_a_websocket_needs_a_known_name_and_a_page_of_this_server(client):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    evil, here = f"evil.example:{client.port}", f"localhost:{client.port}"
    token = client.token()
    said = {"Sec_WebSocket_Protocol": f"bokeh, {token}"}
    for host, origin in ((evil, evil), (here, evil), (evil, here), (here, "null")):
        origin = origin if origin == "null" else f"http://{origin}"
        status, _, body = client.ask("/studies/ws", Host=host, Origin=origin, **upgrade, **said)
        assert status == 403
        assert "which is no name of this server" in body
    bomb = base64.urlsafe_b64encode(zlib.compress(bytes(2**26), 9)).decode().rstrip("=")
    forged = json.dumps({"session_id": "mine", "session_expiry": 2**40, "__bk__zlib_": "BOMB"})
    forged = base64.urlsafe_b64encode(forged.replace("BOMB", bomb[:40_000]).encode()).decode()
    for wrong in ("", "x", "e30", forged, f"{forged}.x", f"{token[:-2]}AA", "W" * 9000):
        said = {"Sec_WebSocket_Protocol": f"bokeh, {wrong}", "Origin": f"http://{here}"}
        status, _, body = client.ask("/studies/ws", Host=here, **upgrade, **said)
        assert (status, body) == (403, "This page is not known here any more; load it again.\n")


@pytest.mark.parametrize("mode", ["no-cors", "navigate"])
def test_a_page_elsewhere_reaches_nothing(client, mode):
    """Neither an image nor a frame; a link from there may be followed."""
    dest = {"no-cors": "image", "navigate": "iframe"}[mode]
    said = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
    assert client.ask("/studies", **said)[0] == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert client.ask("/liveness", Sec_Fetch_Dest="document", **link)[0] == 200


def test_every_answer_is_sealed(client):
    for path in ("/", "/static/js/bokeh.min.js", "/no/such", "/liveness", "/?bokeh-token=x"):
        headers = client.ask(path)[1]
        policy = headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy and "object-src 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Server" not in headers and "Access-Control-Allow-Origin" not in headers


def test_a_session_is_given_and_never_chosen(client):
    token = client.token()
    for query in (f"bokeh-token={token}", "bokeh-session-id=mine", "bokeh-session-id="):
        status, _, body = client.ask(f"/studies?{query}")
        assert status == 403 and body.startswith("A session is given by this server")
    assert client.ask("/studies", Bokeh_Session_Id="mine")[0] == 403
    said = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert (
        said["session_id"]
        != json.loads(base64.urlsafe_b64decode(client.token().split(".")[0] + "=="))["session_id"]
    )
    packed = base64.urlsafe_b64decode(said["__bk__zlib_"] + "==")
    held = json.loads(zlib.decompress(packed))
    assert held["headers"] == {} and held["cookies"] == {}, "a page holds no cookie of its reader"


# -- odd requests ----------------------------------------------------------------------------------

ODD = [
    "a=①",
    "a=%C2%B2",
    "theme=%ED%A0%80",
    "a=" + "9" * 5000,
    "seeds_count=" + "9" * 5000,
    "a=[" + "[" * 3000,
]


@pytest.mark.parametrize("page", ["trajectories", "studies"])
def test_odd_queries_are_answered(client, page):
    every = "&".join(ODD) if page == "trajectories" else None  # a page takes its time
    for query in [every] if every else ODD:
        query = query.encode().decode("latin-1")
        assert client.ask(f"/{page}?{query}")[0] == 200, query[:40]


def test_odd_addresses(client, folder, seed):
    """None fails, and none reaches a file or a module that is not served."""
    draw = random.Random(seed)
    for asked in [
        "/%00",
        "/static/%00",
        "/..%2fcanary.txt",
        *(address(draw) for _ in range(ADDRESSES)),
    ]:
        status, _, body = client.ask(asked)
        assert status < 500, asked
        assert not LEAKS.search(body) and "CANARY" not in body, asked
    assert client.ask("/" + "x" * 20_000)[0] == 414
    assert client.ask("/liveness", "POST", b"x")[0] in (403, 405)
    assert not (folder / "sprung").exists()


def test_odd_messages(client, seed):
    assert asyncio.run(heard(client, random.Random(seed), MESSAGES)) == 0
    assert client.ask("/liveness")[0] == 200


def test_a_message_is_bounded_before_it_is_unpacked(client):
    async def told():
        there = await client.connect()
        kind, doc = await client.say(there, "PULL-DOC-REQ", {})
        assert kind == "PULL-DOC-REPLY"
        model = {"id": doc["doc"]["roots"][0]["id"]}
        event = {"kind": "ModelChanged", "model": {"id": "nope"}, "attr": "x", "new": 1}
        kind, said = await client.say(there, "PATCH-DOC", {"events": [event]}, "2")
        assert (kind, said) == (
            "ERROR",
            {"text": "the message could not be handled", "traceback": None},
        )
        bomb = base64.b64encode(gzip.compress(bytes(2**26))).decode()
        event |= {"model": model, "attr": "tags", "new": {"type": "bytes", "data": bomb}}
        assert await client.say(there, "PATCH-DOC", {"events": [event]}, "3") == (
            None,
            "the message cannot be read",
        )
        there = await client.connect()
        assert (await client.say(there, "PUSH-DOC", {"doc": doc["doc"]}))[0] is None
        there = await client.connect()
        there.protocol._write_frame(True, 0x41, zlib.compress(bytes(2**20)))  # "it is compressed"
        assert await there.read_message() is None

    asyncio.run(told())


def objects(part):
    """Every object in a document."""
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and "id" in part and "attributes" in part:
        yield part
    for one in inside:
        yield from objects(one)


def test_delete_needs_the_token_of_its_dialog(client, folder):
    """A click sent to hidden parts of the page deletes nothing."""

    async def tried():
        there = await client.connect()
        _, doc = await client.say(there, "PULL-DOC-REQ", {})
        known = {"yes", "no"}  # what is at its default is not sent
        asking = [one["id"] for one in objects(doc) if known <= one["attributes"].keys()]
        assert asking, "the dialog is a part of the page from the start"
        for number, model in enumerate(asking):
            for attr, new in (("answer", "yes"), ("token", "x"), ("answer", "x")):
                event = {"kind": "ModelChanged", "model": {"id": model}, "attr": attr, "new": new}
                said = await client.say(there, "PATCH-DOC", {"events": [event]}, f"{number}{attr}")
                assert said[0] == "OK"

    asyncio.run(tried())
    assert (folder / "results" / "first.zarr").is_dir()
    assert (folder / "results" / "other.zarr").is_dir()


# -- logging in ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "users.txt"
    path.write_text(f"ada:{hashed('lovelace 1843')}\n")
    path.chmod(0o600)
    return path


@contextmanager
def served_here(address: str, login):
    """The port of pages that a thread of this process serves behind a login."""
    port, ready, loops, before = free_port(), threading.Event(), [], pn.config.oauth_provider

    def serving() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        server = _server(address, port, known_names(address, port, ()), apps(), login)
        server.start()
        loops.append(server.io_loop)
        ready.set()
        server.io_loop.start()
        server.stop()

    thread = threading.Thread(target=serving, daemon=True)
    thread.start()
    try:
        assert ready.wait(60)
        yield port
    finally:
        if loops:
            loops[0].add_callback(loops[0].stop)
        thread.join(10)
        pn.config.oauth_provider = before


@pytest.fixture(scope="module")
def guarded(users):
    """A workbench that others can reach, and where one has to log in."""
    with served_here("0.0.0.0", Passwords(users)) as port:
        yield Client(port)


def login(client, name="ada", password="lovelace 1843", place="/studies", **more):
    """Status, cookies and where it leads, of the form filled in."""
    _, headers, body = client.ask("/login?next=" + place)
    xsrf = re.search(r'name="_xsrf" value="([^"]+)"', body)[1]
    cookie = headers["Set-Cookie"].partition(";")[0]
    form = f"name={name}&password={password.replace(' ', '+')}&next={place}&_xsrf={xsrf}"
    said = {"Content_Type": "application/x-www-form-urlencoded", "Cookie": cookie} | more
    status, headers, body = client.ask("/login", "POST", form.encode(), **said)
    return status, headers, body


def test_nobody_comes_in_without_a_login(guarded):
    for page in PAGES:
        status, headers, _ = guarded.ask(f"/{page}")
        assert status == 302 and headers["Location"].startswith("./login?next=")
        assert guarded.ask(f"/{page}/ws" if page else "/ws")[0] in (400, 403, 404)
    assert guarded.ask("/liveness")[0] == 200


def test_a_login_and_its_cookie(guarded):
    status, headers, _ = login(guarded)
    assert (status, headers["Location"]) == (302, "/studies")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    own = {"Cookie": cookie.partition(";")[0]}
    token = guarded.token("studies", **own)

    async def connected(**headers):
        there = await guarded.connect("studies", token, **headers)
        there.close()

    asyncio.run(connected(**own))
    with pytest.raises(HTTPClientError, match="403"):
        asyncio.run(connected())
    assert guarded.ask("/studies", Cookie=own["Cookie"][:-3] + "000")[0] == 302
    for place in ("//evil.example", "https://evil.example", "/%5Cevil.example", "javascript:1"):
        assert login(guarded, place=place)[1]["Location"] == "/"


def test_wrong_passwords_and_forged_forms(guarded):
    status, _, body = login(guarded, password="wrong")
    assert status == 403 and "do not belong together" in body
    status, _, body = login(guarded, name="nobody")
    assert status == 403 and "do not belong together" in body
    form = b"name=ada&password=lovelace+1843"
    kind = {"Content_Type": "application/x-www-form-urlencoded"}
    assert guarded.ask("/login", "POST", form, **kind)[0] == 403
    assert login(guarded, Origin="http://evil.example")[0] == 403
    for _ in range(4):
        status, _, body = login(guarded, password="wrong")
    assert status == 429 and "Too many wrong passwords" in body
    assert login(guarded)[0] == 429


def test_the_file_of_passwords(users, tmp_path):
    record = read_users(users)["ada"]
    assert is_right("lovelace 1843", record) and not is_right("lovelace 1844", record)
    assert "lovelace" not in users.read_text()
    mine = tmp_path / "users.txt"
    for text, said in (
        ("ada:plain", "line 1 of .* is not name:scrypt"),
        ("ada:scrypt$1073741824$8$1$AAAAAAAAAAAAAAAA$" + "A" * 43 + "=", "line 1"),
        ("", "names nobody"),
    ):
        mine.write_text(text)
        mine.chmod(0o600)
        with pytest.raises(LoginError, match=said):
            read_users(mine)
    mine.chmod(0o666)
    with pytest.raises(LoginError, match=r"others may change .*chmod 600"):
        read_users(mine)
    with pytest.raises(LoginError, match="cannot be read"):
        read_users(tmp_path / "none.txt")
    mine.write_text(f"ada:{record}\n")
    mine.chmod(0o600)
    provider = Passwords(mine)
    sealed = provider.seal("ada")
    time.sleep(0.01)
    mine.write_text(f"ada:{hashed('another one')}\n")
    assert provider.seal("ada") != sealed, "another password ends what the one before began"


def test_the_settings_of_oauth(monkeypatch):
    monkeypatch.delenv("PANEL_OAUTH_KEY", raising=False)
    with pytest.raises(LoginError, match="--oauth-provider was 'x'; it must be one of auth0"):
        oauth("x", ["ada"])
    with pytest.raises(LoginError, match="PANEL_OAUTH_KEY is not set"):
        oauth("github", ["ada"])
    monkeypatch.setenv("PANEL_OAUTH_KEY", "k")
    monkeypatch.setenv("PANEL_OAUTH_SECRET", "s")
    with pytest.raises(LoginError, match="nobody is named who may come in"):
        oauth("github", [])


class Provider(BaseHTTPRequestHandler):
    """A stand-in for who knows people: it sends everybody back as the name it holds."""

    person = ""

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        path, asked = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        if path == "/authorize":
            back = urlencode({"code": "a code", "state": asked["state"]})
            self.send_response(302)
            self.send_header("Location", f"{asked['redirect_uri']}/?{back}")
            self.end_headers()
        elif self.headers["Authorization"] == "Bearer a token":
            self.say({"email": Provider.person})

    def do_POST(self) -> None:
        asked = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        right = (asked["code"], asked["client_secret"]) == ("a code", "a secret")
        self.say({"access_token": "a token"} if right else {"error": "wrong"})

    def say(self, what: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(what).encode())


def test_who_comes_in_by_oauth(monkeypatch):
    """By the addresses that its settings name, whoever is named, and nobody else."""
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{provider.server_port}"
    places = {name: f"{there}/{name.lower()}" for name in ("AUTHORIZE", "TOKEN", "USER")}
    settings = {f"{name}_URL": place for name, place in places.items()}
    for name, value in (settings | {"KEY": "a key", "SECRET": "a secret"}).items():
        monkeypatch.setenv(f"PANEL_OAUTH_{name}", value)

    def visit(port: int, person: str, place: str = "/studies?text=x") -> tuple[int, str]:
        Provider.person = person
        jar = urllib.request.HTTPCookieProcessor()
        try:
            with urllib.request.build_opener(jar).open(f"http://127.0.0.1:{port}{place}") as reply:
                assert reply.url == f"http://127.0.0.1:{port}{place}"
                assert {one.get_nonstandard_attr("SameSite") for one in jar.cookiejar} == {"Lax"}
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        with served_here("127.0.0.1", oauth("generic", ["ada@example.org"])) as port:
            status, body = visit(port, "ada@example.org")
            assert status == 200 and "<title>Studies</title>" in body
            status, body = visit(port, "eve@example.org")
            assert status == 403 and "Your name is not among those who may come in" in body
            # A code that a page elsewhere had sent here, for a login that nobody has begun.
            assert visit(port, "ada@example.org", "/login?code=a+code&state=mine")[0] == 401
    finally:
        provider.shutdown()


# -- the end ---------------------------------------------------------------------------------------

BUSY = """
import sys, threading, time
from functools import partial
import deeds
from workbench.ui import broker
from workbench.ui.server import serve
from workbench.workers.pool import Pool

def busy():
    while broker._shared is None:
        time.sleep(0.01)
    for deed in (deeds.never, deeds.stuck):
        work = partial(deed, mark=sys.argv[2] + deed.__name__)
        broker.shared().submit(deed.__name__, work, print, print)

if __name__ == "__main__":
    threading.Thread(target=busy, daemon=True).start()
    serve("127.0.0.1", int(sys.argv[1]), pool=Pool(2, ("torch",)))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_all_its_workers_whatever_they_do(end, tmp_path, record_property):
    """One computes for ever and ignores requests, one hangs in a call."""
    (tmp_path / "busy.py").write_text(BUSY)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    server = subprocess.Popen(
        [sys.executable, str(tmp_path / "busy.py"), str(free_port()), f"{tmp_path}/"],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )

    def until(met, seconds=120.0):
        limit = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < limit
            time.sleep(0.02)

    def is_there(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    try:
        marks = [tmp_path / "never", tmp_path / "stuck"]
        until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
        workers = [mark.read_text() for mark in marks]
        assert all(map(is_there, workers))
        server.send_signal(end)
        told = time.monotonic()
        server.wait(60)  # 5 s on a machine that has nothing else to do
        seconds = time.monotonic() - told
        record_property("measured", f"the server ends {seconds:.1f} s after {end.name} (goal: 5)")
        assert server.returncode == (0 if end == signal.SIGINT else -end)
        until(lambda: not any(map(is_there, workers)))
    finally:
        server.kill()
