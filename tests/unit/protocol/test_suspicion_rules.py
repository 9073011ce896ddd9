"""The rules by which members are declared down, one at a time: `Suspicions.decide` at the limits of its clocks."""

from collections.abc import Collection
from typing import Any

import pytest

from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.suspicion import Decision, Held, Sign, Suspicions, Word

CONFIG = ProtocolConfig()
TIMEOUT_MS, MANY_MS = CONFIG.heartbeat_timeout_ms, CONFIG.heartbeat_timeout_many_ms
GRACE_MS, LINK_MS, STUCK_MS = CONFIG.reconnect_grace_ms, CONFIG.link_timeout_ms, CONFIG.stuck_timeout_ms
RESEND_MS = CONFIG.view_resend_ms


class Members:
    """A group of which a test says who is heard, what is said, and how many deaths its code tolerates."""

    def __init__(self, n: int = 5, tolerated: int = 1, **limits: Any) -> None:
        self.suspicions = Suspicions(ProtocolConfig(**limits), base=10)
        self.now_ms = 0.0
        self.newest = 3
        self.tolerated = tolerated
        self.uncoded: set[int] = set()
        """Those that hold rows without parity."""
        self.heard_ms = dict.fromkeys(range(n), 0.0)
        self.mute: set[int] = set()
        self.more: dict[int, dict[str, Any]] = {}
        """Fields of signs."""
        self.words: list[Word] = []
        self.wanted: set[int] = set()
        """Places for which a process waits."""

    def at(self, now_ms: float, *, forget: bool = True) -> Decision:
        """What is decided at this time. Those that are declared down are gone, as the scheduler has it."""
        self.now_ms = now_ms
        for shard in self.heard_ms.keys() - self.mute:
            self.heard_ms[shard] = now_ms
        signs = [
            Sign(shard, now_ms - heard_ms, **{"view": self.newest, **self.more.get(shard, {})})
            for shard, heard_ms in self.heard_ms.items()
        ]
        decision = self.suspicions.decide(
            now_ms, self.newest, signs, lambda: self.words, self._tolerates, lambda shards: self.wanted >= set(shards)
        )
        down, held = [v.shard for v in decision.down], {h.shard for h in decision.held}
        assert len(down) == len(set(down)), "a member is declared down twice"
        assert not held.intersection(down), "a member is declared down, and only suspected"
        for shard in down if forget else ():
            self.suspicions.forget(shard)
            del self.heard_ms[shard]
        self.suspicions.news(decision.held, now_ms)
        return decision

    def down(self, now_ms: float) -> list[int]:
        return [verdict.shard for verdict in self.at(now_ms).down]

    def held(self, now_ms: float) -> dict[int, str]:
        """Who is suspected; nobody is declared down."""
        decision = self.at(now_ms)
        assert decision.down == []
        return {entry.shard: entry.reason for entry in decision.held}

    def pass_time(self, until_ms: float, step_ms: float = 20.0) -> None:
        """Nobody is declared down until then."""
        while self.now_ms + step_ms < until_ms:
            assert self.down(self.now_ms + step_ms) == [], f"at {self.now_ms} ms"
        assert self.down(until_ms) == [], f"at {until_ms} ms"

    def _tolerates(self, shards: Collection[int], uncoded: bool) -> bool:
        return len(shards) <= self.tolerated and not (uncoded and self.uncoded.intersection(shards))


def missed(*about: int, by: int = 0, **more: Any) -> list[Word]:
    """A peer that is heard has not heard of them."""
    return [Word(by, each, **{"age_ms": 10.0, "heard_ms": NEVER_MS, "linked": False, **more}) for each in about]


# ------------------------------------------------------------------ closed connections
def test_a_connection_that_is_there_again_holds_up_no_verdict_on_another_member() -> None:
    for again in (True, False):
        members = Members()
        members.mute = {1, 2}
        members.heard_ms[2] = 780.0
        members.suspicions.broke(2, 790.0)
        if again:
            members.suspicions.made(2)
        assert members.down(810.0) == ([1] if again else []), again


