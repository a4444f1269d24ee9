"""Redis Streams: prompts on their way to the rollout servers, groups on their way to the learner, and the accounts."""

from mmr1.streams.groups import Member, RunQueue
from mmr1.streams.ledger import Ledger, read_ledger
from mmr1.streams.prompts import Delivery, PromptConsumer

__all__ = ["Delivery", "Ledger", "Member", "PromptConsumer", "RunQueue", "read_ledger"]
