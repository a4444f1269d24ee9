"""What a rollout server is asked before it serves a version: the parity gate at the start, a probe after each update.

It asks, has the learner's own log-probabilities compared with the answers, and judges by the bound that the gate has
found for each server. It moves no weights, and does not say what follows from its judgement.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import structlog

from mmr1.config import RunConfig
from mmr1.dataset import Problems
from mmr1.errors import WeightUpdateError
from mmr1.records import Group, PolicyVersion, Prompt, PromptId
from mmr1.rollout_client import RolloutClient
from mmr1_learner.metrics import RunFiles
from mmr1_learner.parity import ParityError, ParityReport, Scorer, gate_of
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.published import Published
from mmr1_learner.waiting import Tick, results, settled
from mmr1_learner.weights import WeightSender

log = structlog.get_logger()

_GENERATE_SECONDS = 300.0
_LATE_SECONDS = 1.0  # that the first answer waits for the others at least; by then one that hangs is not waited for
_PROBE_TOKENS = 16  # nobody samples while a probe is: enough to be past what every answer begins with, and soon over


class Prober:
    """Judges servers, one version after another. `gate`, `late`, `probe` and `adapters` are asked by an update.

    Each returns the largest |delta log p| in nats, and raises WeightUpdateError when their mean is above the bound.
    """

    def __init__(
        self,
        config: RunConfig,
        sender: WeightSender,
        scorer: Scorer,
        policy: Published,
        prompts: PromptFactory,
        problems: Problems,
        files: RunFiles,
    ) -> None:
        self._config, self._sender, self._scorer, self._policy = config, sender, scorer, policy
        self._prompts, self._problems, self._files = prompts, problems, files
        self._bounds: dict[str, float] = {}  # of each server, by address: the gate may find a narrower one
        self.of_bound: dict[str, float] = {}  # how much of it each server's last probe in this update has used
        # Under way, by client: a try that fails closes its clients, so none is answered with an older try's samples.
        self._asked: dict[RolloutClient, Future[list[Group]]] = {}
        self._asked_at = 0.0
        self._reports: dict[RolloutClient, ParityReport | ParityError] = {}  # where the answer has been compared
        self._version, self._step, self._tick = PolicyVersion(0, 0), 0, _no_tick
        self.comparing_seconds = 0.0  # in this update

    def begin(self, version: PolicyVersion, step: int, tick: Tick) -> None:
        """What comes is of an update to `version`, in a run of `step` steps; `tick` is called while waiting."""
        self._version, self._step, self._tick = version, step, tick
        self.of_bound, self._asked, self._reports, self.comparing_seconds = {}, {}, {}, 0.0

    def gate(self, client: RolloutClient) -> float:
        """The gate before the first step and after each resume: many prompts, and planted perturbations.

        Raises:
            ConfigurationError: the two engines do not compute the same model, or would not be seen not to.
        """
        self._compare_preprocessing(client)
        self._ask_all(client, self._config.parity_prompts, None)
        (groups,) = results([self._asked[client]], self._tick)
        del self._asked[client]
        with self._comparing():
            report, bound = gate_of(self._config, self._scorer, self._policy, groups)
        self._bounds[client.address] = bound
        self.of_bound[client.address] = report.mean_abs_dlogp / bound
        self._record(report, client)
        return report.max_abs_dlogp

    def late(self, client: RolloutClient) -> float:
        """For servers that come after the gate: nobody has asked yet what they make of an image."""
        self._compare_preprocessing(client)
        return self.probe(client)

    def probe(self, client: RolloutClient) -> float:
        """After each update: one fixed prompt with its image, sampled as the next step's are, but not to its end."""
        return self._judged(client, self._compared(client, _PROBE_TOKENS))

    def adapters(self, client: RolloutClient) -> float:
        """To the run's full length: it must see planted adapters, once for each group of servers."""
        return self._judged(client, self._compared(client, None))

    def _judged(self, client: RolloutClient, report: ParityReport) -> float:
        if not report.num_tokens:
            raise WeightUpdateError(f"{client.address} received version {self._version}, and samples nothing of it")
        widest = max(self._bounds.values(), default=self._config.bound(self._config.dtype))
        bound = self._bounds.get(client.address, widest)
        # Planted adapters, which must be seen, come before the update's own probe: the last one counts.
        self.of_bound[client.address] = report.mean_abs_dlogp / bound
        if not report.mean_abs_dlogp <= bound:
            raise WeightUpdateError(
                f"{client.address} received version {self._version}, but its log-probabilities are "
                f"{report.mean_abs_dlogp:.2e} from the learner's (bound {bound:.0e})"
            )
        return report.max_abs_dlogp

    @contextmanager
    def _comparing(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.comparing_seconds += time.monotonic() - began

    def _compared(self, client: RolloutClient, tokens: int | None) -> ParityReport:
        """What it sampled, against the learner. Whoever comes first has the others' answers compared with its own.

        What is wrong with another's is raised in that one's turn: whoever's turn it is, is blamed.
        """
        if client not in self._reports:
            self._ask_all(client, 1, tokens)
            answers = self._answers(client)
            with self._comparing():
                reports = self._scorer.compare_each(list(answers.values()))
            self._reports |= zip(answers, reports, strict=True)
        report = self._reports.pop(client)
        if isinstance(report, ParityError):
            raise report
        return report

    def _answers(self, client: RolloutClient) -> dict[RolloutClient, list[Group]]:
        """What this one has sampled, and others by then or as long again after, which is at least a second."""
        answers = {client: results([self._asked.pop(client)], self._tick)[0]}
        settled(self._asked.values(), self._tick, max(_LATE_SECONDS, time.monotonic() - self._asked_at))
        for each, future in list(self._asked.items()):
            if future.done() and not future.exception():
                answers[each] = self._asked.pop(each).result()
        return answers

    def _ask_all(self, client: RolloutClient, count: int, tokens: int | None) -> None:
        """Unless it has been asked: it and the others, so that all sample at once and not in turn.

        What is left of an earlier time, as of a try that failed, is nobody's answer any more.
        """
        if client in self._asked:
            return
        prompts = self._probes(count, tokens)
        together = {*self._sender.clients(), client}
        self._asked_at, self._reports = time.monotonic(), {}
        self._asked = {each: self._sender.begin(partial(_generate, each, prompts)) for each in together}

    def _compare_preprocessing(self, client: RolloutClient) -> None:
        status = self._sender.call(client.status, self._tick)
        self._scorer.compare_preprocessing(status.server_id, status.preprocessing)

    def _probes(self, count: int, tokens: int | None) -> list[Prompt]:
        """`tokens` are the most that each completion gets, where that is less than the run's."""
        temperature = self._config.temperature_at(self._step, self._config.num_steps)
        longest = min(self._config.max_completion_length, tokens or self._config.max_completion_length)
        prompts = []
        for index, problem in enumerate(self._problems[:count]):
            sampling = self._prompts.sampling(temperature, index)
            sampling = replace(sampling, max_completion_length=longest, ignore_eos=True, top_p=1.0)
            id_ = PromptId(f"{self._config.run}/parity", index)
            prompts.append(self._prompts.make(id_, problem, sampling, 1))
        return prompts

    def _record(self, report: ParityReport, client: RolloutClient) -> None:
        log.info(
            "parity gate passed",
            server=client.address,
            mean=f"{report.mean_abs_dlogp:.1e}",
            max=f"{report.max_abs_dlogp:.1e}",
        )
        entry = {
            "step": self._step,
            "incarnation": self._version.incarnation,
            "max_abs_dlogp": report.max_abs_dlogp,
            "mean_abs_dlogp": report.mean_abs_dlogp,
            "mismatch_kl": report.mismatch_kl,
            "num_tokens": report.num_tokens,
            "bound": self._bounds[client.address],
        }
        self._files.write("parity", [*self._files.read("parity", []), entry])


def _generate(client: RolloutClient, prompts: Sequence[Prompt]) -> list[Group]:
    return client.generate_many(prompts, timeout=_GENERATE_SECONDS, probe=True)


def _no_tick() -> None:
    """Nobody waits yet."""
