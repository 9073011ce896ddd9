"""Any sequence of calls on a group of stores: windows, parities, seeds, captures and repairs are what a model says."""

import random
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from store_sequences import HEAD_BYTES, STEP_BYTES, STEPS, STEPS_MAX, World, run, small_thresholds


class StoreSequence(RuleBasedStateMachine):
    """`World` under hypothesis, which makes a failing sequence short."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed: int) -> None:
        self.thresholds = small_thresholds(np.random.default_rng([seed, 1]))
        self.thresholds.__enter__()
        self.world = World(seed)

    @rule(name=st.sampled_from(sorted(STEPS)), seed=st.integers(0, 255))
    def step(self, name: str, seed: int) -> None:
        STEPS[name](self.world, np.random.default_rng(seed))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.finish()
            finally:
                self.thresholds.__exit__(None, None, None)


StoreSequence.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
TestStoreSequence: Any = StoreSequence.TestCase


def test_drawn_sequences_reach_every_step() -> None:
    rng = random.Random(11)
    taken: Counter[str] = Counter()
    for _ in range(40):
        taken.update(run(rng.randbytes(HEAD_BYTES + STEP_BYTES * STEPS_MAX)))
    assert min(taken[name] for name in STEPS) > 20
