"""When memory, disk or patience run out: one line that says what to do, and no half file."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.cli.command_line import run_main, written

import nerve_kernels as nk
from nerve_kernels.cli.memory import is_out_of_memory
from nerve_kernels.segmentation.output import files


def script(before: str = "") -> str:
    """The command, after some lines of Python."""
    return f"import sys\nfrom nerve_kernels import cli\n{before}\ncli.main(sys.argv[1:])"


def assert_whole(folder: Path) -> None:
    """Every file there can be read to its end, and there are no others."""
    for path in folder.iterdir():
        assert not path.name.startswith("."), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with Image.open(path) as image:
                image.load()


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert not is_out_of_memory(ValueError("out of memory"))
    if "cpp" in nk.available_backends():
        seeds = torch.ones(1, 1, 1).expand(1, 2**20, 2**40)
        affinity = nk.LocalAffinity(torch.ones(1, 2**20, 1), grid=(2**10, 2**10), window=1)
        with pytest.raises(RuntimeError) as caught:
            nk.random_walk(seeds, affinity, alpha=0.5, steps=1, backend="cpp")
        assert is_out_of_memory(caught.value)


LIMIT = """
import resource
from nerve_kernels.cli import segment_command as command
load = command.load
def load_then_limit(*arguments):
    pipeline = load(*arguments)
    from PIL import Image
    pipeline(Image.new("RGB", (64, 64)), "cat, dog").overlay()  # what is made once is made now
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + {megabytes} * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return pipeline
command.load = load_then_limit
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_out_of_memory_in_a_model_names_the_size_that_fits(warm_python, models, images, tmp_path):
    limit = LIMIT.format(megabytes=48)
    arguments = (images / "wide.png", "-l", "cat, dog", "-q", "-o", tmp_path / "out", *models)
    done = warm_python.run(script(limit), [*arguments, "--size", 512])
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    found = re.search(r"wide\.png: out of memory with --size 512; --size (\d+) fits here$", done.stderr.strip())
    assert found, done.stderr
    assert 16 <= int(found[1]) < 512
    assert written(tmp_path / "out") == []
    # and what it says is true
    again = warm_python.run(script(limit), [*arguments, "--size", found[1]])
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_out_of_memory_for_a_large_image_names_the_size_that_fits(warm_python, models, tmp_path):
    limit = LIMIT.format(megabytes=128)
    large = tmp_path / "large.png"
    Image.new("L", (4000, 2500)).save(large)
    options = ("-l", "cat, dog", "-q", "-o", tmp_path / "out", *models)
    done = warm_python.run(script(limit), [large, *options])
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    pattern = r"large\.png: out of memory for an image of 4000x2500 pixels; (\d+)x(\d+) fits here, so make it smaller$"
    found = re.search(pattern, done.stderr.strip())
    assert found, done.stderr
    smaller = tmp_path / "smaller.png"
    Image.new("L", (int(found[1]), int(found[2]))).save(smaller)
    again = warm_python.run(script(limit), [smaller, *options])
    assert (again.returncode, again.stderr) == (0, "")


def fail_with(number: int):
    def write(path, content):
        raise OSError(number, os.strerror(number), str(path))

    return write


def test_a_full_disk_is_one_line_and_the_rest_is_not_computed(models, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nerve_kernels.segmentation.result.write_atomic", fail_with(errno.ENOSPC))
    code, out, err = run_main(capsys, images, "-l", "cat, dog", "-q", "-o", tmp_path / "out", *models)
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{tmp_path / 'out' / 'tall_overlay.png'}: cannot be written: No space left on device",
        "stopped: 1 more could not be written either",
    ]


FILE_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_a_write_that_fails_half_way_leaves_nothing(warm_python, models, images, tmp_path):
    """A real failure in the middle of a file: the system refuses what goes past 4096 bytes."""
    arguments = [images, "-l", "cat, dog", "-q", "-o", tmp_path / "out", *models]
    done = warm_python.run(script(FILE_LIMIT.format(4096)), arguments)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'out' / f'{name}_overlay.png'}: cannot be written: File too large" for name in ("tall", "wide")
    ]
    assert written(tmp_path / "out") == []


