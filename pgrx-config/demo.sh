#!/usr/bin/env bash
# demo.sh: sets the machine up, installs into one server, and shows the extension at work.
set -euo pipefail
cd "$(dirname "$0")/.."
pgrx-config/setup.sh demo
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

export PG_CONFIG=${PG_CONFIG:-$(mi_any_pg_config)}
pgrx-config/install.sh "$PG_CONFIG"
cargo run --quiet -p server-tests --bin demo
