"""Who may come in: every request is looked at here before any page, Panel or Bokeh sees it.

A request is refused unless it asks for this server by a name that the server knows (a foreign name
that leads to this machine is how a page elsewhere would read what is here), comes from a page of
this server or from no page at all, and chooses no session. What is served beside the pages is an
allow-list: of the routes that Panel and Bokeh add, those that the pages use. Every answer carries
the headers that keep a browser from framing it, guessing at it, or sending its cookies elsewhere.
"""

from __future__ import annotations

import base64
import logging
import re
import socket
import zlib
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from bokeh.protocol.exceptions import ProtocolError
from bokeh.protocol.message import Message
from bokeh.server.connection import ServerConnection
from bokeh.server.session import ServerSession
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.ico_handler import IcoHandler
from bokeh.server.views.multi_root_static_handler import MultiRootStaticHandler
from bokeh.server.views.static_handler import StaticHandler
from bokeh.util.token import check_token_signature
from panel.io.server import DocHandler, WSHandler
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.routing import Router
from tornado.web import Application, RequestHandler

from workbench.ui.session import connected

log = logging.getLogger(__name__)

#: What Panel and Bokeh may answer. Left out, and thereby not there: the files of any module on the
#: path (which imports it), a page as a script for other sites, the pages' metadata, the index.
ROUTES: tuple[type[RequestHandler], ...] = (
    DocHandler,
    WSHandler,
    StaticHandler,
    MultiRootStaticHandler,
    IcoHandler,
)

#: Longest address that is looked at [bytes].
MOST_ADDRESS = 16_384

#: Longest message of a page, all its parts together: an uploaded file and some more [bytes].
MOST_MESSAGE = 24 * 2**20

#: Arguments by which Bokeh lets a client choose its session, or a page of another site show ours.
CHOSEN = (
    "bokeh-session-id",
    "bokeh-token",
    "bokeh-app-path",
    "bokeh-absolute-url",
    "bokeh-autoload-element",
)

# Bokeh and Panel compile code in the browser and write styles and scripts into their pages.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "connect-src 'self' data: blob: {sockets}",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
    )
)

#: On every answer.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: On none: what the server is made of, and leave for other sites to read.
NEVER = (
    "Server",
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Headers",
    "Access-Control-Allow-Credentials",
)


def is_loopback(name: str) -> bool:
    """Whether a name or an address is of this machine alone."""
    try:
        found = socket.getaddrinfo(name.strip("[]") or "0.0.0.0", None)
        return all(ip_address(one[4][0].partition("%")[0]).is_loopback for one in found)
    except (OSError, ValueError):
        return False


def known_names(address: str, port: int, origins: Iterable[str] = ()) -> frozenset[str]:
    """The names, as ``host:port``, that this server may be asked for by.

    Those of loopback, the address it is bound to, and ``origins`` (``host`` or ``host:port``; one
    without a port may be behind a proxy, on the ports of HTTP and HTTPS).
    """
    hosts = {"localhost", "127.0.0.1", "[::1]", _bracketed(address)}
    if not is_loopback(address):
        hosts |= {socket.gethostname(), socket.getfqdn()}
    names = {f"{host}:{port}" for host in hosts}
    for origin in origins:
        host, _ = _split(origin)
        whole = host != origin
        names |= {origin} if whole else {f"{origin}:{one}" for one in (port, 80, 443)}
    return frozenset(name.lower() for name in names)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _split(name: str) -> tuple[str, str]:
    """Host and port of ``host:port``; no port where there is none."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?", name)
    return (found[1], found[2] or "") if found else (name, "")


def _whole(name: str, scheme: str) -> str:
    """A name with its port, that of the scheme where none is said."""
    host, port = _split(name.lower())
    return f"{host}:{port or {'https': 443}.get(scheme, 80)}"


def keep_routes(application: BokehTornado, others: Iterable[type[RequestHandler]]) -> None:
    """Leave, of an application's routes, the :data:`ROUTES` and ``others``."""
    kept = {*ROUTES, *others}
    router = application.wildcard_router
    router.rules[:] = [rule for rule in router.rules if rule.target in kept]
    for rule in router.rules:
        rule.target = {WSHandler: Socket, DocHandler: Page}.get(rule.target, rule.target)


class Alive(RequestHandler):
    """Says that the server is there, and makes no page for it."""

    def get(self) -> None:
        self.write({"/liveness": True})


