"""What `ecrec export --to torchrec` writes is the state dict of TorchRec's collections."""

from pathlib import Path

import torch
from torchrec_package import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, batch
from written_checkpoint import table, write_checkpoint

from ecrec.checkpoint.export import export

TABLES = [table("user", rows=40, dim=4), table("item", "adam", rows=25, dim=4), table("day", "sgd", rows=7, dim=4)]
FEATURES = {"user": ["user"], "item": ["item", "seen"], "day": ["day"]}


def test_an_embedding_bag_collection_loads_it(tmp_path: Path) -> None:
    written = write_checkpoint(str(tmp_path / "checkpoints"), TABLES)
    export(written.url, "torchrec", tmp_path / "out")
    loaded = torch.load(tmp_path / "out" / "state_dict.pt", weights_only=True)
    configs = [
        EmbeddingBagConfig(
            name=spec.name, num_embeddings=spec.rows, embedding_dim=spec.dim, feature_names=FEATURES[spec.name]
        )
        for spec in TABLES
    ]
    collection = EmbeddingBagCollection(tables=configs, device=torch.device("cpu"))
    assert loaded.keys() == collection.state_dict().keys()
    assert str(collection.load_state_dict(loaded)) == "<All keys matched successfully>"
    for spec in TABLES:
        found = collection.embedding_bags[spec.name].weight.detach().numpy()
        assert found.tobytes() == written.weights(spec).tobytes()
    assert collection(batch(1)).values().isfinite().all()


def test_an_embedding_collection_of_a_model_loads_it_by_its_names(tmp_path: Path) -> None:
    written = write_checkpoint(str(tmp_path / "checkpoints"), TABLES)
    export(written.url, "torchrec", tmp_path / "out", names="sequences.embeddings.{table}.weight")
    loaded = torch.load(tmp_path / "out" / "state_dict.pt", weights_only=True)
    configs = [
        EmbeddingConfig(
            name=spec.name, num_embeddings=spec.rows, embedding_dim=spec.dim, feature_names=FEATURES[spec.name]
        )
        for spec in TABLES
    ]
    model = torch.nn.Module()
    model.sequences = EmbeddingCollection(tables=configs, device=torch.device("cpu"))
    model.load_state_dict(loaded)
    for spec in TABLES:
        found = model.sequences.embeddings[spec.name].weight.detach().numpy()
        assert found.tobytes() == written.weights(spec).tobytes()
