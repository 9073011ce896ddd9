"""The examples run as they are."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[2] / "examples"
MOVIELENS = EXAMPLES / "movielens.py"
LINES_MAX = 40
"""Of a user's code, without the reading of the files."""


def said_by(name, *arguments, cwd):
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def auc_of(*arguments, cwd):
    said = said_by("movielens.py", *arguments, cwd=cwd)
    found = re.fullmatch(r"AUC (\d\.\d{3}) of (\d+) ratings\n", said)
    assert found, said
    return float(found[1]), int(found[2])


def test_movielens_learns_from_ratings_that_it_makes_up(tmp_path):
    area, tested = auc_of(cwd=tmp_path)
    assert area > 0.75 and tested == 2400


def test_movielens_reads_the_files_of_a_data_set(tmp_path):
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"Toys, again (1995)",Animation|Comedy\n7,Heat (1995),Crime\n', newline=""
    )
    lines = [f"{1 + i % 5},{(7, 10)[i % 2]},{(2.5, 4.5)[i % 2]},{964982703 + i}" for i in range(400)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines]) + "\n")
    area, tested = auc_of(str(tmp_path), cwd=tmp_path)
    assert area > 0.9 and tested == 80


def test_criteo_trains_on_a_cluster_of_its_own(tmp_path):
    said = said_by("criteo.py", "--local", "--examples", "20000", "--rows", "2000", cwd=tmp_path)
    found = re.search(r"^AUC (\d\.\d{4}), normalized entropy (\d\.\d{4})$", said, re.M)
    assert found and float(found[1]) > 0.7 and float(found[2]) < 0.95, said


def test_two_towers_find_items_of_a_users_taste(tmp_path):
    found = re.fullmatch(
        r"of 10 items shown .* (\d+\.\d)% are of their taste, 5\.0% .*\n", said_by("two_towers.py", cwd=tmp_path)
    )
    assert found and float(found[1]) > 50


def test_the_dlrm_of_torchrec_is_the_same_with_and_without_a_kill(tmp_path):
    pytest.importorskip("torchrec.models.dlrm")
    assert re.fullmatch(r"loss 0\.\d{4}; .* the same\n", said_by("torchrec_dlrm.py", cwd=tmp_path))


def test_the_model_and_its_training_are_few_lines():
    lines = MOVIELENS.read_text().partition("# ---")[2].splitlines()[1:]
    assert len([line for line in lines if line.strip()]) <= LINES_MAX


def test_lightning_trains(tmp_path):
    pytest.importorskip("pytorch_lightning")
    said = said_by("lightning.py", cwd=tmp_path)
    found = re.search(r"^loss (\d\.\d{3}) after 200 steps$", said, re.M)
    assert found and float(found[1]) < 0.2, said


def test_ray_train_leases_rows_of_ray_data_on_three_nodes(tmp_path, monkeypatch):
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:  # of what Ray Train needs besides, too
        pytest.skip(f"no Ray Train: {error}")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray Train writes results
    said = said_by("ray_train.py", "--local", "--rows", "8192", cwd=tmp_path)
    splits = re.findall(r"worker 0: rows (\d+) to (\d+), loss (\d\.\d{3})", said)
    assert sorted((int(first), int(last)) for first, last, _ in splits) == [
        (first, first + 2048) for first in range(0, 8192, 2048)
    ], said


def test_each_example_is_run_by_a_test():
    tests = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(names) >= 9
    assert [name for name in names if not any(f'"{name}"' in text for text in tests)] == []


def test_the_notebook_trains_through_a_death(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    client = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without what it printed here"
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=180, kernel_name="python3", resources=resources).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    before, after = (float(loss) for loss in re.findall(r"loss ([\d.]+) after", said.replace("beginning, ", "loss ")))
    assert "ps 2 was killed" in said and after < before < 0.5, said
    assert re.search(r"AUC (0\.9|1\.0)\d\d, digest [0-9a-f]{12}", said), said


def test_serving_follows_a_training_run_and_is_never_older_than_asked(tmp_path):
    import torch

    import ecrec
    from ecrec.launch.local.cluster import ClusterSettings, LocalCluster
    from ecrec.training import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad

    with LocalCluster(ClusterSettings(3, tmp_path / "run")) as cluster:
        endpoint = cluster.start()
        cluster.wait_ready()
        with ecrec.connect(endpoint, code="2+1") as session:
            config = EmbeddingBagConfig(300, 8, "items", feature_names=["item"])
            bags = EmbeddingBagCollection(session, [config], RowWiseAdagrad(lr=0.1))

            def step(*ids):
                bags(KeyedJaggedTensor.from_ids(["item"], torch.tensor([ids]))).values().sum().backward()
                session.push(len(ids))
                session.flush()

            def expected():
                return bags.state_dict()["embedding_bags.items.weight"][[1, 2, 299]].sum().item()

            command = [sys.executable, str(EXAMPLES / "serving.py"), endpoint, "items", "--seconds", "20"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with subprocess.Popen(command, **pipes) as serving:

                def predicted():
                    serving.stdin.write("1 2 299\n")
                    serving.stdin.flush()
                    answer = serving.stdout.readline().split()
                    assert len(answer) == 2, serving.stderr.read()
                    return float(answer[0]), float(answer[1])

                def follows():
                    """It comes to what is trained, and is never older than it says."""
                    end = time.monotonic() + 60
                    while abs((found := predicted())[0] - expected()) > 1e-4:
                        assert time.monotonic() < end and found[1] <= 20, found
                        time.sleep(0.05)

                try:
                    follows()  # nothing is trained yet: initial values
                    step(1, 2, 7)
                    follows()
                    before = predicted()[0]
                    cluster.add_spare()
                    cluster.kill(session.machine.endpoint_of(1))
                    step(1, 299)
                    follows()
                    assert predicted()[0] != before
                    serving.stdin.close()
                    assert serving.wait(30) == 0, serving.stderr.read()
                finally:
                    serving.kill()
