"""What becomes of each policy version: waited for, or brought to the servers beside the next step.

The sender brings a version to the servers, has it proved and commits it; decided here is who waits for that. Beside a
step it goes on in a thread, and is over before the optimizer moves what is sent. Moves no tensors, judges no server,
and knows nothing of groups.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import grpc
import structlog
import torch

from mmr1.config import RunConfig
from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1_learner import metrics as outputs
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.probing import Prober
from mmr1_learner.published import Published
from mmr1_learner.waiting import Tick, results
from mmr1_learner.weights import Probe, UpdateResult, WeightSender, reason

log = structlog.get_logger()

_TICK_SECONDS = 0.05
_PHASES = ("closing", "weights", "sampling", "comparing", "opening", "retrying")  # as they are shown


class Updates:
    """One version after another.

    Args:
        tick: called while waiting and the other ranks listen.
        heed_stop: raises when the run is to stop; what may be called while they compute, and in a thread.
        ended: told what became of a version that was begun beside a step; None: it was never proved.
    """

    def __init__(
        self,
        config: RunConfig,
        sender: WeightSender,
        prober: Prober,
        policy: Published,
        files: outputs.RunFiles,
        tick: Tick,
        heed_stop: Tick,
        ended: Callable[[UpdateResult | None], None],
    ) -> None:
        self._config, self._sender, self._prober, self._policy = config, sender, prober, policy
        self._files, self._tick, self._heed_stop, self._ended = files, tick, heed_stop, ended
        self.count = 0  # that were committed, since the run began
        self._version, self._step = PolicyVersion(0, 0), 0
        self._under_way: Future[UpdateResult] | None = None
        self._is_waited_for = False
        self._closed = threading.Event()  # no server admits a prompt under an older version
        self._in_doubt = False  # the last one beside a step was not proved: the next is, before anything else is done
        self._has_room = True  # on the GPU, beside a step

    @property
    def are_under_way(self) -> bool:
        """Whether it is not known yet what becomes of the last version."""
        return self._under_way is not None

    def send(self, version: PolicyVersion, step: int, probe: Probe) -> UpdateResult:
        """Bring the servers to `version`, of a run of `step` steps; when this returns they serve it.

        Raises what `WeightSender.update` and the tick do.
        """
        self._prober.begin(version, step, self._tick)
        try:
            result = self._shown(self._sender.update(version, probe, self._tick, self._prober.adapters))
        finally:
            outputs.export_probes(self._prober.of_bound.values())
        self._in_doubt = False
        self._count()
        return result

    def may_go_ahead(self, step: int) -> bool:
        """Whether the step after `step` may begin before the version is proved.

        It needs groups that an older version has sampled, parameters that rank 0 scores with alone while the others
        compute, and no checkpoint or evaluation that would keep the servers waiting.
        """
        config = self._config
        return (
            config.max_off_policy_steps > 0
            and self._policy.scores_alone
            and not self._in_doubt
            and self._has_room
            and step < config.num_steps
            and step % config.checkpoint_every != 0
            and not config.evaluates_within(step, config.num_steps)
        )

    def begin(self, version: PolicyVersion, step: int) -> None:
        """The same as `send`, beside what comes next, until `settle` or `end`.

        When this returns the servers admit nothing: a prompt that was fed earlier and sampled under an older version
        would be stale when its step comes. Raises what the tick does; the update goes on then.
        """
        self._version, self._step, self._is_waited_for = version, step, False
        self._closed.clear()
        self._prober.begin(version, step, self._heed_stop)
        self._under_way = self._sender.begin(partial(self._update_beside, version))
        while not self._closed.wait(_TICK_SECONDS) and not self._under_way.done():
            self._tick()

    def _update_beside(self, version: PolicyVersion) -> UpdateResult:
        prober = self._prober
        with self._policy.beside():
            return self._shown(
                self._sender.update(
                    version, prober.probe, self._heed_stop, prober.adapters, self._between, self._closed.set
                )
            )

    def _shown(self, result: UpdateResult) -> UpdateResult:
        """Of the proof, what is waited for samples and what is compared."""
        parts = dict(result.phases)
        proof, comparing = parts.pop("proof", 0.0), self._prober.comparing_seconds
        parts |= {"sampling": max(0.0, proof - comparing), "comparing": comparing}
        result = replace(result, phases={name: parts[name] for name in _PHASES if name in parts})
        outputs.export_update(result.phases)
        return result

    def _between(self) -> None:
        """Nothing is under way: whoever waits need not wait for another try."""
        self._heed_stop()
        if self._is_waited_for:
            raise WeightUpdateError("the next step cannot wait for another try")

    def before_forwards(self) -> None:
        """The next step's first images are encoded: some policies cannot be scored while it computes."""
        if not self._policy.scores_beside:
            self.end()

    def end(self, tick: Tick | None = None) -> None:
        """The parameters will move, or the run will stop: wait for the version under way, if there is one.

        One that is not proved now is passed over, and nothing serves until the next one is: the other ranks compute,
        and must not wait for servers that come back. Raises what is wrong with the run itself, and what `tick` does;
        the update hears by itself that the run is to stop.
        """
        if self._under_way is None:
            return
        self._is_waited_for, result = True, None
        try:
            (result,) = results([self._under_way], tick or _nothing)
        except (grpc.RpcError, WeightUpdateError, StopRequestedError, torch.OutOfMemoryError) as error:
            log.warning("version passed over", version=str(self._version), reason=reason(error))
            self._in_doubt = True
            self._note_room(error)
        finally:
            self._close(result)

    def settle(self) -> None:
        """The same while the other ranks listen: when it fails it is sent again. Raises what `send` does."""
        if self._under_way is None:
            return
        try:
            (result,) = results([self._under_way], self._tick)
        except (grpc.RpcError, WeightUpdateError, torch.OutOfMemoryError) as error:
            log.warning("weight update failed", version=str(self._version), attempt=0, reason=reason(error))
            self._note_room(error)
            self._under_way, again = None, None
            try:
                again = self.send(self._version, self._step, self._prober.late)
            finally:  # told to stop meanwhile: the step is in the checkpoint that ends the run, and on record
                self._ended(again)
        else:
            self._close(result)

    def _note_room(self, error: Exception) -> None:
        """A GPU that is too full for a step and an update at once gets them one after the other from here on."""
        self._has_room = self._has_room and not isinstance(error, torch.OutOfMemoryError)

    def _close(self, result: UpdateResult | None) -> None:
        self._under_way = None
        outputs.export_probes(self._prober.of_bound.values())
        if result is not None:
            self._count()
        self._ended(result)

    def _count(self) -> None:
        self.count += 1
        self._files.write("weight_updates", {"count": self.count})
        outputs.WEIGHT_UPDATES.inc()


def _nothing() -> None:
    """Nobody need be told."""
