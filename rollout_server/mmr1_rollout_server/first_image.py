"""The first image, made ready while the engine's processes start.

With its first image vLLM's renderer loads a processor, with copies of the tokenizer in it. For one of 150,000 words
that takes 12 s, and in each thread that has an image meanwhile again: the four of a run's first prompts took 45. The
server's process has nothing to do while the engine starts, so it is done then. Newer vLLMs do the same by themselves.
Knows no prompt and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import structlog
from PIL import Image
from vllm.v1.engine import async_llm

from mmr1_rollout_server.engine_failures import one_line

_SIDE = 224  # pixels: above what any family needs at least

log = structlog.get_logger()


@contextmanager
def first_image_beside(options: dict[str, Any]) -> Iterator[None]:
    """The engine is started inside, and when this ends an image has been made ready. If not, the first prompts' are.

    Args:
        options: how the run's images are prepared, as prompts say it.
    """
    original, made_ready = async_llm.renderer_from_config, list[Future[None]]()
    with ThreadPoolExecutor(1, thread_name_prefix="first image") as beside:

        def renderer_from_config(*arguments: Any, **named: Any) -> Any:
            renderer = original(*arguments, **named)
            if not hasattr(renderer, "start_mm_warmup_in_background"):
                made_ready.append(beside.submit(make_ready, renderer, options))
            return renderer

        async_llm.renderer_from_config = renderer_from_config
        try:
            yield
        finally:
            async_llm.renderer_from_config = original
    for done in made_ready:
        if error := done.exception():
            log.warning("no image made ready before the first prompt", reason=one_line(error))


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
