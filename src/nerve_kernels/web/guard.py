"""What stands before the page's server: small requests only, no files, and no other site."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .limits import LARGEST_FILE

# A picture travels as base64 inside JSON: 4/3 of its size, and room for the rest of the message.
LARGEST_BODY = LARGEST_FILE * 4 // 3 + 2**16

# The browser itself then refuses fonts, scripts and requests from anywhere but this server. Gradio builds functions
# from text, hence unsafe-eval.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'; "
    "object-src 'none'"
)
HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware: refuses Gradio's file upload and large bodies, and adds headers.

    The page sends pictures inside its messages, so that nothing sent is ever written to a file; the upload that Gradio
    brings along would write files under names which the sender chooses.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = _reason_against(scope)
        if refusal is not None:
            status, words = refusal
            start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
            await send(start)
            await send({"type": "http.response.body", "body": words.encode()})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _reason_against(scope: Scope) -> tuple[int, str] | None:
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return None
    if scope["path"].rstrip("/").endswith("/upload"):
        return 403, "This server takes no files."
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return 411, "Say how long the request is (Content-Length)."
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > LARGEST_BODY:
        return 413, f"The request is too large; wanted at most {LARGEST_BODY} bytes."
    return None
