"""Splits of a data set, leased to this worker one after the other."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from ecrec.errors import ConfigurationError, RefusedError
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.client_leases import SplitLease
from ecrec.protocol.events import Effect
from ecrec.protocol.messages import Dataset
from ecrec.transport.client_node import check_process

log = logging.getLogger(__name__)


class Split(NamedTuple):
    """Examples first <= i < last of a pass, leased to this worker."""

    epoch: int
    """Number of the pass, from 0."""
    first: int
    last: int


class Splits:
    """What `Session.lease_splits` gives, and how much of it is done.

    ``perform`` carries out what the machine wants, ``wait`` waits for something, and is told for what; ``lock`` is held
    while the machine is looked at and changed.
    """

    def __init__(
        self,
        machine: ClientMachine,
        perform: Callable[[Sequence[Effect]], None],
        wait: Callable[[Callable[[], bool], str], None],
        lock: AbstractContextManager[object],
    ) -> None:
        self._machine = machine
        self._perform = perform
        self._wait = wait
        self._lock = lock
        self._pid = os.getpid()
        self._iterations = 0
        """How often somebody began to iterate: an iteration that was broken off, as by Ctrl-C, may still be held by
        somebody, and the next one takes over."""
        self._split: SplitLease | None = None
        """The last one that was given."""
        self._iterated: set[Dataset] = set()

    def iterate(self, dataset: Dataset) -> Iterator[Split]:
        """All splits that are given to this worker, until all workers' are done. Raises what `lease_splits` says."""
        if dataset in self._iterated:
            raise ConfigurationError(
                f"lease_splits({dataset.name!r}): this session has iterated over all of it: epochs= says how many "
                "passes there are, and another name begins anew"
            )
        return self._iterate(dataset)

    @property
    def is_open(self) -> bool:
        """An iteration goes on."""
        return self._split is not None

    def check(self, examples: int) -> None:
        """Raise ConfigurationError if a push of so many examples does not fit the split."""
        left = self._left()
        if self._split is not None and examples > left:
            raise ConfigurationError(
                f"a push of {examples} examples, but {left} are left of the split: a batch must not reach into the next"
            )

    def _iterate(self, dataset: Dataset) -> Iterator[Split]:
        check_process(self._pid)
        self._check_broken_off(dataset)
        self._iterations += 1
        mine = self._iterations
        given = 0
        try:
            while (split := self._next(dataset)) is not None:
                given += 1
                yield split
                check_process(self._pid)
                if mine != self._iterations:
                    raise ConfigurationError(
                        f"lease_splits({dataset.name!r}): a later call has gone on with these splits; iterate over "
                        "that one alone"
                    )
                if left := self._left():
                    raise ConfigurationError(
                        f"{dataset.name!r}: {left} examples of the split {split.first} to {split.last} were not "
                        "pushed; push(examples) counts them"
                    )
        finally:
            if mine == self._iterations:
                self._split = None
        self._iterated.add(dataset)
        if not given:
            log.warning(
                "lease_splits(%r): all %d examples were trained on before, or by other workers, and this one was given "
                "none; another name begins anew", dataset.name, dataset.end,
            )  # fmt: skip

    def _next(self, dataset: Dataset) -> Split | None:
        """Wait for the next split; None when all are done."""
        leasing = self._machine.leasing
        with self._lock:
            if not leasing.leases:
                self._ask(dataset)
            while leasing.asking and not leasing.leases:
                # Each answer, be it that others have the rest, is a sign of life: wait on as long as they come.
                known = leasing.answers
                self._wait(partial(self._answered, known), "the scheduler to answer about a split")
            if not leasing.leases:
                if dataset in leasing.finished:
                    return None
                raise RefusedError(f"lease_splits({dataset.name!r}): {leasing.refusal}")
            # So that the next one is there when this one is done, even if the scheduler is away for a while.
            if len(leasing.leases) == 1:
                self._ask(dataset)
            self._split = split = leasing.leases[0]
            # fewer than it has where an earlier iteration was broken off in it
            left = leasing.examples_left or 0
            epoch, first = divmod(split.last - left, dataset.examples)
            return Split(epoch, first, first + left)

    def _check_broken_off(self, dataset: Dataset) -> None:
        """Splits are trained on in the order in which they were given, and one that is asked for may be given."""
        leasing = self._machine.leasing
        for other in (leasing.dataset, leasing.asked_dataset):
            if other not in (None, dataset):
                raise ConfigurationError(
                    f"lease_splits({dataset.name!r}): an iteration over {_describe(other)} was broken off, and this "
                    "worker still has, or is to get, a split of it; go on with that one to its end, or connect again"
                )

    def _answered(self, known: int) -> bool:
        return self._machine.leasing.answers != known

    def _ask(self, dataset: Dataset) -> None:
        if not self._machine.leasing.asking and dataset not in self._machine.leasing.finished:
            self._perform(self._machine.lease(dataset))

    def _left(self) -> int:
        """Examples of the split that was given last."""
        leases = self._machine.leasing.leases
        return (self._machine.leasing.examples_left or 0) if leases and leases[0] == self._split else 0


def _describe(dataset: Dataset | None) -> str:
    assert dataset is not None
    return f"{dataset.name!r} (examples={dataset.examples}, split_examples={dataset.split_examples}, end={dataset.end})"
