"""A checkpoint brought into the tables of another model: what fits is taken, and all that does not is named."""

import os

import pytest
import torch
from runs import SMALL

import ecrec
from ecrec.checkpoint.checking import check
from ecrec.errors import ConfigurationError
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor


class Model:
    """Bags of some tables, and a dense part."""

    def __init__(self, session, tables):
        configs = [EmbeddingBagConfig(rows, 8, name, feature_names=[name]) for name, rows in tables.items()]
        self.bags = EmbeddingBagCollection(session, configs, Adagrad(lr=0.1))
        torch.manual_seed(len(tables))
        self.dense = torch.nn.Linear(8, 1)
        session.replicate(self.dense, Adagrad(lr=0.1))
        self.session, self.names = session, list(tables)

    def step(self, *ids):
        features = KeyedJaggedTensor.from_ids(self.names, torch.tensor([list(ids)] * len(self.names)))
        pooled = self.bags(features).values().reshape(len(ids), len(self.names), 8).sum(1)
        self.dense(pooled).square().sum().backward()
        self.session.push()

    def weights(self, name):
        return self.bags.state_dict()[f"embedding_bags.{name}.weight"].clone()


def test_what_fits_is_taken_and_all_that_does_not_is_named(tmp_path):
    url = str(tmp_path / "checkpoints")
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        model = Model(session, {"items": 500, "users": 300, "gone": 50})
        model.step(1, 2, 3, 40)
        session.save(url)
        model.dense(torch.zeros(1, 8))  # pulls the parameters
        items, parameters = model.weights("items"), model.dense.weight.clone()
        model.step(1)
        after = model.weights("items")
    with ecrec.local_cluster(shards=5, code="3+2") as session:
        model = Model(session, {"things": 500, "users": 400, "new": 60})
        before = model.weights("things")
        with pytest.raises(ConfigurationError) as error:
            session.restore(url)
        for text in (
            "'items': is in the checkpoint alone", "'users': rows is 300, not 400",
            "'gone': is in the checkpoint alone",
            "'things': is in the cluster alone", "'new': is in the cluster alone", "nothing was changed",
        ):  # fmt: skip
            assert text in str(error.value)
        assert torch.equal(model.weights("things"), before)
        users = model.weights("users")
        differences = session.restore(url, names={"items": "things"}, partial=True)
        assert [text.split(":")[0] for text in differences] == ["table 'users'", "table 'gone'", "table 'new'"]
        things = model.weights("things")
        touched = [1, 2, 3, 40]
        assert torch.equal(things[touched], items[touched]) and not torch.equal(before[touched], items[touched])
        untouched = [row for row in range(500) if row not in touched]
        assert torch.equal(things[untouched], before[untouched]), "rows nobody touched are those of the new table"
        assert torch.equal(model.weights("users"), users)
        model.dense(torch.zeros(1, 8))  # pulls the parameters
        assert torch.equal(model.dense.weight, parameters)
        model.step(49)
        assert not torch.equal(model.weights("things")[49], before[49]), "training goes on"
        assert session.save(url) == 2
    # The same model, with the optimizer's state: the step after it has the same result, bit by bit.
    with ecrec.local_cluster(shards=6, code="4+2") as session:
        model = Model(session, {"items": 500, "users": 300, "gone": 50})
        assert session.restore(url, 1) == []
        assert torch.equal(model.weights("items")[touched], items[touched])
        model.step(1)
        assert torch.equal(model.weights("items"), after)


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes long: ECREC_LONG_FAULTS=1")
def test_a_run_is_resumed_with_another_model_only_if_that_is_said(trainer, tmp_path):
    url = str(tmp_path / "checkpoints")
    first = trainer.run(*SMALL, "--steps", "3", "--checkpoint", url)
    assert first.code == 0, first.story
    refused = trainer.run(*SMALL, "--resume", url, "--dim", "8")
    assert refused.code == 2, refused.story
    assert all(f"table 'C{number}': dim is 16, not 8" in refused.err for number in range(1, 27)), refused.story
    assert "table 'dense': its parameters have other names" in refused.err and "Traceback" not in refused.err
    taken = trainer.run(*SMALL, "--steps", "6", "--resume", url, "--lr", "0.05", "--partial", "--checkpoint", url)
    assert taken.code == 0, taken.story
    assert len(taken.report["resume_differences"]) == 26 and "optimizer" in taken.report["resume_differences"][0]
    assert taken.report["examples_trained"] == 6 * 256 and taken.report["examples"] == 3 * 256, taken.story


def schedule(session):
    """A model whose learning rates fall, with what goes on in the script itself."""
    model = Model(session, {"items": 500})
    optimizer = session.optimizer
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def steps(model, scheduler, generator, count):
    for _ in range(count):
        model.step(*torch.randint(500, (3,), generator=generator).tolist())
        scheduler.step()
    return model.weights("items")


def test_a_state_of_the_users_own_is_given_back_and_learning_rates_go_on(tmp_path):
    url = str(tmp_path / "checkpoints")
    generator = torch.Generator().manual_seed(5)
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        assert session.restored_state() is None
        model, optimizer, scheduler = schedule(session)
        steps(model, scheduler, generator, 3)
        state = {
            "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "rng": generator.get_state(),
            "python": (1, {2: None}),
        }  # fmt: skip
        number = session.save(url, state=state)
        with pytest.raises(ConfigurationError, match=r"state\['x'\] is a torch.*Generator"):
            session.save(url, state={"x": generator})
        expected = steps(model, scheduler, generator, 3)
        session.save(url)
    assert check(url, number).problems == [] and check(url).problems == []
    with ecrec.local_cluster(shards=4, code="3+1", restore=f"{url}/checkpoint-{number:06d}") as session:
        found = session.restored_state()
        assert found["python"] == (1, {2: None})
        model, optimizer, scheduler = schedule(session)
        optimizer.load_state_dict(found["optimizer"])
        scheduler.load_state_dict(found["scheduler"])
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * 0.5**3] * 2
        again = torch.Generator()
        again.set_state(found["rng"])
        assert torch.equal(steps(model, scheduler, again, 3), expected)
    with ecrec.local_cluster(shards=3, code="2+1", restore=url) as session:
        assert session.restored_state() is None, "the newest one was saved without"
    (tmp_path / "checkpoints" / f"checkpoint-{number:06d}" / "state.safetensors").write_bytes(b"x")
    (problem,) = check(url, number).problems
    assert problem.is_damage and "state.safetensors: it has 1 bytes" in problem.text
