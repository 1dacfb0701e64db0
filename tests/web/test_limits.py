import asyncio

import pytest
from PIL import Image
from tests.web.conftest import as_bytes, data_url, png_claiming

from nerve_kernels.segmentation import NerveConfig
from nerve_kernels.web import limits
from nerve_kernels.web.guard import MAX_BODY_BYTES, Guard
from nerve_kernels.web.limits import RefusedError, check_labels, check_settings, read_upload


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_named_format_is_read(kind):
    image = read_upload(data_url(as_bytes(Image.new("RGB", (40, 30), "red"), kind), "text/html"))
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_a_large_image_is_shrunk_and_keeps_its_aspect():
    image = read_upload(data_url(as_bytes(Image.new("L", (3000, 1500)))))
    assert image.size == (limits.MAX_SIDE, limits.MAX_SIDE // 2)


@pytest.mark.parametrize("size", [(100_000, 100_000), (8000, 8000), (2**31 - 1, 1), (40_000_001, 1)])
def test_pixels_are_counted_before_they_are_decoded(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(RefusedError, match="40 million pixels"):
        read_upload(data_url(png_claiming(*size)))


def test_too_large_a_file_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(limits.base64, "b64decode", lambda *a, **o: pytest.fail("unpacked"))
    with pytest.raises(RefusedError, match=r"This file is too large\. Wanted at most 12 MB"):
        read_upload("data:image/png;base64," + "A" * (limits.MAX_FILE_BYTES * 4 // 3 + 100))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (None, "No image came"),
        ({"path": "/etc/passwd"}, "No image came"),
        ("/etc/passwd", "No image came"),
        ("data:image/png;base64,@@@@", "did not arrive whole"),
        (data_url(b""), "not an image"),
        (data_url(b"plain text"), "not an image"),
        (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"), "not an image"),
        (data_url(as_bytes(Image.effect_noise((64, 64), 50))[:-900]), "This image is damaged"),
        (data_url(png_claiming(2000, 2000)), "This image is damaged"),
    ],
)
def test_what_is_no_image_is_refused_in_words(sent, words):
    with pytest.raises(RefusedError, match=words):
        read_upload(sent)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "Type what to look for"),
        ("  \n", "Type what to look for"),
        ("x" * 5000, "5000 characters long"),
        (", ".join(f"word{i}" for i in range(61)), "61 labels and synonyms"),
        ("|".join(f"word{i}" for i in range(61)), "61 labels and synonyms"),
        ("cat, " + "y" * 81, "is 81 characters long"),
    ],
)
def test_too_many_or_too_long_labels(text, words):
    with pytest.raises(RefusedError, match=words):
        check_labels(text)


def test_settings_that_would_take_long():
    assert check_settings(NerveConfig(steps=100, window=31)).steps == 100
    with pytest.raises(RefusedError, match="steps L: got 101"):
        check_settings(NerveConfig(steps=101))
    with pytest.raises(RefusedError, match="steps L: got None"):
        check_settings(NerveConfig(steps=None, tolerance=1e-9))
    with pytest.raises(RefusedError, match="window: got 33"):
        check_settings(NerveConfig(window=33))


def test_a_request_holds_the_largest_file_and_little_more():
    largest = 4 * -(-limits.MAX_FILE_BYTES // 3)  # as base64
    assert largest + 1000 < MAX_BODY_BYTES < largest + 2**17


HOST = {b"host": b"localhost:7860"}
TOO_LONG = {b"content-length": str(MAX_BODY_BYTES + 1).encode()}


def answer(
    method: str, path: str, headers: dict[bytes, bytes], server: object = ("127.0.0.1", 7860), kind: str = "http"
) -> tuple[dict[str, object], bool]:
    """The first message that the guard lets out, and whether it asked what is behind it, which answers 200."""
    sent, asked = [], []

    async def behind(scope, receive, send):
        asked.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": list(headers.items()), "server": server}
    asyncio.run(Guard(behind, ["Page.Example"])(scope, None, send))
    return sent[0], bool(asked)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/assets/index.js", {}, 200),
        ("GET", "/gradio_api/heartbeat/abc", {}, 200),
        ("POST", "/gradio_api/queue/join", {b"content-length": b"500"}, 200),
        ("POST", "/gradio_api/queue/join", {b"content-length": str(MAX_BODY_BYTES).encode()}, 200),
        ("POST", "/gradio_api/upload", {b"content-length": b"500"}, 403),
        ("POST", "/upload/", {b"content-length": b"500"}, 403),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 403),
        ("GET", "/gradio_api/deep_link", {}, 403),  # writes what is on a page to a file
        ("POST", "/gradio_api/process_recording", {b"content-length": b"500"}, 403),
        ("POST", "/gradio_api/queue/join", TOO_LONG, 413),
        ("PUT", "/gradio_api/queue/join", TOO_LONG, 413),
        ("PATCH", "/gradio_api/queue/join", TOO_LONG, 413),
        ("DELETE", "/gradio_api/queue/join", TOO_LONG, 413),
        ("POST", "/gradio_api/queue/join", {b"content-length": b"-5"}, 413),
        ("POST", "/gradio_api/queue/join", {b"content-length": "\u00b2".encode("latin-1")}, 413),
        ("POST", "/gradio_api/queue/join", {b"transfer-encoding": b"chunked"}, 411),
        ("PATCH", "/gradio_api/queue/join", {b"transfer-encoding": b"chunked"}, 411),
    ],
)
def test_the_guard(method, path, headers, status):
    message, asked = answer(method, path, HOST | headers)
    assert message["status"] == status
    assert asked == (status == 200)
    sent = dict(message["headers"])
    assert sent[b"content-security-policy"].startswith(b"default-src 'self'")
    assert sent[b"referrer-policy"] == b"no-referrer"
    assert sent[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    ("host", "server", "answered"),
    [
        (b"192.0.2.7:7860", ("192.0.2.7", 7860), True),  # as when it listens on every address
        (b"192.0.2.8:7860", ("192.0.2.7", 7860), False),
        (b"192.0.2.7", ("::ffff:192.0.2.7", 7860), True),
        (b"[2001:db8::1]:7860", ("2001:0db8::1", 7860), True),
        (b"page.example.", ("192.0.2.7", 7860), True),
        (b"evil.example", ("192.0.2.7", 7860), False),
        (b"evil.example", None, False),
        (b"127.0.0.5", None, True),
        (None, ("192.0.2.7", 7860), False),
        (None, None, False),
    ],
)
def test_the_guard_knows_the_names_of_its_machine(host, server, answered):
    message, asked = answer("GET", "/", {} if host is None else {b"host": host}, server)
    assert asked is answered
    assert message["status"] == (200 if answered else 403)


def test_every_host_that_a_request_names_is_looked_at():
    scope_headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": scope_headers, "server": None}
    asyncio.run(Guard(lambda *_: pytest.fail("asked"))(scope, None, send))
    assert sent[0]["status"] == 403


def test_the_guard_closes_websockets():
    message, asked = answer("GET", "/", HOST, kind="websocket")
    assert message["type"] == "websocket.close"
    assert not asked
