#!/usr/bin/env bash
# test.sh: pure tests once, the emulator's once, and the server tests on each end of the version range.
#
# A server test that a major cannot run prints `left out on MAJOR: NAME (reason)` and returns.
# The last line is the count of all: N passed, N failed.
set -euo pipefail
cd "$(dirname "$0")/.."
pgrx-config/setup.sh test
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

logs=${CARGO_TARGET_DIR:-target}/test-logs
rm -rf "$logs"
mkdir -p "$logs"
passed=0
failed=0
report=()

run() { # run NAME COMMAND...: the command's output goes to $logs/NAME too
    local name=$1 log=$logs/$1 ok=0 bad=0 out=0 status=0
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$log" || status=1
    # The runner's word, one line per test program.
    read -r ok bad < <(awk '/^test result: / { ok += $4; bad += $6 } END { print ok + 0, bad + 0 }' "$log")
    # Ended before its count: it did not build, or was killed.
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    grep -o 'left out on .*' "$log" | sort -u >"$log.left-out" || true
    out=$(wc -l <"$log.left-out")
    ok=$((ok - out))
    passed=$((passed + ok))
    failed=$((failed + bad))
    report+=("$name: $((ok + bad)) ran, $bad failed, $out left out" "$(sed 's/^/  /' "$log.left-out")")
}

run "pure tests" cargo test -p managed_identity --lib --tests --no-default-features --features pg15 --no-fail-fast
run "emulator" cargo test -p emulator --no-fail-fast
for major in 15 18; do
    export PG_CONFIG
    PG_CONFIG=$(mi_pg_config "$major")
    if pgrx-config/install.sh "$PG_CONFIG"; then
        # What a test that passed has printed is hidden otherwise, and with it what was left out.
        run "PostgreSQL $major" cargo test -p server-tests --no-fail-fast -- --show-output
    else
        failed=$((failed + 1))
        report+=("PostgreSQL $major: the extension could not be built, so nothing ran")
    fi
done

echo
printf '%s\n' "${report[@]}" | sed '/^$/d'
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
