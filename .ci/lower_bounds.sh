#!/usr/bin/env bash
# .ci/lower_bounds.sh WHEEL PYTHON VENV: the unit tests that need no torch, with the lowest versions that pyproject.toml
# allows. PYTHON has packaging; VENV is made with it. On CPython 3.10 and 3.11: newer ones have no wheels of these.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$1 python=$2 venv=$3
extras=(test metrics checkpoints zookeeper parquet)
"$python" -m venv "$venv"
"$python" .ci/lower_bounds.py "${extras[@]}" >"$venv/lower.txt"
"$venv/bin/pip" install -q --only-binary=:all: -c "$venv/lower.txt" "$wheel[$(IFS=,; echo "${extras[*]}")]"
# What calls each of the packages: typer and rich, prometheus-client, numpy, msgspec and pyzmq, kazoo, fsspec, pyarrow.
launch=(program variables scheduler_options worker cli http_server status sizing)
launch=("${launch[@]/#/tests/unit/launch/test_}")
"$venv/bin/pytest" -q -p no:cacheprovider "${launch[@]/%/.py}" tests/unit/train/test_flags.py \
    tests/unit/codec/test_code.py tests/unit/checkpoint tests/unit/transport
