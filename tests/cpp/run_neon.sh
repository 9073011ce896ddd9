#!/bin/sh
# Cross-compile for AArch64 and run the tests of tests/cpp under qemu-user (Debian: g++-aarch64-linux-gnu, qemu-user).
# Says SKIPPED, and succeeds, where these are not installed.
set -eu
cd "$(dirname "$0")/../.."
for tool in aarch64-linux-gnu-g++ qemu-aarch64 cmake ninja; do
    if ! command -v "$tool" >/dev/null; then
        echo "SKIPPED: NEON is not tested, $tool is not installed"
        exit 0
    fi
done
cmake --preset neon
cmake --build --preset neon
ctest --preset neon
