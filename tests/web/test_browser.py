"""The page in a real, headless Chromium: what a visitor sees, does and gets. Run by ``make web-test``."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.web.conftest import png_claiming

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'nerve_kernels[web-test]'"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)"),
]
GROUP_TIMEOUT = 90_000  # milliseconds; a busy machine is slow, not wrong


class Server:
    """``nerve-web`` in a process of its own, on a free port."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "-m", "nerve_kernels.cli.web_command", "--port", str(self.port), "--device", "cpu"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        assert self.process.stdout is not None
        assert self.address in self.process.stdout.readline()  # it says so once it listens

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        status = connection.getresponse().status
        connection.close()
        return status

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visitor:
    """A browser's tab, and what went wrong in it."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.tab = browser.new_page(viewport={"width": 1400, "height": 1150})
        self.tab.set_default_timeout(GROUP_TIMEOUT)
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        self.refused: list[str] = []
        self.tab.on("request", self._note_request)
        self.tab.on("response", self._note_response)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(server.address)

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def _note_response(self, response: Any) -> None:
        if response.status >= 400:
            self.refused.append(f"{response.status} {response.url}")

    def wait_for_status(self, words: str) -> str:
        """The banner, once it says these words."""
        banner = self.tab.locator("#status .nerve-status")
        playwright.expect(banner).to_contain_text(re.compile(words), timeout=GROUP_TIMEOUT)
        return str(banner.inner_text())

    def image(self, name: str) -> str:
        return str(self.tab.locator(f"#{name} img").get_attribute("src"))

    def wait_for_change(self, name: str, before: str) -> None:
        playwright.expect(self.tab.locator(f"#{name} img")).not_to_have_attribute("src", before, timeout=GROUP_TIMEOUT)

    def download(self, button: str) -> tuple[str, Path]:
        with self.tab.expect_download() as waiting:
            self.tab.click(button)
        return waiting.value.suggested_filename, waiting.value.path()


@pytest.fixture
def visitor(browser: Any, server: Server) -> Iterator[Visitor]:
    one = Visitor(browser, server)
    one.wait_for_status("Done in")
    yield one
    assert one.elsewhere == []  # it works without any other server
    assert one.errors == []
    assert one.refused == []  # and the page asks for nothing that the guard keeps back
    one.tab.close()


def test_the_page_loads_and_shows_a_result_by_itself(visitor):
    assert visitor.tab.title() == "nerve_kernels"
    for name in ("before", "after", "row-local", "row-global", "row-mixed"):
        assert visitor.tab.locator(f"#{name} img").evaluate("image => image.naturalWidth") > 200
    assert visitor.tab.locator("#heads .bar").count() == 2
    assert visitor.tab.locator("#labels textarea").input_value() == "background, cat, mushroom, house, balloon"


def test_an_upload_with_labels(visitor, tmp_path):
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(tmp_path / "name ;$(x).jpg")
    visitor.tab.fill("#labels textarea", "")
    visitor.tab.set_input_files("#drop-zone input", next(tmp_path.iterdir()))
    visitor.wait_for_status("Now type what to look for")
    before = visitor.image("after")
    visitor.tab.fill("#labels textarea", "cat, apple|lemon, <img src=x onerror=alert(1)>")
    visitor.tab.click("#run button, button#run")
    visitor.wait_for_status("CLIP on the image")
    visitor.wait_for_change("after", before)
    name, file = visitor.download("#get-summary")
    summary = json.loads(file.read_text())
    assert name == "nerve.json"
    assert (summary["width"], summary["height"]) == (300, 200)
    assert [row["label"] for row in summary["labels"]] == ["cat", "apple", "<img src=x onerror=alert(1)>"]


def test_a_slider_runs_the_walk_only(visitor):
    before, alone = visitor.image("after"), visitor.image("before")
    number = visitor.tab.locator("#alpha input[type=number]")
    number.fill("0.3")
    number.press("Enter")
    banner = visitor.wait_for_status("Ran: random walk")
    assert "CLIP on the image" not in banner
    assert "affinity" not in banner
    visitor.wait_for_change("after", before)
    assert visitor.image("before") == alone
    handle = visitor.tab.locator("#window input[type=range]")
    handle.focus()
    handle.press("ArrowRight")
    assert "global affinity" not in visitor.wait_for_status("Ran: local affinity")


def test_a_click_moves_the_rows(visitor):
    before, text = visitor.image("row-mixed"), visitor.tab.locator("#rows-text")
    box = visitor.tab.locator("#after img").bounding_box()
    visitor.tab.locator("#after img").click(position={"x": box["width"] * 0.2, "y": box["height"] * 0.45})
    playwright.expect(text).to_contain_text("column 15 of 48 × 72", timeout=GROUP_TIMEOUT)
    visitor.wait_for_change("row-mixed", before)


def test_a_scene_is_chosen(visitor):
    before = visitor.image("after")
    visitor.tab.locator("#scenes button").nth(1).click()
    playwright.expect(visitor.tab.locator("#labels textarea")).to_have_value("background, pig, banana, tree, umbrella")
    visitor.wait_for_change("after", before)


@pytest.mark.parametrize("kind", ["overlay", "labels"])
def test_images_are_downloaded(visitor, kind):
    name, file = visitor.download(f"#get-{kind}")
    assert name == f"nerve_{kind}.png"
    with Image.open(file) as opened:
        opened.load()
        assert opened.mode == {"overlay": "RGB", "labels": "P"}[kind]
        assert opened.width == {"overlay": 720, "labels": 192}[kind]


def test_broken_and_oversized_files_are_refused_in_words(visitor, tmp_path):
    before = visitor.image("after")
    for name, content, words in (
        ("text.png", b"no image", "not an image that can be read here"),
        ("truncated.png", png_claiming(500, 500), "This image is damaged"),
        ("bomb.png", png_claiming(60_000, 60_000), "at most 40 million pixels"),
        ("large.png", b"\0" * (13 * 2**20), "has 13 MB. Wanted at most 12 MB"),
    ):
        (tmp_path / name).write_bytes(content)
        visitor.tab.set_input_files("#drop-zone input", tmp_path / name)
        visitor.wait_for_status(words)
    assert visitor.image("after") == before
    visitor.tab.click("button#run")  # and the page goes on
    visitor.wait_for_status("Done in")


def test_labels_that_cannot_be_used_are_refused_in_words(visitor):
    for labels, words in (("cat,, dog", "label 2 is empty"), ("cat", "got only 'cat'"), ("x" * 90 + ", y", "90 char")):
        visitor.tab.fill("#labels textarea", labels)
        visitor.tab.click("button#run")
        visitor.wait_for_status(words)


def test_models_that_cannot_be_loaded_are_said(browser):
    running = Server("--diffusion", "/nowhere/diffusion", "--clip", "/nowhere/clip")
    try:
        visitor = Visitor(browser, running)
        assert "/nowhere/diffusion" in visitor.wait_for_status("The models could not be loaded")
        assert visitor.tab.locator("button#run").is_disabled()
    finally:
        running.stop()


def test_no_file_goes_in_and_none_comes_out(server):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../evil"\r\n\r\nhello\r\n--x--\r\n'
    assert server.ask("POST", "/gradio_api/upload", form, Content_Type="multipart/form-data; boundary=x") == 403
    for path in ("/etc/passwd", str(Path(__file__)), "pyproject.toml", "../../../etc/passwd"):
        assert server.ask("GET", f"/gradio_api/file={path}") in (403, 404)
    assert server.ask("POST", "/gradio_api/queue/join", Content_Length=str(10**9)) == 413


def test_only_this_machine_is_listened_to(server):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == server.port]
    assert [address.split(":")[0] for address in listening] == ["0100007F"]