class Page(DocHandler):
    """A page, whose head is sent while its body is being made.

    Meanwhile the scripts of the toolkit run in the browser: most of what a visit takes there. The
    head is known from the first visit to an address, when they run after all has been drawn.
    """

    _sent = ""  # the head that is on its way

    @property
    def _heads(self) -> dict[str, str]:
        """Of the pages, by path; empty of one whose head differs from visit to visit."""
        return self.application.settings.setdefault("heads", {})

    async def get_session(self) -> ServerSession:
        head = self._heads.get(self.request.path, "")
        if head and self.current_user is not None:
            self.set_header("Content-Type", "text/html; charset=utf-8")
            self.write(head.replace("<script defer ", "<script "))
            with suppress(StreamClosedError):
                await self.flush()
            self._sent = head
        return await super().get_session()

    async def get(self, *args: Any, **kwargs: Any) -> None:
        try:
            page = super().get(*args, **kwargs)
            if page is not None:  # it is, of one who is sent to the login
                await page
        except Exception:
            if not self._sent:
                raise
            log.exception("a page could not be made")
            self.write("<p>This page could not be made; the server has written down why.</p>")

    def write(self, chunk: str | bytes | dict) -> None:
        whole = isinstance(chunk, str) and "</head>" in chunk and self.get_status() == 200
        if not whole:
            return super().write(chunk)
        path, head = self.request.path, chunk[: chunk.index("</head>")]
        if not self._sent:
            self._heads.setdefault(path, head)
        elif head == self._sent:
            chunk = chunk[len(head) :]
        else:
            self._heads[path], chunk = "", "<script>location.reload()</script>"
        return super().write(chunk)


class Socket(WSHandler):
    """The connection of a page: for one that this server has made, in messages of bounded size."""

    _size = 0  # of the message under way, all its parts together

    def check_origin(self, origin: str) -> bool:
        return True  # the door has looked at it

    async def prepare(self) -> None:
        await super().prepare()
        if self._finished:
            return
        asked = self.request.headers.get("Sec-WebSocket-Protocol", "")
        protocol, _, token = asked.partition(",")
        if protocol.strip() != "bokeh" or not self._signed(token.strip()):
            self.set_status(403)
            self.finish("This page is not known here any more; load it again.\n")

    def _signed(self, token: str) -> bool:
        key, signed = self.application.secret_key, self.application.sign_sessions
        try:
            return bool(signed) and check_token_signature(token, secret_key=key, signed=True)
        except (ValueError, TypeError, KeyError, RecursionError):  # it is not of our making
            return False

    async def _async_open(self, token: str) -> None:
        try:
            await super()._async_open(token)
            if self.connection is not None:
                connected(self.connection.session.document)
        except Exception as error:  # it expired on the way, say
            log.warning("a page could not be connected: %s", _brief(error))
            self.close(1008, "load the page again")

    async def on_message(self, fragment: str | bytes) -> None:
        self._size += len(fragment)
        if self.receiver is None or self.connection is None or self._size > MOST_MESSAGE:
            self.close(1009, "too much, or too early")
            return
        try:
            message = await self.receiver.consume(fragment)
            if message is not None:
                self._size = 0
                check_unpacked(message.content)
                await self.send_message(await _reply(message, self.connection))
        except Exception as error:
            log.warning("a message was refused: %s", _brief(error))
            self.close(1007, "the message cannot be read")


def check_unpacked(content: Any) -> None:
    """Refuse a message whose bytes, which Bokeh packs with gzip, are too many when unpacked.

    Raises:
        ProtocolError: more than :data:`MOST_MESSAGE` in all, or no such bytes.
    """
    waiting, left = [content], MOST_MESSAGE
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        if not isinstance(one, dict):
            continue
        waiting += one.values()
        if one.get("type") == "bytes" and isinstance(one.get("data"), str):
            packed = base64.b64decode(one["data"])
            try:
                left -= len(zlib.decompressobj(31).decompress(packed, left + 1))
            except zlib.error:
                raise ProtocolError("bytes that are not packed") from None
            if left < 0:
                raise ProtocolError(f"bytes of more than {MOST_MESSAGE} when unpacked")


#: What a page says: its changes, and that it wants to be sent.
MESSAGES = {"PATCH-DOC": ServerSession.patch, "PULL-DOC-REQ": ServerSession.pull}


async def _reply(message: Message, connection: ServerConnection) -> Message:
    """The answer to a message; a failure is told without its traceback."""
    if message.msgtype not in MESSAGES:
        raise ProtocolError(f"{message.msgtype!r:.40} is not expected")
    try:
        return await MESSAGES[message.msgtype](message, connection)
    except Exception as error:
        log.warning("a message could not be handled: %s", _brief(error))
    # Made here, not above: Bokeh puts the traceback of what is being handled into it.
    told = "the message could not be handled"
    return connection.protocol.create("ERROR", message.header["msgid"], told)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