def test_a_connection_that_was_closed_and_is_there_again_speaks_against_nobody() -> None:
    for again in (True, False):
        members = Members()
        members.mute = {1}
        members.suspicions.closed(1, 200.0)
        if again:
            members.suspicions.made(1)
        members.words = missed(1, severed=True)
        assert members.down(600.0) == ([] if again else [1]), again


@pytest.mark.parametrize(
    ("words", "is_down"),
    [
        ([], False),
        (missed(1, severed=True), True),
        (missed(1), False),
        (missed(2, severed=True), False),
        (missed(1, severed=True, age_ms=299.0), True),
        (missed(1, severed=True, age_ms=300.0), False),  # said before the connection broke
        ([*missed(1, severed=True), *missed(1, by=3, linked=True)], False),
        ([*missed(1, severed=True), *missed(2, by=3, linked=True)], True),
    ],
)
def test_a_closed_connection_is_a_death_if_a_peers_one_broke_too_and_no_peer_has_one(
    words: list[Word], is_down: bool
) -> None:
    members = Members()
    members.mute = {1}
    members.suspicions.closed(1, GRACE_MS)
    members.words = words
    assert members.down(300.0) == ([1] if is_down else [])


@pytest.mark.parametrize(("heard_since", "least_ms"), [(False, GRACE_MS), (True, GRACE_MS + 3 * CONFIG.heartbeat_ms)])
def test_one_whose_connection_is_closed_and_that_was_heard_since_must_miss_three_heartbeats_more(
    heard_since: bool, least_ms: float
) -> None:
    for early_ms in (1.0, 0.0):
        members = Members()
        members.suspicions.closed(1, 200.0 if heard_since else 1_000.0)
        members.words = missed(1, severed=True)
        members.at(1_000.0)
        members.mute = {1}
        assert members.down(1_000.0 + least_ms - early_ms) == ([] if early_ms else [1])


def test_a_killed_one_and_a_silent_one_that_the_code_tolerates_together_are_down_at_once() -> None:
    members = Members(tolerated=2)
    members.mute = {1, 2}
    members.suspicions.closed(1, 700.0)
    members.words = missed(1, severed=True)
    assert members.down(801.0) == [1, 2]


# ------------------------------------------------------------------ silence
def test_silence_is_a_death_when_the_timeout_is_over_and_not_at_it() -> None:
    members = Members()
    members.mute = {1}
    members.pass_time(TIMEOUT_MS)
    assert members.down(TIMEOUT_MS + 1.0) == [1]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_of_a_group_of_which_nobody_is_heard_nobody_is_down_before_others_have_waited_for_all_places(
    is_wanted: bool,
) -> None:
    members = Members(3, tolerated=3)
    members.mute = {0, 1, 2}
    members.newest = 4  # and that they are behind makes no difference
    members.more = {shard: {"view": 3} for shard in range(3)}
    members.pass_time(MANY_MS + 5_000.0)
    members.wanted = {0, 1, 2} if is_wanted else {0, 1}
    begun_ms = members.now_ms + 20.0
    assert "nobody of its group is heard" in members.held(begun_ms)[2]
    members.pass_time(begun_ms + TIMEOUT_MS)
    assert members.down(begun_ms + TIMEOUT_MS + 1.0) == ([0, 1, 2] if is_wanted else [])


def test_the_wait_of_newcomers_for_all_places_is_one_without_a_break() -> None:
    members = Members(3, tolerated=3)
    members.mute = {0, 1, 2}
    members.pass_time(1_000.0)
    members.wanted = {0, 1, 2}
    members.pass_time(1_700.0)
    members.wanted = {0, 1}
    members.pass_time(1_800.0)
    members.wanted = {0, 1, 2}
    members.pass_time(1_820.0 + TIMEOUT_MS)
    assert members.down(1_821.0 + TIMEOUT_MS) == [0, 1, 2]


def test_what_is_known_to_be_dead_with_data_is_missed_for_half_the_long_timeout_and_unheard_for_all_of_it() -> None:
    """Both to the millisecond: what ends sooner decides nothing."""
    members = Members()
    members.mute = {1, 2}
    members.words = missed(1, 2)
    members.pass_time(MANY_MS)
    assert members.down(MANY_MS + 1.0) == [1, 2]
    members = Members()
    members.mute = {1, 2}
    members.pass_time(6_000.0)
    members.words = missed(1, 2)
    members.pass_time(6_020.0 + MANY_MS / 2)
    assert members.down(6_021.0 + MANY_MS / 2) == [1, 2]


