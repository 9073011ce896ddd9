"""Pods as processes: each in a network namespace with the address, names and environment that Kubernetes would give it.

What the Job and JobSet controllers do when a pod ends is done here, by the policies of the manifest. There is no
kubelet: security contexts and scheduling are checked against the schemas alone.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from manifests import Object, container, environment, expanded, jobs, pod, pods_of
from test_faults import Namespaces

DEADLINE_S = 90.0
UID = "0b5c1d3e"
Key = tuple[str, int]
"""Name of a replicated Job, and the number of a pod among those of all its Jobs."""


class Pods:
    """The pods of a JobSet, and what its controllers do for them. Workers run ``script`` in place of train.py."""

    def __init__(self, jobset: Object, directory: Path, network: Namespaces, script: Path) -> None:
        self.jobset, self.directory, self.network, self.script = jobset, directory, network, script
        self.name = jobset["metadata"]["name"]
        self.running: dict[Key, subprocess.Popen[str]] = {}
        self.addresses: dict[Key, str] = {}
        self.restarts = 0
        programs = {container(job)["command"][0]: name for name, job in jobs(jobset).items()}
        self.schedulers, self.servers, self.workers = (
            programs[f"ecrec-{program}"] for program in ("scheduler", "ps", "worker")
        )
        (directory / "state").mkdir()
        bin_dir = Path(sys.executable).parent
        self.base = {"PATH": f"{bin_dir}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(directory)}
        keygen = [sys.executable, "-m", "ecrec.cli", "keygen"]
        subprocess.run([*keygen, str(directory / "keys")], check=True, capture_output=True)
        workers = [str(directory / "keys-workers"), "--name", "workers", "--join", str(directory / "keys")]
        subprocess.run([*keygen, *workers], check=True, capture_output=True)

    def start_all(self) -> None:
        for name, job in jobs(self.jobset).items():
            for number in range(pods_of(job)):
                self.new_node(name, number)
        for key in self.addresses:
            self.start(*key)

    # ------------------------------------------------------------------ what the kubelet and the controllers do
    def new_node(self, name: str, number: int) -> None:
        """The pod is on another node, with an address of its own; its name in the subdomain follows."""
        self.addresses[name, number] = self.network.add()
        subdomain = self.jobset["spec"]["network"].get("subdomain", self.name)
        table = "127.0.0.1 localhost\n" + "".join(
            f"{address} {self.host_name(*key)}.{subdomain}\n" for key, address in self.addresses.items()
        )
        for address in self.addresses.values():
            folder = Path("/etc/netns") / self.network.name_of(address)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "hosts").open("w") as hosts:  # in place: programs that run have it mounted
                hosts.write(table)

    def indexes(self, name: str, number: int) -> tuple[int, int]:
        """Of the Job, and of the pod in it."""
        return divmod(number, jobs(self.jobset)[name]["template"]["spec"].get("completions", 1))

    def host_name(self, name: str, number: int) -> str:
        job, index = self.indexes(name, number)
        return f"{self.name}-{name}-{job}-{index}"

    def start(self, name: str, number: int) -> None:
        address = self.addresses[name, number]
        of = container(jobs(self.jobset)[name])
        job, index = self.indexes(name, number)
        fields = {
            "status.podIP": address,
            "metadata.labels['jobset.sigs.k8s.io/job-index']": str(job),
            "metadata.labels['jobset.sigs.k8s.io/jobset-name']": self.name,
            "metadata.labels['jobset.sigs.k8s.io/jobset-uid']": UID,
            "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
        }
        given = environment(of, fields)
        mounts = {
            mount["mountPath"]: self.volume(name, mount["name"]) / expanded(mount.get("subPathExpr", ""), given)
            for mount in of.get("volumeMounts", [])
        }
        for variable, value in given.items():
            for path, here in mounts.items():
                here.mkdir(exist_ok=True)
                given[variable] = value = value.replace(path, str(here)) if value.startswith(path) else value
        words = [expanded(word, given) for word in [*of["command"], *of.get("args", [])]]
        command = [str(self.script) if word == "train.py" else word for word in words]
        with (self.directory / f"{name}-{number}.log").open("a") as log:
            self.running[name, number] = subprocess.Popen(
                ["ip", "netns", "exec", self.network.name_of(address), *command],
                stdout=log, stderr=log, text=True, env={**self.base, **given}, cwd=self.directory,
            )  # fmt: skip

    def volume(self, name: str, volume: str) -> Path:
        """The folder here that stands for it."""
        (found,) = (each for each in pod(jobs(self.jobset)[name])["volumes"] if each["name"] == volume)
        if "persistentVolumeClaim" in found:
            return self.directory / "state"
        return (
            self.directory / {"ecrec-keys": "keys", "ecrec-keys-workers": "keys-workers"}[found["secret"]["secretName"]]
        )

    def control(self) -> None:
        """What the controllers do with pods that ended: by exit code, and by the rules of the failure policy."""
        for (name, number), process in list(self.running.items()):
            code = process.poll()
            if code is None or code == 0:
                continue
            rules = jobs(self.jobset)[name]["template"]["spec"]["podFailurePolicy"]["rules"]
            action = next(
                (rule["action"] for rule in rules if code in rule.get("onExitCodes", {}).get("values", [])), "Count"
            )
            assert action in ("Ignore", "Count"), f"{name} {number} ended with {code}: the JobSet fails\n{self.logs()}"
            self.restarts += 1
            self.start(name, number)

    def lose_node(self, key: Key, with_power: bool = True) -> "subprocess.Popen[str]":
        """Nothing answers there any more; the pod comes on another node, with another address. The old process: the
        lost node still runs it ``with_power``, cut off."""
        lost = self.addresses[key]
        subprocess.run(["ip", "-n", self.network.name_of(lost), "link", "set", "eth0", "down"], check=True)
        old = self.running.pop(key)
        if not with_power:
            old.kill()
            old.wait()
        self.new_node(*key)
        self.start(*key)
        return old

    # ------------------------------------------------------------------ looking
    def status(self) -> Object:
        """What `ecrec status` says in a worker's pod."""
        key = self.workers, 0
        netns = self.network.name_of(self.addresses[key])
        fields = {"metadata.labels['jobset.sigs.k8s.io/jobset-name']": self.name}
        endpoint = environment(container(jobs(self.jobset)[self.workers]), fields)["ECREC_WORKER_SCHEDULER"]
        done = subprocess.run(
            ["ip", "netns", "exec", netns, sys.executable, "-m", "ecrec.cli", "status", "--json",
             "--scheduler", endpoint, "--curve-dir", str(self.directory / "keys-workers")],
            capture_output=True, text=True, timeout=60, check=False, env=self.base, cwd=self.directory,
        )  # fmt: skip
        found: Object = {"shards": [], "spares": 0, "error": done.stderr}
        if done.returncode == 0:
            found = json.loads(done.stdout)
        return found

    def holder(self, shard: int) -> Key:
        """The pod whose server has that place."""
        self.until(lambda: bool(self.status()["shards"]), "the scheduler answers")
        endpoint = self.status()["shards"][shard]["endpoint"]
        return next(key for key, address in self.addresses.items() if f"//{address}:" in endpoint)

    def whole(self, epochs: int, shards: int = 3, spares: int = 1) -> None:
        """Wait until all places are whole, given out so many times in all, and a spare waits."""

        def is_whole() -> bool:
            state = self.status()
            up = [shard["state"] for shard in state["shards"]] == ["up"] * shards
            return up and sum(shard["epoch"] for shard in state["shards"]) == epochs and state["spares"] == spares

        self.until(is_whole, f"whole, {epochs}")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self.control()
            assert time.monotonic() < deadline, f"{what}: {self.status()}\n{self.logs()}"
            time.sleep(0.1)

    def is_ready(self, name: str, number: int) -> bool:
        """What its readiness probe says."""
        probe = container(jobs(self.jobset)[name])["readinessProbe"]["httpGet"]
        ports = {each["name"]: each["containerPort"] for each in container(jobs(self.jobset)[name])["ports"]}
        url = f"http://{self.addresses[name, number]}:{ports[probe['port']]}{probe['path']}"
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
