"""The peer of `rollout_gpu.py`: `vllm.LLM.generate` on the same prompts, in a process of its own that it starts.

    python benchmarks/rollout_peer.py --config RUN.yaml --kind same     # one line of JSON in, one out

A line in is `{"do": "load"}` or `{"do": "generate", "prompts": FILE}`; each line of the file is a prompt's message in
hexadecimal. Images are opened before the clock starts; what is timed is the call of `generate` alone. It knows no
Redis, no gRPC and no rewards. The engine's arguments and the sampling's are made by our rollout server's own functions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mmr1.config import load_config
from mmr1.images import ImageStore
from mmr1.records import Prompt
from mmr1.wire import decode_prompt
from mmr1_rollout_server import environment

# What our server says to vLLM, but for what weight updates need. `defaults` leaves the two batch sizes to vLLM.
SAME = (
    "model",
    "dtype",
    "enforce_eager",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "limit_mm_per_prompt",
    "mm_processor_kwargs",
    "logprobs_mode",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "seed",
)
CHOSEN_BY_VLLM = ("max_num_seqs", "max_num_batched_tokens")
KINDS = {"same": SAME, "defaults": tuple(name for name in SAME if name not in CHOSEN_BY_VLLM)}


class Peer:
    """vLLM's offline engine, and what the program asks of it."""

    def __init__(self, config_file: Path, kind: str) -> None:
        self._config = load_config(config_file, environment=False)
        environment.apply(self._config)
        # Both read the environment when they are loaded.
        import vllm

        from mmr1_rollout_server import engine

        self._vllm, self._ours = vllm, engine
        self._kind = kind
        self._llm: Any = None
        self._images = ImageStore(self._config.resolved_image_root)

    def load(self) -> dict[str, Any]:
        arguments = self._ours.engine_arguments(self._config, "peer")
        given = {name: getattr(arguments, name) for name in KINDS[self._kind]}
        if arguments.enforce_eager:  # on a CPU, where vLLM ends at seeds and ours has `cpu_generator.py` with this
            given["worker_extension_cls"] = arguments.worker_extension_cls
        self._llm = self._vllm.LLM(**given)
        chosen = self._llm.llm_engine.vllm_config
        return {
            "vllm": self._vllm.__version__,
            "max_num_seqs": chosen.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": chosen.scheduler_config.max_num_batched_tokens,
            "num_gpu_blocks": chosen.cache_config.num_gpu_blocks,
        }

    def generate(self, prompts: list[Prompt]) -> dict[str, Any]:
        requests = [self._request(prompt) for prompt in prompts]
        params = [self._ours.sampling_params(prompt.sampling, prompt.num_generations) for prompt in prompts]
        began = time.perf_counter()
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        completions = [completion for output in outputs for completion in output.outputs]
        return {
            "seconds": seconds,
            "completions": len(completions),
            "tokens": sum(len(completion.token_ids) for completion in completions),
            "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
        }

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        images = [self._images.open(image) for image in prompt.images]
        return {"prompt": prompt.text, "multi_modal_data": {"image": images}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the run's options, as the rollout server has them")
    parser.add_argument("--kind", choices=KINDS, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # vLLM and its processes print to the log, which is all that 1 is from here on
    os.dup2(2, 1)
    peer = Peer(options.config, options.kind)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = read_prompts(Path(asked["prompts"])) if asked["do"] == "generate" else []
        answer = peer.generate(prompts) if prompts else peer.load()
        print(json.dumps(answer), file=answers, flush=True)


def read_prompts(file: Path) -> list[Prompt]:
    return [decode_prompt(bytes.fromhex(line)) for line in file.read_text().split()]


if __name__ == "__main__":
    main()
