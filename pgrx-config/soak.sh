#!/usr/bin/env bash
# soak.sh: five minutes of random faults, on PostgreSQL 18 unless PG_CONFIG says otherwise. SEED=n repeats a run.
set -euo pipefail
cd "$(dirname "$0")/.."
pgrx-config/setup.sh bench
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

export PG_CONFIG=${PG_CONFIG:-$PG18_CONFIG}
pgrx-config/install.sh "$PG_CONFIG"
cargo run --quiet --release -p server-tests --bin soak
