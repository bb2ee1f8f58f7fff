"""What the first requests would wait for, done while the model loads: all that is built, loaded or found when it is
first needed, in this process.

With several front-ends each has its own first requests: with six of them, the first dozen took two to six times as long
as those after.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging

from fastapi import FastAPI
from PIL import Image
from starlette.types import Message

from vl2.core.interface import ChatModel
from vl2.core.types import Message as ChatMessage
from vl2.server.access import UNTOLD
from vl2.server.auth import INSIDE
from vl2.server.tenants import ANYONE

logger = logging.getLogger(__name__)

NUM_PICTURES = 4
"""At once, so that as many threads have begun, and have memory to work in."""
SIZE = (1100, 740)
QUESTION = "What can be seen?"
PATH = "/v1/chat/completions"


async def warm_up(app: FastAPI, llm: ChatModel) -> None:
    """A failure is logged: requests will show it, if it is one of theirs."""
    try:
        picture = _picture()
        conversations = [
            [ChatMessage("user", f"<image>\n{QUESTION}", (_opened(picture),))] for _ in range(NUM_PICTURES)
        ]
        await asyncio.gather(*map(llm.process, conversations), _ask(app, picture))
    except Exception:
        logger.exception("the server could not warm up")


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", SIZE).save(file, "JPEG")
    return file.getvalue()


def _opened(picture: bytes) -> Image.Image:
    """Not decoded yet. A file's bytes would be known the second time, and keep the memory that others are to have."""
    return Image.open(io.BytesIO(picture))


async def _ask(app: FastAPI, picture: bytes) -> None:
    """A question that is refused when it has been read, as its two fields do not go together: the model may be there
    already, and is not to be asked. No number and no log tells of it.
    """
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    refused = {"stream": False, "stream_options": {"include_usage": True}}
    body = json.dumps({"messages": [{"role": "user", "content": parts}]} | refused).encode()
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        INSIDE: ANYONE, UNTOLD: True,
    }  # fmt: skip
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await asyncio.Future()

    async def send(message: Message) -> None: ...

    await app(scope, receive, send)
