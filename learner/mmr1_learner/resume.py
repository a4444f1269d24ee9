"""After a start: bring the queue and the newest durable checkpoint to one story.

The checkpoint decides. What it contains and Redis still holds is acknowledged; what it knows as outstanding and Redis
has forgotten is fed again, an emptied Redis included; what was fed after it stays, and is trained by this learner. What
was dropped or died after it is not forgotten: Redis knows it as settled, and feeds it to nobody.
"""

from __future__ import annotations

import structlog

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.streams import RunQueue
from mmr1_learner.checkpoint import RunState, ledger_at
from mmr1_learner.prompts import PromptFactory

log = structlog.get_logger()

FORGOTTEN = "forgotten"


def check_prompts_per_step(config: RunConfig, state: RunState) -> None:
    """A place belongs to the step `position // prompts_per_step`, whose temperature its prompt carries.

    Raises:
        ConfigurationError: the run goes on with another number of prompts in a step than it began with.
    """
    if state.prompts_per_step not in (0, config.prompts_per_step):
        raise ConfigurationError(
            f"run_dir {config.run_dir}: its checkpoint was written with {state.prompts_per_step} prompts per step, and "
            f"the run now has {config.prompts_per_step} (learner_processes x per_device_batch_size x "
            "gradient_accumulation_steps / num_generations); restore that product, or give a new run_dir"
        )


def reconcile(queue: RunQueue, state: RunState | None, prompts: PromptFactory) -> int:
    """Make the queue agree with `state`. Returns the next position to feed."""
    if state is None:
        return queue.ledger().next_position
    restored = queue.restore(ledger_at(state))
    acknowledged = queue.acknowledge(list(state.contained))
    pending = queue.pending_ids()
    newest: dict[int, int] = {}  # attempt on its way, by place
    for id_ in pending:
        newest[id_.position] = max(id_.attempt, newest.get(id_.position, 0))
    # A place of which a later attempt is on its way already has been fed again since the checkpoint.
    missing = [id_ for id_ in state.outstanding if id_ not in pending and newest.get(id_.position, -1) < id_.attempt]
    fed_again = queue.feed_again(map(prompts.training, missing))
    # Fed before the checkpoint, and neither outstanding nor contained then: Redis has forgotten how it ended. A later
    # attempt of an outstanding one was fed after the checkpoint, when that one was dropped: it is the place's own.
    known = {id_.position: id_.attempt for id_ in state.outstanding}
    stale = [
        id_
        for id_ in pending
        if id_.position < state.next_position and id_.attempt < known.get(id_.position, id_.attempt + 1)
    ]
    for id_ in stale:
        queue.drop(id_, FORGOTTEN)
    log.info(
        "queue reconciled",
        checkpoint_step=state.step,
        acknowledged=acknowledged,
        fed_again=fed_again,
        settled_since=len(missing) - fed_again,
        dropped=len(stale),
        redis_was_empty=restored,
    )
    return max(state.next_position, queue.ledger().next_position)
