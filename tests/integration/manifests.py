"""What deploy/ says of Kubernetes, rendered: the kustomization by kubectl, the chart by Helm, and the TrainJob on its
runtime as Kubeflow's Trainer makes a JobSet of them.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
KUSTOMIZATION, CHART, KUBEFLOW = DEPLOY / "kubernetes", DEPLOY / "helm" / "ecrec", DEPLOY / "kubeflow"
ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
Object = dict[str, Any]


# ------------------------------------------------------------------ rendering
def kustomized() -> list[Object]:
    """deploy/kubernetes, by kubectl; skips without one."""
    yaml = pytest.importorskip("yaml")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl renders the manifests")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUSTOMIZATION)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


class ChartError(Exception):
    """Helm refuses the values."""


def charted(values: Object | None = None, name: str = "ecrec") -> list[Object]:
    """deploy/helm/ecrec with these values in place of its own, by helm or its Python bindings; skips without either."""
    yaml = pytest.importorskip("yaml")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values or {}, file)
        file.flush()
        if shutil.which("helm") is not None:
            command = ["helm", "template", name, str(CHART), "--values", file.name]
        else:
            pytest.importorskip("helm_python", reason="Helm renders the chart: helm, or pip install helm-python-sdk")
            # In a process of its own: its runtime stays, with threads that handle signals.
            command = [sys.executable, "-c", RENDER, name, str(CHART), file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ChartError(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each is not None]


RENDER = """
import json, sys
import helm_python

name, chart, values = sys.argv[1:]
with helm_python.Chart.load(chart) as loaded, open(values) as file:
    given = json.load(file)
    loaded.validate_schema(given)
    rendered = loaded.render(given, name=name, namespace="default", is_install=True)
for path, text in rendered.items():
    if path.endswith(".yaml"):
        print("---")
        print(text)
"""


def kubeflow_files() -> list[Object]:
    """deploy/kubeflow as it is written."""
    yaml = pytest.importorskip("yaml")
    return [each for path in sorted(KUBEFLOW.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def as_trainer_does(runtime: Object, train_job: Object) -> Object:
    """The JobSet of a TrainJob on a runtime: named like it; image, arguments, number and resources go into the
    container "node" of the Job with the label of an ancestor, and the variables of torch's policy behind its own.

    Written after pkg/runtime/framework/plugins (jobset and torch) of kubeflow/trainer 2.2.
    """
    template = json.loads(json.dumps(runtime["spec"]["template"]))
    trainer = train_job["spec"]["trainer"]
    nodes = trainer.get("numNodes", runtime["spec"]["mlPolicy"]["numNodes"])
    for job in template["spec"]["replicatedJobs"]:
        if job["template"].get("metadata", {}).get("labels", {}).get(ANCESTOR) != "trainer":
            continue
        spec = job["template"]["spec"]
        spec["parallelism"] = spec["completions"] = nodes
        (node,) = (each for each in spec["template"]["spec"]["containers"] if each["name"] == "node")
        node.update({key: trainer[key] for key in ("image", "command", "args") if key in trainer})
        node["resources"] = trainer.get("resourcesPerNode", node["resources"])
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        node["env"] += [
            *trainer.get("env", []),
            {"name": "PET_NNODES", "value": str(nodes)},
            {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]
    made = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet"}
    return {**made, "metadata": {"name": train_job["metadata"]["name"]}, "spec": template["spec"]}


def trained() -> list[Object]:
    """deploy/kubeflow, as the objects that come of it."""
    files = kubeflow_files()
    (runtime,) = (each for each in files if each["kind"] == "ClusterTrainingRuntime")
    (train_job,) = (each for each in files if each["kind"] == "TrainJob")
    rest = [each for each in files if each not in (runtime, train_job)]
    return [as_trainer_does(runtime, train_job), *rest]


# ------------------------------------------------------------------ looking into them
def one_of(objects: list[Object], kind: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def jobs(jobset: Object) -> dict[str, Object]:
    return {each["name"]: each for each in jobset["spec"]["replicatedJobs"]}


def pods_of(job: Object) -> int:
    """How many pods all its Jobs have."""
    return int(job["replicas"] * job["template"]["spec"].get("completions", 1))


def pod(job: Object) -> Object:
    found: Object = job["template"]["spec"]["template"]["spec"]
    return found


def container(job: Object) -> Object:
    (found,) = pod(job)["containers"]
    return dict(found)


def expanded(text: str, values: Mapping[str, str]) -> str:
    """``$(NAME)``, as the kubelet replaces it; what is not known stays."""
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), text)


def environment(of: Object, fields: Mapping[str, str]) -> dict[str, str]:
    """As the kubelet makes it: fields of the pod, and $(NAME) of what stands before."""
    made: dict[str, str] = {}
    for each in of["env"]:
        value = each.get("value")
        if value is None:
            value = fields.get(each["valueFrom"]["fieldRef"]["fieldPath"], "")
        made[each["name"]] = expanded(value, made)
    return made
