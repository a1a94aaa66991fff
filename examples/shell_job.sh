#!/usr/bin/env bash
# A job in any language: it prints JSON Lines, and `hubsync pipe` uploads them while it runs.
#
#     bash examples/shell_job.sh user/squares 1000
#
# With --source, the pipe counts lines. After a crash, run the job again: it prints the same lines in the same order, and
# the pipe skips those that it has accepted before.
set -euo pipefail

repo=${1:?"usage: shell_job.sh REPO [ROWS]"}
rows=${2:-1000}

generate() {
    local n
    for ((n = 0; n < rows; n++)); do
        printf '{"id": %d, "square": %d}\n' "$n" "$((n * n))"
    done
}

# If the generator fails, pipefail makes the script fail, too. The lines that it printed are on the Hub anyway.
generate | hubsync pipe "$repo" --source squares
