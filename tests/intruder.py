"""Somebody at the door: plain requests, websockets, and addresses and messages of every odd kind.

Shared by the tests, which draw a few, and by ``benchmarks/serving.py``, which draws thousands.
"""

import asyncio
import http.client
import json
import random
import re
from collections.abc import Iterator
from urllib.parse import quote

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

PAGES = (
    "",
    "trajectories",
    "samplers",
    "studies",
    "gap",
    "gauge",
    "frequency",
    "seeds",
    "networks",
)

#: What no answer may hold.
LEAKS = re.compile(r"Traceback|site-packages|File \"/|\.py\", line")


class _Raw(http.client.HTTPConnection):
    """A connection that sends whatever it is given."""

    def _validate_path(self, path: str) -> None:
        pass

    def _encode_request(self, request: str) -> bytes:
        return request.encode("latin-1")


class Client:
    """Requests as they are written, nothing added.

    Args:
        port, address: of the server.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.port, self.address = port, address

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None, **headers):
        """Status, headers and body of the answer; ``X_Y`` of ``headers`` stands for X-Y."""
        connection = _Raw(self.address, self.port, timeout=120)
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

    def token(self, page: str = "studies", **headers) -> str:
        """That of a page made anew."""
        status, _, body = self.ask(f"/{page}", **headers)
        assert status == 200, body
        return re.search(r'"token":"([^"]+)"', body)[1]

    async def connect(self, page: str = "studies", token: str | None = None, **headers):
        """A page's connection, once it has been acknowledged."""
        token = self.token(page, **headers) if token is None else token
        place = f"{self.address}:{self.port}"
        url = f"ws://{place}/{page}/ws" if page else f"ws://{place}/ws"
        said = {"Origin": f"http://{place}"} | headers
        there = await websocket_connect(
            HTTPRequest(url, headers=said, request_timeout=120), subprotocols=["bokeh", token]
        )
        for _ in range(3):
            assert await there.read_message() is not None
        return there

    async def say(self, there, kind: str, content: object, number: str = "1"):
        """A message in Bokeh's protocol; kind and content of the answer, None where it hung up."""
        for part in ({"msgid": number, "msgtype": kind}, {}, content):
            await there.write_message(json.dumps(part))
        while True:
            header = await there.read_message()
            if header is None:
                return None, there.close_reason
            header = json.loads(header)
            await there.read_message()
            content = await there.read_message()
            for _ in range(header.get("num_buffers", 0)):
                await there.read_message()
                await there.read_message()
            if header.get("reqid") == number:
                return header["msgtype"], json.loads(content)


# -- odd addresses ---------------------------------------------------------------------------------

WORDS = [
    *("components", "static", "extensions", "panel", "js", "bokeh.min.js", "login", "logout"),
    *("ws", "metadata", "autoload.js", "favicon.ico", "liveness", "rest", "session_info", "admin"),
    *("..", ".", "...", "~", "etc", "passwd", "proc", "self", "environ", "antigravity", "this"),
    *("__main__", "__css__", "_resources", "panel.custom", "os", "trap", "x", "canary.txt", ""),
    *("%2e%2e", "%2f", "%5c", "%00", "%0d%0a", "%ff", "%c0%ae", "%zz", "%", "①", "²", "\u202e"),
]

KEYS = [
    *("a", "data", "denoiser", "sampler", "grid_steps", "seeds_count", "grid.steps", "record"),
    *("denoiser.of.rank", "dtype", "device", "selected", "order", "kind", "in", "text", "theme"),
    *("nfe", "spectrum", "file", "bokeh-session-id", "bokeh-token", "bokeh-autoload-element", ""),
]

VALUES = [
    *("①", "²", "٣", "1" * 5000, "9" * 4301, "1e999", "-1", "nan", "inf", "0x10", "1_0", "true"),
    *("[", "[" * 3000, "{" * 3000, "{}", "[1,2", "'", '"', "<img src=x onerror=alert(1)>", "%00"),
    *("../../etc/passwd", "\ud800", "x" * 9000, "__class__", "{0}", "%s", "\r\nSet-Cookie: a=b"),
    *("digits", "Gaussian", "Heun", "first.zarr", "\x00", "\n", "null", "-0", "1.5", "../canary"),
]


def address(draw: random.Random) -> str:
    """One address: a path of pages, routes and worse, and a query of odd keys and values."""
    parts = [draw.choice([*PAGES, *WORDS]) for _ in range(draw.randint(0, 5))]
    if draw.random() < 0.4:  # a page, or what is beneath it
        parts = [draw.choice(PAGES), *parts[: draw.randint(0, 1)]]
    path = "/" + "/".join(parts)
    query = "&".join(
        f"{_said(draw, draw.choice(KEYS))}={_said(draw, draw.choice(VALUES))}"
        for _ in range(draw.randint(0, 4))
    )
    whole = f"{path}?{query}" if query else path
    return re.sub(r"[\x00-\x20\x7f]", "", whole).encode("utf-8", "replace").decode("latin-1")


def _said(draw: random.Random, text: str) -> str:
    """Escaped, or as it is; now and then cut, or with a byte of no meaning in it."""
    text = quote(text.encode("utf-8", "surrogatepass"), safe="") if draw.random() < 0.7 else text
    if draw.random() < 0.1:
        at = draw.randint(0, len(text))
        text = text[:at] + draw.choice(["%", "%f", "%ff%fe", "&", "=", ";"]) + text[at:]
    return text


# -- odd messages ----------------------------------------------------------------------------------


