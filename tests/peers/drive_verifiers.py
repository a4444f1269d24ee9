"""verifiers' NeMoGymTaskset against the server: its own set-up and scoring of a rollout made up here.

The adapter for a task's own reward is driven through the same library. (prime-rl uses the taskset as it is.)
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from running_server import check, running_server
from verifiers.v1.graph import MessageNode
from verifiers.v1.task import Task, TaskConfig, TaskData
from verifiers.v1.tasksets.nemo_gym.taskset import NeMoGymConfig, NeMoGymTask, NeMoGymTaskConfig, NeMoGymTaskset
from verifiers.v1.tasksets.nemo_gym.toolset import NeMoGymState
from verifiers.v1.trace import AgentInfo, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, UserMessage
from verifiers.v1.utils.decorators import reward

from mmr1_reward_server.adapters import verifiers_task_reward

IMAGE = {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBORw0KGgo="}
ASKED = {"input": [{"role": "user", "content": [IMAGE, {"type": "input_text", "text": "How many dogs?"}]}]}


def trace_of(task: Task[Any, Any, Any], response: str, state: Any = None) -> Trace[Any, Any, Any]:
    nodes = [
        MessageNode(message=UserMessage(content="How many dogs?")),
        MessageNode(parent=0, message=AssistantMessage(content=response), sampled=True),
    ]
    recorded = TraceTask[Any](type=type(task).__name__, data=task.data)
    trace = Trace[Any, Any, Any](task=recorded, agent=AgentInfo[Any](config=None), nodes=nodes)
    if state is not None:
        trace.state = state
    return trace


def rewards(trace: Trace[Any, Any, Any]) -> dict[str, float | None]:
    return {name: None if one is None else one.score for name, one in trace.rewards.items()}


async def gym_rewards(task: NeMoGymTask, response: str) -> tuple[dict[str, float | None], Trace[Any, Any, Any]]:
    trace = trace_of(task, response, NeMoGymState())
    await task.setup(trace, None)
    await task.score(trace)
    return rewards(trace), trace


class Counting(Task[TaskData, Any, TaskConfig]):
    url = ""

    @reward(weight=1.0)
    async def counting(self, trace: Trace[Any, Any, Any]) -> float:
        return await verifiers_task_reward(trace.last_reply, "3", url=self.url, task="counting")


def load_tasks(folder: str, url: str) -> list[NeMoGymTask]:
    rows = [{"label": "3"}, {"label": 4, "params": {"score": "graded"}}, {"label": "a few"}]
    file = Path(folder) / "rows.jsonl"
    lines = [json.dumps({"responses_create_params": ASKED, "task": "counting", **row}) for row in rows]
    file.write_text("\n".join(lines))
    return list(NeMoGymTaskset(NeMoGymConfig(dataset=file, task=NeMoGymTaskConfig(resources_url=url))).load())


async def drive(url: str, folder: str) -> None:
    right, graded, unreadable = load_tasks(folder, url)
    got, trace = await gym_rewards(right, "<answer>3</answer>")
    check("a right answer", got, {"nemo_gym": 1.0})
    check("the row's own fields come back", trace.info["nemo_gym"], {"label": "3", "task": "counting"})
    check("nothing to score", (await gym_rewards(right, "no idea"))[0], {"nemo_gym": 0.0})
    check("params from the row", (await gym_rewards(graded, "<answer>3</answer>"))[0], {"nemo_gym": 0.75})
    try:
        await gym_rewards(unreadable, "<answer>3</answer>")
    except Exception as error:
        check("a failed verdict fails the rollout", "422" in str(error), True)
    else:
        raise SystemExit("not ok: a failed verdict gave a reward")
    Counting.url = url
    task = Counting(TaskData(name="a", prompt="How many dogs?"), TaskConfig())
    own = trace_of(task, "<answer>3</answer>")
    await task.score(own)
    check("a task's own reward through the adapter", rewards(own), {"counting": 1.0})


def main() -> None:
    with running_server() as url, tempfile.TemporaryDirectory() as folder:
        asyncio.run(drive(url, folder))


if __name__ == "__main__":
    main()
