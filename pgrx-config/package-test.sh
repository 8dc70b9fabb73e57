#!/usr/bin/env bash
# package-test.sh: what package.sh promises of the commit that is checked out.
#
# Builds it twice from different folders and compares every byte; then installs the .deb into a new Debian, where
# nothing else is, holds its dependencies against what the library is linked to, and creates the extension there.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
pgrx-config/setup.sh test-package
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=$(mi_debian_pg_config)
if [ -z "$pg_config" ]; then
    echo "apt has no PostgreSQL 15 to 18 here, so the package cannot be installed beside one" >&2
    exit 1
fi
major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:?no name of a release in /etc/os-release}")
mirror=$(mi_debian_mirror)
sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo); fi

work=$(mktemp -d)
root=$work/root
inside() { "${sudo[@]}" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }
as_postgres() { inside runuser -u postgres -- "$@"; }
server=/usr/lib/postgresql/$major/bin
data=/var/lib/postgresql/data
cleanup() {
    if [ -e "$root$data/postmaster.pid" ]; then as_postgres "$server/pg_ctl" -D "$data" -m immediate stop || true; fi
    # What is mounted there is not ours to remove.
    "${sudo[@]}" rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# 1. Twice, from paths of different length.
commit=$(git rev-parse HEAD)
dists=()
for folder in "$work/one" "$work/another/and/longer/two"; do
    echo "== building $commit in $folder"
    git clone --quiet --no-checkout . "$folder"
    git -C "$folder" checkout --quiet --detach "$commit"
    env -u CARGO_TARGET_DIR "$folder/pgrx-config/package.sh" "$pg_config"
    dists+=("$folder/target/dist")
done
echo "== comparing"
diff -r "${dists[@]}"
(cd "${dists[0]}" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
# Both were built with the same home, so a path from there would be the same in both.
if grep -r -l -a -F -e "$work" -e "${CARGO_HOME:-$HOME/.cargo}/" "${dists[0]}"; then
    echo "these hold a path of this machine" >&2
    exit 1
fi

# 2. A system with nothing but what every Debian has.
echo "== a new $suite from $mirror"
"${sudo[@]}" debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/debootstrap.log" 2>&1 || {
    tail -n 20 "$work/debootstrap.log" >&2
    exit 1
}
# No cluster is made and nothing is started when the server is installed: the one below is enough.
"${sudo[@]}" mkdir -p "$root/etc/postgresql-common/createcluster.d"
echo 'create_main_cluster = false' | "${sudo[@]}" tee "$root/etc/postgresql-common/createcluster.d/none.conf" >/dev/null
printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$root/usr/sbin/policy-rc.d" >/dev/null
"${sudo[@]}" chmod 755 "$root/usr/sbin/policy-rc.d"
deb=$(basename "${dists[0]}"/*.deb)
"${sudo[@]}" cp "${dists[0]}/$deb" "$root/tmp"
inside apt-get -q -q update
inside apt-get -q -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "/tmp/$deb" >"$work/apt.log" 2>&1 || {
    tail -n 20 "$work/apt.log" >&2
    exit 1
}
for compiler in cc gcc clang rustc cargo; do
    if inside sh -c "command -v $compiler"; then
        echo "there is a compiler: that the package needs none is not shown" >&2
        exit 1
    fi
done

# 3. Whatever the library is linked to comes from a package that it depends on.
echo "== dependencies"
# shellcheck disable=SC2016 # dpkg-query expands it
depends=$(inside dpkg-query -W -f='${Depends}' "postgresql-$major-managed-identity")
echo "$depends"
linked=$(inside ldd "/usr/lib/postgresql/$major/lib/managed_identity.so")
if grep 'not found' <<<"$linked"; then exit 1; fi
grep -q 'libc\.so' <<<"$linked"
mapfile -t libraries < <(grep -o '/[^ ]*' <<<"$linked")
for library in "${libraries[@]}"; do
    # dpkg knows a file by one of both names since /lib became a link.
    owner=$(inside dpkg -S "$library" 2>/dev/null || inside dpkg -S "/usr$library")
    owner=${owner%%:*}
    if ! grep -q -E "(^|, )$owner( |,|$)" <<<"$depends"; then
        echo "$library is of $owner, which the package does not depend on" >&2
        exit 1
    fi
done

# 4. It works there.
echo "== CREATE EXTENSION"
as_postgres "$server/initdb" -D "$data" -A trust >/dev/null
# sysv: nothing is mounted on the new system's /dev/shm.
as_postgres "$server/pg_ctl" -D "$data" -w -l /tmp/log start -o "-c shared_preload_libraries=managed_identity \
    -c listen_addresses= -c unix_socket_directories=/tmp -c dynamic_shared_memory_type=sysv \
    -c managed_identity.imds_endpoint=http://127.0.0.1:1" >/dev/null || {
    cat "$root/tmp/log" >&2
    exit 1
}
sql() { as_postgres psql -X -q -A -t -h /tmp -v ON_ERROR_STOP=1 -c "$1"; }
sql "CREATE EXTENSION managed_identity; CREATE SERVER sales FOREIGN DATA WRAPPER azure_storage"
[ "$(sql "SELECT count(*) FROM pg_foreign_server")" = 2 ]
# Nothing answers at that endpoint; that it was asked shows that the library is there and works.
answer=$(sql "SELECT managed_identity.access_token('storage')" 2>&1 || true)
if ! grep -q '127.0.0.1:1' <<<"$answer"; then
    echo "$answer" >&2
    exit 1
fi
[ "$(sql "SELECT failures FROM managed_identity.cached_tokens")" = 1 ]
as_postgres "$server/pg_ctl" -D "$data" -m fast stop >/dev/null
inside dpkg --purge "postgresql-$major-managed-identity" >/dev/null
if inside find /usr -name '*managed?identity*' | grep .; then
    echo "purging the package leaves these behind" >&2
    exit 1
fi
echo "test-package: all is well"
