"""deploy/kubernetes, deploy/helm and deploy/kubeflow: rendered, checked against the schemas and against each other, and
their pods run as processes that lose a pod, nodes and the scheduler while they train.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_training import check_result, has_reached, let_go, need_data, write_script
from manifests import (
    ANCESTOR,
    CHART,
    Object,
    charted,
    container,
    environment,
    jobs,
    kubeflow_files,
    kustomized,
    one_of,
    pod,
    pods_of,
    trained,
)
from pods import DEADLINE_S, Pods
from test_faults import namespaces

from ecrec.exit_codes import ExitCode
from ecrec.launch.variables import PS, SCHEDULER, WORKER

HERE = Path(__file__).parent
JOBSET_SCHEMA = HERE / "jobset_schema.json"
TRAINER_SCHEMAS = HERE / "trainer_schemas.json"
SERVICE_MONITOR_SCHEMA = HERE / "service_monitor_schema.json"
KUBERNETES = "1.33"
PREFIXES = {"ecrec-ps": PS, "ecrec-scheduler": SCHEDULER, "ecrec-worker": WORKER}
OURS = {"POD_IP", "JOBSET", "JOBSET_UID"}
"""Variables of the manifests that no program reads."""
OF_TRAINER = {"PET_NNODES", "PET_NODE_RANK"}
SOURCES = {"kustomization": kustomized, "chart": charted, "kubeflow": trained}
HELD_AT = (10, 25, 40)


@pytest.fixture(scope="module", params=list(SOURCES))
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    return SOURCES[request.param]()


@pytest.fixture(scope="module")
def jobset(rendered: list[Object]) -> Object:
    return one_of(rendered, "JobSet")


def validate_others(objects: list[Object], *known_otherwise: str) -> None:
    """Against the schemas of Kubernetes itself."""
    validate = pytest.importorskip("kubernetes_validate")
    for each in objects:
        if each["kind"] not in known_otherwise:
            validate.validate(each, KUBERNETES, strict=True)


def validate_jobs(jobset_spec: Object) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for job in jobset_spec["replicatedJobs"]:
        made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}}
        validate.validate({**made, "spec": job["template"]["spec"]}, KUBERNETES, strict=True)


# ------------------------------------------------------------------ schemas
def test_every_manifest_fits_its_schema(rendered: list[Object], jobset: Object) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validate_others(rendered, "JobSet")
    jsonschema.validate(jobset, json.loads(JOBSET_SCHEMA.read_text()))
    validate_jobs(jobset["spec"])


def test_a_manifest_that_does_not_fit_is_found(jobset: Object) -> None:
    """The schemas above refuse something."""
    validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    wrong = json.loads(json.dumps(jobset))
    wrong["spec"]["successPolicy"]["operator"] = "Most"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(JOBSET_SCHEMA.read_text()))
    wrong = json.loads(json.dumps(jobset))
    pod(jobs(wrong)["servers"])["containers"][0]["livenessprobe"] = {}
    with pytest.raises(validate.ValidationError):
        validate_jobs(wrong["spec"])


def test_the_runtime_and_the_train_job_fit_the_schemas_of_trainer() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schemas = json.loads(TRAINER_SCHEMAS.read_text())
    files = kubeflow_files()
    for kind in ("ClusterTrainingRuntime", "TrainJob"):
        jsonschema.validate(one_of(files, kind), schemas[kind])
        wrong = json.loads(json.dumps(one_of(files, kind)))
        wrong["spec"]["trainers"] = {}
        with pytest.raises(jsonschema.ValidationError, match="trainers"):
            jsonschema.validate(wrong, schemas[kind])
    template = one_of(files, "ClusterTrainingRuntime")["spec"]["template"]
    validate_jobs(template["spec"])
    validate_others(files, "ClusterTrainingRuntime", "TrainJob")


def test_the_runtime_is_one_that_the_webhook_of_trainer_takes() -> None:
    """What its schema does not say: the Job of the workers is one, and its container is called node."""
    runtime = one_of(kubeflow_files(), "ClusterTrainingRuntime")
    labelled = {
        each["name"]: each
        for each in runtime["spec"]["template"]["spec"]["replicatedJobs"]
        if ANCESTOR in each["template"].get("metadata", {}).get("labels", {})
    }
    assert list(labelled) == ["node"] and labelled["node"]["replicas"] == 1
    assert container(labelled["node"])["name"] == "node"
    assert one_of(kubeflow_files(), "TrainJob")["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]


# ------------------------------------------------------------------ what belongs together
def test_names_and_numbers_that_belong_together_do(rendered: list[Object], jobset: Object) -> None:
    found = jobs(jobset)
    name = jobset["metadata"]["name"]
    fields = {"metadata.labels['jobset.sigs.k8s.io/jobset-name']": name}
    by_program = {container(job)["command"][0]: job for job in found.values()}
    scheduler, servers, workers = (by_program[f"ecrec-{program}"] for program in ("scheduler", "ps", "worker"))
    values = {name: environment(container(job), fields) for name, job in by_program.items()}
    shards = int(values["ecrec-scheduler"]["ECREC_SCHEDULER_SHARDS"])
    k, _, r = values["ecrec-worker"]["ECREC_WORKER_CODE"].partition("+")
    assert int(k) + int(r) == shards == 3
    budget = one_of(rendered, "PodDisruptionBudget")["spec"]
    spares = pods_of(servers) - shards
    assert spares >= int(r) and budget["minAvailable"] == shards + spares - int(r)
    world_size = values["ecrec-worker"].get("ECREC_WORKER_WORLD_SIZE") or values["ecrec-worker"]["PET_NNODES"]
    assert int(world_size) == pods_of(workers)
    subdomain = jobset["spec"]["network"].get("subdomain", name)
    endpoint = f"tcp://{name}-{scheduler['name']}-0-0.{subdomain}:7070"
    assert values["ecrec-ps"]["ECREC_PS_SCHEDULER"] == values["ecrec-worker"]["ECREC_WORKER_SCHEDULER"] == endpoint
    labels = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": servers["name"]}
    assert budget["selector"]["matchLabels"] == labels
    (term,) = pod(servers)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    alike = {key: labels[key] for key in term.get("matchLabelKeys", [])}
    assert {**alike, **term["labelSelector"]["matchLabels"]} == labels and term[
        "topologyKey"
    ] == "kubernetes.io/hostname"
    assert jobset["spec"]["successPolicy"]["targetReplicatedJobs"] == [workers["name"]]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod(scheduler)["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {one_of(rendered, "PersistentVolumeClaim")["metadata"]["name"]}


def test_a_server_that_is_told_to_end_has_the_time_to_leave_and_is_told_once(jobset: Object) -> None:
    """The kubelet's SIGTERM is the request to leave. A preStop that asked too would make two requests, and a second one
    ends a server at once."""
    servers = jobs(jobset)["servers"]
    timeout_ms = int(environment(container(servers), {})["ECREC_PS_LEAVE_TIMEOUT_MS"])
    assert 0 < timeout_ms < 1000 * pod(servers)["terminationGracePeriodSeconds"]
    for job in jobs(jobset).values():
        assert "lifecycle" not in container(job)


def test_every_variable_is_a_flag_and_every_exit_code_one_of_the_table(jobset: Object) -> None:
    import ecrec.launch.servers.ps
    import ecrec.launch.servers.scheduler
    import ecrec.launch.worker

    programs = (ecrec.launch.servers.ps.program, ecrec.launch.servers.scheduler.program, ecrec.launch.worker.program)
    variables_of = {each.prefix: {name for names in each.flags.values() for name in names} for each in programs}
    flags_of = {each.prefix: set(each.flags) for each in programs}
    for job in jobs(jobset).values():
        program, *words = container(job)["command"]
        prefix = PREFIXES[program]
        names = {each["name"] for each in container(job)["env"]} - OURS - OF_TRAINER
        assert names <= variables_of[prefix], names - variables_of[prefix]
        assert {word for word in words if word.startswith("--")} <= flags_of[prefix]
        for rule in job["template"]["spec"]["podFailurePolicy"]["rules"]:
            for code in rule.get("onExitCodes", {}).get("values", []):
                told_to_end = environment(container(job), {}).get("ECREC_PS_STOPPED_EXIT_CODE")
                assert code in list(ExitCode) or str(code) == told_to_end
                assert rule["onExitCodes"]["containerName"] == container(job)["name"]


def test_every_port_that_a_probe_asks_is_one_of_its_container(jobset: Object) -> None:
    for job in jobs(jobset).values():
        of = container(job)
        ports = {each["name"]: each["containerPort"] for each in of["ports"]}
        values = environment(of, {})
        (http,) = (value for name, value in values.items() if name.endswith("_HTTP"))
        assert http == f"[::]:{ports['http']}"
        probes = [of[f"{kind}Probe"] for kind in ("startup", "liveness")] + [of.get("readinessProbe")]
        asked = [probe["httpGet"] for probe in probes if probe is not None]
        assert {probe["port"] for probe in asked} == {"http"}
        assert [probe["path"] for probe in asked] == ["/healthz", "/healthz", "/readyz"][: len(asked)]
        bound = [value for name, value in values.items() if name.endswith("_BIND")]
        assert [value.rpartition(":")[2] for value in bound] == [
            str(port) for name, port in ports.items() if name == "ecrec"
        ]


def without_labels(each: Object) -> Object:
    """As it is, but for labels of its own: a chart has some that a kustomization has not."""
    made: Object = json.loads(json.dumps(each))
    made["metadata"].pop("labels", None)
    return made


def test_the_chart_says_what_the_kustomization_says() -> None:
    """Commands, variables, ports, probes, policies and numbers: each object is the same."""
    chart = {each["kind"]: without_labels(each) for each in charted()}
    assert chart == {each["kind"]: without_labels(each) for each in kustomized()}


def test_the_runtime_of_kubeflow_differs_from_the_kustomization_where_it_must() -> None:
    """Programs, variables and probes are the same but for the names that a TrainJob gives."""
    theirs, ours = (jobs(one_of(each, "JobSet")) for each in (trained(), kustomized()))
    for name, other in (("scheduler", "scheduler"), ("servers", "servers"), ("node", "workers")):
        mine, its = container(theirs[name]), container(ours[other])
        for key in ("startupProbe", "livenessProbe", "readinessProbe", "ports", "resources"):
            assert mine.get(key) == its.get(key), (name, key)
        fields = {"metadata.labels['jobset.sigs.k8s.io/jobset-name']": "ecrec"}
        values, its_values = environment(mine, fields), environment(its, fields)
        differ = {key for key in values.keys() ^ its_values.keys()} | {
            key for key in values.keys() & its_values.keys() if values[key] != its_values[key]
        }
        assert differ <= OURS | OF_TRAINER | {"ECREC_WORKER_RANK", "ECREC_WORKER_WORLD_SIZE"}, differ
        assert [rule.get("action") for rule in theirs[name]["template"]["spec"]["podFailurePolicy"]["rules"]] == [
            rule.get("action") for rule in ours[other]["template"]["spec"]["podFailurePolicy"]["rules"]
        ]


# ------------------------------------------------------------------ the chart's values
def chart_jobs(**values: Any) -> dict[str, Object]:
    return jobs(one_of(charted(values), "JobSet"))


def test_values_change_all_that_depends_on_them() -> None:
    objects = charted({"shards": 6, "code": "3+2", "spares": 3, "workers": 4, "script": ["run.py", "--lr", "1"]})
    found = jobs(one_of(objects, "JobSet"))
    assert pods_of(found["servers"]) == 9 and pods_of(found["workers"]) == 4
    assert environment(container(found["scheduler"]), {})["ECREC_SCHEDULER_SHARDS"] == "6"
    assert container(found["workers"])["command"] == ["ecrec-worker", "run.py", "--lr", "1"]
    values = environment(container(found["workers"]), {})
    assert (values["ECREC_WORKER_WORLD_SIZE"], values["ECREC_WORKER_CODE"]) == ("4", "3+2")
    assert one_of(objects, "PodDisruptionBudget")["spec"]["minAvailable"] == 7
    assert pods_of(chart_jobs(shards=10, groups=2, code="3+2")["servers"]) == 14, "r spares for each group"


def test_a_zookeeper_takes_the_place_of_the_volume() -> None:
    values = {"zookeeper": {"hosts": "zk-0.zk:2181,zk-1.zk:2181", "schedulers": 3}}
    objects = charted(values)
    validate_others(objects, "JobSet")
    assert {each["kind"] for each in objects} == {"JobSet", "PodDisruptionBudget"}
    found = jobs(one_of(objects, "JobSet"))
    where = "zk://zk-0.zk:2181,zk-1.zk:2181/ecrec/default/ecrec"
    given = environment(container(found["scheduler"]), {"status.podIP": "10.0.0.7"})
    assert given["ECREC_SCHEDULER_COORDINATOR"] == where and given["ECREC_SCHEDULER_ADVERTISE"] == "10.0.0.7"
    assert "ECREC_SCHEDULER_STATE" not in given and pods_of(found["scheduler"]) == 3
    assert environment(container(found["servers"]), {})["ECREC_PS_SCHEDULER"] == where
    assert environment(container(found["workers"]), {})["ECREC_WORKER_SCHEDULER"] == where
    assert [volume["name"] for volume in pod(found["scheduler"])["volumes"]] == ["keys"]


def test_without_secrets_there_are_no_keys() -> None:
    found = chart_jobs(curve={"serverSecret": "", "workerSecret": ""})
    for name, variable in (("scheduler", "SCHEDULER"), ("servers", "PS")):
        values = environment(container(found[name]), {})
        assert values[f"ECREC_{variable}_ALLOW_PLAIN_NETWORK"] == "true" and "ECREC_CURVE_DIR" not in values
    assert "ECREC_CURVE_DIR" not in environment(container(found["workers"]), {})
    assert "volumes" not in pod(found["servers"]) and "volumes" not in pod(found["workers"])


def test_a_service_monitor_finds_the_pods() -> None:
    objects = charted({"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}})
    service, monitor = one_of(objects, "Service"), one_of(objects, "ServiceMonitor")
    validate_others([service])
    schema = json.loads(SERVICE_MONITOR_SCHEMA.read_text())
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(monitor, schema)
    (endpoint,) = monitor["spec"]["endpoints"]
    for wrong in ({"interval": "often"}, {"ports": "http"}, {"scheme": "ftp"}):
        spec = {**monitor["spec"], "endpoints": [{**endpoint, **wrong}]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**monitor, "spec": spec}, schema)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    chosen = monitor["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert endpoint["port"] == port["name"] and endpoint["path"] == "/metrics"
    name = one_of(objects, "JobSet")["metadata"]["name"]
    assert service["spec"]["selector"] == {"jobset.sigs.k8s.io/jobset-name": name}


def test_more_of_a_program_comes_from_its_values() -> None:
    more = {
        "env": {"ECREC_PS_VERBOSE": True, "ECREC_PS_SCHEDULER_TIMEOUT_MS": 1_000_000, "ECREC_PS_X": 0.25},
        "nodeSelector": {"disk": "ssd"}, "priorityClassName": "high",
        "resources": {"limits": {"memory": "64Gi"}},
    }  # fmt: skip
    image = {
        "server": {"repository": "registry.example/ps", "tag": "7"},
        "pullSecrets": ["mine"],
        "pullPolicy": "Always",
    }
    found = chart_jobs(server=more, image=image)
    of, spec = container(found["servers"]), pod(found["servers"])
    given = environment(of, {})
    assert given["ECREC_PS_SCHEDULER_TIMEOUT_MS"] == "1000000" and given["ECREC_PS_X"] == "0.25"
    assert given["ECREC_PS_VERBOSE"] == "true" and of["resources"]["limits"] == {"memory": "64Gi"}
    assert (of["image"], of["imagePullPolicy"]) == ("registry.example/ps:7", "Always")
    assert spec["nodeSelector"] == {"disk": "ssd"} and spec["priorityClassName"] == "high"
    assert spec["imagePullSecrets"] == [{"name": "mine"}]
    assert container(found["workers"])["image"] == "ecrec-worker:0.1.0"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shards": 3, "code": "4+1"}, "a stripe needs 5 shards, and a coding group has 3"),
        ({"shards": 5, "groups": 2}, "groups are of equal size"),
        ({"shards": 20}, "at most 16 shards"),
        ({"curve": {"serverSecret": "", "workerSecret": "x"}}, "give serverSecret and workerSecret, or neither"),
        ({"code": "four"}, "code"),
        ({"sparse": 2}, "sparse"),
    ],
)
def test_values_that_cannot_work_are_refused(values: Object, words: str) -> None:
    from manifests import ChartError

    with pytest.raises(ChartError, match=words):
        charted(values)


@pytest.mark.parametrize("name", ["my.run", "9run", "r" * 44, "run-"])
def test_a_release_whose_name_begins_no_pods_name_is_refused(name: str) -> None:
    from manifests import ChartError

    with pytest.raises(ChartError, match=r"release|invalid"):
        charted(name=name)
    assert one_of(charted(name="r" * 43), "JobSet")


def test_the_values_fit_their_schema_and_the_versions_that_of_the_package() -> None:
    """What can be seen of the chart without Helm."""
    yaml = pytest.importorskip("yaml")
    jsonschema = pytest.importorskip("jsonschema")
    import ecrec

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "sparse": 2}, schema)
    assert set(values) == set(schema["properties"]) - {"global"}
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == ecrec.__version__


# ------------------------------------------------------------------ pods as processes
@pytest.fixture
def pods(jobset: Object, tmp_path: Path) -> Iterator[Pods]:
    need_data()
    script = write_script(tmp_path, HELD_AT)
    with namespaces() as network:
        made = Pods(jobset, tmp_path, network, script)
        yield made
        made.close()


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes a minute: ECREC_LONG_FAULTS=1")
def test_the_pods_train_through_the_loss_of_a_pod_of_a_node_and_of_the_scheduler(pods: Pods, tmp_path: Path) -> None:
    pods.start_all()
    pods.until(lambda: has_reached(tmp_path, 10), "step 10")
    pods.whole(3)
    assert all(pods.is_ready(pods.servers, number) for number in range(4)), "servers with a place, and the spare"
    # A pod is killed: it is made again.
    pods.running[pods.holder(1)].kill()
    pods.whole(4)
    let_go(tmp_path, 10)
    pods.until(lambda: has_reached(tmp_path, 25), "step 25")
    # The node of another is lost, while it trains.
    old = pods.lose_node(pods.holder(0))
    let_go(tmp_path, 25)
    pods.until(lambda: has_reached(tmp_path, 40), "step 40")
    pods.whole(5)
    old.kill()
    old.wait()
    # The scheduler's node is lost: its pod, with its volume and its name, comes on another.
    pods.lose_node((pods.schedulers, 0), with_power=False)
    # And a node is drained: SIGTERM, the server leaves without loss, with the exit code that the manifest ignores.
    leaving = pods.running[pods.holder(2)]
    leaving.terminate()
    pods.whole(6)
    assert leaving.wait(DEADLINE_S) == 143
    let_go(tmp_path, 40)
    workers = [key for key in pods.running if key[0] == pods.workers]
    assert len(workers) == 2
    pods.until(lambda: all(pods.running[key].poll() == 0 for key in workers), "the workers are done")
    check_result(tmp_path, deaths=2)
    assert "Traceback" not in pods.logs()
