"""The dashboard for Grafana asks for nothing that a scheduler does not export."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dashboard_states import death, shard, state, worker

from ecrec.launch.servers.figures import of_cluster
from ecrec.launch.watched import COUNTER
from ecrec.protocol.messages import SavingFigures

FILE = Path(__file__).parents[3] / "deploy" / "grafana" / "ecrec.json"
BOARD: dict[str, Any] = json.loads(FILE.read_text())
NAME = re.compile(r"\b(?:ecrec|process)_[a-z0-9_]+")
OF_PROMETHEUS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    return [*of_panels, *(each["expr"] for each in BOARD["annotations"]["list"] if "expr" in each),
            *(each["definition"] for each in BOARD["templating"]["list"] if "definition" in each)]  # fmt: skip


def exported() -> dict[str, tuple[str, set[str]]]:
    """Metric -> kind and labels, of a cluster in which everything has happened."""
    saved = SavingFigures(3, "file:///c", "complete")
    shards = [shard(i, "recovering" if i == 2 else "up", repair_done=0.5, seed_done=0.5) for i in range(5)]
    workers = {0: worker(10.0, normalized_entropy=0.9)}
    told = state(shards=shards, workers=workers, history=death(0.0), saved=saved)
    metrics = list(of_cluster(told))
    assert all(each.samples for each in metrics), [each.name for each in metrics if not each.samples]
    return {each.name: (each.kind, set(each.samples[0][0])) for each in metrics}


def test_each_metric_of_the_dashboard_is_exported() -> None:
    known = exported()
    used = {name for text in expressions() for name in NAME.findall(text)}
    assert used - set(known) - OF_PROMETHEUS == set() and len(used) >= 12


def test_counters_are_asked_for_their_growth_and_gauges_for_their_value() -> None:
    known = exported()
    for text in expressions():
        for name in set(NAME.findall(text)) & set(known):
            grows = re.search(rf"(rate|increase|changes)\({name}\b", text) is not None
            assert grows == (known[name][0] == COUNTER), text


def test_labels_of_the_dashboard_are_those_of_its_metrics() -> None:
    known = exported()
    labels = {"job", "instance"}.union(*(names for _, names in known.values()))
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            used = set(re.findall(r"by \((\w+)\)", target["expr"])) | set(
                re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
            )
            assert used <= labels, target


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        across = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in across for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    titles = [panel["title"] for panel in BOARD["panels"]]
    assert len(set(titles)) == len(titles) and all("description" in panel for panel in BOARD["panels"])
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(titles)


@pytest.mark.parametrize("field", ["uid", "title", "schemaVersion", "__inputs"])
def test_it_can_be_imported_without_a_change(field: str) -> None:
    assert BOARD[field] and "${DS_PROMETHEUS}" in FILE.read_text()
