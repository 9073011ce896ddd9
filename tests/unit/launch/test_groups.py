import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.groups import Groups, Tolerance, deal
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, CodeSpec


def code(text):
    return CodeSpec.parse(text)


@pytest.mark.parametrize(
    ("shards", "groups", "spec", "dealt"),
    [
        (5, None, "4+1", Groups(1, 5)),
        (16, None, "4+1", Groups(1, 16)),
        (10, 2, "4+1", Groups(2, 5)),
        (18, None, "4+1", Groups(2, 9)),
        (32, None, "14+2", Groups(2, 16)),
        (33, None, "4+1", Groups(3, 11)),
        (64, None, "4+1", Groups(4, 16)),
        (64, 8, "4+1", Groups(8, 8)),
        (34, None, "1+1", Groups(17, 2)),
        (4, 4, "1+0", Groups(4, 1)),
    ],
)
def test_shards_are_dealt_into_the_fewest_equal_groups_unless_told_otherwise(shards, groups, spec, dealt):
    assert deal(shards, groups, code(spec)) == dealt
    assert dealt.shards == shards


def test_every_deal_is_of_equal_groups_that_hold_a_stripe_and_there_is_none_with_fewer_groups():
    for shards in range(1, 200):
        try:
            dealt = deal(shards, None, code("4+1"))
        except ConfigurationError:
            assert shards < 5 or all(
                shards % count or not 5 <= shards // count <= SHARDS_IN_GROUP_MAX for count in range(1, shards + 1)
            )
            continue
        assert dealt.n * dealt.count == shards
        assert 5 <= dealt.n <= SHARDS_IN_GROUP_MAX
        assert not any(
            shards % count == 0 and 5 <= shards // count <= SHARDS_IN_GROUP_MAX for count in range(1, dealt.count)
        )


@pytest.mark.parametrize(
    ("shards", "groups", "spec", "words"),
    [
        (0, None, "4+1", "0 shards: expected at least 1"),
        (17, None, "4+1", "17 shards cannot be dealt .* 5 to 16 shards; possible are 15, 16, 18 and 20"),
        (34, None, "4+1", "34 shards cannot be dealt .*possible are 32, 33, 35 and 36"),
        (22, None, "10+4", "22 shards cannot be dealt .*14 to 16 shards; possible are 15, 16, 28 and 30"),
        (20, None, "16+1", "a stripe of 17 rows needs as many shards, and a coding group has at most 16"),
        (1 << 40, None, "4+1", "at most 1048576 are possible, 65536 groups of 16"),
        (10, 3, "4+1", "10 shards in 3 groups: .*expected a multiple of 3, for example 9 or 12"),
        (5, 10, "4+1", "5 shards in 10 groups: .*expected a multiple of 10, for example 10"),
        (34, 2, "4+1", "that is 17 in each, .*at most 16; expected at least 3 groups"),
        (10, 0, "4+1", "0 groups: expected 1 to 65536"),
        (8, 2, "4+1", "2 groups of 4 shards: code 4\\+1: .* k \\+ r = 5 different shards.*has 4"),
        (4, None, "4+1", "^code 4\\+1: .*has 4"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_numbers_that_can(shards, groups, spec, words):
    with pytest.raises(ConfigurationError, match=words):
        deal(shards, groups, code(spec))


def test_without_a_code_groups_dealt_unasked_have_room_for_the_default_and_others_what_was_asked():
    assert deal(22) == Groups(2, 11)
    assert deal(34, 17) == Groups(17, 2)
    with pytest.raises(ConfigurationError, match="34 shards cannot be dealt"):
        deal(34)
    assert deal(3) == Groups(1, 3)


def test_shards_are_numbered_over_all_groups():
    groups = Groups(3, 5)
    assert [groups.of(shard) for shard in (0, 4, 5, 14)] == [0, 0, 1, 2]
    assert list(groups.members(1)) == [5, 6, 7, 8, 9]
    assert str(groups) == "3 groups of 5 shards"


def test_each_group_tolerates_r_deaths_of_its_own():
    tolerance = Tolerance(Groups(3, 5), code("4+1"))
    assert tolerance.broken({}) == tolerance.broken({0, 7, 14}) == set()
    assert tolerance.broken({0, 4, 5, 13, 14}) == {0, 2}
    assert Tolerance(Groups(2, 5), code("4+0")).broken({7}) == {1}


def test_shards_of_a_group_that_share_no_stripe_may_die_together():
    tolerance = Tolerance(Groups(2, 10), code("4+1"))
    assert tolerance.broken({0, 5, 13, 18}) == set()
    assert tolerance.broken({0, 4}) == {0}
    assert tolerance.broken({9, 0}) == {0}
    assert tolerance.broken({10, 19}) == {1}
