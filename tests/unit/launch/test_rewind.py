import pytest

from ecrec.checkpoint.reading import Info, State
from ecrec.errors import CheckpointError, DataLostError
from ecrec.launch import rewind
from ecrec.launch.rewind import SAME_POINT_MAX, Point, Rewinds

LOST = DataLostError("shards 1 and 3 are gone")


@pytest.fixture
def there(monkeypatch):
    found = []
    monkeypatch.setattr(rewind, "checkpoints", lambda url: found)
    return found


def complete(number, cluster):
    return Info(number, State.COMPLETE, cluster=cluster)


def test_only_complete_checkpoints_of_the_run_are_gone_back_to(there):
    rewinds = Rewinds("runs/7", None)
    rewinds.lives("mine")
    there += [complete(1, "mine"), complete(2, "mine"), complete(3, "another"), Info(4, State.UNFINISHED)]
    assert rewinds.back(LOST) == Point("runs/7", 2)
    rewinds.is_damaged(Point("runs/7", 2))
    assert rewinds.back(LOST) == Point("runs/7", 1)


def test_without_one_the_run_goes_back_to_where_it_began_or_ends(there):
    there.append(complete(3, "another"))
    assert Rewinds("runs/7", Point("runs/6", 9)).back(LOST) == Point("runs/6", 9)
    with pytest.raises(DataLostError, match=r"shards 1 and 3 are gone\nThere is nothing to go back to.*runs/7"):
        Rewinds("runs/7", None).back(LOST)


def test_a_checkpoint_that_training_never_gets_past_is_given_up(there):
    rewinds = Rewinds("runs/7", None)
    rewinds.lives("mine")
    there.append(complete(1, "mine"))
    for _ in range(SAME_POINT_MAX):
        rewinds.back(LOST)
    there.append(complete(2, "mine"))
    for _ in range(SAME_POINT_MAX):
        assert rewinds.back(LOST).number == 2
    with pytest.raises(DataLostError, match="gone back to checkpoint 2 at runs/7 3 times"):
        rewinds.back(LOST)


def test_a_folder_that_cannot_be_listed_is_named(monkeypatch):
    def fail(url):
        raise CheckpointError(f"{url}: it hangs")

    monkeypatch.setattr(rewind, "checkpoints", fail)
    with pytest.raises(DataLostError, match="cannot be listed: runs/7: it hangs"):
        Rewinds("runs/7", None).back(LOST)