def message(draw: random.Random, models: list[str]) -> Iterator[str | bytes]:
    """The fragments of one message on a page's connection, more or less like one of Bokeh's."""
    kind = draw.choice(["PATCH-DOC", "PATCH-DOC", "PULL-DOC-REQ", "PUSH-DOC", "ERROR", "OK", "x"])
    odd = draw.random()
    if odd < 0.1:
        yield draw.randbytes(draw.randint(0, 200))
        return
    if odd < 0.2:
        yield draw.choice(["", "{", "null", "[]", "[" * 20_000, "1" * 5000, '"x"', "\x00"])
        yield "{}"
        yield draw.choice(["{}", "{" * 50, "nan"])
        return
    header = {"msgid": draw.choice(["1", 1, None, "x" * 300]), "msgtype": kind}
    if draw.random() < 0.1:
        header.pop("msgid")
    if draw.random() < 0.1:
        header["num_buffers"] = draw.choice([1, -1, 10**9, "a", None])
    yield json.dumps(header)
    yield draw.choice(["{}", "[]", "{"]) if draw.random() < 0.1 else "{}"
    event = {
        "kind": draw.choice(["ModelChanged", "MessageSent", "RootAdded", "TitleChanged", "Odd"]),
        "model": {"id": draw.choice([*models, "nope", 7])},
        "attr": draw.choice(["value", "data", "tags", "js_property_callbacks", "esm", "x", "id"]),
        "new": _value(draw, models, 0),
        "msg_type": "bokeh_event",
        "msg_data": {"type": "event", "name": draw.choice(["click", "document_ready", "x"])},
        "title": _value(draw, models, 3),
    }
    for key in draw.sample(list(event), draw.randint(0, 2)):
        event.pop(key)
    content = {"events": [event]} if draw.random() < 0.9 else _value(draw, models, 0)
    yield json.dumps(content)


def _value(draw: random.Random, models: list[str], depth: int):
    """A value as Bokeh writes them, more or less."""
    plain = [
        None,
        True,
        1,
        -1.5,
        10**30,
        "",
        "x",
        "<b>",
        "\ud800",
        {"type": "number", "value": "nan"},
    ]
    if depth > 2 or draw.random() < 0.4:
        return draw.choice(plain)
    inner = [_value(draw, models, depth + 1) for _ in range(draw.randint(0, 3))]
    return draw.choice(
        [
            inner,
            {"id": draw.choice([*models, "nope"])},
            {"type": "map", "entries": [[one, one] for one in inner]},
            {"type": "symbol", "name": draw.choice(["os.system", "Figure", ""])},
            {"type": "object", "name": draw.choice(["Figure", "CustomJS", "no.Such"]), "id": "p9"},
            {"type": "bytes", "data": draw.choice(["AAAA", "?", None])},
            {"type": "ndarray", "array": "x", "shape": [10**12], "dtype": "float64", "order": "<"},
            {"type": "slice", "start": inner, "stop": None, "step": 0},
        ]
    )


async def heard(client: Client, draw: random.Random, count: int) -> int:
    """Send messages to a page, as many as are asked for; how many answers held what they must not.

    After each the page is asked for: it answers, or has hung up.
    """
    there, models, wrong = None, [], 0
    for _ in range(count):
        if there is None:
            there = await client.connect()
            _, doc = await client.say(there, "PULL-DOC-REQ", {})
            models = sorted(set(re.findall(r'"id": "(p\d+)"', json.dumps(doc))))
        try:
            for part in message(draw, models):
                await there.write_message(part, binary=isinstance(part, bytes))
            answer, content = await asyncio.wait_for(client.say(there, "PULL-DOC-REQ", {}), 5)
        except Exception:  # it hung up, or waits for the rest of the message
            answer, content = None, there.close_reason
        wrong += bool(LEAKS.search(json.dumps(content)))
        if answer is None:
            there.close()
            there = None
    return wrong


# -- odd files -------------------------------------------------------------------------------------


def upload(draw: random.Random) -> bytes:
    """A file of eigenvalues, whole or not: text, an array, or a piece of one."""
    import io

    import numpy as np

    if draw.random() < 0.3:
        words = [
            "1",
            "2.5",
            "-1",
            "nan",
            "1e400",
            "x",
            ",",
            "\n",
            ";",
            "\ufeff",
            "9" * 5000,
            "\x00",
        ]
        return "".join(draw.choice(words) for _ in range(draw.randint(0, 12))).encode()
    stream = io.BytesIO()
    np.save(stream, np.arange(1.0, 9.0))
    content = bytearray(stream.getvalue())
    for _ in range(draw.randint(0, 6)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.6:
        del content[draw.randint(0, len(content)) :]
    if draw.random() < 0.1:
        content[10:10] = b"(" * draw.choice([1, 300, 3000])
    return bytes(content)


def study_text(draw: random.Random) -> str:
    """A study file, whole or not."""
    values = [
        *("1", "-1", "1e999", "nan", "true", "null", "9" * 5000, "[1, 2]", "{a: 1}", "'x'", "*a"),
        *("!!python/object:os.system x", "&a [*a]", "{" * 40, "[" * 3000, '"', "digits", "Heun"),
        *("{name: Gaussian}", "{name: Mixture, weights: [1]}", "①", "\x00", "---", "0o17", "1:30"),
    ]
    keys = [
        *("data", "denoiser", "process", "sampler", "grid", "seeds", "record", "lenses"),
        "x",
        "",
    ]
    lines = [f"{draw.choice(keys)}: {draw.choice(values)}" for _ in range(draw.randint(0, 5))]
    text = "\n".join(lines)
    if draw.random() < 0.2:
        text = json.dumps({draw.choice(keys): draw.choice(values) for _ in range(3)})
    if draw.random() < 0.2:
        text = text[: draw.randint(0, len(text))]
    return text
