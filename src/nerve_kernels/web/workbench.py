"""What is behind the page: the models, the images last opened, and nothing of the page itself."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.pipeline import NervePipeline

from .limits import RefusedError, check_labels, check_settings
from .opened_image import HeadWeight, OpenedImage, Outcome, TokenRows

IMAGES_HELD = 8


@dataclass(frozen=True)
class ModelsState:
    """Whether the models are there, and if not, why."""

    state: Literal["loading", "ready", "failed"]
    words: str = ""


class Workbench:
    """Models and images of one running page; several visitors share it, one job at a time.

    Images are held in memory under the hash of their pixels, the latest ``IMAGES_HELD``; a visitor needs an
    image's key, which only who has the image can compute, to see anything of it.

    Args:
        load: makes the pipeline; called once, by :meth:`start_loading`.
    """

    def __init__(self, load: Callable[[], NervePipeline]) -> None:
        self._load = load
        self._models: Future[NervePipeline] = Future()
        self._images: OrderedDict[str, OpenedImage] = OrderedDict()
        self._holding = threading.Lock()
        self._working = threading.Lock()

    def start_loading(self) -> None:
        """Load the models in a thread of their own; returns at once."""
        threading.Thread(target=self._run_load, name="load-models", daemon=True).start()

    def _run_load(self) -> None:
        try:
            self._models.set_result(self._load())
        except BaseException as error:
            self._models.set_exception(error)

    def models_state(self, timeout: float = 0.0) -> ModelsState:
        """Wait up to `timeout` seconds for the models, then say how it stands."""
        try:
            error = self._models.exception(timeout)
        except TimeoutError:
            return ModelsState("loading")
        return ModelsState("ready") if error is None else ModelsState("failed", " ".join(str(error).split()))

    def add(self, image: Image.Image) -> str:
        """Hold an image; returns the key by which it is asked for."""
        content = f"{image.size}".encode() + image.tobytes()
        key = hashlib.sha256(content).hexdigest()
        with self._holding:
            self._images.setdefault(key, OpenedImage(self.pipeline, image))
            self._images.move_to_end(key)
            if len(self._images) > IMAGES_HELD:
                self._images.popitem(last=False)
        return key

    def opened(self, key: object) -> OpenedImage:
        """The image held under a key.

        Raises:
            RefusedError: none was chosen, or it has been let go.
        """
        if not isinstance(key, str) or not key:
            raise RefusedError("Drop an image or choose one of the scenes first.")
        with self._holding:
            if key not in self._images:
                raise RefusedError("This image is no longer held here. Please drop it again.")
            self._images.move_to_end(key)
            return self._images[key]

    def pipeline(self) -> NervePipeline:
        """The models, with the settings that the sliders start from.

        Raises:
            RefusedError: they are not there.
        """
        state = self.models_state()
        if state.state == "loading":
            raise RefusedError("The models are still loading. Try again in a moment.")
        if state.state == "failed":
            raise RefusedError(f"The models could not be loaded: {state.words}")
        return self._models.result()

    def segment(self, key: object, labels: object, config: NerveConfig) -> Outcome:
        """Segment a held image by words; see :meth:`OpenedImage.segment`."""
        words = check_labels(labels)
        check_settings(config)
        opened = self.opened(key)
        with self._working:
            return opened.segment(words, config)

    def rows(self, key: object, point: tuple[float, float], config: NerveConfig) -> TokenRows:
        """A token's row of S in a held image; see :meth:`OpenedImage.rows`."""
        check_settings(config)
        opened = self.opened(key)
        with self._working:
            return opened.rows(point, config)

    def head_weights(self, key: object, config: NerveConfig) -> list[HeadWeight]:
        """The heads' weights in a held image; see :meth:`OpenedImage.head_weights`."""
        opened = self.opened(key)
        with self._working:
            return opened.head_weights(config)
