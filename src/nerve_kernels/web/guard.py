"""What stands before the page's server: small requests from its own page only, and no files."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .limits import MAX_FILE_BYTES

# An image travels as base64 inside JSON: 4/3 of its size, and room for the rest of the message.
MAX_BODY_BYTES = MAX_FILE_BYTES * 4 // 3 + 2**16

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

# What the page asks for. Gradio's other routes read and write files, among them some that no setting turns off.
PREFIX = "/gradio_api"
SERVED = frozenset(
    (
        "", "/config", "/favicon.ico", "/manifest.json", "/theme.css", "/cancel", "/queue/data", "/queue/join",
        "/reset", "/startup-events",
    )
)  # fmt: skip
SERVED_BELOW = ("/assets/", "/static/", "/svelte/", "/heartbeat/")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str]


class Guard:
    """ASGI middleware: refuses other sites, paths that the page does not use and large bodies, and adds headers.

    The page sends and gets images inside its messages; Gradio's own routes for files, which would write them under
    names that the sender chooses, are not served.

    A site elsewhere can let its own name resolve to this machine, and then read the page as if it were part of that
    site. So a request must name, as its ``Host``, this machine (``localhost`` or a loopback address), the address at
    which it arrived, or one of `names`; and its ``Origin``, where it has one, must be that same host or one of `names`.

    Args:
        app: the application behind it.
        names: further host names to answer to.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], names: Collection[str] = ()) -> None:
        self.app = app
        self.names = frozenset(map(str.lower, names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the page opens none
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            status, words = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": words.encode()})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        return self._other_site(scope) or _unknown_path(scope["path"]) or _large_body(scope)

    def _other_site(self, scope: Scope) -> Refusal | None:
        hosts = [host.lower() for host in _values(scope, b"host")]
        reached = _plain_address(scope["server"][0]) if scope.get("server") else ""
        for name in [_host_name(f"//{host}") for host in hosts] or [""]:
            if not name or not (name in self.names or is_loopback(name) or name == reached):
                return 403, (
                    f"This server does not answer to the name {name!r}. If it is yours, start it with: "
                    "nerve-web --allow-host NAME"
                )
        for origin in _values(scope, b"origin"):
            if origin.lower().partition("://")[2] not in hosts and _host_name(origin) not in self.names:
                return 403, "This server answers its own page only, not other sites."
        return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine whoever asks: ``localhost`` or a loopback address.

    Example:
        >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unknown_path(path: str) -> Refusal | None:
    path = path.removeprefix(PREFIX)
    if path.rstrip("/") in SERVED or path.startswith(SERVED_BELOW):
        return None
    return 403, "This server takes no files and gives none; the page has nothing else here."


def _large_body(scope: Scope) -> Refusal | None:
    if _values(scope, b"transfer-encoding"):
        return 411, "Say how long the request is (Content-Length)."
    for length in _values(scope, b"content-length"):
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, f"The request is too large; wanted at most {MAX_BODY_BYTES} bytes."
    return None


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _host_name(url: str) -> str:
    """The host in a URL, in lower case, an address in its usual form; empty where there is none."""
    try:
        return _plain_address((urlsplit(url).hostname or "").removesuffix("."))
    except ValueError:
        return ""


def _plain_address(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
