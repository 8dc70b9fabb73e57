#!/usr/bin/env bash
# setup.sh demo|test|test-peers|bench|lint|install|package|test-package|notices
#
# Finds out what that goal needs and this machine lacks, prints it, and installs just that.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

goal=${1:?for which goal: demo, test, test-peers, bench, lint, install, package, test-package or notices?}
pgrx_version=$(sed -n 's/^pgrx = .*"=\([0-9.]*\)".*/\1/p' Cargo.toml)
deny_version=0.20.2
about_version=0.9.3
exporter_version=0.20.1
peer_vault_version=0.7.0
requirements=tests/emulator/tests/python/requirements.txt

# 1. What is given. This script touches nobody's Rust or node.
at_least() { # at_least VERSION COMMAND...
    local least=$1 found
    shift
    found=$("$@" 2>/dev/null | grep -o -E -m 1 '[0-9]+(\.[0-9]+)+' | head -n 1) || return 1
    printf '%s\n%s\n' "$least" "$found" | sort -V -C
}
runs() { "$@" --version >/dev/null 2>&1; }
wanted=()
if ! at_least 1.95 rustc --version || ! runs cargo; then
    wanted+=("rustc 1.95 or newer, with cargo: https://rustup.rs")
elif [ "$goal" = lint ] && ! { runs cargo fmt && runs cargo clippy; }; then
    wanted+=("rustfmt and clippy: rustup component add rustfmt clippy")
fi
case $goal in
    demo | test | test-peers | bench | test-package)
        if ! at_least 20 node --version || ! runs npm; then
            wanted+=("node 20 or newer, with npm: https://nodejs.org/en/download")
        fi
        ;;
esac
if [ "$goal" = test-peers ] && ! at_least 1.26 go version; then
    wanted+=("go 1.26 or newer, for Prometheus' postgres_exporter and azure-keyvault-emulator: https://go.dev/doc/install")
fi
if [ ${#wanted[@]} != 0 ]; then
    echo "make $goal needs these; please install them first:" >&2
    printf '  %s\n' "${wanted[@]}" >&2
    exit 1
fi

# 2. What the goal needs: packages, servers, the regression files of servers, and pieces from other registries.
packages=(gcc libc6-dev make pkg-config libssl-dev clang libclang-dev)
servers=()
regress=()
pieces=()
case $goal in
    demo) pieces=(cargo-pgrx azurite python) ;;
    test) pieces=(cargo-pgrx azurite python pgbouncer) servers=(15 18) regress=(15 18) ;;
    test-peers) pieces=(cargo-pgrx azurite exporter peer-vault) ;;
    bench) pieces=(cargo-pgrx azurite python) servers=(18) ;;
    lint) pieces=(cargo-deny) servers=(15 18) ;;
    install) pieces=(cargo-pgrx) ;;
    package) ;;
    test-package) pieces=(azurite python) servers=(18) ;;
    notices) pieces=(cargo-about) ;;
    *)
        echo "unknown goal: $goal" >&2
        exit 1
        ;;
esac
case $goal in
    demo) packages+=(python3-venv) ;;
    test) packages+=(python3-venv procps libfaketime openssl bsdutils) ;;
    bench) packages+=(python3-venv curl) ;;
    lint) packages+=(shellcheck) ;;
    package) packages+=(dpkg-dev git) ;;
    test-package) packages+=(dpkg-dev git debootstrap lintian python3-venv) ;;
