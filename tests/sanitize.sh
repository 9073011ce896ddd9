#!/usr/bin/env bash
# The native code under the sanitizers: the tests of tests/cpp, and the Python module under the tests of what calls it
# (store, batch, codec, bindings, threads, the protocol's machines), with the address and the undefined-behaviour
# sanitizer; the thread pool and all that it divides with the thread sanitizer. Any report ends the run.
#
#   tests/sanitize.sh [PYTHON]     the tests' dependencies come from PYTHON (default: python3)
#
# SANITIZE_ONLY=native, python or threads runs that part alone. SANITIZE_TESTS are the tests
# to run instead, SANITIZE_PYTEST are more arguments for pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
python=$(command -v "$python") || { echo "no $1"; exit 1; }
only=${SANITIZE_ONLY:-all}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

build() {  # build PRESET CMAKE-ARGUMENT...
    local preset=$1
    shift
    cmake --preset "$preset" "$@" >"$scratch/cmake.log" 2>&1 || { cat "$scratch/cmake.log"; exit 1; }
    cmake --build --preset "$preset" >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log"; exit 1; }
}

# The thread sanitizer wants its addresses where they were when it was built; without this, newer kernels move them.
unshuffled=()
if command -v setarch >/dev/null && setarch -R true 2>/dev/null; then unshuffled=(setarch -R); fi

if [[ $only == all || $only == threads ]]; then
    echo "-- several threads, thread sanitizer"
    build tsan
    TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 "${unshuffled[@]}" ctest --preset tsan
fi
[[ $only != threads ]] || exit 0

build sanitize -DPython_EXECUTABLE="$python"
export ASAN_OPTIONS=halt_on_error=1:exitcode=99:detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
if [[ $only != python ]]; then
    echo "-- tests/cpp, address and undefined-behaviour sanitizers"
    ctest --preset sanitize
fi
[[ $only != native ]] || exit 0

echo "-- the Python module, address and undefined-behaviour sanitizers"
# A package of its own, so that no other build of the module can be taken for this one.
package=build-sanitize/package
rm -rf "$package"
mkdir -p "$package/ecrec"
for part in ecrec/*; do
    case "$part" in *.so | *__pycache__) ;; *) ln -s "$PWD/$part" "$package/$part" ;; esac
done
ln -s "$PWD"/build-sanitize/_native*.so "$package/ecrec/"
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' build-sanitize/CMakeCache.txt)
# The runtime must come first, and with it what the runtime looks for when it starts.
preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"
# The interpreter keeps what it interns until the end, so leaks are not looked for. Its own allocator would hide
# where an object ends. A refused allocation is a MemoryError here as elsewhere.
export ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0:allocator_may_return_null=1"
# pytest holds back what is written to its streams, and a process that ends in a report never shows it.
export ASAN_OPTIONS="$ASAN_OPTIONS:log_path=$scratch/report" UBSAN_OPTIONS="$UBSAN_OPTIONS:log_path=$scratch/report"
export PYTHONMALLOC=malloc ECREC_SANITIZED="$PWD/$package" PYTHONDONTWRITEBYTECODE=1
read -ra tests <<<"${SANITIZE_TESTS:-tests/unit/store tests/unit/batch tests/unit/codec tests/unit/protocol \
    tests/unit/checkpoint/test_file_writer.py tests/unit/transport/test_frames.py tests/property}"
log="$scratch/pytest.log"
status=0
# shellcheck disable=SC2086  # words of SANITIZE_PYTEST
LD_PRELOAD=$preload PYTHONPATH="$PWD/$package:$PWD/tests" "$python" -m pytest -p sanitized_module -p no:cacheprovider \
    -n "$(nproc)" -q "${tests[@]}" ${SANITIZE_PYTEST:-} 2>&1 | tee "$log" | tail -n 60 || status=$?
reports=("$scratch"/report*)
if [[ $status != 0 || -e ${reports[0]} ]]; then
    [[ ! -e ${reports[0]} ]] || head -n 60 "${reports[@]}"
    echo "the sanitizers, or a test under them, failed: $status"
    exit 1
fi
grep -qE "(^|, )[1-9][0-9]* passed" "$log" || { echo "no test ran under the sanitizers"; exit 1; }
