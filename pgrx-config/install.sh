#!/usr/bin/env bash
# install.sh PG_CONFIG
#
# Builds the extension for that server and copies it into that server's own folders.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=$(mi_find_pg_config "${1:?which pg_config? make install PG_CONFIG=/path/to/pg_config}")
pgrx-config/build.sh "$pg_config"
major=$(mi_major "$pg_config")
library=$("$pg_config" --pkglibdir)
extension=$("$pg_config" --sharedir)/extension
programs=$("$pg_config" --bindir)
version=$(mi_version)
target=${CARGO_TARGET_DIR:-target}
built=$target/library-pg$major

# Whether the committed script is what the code says. cargo-pgrx generates SQL by a program that holds the whole
# library, which it always links again; without optimisation, for SQL needs none.
checked=$built/checked-sql
inputs=$(cat "$built/made-of" pgrx-config/release-sql.sh | sha256sum)
if [ "$(cat "$checked" 2>/dev/null)" != "$inputs" ]; then
    generated=$built/generated
    mkdir -p "$generated"
    cargo pgrx schema "pg$major" --pg-config "$pg_config" --no-default-features --features "pg$major" \
        --out "$generated/managed_identity--$version.sql"
    pgrx-config/release-sql.sh check "$generated"
    echo "$inputs" >"$checked"
fi

sudo=()
if [ ! -w "$library" ] || [ ! -w "$extension" ] || [ ! -w "$programs" ]; then
    if [ "$(id -u)" = 0 ]; then
        echo "root cannot write to $library, $extension or $programs" >&2
        exit 1
    fi
    sudo=(sudo)
fi
# install replaces a file instead of writing into it, so a running server keeps the library that it has mapped.
put() { # put MODE FOLDER FILE...: those that are not there as they are here
    local mode=$1 folder=$2 file
    shift 2
    for file in "$@"; do
        cmp -s "$file" "$folder/$(basename "$file")" || "${sudo[@]}" install -D -m "$mode" "$file" "$folder/$(basename "$file")"
    done
}
control=$built/managed_identity.control
sed "s/@CARGO_VERSION@/$version/" managed_identity.control >"$control"
put 755 "$library" "$built/managed_identity.so"
put 755 "$programs" "$target/command/managed-identity"
put 644 "$extension" "$control" sql/managed_identity--*.sql
put 644 "$extension/managed_identity" sql/scripts/*
echo "managed_identity is installed in PostgreSQL $major ($library), the command managed-identity in $programs"
