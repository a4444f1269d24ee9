"""Sampling through Redis, gRPC and rewards against `vllm.LLM.generate` on one GPU: tokens a second, turn by turn.

    PYTHONPATH=. python benchmarks/rollout_gpu.py                                       # the 3B shape, on a GPU
    PYTHONPATH=. python benchmarks/rollout_gpu.py --peers defaults                       # vLLM's own batch sizes
    PYTHONPATH=. python benchmarks/rollout_gpu.py --model examples/tiny_vlm --prompts 8 --tokens 12     # without a GPU

Ours is a rollout server as runs have it, with a real redis-server, a real reward server and weights from the learner's
own sender; its clock runs from the first prompt fed to the last group read, images read and rewards scored meanwhile.
The peer (`rollout_peer.py`) has its images open before its clock starts, and scores nothing. Images are noise, new in
each round. Measures no learner: nothing is trained, and no weights travel while prompts are sampled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from rollout_arms import RUN, Failed, Ours, Peer
from rollout_peer import KINDS
from versions import print_versions

from mmr1.images import ImageStore
from mmr1.records import ImageRef, Prompt, PromptId, RewardSpec, Sampling
from tests.e2e.reference_policy import PLACEHOLDER

WARM_UP = 0  # the round that compiles and fills pools: all prompts, and completions of at most WARM_UP_TOKENS
WARM_UP_TOKENS = 32


def draw_round(store: ImageStore, number: int, given: argparse.Namespace, forbidden: tuple[int, ...]) -> list[Prompt]:
    """The prompts of one round, each about an image that no other round has. Places follow each other over rounds."""
    (Path(str(store.root)) / f"{number}").mkdir()
    tokens = min(given.tokens, WARM_UP_TOKENS) if number == WARM_UP else given.tokens
    prompts = []
    for index in range(given.prompts):
        place = number * given.prompts + index
        name = f"{number}/{index}.png"
        pixels = np.random.RandomState(place).randint(0, 255, (given.side, given.side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(str(store.root)) / name, compress_level=1)
        seed = None if given.no_seeds else place + 1  # a run gives each prompt one
        sampling = Sampling(1.0, tokens, seed=seed, forbidden_token_ids=forbidden, ignore_eos=True)
        prompts.append(make_prompt(store.ref(name), place, sampling, given))
    return prompts


def make_prompt(image: ImageRef, place: int, sampling: Sampling, given: argparse.Namespace) -> Prompt:
    question = "What is written in the image? " * 8
    words = random.Random(place).sample(range(400, 150_000), 40)
    return Prompt(
        id=PromptId(RUN, place),
        text=f"<|im_start|>user\n{PLACEHOLDER}{question}<|im_end|>\n<|im_start|>assistant\n",
        images=(image,),
        task="ocr",
        problem=question,
        solution=" ".join(f"w{word}" for word in words),
        num_generations=given.generations,
        sampling=sampling,
        rewards=(RewardSpec(given.reward),),
    )


def measure(arms: dict[str, Callable[[list[Prompt]], dict[str, Any]]], rounds: list[list[Prompt]]) -> None:
    """Each round's prompts for every arm in turn. A line a round and arm, and one of all that were no warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number, prompts in enumerate(rounds):
        wanted = sum(prompt.num_generations * prompt.sampling.max_completion_length for prompt in prompts)
        for name, generate in arms.items():
            found = generate(prompts)
            if found["tokens"] != wanted or found.get("without_reward"):
                raise Failed(f"{name}: {found} where {wanted} tokens were asked for, each completion with a reward")
            rate = found["tokens"] / found["seconds"]
            if number != WARM_UP:
                rates[name].append(rate)
            line = {"round": number, "arm": name, "tokens_a_second": rate, **found}
            print(json.dumps(rounded(line | ({"warm_up": True} if number == WARM_UP else {}))), flush=True)
    ours, *peers = rates
    ratios = {peer: [a / b for a, b in zip(rates[ours], rates[peer], strict=True)] for peer in peers}
    summary = {"tokens_a_second": {name: spread(values) for name, values in rates.items()}}
    print(json.dumps(rounded(summary | {"ratio_of_ours_to": {name: spread(v) for name, v in ratios.items()}})))


