"""Redis Streams: prompts on their way to the rollout servers, groups on their way to the learner, and the accounts."""

from mmr1.streams.accounts import Accounts, read_accounts
from mmr1.streams.groups import Member, RunQueue
from mmr1.streams.ledger import Ledger, read_ledger
from mmr1.streams.patience import Patience, RestartWatch
from mmr1.streams.prompts import Delivery, PromptConsumer
from mmr1.streams.scripts import RunForgottenError

__all__ = [
    "Accounts",
    "Delivery",
    "Ledger",
    "Member",
    "Patience",
    "PromptConsumer",
    "RestartWatch",
    "RunForgottenError",
    "RunQueue",
    "read_accounts",
    "read_ledger",
]
