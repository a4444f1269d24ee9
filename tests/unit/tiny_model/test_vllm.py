"""The folder in the real vLLM: the same prompt ids and the same log-probabilities as transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from mmr1.chat_template import ChatTemplate
from mmr1.digits.counting import QUESTION, draw
from mmr1.digits.scans import load_scans
from mmr1.records import Problem
from mmr1.templates import Templates, render
from mmr1_learner.tiny_model import build

# In a process of its own: vLLM reads its environment on import and keeps its engine for the life of the process.
SAMPLE = """
import json, sys
if __name__ == "__main__":
    from PIL import Image
    from vllm import LLM, SamplingParams
    model, image, text, num_tokens = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    llm = LLM(model, enforce_eager=True, max_model_len=256, dtype="float32", max_num_seqs=8,
              limit_mm_per_prompt={"image": 1, "video": 0})
    parameters = SamplingParams(n=4, max_tokens=12, logprobs=0, ignore_eos=True, seed=0,
                                allowed_token_ids=list(range(8, num_tokens)))
    request = {"prompt": text, "multi_modal_data": {"image": Image.open(image).convert("RGB")}}
    (output,) = llm.generate([request], parameters)
    samples = [[list(c.token_ids), [lp[t].logprob for t, lp in zip(c.token_ids, c.logprobs)]] for c in output.outputs]
    print("RESULT", json.dumps([list(output.prompt_token_ids), samples]))
"""


@pytest.mark.engine
def test_vllm_computes_the_same_model(tmp_path: Path) -> None:
    folder, image, script = tmp_path / "model", tmp_path / "image.png", tmp_path / "sample.py"
    build(folder, seed=1)
    Image.fromarray(draw(np.random.default_rng(0), load_scans(), 112)[0]).save(image)
    script.write_text(SAMPLE)
    processor = AutoProcessor.from_pretrained(folder)
    text = render(Problem(0, QUESTION, 3, ("image",), "counting"), Templates(), ChatTemplate.load(folder))
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    settings |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, str(script), str(folder), str(image), text, str(len(processor.tokenizer))]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    prompt_ids, samples = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))[7:])

    inputs = processor(text=[text], images=[Image.open(image).convert("RGB")], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == prompt_ids
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    for token_ids, logprobs in samples:
        ids = torch.tensor([prompt_ids + token_ids])
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
            ).logits[0, len(prompt_ids) - 1 : -1]
        ours = logits.log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0]
        torch.testing.assert_close(ours, torch.tensor(logprobs), atol=1e-4, rtol=0)
