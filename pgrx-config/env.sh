# shellcheck shell=bash
# Where everything that the repository needs but does not hold is kept.
# Sourced by every script here; source it in your own shell before you call cargo pgrx by hand.

# A backtrace in the server's environment would reach clients as an error's DETAIL.
unset RUST_BACKTRACE

PGRX_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Under sudo the owner's tree would fill with root's files.
if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ ! -O "$PGRX_HOME" ]; then
    echo "please run this without sudo; what needs root asks for it" >&2
    return 1
fi

if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root: its servers then run as this user, who must be able to read the cache.
    RUN_AS=postgres
    MI_CACHE=${MI_CACHE:-/var/cache/managed_identity}
else
    RUN_AS=
    MI_CACHE=${MI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/managed_identity}
fi

case :$PATH: in
    *:"$MI_CACHE/tools/bin":*) ;;
    *) PATH=$MI_CACHE/tools/bin:$PATH ;;
esac

# pg_config of MAJOR: the distribution's where server and headers are both there, else that of the server in the cache.
mi_pg_config() {
    local debian=/usr/lib/postgresql/$1/bin
    if [ -x "$debian/postgres" ] && [ -x "$debian/pg_config" ] && [ -d "/usr/include/postgresql/$1/server" ]; then
        echo "$debian/pg_config"
    else
        echo "$MI_CACHE/postgresql-$1/bin/pg_config"
    fi
}

# The server for what needs just one: 15, or the newest there is. Nothing when there is none.
mi_any_pg_config() {
    local major
    for major in 15 18 17 16; do
        if [ -x "$(mi_pg_config "$major")" ]; then
            mi_pg_config "$major"
            return
        fi
    done
}

# A server of the distribution's own, headers included. Nothing when there is none.
mi_debian_pg_config() {
    local major pg_config
    for major in 15 18 17 16; do
        pg_config=$(mi_pg_config "$major")
        if [ "${pg_config#/usr/lib/}" != "$pg_config" ]; then
            echo "$pg_config"
            return
        fi
    done
}

# The full path of the pg_config that somebody has named.
mi_find_pg_config() {
    local pg_config
    if ! pg_config=$(command -v "$1"); then
        echo "no pg_config at $1" >&2
        return 1
    fi
    realpath --no-symlinks "$pg_config"
}

# The major of the server of that pg_config.
mi_major() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# The version of the extension.
mi_version() { sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"$/\1/p' "$PGRX_HOME/../Cargo.toml"; }

# The Debian mirror that this machine already uses.
mi_debian_mirror() {
    local mirror=${MI_DEBIAN_MIRROR:-}
    # shellcheck disable=SC2016 # apt expands it
    if [ -z "$mirror" ]; then
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | head -n 1 || true)
    fi
    if [ -z "$mirror" ]; then
        echo "apt names no Debian mirror here; set MI_DEBIAN_MIRROR to one (http://HOST/debian)" >&2
        return 1
    fi
    echo "$mirror"
}

# Tells cargo-pgrx, and through it every plain cargo build, that MAJOR's pg_config is PATH.
mi_use_pg_config() {
    local file=$PGRX_HOME/config.toml line="pg$1 = \"$2\""
    [ -e "$file" ] || echo '[configs]' >"$file"
    # Written only when it changes, for its time makes cargo build pgrx again.
    if ! grep -q -x -F "$line" "$file"; then
        sed -i "/^pg$1 = /d" "$file"
        echo "$line" >>"$file"
    fi
}

PG15_CONFIG=$(mi_pg_config 15)
PG18_CONFIG=$(mi_pg_config 18)
MI_AZURITE=$MI_CACHE/azurite/node_modules/.bin/azurite-blob
MI_PYTHON=$MI_CACHE/python/bin/python
MI_PGBOUNCER=/usr/sbin/pgbouncer
if [ ! -x "$MI_PGBOUNCER" ]; then MI_PGBOUNCER=$MI_CACHE/pgbouncer$MI_PGBOUNCER; fi
MI_POSTGRES_EXPORTER=$MI_CACHE/postgres_exporter/postgres_exporter
# One that was built elsewhere may be named instead, where Go's proxy has none.
MI_PEER_VAULT=${MI_PEER_VAULT:-$MI_CACHE/peer_vault/azure-keyvault-emulator}

export PATH PGRX_HOME RUN_AS MI_CACHE PG15_CONFIG PG18_CONFIG MI_AZURITE MI_PYTHON MI_PGBOUNCER MI_POSTGRES_EXPORTER MI_PEER_VAULT
