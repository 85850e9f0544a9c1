"""A reader of the Trajectories page, without a browser: opens it, changes its steps, gets pictures.

Shared by the tests, where a few come, and by ``benchmarks/serving.py``, where many do.
"""

import asyncio
import contextlib
import json
import re
import time

from intruder import Client

#: What a browser says when it has the page.
HERE = {
    "kind": "MessageSent",
    "msg_type": "bokeh_event",
    "msg_data": {
        "type": "event",
        "name": "document_ready",
        "values": {"type": "map", "entries": []},
    },
}

STEPS = re.compile(rb"(\d+) steps on a")


class Visitor:
    """One session.

    Attributes:
        asked: when each number of steps was asked for.
        answered: when a picture of each number of steps came.
        said: every sentence that the page has shown.
    """

    def __init__(self, client: Client, query: str = "") -> None:
        self.client, self.query = client, query
        self.asked: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        self.said: list[str] = []
        self._came, self._number, self._edits = asyncio.Event(), 100, 0

    async def open(self, here: bool = True) -> "Visitor":
        """Load the page; ``here`` is false for one who only asks for it."""
        loop = asyncio.get_running_loop()
        page = f"trajectories?{self.query}" if self.query else "trajectories"
        token = await loop.run_in_executor(None, self.client.token, page)
        self.there = await self.client.connect("trajectories", token)
        _, document = await self.client.say(self.there, "PULL-DOC-REQ", {})
        self.form = next(one["id"] for one in _models(document) if "controls" in one["attributes"])
        self.reader = asyncio.create_task(self._read())
        if here:
            await self._tell(HERE)
        return self

    async def change(self, steps: int) -> None:
        """Type another number of steps."""
        self.asked[steps] = time.monotonic()
        self._edits += 1
        edit = [["key", "grid.steps"], ["value", str(steps)], ["count", self._edits]]
        edits = [{"type": "map", "entries": edit}]
        model = {"id": self.form}
        await self._tell({"kind": "ModelChanged", "model": model, "attr": "edits", "new": edits})

    async def sees(self, steps: int, timeout: float = 120) -> None:
        """Wait for the picture of that number of steps."""
        async with asyncio.timeout(timeout):
            while steps not in self.answered:
                self._came.clear()
                await self._came.wait()

    async def close(self) -> None:
        self.there.close()
        self.reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.reader

    async def _tell(self, event: dict) -> None:
        self._number += 1
        header = {"msgid": str(self._number), "msgtype": "PATCH-DOC"}
        for part in (header, {}, {"events": [event]}):
            await self.there.write_message(json.dumps(part))

    async def _read(self) -> None:
        while (message := await self.there.read_message()) is not None:
            if isinstance(message, bytes):
                found = STEPS.search(message[:20_000])
                if found:
                    self.answered[int(found[1])] = time.monotonic()
                    self._came.set()
            elif '"attr":"problem"' in message:
                events = json.loads(message).get("events", ())
                self.said += [e["new"] for e in events if e.get("attr") == "problem" and e["new"]]


def _models(part):
    """Every model of a document."""
    if isinstance(part, dict):
        if part.get("type") == "object" and isinstance(part.get("attributes"), dict):
            yield part
        for inner in part.values():
            yield from _models(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _models(inner)
