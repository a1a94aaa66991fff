#!/usr/bin/env bash
# A job in any language: it prints JSON Lines, and `hubsync pipe` brings them up while it runs.
#
#     bash examples/shell_job.sh user/squares 1000
#
# With --source the pipe counts lines. Run again after a crash, the job prints the same lines in the same order, and
# those that were accepted before are passed over.
set -euo pipefail

repo=${1:?"usage: shell_job.sh REPO [ROWS]"}
rows=${2:-1000}

generate() {
    local n
    for ((n = 0; n < rows; n++)); do
        printf '{"id": %d, "square": %d}\n' "$n" "$((n * n))"
    done
}

# Where the generator fails, pipefail makes the script fail as well; what it had printed is on the Hub all the same.
generate | hubsync pipe "$repo" --source squares