def spread(values: list[float]) -> dict[str, Any]:
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "quartiles": [quartiles[0], quartiles[2]], "rounds": len(values)}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def compare(folder: Path, given: argparse.Namespace, ending: contextlib.ExitStack) -> None:
    """Load one engine after the other: each takes what is free on the GPU for its own."""
    began = time.perf_counter()
    (folder / "images").mkdir()
    model = given.model.resolve() if given.model else folder / "model"
    if not given.model:
        from shapes import make_shape

        make_shape(model)
        torch.cuda.empty_cache()
    ours = Ours(folder, model, given, ending)
    ours.start_server()
    peers = [Peer(ours, kind, ending) for kind in given.peers]
    print(json.dumps({"options": ours.options | {"peers": given.peers, "side": given.side}}), flush=True)
    forbidden = ours.serve()
    print(json.dumps({"loaded": "ours", "after": round(time.perf_counter() - began, 1)}), flush=True)
    store = ImageStore(folder / "images")
    for peer in peers:
        print(
            json.dumps({"loaded": peer.name, **peer.load(), "after": round(time.perf_counter() - began, 1)}), flush=True
        )
    rounds = [draw_round(store, number, given, forbidden) for number in range(given.rounds + 1)]
    measure({"ours": ours.generate, **{peer.name: peer.generate for peer in peers}}, rounds)
    print(json.dumps({"whole": round(time.perf_counter() - began, 1)}))


def main() -> None:
    given = parse()
    print_versions()
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ending:
        try:
            compare(Path(name), given, ending)
        except Failed as error:
            print(f"rollout_gpu: error: {error}", file=sys.stderr)
            raise SystemExit(1) from None


def stop(*_: object) -> NoReturn:
    raise SystemExit(143)  # so that what was started is ended


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; without it the 3B shape is made, on a GPU")
    parser.add_argument("--prompts", type=positive, default=64, help="in a round, all fed at once")
    parser.add_argument("--generations", type=positive, default=8, help="completions of a prompt")
    parser.add_argument("--tokens", type=positive, default=256, help="of each completion")
    parser.add_argument("--side", type=positive, default=448, help="of the images, in pixels")
    parser.add_argument("--rounds", type=positive, default=3, help="measured, after a warm-up of few tokens")
    parser.add_argument("--peers", nargs="*", choices=KINDS, default=["same"], help="defaults: vLLM's own batch sizes")
    parser.add_argument("--reward", default="ocr", help="a task of the reward server that scores any text")
    parser.add_argument("--no-seeds", action="store_true", help="prompts without one, on both sides; a run gives one")
    parser.add_argument("--threads", type=positive, default=1, help="rollout_threads, of both sides")
    parser.add_argument("--max-concurrent-prompts", type=positive, help="ours; default: --prompts (a run's own: 16)")
    parser.add_argument("--max-num-seqs", type=positive, help="both; default: all completions (a run's own: 128)")
    parser.add_argument("--gpu-memory-utilization", type=float, help="of each engine; default: 0.8 for all together")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, float32 without")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one round of ours")
    given = parser.parse_args()
    if given.model is None and not torch.cuda.is_available():
        parser.error("the 3B shape is made and run on a GPU, and there is none; give --model examples/tiny_vlm")
    if given.model is not None and not (given.model / "config.json").is_file():
        parser.error(f"--model {given.model} is not a model's folder: it has no config.json")
    given.dtype = given.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    if given.gpu_memory_utilization is None:
        given.gpu_memory_utilization = round(0.8 / (1 + len(given.peers)), 2)
    return given


if __name__ == "__main__":
    main()
