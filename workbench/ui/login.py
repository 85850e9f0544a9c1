"""Logging in: a file of names and hashed passwords, or an OAuth provider as Panel knows them.

A line of the file is ``name:scrypt$n$r$p$salt$key`` (RFC 7914; salt and key in base64). The file is
read again when it changes: who is taken out of it, or has another password, is logged out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from bokeh.server.auth_provider import AuthProvider
from panel.auth import OAuthProvider
from tornado.web import HTTPError, RequestHandler

#: Cost of a password's hash: 16 MB and some 40 ms.
COST = {"n": 2**14, "r": 8, "p": 1}

#: What is believed of a file: more would let it choose how much memory a login takes.
MOST_COST = {"n": 2**17, "r": 16, "p": 4}

NAME = re.compile(r"[\w.@+-]{1,64}")
SHORTEST, LONGEST = 8, 256

#: Wrong passwords from one address before it has to wait, and for how long [s].
TRIES, PAUSE = 5, 30.0

COOKIE, DAYS = "workbench_user", 7

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Diffusion Workbench</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 22em; margin: 14vh auto 0;
padding: 0 18px; }} label, input, button {{ display: block; width: 100%; box-sizing: border-box; }}
label {{ margin: 14px 0 2px; }} input, button {{ font: inherit; padding: 8px; }}
button {{ margin-top: 20px; }} [role=alert] {{ color: #d32f2f; }}</style></head>
<body><h1>Diffusion Workbench</h1>{said}<form method="post">{xsrf}{fields}</form></body></html>
"""

FIELDS = """<input type="hidden" name="next" value="{next}">
<label for="name">Name</label><input id="name" name="name"
autocomplete="username" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button>Log in</button>"""


class LoginError(ValueError):
    """A file of passwords, or a provider, that cannot be used; the text says why."""


def hashed(password: str) -> str:
    """A password as a line of the file holds it."""
    salt = secrets.token_bytes(16)
    key = _key(password, salt, **COST)
    parts = (*COST.values(), *(base64.b64encode(one).decode() for one in (salt, key)))
    return "$".join(("scrypt", *map(str, parts)))


def is_right(password: str, record: str) -> bool:
    """Whether ``record`` is the hash of ``password``."""
    _, n, r, p, salt, key = record.split("$")
    found = _key(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(key))


def _key(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    memory = 128 * n * r * p + 2**20
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=2 * memory, dklen=32)


