# Where everything that the repository needs but does not hold is kept.
# Sourced by every script here, by the Makefile's recipes and, if you like, by your shell.

# A backtrace in the server's environment would reach clients as an error's DETAIL.
unset RUST_BACKTRACE

PGRX_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root: its servers then run as this user, who must be able to read the cache.
    RUN_AS=postgres
    MI_CACHE=${MI_CACHE:-/var/cache/managed_identity}
else
    RUN_AS=
    MI_CACHE=${MI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/managed_identity}
fi

# pg_config of one major: the distribution's, or that of the server built in the cache.
mi_pg_config() {
    local debian=/usr/lib/postgresql/$1
    # The folder of a server without its -dev package has no bin/pg_config, or no headers.
    if [ -x "$debian/bin/pg_config" ] && [ -d "/usr/include/postgresql/$1/server" ]; then
        echo "$debian/bin/pg_config"
    else
        echo "$MI_CACHE/postgresql-$1/bin/pg_config"
    fi
}

PG15_CONFIG=${PG15_CONFIG:-$(mi_pg_config 15)}
PG18_CONFIG=${PG18_CONFIG:-$(mi_pg_config 18)}
MI_AZURITE=$MI_CACHE/azurite/node_modules/.bin/azurite
MI_PYTHON=$MI_CACHE/python/bin/python

export PGRX_HOME RUN_AS MI_CACHE PG15_CONFIG PG18_CONFIG MI_AZURITE MI_PYTHON
