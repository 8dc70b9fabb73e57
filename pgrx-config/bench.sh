#!/usr/bin/env bash
# bench.sh [bench|soak]: the comparisons that make bench prints, or the random faults of make soak (SEED=n repeats a
# run), on PostgreSQL 18 unless PG_CONFIG says otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
pgrx-config/setup.sh bench
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

export PG_CONFIG=${PG_CONFIG:-$PG18_CONFIG}
pgrx-config/install.sh "$PG_CONFIG"
cargo run --quiet --release -p server-tests --bin "${1:-bench}"
