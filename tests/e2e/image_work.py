"""One real engine that is asked for groups with images, as a program: where and how often each image is worked on.

It imports vllm, so it runs in a process of its own; `CountingExtension` runs in the engine's worker. The server around
the engine plays no part.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion, Sampling
from mmr1_rollout_server import engine as engine_module
from mmr1_rollout_server import engine_options, environment, first_image
from mmr1_rollout_server.weight_transfer import WorkerExtension
from tests.e2e.reference_policy import draw_images, image_prompt
from tests.models import small_config

NUM_GENERATIONS = 8
SLOW_SECONDS = 1.0  # that preparing one image is made to take
TICK_SECONDS = 0.01


class CountingExtension(WorkerExtension):
    """Counts the images that pass the vision tower."""

    def count_images(self) -> None:
        self.encoded: list[int] = []
        tower = self.model_runner.get_model().visual
        tower.register_forward_pre_hook(
            lambda _, arguments, named: self.encoded.append(len(named["grid_thw"])), with_kwargs=True
        )

    def images_encoded(self) -> int:
        return sum(self.encoded)


async def ask(engine: engine_module.Engine, images: ImageStore, which: range) -> list[Group]:
    """A group for each of these images, all at once."""
    sampling = Sampling(1.0, 8, ignore_eos=True, seed=7)
    prompts = [image_prompt(images, image, sampling, num_generations=NUM_GENERATIONS) for image in which]
    opened = [[images.open(image) for image in prompt.images] for prompt in prompts]
    ready = await asyncio.gather(*(engine.prepare(prompt, own) for prompt, own in zip(prompts, opened, strict=True)))
    return await asyncio.gather(*(engine.generate(each, PolicyVersion(1, 1)) for each in ready))


async def longest_silence(work: Any) -> float:
    """Seconds for which nothing else got its turn in this event loop until `work` was done."""
    task = asyncio.ensure_future(work)
    longest, last = 0.0, time.monotonic()
    while not task.done():
        await asyncio.sleep(TICK_SECONDS)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    await task
    return longest


def slowed(engine: engine_module.Engine) -> None:
    """Preparing an image takes at least SLOW_SECONDS from here on."""
    processor = engine._llm.renderer.mm_processor
    prepare = processor.apply

    def prepare_slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return prepare(*arguments, **named)

    processor.apply = prepare_slowly


def in_the_event_loop(engine: engine_module.Engine) -> None:
    """Images are prepared where the event loop runs, as vLLM 0.26 does with a prompt that is given as it is."""
    renderer = engine._llm.renderer

    async def render(prompts: Any) -> Any:
        return renderer.render_cmpl(prompts)

    renderer.render_cmpl_async = render


def as_vllm_026() -> list[str]:
    """Newer renderers load what they need for images by themselves. Returns the threads in which ours will be made."""
    from vllm.renderers.base import BaseRenderer

    first_image.BY_ITSELF = "nothing that a renderer has"
    BaseRenderer.start_mm_warmup_in_background = lambda self: None
    usual, threads = first_image.make_ready, list[str]()

    def make_ready(renderer: Any, options: dict[str, Any]) -> None:
        usual(renderer, options)
        threads.append(threading.current_thread().name)

    first_image.make_ready = make_ready
    return threads


async def loaded_after_the_first(engine: engine_module.Engine, images: ImageStore) -> list[int]:
    """How many processors the first image has vLLM's renderer load, and how many the first prompt with one after it."""
    from vllm.transformers_utils.processor import cached_get_processor

    cached_get_processor.cache_clear()
    await asyncio.to_thread(first_image.make_ready, engine._llm.renderer, engine._mm_processor_kwargs)
    by_first_image = cached_get_processor.cache_info().misses
    await ask(engine, images, range(5, 6))
    return [by_first_image, cached_get_processor.cache_info().misses - by_first_image]


async def work(engine: engine_module.Engine, images: ImageStore) -> dict[str, Any]:
    loaded = await loaded_after_the_first(engine, images)
    await engine._llm.collective_rpc("count_images")
    groups = await ask(engine, images, range(3))
    (encoded,) = await engine._llm.collective_rpc("images_encoded")
    slowed(engine)
    beside = await longest_silence(ask(engine, images, range(3, 4)))
    in_the_event_loop(engine)
    within = await longest_silence(ask(engine, images, range(4, 5)))
    await engine.shutdown()
    completions = [[rollout.token_ids for rollout in group.rollouts] for group in groups]
    silences = {"silence": beside, "silence_in_the_loop": within}
    return {"loaded": loaded, "completions": completions, "encoded": encoded, **silences}


def main(model: str, folder: Path) -> None:
    config = small_config(Path(model), max_prompt_length=512, num_generations=NUM_GENERATIONS)
    environment.apply(config)
    engine_options.WORKER_EXTENSION = f"{CountingExtension.__module__}.{CountingExtension.__name__}"
    threads = as_vllm_026()
    images = draw_images(folder / "images", 6)
    engine = engine_module.Engine.load(config, "rollout-0")
    made_while_it_started = list(threads)
    found = {"made_while_it_started": made_while_it_started, **asyncio.run(work(engine, images))}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
