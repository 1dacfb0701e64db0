"""``s3://`` against moto's server: images are read from it and rows written to it, by a run on Ray."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")
pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors")

import pyarrow as pa
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer
from tests.bulk.test_kills import ray_starts

from nerve_kernels.bulk.destination import Destination
from nerve_kernels.bulk.sources import _filesystem, find_sources


@pytest.fixture
def bucket(monkeypatch):
    """An empty one, which the processes of a run find too."""
    running = ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "DEFAULT_REGION": "us-east-1", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    _filesystem.cache_clear()
    yield lambda key, content: client.put_object(Bucket="photos", Key=key, Body=content)
    _filesystem.cache_clear()
    running.stop()


@pytest.mark.slow
def test_images_are_read_from_s3_and_rows_written_to_it(bucket, monkeypatch):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format="PNG")
    for name in ("a b.png", "deep/c.png", "deep/d.png"):
        bucket(f"in/{name}", stream.getvalue())
    bucket("in/broken.png", b"no image")
    bucket("in/notes.txt", b"")
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [stream.getvalue()] * 3}), sink)
    bucket("in/rows.parquet", sink.getvalue())
    root = "s3://photos/in"
    ids = [f"{root}/{name}" for name in ("a b.png", "broken.png", "deep/c.png", "deep/d.png")]
    ids += [f"{root}/rows.parquet/{row}" for row in range(3)]
    assert [one.id for one in find_sources([root])] == ids

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "tests.bulk.stub_run", root, "s3://photos/out/run", "0", "1", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode and not ray_starts():
        pytest.skip("Ray itself does not start on this machine")
    assert done.returncode == 0, done.stderr
    destination = Destination("s3://photos/out/run")
    rows = destination.table().to_table().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == sorted(ids)
    assert {row["id"]: row["error"] for row in rows if row["error"]} == {ids[1]: f"{ids[1]}: not an image"}
    assert destination.finished() == len(ids)
