"""Without a network: one short question, then what is in the cache, or a sentence."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nerve_kernels.segmentation.checkpoints import hub
from nerve_kernels.segmentation.loading import ModelLoadError, recording_parts
from nerve_kernels.segmentation.text_image.clip import DenseClip

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
from nerve_kernels.segmentation.text_image.clip import DenseClip
from nerve_kernels.segmentation.loading import ModelLoadError, recording_parts
for name in ("absent/clip", "some/clip"):
    try:
        print(DenseClip.from_pretrained(name, device="cpu").native_size)
    except ModelLoadError as error:
        print(error)
"""


@pytest.fixture
def silent_hub():
    """A server on this machine that takes connections and never answers; its address, and the connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connections.append(listener.accept()[0])
            except OSError:  # closed
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in connections:
        connection.close()


def put_into_cache(checkpoint: Path, cache: Path) -> Path:
    """As the hub's library lays out what it has fetched."""
    model = cache / "models--some--clip"
    shutil.copytree(checkpoint, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return model


def load_from(address: str, cache: Path) -> str:
    """Load CLIP from the hub at an address, in a process of its own: the hub's library reads these when imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(cache)}
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(proxy, None)
        environment.pop(proxy.upper(), None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_hub_that_does_not_answer_is_asked_once_and_named(silent_hub, tmp_path, clip_folder, clip):
    address, connections = silent_hub
    put_into_cache(clip_folder, tmp_path / "hub")
    absent, cached = load_from(address, tmp_path).splitlines()
    assert absent == (
        f"clip: cannot load absent/clip from the Hugging Face hub: {address} cannot be reached, and the model is not "
        "in the cache here. Check the name and the connection, give a folder that holds the checkpoint, or use the "
        "preset 'embedded', which needs neither."
    )
    assert cached == str(clip.native_size)
    assert len(connections) == 1
    assert hub.REACH_SECONDS <= 8  # with what comes before and after, below 10


def test_the_answer_is_remembered_for_a_minute(monkeypatch):
    from huggingface_hub import constants

    answers = iter([False, True])
    moment = [0.0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_last_answer", None)
    monkeypatch.setattr(hub, "_answers", lambda endpoint: next(answers))
    monkeypatch.setattr(hub.time, "monotonic", lambda: moment[0])
    assert [hub.why_unreachable(), hub.why_unreachable()] == [f"{constants.ENDPOINT} cannot be reached"] * 2
    moment[0] = hub.REMEMBERED_SECONDS + 1
    assert hub.why_unreachable() is None


def test_an_incomplete_model_in_the_cache_is_told_from_none(monkeypatch, tmp_path, clip_folder):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="HF_HUB_OFFLINE is set, and the model is not in the cache here"):
        DenseClip.from_pretrained("some/clip", device="cpu")
    model = put_into_cache(clip_folder, tmp_path)
    (model / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="HF_HUB_OFFLINE is set, and the model is not complete in the cache here"):
        DenseClip.from_pretrained("some/clip", device="cpu")


def test_a_revision_is_a_commit_of_the_cache_and_is_noted(monkeypatch, tmp_path, clip_folder, clip):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = put_into_cache(clip_folder, tmp_path)
    (model / "refs" / "main").write_text("f" * 40)  # has moved on, to what was not fetched
    with pytest.raises(ModelLoadError, match="the model is not in the cache here"):
        DenseClip.from_pretrained("some/clip", device="cpu")
    with recording_parts() as parts:
        assert DenseClip.from_pretrained(f"some/clip@{COMMIT}", device="cpu").fingerprint() == clip.fingerprint()
    assert {(part.source, part.revision) for part in parts} == {(f"some/clip@{COMMIT}", COMMIT)}
    assert parts[0].files == ("config.json", "model.safetensors")
    (model / "refs" / "v1").write_text(COMMIT)
    assert hub.cached_folder("some/clip@v1") == model / "snapshots" / COMMIT
    assert hub.cached_folder("some/clip@v2") is None


def test_a_gated_model_is_named_with_its_address(monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*arguments, **options):
        answer = httpx.Response(403, request=httpx.Request("HEAD", "https://huggingface.co/some/gated"))
        raise GatedRepoError("403 Client Error", response=answer)

    monkeypatch.setattr(hub, "why_unreachable", lambda: None)
    monkeypatch.setattr(hub, "find_file", refuse)
    with pytest.raises(ModelLoadError) as refused:
        DenseClip.from_pretrained("some/gated@v1", device="cpu")
    assert "it is gated: accept its terms at https://huggingface.co/some/gated and log in with `hf auth login`." in str(
        refused.value
    )
