"""What the page does when it is touched, without a browser; its looks are tested in test_browser.py."""

from __future__ import annotations

import base64
import io
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tests.web.conftest import as_bytes, data_url

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'nerve_kernels[web]'")

import gradio

from nerve_kernels.cli.web_command import main
from nerve_kernels.web import snippets
from nerve_kernels.web.affinity_rows import draw_row
from nerve_kernels.web.opened_image import HeadWeight
from nerve_kernels.web.page import Page, Shown
from nerve_kernels.web.scenes import scenes
from nerve_kernels.web.workbench import Workbench

SETTINGS = (0.8, 0.0, 20, -2.3, 11, 1, "none")


@pytest.fixture
def page(workbench) -> Page:
    return Page(workbench, workbench.pipeline().config)


def event(**data: object) -> SimpleNamespace:
    return SimpleNamespace(_data=data, index=data.get("index"))


def test_the_first_scene_is_shown_once_the_models_are_there(page):
    *_, last = page.on_load(*SETTINGS)
    assert "Done in" in last[page.status]
    assert last[page.after].width == last[page.before].width == 720
    assert last[page.shown].labels == scenes()[0].labels
    assert all(image is not None for image in (last[row] for row in page.rows))


def test_nothing_can_be_run_or_downloaded_before_it_is_there(page):
    buttons = [page.run_button, *page.downloads.values()]
    assert [button.interactive for button in buttons] == [False] * len(buttons)
    shown = {part: change for changes in page.on_load(*SETTINGS) for part, change in changes.items()}
    assert [shown[button].interactive for button in buttons] == [True] * len(buttons)


def test_loading_and_failing_are_said(workbench):
    gate = threading.Event()

    def load():
        gate.wait(60)
        raise OSError("out of reach <b>")

    bench = Workbench(load)
    bench.start_loading()
    page = Page(bench, workbench.pipeline().config)
    said = page.on_load(*SETTINGS)
    assert "Loading Stable Diffusion and CLIP" in next(said)[page.status]
    gate.set()
    *_, last = said
    assert "could not be loaded" in last[page.status]
    assert "out of reach &lt;b&gt;" in last[page.status]


def test_an_upload_without_labels_waits_for_them(page):
    sent = data_url(as_bytes(scenes()[1].image))
    (only,) = page.on_upload(event(image=sent), "  ", *SETTINGS)
    assert "Now type what to look for" in only[page.status]
    answer = page.on_run(only[page.shown], scenes()[1].labels, *SETTINGS)
    assert "CLIP on the image" in answer[page.status]
    assert "pig" in answer[page.shown].labels


@pytest.mark.parametrize(
    ("sent", "words"),
    [({"too_large": 50 * 2**20}, "has 50 MB. Wanted at most 12 MB"), ({"image": "x"}, "No image"), ({}, "No image")],
)
def test_a_bad_upload_changes_the_status_only(page, sent, words):
    (only,) = page.on_upload(event(**sent), "cat", *SETTINGS)
    assert list(only) == [page.status]
    assert words in only[page.status]
    assert "error" in only[page.status]


def test_bad_labels_and_no_image_are_said(page):
    assert "Drop an image" in page.on_run(Shown(), "cat, dog", *SETTINGS)[page.status]
    *_, last = page.on_load(*SETTINGS)
    shown = last[page.shown]
    for labels, words in (
        ("cat,,dog", "label 2 is empty"), ("", "Type what"), ("cat", "got only"), ("a, a", "twice"),
        ("cat, " + "y" * 5000, "5005 characters long. Wanted at most 4000"),
        ("cat, " + "y" * 301, "is 301 characters long. Wanted at most 80"),
    ):  # fmt: skip
        answer = page.on_run(shown, labels, *SETTINGS)
        assert list(answer) == [page.status]
        assert words in answer[page.status]
    assert "needs a number" in page.on_slider(shown, None, *SETTINGS[1:])[page.status]
    assert "alpha: expected a number in [0, 1), got 1.5" in page.on_slider(shown, 1.5, *SETTINGS[1:])[page.status]
    assert "got 4" in page.on_slider(shown, *SETTINGS[:4], 4, 1, "none")[page.status]


