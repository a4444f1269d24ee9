"""Hugging Face's own answer to "how likely was this completion": what both engines are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmr1.images import ImageStore
from mmr1.records import Group, Prompt, PromptId, Rollout, Sampling

FORBIDDEN_BIAS = -100.0
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


class ReferencePolicy:
    """The model at `folder` in transformers, with its processor."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._base = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.processor = AutoProcessor.from_pretrained(folder)
        self.forbidden = tuple(self.processor.tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS)

    def perturb(self, seed: int, scale: float = 0.05) -> None:
        """Set every parameter, those of the vision tower included, to its first value plus noise of this seed."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, base in zip(self.model.parameters(), self._base, strict=True):
                parameter.copy_(base + torch.randn(parameter.shape, generator=generator) * scale)

    def processed(self, prompt: Prompt, store: ImageStore, **pixels: int) -> Any:
        images = [store.open(image) for image in prompt.images]
        return self.processor(text=[prompt.text], images=images or None, return_tensors="pt", **pixels)

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, rollout: Rollout, store: ImageStore, **pixels: int) -> torch.Tensor:
        """[number of sampled tokens] of the distribution that was sampled from: bias first, then temperature."""
        inputs = self.processed(prompt, store, **pixels)
        length = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], torch.tensor([rollout.token_ids])], dim=1)
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs.get("pixel_values"),
            image_grid_thw=inputs.get("image_grid_thw"),
            mm_token_type_ids=(ids == self.model.config.image_token_id).long(),
        ).logits[0, length - 1 : -1]
        logits[:, list(prompt.sampling.forbidden_token_ids)] += FORBIDDEN_BIAS
        distribution = (logits / (prompt.sampling.temperature or 1.0)).log_softmax(-1)
        return distribution.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]

    def largest_difference(self, group: Group, store: ImageStore, **pixels: int) -> float:
        """max |delta log p| over the group's tokens, the prompt's own tokens compared exactly first."""
        expected_ids = self.processed(group.prompt, store, **pixels)["input_ids"][0].tolist()
        assert list(group.prompt_token_ids) == expected_ids
        return max(
            (self.logprobs(group.prompt, rollout, store, **pixels) - torch.tensor(rollout.logprobs)).abs().max().item()
            for rollout in group.rollouts
        )


def draw_images(folder: Path, count: int, side: int = 112) -> ImageStore:
    """`count` images of noise, 0.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.RandomState(i).randint(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return ImageStore(folder)


def image_prompt(store: ImageStore, image: int, sampling: Sampling, *, run: str = "test", **options: Any) -> Prompt:
    """A prompt about one of `draw_images`. Long enough that the prefix cache has whole blocks to keep."""
    question = "How many objects are in the image? " * 8
    return Prompt(
        **{
            "id": PromptId(run, image),
            "text": f"<|im_start|>user\n{PLACEHOLDER}{question}<|im_end|>\n<|im_start|>assistant\n",
            "images": (store.ref(f"{image}.png"),),
            "task": "counting",
            "problem": question,
            "solution": 3,
            "num_generations": 3,
            "sampling": sampling,
            **options,
        }
    )
