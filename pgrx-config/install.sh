#!/usr/bin/env bash
# install.sh PG_CONFIG
#
# Builds the extension for that server, in release, and copies it into that server's own folders.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=$(command -v "${1:?which pg_config? make install PG_CONFIG=/path/to/pg_config}" || true)
if [ -z "$pg_config" ]; then
    echo "no pg_config at $1" >&2
    exit 1
fi
pg_config=$(realpath --no-symlinks "$pg_config")
major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
library=$("$pg_config" --pkglibdir)
extension=$("$pg_config" --sharedir)/extension
case $major in
    15 | 16 | 17 | 18) ;;
    *)
        echo "managed_identity runs on PostgreSQL 15 to 18; $pg_config is of $("$pg_config" --version)" >&2
        exit 1
        ;;
esac
if [ ! -d "$("$pg_config" --includedir-server)" ]; then
    echo "PostgreSQL $major's headers are not here; on Debian: apt-get install postgresql-server-dev-$major" >&2
    exit 1
fi

mi_use_pg_config "$major" "$pg_config"
target=${CARGO_TARGET_DIR:-target}
package=$target/package-pg$major
stamp=$package.installed

# What the installed files are made of. cargo would find out too, but cargo-pgrx always links its schema program again.
made_of() {
    "$pg_config"
    rustc --version
    echo "${RUSTFLAGS:-}"
    find src sql .cargo Cargo.toml Cargo.lock ./*.control pgrx-config/install.sh pgrx-config/release-sql.sh -type f -print0 | sort -z | xargs -0 sha256sum
}
inputs=$(made_of | sha256sum)
if [ -e "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$inputs" ] &&
    tail -n +2 "$stamp" | sha256sum --check --status 2>/dev/null; then
    echo "managed_identity is up to date in PostgreSQL $major ($library)"
    exit 0
fi

rm -rf "$package" "$stamp"
cargo pgrx package --pg-config "$pg_config" --out-dir "$package" --no-default-features --features "pg$major"
pgrx-config/release-sql.sh check "$package$extension"
cp sql/managed_identity--*.sql "$package$extension"

sudo=()
if [ ! -w "$library" ] || [ ! -w "$extension" ]; then
    if [ "$(id -u)" = 0 ]; then
        echo "root cannot write to $library or $extension" >&2
        exit 1
    fi
    sudo=(sudo)
fi
# install replaces a file instead of writing into it, so a running server keeps the library that it has mapped.
"${sudo[@]}" install -m 755 "$package$library"/managed_identity.so "$library"
"${sudo[@]}" install -m 644 "$package$extension"/managed_identity* "$extension"
"${sudo[@]}" install -d -m 755 "$extension/managed_identity"
"${sudo[@]}" install -m 644 sql/scripts/* "$extension/managed_identity"
{
    echo "$inputs"
    (cd "$package" && find . -type f | sed 's/^\.//') | sort | xargs -d '\n' sha256sum
} >"$stamp"
echo "managed_identity is installed in PostgreSQL $major ($library)"