def test_a_suspect_is_missed_without_a_break_or_anew() -> None:
    members = Members()
    members.mute = {1, 2}
    members.words = missed(1, 2)
    members.pass_time(3_000.0)
    members.words = missed(2)
    assert "nobody is heard who misses it" in members.held(3_020.0)[1]
    members.words = missed(1, 2)
    members.pass_time(MANY_MS)
    assert members.down(MANY_MS + 1.0) == [2]
    members.tolerated = 0  # with the one that is down
    members.pass_time(3_040.0 + MANY_MS / 2)
    assert members.down(3_041.0 + MANY_MS / 2) == [1]


def test_one_that_was_heard_again_is_missed_anew() -> None:
    members = Members(tolerated=0, heartbeat_timeout_many_ms=1_000)
    members.mute = {1}
    members.words = missed(1)
    members.pass_time(1_200.0)
    members.mute = set()
    members.pass_time(3_000.0)
    members.mute = {1}
    members.pass_time(4_300.0)
    assert members.down(4_400.0) == [1]


@pytest.mark.parametrize(
    ("silent", "words", "why"),
    [
        ({1, 2}, [], "nobody is heard who misses it"),
        ({1, 2}, missed(1, 2, by=1), "nobody is heard who misses it"),  # a suspect itself
        ({1, 2}, missed(1, 2, knows=False), "nobody is heard who misses it"),
        ({1, 2}, missed(1, 2, age_ms=TIMEOUT_MS + 1.0), "nobody is heard who misses it"),
        ({1, 2, 3}, missed(1, 2, 3), "more are silent than heard"),
        ({1, 2}, missed(1, 2, age_ms=TIMEOUT_MS), ""),
        ({1, 2}, missed(1, 2), ""),
    ],
)
def test_silence_that_may_be_the_schedulers_own_is_no_death_however_long(
    silent: set[int], words: list[Word], why: str
) -> None:
    members = Members()
    members.mute, members.words = silent, words
    members.pass_time(MANY_MS)
    if why:
        members.pass_time(3 * MANY_MS, step_ms=200.0)
        assert why in members.held(3 * MANY_MS + 20.0)[1]
    else:
        assert members.down(MANY_MS + 20.0) == [1, 2]


