"""ASGI middleware that keeps the page on this machine: no files from other hosts, no large messages."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]

# Bytes of a JSON message; pictures come as uploads, which have a limit of their own.
_LARGEST = 2**20
# What a browser may load: this server's own files, and those that the page makes.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)


class LocalOnly:
    """Refuses messages that name files of other hosts, which Gradio would load, and those that are large."""

    def __init__(self, app: Callable[[_Message, _Receive, _Send], Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_policy(message: _Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        if scope["method"] != "POST" or scope["path"].endswith("/upload"):
            await self._app(scope, receive, with_policy)
            return
        body = await _read(receive)
        mistake = _mistake(body)
        if mistake:
            await _refuse(send, mistake)
            return
        rest = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> _Message:
            return next(rest, None) or await receive()

        await self._app(scope, replay, with_policy)


async def _read(receive: _Receive) -> bytes | None:
    """The body of a request; None if it is too large."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LARGEST:
            return None
        if not message.get("more_body"):
            return body


def _mistake(body: bytes | None) -> str:
    """What is wrong with a message; "" if nothing."""
    if body is None:
        return f"the message is larger than {_LARGEST >> 20} MiB: send pictures as uploads"
    try:
        values = json.loads(body or b"null")
    except RecursionError:
        return "the message is nested too deeply"
    except ValueError:
        return ""  # Gradio answers for itself
    nodes = [values]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            path = node.get("path")
            if isinstance(path, str) and "://" in path[:20]:
                return "a picture must be uploaded: files of other hosts are not loaded"
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)
    return ""


async def _refuse(send: _Send, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
