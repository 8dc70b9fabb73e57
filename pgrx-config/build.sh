#!/usr/bin/env bash
# build.sh PG_CONFIG
#
# Builds the library for that server's major, in release: target/library-pgNN/managed_identity.so, and the command
# target/command/managed-identity. They are what install.sh installs, so what the tests have tried, and what package.sh
# packs.
#
# The same commit, rustc, C compiler and PostgreSQL headers give the same bytes, whoever builds and wherever.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=${1:?which pg_config?}
major=$(mi_major "$pg_config")
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

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

# What something is made of, beside what is named: nothing of it has changed, so it is not built again.
made_of() {
    printf '%s\n' "$@"
    rustc --version
    cc --version
    echo "${RUSTFLAGS:-} ${CFLAGS:-}"
    find src sql .cargo Cargo.toml Cargo.lock ./*.control pgrx-config/build.sh -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
}
is_built() { # is_built FOLDER INPUTS
    [ -e "$1/made-of" ] && [ "$(head -n 1 "$1/made-of")" = "$2" ] &&
        tail -n +2 "$1/made-of" | sha256sum --check --status 2>/dev/null
}
keep() { # keep FOLDER INPUTS BUILT NAME
    install -D -m 755 "$3" "$1/$4"
    {
        echo "$2"
        sha256sum "$1/$4"
    } >"$1/made-of"
}
library=$target/library-pg$major
library_inputs=$(made_of "$("$pg_config")" | sha256sum)
command=$target/command
command_inputs=$(made_of | sha256sum)
if is_built "$library" "$library_inputs"; then library=; else rm -rf "$library"; fi
if is_built "$command" "$command_inputs"; then command=; else rm -rf "$command"; fi
if [ -z "$library$command" ]; then exit 0; fi

# No path of this machine goes into what is built: rustc's and the C compiler's names of files begin at the same made-up
# roots everywhere. The later prefix wins, so the outer comes first.
read -r -a flags <<<"${RUSTFLAGS:-}"
c_flags=${CFLAGS:-}
for root in "$(rustc --print sysroot)=/rust" "${CARGO_HOME:-$HOME/.cargo}=/cargo" "$PWD=/managed_identity" "$target=/target"; do
    flags+=("--remap-path-prefix=$root")
    c_flags+=" -ffile-prefix-map=$root"
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
# With other flags cargo builds everything again, so these have a folder of their own.
export CARGO_TARGET_DIR=$target/library
# What packages are dated by is no matter of theirs, and would make cargo build the C library again.
build() {
    env -u SOURCE_DATE_EPOCH CFLAGS="$c_flags" cargo build --locked --release -p managed_identity --no-default-features "$@"
}
if [ -n "$library" ]; then
    build --lib --features "pg$major"
    keep "$library" "$library_inputs" "$CARGO_TARGET_DIR/release/libmanaged_identity.so" managed_identity.so
fi
# The command knows no PostgreSQL, so one is every major's.
if [ -n "$command" ]; then
    build --bin managed-identity --features command
    keep "$command" "$command_inputs" "$CARGO_TARGET_DIR/release/managed-identity" managed-identity
fi
