"""deploy/kubernetes: rendered by kubectl, checked against the schemas, and its pods run as processes.

Each pod is a process in a network namespace with the address, names and environment that Kubernetes would give it.
What the Job and JobSet controllers do when a pod ends is done here, by the policies of the manifest. There is no
kubelet here: mounts, security contexts and scheduling are checked against the schemas alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_faults import Namespaces, namespaces

from ecrec.exit_codes import ExitCode
from ecrec.launch.variables import PS, SCHEDULER, WORKER

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
SCHEMA = Path(__file__).parent / "jobset_schema.json"
PREFIXES = {"ecrec-ps": PS, "ecrec-scheduler": SCHEDULER, "ecrec-worker": WORKER}
DEADLINE_S = 90.0
Object = dict[str, Any]


@pytest.fixture(scope="module")
def rendered() -> list[Object]:
    yaml = pytest.importorskip("yaml")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl renders the manifests")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def jobset(rendered: list[Object]) -> Object:
    (found,) = (each for each in rendered if each["kind"] == "JobSet")
    return found


def jobs(jobset: Object) -> dict[str, Object]:
    return {each["name"]: each for each in jobset["spec"]["replicatedJobs"]}


def pod(job: Object) -> Object:
    found: Object = job["template"]["spec"]["template"]["spec"]
    return found


def test_every_manifest_fits_its_schema(rendered: list[Object], jobset: Object) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    for each in rendered:
        if each["kind"] != "JobSet":
            validate.validate(each, "1.33", strict=True)
    jsonschema.validate(jobset, json.loads(SCHEMA.read_text()))
    for name, job in jobs(jobset).items():
        as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": job["template"]["spec"]}
        validate.validate(as_job, "1.33", strict=True)


def test_a_manifest_that_does_not_fit_is_found(jobset: Object) -> None:
    """The schemas above refuse something."""
    validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    wrong = json.loads(json.dumps(jobset))
    wrong["spec"]["failurePolicy"]["rules"][0]["action"] = "RestartServers"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(SCHEMA.read_text()))
    spec = json.loads(json.dumps(jobs(jobset)["servers"]["template"]["spec"]))
    spec["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(validate.ValidationError):
        validate.validate(as_job, "1.33", strict=True)


def test_names_and_numbers_that_belong_together_do(rendered: list[Object], jobset: Object) -> None:
    found = jobs(jobset)
    values = {name: environment(container(job), {}) for name, job in found.items()}
    shards = int(values["scheduler"]["ECREC_SCHEDULER_SHARDS"])
    (budget,) = (each for each in rendered if each["kind"] == "PodDisruptionBudget")
    spares = found["servers"]["replicas"] - shards
    assert spares >= 1 and budget["spec"]["minAvailable"] == shards + spares - 1
    assert int(values["workers"]["ECREC_WORKER_WORLD_SIZE"]) == found["workers"]["replicas"]
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    endpoint = f"tcp://{name}-scheduler-0-0.{subdomain}:7070"
    assert values["servers"]["ECREC_PS_SCHEDULER"] == values["workers"]["ECREC_WORKER_SCHEDULER"] == endpoint
    assert (
        int(values["servers"]["ECREC_PS_LEAVE_TIMEOUT_MS"])
        < 1000 * pod(found["servers"])["terminationGracePeriodSeconds"]
    )
    labels = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": "servers"}
    assert budget["spec"]["selector"]["matchLabels"] == labels
    (term,) = pod(found["servers"])["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == labels and term["topologyKey"] == "kubernetes.io/hostname"


def test_every_variable_is_a_flag_and_every_exit_code_one_of_the_table(jobset: Object) -> None:
    import ecrec.launch.servers.ps
    import ecrec.launch.servers.scheduler
    import ecrec.launch.worker

    programs = (ecrec.launch.servers.ps.program, ecrec.launch.servers.scheduler.program, ecrec.launch.worker.program)
    variables_of = {each.prefix: {name for names in each.flags.values() for name in names} for each in programs}
    for job in jobs(jobset).values():
        prefix = PREFIXES[container(job)["command"][0]]
        known = variables_of[prefix]
        names = {each["name"] for each in container(job)["env"]} - {"POD_IP"}
        assert names <= known, names - known
        for rule in job["template"]["spec"]["podFailurePolicy"]["rules"]:
            for code in rule.get("onExitCodes", {}).get("values", []):
                told_to_end = environment(container(job), {}).get("ECREC_PS_STOPPED_EXIT_CODE")
                assert code in list(ExitCode) or str(code) == told_to_end


# ------------------------------------------------------------------ pods as processes
def container(job: Object) -> Object:
    (found,) = pod(job)["containers"]
    return dict(found)


def environment(of: Object, fields: dict[str, str]) -> dict[str, str]:
    """As the kubelet makes it: fields of the pod, and $(NAME) of what stands before."""
    made: dict[str, str] = {}
    for each in of["env"]:
        value = each.get("value")
        if value is None:
            value = fields.get(each["valueFrom"]["fieldRef"]["fieldPath"], "")
        made[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: made.get(match[1], match[0]), value)
    return made


class Pods:
    """The pods of the JobSet, and what its controllers do for them."""

    def __init__(self, jobset: Object, directory: Path, network: Namespaces, script: str) -> None:
        self.jobset, self.directory, self.network, self.script = jobset, directory, network, script
        self.running: dict[tuple[str, int], subprocess.Popen[str]] = {}
        self.addresses: dict[tuple[str, int], str] = {}
        self.restarts = 0
        (directory / "state").mkdir()
        bin_dir = Path(sys.executable).parent
        self.base = {"PATH": f"{bin_dir}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(directory)}
        keygen = [sys.executable, "-m", "ecrec.cli", "keygen"]
        subprocess.run([*keygen, str(directory / "keys")], check=True, capture_output=True)
        workers = [str(directory / "keys-workers"), "--name", "workers", "--join", str(directory / "keys")]
        subprocess.run([*keygen, *workers], check=True, capture_output=True)

    def start_all(self) -> None:
        for name, job in jobs(self.jobset).items():
            for index in range(job["replicas"]):
                self.new_node(name, index)
        for key in self.addresses:
            self.start(*key)

    def new_node(self, name: str, index: int) -> None:
        """The pod is on another node, with an address of its own; its name in the subdomain follows."""
        self.addresses[name, index] = self.network.add()
        subdomain = self.jobset["spec"]["network"]["subdomain"]
        table = "127.0.0.1 localhost\n" + "".join(
            f"{address} {self.jobset['metadata']['name']}-{job}-{at}-0.{subdomain}\n"
            for (job, at), address in self.addresses.items()
        )
        for address in self.addresses.values():
            folder = Path("/etc/netns") / self.network.name_of(address)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "hosts").open("w") as hosts:  # in place: programs that run have it mounted
                hosts.write(table)

    def start(self, name: str, index: int) -> None:
        address = self.addresses[name, index]
        of = container(jobs(self.jobset)[name])
        given = environment(
            of, {"status.podIP": address, "metadata.labels['jobset.sigs.k8s.io/job-index']": str(index)}
        )
        mounts = {"/state": str(self.directory / "state"), "/keys": str(self.directory / self.keys(name))}
        for variable, value in given.items():
            for path, here in mounts.items():
                given[variable] = value = value.replace(path, here) if value.startswith(path) else value
        command = [*of["command"], *of.get("args", [])]
        command = [self.script if word == "train.py" else word for word in command]
        with (self.directory / f"{name}-{index}.log").open("a") as log:
            self.running[name, index] = subprocess.Popen(
                ["ip", "netns", "exec", self.network.name_of(address), *command],
                stdout=log, stderr=log, text=True, env={**self.base, **given}, cwd=self.directory,
            )  # fmt: skip

    def keys(self, name: str) -> str:
        (volume,) = (each["secret"] for each in pod(jobs(self.jobset)[name])["volumes"] if "secret" in each)
        return {"ecrec-keys": "keys", "ecrec-keys-workers": "keys-workers"}[volume["secretName"]]

    def control(self) -> None:
        """What the controllers do with pods that ended: by exit code, and by the rules of the failure policy."""
        for (name, index), process in list(self.running.items()):
            code = process.poll()
            if code is None or code == 0:
                continue
            rules = jobs(self.jobset)[name]["template"]["spec"]["podFailurePolicy"]["rules"]
            action = next(
                (rule["action"] for rule in rules if code in rule.get("onExitCodes", {}).get("values", [])), "Count"
            )
            assert action in ("Ignore", "Count"), f"{name} {index} ended with {code}: the JobSet fails\n{self.logs()}"
            self.restarts += 1
            self.start(name, index)

    def status(self) -> Object:
        """What `ecrec status` says in the scheduler's pod."""
        netns = self.network.name_of(self.addresses["workers", 0])
        endpoint = environment(container(jobs(self.jobset)["workers"]), {})["ECREC_WORKER_SCHEDULER"]
        done = subprocess.run(
            ["ip", "netns", "exec", netns, sys.executable, "-m", "ecrec.cli", "status", "--json",
             "--scheduler", endpoint, "--curve-dir", str(self.directory / "keys-workers")],
            capture_output=True, text=True, timeout=60, check=False, env=self.base, cwd=self.directory,
        )  # fmt: skip
        found: Object = json.loads(done.stdout) if done.returncode == 0 else {"shards": [], "spares": 0}
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self.control()
            assert time.monotonic() < deadline, f"{what}: {self.status()}\n{self.logs()}"
            time.sleep(0.1)

    def is_ready(self, name: str, index: int) -> bool:
        """What its readiness probe says."""
        probe = container(jobs(self.jobset)[name])["readinessProbe"]["httpGet"]
        ports = {each["name"]: each["containerPort"] for each in container(jobs(self.jobset)[name])["ports"]}
        url = f"http://{self.addresses[name, index]}:{ports[probe['port']]}{probe['path']}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.directory.glob("*.log"))
        )

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        for address in self.addresses.values():
            shutil.rmtree(Path("/etc/netns") / self.network.name_of(address), ignore_errors=True)


