"""The TorchX component ``ecrec.train``: scheduler, parameter servers and workers as roles of one app.

``torchx run -s local_cwd ecrec.train --script train.py --state /shared/runs``; docs/clusters.md. TorchX ends an app
when all its replicas have ended: each worker makes a file when it is done; the servers end when all files are there.
"""

import shlex
from typing import Any

import torchx.specs as specs

LOOP_S = 1
RETRIES = 50
"""Of a server's replica, where the scheduler of TorchX starts replicas again."""


def train(
    *script_args: str,
    script: str,
    state: str,
    shards: int = 3,
    spares: int = 1,
    workers: int = 1,
    image: str = "",
    network: bool = False,
    curve_dir: str = "",
    server_cpu: int = 1,
    server_mb: int = 4096,
    worker_cpu: int = 2,
    worker_gpu: int = 0,
    worker_mb: int = 8192,
) -> specs.AppDef:
    """Train a script over parameter servers that may die.

    Args:
        script_args: arguments of the script
        script: the script; it calls ecrec.connect()
        state: a directory that all hosts see; each run has a folder of its own in it
        shards: parameter servers
        spares: servers that wait for a place
        workers: worker processes
        image: container image, or the working directory for local_cwd
        network: listen to other hosts, for a run on several; needs curve_dir
        curve_dir: directory of keys, made by ecrec keygen, on all hosts
        server_cpu: cores of a server
        server_mb: memory of a server
        worker_cpu: cores of a worker
        worker_gpu: GPUs of a worker
        worker_mb: memory of a worker
    """
    if network and not curve_dir:
        raise ValueError("--network True needs --curve_dir: a directory of keys, made by `ecrec keygen`, on all hosts")
    run = f"{state.rstrip('/')}/{specs.macros.app_id}"
    common = {"ECREC_CURVE_DIR": curve_dir} if curve_dir else {}
    here = f"cd {shlex.quote(image)} && " if image.startswith("/") else ""
    # The shell knows the name of its host; a replica that ends is started again where TorchX does not do that.
    bind = '--bind tcp://0.0.0.0:0 --advertise "$(hostname)"' if network else "--bind tcp://127.0.0.1:0"
    until = " ".join(f"--until {shlex.quote(run)}/done-{rank}" for rank in range(workers))
    done = " && ".join(f"[ -e {shlex.quote(run)}/done-{rank} ]" for rank in range(workers))

    def server(command: str) -> list[str]:
        loop = (
            f"mkdir -p {shlex.quote(run)}; while ! ( {done} ); do {command} {bind} {until}; code=$?; "
            f"case $code in 2|3|7) exit $code;; esac; sleep {LOOP_S}; done"
        )
        return ["-c", here + loop]

    scheduler = (
        f"ecrec-scheduler --shards {shards} --state {shlex.quote(run)}/scheduler.sqlite "
        f"--endpoint-file {shlex.quote(run)}/scheduler.endpoint"
    )
    endpoint = f"file://{run}/scheduler.endpoint"
    rank = specs.macros.replica_id
    words = " ".join(shlex.quote(word) for word in (script, *script_args))
    worker = f"{here}ecrec-worker {words} && touch {shlex.quote(run)}/done-{rank}"

    def role(name: str, replicas: int, args: list[str], cpu: int, gpu: int, mb: int, **environment: Any) -> specs.Role:
        return specs.Role(
            name=name,
            image=image,
            entrypoint="sh",
            args=args,
            env={**common, **environment},
            num_replicas=replicas,
            max_retries=RETRIES,
            retry_policy=specs.RetryPolicy.REPLICA,
            resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=mb),
        )

    servers = f"ecrec-ps --spare --scheduler {shlex.quote(endpoint)}"
    return specs.AppDef(
        name="ecrec",
        roles=[
            role("scheduler", 1, server(scheduler), 1, 0, 1024),
            role("servers", shards + spares, server(servers), server_cpu, 0, server_mb),
            role(
                "workers", workers, ["-c", worker], worker_cpu, worker_gpu, worker_mb,
                ECREC_SCHEDULER=endpoint, RANK=rank, WORLD_SIZE=str(workers),
            ),
        ],
    )  # fmt: skip
