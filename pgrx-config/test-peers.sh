#!/usr/bin/env bash
# test-peers.sh: tests with peers that `make test` does not need. Prometheus' postgres_exporter asks a real server
# what sql/scripts/postgres_exporter.yml says; azure-keyvault-emulator is a vault that others have written. They come by
# `go install`, so this command needs Go; MI_PEER_VAULT may name a vault that was built otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
pgrx-config/setup.sh test-peers
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

export PG_CONFIG=${PG_CONFIG:-$(mi_any_pg_config)}
pgrx-config/install.sh "$PG_CONFIG"
cargo test -p server-tests --test exporter --test peer_vault -- --show-output
