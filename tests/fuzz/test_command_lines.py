"""Random command lines: an exit code that is documented, one line for each fault, and files that are whole."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of the hub's libraries is imported

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz.judging import FUZZ
from tests.segmentation.tiny_checkpoints import make_clip, make_stable_diffusion

from nerve_kernels import cli
from nerve_kernels.segmentation import NerveConfig, NervePipeline

LABELS = (
    "cat",
    "dog|puppy",
    "grass",
    "background",
    "sky|blue sky",
    "🐈",
    "👩‍👩‍👧‍👦|family",
    "חתול",
    "قطة|كلب",
    "猫",
    "é",
    "e\u0301",
)
ODD_LABELS = (
    "",
    " ",
    "|",
    "a|",
    ",",
    "cat",
    "CAT",
    "\udcff",
    "\x1b[31m",
    "\u202eevil",
    "a" * 500,
    "0",
    "-1",
    "\u200b",
    "\t",
)
ODD_VALUES = ("", " ", "-1", "0", "1", "2", "3", "7", "0.5", "1.5", "1e400", "nan", "inf", "-inf", "1e-320", "x",
              "é", "9" * 5000, "99999999999999999999", "[]", "*", "/", "..", "\udcff", "--", "1,2",
              "1,,2")  # fmt: skip
OPTIONS = {
    "--alpha": ("0", "0.5", "0.99"),
    "--beta": ("0", "0.5", "1"),
    "--steps": ("0", "1", "5"),
    "--tolerance": ("0.5", "0.01"),
    "--temperature": ("0.1", "5"),
    "--criterion": ("entropy", "information", "uniform"),
    "--keep": ("1", "2"),
    "--window": ("1", "3", "5"),
    "--cells": ("1", "2"),
    "--timesteps": ("100", "50, 100"),
    "--layers": ("latent/1", "up_blocks.*", "latent/1, latent/2"),
    "--templates": ("photo", "name"),
    "--seed-mode": ("cosine", "cross_attention"),
    "--noise-seed": ("0", "7"),
    "--background": ("default", "sky, wall"),
    "--threshold": ("0", "0.3", "1"),
    "--backend": ("eager", "cpp"),
    "--size": ("32", "48"),
    "--clip-size": ("32", "40"),
    "--device": ("cpu",),
    "--dtype": ("float32",),
    "--preset": ("embedded",),
    "--config": (),
    "--no-such-option": (),
}
FLAGS = ("--side-by-side", "--quiet", "--json", "--explain", "--no-walk", "--walk", "--version", "--help")
# Right in principle, and far too much work for a test.
COSTLY = {"--steps": ("9" * 18,), "--size": ("8192",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of every kind, good and bad, and labels beside some of them."""
    folder = tmp_path_factory.mktemp("fuzz")
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    colours.save(folder / "plain.png")
    colours.convert("CMYK").save(folder / "print.jpg")
    colours.convert("LA").save(folder / "clear.png")
    Image.fromarray(random.integers(0, 2**16, (9, 14)).astype(np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(folder / "turned.jpg", exif=exif)
    colours.save(folder / "moving.gif", save_all=True, append_images=[colours.rotate(90)])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("L", (20_000, 10)).save(folder / "long.png")
    Image.new("L", (3, 900)).save(folder / "tall 🐈 חתול.png")
    (folder / "half.png").write_bytes((folder / "plain.png").read_bytes()[:500])
    (folder / "text.jpg").write_text("no image")
    (folder / "huge.ppm").write_bytes(b"P6 100000 100000 255\n")
    (folder / "empty.png").touch()
    (folder / "bare").mkdir()
    (folder / "named").mkdir()
    colours.save(folder / "named" / "a.png")
    (folder / "named" / "labels.txt").write_text("cat\ndog")
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever models are asked for are tiny ones, loaded once; settings, device and dtype are checked as ever."""
    from nerve_kernels.cli.options import NervePipeline as loaded
    from nerve_kernels.segmentation.loading import choose_device, choose_dtype

    models = tmp_path_factory.mktemp("models")
    make_stable_diffusion(models / "diffusion")
    make_clip(models / "clip")
    made = NervePipeline.from_pretrained(diffusion=models / "diffusion", clip=models / "clip", device="cpu")
    tiny = {"diffusion_size": 32, "clip_size": 32, "clip_window": None, "clip_stride": 8, "templates": "name",
            "window": 3, "steps": 3, "timesteps": (100,), "layers": ("latent/1",)}  # fmt: skip
    embedded = NerveConfig().replace(**tiny)

    def from_pretrained(*, device: Any, dtype: Any, config: NerveConfig, **sources: Any) -> NervePipeline:
        choose_dtype(dtype, choose_device(device))
        return NervePipeline(attention=made.attention, text_image=made.text_image, config=config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded, "from_pretrained", from_pretrained)
        patch.setattr("nerve_kernels.segmentation.presets.Preset.config", embedded)
        yield


def run(arguments: list[str]) -> tuple[int, bytes, str]:
    """Exit code, standard output, standard error."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    out.flush()
    err.flush()
    return int(leaving.value.code or 0), out.buffer.getvalue(), err.buffer.getvalue().decode()


def judge(folder: Path, arguments: list[str]) -> int:
    """Run a command line in an empty output folder and look at everything that it leaves."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    code, out, err = run([*arguments, "--out", str(results)])
    assert code in (0, 1, 2), (code, err)
    assert "Traceback" not in err
    if code == 2:
        assert out == b""
        assert len(err.strip().splitlines()) == 1
        assert err.startswith("nerve-segment: ")
        assert not results.exists() or not any(results.iterdir())
        return code
    if code == 1:
        assert err.strip()
    for path in results.iterdir() if results.exists() else ():
        assert not path.name.startswith(".")
        if path.suffix == ".json":
            summary = json.loads(path.read_text())
            assert sum(row["area_pixels"] for row in summary["labels"]) + summary["unlabelled_pixels"] == (
                summary["width"] * summary["height"]
            )
        else:
            with Image.open(path) as image:
                image.load()
    if "--json" in arguments and not {"--help", "--version"} & set(arguments):
        for line in out.decode().splitlines():
            assert {"summary", "error"} & set(json.loads(line))
    return code


@st.composite
def command_lines(draw: st.DrawFn, folder: Path) -> list[str]:
    """Images, labels and options; most right, some wrong."""
    names = [
        *(path.name for path in folder.iterdir() if path.name != "results"),
        "absent.png",
        "*.gif",
        "bare/*",
        "[",
        "",
    ]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    arguments = [f"{folder}/{name}" for name in chosen]
    if draw(st.integers(0, 9)):
        pool = (
            st.sampled_from(LABELS)
            if draw(st.integers(0, 2))
            else st.sampled_from(LABELS + ODD_LABELS) | st.text(max_size=9)
        )
        words = draw(
            st.lists(pool, min_size=draw(st.sampled_from([2, 2, 2, 0])), max_size=6, unique=draw(st.booleans()))
        )
        arguments.append(f"--labels={', '.join(words)}")
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=4, unique=draw(st.booleans()))):
        odd = draw(st.integers(0, 4)) == 0 or not OPTIONS[name]
        value = draw(st.sampled_from(ODD_VALUES) | st.text(max_size=6)) if odd else draw(st.sampled_from(OPTIONS[name]))
        if value not in COSTLY.get(name, ()):
            arguments.append(f"{name}={value}")
    return [*arguments, *draw(st.lists(st.sampled_from(FLAGS), max_size=2))]


@FUZZ
@given(st.data())
def test_any_command_line(folder, data):
    judge(folder, [argument.replace("\0", "") for argument in data.draw(command_lines(folder))])  # argv cannot hold it


@FUZZ
@given(
    st.lists(st.sampled_from(LABELS + ODD_LABELS) | st.text(max_size=12), max_size=12),
    st.sampled_from([", ", "\n", ",", "|"]),
)
def test_any_labels(folder, words, separator):
    judge(folder, [f"{folder}/plain.png", "--quiet", f"--labels={separator.join(words)}".replace("\0", "")])


@pytest.mark.parametrize("count", [2, 255, 256, 1000])
def test_many_labels(folder, count):
    words = ", ".join(f"thing {number}" for number in range(count))
    assert judge(folder, [f"{folder}/plain.png", "--quiet", f"--labels={words}"]) == 0
    summary = json.loads((folder / "results" / "plain.json").read_text())
    assert len(summary["labels"]) == count


@pytest.mark.parametrize(("name", "size"), [("dot.png", (1, 1)), ("long.png", (20_000, 10)), ("turned.jpg", (20, 30))])
def test_images_of_every_shape_are_segmented(folder, name, size):
    options = ("--quiet", "--labels=cat, dog", "--window=11", "--cells=2")
    assert judge(folder, [f"{folder}/{name}", *options[:2]]) == 0
    with Image.open(folder / "results" / f"{name.partition('.')[0]}_labels.png") as labels:
        assert labels.size == size


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "default"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
fields = st.sampled_from([*NerveConfig.__dataclass_fields__, "aplha", ""])
settings_files = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(fields, json_values, max_size=3).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 100_000, b'{"alpha": ' + b"1" * 5000 + b"}", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"NaN"]),
)


@FUZZ
@given(settings_files)
def test_any_settings_file(folder, content):
    file = folder / "named" / "settings"
    file.write_bytes(content)
    code, _, err = run(["--config", str(file), "--save-config", str(folder / "named" / "again")])
    assert code in (0, 2), err
    if code == 2:
        assert len(err.splitlines()) == 1
        return
    saved = NerveConfig.load(folder / "named" / "again")
    assert NerveConfig.from_json(saved.to_json()) == saved == NerveConfig.load(file)


label_files = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps({"images": [{"file": "plain.png", "labels": value}]}).encode()),
    json_values.map(lambda value: json.dumps({"images": value}).encode()),
    st.sampled_from([b"[" * 100_000, b"cat\r\ndog\r\n", b"\xef\xbb\xbfcat, dog"]),
)


@FUZZ
@given(label_files, st.sampled_from(["labels.json", "labels.txt", "plain.txt"]))
def test_any_labels_beside_an_image(folder, content, name):
    beside = folder / "beside"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copy(folder / "plain.png", beside)
    (beside / name).write_bytes(content)
    judge(beside, [f"{beside}/plain.png", "--quiet"])
