"""`Session.evaluate` at a checkpoint of a running cluster: one cut of all workers, while one of them pushes."""

import threading

import pytest
import torch

import ecrec
from ecrec.errors import ConfigurationError
from ecrec.training import SGD, Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

ROWS = 64
ALL = KeyedJaggedTensor.from_ids(["item"], torch.arange(ROWS).reshape(1, ROWS))
PIECES = [KeyedJaggedTensor.from_ids(["item"], torch.arange(ROWS).reshape(8, 1, 8)[i]) for i in range(8)]


class Model(torch.nn.Module):
    """Each push lowers all rows, on all shards, and the parameter, by one: in one state all are equal."""

    def __init__(self, session, **options):
        super().__init__()
        self.bags = EmbeddingBagCollection(
            session, [EmbeddingBagConfig(ROWS, 4, "items", feature_names=["item"], init_scale=0.0, **options)],
            SGD(lr=1.0),
        )  # fmt: skip
        self.dense = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.dense.weight.zero_()
        session.replicate(self.dense, SGD(lr=1.0))

    def step(self, session):
        (self.bags(ALL).values().sum() + self.dense(torch.ones(1, 1)).sum()).backward()
        session.push()

    def values(self, features):
        """All that it has of a batch, as a set."""
        return {*self.bags(features).values().flatten().tolist(), *self.dense(torch.ones(1, 1)).flatten().tolist()}


def test_a_checkpoint_is_evaluated_at_one_cut_of_two_free_workers_while_one_of_them_pushes(tmp_path):
    url = str(tmp_path / "checkpoints")
    with ecrec.local_cluster(shards=3, code="2+1") as owner:
        endpoint = owner.scheduler[0]
        stops, pushed = threading.Event(), threading.Event()
        errors, counts = [], []

        def other():
            try:
                with ecrec.connect(endpoint, rank=2, world_size=3, code="2+1") as session:
                    model = Model(session)
                    while not stops.is_set():
                        model.step(session)
                        pushed.set()
                    counts.append(session.figures.steps)
            except BaseException as error:
                errors.append(error)
                pushed.set()

        with ecrec.connect(endpoint, rank=1, world_size=3, code="2+1") as session:
            # Worker 0 writes the first values of the parameters; the owner of the cluster is that one.
            first = Model(owner)
            model = Model(session)
            thread = threading.Thread(target=other)
            thread.start()
            try:
                assert pushed.wait(60) and not errors, errors
                model.step(session)
                with pytest.raises(ConfigurationError, match=r"number = session\.save\(url\)"):
                    session.evaluate(model, PIECES, model.values)
                number = session.save(url)
                found = []

                def predict(features):
                    pushed.clear()
                    assert pushed.wait(60) and not errors, errors  # the other one goes on to push meanwhile
                    return model.values(features)

                found = session.evaluate(model, PIECES, predict, checkpoint=url, number=number)
                later = session.evaluate(model, PIECES, model.values, checkpoint=url)
                moving = session.evaluate(model, PIECES, model.values, consistent=False)
            finally:
                stops.set()
                thread.join()
            assert not errors, errors
            model.step(session)
        # The reader is no worker, and sees the same cut.
        with ecrec.connect(endpoint, read_only=True) as reader:
            seen = Model(reader)
            assert reader.evaluate(seen, PIECES, seen.values, checkpoint=url, number=number) == found
        last = owner.evaluate(first, [ALL], first.values)
    assert len(set(map(frozenset, found))) == 1 and len(found[0]) == 1, "one state, of tables and parameters"
    assert later == found
    assert min(map(min, moving)) < found[0].copy().pop(), "what was there when each batch was pulled is newer"
    assert last == [{-float(counts[0] + 2)}], "nothing of the training was lost or done twice"


def test_a_checkpoint_of_another_model_is_refused_and_rows_nobody_touched_have_their_first_values(tmp_path):
    url = str(tmp_path / "checkpoints")

    def bags(session, rows, seed=4):
        config = EmbeddingBagConfig(rows, 4, "items", feature_names=["item"])
        return EmbeddingBagCollection(session, [config], Adagrad(lr=0.5), seed=seed)

    with ecrec.local_cluster(shards=3, code="2+1") as session:
        made = bags(session, ROWS)
        some = KeyedJaggedTensor.from_ids(["item"], torch.tensor([[3, 3, 40]]))
        made(some).values().square().sum().backward()
        session.push()
        with torch.no_grad():
            expected = made(ALL).values()
        session.save(url)
        made(some).values().square().sum().backward()
        session.push()
        (found,) = session.evaluate(made, [ALL], lambda batch: made(batch).values(), checkpoint=url)
        assert torch.equal(found, expected)
        (now,) = session.evaluate(made, [ALL], lambda batch: made(batch).values())
        assert (now != expected).any(1).nonzero().flatten().tolist() == [3, 40]
    with ecrec.local_cluster(shards=4, code="3+1") as session:
        other = bags(session, ROWS, seed=5)
        (found,) = session.evaluate(other, [ALL], lambda batch: other(batch).values(), checkpoint=url)
        assert torch.equal(found, expected), "first values are those of the checkpoint's table, whatever the shape"
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        other = bags(session, ROWS + 1)
        with pytest.raises(
            ConfigurationError, match=r"rows of table 'items' is 64 in the checkpoint and 65 in the mod"
        ):
            session.evaluate(other, [], checkpoint=url)
        session.replicate(torch.nn.Linear(1, 1), SGD(lr=1.0), name="head")
        with pytest.raises(ConfigurationError, match=r"rows of table 'items'|there is no table 'head'"):
            session.evaluate(other, [], checkpoint=url)