class Refusal(RequestHandler):
    """Says in a sentence why a request is not answered."""

    def initialize(self, refused: tuple[int, str]) -> None:
        self.status, self.sentence = refused

    def prepare(self) -> None:
        self.set_status(self.status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Connection", "close")
        self.finish(self.sentence + "\n")

    def check_xsrf_cookie(self) -> None:
        """Nothing is done, so nothing is to be protected."""


class Door(Router):
    """In front of an application.

    Args:
        application: of the pages.
        names: by which it may be asked for; see :func:`known_names`.
    """

    def __init__(self, application: Application, names: Iterable[str]) -> None:
        self.application, self.names = application, frozenset(names)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        refused = self.problem(request)
        name = request.headers.get("Host", "") if refused is None else ""
        request.connection = _Sealed(request.connection, name)
        if refused is None:
            # Panel's own, not ours; where it is no UTF-8, Panel fails at it.
            request.arguments.pop("theme", None)
            return self.application.find_handler(request)
        return self.application.get_handler_delegate(request, Refusal, {"refused": refused})

    def problem(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        """Why a request is not let in: the status of the answer, and a sentence."""
        for check in (self._host, self._page, _address, _chosen):
            if refused := check(request):
                return refused
        return None

    def _host(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        name = request.headers.get("Host", "")
        if name and self.knows(_whole(name, request.protocol), request):
            return None
        return 403, (
            f"The request was for {name[:80]!r}, which is no name of this server; open it as "
            f"{min(self.names, key=len)}, or start it with --origin and that name."
        )

    def knows(self, name: str, request: HTTPServerRequest) -> bool:
        """Whether ``name`` is one of ours, or the address that this very connection came to."""
        return name in self.names or name == _here(request)

    def _page(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        origin = request.headers.get("Origin")
        if origin is not None:
            try:
                place = urlsplit(origin)
                known = self.knows(_whole(place.netloc, place.scheme), request)
            except ValueError:
                known = False
            if not known:
                return 403, (
                    f"The request came from a page of {origin[:80]!r}, which is no name of this "
                    "server; to open the pages under that name, start it with --origin."
                )
        # Browsers say by themselves whether another site asks; a link from there may be followed.
        said = {
            key: request.headers.get(f"Sec-Fetch-{key}", "") for key in ("Site", "Mode", "Dest")
        }
        followed = (said["Mode"], said["Dest"], request.method) == ("navigate", "document", "GET")
        if said["Site"] in ("cross-site", "same-site") and not followed:
            return 403, "A page of another site asked for this; its links may lead here, no more."
        return None


def _here(request: HTTPServerRequest) -> str | None:
    try:
        host, port, *_ = request.connection.stream.socket.getsockname()
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return f"{_bracketed(host)}:{port}"


def _address(request: HTTPServerRequest) -> tuple[int, str] | None:
    if len(request.uri) > MOST_ADDRESS:
        return 414, (
            f"The address has {len(request.uri)} characters; at most {MOST_ADDRESS} are read."
        )
    if not request.path.startswith("/"):
        return 400, f"The address was {request.path[:80]!r}; it must begin with '/'."
    path = unquote_to_bytes(request.path)
    if any(byte < 32 or byte == 127 for byte in path) or b"\\" in path:
        return 400, "The address holds a control character or a backslash; leave it out."
    return None


def _chosen(request: HTTPServerRequest) -> tuple[int, str] | None:
    named = [name for name in CHOSEN if name in request.arguments]
    if named or "Bokeh-Session-Id" in request.headers:
        return 403, "A session is given by this server and never chosen; leave it out."
    return None


class _Sealed:
    """A connection that writes the policy and :data:`HEADERS` with every answer.

    Args:
        connection: of a request.
        name: that the request was for, if it is known: pages under it may connect to it.
    """

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._sockets = f"ws://{name} wss://{name}" if name else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def write_headers(self, start_line, headers: HTTPHeaders, chunk: bytes | None = None):
        for name in NEVER:
            headers.pop(name, None)
        headers.update(HEADERS)
        headers["Content-Security-Policy"] = POLICY.format(sockets=self._sockets)
        cookies = headers.get_list("Set-Cookie")
        if cookies:
            del headers["Set-Cookie"]
            for cookie in cookies:
                headers.add("Set-Cookie", _kept_here(cookie))
        return self._connection.write_headers(start_line, headers, chunk)


def _kept_here(cookie: str) -> str:
    """A cookie that no script reads and no other site's page sends."""
    said = {part.partition("=")[0].strip().lower() for part in cookie.split(";")[1:]}
    more = {"httponly": "HttpOnly", "samesite": "SameSite=Lax"}
    return "; ".join([cookie, *(text for key, text in more.items() if key not in said)])
