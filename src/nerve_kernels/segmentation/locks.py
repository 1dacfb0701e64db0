"""One thread at a time in a model on which hooks are set: a hook is called in every thread that runs the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

_locks: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def alone_in(model: torch.nn.Module) -> Iterator[None]:
    """Wait until no other thread is in a block of this for the same model; one thread may nest them."""
    with _making:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield
