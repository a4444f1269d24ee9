"""What vLLM's renderer loads with its first image: in one thread, and in four that have an image at the same time.

    python benchmarks/first_image.py                      # a tokenizer as large as Qwen2.5-VL's

It loads the processor alone: no engine is started, and no image is made into pixels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shapes import SMALL_MODEL, add_words
from versions import print_versions
from vllm.tokenizers import get_tokenizer
from vllm.tokenizers.hf import maybe_make_thread_pool
from vllm.transformers_utils.processor import cached_get_processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=151936, help="of the tokenizer")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args()
    print_versions(**vars(given))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        shutil.copytree(SMALL_MODEL, folder)
        add_words(folder / "tokenizer.json", given.words)
        for threads in given.threads:
            tokenizer = maybe_make_thread_pool(get_tokenizer(str(folder)), threads)
            cached_get_processor.cache_clear()
            began = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                for _ in range(threads):
                    pool.submit(cached_get_processor, str(folder), tokenizer=tokenizer)
            loaded = cached_get_processor.cache_info().misses
            line = {"threads": threads, "seconds": round(time.perf_counter() - began, 2), "loaded": loaded}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
