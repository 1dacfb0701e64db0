"""The latest few results of something that is costly to compute."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Results by what they depend on; of too many the one that was not asked for the longest is let go.

    Any number of threads may ask; each result is made once, while the others wait.

    Not ``lru_cache`` on a bound method: that holds the object which holds it, and such a cycle of tensors lives until
    the garbage collector looks for it, which it does by the number of objects and not by their size.

    Args:
        most: How many are kept.

    Example:
        >>> kept = Kept(1)
        >>> kept.get("a", lambda: 1), kept.get("a", lambda: 2), kept.get("b", lambda: 3), kept.get("a", lambda: 4)
        (1, 1, 3, 4)
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._results: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned under this key, or returns now."""
        with self._lock:
            if key not in self._results:
                made = make()
                while len(self._results) >= self._most:
                    self._results.popitem(last=False)
                self._results[key] = made
            self._results.move_to_end(key)
            return self._results[key]
