#!/usr/bin/env bash
# clang-format over all of the C++, and clang-tidy over all that a build folder compiles: check_style.sh [BUILD-FOLDER]
# Both come from their wheels (constraints.txt), so that everybody has the same version.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build-sanitize}
mapfile -t all < <(find src/cpp bindings tests/cpp -name '*.cpp' -o -name '*.hpp' -o -name '*.inl' | sort)
clang-format --dry-run -Werror "${all[@]}"
mapfile -t compiled < <(printf '%s\n' "${all[@]}" | grep '\.cpp$' | grep -v '/kernels/arm/')
# -fsanitize and what only gcc knows say nothing about the code.
printf '%s\0' "${compiled[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p "$folder" --quiet \
    --extra-arg=-fno-sanitize=all --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-unused-command-line-argument
echo "style: ${#all[@]} files formatted but for $(grep -vc '^#' .clang-format-ignore), ${#compiled[@]} files without findings"
