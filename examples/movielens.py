"""Will a user like a movie? Ragged features on servers of this machine: `python movielens.py [DIRECTORY]`.

DIRECTORY has `ratings.csv` and `movies.csv` of a MovieLens data set (https://grouplens.org/datasets/movielens/).
Without one, ratings like them are made up.
"""

import csv
import random
import sys
from pathlib import Path

import torch

import ecrec
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad
from ecrec.training.metrics import auc

BATCH, HISTORY = 256, 10


def read(directory):
    """Ratings (user, movie, stars, time) and each movie's genres."""
    with (directory / "movies.csv").open(newline="") as movies, (directory / "ratings.csv").open(newline="") as ratings:
        genres = {row["movieId"]: row["genres"].split("|") for row in csv.DictReader(movies)}
        rows = [(r["userId"], r["movieId"], float(r["rating"]), int(r["timestamp"])) for r in csv.DictReader(ratings)]
    return rows, genres


def make_up(users=150, movies=200, ratings=12_000):
    """The same, of movies that are better or worse, and users who like two genres each."""
    draw = random.Random(1)
    genres = {movie: draw.sample(range(18), draw.randint(1, 3)) for movie in range(movies)}
    tastes = [set(draw.sample(range(18), 2)) for _ in range(users)]
    quality = [draw.gauss(2.8, 1) for _ in range(movies)]
    rows = []
    for time in range(ratings):
        user, movie = draw.randrange(users), draw.randrange(movies)
        stars = quality[movie] + len(tastes[user] & set(genres[movie])) + draw.gauss(0, 0.5)
        rows.append((user, movie, stars, time))
    return rows, genres


# ------------------------------------------------------------------ the model and its training
ratings, genres = read(Path(sys.argv[1])) if sys.argv[1:] else make_up()
ratings.sort(key=lambda rating: rating[3])  # what is tested comes after what is trained on
number = {"user": {}, "movie": {}, "genre": {}}  # name -> row of its table
liked = {}
examples = []
for user, movie, stars, _ in ratings:
    rows = [number[kind].setdefault(name, len(number[kind])) for kind, name in (("user", user), ("movie", movie))]
    kinds = [number["genre"].setdefault(name, len(number["genre"])) for name in genres[movie]]
    before = liked.setdefault(user, [])
    examples.append((*rows, kinds, before[-HISTORY:], float(stars >= 4)))
    if stars >= 4:
        before.append(rows[1])


def batches(part):
    for at in range(0, len(part), BATCH):
        user, movie, genre, history, label = zip(*part[at : at + BATCH], strict=True)
        ids = {"user": torch.tensor(user), "movie": torch.tensor(movie), "genre": genre, "history": history}
        yield KeyedJaggedTensor.from_dict(ids), torch.tensor(label)


with ecrec.local_cluster(shards=5, code="4+1") as session:
    tables = [
        EmbeddingBagConfig(len(number["user"]), 16, "users", feature_names=["user"]),
        EmbeddingBagConfig(len(number["movie"]), 16, "movies", feature_names=["movie", "history"], pooling="mean"),
        EmbeddingBagConfig(len(number["genre"]), 16, "genres", feature_names=["genre"], pooling="mean"),
    ]
    sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.1))
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    session.replicate(model, Adagrad(lr=0.02))
    trained_on, tested = examples[: len(examples) * 4 // 5], examples[len(examples) * 4 // 5 :]
    for _ in range(3):
        for features, labels in session.prefetch(batches(trained_on), features=lambda batch: batch[0]):
            logits = model(sparse(features).values()).squeeze(1)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
            session.push(len(labels))
    with torch.no_grad():
        scores = torch.cat([model(sparse(features).values()).squeeze(1) for features, _ in batches(tested)])
print(f"AUC {auc([example[-1] for example in tested], scores):.3f} of {len(tested)} ratings")
