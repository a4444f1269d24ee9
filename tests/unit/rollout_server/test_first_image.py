"""What vLLM's renderer loads with its first image is loaded beside the engine's start. The real one: tests/e2e."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

pytest.importorskip("vllm")

from vllm.v1.engine import async_llm

from mmr1_rollout_server import first_image
from mmr1_rollout_server.first_image import BY_ITSELF, first_image_beside


class Renderer:
    """As much of vLLM's as is used: of a version that loads nothing by itself."""

    def __init__(self, *, has_images: bool = True, error: Exception | None = None) -> None:
        dummy = SimpleNamespace(get_dummy_text=lambda counts: "<image>" * counts["image"])
        self.mm_processor = SimpleNamespace(dummy_inputs=dummy) if has_images else None
        self.error = error
        self.asked: list[dict[str, Any]] = []
        self.thread: threading.Thread | None = None
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def render_cmpl(self, requests: list[dict[str, Any]]) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.may_end.wait(10)
        if self.error:
            raise self.error
        self.asked += requests


@pytest.fixture(autouse=True)
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def start(renderer: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any] | None = None) -> Any:
    """As vLLM's engine does: it makes its renderer, and then starts its processes."""
    monkeypatch.setattr(async_llm, "renderer_from_config", lambda config: renderer)
    before = async_llm.renderer_from_config
    with first_image_beside(options or {}):
        made = async_llm.renderer_from_config("vllm's configuration")
    assert async_llm.renderer_from_config is before
    return made


def test_it_is_begun_while_the_engine_starts_and_ready_when_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    renderer.may_end.clear()
    monkeypatch.setattr(async_llm, "renderer_from_config", lambda config: renderer)
    with first_image_beside({"max_pixels": 50176}):
        assert async_llm.renderer_from_config("vllm's configuration") is renderer
        assert renderer.begun.wait(10) and not renderer.asked  # the processes start meanwhile
        threading.Timer(0.1, renderer.may_end.set).start()
    assert renderer.thread is not threading.main_thread()
    (request,) = renderer.asked
    assert request["prompt"] == "<image>" and request["mm_processor_kwargs"] == {"max_pixels": 50176}
    (image,) = request["multi_modal_data"]["image"]
    assert image.size == (224, 224)


def test_a_prompt_without_options_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    assert start(renderer, monkeypatch) is renderer
    assert "mm_processor_kwargs" not in renderer.asked[0]


@pytest.mark.parametrize("does_it_itself", [True, False])
def test_a_vllm_that_does_so_by_itself_is_left_alone(does_it_itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    if does_it_itself:
        monkeypatch.setattr(Renderer, BY_ITSELF, lambda self: None, raising=False)
    start(renderer, monkeypatch)
    assert len(renderer.asked) == (0 if does_it_itself else 1)


def test_nothing_is_begun_where_processes_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    renderer = Renderer()
    start(renderer, monkeypatch)
    assert renderer.thread is None


def test_a_vllm_that_makes_its_renderer_elsewhere_starts_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(async_llm, "renderer_from_config")
    with first_image_beside({}):
        assert not hasattr(async_llm, "renderer_from_config")


def test_a_model_without_images_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(has_images=False)
    with capture_logs() as logs:
        start(renderer, monkeypatch)
    assert not renderer.asked and not logs


def test_an_image_that_fails_is_told_and_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        start(Renderer(error=ValueError("too small\nan image")), monkeypatch)
    (said,) = logs
    assert said["log_level"] == "warning" and "too small" in said["reason"] and "\n" not in said["reason"]


def test_one_that_hangs_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_image, "_LATEST_SECONDS", 0.1)
    renderer = Renderer()
    renderer.may_end.clear()
    with capture_logs() as logs:
        start(renderer, monkeypatch)
    assert "takes more than" in logs[0]["reason"]
    renderer.may_end.set()


def test_an_engine_that_does_not_start_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    renderer.may_end.clear()
    monkeypatch.setattr(async_llm, "renderer_from_config", lambda: renderer)
    before, began = async_llm.renderer_from_config, time.monotonic()
    with pytest.raises(RuntimeError, match="no memory"), first_image_beside({}):
        async_llm.renderer_from_config()
        raise RuntimeError("no memory")
    assert async_llm.renderer_from_config is before and time.monotonic() - began < 5
    renderer.may_end.set()