def read_users(path: Path) -> dict[str, str]:
    """The hashes of a file of passwords, by name.

    Raises:
        LoginError: a file that cannot be read, that others may change, or a line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise LoginError(f"the file of passwords {path} cannot be read: {error}.") from None
    if os.name == "posix" and mode & 0o022:
        raise LoginError(f"others may change {path}; make it yours alone: chmod 600 {path}.")
    users = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, record = line.strip().partition(":")
        if not NAME.fullmatch(name) or not _is_record(record):
            raise LoginError(
                f"line {number} of {path} is not name:scrypt$...; write it with "
                f"workbench password NAME --file {path}."
            )
        users[name] = record
    if not users:
        raise LoginError(f"{path} names nobody; add one: workbench password NAME --file {path}.")
    return users


def _is_record(record: str) -> bool:
    try:
        kind, n, r, p, salt, key = record.split("$")
        cost = {"n": int(n), "r": int(r), "p": int(p)}
        sizes = [len(base64.b64decode(one, validate=True)) for one in (salt, key)]
    except (ValueError, binascii.Error):
        return False
    bounded = all(1 <= value <= MOST_COST[name] for name, value in cost.items())
    return kind == "scrypt" and bounded and n == str(cost["n"]) and sizes[0] >= 8 and sizes[1] == 32


def write_user(path: Path, name: str, password: str) -> None:
    """Enter a name, or its new password, in a file that its owner alone reads.

    Raises:
        LoginError: a name or password that cannot be taken, or a file that cannot be written.
    """
    if not NAME.fullmatch(name):
        raise LoginError(
            f"the name was {name[:80]!r}; it must be 1 to 64 letters, digits or any of . @ + - _."
        )
    if not SHORTEST <= len(password) <= LONGEST:
        raise LoginError(
            f"the password has {len(password)} characters; it must have {SHORTEST} to {LONGEST}."
        )
    users = read_users(path) if path.exists() and path.stat().st_size else {}
    users[name] = hashed(password)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{one}:{record}\n" for one, record in sorted(users.items()))
        partial.replace(path)
    except OSError as error:
        raise LoginError(f"{path} cannot be written: {error}.") from None
    finally:
        partial.unlink(missing_ok=True)


def here(place: str) -> str:
    """A place to go on to after the login, of this server alone."""
    parts = urlsplit(place)
    plain = place.isprintable() and "\\" not in place
    inside = not parts.scheme and not parts.netloc and place.startswith("/")
    return place if plain and inside and not place.startswith("//") else "/"


class _Login(RequestHandler):
    def get(self) -> None:
        self._say("")

    async def post(self) -> None:
        provider = self.application.auth_provider
        name = self.get_argument("name", "")
        password = self.get_argument("password", "", strip=False)
        refused = await provider.check(name, password, self.request.remote_ip or "")
        if refused:
            self.set_status(429 if refused.startswith("Too many") else 403)
            self._say(refused)
            return
        kept = {"httponly": True, "samesite": "Lax", "secure": self.request.protocol == "https"}
        self.set_signed_cookie(COOKIE, provider.seal(name), expires_days=DAYS, **kept)
        self.redirect(here(self.get_argument("next", "/")))

    def _say(self, sentence: str) -> None:
        self.set_header("Cache-Control", "no-store")
        said = f'<p role="alert">{escape(sentence)}</p>' if sentence else ""
        fields = FIELDS.format(next=escape(here(self.get_argument("next", "/")), quote=True))
        self.finish(PAGE.format(said=said, xsrf=self.xsrf_form_html(), fields=fields))


class _Logout(RequestHandler):
    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        button = "<button>Log out</button>"
        self.finish(PAGE.format(said="", xsrf=self.xsrf_form_html(), fields=button))

    def post(self) -> None:
        self.clear_cookie(COOKIE)
        self.redirect("/login")


class Passwords(AuthProvider):
    """Who comes in, by a file of passwords.

    Args:
        path: the file; see :func:`read_users`.

    Raises:
        LoginError: a file that cannot be used.
    """

    login_url, login_handler = "/login", _Login
    logout_url, logout_handler = "/logout", _Logout

    def __init__(self, path: Path) -> None:
        self.path, self.users = path, read_users(path)
        self._stamp = self._read_at()
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()
        self._at_once = asyncio.Semaphore(2)
        self._nobody = hashed(secrets.token_urlsafe())
        super().__init__()

    def _read_at(self) -> tuple:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def record(self, name: str) -> str | None:
        """The hash of a name's password as the file has it now."""
        stamp = self._read_at()
        if stamp != self._stamp:
            try:
                self.users = read_users(self.path)
            except LoginError:
                self.users = {}
            self._stamp = stamp
        return self.users.get(name)

    def seal(self, name: str) -> str:
        """What a login holds: it ends with the password it was made with."""
        record = self.record(name) or ""
        return f"{name}:{hashlib.sha256(record.encode()).hexdigest()[:32]}"

    async def check(self, name: str, password: str, address: str) -> str:
        """Why somebody is not let in; empty where they are."""
        now = time.monotonic()
        tries = [t for t in self._wrong.get(address, []) if now - t < PAUSE]
        if len(tries) >= TRIES:
            return f"Too many wrong passwords came from there; wait {PAUSE:.0f} s."
        # Entered before it is known, so that many at once are counted too.
        self._wrong[address] = [*tries, now]
        self._wrong.move_to_end(address)
        while len(self._wrong) > 10_000:
            self._wrong.popitem(last=False)
        record = self.record(name)
        async with self._at_once:  # each takes memory
            loop = asyncio.get_running_loop()
            # A name that is not there takes as long.
            right = await loop.run_in_executor(
                None, is_right, password[: LONGEST + 1], record or self._nobody
            )
        if record is None or not right:
            return "This name and this password do not belong together."
        self._wrong.pop(address, None)
        return ""

    def get_user(self, handler: RequestHandler) -> str | None:
        """Who has logged in; called by Bokeh with each request."""
        said = (handler.get_signed_cookie(COOKIE, max_age_days=DAYS) or b"").decode()
        name = said.partition(":")[0]
        known = self.record(name) is not None
        return name if known and hmac.compare_digest(said, self.seal(name)) else None


def oauth(provider: str, users: Collection[str]) -> OAuthProvider:
    """Panel's login by an OAuth provider, for ``users`` alone ("*" is whoever it knows).

    Key, secret and the provider's addresses are Panel's own settings, from the environment:
    ``PANEL_OAUTH_KEY``, ``PANEL_OAUTH_SECRET``, ``PANEL_OAUTH_REDIRECT_URI``.

    Raises:
        LoginError: a provider that is not known, or settings that are missing.
    """
    import panel as pn
    from panel.auth import AUTH_PROVIDERS

    usable = sorted(set(AUTH_PROVIDERS) - {"pam", "password"})
    if provider not in usable:
        raise LoginError(
            f"--oauth-provider was {provider[:80]!r}; it must be one of {', '.join(usable)}."
        )
    for name in ("PANEL_OAUTH_KEY", "PANEL_OAUTH_SECRET"):
        if not os.environ.get(name):
            raise LoginError(f"{name} is not set; the provider gives it when you register.")
    if not users:
        raise LoginError(
            "nobody is named who may come in: say --oauth-user NAME, once for each, or "
            f"--oauth-user '*' for everybody whom {provider} knows."
        )
    pn.config.oauth_provider = provider
    allowed = frozenset(users)

    class Known(OAuthProvider):
        @property
        def get_user_async(self):
            ask = super().get_user_async

            async def user(handler: RequestHandler) -> str | None:
                found = await ask(handler)
                if found is None or "*" in allowed or found in allowed:
                    return found
                raise HTTPError(403, reason="Your name is not among those who may come in")

            return user

    return Known()
