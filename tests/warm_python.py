"""Python processes that begin with the libraries imported: forked from one that has imported them, which takes seconds.

Such a process has standard streams, environment, working directory and signals of its own, and ends as Python ends,
with its exit code. What happens while the libraries are imported is not seen in it: for that, start a process.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PRELOADED = (
    "nerve_kernels.cli.segment_command",
    "nerve_kernels.segmentation.attention.diffusion",
    "nerve_kernels.segmentation.text_image.clip",
    "diffusers.AutoencoderKL",
    "diffusers.DDPMScheduler",
    "diffusers.UNet2DConditionModel",
    "transformers.CLIPModel",
    "transformers.CLIPTextModel",
    "transformers.CLIPTokenizer",
    "transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil",
)
MAX_REQUEST = 2**17


class WarmProcess:
    """One forked process, used as a :class:`subprocess.Popen` is."""

    def __init__(self, status: IO[str], stdout: IO[Any] | None, stderr: IO[Any] | None) -> None:
        self._status = status
        self.pid = int(status.readline())
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        os.set_blocking(self._status.fileno(), False)
        try:
            return self._read_status()
        finally:
            os.set_blocking(self._status.fileno(), True)

    def wait(self) -> int:
        """The exit code, once it has ended; that of a signal is negative."""
        code = self._read_status()
        assert code is not None, "the process that forked it has ended"
        return code

    def _read_status(self) -> int | None:
        if self.returncode is None and (line := self._status.readline()):
            self.returncode = os.waitstatus_to_exitcode(int(line))
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[Any, Any]:
        """What it has left to say, and its end. One stream after the other: tests say less than a pipe holds."""
        said = tuple(stream.read() if stream is not None else None for stream in (self.stdout, self.stderr))
        self.wait()
        return said

    def close(self) -> None:
        for stream in (self._status, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


class WarmPython:
    """A process that has imported the libraries and is forked for each command; it ends with this object's `close`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        theirs.close()

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def start(
        self,
        code: str,
        arguments: Sequence[object] = (),
        *,
        stdout: IO[Any] | int | None = subprocess.PIPE,
        stderr: IO[Any] | int | None = subprocess.PIPE,
        text: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> WarmProcess:
        """Run Python code with arguments, as ``python -c CODE ARGUMENTS`` does.

        Args:
            stdout: ``subprocess.PIPE``, a file or its number, or None: closed.
            stderr: likewise.
            text: whether what it says is read as text.
            cwd: None: that of this process.
            env: None: that of this process.
        """
        ours: list[IO[Any] | None] = []
        theirs: list[int] = []
        opened: list[int] = []
        for target in (stdout, stderr):
            reader = None
            if target == subprocess.PIPE:
                receiving, sending = os.pipe()
                opened.append(sending)
                reader = open(receiving, "r" if text else "rb")  # noqa: PTH123, SIM115
                target = sending
            ours.append(reader)
            if target is not None:
                theirs.append(target if isinstance(target, int) else target.fileno())
        receiving, sending = os.pipe()
        opened.append(sending)
        request = {
            "code": code,
            "arguments": [os.fsdecode(part) if isinstance(part, (bytes, Path)) else str(part) for part in arguments],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "open": [number for number, target in ((1, stdout), (2, stderr)) if target is not None],
        }
        message = json.dumps(request).encode()
        assert len(message) < MAX_REQUEST
        socket.send_fds(self._socket, [message], [sending, *theirs])
        for number in opened:
            os.close(number)
        return WarmProcess(open(receiving), *ours)  # noqa: PTH123

    def run(self, code: str, arguments: Sequence[object] = (), **options: Any) -> subprocess.CompletedProcess[Any]:
        """:meth:`start`, and wait for its end."""
        process = self.start(code, arguments, **options)
        try:
            out, err = process.communicate()
            return subprocess.CompletedProcess([code, *arguments], process.wait(), out, err)
        finally:
            process.close()


def _serve(number: int) -> str:
    """Fork for each request, until nobody can ask any more. Returns in the forked process, with the code to run."""
    _preload()
    gc.freeze()  # collecting would copy what is shared
    asked = socket.socket(fileno=number)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what it forks waits for the rest by itself
    while True:
        message, files, _, _ = socket.recv_fds(asked, MAX_REQUEST, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked.close()
    status, *streams = files
    request = json.loads(message)
    child = os.fork()
    if child == 0:
        os.close(status)
        _take_on(request, streams)
        return str(request["code"])
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
        os.write(status, f"{child}\n".encode())
        os.write(status, f"{os.waitpid(child, 0)[1]}\n".encode())
    os._exit(0)


def _preload() -> None:
    import importlib

    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            getattr(importlib.import_module(module), attribute)


def _take_on(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Become the process that was asked for, up to its first line."""
    kept = [os.dup(stream) for stream in streams]  # above the numbers that they go to
    for number in (1, 2):
        os.close(number)
    for number, stream in zip(request["open"], kept, strict=True):
        os.dup2(stream, number)
    os.closerange(3, max(kept, default=3) + 1)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in a script's background ignores
    sys.argv[:] = ["-c", *request["arguments"]]
    sys.stdout = sys.__stdout__ = _stream(1, request, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, request, sys.stderr)  # type: ignore[misc]


def _stream(number: int, request: dict[str, Any], like: IO[str]) -> IO[str] | None:
    """A standard stream as Python makes it."""
    if number not in request["open"]:
        return None
    unbuffered = bool(request["environment"].get("PYTHONUNBUFFERED"))
    raw = open(number, "wb", buffering=0 if unbuffered else -1)  # noqa: SIM115 (open for as long as the process)
    return io.TextIOWrapper(
        raw, like.encoding, like.errors, line_buffering=number == 2 and not unbuffered, write_through=unbuffered
    )


if __name__ == "__main__":
    # outside of any function, so that the code runs, and Python ends, as in a process of its own
    _code = _serve(int(sys.argv[1]))
    exec(_code, {"__name__": "__main__", "__builtins__": __builtins__})