def test_a_slider_and_a_click(page):
    *_, last = page.on_load(*SETTINGS)
    answer = page.on_slider(last[page.shown], 0.5, 0.5, 10, 0.0, 7, 1, "none")
    config = answer[page.shown].config
    assert (config.alpha, config.beta, config.steps, config.temperature, config.window) == (0.5, 0.5, 10, 1.0, 7)
    clicked = page.on_click(event(index=[719, 479]), answer[page.shown])
    assert clicked[page.shown].point == pytest.approx((192, 128), abs=0.2)
    assert "row 48, column 72 of 48 × 72" in clicked[page.rows_text]
    # tokens are 10 of the drawn image's pixels wide: a click belongs to the one it is in, to the pixel
    for x, column in ((139, 14), (140, 15), (142, 15), (149, 15), (150, 16)):
        clicked = page.on_click(event(index=[x, 5]), answer[page.shown])
        assert f"row 1, column {column} of" in clicked[page.rows_text]
    assert "legend" in page.on_click(event(index=[10, 500]), answer[page.shown])[page.rows_text]


def test_what_is_shown_is_each_in_its_place(page):
    """CLIP's overlay and the walk's, and the three rows, are alike enough to be mistaken for one another."""
    *_, last = page.on_load(*SETTINGS)
    answer = page.on_slider(last[page.shown], 0.8, 0.5, 20, -2.3, 11, 1, "none")
    shown, bench = answer[page.shown], page.workbench
    outcome = bench.segment(shown.key, shown.labels, shown.config)
    wanted = {page.before: outcome.before.overlay, page.after: outcome.after.overlay}
    rows = bench.rows(shown.key, shown.point, shown.config)
    for place, row in zip(page.rows, (rows.local_row, rows.global_row, rows.mixed_row), strict=True):
        wanted[place] = draw_row(row, rows.token, bench.opened(shown.key).image)
    assert len({image.tobytes() for image in wanted.values()}) == 5
    for place, image in wanted.items():
        assert answer[place].tobytes() == image.tobytes()


def test_downloads_are_what_is_shown(page):
    *_, last = page.on_load(*SETTINGS)

    def content(kind: str) -> bytes:
        return base64.b64decode(page.download_maker(kind)(last[page.shown])["url"].split(",")[1])

    shown = last[page.shown]
    walked = page.workbench.segment(shown.key, shown.labels, shown.config).after.segmentation
    overlay, labels = (Image.open(io.BytesIO(content(kind))) for kind in ("overlay", "labels"))
    assert overlay.tobytes() == last[page.after].tobytes()
    assert (labels.mode, labels.tobytes()) == ("P", walked.indexed().tobytes())
    summary = json.loads(content("summary"))
    assert [row["label"] for row in summary["labels"]] == scenes()[0].labels.split(", ")
    assert summary["labels"] == walked.summary()["labels"]
    assert summary["config"]["alpha"] == 0.8


def test_an_image_let_go_of_is_said_when_it_is_asked_for(page):
    *_, last = page.on_load(*SETTINGS)
    for i in range(8):
        page.workbench.add(Image.new("RGB", (8, 8), (i, 0, 0)))
    assert "no longer held" in page.on_slider(last[page.shown], *SETTINGS)[page.status]
    assert "no longer held" in page.on_click(event(index=[1, 1]), last[page.shown])[page.status]
    with pytest.raises(gradio.Error, match="no longer held"):
        page.download_maker("overlay")(last[page.shown])


def test_memory_that_runs_out_is_said(page, monkeypatch):
    def run_out(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    *_, last = page.on_load(*SETTINGS)
    monkeypatch.setattr(page.workbench, "segment", run_out)
    assert "not enough memory for this image" in page.on_slider(last[page.shown], *SETTINGS)[page.status]


def test_no_endpoint_is_offered_to_programs(page):
    assert page.blocks.get_api_info()["named_endpoints"] == {}
    assert page.blocks.get_api_info()["unnamed_endpoints"] == {}


def test_nothing_from_outside_becomes_markup():
    assert "<img" not in snippets.head_bars([HeadWeight("<img src=x>", 1, 0, 1.0, 0.5)])
    assert "<b>" not in snippets.status("error", "<b>", "<b>")


def test_of_very_many_heads_the_heaviest_are_shown():
    heads = [HeadWeight("layer", 1, i, 1 / 100 + i / 1e6, 0.5) for i in range(100)]
    drawn = snippets.head_bars(heads)
    assert "The 48 heaviest of 100 heads" in drawn
    assert "head 100<" in drawn
    assert "head 1<" not in drawn


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "expected a number from 1 to 65535"),
        (["--preset", "nothing"], "got 'nothing'"),
        (["--dtype", "float64"], "got 'float64'"),
        (["--device", "nope"], "got 'nope'"),
        (["--colour"], "unrecognized arguments"),
        (["--allow-host", "https://page.example/"], "expected a host's name or address"),
        (["--allow-host", "page.example:80"], "expected a host's name or address"),
        (["--allow-host", "["], "expected a host's name or address"),
    ],
)
def test_wrong_options(arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert words in capsys.readouterr().err