esac
# Not grep -q: it leaves early, apt-cache then dies writing, and pipefail says no.
apt_has() { LC_ALL=C apt-cache policy "$1" | grep 'Candidate: [0-9]' >/dev/null; }
# Extensions that ours is tested beside, for the servers that are apt's: there are none for those that are built.
beside() {
    packages+=("postgresql-$1-cron" "postgresql-$1-pgaudit" "postgresql-plpython3-$1")
    # The PGDG's alone.
    if apt_has "postgresql-$1-http"; then packages+=("postgresql-$1-http"); fi
}
if [ "$goal" = test ]; then
    for major in "${servers[@]}"; do
        case $(mi_pg_config "$major") in /usr/lib/*) beside "$major" ;; esac
    done
fi
if [[ $goal = @(demo|test-peers) ]] && [ -z "$(mi_any_pg_config)" ]; then servers=(any); fi
if [ "$goal" = test-package ] && [ -z "$(mi_debian_pg_config)" ]; then servers+=(any); fi

# 3. What of that is missing.
missing_packages() {
    if ! command -v dpkg-query >/dev/null; then
        echo "no apt here; these packages, or what they are called here, are yours to install: $*" >&2
        return
    fi
    comm -23 <(printf '%s\n' "$@" | sort -u) \
        <(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | sort -u)
}
present() {
    case $1 in
        cargo-pgrx) [ "$(cargo pgrx --version 2>/dev/null)" = "cargo-pgrx $pgrx_version" ] ;;
        cargo-deny) [ "$(cargo deny --version 2>/dev/null)" = "cargo-deny $deny_version" ] ;;
        cargo-about) [ "$(cargo about --version 2>/dev/null)" = "cargo-about $about_version" ] ;;
        azurite) cmp -s pgrx-config/azurite/package-lock.json "$MI_CACHE/azurite/package-lock.json" ;;
        exporter) [ "$(cat "$MI_CACHE/postgres_exporter/version" 2>/dev/null)" = "$exporter_version" ] ;;
        peer-vault)
            [ "$MI_PEER_VAULT" != "$MI_CACHE/peer_vault/azure-keyvault-emulator" ] ||
                [ "$(cat "$MI_CACHE/peer_vault/version" 2>/dev/null)" = "$peer_vault_version" ]
            ;;
        python) cmp -s "$requirements" "$MI_CACHE/python/requirements.txt" ;;
        pgbouncer) [ -x "$MI_PGBOUNCER" ] ;;
        server-*) [ -x "$(mi_pg_config "${1#server-}")" ] ;;
        regress-*) [ -e "$MI_CACHE/source/${1#regress-}/SHA256SUMS" ] ;;
    esac
}
missing=()
for piece in "${servers[@]/#/server-}" "${regress[@]/#/regress-}" "${pieces[@]}"; do
    present "$piece" || missing+=("$piece")
done
mapfile -t apt < <(missing_packages "${packages[@]}")

finish() {
    local major
    for major in 15 16 17 18; do
        if present "server-$major"; then mi_use_pg_config "$major" "$(mi_pg_config "$major")"; fi
    done
    echo "make $goal: all it needs is installed"
    exit 0
}
if [ ${#missing[@]} = 0 ] && [ ${#apt[@]} = 0 ]; then finish; fi

# One installation at a time: whoever had to wait looks again.
mkdir -p "$MI_CACHE"
if [ -z "${MI_SETUP_LOCKED:-}" ]; then
    exec env MI_SETUP_LOCKED=1 flock --close "$MI_CACHE/lock" "$0" "$goal"
fi

# 4. Servers come from apt, or are built where apt has none.
sudo=(sudo)
if [ "$(id -u)" = 0 ]; then sudo=(); fi
if [ ${#apt[@]} != 0 ] || [[ " ${missing[*]} " == *" "@(server-|regress-|pgbouncer)* ]]; then
    if [ ${#sudo[@]} != 0 ] && ! command -v sudo >/dev/null; then
        echo "apt needs root, and there is no sudo here: run make $goal as root once" >&2
        exit 1
    fi
    echo "make $goal: packages are missing; reading apt's lists"
    # A list that cannot be read is often one of many; if it is the wrong one, the installation will say so.
    "${sudo[@]}" apt-get -q -q update </dev/null || echo "going on with the lists there are" >&2
fi

steps=()
for piece in "${missing[@]}"; do
    if [ "$piece" = server-any ]; then
        for major in 15 18 17 16; do
            if apt_has "postgresql-$major"; then break; fi
            major=15
        done
        piece=server-$major
    fi
    major=${piece#*-}
    case $piece in
        server-*)
            if apt_has "postgresql-$major" && apt_has "postgresql-server-dev-$major"; then
                packages+=("postgresql-$major" "postgresql-server-dev-$major")
                if [ "$goal" = test ]; then beside "$major"; fi
            else
                packages+=(bison bzip2 flex libicu-dev libreadline-dev perl zlib1g-dev)
                steps+=("$piece")
            fi
            ;;
        regress-*) packages+=(bzip2) steps+=("$piece") ;;
        pgbouncer)
            mapfile -t libraries < <(LC_ALL=C apt-cache depends pgbouncer | sed -n 's/^ *|\{0,1\}Depends: \(lib.*\)/\1/p')
            packages+=("${libraries[@]}")
            steps+=("$piece")
            ;;
        *) steps+=("$piece") ;;
    esac
done
# Where every server is built, no package has made the user that they run as.
if [ -n "$RUN_AS" ] && ! id "$RUN_AS" >/dev/null 2>&1; then packages+=(postgresql-common); fi
mapfile -t apt < <(missing_packages "${packages[@]}")

# 5. The list, then the work.
echo "make $goal needs these and installs them now, into $MI_CACHE but for apt's:"
if [ ${#apt[@]} != 0 ]; then echo "  from apt: ${apt[*]} (1 to 3 minutes)"; fi
for piece in "${steps[@]}"; do
    case $piece in
        cargo-pgrx) echo "  cargo-pgrx $pgrx_version, compiled (5 minutes)" ;;
        cargo-deny) echo "  cargo-deny $deny_version, compiled (4 minutes)" ;;
        cargo-about) echo "  cargo-about $about_version, compiled (4 minutes)" ;;
        exporter) echo "  Prometheus' postgres_exporter $exporter_version, compiled by Go (1 minute)" ;;
        peer-vault) echo "  azure-keyvault-emulator $peer_vault_version, compiled by Go (2 minutes)" ;;
        azurite) echo "  Azurite, from npm (30 seconds)" ;;
        python) echo "  Microsoft's clients for Python, from PyPI (20 seconds)" ;;
        pgbouncer) echo "  PgBouncer, unpacked from apt's package (5 seconds)" ;;
        server-*) echo "  PostgreSQL ${piece#*-}, built from Debian's source package (5 minutes)" ;;
        regress-*) echo "  the regression files of PostgreSQL ${piece#*-}, from Debian's source package (10 seconds)" ;;
    esac
done

install_packages() {
    local no_cluster=/etc/postgresql-common/createcluster.d/managed_identity.conf
    # A server package makes and starts a cluster when it is new. Ours are throwaway ones elsewhere.
    # shellcheck disable=SC2064 # to be expanded now
    trap "${sudo[*]} rm -f $no_cluster" EXIT
    "${sudo[@]}" mkdir -p "$(dirname "$no_cluster")"
    echo 'create_main_cluster = false' | "${sudo[@]}" tee "$no_cluster" >/dev/null
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "${apt[@]}" </dev/null
    "${sudo[@]}" rm -f "$no_cluster"
    trap - EXIT
}
from_crates() { cargo install --quiet --root "$MI_CACHE/tools" --locked --force --version "$2" "${@:3}" "$1"; }
add() {
    echo "adding $1"
    case $1 in
        cargo-pgrx) from_crates cargo-pgrx "$pgrx_version" ;;
        cargo-deny) from_crates cargo-deny "$deny_version" ;;
        cargo-about) from_crates cargo-about "$about_version" --features cli ;;
        azurite)
            rm -rf "$MI_CACHE/azurite" "$MI_CACHE/azurite.new"
            mkdir "$MI_CACHE/azurite.new"
            cp pgrx-config/azurite/package*.json "$MI_CACHE/azurite.new"
            (cd "$MI_CACHE/azurite.new" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error)
            mv "$MI_CACHE/azurite.new" "$MI_CACHE/azurite"
            ;;
        exporter)
            GOBIN=$MI_CACHE/postgres_exporter \
                go install "github.com/prometheus-community/postgres_exporter/cmd/postgres_exporter@v$exporter_version"
            # Last, for its presence says that the rest is there.
            echo "$exporter_version" >"$MI_CACHE/postgres_exporter/version"
            ;;
        peer-vault)
            GOBIN=$MI_CACHE/peer_vault \
                go install "github.com/calvinchengx/azure-keyvault-emulator/cmd/azure-keyvault-emulator@v$peer_vault_version"
            echo "$peer_vault_version" >"$MI_CACHE/peer_vault/version"
            ;;
        python)
            rm -rf "$MI_CACHE/python"
            # Debian's own: a Python in somebody's home is out of the postgres user's reach.
            /usr/bin/python3 -m venv "$MI_CACHE/python"
            "$MI_PYTHON" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
            # Last, for its presence says that the rest is there.
            cp "$requirements" "$MI_CACHE/python/requirements.txt"
            ;;
        pgbouncer)
            # Not installed, for then the system would start it now and ever after.
            rm -rf "$MI_CACHE/pgbouncer" "$MI_CACHE/pgbouncer.new"
            mkdir "$MI_CACHE/pgbouncer.new"
            (
                cd "$MI_CACHE/pgbouncer.new"
                apt-get -q -q -o APT::Sandbox::User=root download pgbouncer
                dpkg-deb --extract pgbouncer_*.deb .
            )
            mv "$MI_CACHE/pgbouncer.new" "$MI_CACHE/pgbouncer"
            ;;
        server-*) pgrx-config/build-postgres.sh "${1#*-}" "$MI_CACHE/postgresql-${1#*-}" ;;
        # Building that server may just have brought them.
        regress-*) present "$1" || pgrx-config/build-postgres.sh "${1#*-}" ;;
    esac
}
if [ ${#apt[@]} != 0 ]; then install_packages; fi
for piece in "${steps[@]}"; do add "$piece"; done
finish
