"""The running page asked over HTTP, as a script would: what it writes, what it serves, and whom it answers."""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.web.conftest import as_bytes, data_url

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'nerve_kernels[web]'")

from nerve_kernels.cli.web_command import launch
from nerve_kernels.web.guard import HEADERS
from nerve_kernels.web.page import Page
from nerve_kernels.web.workbench import Workbench

SETTINGS = [0.8, 0.0, 20, -2.3, 11, 1, "none"]


class Server:
    """A page that runs in this process, and a script that asks it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.visitors = itertools.count()
        _, self.address, _ = launch(page, host="127.0.0.1", port=None, names=["page.example"])
        self.port = int(self.address.rstrip("/").rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
        connection.close()
        return found

    def call(self, handler: str, data: list[Any], event_data: object = None, session: str = "") -> dict[str, Any]:
        """Make an event as the page would, as a new visitor unless told otherwise; returns the last message of it."""
        session = session or f"visitor{next(self.visitors)}"
        number = next(
            number
            for number, function in self.page.blocks.fns.items()
            if getattr(function.fn, "__name__", "") == handler
        )
        body = {"data": data, "event_data": event_data, "fn_index": number, "session_hash": session, "trigger_id": None}
        status, _, said = self.ask(
            "POST", "/gradio_api/queue/join", json.dumps(body).encode(), Content_Type="application/json"
        )
        assert status == 200, said
        _, _, messages = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")
        last = [json.loads(line.removeprefix("data: ")) for line in messages.splitlines() if line.startswith("data: ")]
        return next(message for message in reversed(last) if message["msg"] == "process_completed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything temporary of this process goes while these tests run."""
    made = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(made))
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        patch.setattr(tempfile, "tempdir", None)
        yield made


@pytest.fixture(scope="module")
def server(folder: Path, pipeline: Any) -> Iterator[Server]:
    workbench = Workbench(lambda: pipeline)
    workbench.start_loading()
    assert workbench.models_state(timeout=60).state == "ready"
    running = Server(Page(workbench, pipeline.config))
    yield running
    running.page.blocks.close()


def test_an_upload_leaves_no_file_and_no_address_to_fetch_it_from(server, folder):
    image = Image.radial_gradient("L").resize((60, 40)).convert("RGB")
    server.call("on_upload", [None, *SETTINGS], session="uploads")  # changes a part of the page, and so makes it anew
    answer = server.call("on_upload", ["cat, apple", *SETTINGS], {"image": data_url(as_bytes(image))}, "uploads")
    assert answer["success"], answer
    assert "data:image/png;base64," in json.dumps(answer)
    assert "file=" not in json.dumps(answer)
    assert [str(path) for path in folder.rglob("*") if path.is_file()] == []
    (folder / "gradio").mkdir(exist_ok=True)
    (folder / "gradio" / "image.png").write_bytes(as_bytes(image))  # and if there were one, it would not be served
    for prefix in ("/gradio_api/file=", "/gradio_api/file/", "/file="):
        status, _, said = server.ask("GET", f"{prefix}{folder / 'gradio' / 'image.png'}")
        assert status == 403
        assert "gives none" in said
    (folder / "gradio" / "image.png").unlink()


UPLOAD = {"image": data_url(as_bytes(Image.new("RGB", (8, 8), "red")))}
NO_FILE = {"path": "https://example.org/image.png", "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What goes to the log, the server's own included."""
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield caplog
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("handler", "data", "event_data", "words"),
    [
        ("on_upload", [None, *SETTINGS], UPLOAD, "labels: expected text"),
        ("on_upload", [NO_FILE, *SETTINGS], UPLOAD, "inputs: expected numbers and texts"),
        ("on_upload", [["cat"], *SETTINGS], UPLOAD, "inputs: expected numbers and texts"),
        ("on_upload", ["cat, dog", *SETTINGS], None, "No image came"),
        ("on_upload", ["cat, dog", *SETTINGS], "text", "No image came"),
        ("on_upload", ["cat, dog", *SETTINGS], {"too_large": 10**400}, "No image came"),
        ("on_upload", ["cat, dog", *SETTINGS], {"too_large": "much"}, "No image came"),
        ("on_upload", ["cat, dog", 0.8], UPLOAD, "enough input"),
        ("on_upload", ["cat, dog", "high", *SETTINGS[1:]], UPLOAD, "slider"),
        ("on_upload", ["cat, dog", 5, *SETTINGS[1:]], UPLOAD, "greater than maximum"),
        ("on_upload", ["cat, dog", float("nan"), *SETTINGS[1:]], UPLOAD, "alpha"),
        ("on_run", [None, None, *SETTINGS], None, "Type what to look for"),
        ("on_run", [None, "cat, dog", *SETTINGS], None, "Drop an image"),
        ("on_slider", [None, *SETTINGS], None, "Type what to look for"),
        ("on_slider", [None, None, *SETTINGS[1:]], None, ""),
        ("on_scene", SETTINGS, None, "scene: expected 0 to"),
        ("on_scene", SETTINGS, {"index": 99, "value": None}, "scene: expected 0 to"),
        ("on_scene", SETTINGS, {"index": [0, 1], "value": None}, "scene: expected 0 to"),
        ("on_click", [None], None, "Drop an image"),
        ("on_click", [None], {"index": "x", "value": None}, "Drop an image"),
        ("make", [None], None, "There is no result yet"),
    ],
)
def test_a_script_that_asks_for_nonsense_is_refused_in_a_line(server, logged, capsys, handler, data, event_data, words):
    answer = server.call(handler, data, event_data)
    assert words in json.dumps(answer, ensure_ascii=False), answer
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    for record in logged.records:
        assert record.exc_info is None
        assert "\n" not in record.getMessage()


def test_a_click_before_a_result_is_refused(server, capsys):
    server.call("on_upload", [" ", *SETTINGS], UPLOAD, session="clicks")
    for index, words in (
        ([1, 1], "There is no result yet"),
        ([1], "x and y"),
        ([1, "y"], "x and y"),
        ([1, 10**400], "x and y"),
        (None, "x and y"),
    ):
        answer = server.call("on_click", [None], {"index": index, "value": None}, session="clicks")
        assert words in json.dumps(answer)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("body", ["[", "{}", "null", '{"data": [], "fn_index": 9999, "session_hash": "x"}'])
def test_a_request_that_no_page_makes_is_refused(server, logged, capsys, body):
    status, _, _ = server.ask("POST", "/gradio_api/queue/join", body.encode(), Content_Type="application/json")
    assert 400 <= status < 500
    assert "Traceback" not in capsys.readouterr().err
    assert all(record.exc_info is None for record in logged.records)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "LOCALHOST."}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "page.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:7860"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.0.2.7:7860"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, 200),
        ({"Host": "localhost:7860", "Origin": "https://page.example"}, 200),
        ({"Host": "localhost:7860", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost:7860", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:7860", "Origin": "null"}, 403),
        ({"Host": "page.example", "Origin": "https://evil.example"}, 403),
        ({"Host": "page.example", "Origin": "http://["}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_the_page_answers_its_own_names_and_origin_only(server, method, headers, status):
    if method == "OPTIONS":
        headers = {**headers, "Access-Control-Request-Method": "POST"}
    seen, answered, said = server.ask(method, "/config", **headers)
    if method == "OPTIONS" and status == 200 and "Origin" not in headers:
        status = 405  # no preflight, then
    assert seen == status
    if status == 403:
        assert "access-control-allow-origin" not in answered
        assert "server" in said
    for name, value in HEADERS:
        assert answered[name.decode()] == value.decode()
