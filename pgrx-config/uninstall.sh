#!/usr/bin/env bash
# uninstall.sh PG_CONFIG
#
# Takes out of that server's folders what install.sh has put there, every version's script among it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=$(mi_find_pg_config "${1:?which pg_config? make uninstall PG_CONFIG=/path/to/pg_config}")
library=$("$pg_config" --pkglibdir)
extension=$("$pg_config" --sharedir)/extension

sudo=()
if [ ! -w "$library" ] || [ ! -w "$extension" ]; then
    if [ "$(id -u)" = 0 ]; then
        echo "root cannot write to $library or $extension" >&2
        exit 1
    fi
    sudo=(sudo)
fi
"${sudo[@]}" rm -f "$library/managed_identity.so" "$extension/managed_identity.control" "$extension"/managed_identity--*.sql
"${sudo[@]}" rm -rf "$extension/managed_identity"
echo "managed_identity is no longer installed in PostgreSQL $(mi_major "$pg_config") ($library)"
