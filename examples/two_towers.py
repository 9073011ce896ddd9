"""Retrieval with two towers: users and items become vectors, and the items whose vectors fit best are recommended.

`python two_towers.py` makes up users who like items of their own taste, trains with the other items of a batch as the
ones that were not taken (Yi et al., *Sampling-bias-corrected neural modeling*, RecSys 2019), and looks up each user's
best ten among all items.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import ecrec
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad

USERS, ITEMS, TASTES, DIM = 2_000, 500, 20, 16
BATCH, STEPS, BEST = 256, 100, 10

draw = torch.Generator().manual_seed(3)
taste_of_user = torch.randint(0, TASTES, (USERS,), generator=draw)
taste_of_item = torch.arange(ITEMS) % TASTES


def clicks():
    """Users, and for each of them an item of the user's taste."""
    users = torch.randint(0, USERS, (BATCH,), generator=draw)
    of_taste = torch.randint(0, ITEMS // TASTES, (BATCH,), generator=draw)
    return users, of_taste * TASTES + taste_of_user[users]


class TwoTowers(nn.Module):
    """Unit vectors of users and items: a table and a layer each."""

    def __init__(self, bags):
        super().__init__()
        self.bags = bags
        self.user, self.item = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, users, items):
        pooled = self.bags(KeyedJaggedTensor.from_dict({"user": users, "item": items}))
        return normalize(self.user(pooled["user"])), normalize(self.item(pooled["item"]))


with ecrec.local_cluster(shards=5, code="4+1") as session:
    tables = [
        EmbeddingBagConfig(USERS, DIM, "users", feature_names=["user"]),
        EmbeddingBagConfig(ITEMS, DIM, "items", feature_names=["item"]),
    ]
    torch.manual_seed(3)
    model = TwoTowers(EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.1)))
    session.replicate(model, Adagrad(lr=0.02))
    for _ in range(STEPS):
        users, items = clicks()
        user, item = model(users, items)
        same = items[:, None] == items[None, :]  # the same item at another place was taken, too
        scores = (user @ item.T / 0.1).masked_fill(same & ~torch.eye(BATCH, dtype=torch.bool), -1e9)
        cross_entropy(scores, torch.arange(BATCH)).backward()
        session.push(BATCH)
    with torch.no_grad():
        everybody, everything = torch.arange(USERS), torch.arange(ITEMS)
        user = model(everybody, everybody % ITEMS)[0]
        item = model(everything, everything)[1]
        best = (user @ item.T).topk(BEST).indices
    hits = (taste_of_item[best] == taste_of_user[:, None]).float().mean().item()
print(
    f"of {BEST} items shown to each of {USERS} users {hits:.1%} are of their taste, {1 / TASTES:.1%} would be by chance"
)