SCRIPT = """
import os, time
import ecrec

{training}

with ecrec.connect(code="2+1") as session:
    if session.rank == 0:
        def at_step(step):
            open("step", "w").write(str(step))
            while step in (10, 20, 30) and not os.path.exists(f"go-{{step}}"):
                time.sleep(0.02)
        digest, losses = train(session, 40, at_step)
        session.flush()
        open("digest", "w").write(digest)
"""


@pytest.fixture
def pods(jobset: Object, tmp_path: Path) -> Iterator[Pods]:
    pytest.importorskip("torch")
    from test_train_sessions import TRAINING

    script = tmp_path / "train_model.py"
    script.write_text(SCRIPT.format(training=TRAINING))
    with namespaces() as network:
        made = Pods(jobset, tmp_path, network, str(script))
        yield made
        made.close()


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes a minute: ECREC_LONG_FAULTS=1")
def test_the_pods_train_through_the_loss_of_a_pod_of_a_node_and_of_the_scheduler(pods: Pods, tmp_path: Path) -> None:
    pods.start_all()
    step = tmp_path / "step"

    def reached(number: int) -> None:
        pods.until(lambda: step.exists() and step.read_text() == str(number), f"step {number}")

    def whole(epochs: int, spares: int = 1) -> Object:
        def is_whole() -> bool:
            state = pods.status()
            up = [shard["state"] for shard in state["shards"]] == ["up"] * 3
            return up and sum(shard["epoch"] for shard in state["shards"]) == epochs and state["spares"] == spares

        pods.until(is_whole, f"whole, {epochs}")
        return pods.status()

    def holder(shard: int) -> tuple[str, int]:
        endpoint = pods.status()["shards"][shard]["endpoint"]
        return next(key for key, address in pods.addresses.items() if f"//{address}:" in endpoint)

    reached(10)
    whole(3)
    assert all(pods.is_ready("servers", index) for index in range(4)), "servers with a place, and the spare"
    # A pod is killed: its Job fails, and the JobSet makes it again.
    pods.running[holder(1)].kill()
    whole(4)
    (tmp_path / "go-10").touch()
    reached(20)
    # The node of another is lost: nothing answers there any more; its pod comes on another, with another address.
    name, index = holder(0)
    lost = pods.addresses[name, index]
    subprocess.run(["ip", "-n", pods.network.name_of(lost), "link", "set", "eth0", "down"], check=True)
    old = pods.running.pop((name, index))
    pods.new_node(name, index)
    pods.start(name, index)
    whole(5)
    old.kill()
    old.wait()
    (tmp_path / "go-20").touch()
    reached(30)
    # The scheduler's node is lost: its pod, with its volume and its name, comes on another.
    scheduler = pods.running.pop(("scheduler", 0))
    scheduler.kill()
    scheduler.wait()
    pods.new_node("scheduler", 0)
    pods.start("scheduler", 0)
    # And a node is drained: SIGTERM, the server leaves without loss, with the exit code that the manifest ignores.
    leaving = pods.running[holder(2)]
    leaving.terminate()
    whole(6)
    assert leaving.wait(DEADLINE_S) == 143
    (tmp_path / "go-30").touch()
    workers = [pods.running["workers", index] for index in range(2)]
    pods.until(lambda: all(worker.poll() == 0 for worker in workers), "the workers are done")

    from test_train_sessions import TRAINING

    import ecrec

    names: dict[str, Any] = {}
    exec(TRAINING, names)
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        calm, _ = names["train"](session, 40)
    assert (tmp_path / "digest").read_text() == calm
    assert "Traceback" not in pods.logs()