@pytest.mark.parametrize(
    ("is_closed", "is_claimed", "is_down"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_closed_connection_and_a_process_at_its_endpoint_are_together_a_witness(
    is_closed: bool, is_claimed: bool, is_down: bool
) -> None:
    """Nobody who is heard misses it: the peer whose connection broke is a suspect too."""
    members = Members()
    members.mute = {1, 2}
    if is_closed:
        members.suspicions.closed(1, 1_000.0)
    members.words = missed(1, by=2, severed=True)
    found: list[int] = []
    while members.now_ms < 2 * MANY_MS:
        if is_claimed:
            members.suspicions.claimed(1, "other", members.now_ms)
        found += members.down(members.now_ms + 20.0)
    assert (1 in found) == is_down


@pytest.mark.parametrize("after_ms", [0.0, 1.0])
@pytest.mark.parametrize("waits_first", [True, False])
def test_silent_members_are_down_when_others_have_waited_for_all_their_places(
    waits_first: bool, after_ms: float
) -> None:
    """The silence and the wait of the newcomers count, whichever began last."""
    members = Members()
    members.mute = {1, 2}
    if waits_first:
        members.wanted = {1, 2}
        members.words = [Word(3, each, 10.0, 10_000.0, False, knows=False) for each in (1, 2)]
        members.pass_time(TIMEOUT_MS + 20.0)
        begun_ms = members.now_ms = 70_000.0
        members.heard_ms[1] = members.heard_ms[2] = begun_ms - CONFIG.isolated_timeout_ms - after_ms
        members.words = []
    else:
        members.pass_time(50_000.0, step_ms=500.0)
        members.wanted = {1, 2}
        begun_ms = 50_020.0
        members.pass_time(begun_ms)
        begun_ms += CONFIG.isolated_timeout_ms + after_ms
    assert members.down(begun_ms) == ([1, 2] if after_ms else [])


def test_of_two_silent_ones_that_which_no_peer_hears_either_is_down_once_the_peers_were_asked() -> None:
    """The other one lives: a peer has just heard it, and it is the scheduler that does not."""
    members = Members()
    members.mute = {1, 2}
    members.words = [*missed(1), Word(0, 2, 0.0, 50.0, True)]
    begun_ms = TIMEOUT_MS + 20.0
    members.pass_time(begun_ms + TIMEOUT_MS / 2)
    decision = members.at(begun_ms + TIMEOUT_MS / 2 + 1.0)
    assert [verdict.shard for verdict in decision.down] == [1] and [entry.shard for entry in decision.held] == [2]
    assert "a peer heard of it 50 ms ago" in decision.held[0].reason
    members.tolerated = 0
    members.pass_time(2 * MANY_MS)


def test_one_that_is_heard_again_gives_the_other_suspects_time() -> None:
    members = Members()
    members.mute = {1, 2}
    members.pass_time(2_000.0)
    members.mute = {1}
    assert "another suspect has just been heard again" in members.held(2_020.0)[1]
    members.pass_time(2_020.0 + TIMEOUT_MS)
    assert members.down(2_021.0 + TIMEOUT_MS) == [1]


def test_a_replacement_that_is_heard_gives_suspects_no_time() -> None:
    """It is not the one that was down, and heard again."""
    members = Members()
    members.mute = {1}
    assert members.down(801.0) == [1]
    members.heard_ms[1] = 810.0
    members.mute = {2}
    members.heard_ms[2] = 5.0
    assert members.down(820.0) == [2]


def test_peers_are_asked_about_suspects_at_most_once_in_the_time_of_a_resend() -> None:
    members = Members()
    members.mute = {1, 2}
    asked = [ms for ms in range(20, 2_000, 20) if members.at(float(ms)).ask]
    assert asked[0] == TIMEOUT_MS + 20.0
    assert asked == list(range(asked[0], 2_000, RESEND_MS))


def test_one_that_a_new_scheduler_has_not_heard_and_a_peer_has_is_given_the_long_timeout() -> None:
    """A peer that heard of it within the short time-out: it lives, and looks for the scheduler."""
    for age_ms, is_down in ((TIMEOUT_MS / 2, False), (TIMEOUT_MS, False), (TIMEOUT_MS + 1.0, True)):
        members = Members()
        members.mute = {1}
        members.more = {1: {"met": False}}
        members.words = [Word(0, 1, 0.0, age_ms, True)]
        found: list[int] = []
        while members.now_ms < MANY_MS - 20.0:
            found += members.down(members.now_ms + 20.0)
        assert found == ([1] if is_down else []), age_ms


# ------------------------------------------------------------------ another process at the endpoint
def test_another_process_at_an_endpoint_is_news_once_until_it_has_given_up() -> None:
    members = Members()
    claimed = members.suspicions.claimed
    assert [claimed(1, "one", 0.0), claimed(1, "one", 100.0), claimed(1, "two", 200.0)] == [True, False, True]
    members.at(200.0 + TIMEOUT_MS)
    assert not claimed(1, "two", 200.0)
    members.at(201.0 + TIMEOUT_MS)
    assert claimed(1, "two", 201.0 + TIMEOUT_MS), "that one waited no more"


@pytest.mark.parametrize(
    ("broke", "claims", "silent_ms", "is_down"),
    [
        (True, True, TIMEOUT_MS / 2 + 1.0, True),
        (True, True, TIMEOUT_MS / 2, False),
        (False, True, TIMEOUT_MS / 2 + 1.0, False),
        (True, False, TIMEOUT_MS / 2 + 1.0, False),
    ],
)
def test_a_connection_that_broke_and_another_process_at_the_endpoint_is_a_death_after_half_a_timeout(
    broke: bool, claims: bool, silent_ms: float, is_down: bool
) -> None:
    members = Members()
    members.at(1_000.0)
    members.mute = {1}
    if broke:
        members.suspicions.broke(1, 1_010.0)
        members.suspicions.made(1)  # to the other process
    if claims:
        members.suspicions.claimed(1, "other", 1_020.0)
        members.suspicions.closed(4, 1_020.0)  # of one that is heard
    assert members.down(1_000.0 + silent_ms) == ([1] if is_down else [])


# ------------------------------------------------------------------ the scheduler stood still
def test_what_was_heard_after_a_pause_counts_as_heard_since_the_connection_was_closed() -> None:
    members = Members()
    members.suspicions.closed(1, 100.0)
    members.words = missed(1, severed=True)
    members.heard_ms[1] = 1_150.0
    members.mute = {1}
    members.suspicions.stood_still(1_000.0, 1_160.0)
    assert members.down(1_160.0 + GRACE_MS) == [] and members.down(1_150.0 + GRACE_MS + 300.0) == [1]


def test_a_pause_of_the_scheduler_lengthens_every_time_by_its_length_and_not_more() -> None:
    members = Members()
    members.suspicions.claimed(1, "other", 0.0)
    members.suspicions.stood_still(500.0, 900.0)
    assert not members.suspicions.both_live(1, "other", 500.0 + TIMEOUT_MS)
    assert members.suspicions.both_live(1, "other", 501.0 + TIMEOUT_MS)
    members.at(500.0 + TIMEOUT_MS)
    assert members.suspicions.both_live(1, "other", 2_000.0)
    members.at(501.0 + TIMEOUT_MS)
    assert not members.suspicions.both_live(1, "other", 2_000.0), "that process waited no more"

    members = Members()  # missed since 6,020 ms
    members.mute = {1, 2}
    members.pass_time(6_000.0)
    members.words = missed(1, 2)
    members.pass_time(7_500.0)
    members.suspicions.stood_still(300.0, 7_500.0)
    members.pass_time(6_320.0 + MANY_MS / 2)
    assert members.down(6_321.0 + MANY_MS / 2) == [1, 2]

    members = Members()  # behind since 20 ms
    members.newest, members.more = 4, {1: {"view": 3}}
    members.pass_time(2_000.0)
    members.suspicions.stood_still(300.0, 2_000.0)
    members.pass_time(320.0 + LINK_MS)
    assert members.down(321.0 + LINK_MS) == [1]


def test_nothing_begins_in_the_future_because_of_a_pause() -> None:
    """What came before the tick that knows of the pause is as old as it was."""
    members = Members()
    members.suspicions.claimed(1, "other", 890.0)
    members.suspicions.stood_still(500.0, 900.0)
    assert members.suspicions.both_live(1, "other", 901.0 + TIMEOUT_MS)
    members = Members()
    members.newest, members.more = 4, {1: {"view": 3}}
    members.at(890.0)
    members.suspicions.stood_still(500.0, 900.0)
    assert members.down(900.0 + LINK_MS) == [] and members.down(901.0 + LINK_MS) == [1]


# ------------------------------------------------------------------ heard, but confirms nothing
@pytest.mark.parametrize(
    ("sign", "reason"),
    [
        ({"view": 3}, "the newest is 4"),
        ({"view": 2}, "the newest is 4"),
        ({"view": 4, "unprepared": True}, "a table waits for it to prepare"),
    ],
)
def test_one_that_is_behind_is_down_when_it_has_confirmed_nothing_for_the_timeout(
    sign: dict[str, Any], reason: str
) -> None:
    """From the first tick that found it behind on, and it is told to stop."""
    members = Members()
    members.at(0.0)
    members.newest, members.more = 4, {1: sign}
    members.at(1.0)
    assert members.down(1.0 + LINK_MS) == []
    (verdict,) = members.at(2.0 + LINK_MS).down
    assert verdict.shard == 1 and verdict.must_stop and reason in verdict.reason


def test_one_that_was_not_behind_for_a_moment_has_the_whole_time_again() -> None:
    members = Members()
    waits = {1: {"unprepared": True}}
    members.more = waits
    members.pass_time(3_900.0)
    members.more = {}
    members.at(3_920.0)
    members.more = waits
    members.pass_time(3_940.0 + LINK_MS)
    assert members.down(3_941.0 + LINK_MS) == [1]


@pytest.mark.parametrize(
    ("lags_ms", "lagging", "is_down"),
    [(TIMEOUT_MS, {2}, True), (TIMEOUT_MS + 1.0, {2}, False), (TIMEOUT_MS + 1.0, {1}, True)],
)
def test_who_has_not_heard_of_the_newest_state_may_be_as_deaf_as_one_that_confirms_nothing(
    lags_ms: float, lagging: set[int], is_down: bool
) -> None:
    members = Members()
    members.newest, end_ms = 4, 1.0 + LINK_MS
    members.more = {1: {"view": 3}}
    members.at(0.0)
    members.at(end_ms - lags_ms - 1.0)
    lags = {shard: {"lags": True} for shard in lagging}
    members.more = {**lags, 1: {"view": 3, **lags.get(1, {})}}
    members.at(end_ms - lags_ms)
    assert members.down(end_ms) == ([1] if is_down else [])


@pytest.mark.parametrize("other_ms", [TIMEOUT_MS, TIMEOUT_MS + 1.0])
def test_who_is_behind_for_longer_than_a_heartbeat_timeout_counts_as_lost_with_the_first(other_ms: float) -> None:
    members = Members()
    members.newest, end_ms = 4, 1.0 + LINK_MS
    members.more = {1: {"view": 3}}
    members.at(0.0)
    members.more = {1: {"view": 3}, 2: {"view": 3}}
    members.at(end_ms - other_ms)
    assert members.down(end_ms) == ([1] if other_ms == TIMEOUT_MS else [])


def test_rows_without_parity_hold_one_that_confirms_nothing_for_the_long_timeout_more_and_no_coded_row_at_all() -> None:
    for tolerated in (1, 0):
        members = Members(tolerated=tolerated)
        members.uncoded = {1}
        members.newest, members.more = 4, {1: {"view": 3}}
        members.at(0.0)
        assert "data would be lost with it" in members.held(LINK_MS + MANY_MS)[1]
        assert members.down(1.0 + LINK_MS + MANY_MS) == ([1] if tolerated else [])
        if not tolerated:
            assert "data would be lost with it" in members.held(60_000.0)[1]


def test_the_patience_with_several_that_confirm_nothing_is_over_with_that_for_the_first() -> None:
    members = Members(tolerated=2)
    members.uncoded = {1}
    members.newest, members.more = 4, {1: {"view": 3}}
    members.at(0.0)
    members.more = {1: {"view": 3}, 2: {"view": 3}}
    members.at(4_000.0)
    assert members.held(LINK_MS + MANY_MS).keys() == {1, 2}
    assert members.down(1.0 + LINK_MS + MANY_MS) == [1, 2]


def test_one_that_can_never_catch_up_is_down_at_once_if_nothing_is_lost_and_later_if_so() -> None:
    members = Members()
    members.newest, members.more = 4, {1: {"view": 3, "outrun": True}}
    (verdict,) = members.at(0.0).down
    assert verdict.shard == 1 and verdict.must_stop and "views are kept from a later one on" in verdict.reason
    members = Members(tolerated=0)
    members.newest, members.more = 4, {1: {"view": 3, "outrun": True}, 2: {"view": 3}}
    members.at(0.0)
    assert members.held(LINK_MS + MANY_MS).keys() == {1, 2}
    assert members.down(1.0 + LINK_MS + MANY_MS) == [1], "the other one may yet catch up"


# ------------------------------------------------------------------ links
def late(speaker: int, about: int, late_ms: float, **more: Any) -> Word:
    """The speaker has waited for so long for an acknowledgement."""
    return Word(speaker, about, 10.0, 10.0, True, late_ms=late_ms, **more)


def complaining(*words: Word, n: int = 5, tolerated: int = 1) -> Members:
    members = Members(n, tolerated)
    members.words = list(words)
    members.more = {word.speaker: {"complains": True} for word in words}
    return members


@pytest.mark.parametrize(
    ("words", "is_down"),
    [
        ([late(0, 1, LINK_MS, unheard=True)], False),
        ([late(0, 1, LINK_MS + 1.0, unheard=True)], True),
        ([late(0, 1, LINK_MS + 1.0)], False),
        ([late(0, 1, LINK_MS + 1.0), late(1, 0, 0.0, unheard=True)], True),
        ([late(0, 1, LINK_MS + 1.0), late(2, 0, 0.0, unheard=True)], False),
        ([late(0, 1, STUCK_MS)], False),
        ([late(0, 1, STUCK_MS + 1.0)], True),
        ([late(0, 1, LINK_MS + 1.0, unheard=True, knows=False)], False),
    ],
)
def test_a_link_is_cut_when_one_end_waits_for_an_acknowledgement_and_one_has_heard_nothing(
    words: list[Word], is_down: bool
) -> None:
    members = complaining(*words)
    members.pass_time(20.0 + TIMEOUT_MS)
    assert members.down(21.0 + TIMEOUT_MS) == ([1] if is_down else [])


def test_a_stream_that_cannot_be_followed_needs_no_time() -> None:
    members = complaining(late(0, 1, 0.0, broken=True))
    (verdict,) = members.at(20.0).down
    assert verdict.shard == 1 and verdict.reason == "it and shard(s) 10 cannot follow each other's messages"


@pytest.mark.parametrize(("late_ms", "asked"), [(LINK_MS / 2, {}), (LINK_MS / 2 + 1.0, {0: {1}, 1: {0}})])
def test_both_ends_of_a_link_are_asked_about_each_other_from_half_the_timeout_on(
    late_ms: float, asked: dict[int, set[int]]
) -> None:
    assert complaining(late(0, 1, late_ms)).at(300.0).ask == asked


def test_a_word_about_one_that_was_not_heard_since_the_scheduler_was_started_says_nothing_of_a_link() -> None:
    for met in (False, True):
        members = complaining(late(0, 1, LINK_MS + 1.0, unheard=True))
        members.more[1] = {"met": met}
        members.at(20.0)
        assert members.down(600.0 + TIMEOUT_MS) == ([1] if met else []), met


def test_what_is_said_of_a_link_must_last_without_a_break() -> None:
    members = complaining(late(0, 1, LINK_MS + 1.0, unheard=True))
    members.pass_time(700.0)
    words, members.words = members.words, []
    members.at(720.0)
    members.words = words
    members.pass_time(740.0 + TIMEOUT_MS)
    assert members.down(741.0 + TIMEOUT_MS) == [1]


def test_what_was_said_of_an_incarnation_is_not_held_against_the_next_one() -> None:
    members = complaining(late(0, 1, LINK_MS + 1.0, unheard=True), late(3, 2, LINK_MS + 1.0, unheard=True))
    members.tolerated = 0
    members.pass_time(700.0)
    members.suspicions.forget(2)
    members.tolerated = 1
    assert members.down(900.0) == [1], "what was said of others is as old as it was"


def test_who_is_accused_and_not_whole_is_given_up_before_one_that_is() -> None:
    words = [late(0, 1, 0.0, broken=True)]
    for whole, victim in (({0, 1}, 1), ({1}, 0), ({0}, 1), (set(), 1)):
        members = complaining(*words)
        for shard in range(5):
            members.more.setdefault(shard, {})["whole"] = shard in whole
        members.more[0]["complains"] = True
        assert members.down(20.0) == [victim], whole


def test_the_reason_names_those_that_lost_touch_with_the_victim_alone() -> None:
    words = [late(0, 1, 0.0, broken=True), late(2, 1, 0.0, broken=True), late(3, 4, 0.0, broken=True)]
    (verdict,) = complaining(*words).at(20.0).down
    assert verdict.shard == 1 and verdict.reason.startswith("it and shard(s) 10, 12 cannot follow")


def test_a_link_that_holds_data_waits_for_the_long_timeout_since_the_first_that_accused() -> None:
    """Rows without parity are given up then, coded ones never."""
    members = complaining(late(0, 1, LINK_MS + 1.0, unheard=True))
    members.uncoded = {1}
    members.pass_time(2_000.0)
    members.words.append(late(2, 1, LINK_MS + 1.0, unheard=True))
    members.pass_time(20.0 + MANY_MS)
    assert members.down(21.0 + MANY_MS) == [1]
    members = complaining(late(0, 1, LINK_MS + 1.0, unheard=True), tolerated=0)
    members.pass_time(20_000.0, step_ms=100.0)
    assert "data would be lost with it" in members.held(20_020.0)[1]


def test_one_that_confirms_nothing_and_is_accused_is_declared_down_once() -> None:
    members = complaining(late(0, 1, 0.0, broken=True))
    members.newest = 4
    members.words = []
    members.more = {1: {"view": 3}, 0: {"complains": True}}
    members.at(0.0)
    members.words = [late(0, 1, 0.0, broken=True)]
    (verdict,) = members.at(1.0 + LINK_MS).down
    assert verdict.shard == 1 and verdict.must_stop


def test_one_that_is_silent_is_no_end_of_a_cut_link() -> None:
    """It is dead, and given up in its own time; the one that misses it lives."""
    members = complaining(late(0, 1, 0.0, broken=True), tolerated=0)
    members.mute = {1}
    assert members.held(TIMEOUT_MS + 20.0).keys() == {1}


# ------------------------------------------------------------------ what people and waiting requests are told
def test_who_is_suspected_is_news_once_and_so_is_that_it_is_over() -> None:
    suspicions = Members().suspicions
    one, two = Held(1, "silent"), Held(2, "cut off", blocks=False)
    assert suspicions.news([one], 0.0) == ([one], [])
    new, over = suspicions.news([Held(1, "silent for longer"), two], 10.0)
    assert [(entry.shard, entry.reason) for entry in new] == [(2, "cut off")] and over == []
    assert suspicions.held == {1: "silent for longer", 2: "cut off"}
    assert suspicions.news([two], 20.0) == ([], [1])
    assert suspicions.held == {2: "cut off"}


def test_requests_are_told_of_suspects_they_have_waited_for_too_long_and_of_no_others() -> None:
    suspicions = Members().suspicions
    held, limit_ms = [Held(1, "silent"), Held(2, "its link is cut", blocks=False)], CONFIG.blocked_timeout_ms
    suspicions.news(held, 0.0)
    suspicions.news(held, limit_ms)
    assert suspicions.blocking(limit_ms) == {}
    assert suspicions.blocking(limit_ms + 1.0) == {1: "silent"}
    suspicions.news([], limit_ms + 2.0)
    suspicions.news(held, limit_ms + 3.0)
    assert suspicions.blocking(limit_ms + 4.0) == {}, "it was heard in between"


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (Sign(1, 0.0, 3), ""),
        (Sign(1, 300.0, 3), ""),
        (Sign(1, 301.0, 3), "was not heard for 301 ms"),
        (Sign(1, 0.0, 3, met=False), "was not heard since the scheduler was started"),
        (Sign(2, 0.0, 3), "is suspected to be dead"),
        (Sign(3, 0.0, 3), "has a broken connection"),
        (Sign(4, 200.0, 3), "has a broken connection"),
        (Sign(4, 0.0, 3), ""),  # heard since
    ],
)
def test_who_may_be_dead_holds_up_one_that_wants_to_leave(sign: Sign, said: str) -> None:
    suspicions = Members().suspicions
    suspicions.news([Held(2, "silent")], 0.0)
    suspicions.closed(3, 900.0)
    suspicions.broke(4, 850.0)
    assert suspicions.doubted(1_000.0, [sign]) == ({sign.shard: said} if said else {})


def test_a_member_that_was_silent_has_the_whole_time_to_confirm_what_was_announced_meanwhile() -> None:
    """A scheduler that was cut off announced views that nobody could hear of."""
    members = Members()
    members.at(0.0)
    members.newest, members.mute = 9, set(range(5))
    for shard in range(5):
        members.more[shard] = {"view": 3}
    for now_ms in range(100, 2 * int(LINK_MS), 100):
        assert members.down(float(now_ms)) == []  # nobody is heard: the scheduler may be cut off
    heard_again = 2.0 * LINK_MS
    members.mute = set()
    members.more = {0: {"view": 3}}
    assert members.down(heard_again) == []
    for after_ms in range(100, int(LINK_MS) + 100, 100):
        assert members.down(heard_again + after_ms) == []
    assert [members.down(heard_again + LINK_MS + more) for more in (200.0, 300.0)] in ([[0], []], [[], [0]])
