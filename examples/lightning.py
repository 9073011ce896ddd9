"""Training by Lightning's Trainer: `pip install pytorch-lightning`, then `python lightning.py`.

The optimizer is the session's. Lightning calls its `step` with a closure, which computes loss and gradients; `step`
pushes them. `Session.clip_gradients` clips them before that.
"""

import pytorch_lightning as lightning
import torch

import ecrec
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad


class Clicks(lightning.LightningModule):
    def __init__(self, session):
        super().__init__()
        self.session = session
        tables = [EmbeddingBagConfig(1000, 16, f"{name}s", feature_names=[name]) for name in ("user", "item")]
        self.sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.1))
        self.over = torch.nn.Linear(32, 1)
        session.replicate(self.over, Adagrad(lr=0.05))

    def training_step(self, batch, _):
        features, labels = batch
        logits = self.over(self.sparse(features).values()).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def configure_optimizers(self):
        return self.session.optimizer


def batches(count=100, size=256):
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(0, 1000, (2, size), generator=draw)
        yield KeyedJaggedTensor.from_ids(["user", "item"], ids), (ids[0] % 2).float()


class Batches(torch.utils.data.IterableDataset):
    def __iter__(self):
        return batches()


with ecrec.local_cluster(shards=5, code="4+1") as session:
    model = Clicks(session)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, torch.utils.data.DataLoader(Batches(), batch_size=None))
    print(f"loss {float(trainer.callback_metrics['loss']):.3f} after {session.figures.steps} steps")
