"""The first image, made ready while the engine's processes start.

With its first image vLLM's renderer loads a processor, with copies of the tokenizer in it, and in each thread that has
an image meanwhile again: `benchmarks/first_image.py` says how long that takes. The server's own process has nothing to
do while the engine starts, so it is done then. Newer vLLMs do the same by themselves. Knows no prompt and no weights.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from PIL import Image
from vllm.v1.engine import async_llm

from mmr1_rollout_server.engine_failures import one_line

BY_ITSELF = "start_mm_warmup_in_background"  # vLLM's renderers that have this call it while the engine starts
_SIDE = 224  # pixels
_LATEST_SECONDS = 120.0  # that a started engine waits for it: several times what was measured on two cores

log = structlog.get_logger()


@contextmanager
def first_image_beside(options: dict[str, Any]) -> Iterator[None]:
    """The engine is started inside, and when this ends an image has been made ready. If not, the first prompts' are.

    Args:
        options: how the run's images are prepared, as prompts say it.
    """
    original = getattr(async_llm, "renderer_from_config", None)
    # What is forked while a thread is at work has locks that nobody holds.
    if original is None or os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") != "spawn":
        yield
        return
    under_way: list[_FirstImage] = []

    def renderer_from_config(*arguments: Any, **named: Any) -> Any:
        renderer = original(*arguments, **named)
        if not hasattr(renderer, BY_ITSELF):
            under_way.append(_FirstImage(renderer, options))
            under_way[-1].start()
        return renderer

    async_llm.renderer_from_config = renderer_from_config
    try:
        yield
    finally:
        async_llm.renderer_from_config = original
    for image in under_way:  # of an engine that has not started nobody waits for it
        image.join(_LATEST_SECONDS)
        if reason := image.failure():
            log.warning("no image made ready before the first prompt", reason=reason)


class _FirstImage(threading.Thread):
    """A daemon: neither a start that fails nor a process that is told to stop waits for it."""

    def __init__(self, renderer: Any, options: dict[str, Any]) -> None:
        super().__init__(name="first image", daemon=True)
        self._renderer, self._options = renderer, options
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            make_ready(self._renderer, self._options)
        except Exception as error:  # of another library, about an image of ours: told by `failure`, stops no start
            self._error = error

    def failure(self) -> str | None:
        """In one line; None: it is ready."""
        if self.is_alive():
            return f"it takes more than {_LATEST_SECONDS:.0f} s"
        return one_line(self._error) if self._error else None


def make_ready(renderer: Any, options: dict[str, Any]) -> None:
    """Make tokens and pixels of a prompt with a gray image. Of a model without images: nothing."""
    if renderer.mm_processor is None:
        return
    request = {
        "prompt": renderer.mm_processor.dummy_inputs.get_dummy_text({"image": 1}),
        "multi_modal_data": {"image": [Image.new("RGB", (_SIDE, _SIDE), "gray")]},
        **({"mm_processor_kwargs": options} if options else {}),
    }
    renderer.render_cmpl([request])