def test_an_output_folder_that_cannot_be_written_to_is_refused_before_the_models_are_loaded(images, tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", Path("/proc/nerve")):
        code, out, err = run_main(capsys, images, "-l", "cat, dog", "-o", folder, "--diffusion", "/no", "--clip", "/no")
        assert (code, out) == (2, "")
        assert err.startswith(f"nerve-segment: --out: cannot write to {folder}: ") or "Invalid value" in err
        assert "choose another folder with --out" in err
        assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(images, tmp_path, capsys):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    code, _, err = run_main(capsys, images, "-l", "cat, dog", "-o", folder)
    assert code == 2
    assert f"--out: cannot write to {folder}: Permission denied" in err


def test_a_read_only_disk(models, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: fail_with(errno.EROFS)(dir, b""))
    code, _, err = run_main(capsys, images, "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert code == 2
    assert f"--out: cannot write to {tmp_path / 'out'}: Read-only file system; choose another folder" in err


def test_results_never_replace_what_was_given(models, images, capsys):
    Image.new("RGB", (8, 8)).save(images / "wide_labels.png")
    before = (images / "wide_labels.png").read_bytes()
    code, _, err = run_main(capsys, images, "-l", "cat, dog", "-o", images, *models)
    assert code == 2
    assert f"--out: {images / 'wide_labels.png'} was given and would be replaced; choose another folder" in err
    assert (images / "wide_labels.png").read_bytes() == before


def test_names_that_differ_by_a_second_suffix_do_not_replace_each_other(models, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("x.png", "x.png.jpg", ".png", f"{'n' * 240}.png"):
        Image.new("RGB", (16, 16)).save(folder / name, "PNG")
    given = [folder / name for name in os.listdir(folder)]  # noqa: PTH208
    code, out, err = run_main(capsys, *given, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert (code, out, err) == (0, "", "")
    assert sum(name.endswith("_overlay.png") for name in written(tmp_path / "out")) == 4


def test_names_that_are_not_text(warm_python, models, tmp_path):
    """Linux file names are bytes; those that are not UTF-8 must neither stop the command nor change on the way out."""
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)  # noqa: PTH102
    name = b"caf\xe9\x1b[31m.png"
    with open(folder + b"/" + name, "wb") as stream:  # noqa: PTH123
        Image.new("RGB", (16, 16)).save(stream, "PNG")
    arguments = [folder, "-l", "cat, dog", "-o", tmp_path / "out", "--explain", *models]
    done = warm_python.run(script(), arguments, text=False)
    assert done.returncode == 0, done.stderr
    stem = name.removesuffix(b".png")
    assert done.stdout == os.fsencode(tmp_path / "out") + b"/" + stem + b"_overlay.png\n"
    assert b"\x1b[31m" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
def test_standard_output_that_is_full_or_closed(warm_python, models, images, tmp_path, buffered):
    arguments = [images, "-l", "cat, dog", "-o", tmp_path / "out", *models]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = warm_python.run(script(), arguments, stdout=full, env=environment)
    assert done.returncode == 1
    assert "nerve-segment: cannot go on: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = warm_python.run(script(), arguments, stdout=writer, env=environment)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert_whole(tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
def test_the_exit_code_survives_when_errors_cannot_be_written(warm_python, tmp_path, buffered):
    arguments = [tmp_path / "absent.png", "-l", "cat, dog", "--no-such-option"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with open("/dev/full", "w") as full:  # noqa: PTH123
        assert warm_python.run(script(), arguments, stdout=full, stderr=full, env=environment).returncode == 2


def test_a_pipe_is_not_waited_for(models, tmp_path, capsys):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    code, _, err = run_main(capsys, pipe, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert (code, err) == (1, f"{pipe}: not a file\n")


def test_an_interrupt_between_images_leaves_whole_files(warm_python, models, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(400):
        Image.new("RGB", (32, 32)).save(folder / f"{number:03}.png")
    process = warm_python.start(script(), [folder, "-l", "cat, dog", "-q", "-o", tmp_path / "out", *models])
    while process.poll() is None and len(written(tmp_path / "out")) < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert (out, err.strip()) == ("", "nerve-segment: interrupted; the files written so far are whole")
    # one of the four may have been a file in the making, which the interrupt takes away
    assert 3 <= len(written(tmp_path / "out")) < 1200
    assert_whole(tmp_path / "out")


SLOW_WRITE = """
import os, pathlib, time
real = pathlib.Path.replace
def replace(self, target):
    print("writing", flush=True)
    time.sleep(1)
    return real(self, target)
pathlib.Path.replace = replace
"""


def test_an_interrupt_in_the_middle_of_a_write_waits_for_the_files_of_that_image(warm_python, models, images, tmp_path):
    arguments = [images, "-l", "cat, dog", "-q", "-o", tmp_path / "out", *models]
    process = warm_python.start(script(SLOW_WRITE), arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert len(written(tmp_path / "out")) == 1  # the temporary file, complete and not yet renamed
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.strip() == "nerve-segment: interrupted; the files written so far are whole"
    assert written(tmp_path / "out") == ["tall.json", "tall_labels.png", "tall_overlay.png"]
    assert_whole(tmp_path / "out")


def test_an_interrupt_in_the_middle_of_the_only_write_leaves_nothing_of_it(warm_python, models, images, tmp_path):
    arguments = [images / "wide.png", "-l", "cat, dog", "-q", "-o", tmp_path / "out", *models]
    process = warm_python.start(script(SLOW_WRITE.replace("sleep(1)", "sleep(60)")), arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert written(tmp_path / "out") == []


def test_a_fault_of_the_program_is_one_line_too(models, images, tmp_path, capsys, monkeypatch):
    def broken(self, *arguments: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr("nerve_kernels.segmentation.pipeline.NervePipeline.encode_all", broken)
    code, _, err = run_main(capsys, images, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert code == 3
    assert err.startswith("nerve-segment: a fault of this program, please report it: KeyError: 'no such thing' at ")
    assert re.search(r"cli/segmenting\.py:\d+$", err.strip())
    assert err.count("\n") == 1


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = files.write_atomic(tmp_path / "deep" / "x.txt", b"first")

    def full(self, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_atomic(target, b"second")
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"first"
    assert written(target.parent) == ["x.txt"]
