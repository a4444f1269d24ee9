"""Two other projects' requests to a reward server, as their own clients send them: OpenRLHF's and slime's.

    python peers.py http://reward-server:8000

Prints what is sent and answered; exit code 1 when an answer is not the expected one. The key comes from
MMR1_REWARD_API_KEY, where the server asks for one. docs/peers.md has the other projects.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import httpx

START = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
REQUESTS: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "OpenRLHF",
        "/get_reward/counting",
        {"query": [f"{START}<answer>3</answer><|im_end|>"], "prompts": [START], "labels": ["3"]},
        "rewards",
    ),
    (
        "slime",
        "/slime/counting?detail=1",
        {"prompt": "How many?", "response": "<answer>3</answer>", "label": "3"},
        "score",
    ),
]


def main(url: str) -> int:
    key = os.environ.get("MMR1_REWARD_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    failed = False
    with httpx.Client(base_url=url, headers=headers, timeout=30.0, trust_env=False) as client:
        for peer, path, body, field in REQUESTS:
            answer = client.post(path, json=body)
            print(f"{peer}: POST {path} {json.dumps(body)}\n  {answer.status_code} {answer.text}")
            reward = answer.json().get(field) if answer.is_success else None
            failed |= reward not in (1.0, [1.0])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
