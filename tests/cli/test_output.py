"""What the command says in each of its modes, and what it keeps."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tests.cli.command_line import run, run_main, written

import nerve_kernels as nk
from nerve_kernels.segmentation import NerveConfig


def test_explain_says_what_ran_on_which_backend_and_how_long(models, images, tmp_path, capsys):
    arguments = (images / "wide.png", "-l", "cat, dog", "-o", tmp_path / "out", *models, "--explain")
    for backend in ("eager", "cpp"):
        if backend not in nk.available_backends():
            continue
        code, out, err = run_main(capsys, *arguments, "--backend", backend)
        assert code == 0
        assert out.splitlines() == [str(tmp_path / "out" / "wide_overlay.png")]
        ran = dict(re.findall(r"(\w+_\w+): (eager|cpp)", err))
        names = ("attention_statistics", "fuse_attention_maps", "random_walk", "best_labels")
        assert ran == dict.fromkeys(names, backend)
        seconds = re.findall(r"^  ([a-zA-Z, ]+?) +(\d+\.\d{3}) s", err, flags=re.MULTILINE)
        assert [name for name, _ in seconds] == [
            "read the image",
            "CLIP, image",
            "Stable Diffusion",
            "affinity",
            "CLIP, words",
            "seeds",
            "random walk",
            "labels of pixels",
            "write",
        ]
        total = float(re.search(r"wide\.png: (\d+\.\d{3}) s", err)[1])
        assert total == pytest.approx(sum(float(value) for _, value in seconds), abs=0.005 + 1e-9)


def test_without_explain_no_times(models, images, tmp_path, capsys):
    _, _, err = run_main(capsys, images / "wide.png", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert "random_walk" not in err


def test_json_is_a_line_for_each_image(models, images, tmp_path, capsys):
    (images / "broken.png").write_text("no image")
    code, out, err = run_main(
        capsys, images, tmp_path / "absent", "-l", "cat, dog", "-o", tmp_path / "out", *models, "--json", "--quiet"
    )
    assert code == 1
    absent, broken, tall, wide = (json.loads(line) for line in out.splitlines())
    assert absent == {"picture": None, "error": f"{tmp_path / 'absent'}: no such file or folder"}
    assert broken == {"picture": str(images / "broken.png"), "error": f"{images / 'broken.png'}: not an image"}
    assert err.splitlines() == [absent["error"], broken["error"]]  # the same lines, and no progress bar
    assert (tall["picture"], wide["picture"]) == (str(images / "tall.jpg"), str(images / "wide.png"))
    assert wide["summary"] == json.loads((tmp_path / "out" / "wide.json").read_text())
    assert sorted(Path(path).name for path in wide["files"].values()) == [
        "wide.json",
        "wide_labels.png",
        "wide_overlay.png",
    ]
    assert "stages" not in wide


def test_json_holds_the_stages_where_they_are_asked_for(models, images, tmp_path, capsys):
    options = ("--json", "--quiet", "--explain", "--backend", "eager")
    code, out, err = run_main(capsys, images / "wide.png", "-l", "cat, dog", "-o", tmp_path / "out", *models, *options)
    assert (code, err) == (0, "")
    entry = json.loads(out)
    assert entry["models"] == "torch on cpu, float32"
    parts = {part["argument"]: part for part in entry["checkpoints"]}
    assert (parts["clip"]["source"], parts["clip"]["revision"]) == (models[3], None)
    assert len(parts) == len(entry["checkpoints"]) == 2
    assert {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"} < set(parts["diffusion"]["files"])
    walk = next(phase for phase in entry["stages"] if phase["stage"] == "random walk")
    assert walk["operators"] == {"random_walk": "eager"}
    assert walk["seconds"] > 0


def test_quiet_says_nothing_but_errors(models, images, tmp_path, capsys):
    arguments = ("-l", "cat, dog", "-o", tmp_path / "out", *models, "--quiet")
    assert run_main(capsys, images / "wide.png", *arguments) == (0, "", "")
    assert "wide.json" in written(tmp_path / "out")
    code, out, err = run_main(capsys, images / "wide.png", tmp_path / "absent", *arguments)
    assert (code, out) == (1, "")
    assert err == f"{tmp_path / 'absent'}: no such file or folder\n"


def test_saved_settings_come_back(images, tmp_path, monkeypatch):
    from nerve_kernels.cli import segment_command as command

    reached: list[NerveConfig] = []

    def stop(*arguments: object) -> None:
        reached.append(arguments[-1])  # type: ignore[arg-type]
        raise typer.Exit(0)

    monkeypatch.setattr(command, "load", stop)
    file = tmp_path / "kept" / "mine.json"
    options = ("--preset", "sd15-clip-l14", "--alpha", 0.25, "--tolerance", 0.125, "--layers", "64, up_blocks.*")
    saved = run(*options, "--background", "sky, wall", "--save-config", file)  # needs no image
    assert (saved.exit_code, saved.output) == (0, "")
    assert run(images / "wide.png", "-l", "cat, dog", "--config", file).exit_code == 0
    expected = NerveConfig.load(file)
    assert reached == [expected]
    assert (expected.alpha, expected.steps, expected.tolerance) == (0.25, None, 0.125)
    assert expected.background_words == ("sky", "wall")
    # with an image too, and what --config brings is written again unchanged
    again = tmp_path / "again.json"
    arguments = (images / "wide.png", "-l", "cat, dog", "--config", file, "--save-config", again)
    assert run(*arguments).exit_code == 0
    assert again.read_bytes() == file.read_bytes()
    assert dataclasses.asdict(reached[-1]) == dataclasses.asdict(expected)


def test_settings_that_cannot_be_saved(tmp_path, capsys):
    (tmp_path / "file").touch()
    code, _, err = run_main(capsys, "--save-config", tmp_path / "file" / "mine.json")
    assert code == 2
    assert err.startswith("nerve-segment: ")
    assert "--save-config: cannot write" in err
    assert err.count("\n") == 1


def test_version(capsys):
    assert run_main(capsys, "--version") == (0, f"nerve-segment {nk.__version__}\n", "")


def examples() -> list[str]:
    text = subprocess.run(
        [sys.executable, "-m", "nerve_kernels.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    ).stdout
    assert "Exit codes" in text
    return [line.strip() for line in text.splitlines() if line.startswith("   nerve-segment ")]


def test_every_example_of_the_help_is_accepted(tmp_path, monkeypatch):
    from nerve_kernels.cli import segment_command as command

    def stop(*arguments: object) -> None:
        raise typer.Exit(0)

    monkeypatch.setattr(command, "load", stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("park.jpg", "photos/a.jpg"):
        shutil.copy(Path(nk.__file__).parent / "segmentation/embedded/demo/scene_noto_1.png", tmp_path / name)
    (tmp_path / "photos" / "labels.txt").write_text("cat, dog")
    found = examples()
    assert len(found) >= 8
    for example in found:
        result = run(*shlex.split(example)[1:])
        assert result.exit_code == 0, (example, result.output)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nerve-segment --pres", {"--preset"}),
        ("nerve-segment --preset sd15", {"sd15-clip-b16", "sd15-clip-b16-fast", "sd15-clip-l14"}),
        ("nerve-segment --criterion en", {"entropy"}),
        ("nerve-segment --backend c", {"cpp", "cuda"}),
    ],
)
def test_options_and_their_values_are_completed(line, offered, monkeypatch, capsys):
    """What the shell's script asks the command, as it asks it."""
    monkeypatch.setenv("_NERVE_SEGMENT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    code, out, err = run_main(capsys)
    assert (code, err) == (0, "")
    assert set(out.split()) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_completion(tmp_path):
    program = tmp_path / "nerve-segment"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nerve_kernels.cli "$@"\n')
    program.chmod(0o755)
    script = """
eval "$(_NERVE_SEGMENT_COMPLETE=source_bash nerve-segment)"
complete -p nerve-segment > /dev/null || exit 1
COMP_WORDS=(nerve-segment --preset sd15); COMP_CWORD=2
_nerve_segment_completion nerve-segment
printf '%s\n' "${COMPREPLY[@]}"
"""
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"sd15-clip-b16", "sd15-clip-b16-fast", "sd15-clip-l14"}
