#!/usr/bin/env bash
# package-test.sh: what package.sh promises of the commit that is checked out.
#
# Builds the packages once more elsewhere and compares every byte; then installs the .deb into a new Debian, where
# nothing else is, and shows the demo to a server there; then has PostgreSQL 18 use the folder of the image.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
pgrx-config/setup.sh test-package
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

changed=$(git status --porcelain --untracked-files=no)
if [ -n "$changed" ]; then
    echo "packages are of a commit; please commit these first:" >&2
    echo "$changed" >&2
    exit 1
fi
pg_config=$(mi_debian_pg_config)
if [ -z "$pg_config" ]; then
    echo "apt has no PostgreSQL 15 to 18 here, so the package cannot be installed beside one" >&2
    exit 1
fi
major=$(mi_major "$pg_config")
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:?no name of a release in /etc/os-release}")
mirror=$(mi_debian_mirror)
sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo); fi

work=$(mktemp -d)
root=$work/root
inside() { "${sudo[@]}" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }
cleanup() {
    # What is mounted there is not ours to remove.
    "${sudo[@]}" rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# 1. Twice: here, with the library that the tests have tried, if they have run; and from nothing but the commit, at a
# longer path, in another time zone, language and umask.
dist=$(realpath -m "${CARGO_TARGET_DIR:-target}")/dist
rm -rf "$dist"
pgrx-config/package.sh "$pg_config"
cp -a "$dist" "$work/dist"
folder=$work/another/and/longer/path
commit=$(git rev-parse HEAD)
echo "== building $commit once more, in $folder"
git clone --quiet --no-checkout . "$folder"
git -C "$folder" checkout --quiet --detach "$commit"
(umask 077 && env -u CARGO_TARGET_DIR TZ=Pacific/Kiritimati LC_ALL=C "$folder/pgrx-config/package.sh" "$pg_config")
echo "== comparing"
diff -r "$work/dist" "$folder/target/dist"
(cd "$work/dist" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
# Both were built with the same home, so a path from there would be the same in both.
if grep -r -l -a -F -e "$work" -e "$PWD/" -e "${CARGO_HOME:-$HOME/.cargo}/" "$work/dist" "$folder/target/dist"; then
    echo "these hold a path of this machine" >&2
    exit 1
fi
rm -rf "$folder"
if [ "$major" != 18 ]; then pgrx-config/package.sh "$PG18_CONFIG"; fi

echo "== lintian"
# Debian's first upload of a package closes the wish for it. This one is not Debian's.
lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$dist"/*.deb

# 2. A system with nothing but what every Debian has.
base=$MI_CACHE/debian-$suite-$(dpkg --print-architecture).tar
if [ ! -e "$base" ]; then
    echo "== a new $suite from $mirror, kept in $base"
    "${sudo[@]}" debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/debootstrap.log" 2>&1 || {
        tail -n 20 "$work/debootstrap.log" >&2
        exit 1
    }
    "${sudo[@]}" tar --numeric-owner -C "$root" -c . >"$base.new"
    mv "$base.new" "$base"
    "${sudo[@]}" rm -rf "$root"
fi
mkdir "$root"
"${sudo[@]}" tar --numeric-owner -C "$root" -x -p -f "$base"
echo "deb $mirror $suite main" | "${sudo[@]}" tee "$root/etc/apt/sources.list" >/dev/null
"${sudo[@]}" cp /etc/resolv.conf /etc/hosts "$root/etc"
# No cluster is made and nothing is started when the server is installed: the demo makes its own.
"${sudo[@]}" mkdir -p "$root/etc/postgresql-common/createcluster.d"
echo 'create_main_cluster = false' | "${sudo[@]}" tee "$root/etc/postgresql-common/createcluster.d/none.conf" >/dev/null
printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$root/usr/sbin/policy-rc.d" >/dev/null
"${sudo[@]}" chmod 755 "$root/usr/sbin/policy-rc.d"
deb=postgresql-$major-managed-identity_$(mi_version)-1_$(dpkg --print-architecture).deb
echo "== apt-get install ./$deb"
"${sudo[@]}" cp "$dist/$deb" "$root/tmp"
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

# 3. Whatever the library and the command are linked to comes from a package that it depends on.
echo "== dependencies"
# shellcheck disable=SC2016 # dpkg-query expands it
depends=$(inside dpkg-query -W -f='${Depends}' "postgresql-$major-managed-identity")
echo "$depends"
linked=$(inside ldd "/usr/lib/postgresql/$major/lib/managed_identity.so" "/usr/lib/postgresql/$major/bin/managed-identity")
if grep 'not found' <<<"$linked"; then exit 1; fi
grep -q 'libc\.so' <<<"$linked"
mapfile -t libraries < <(grep -v ':$' <<<"$linked" | grep -o '/[^ ]*' | sort -u)
inside "/usr/lib/postgresql/$major/bin/managed-identity" --version
for library in "${libraries[@]}"; do
    # dpkg knows a file by one of both names since /lib became a link.
    owner=$(inside dpkg -S "$library" 2>/dev/null || inside dpkg -S "/usr$library")
    owner=${owner%%:*}
    if ! grep -q -E "(^|, )$owner( |,|$)" <<<"$depends"; then
        echo "$library is of $owner, which the package does not depend on" >&2
        exit 1
    fi
done

# 4. It works there. The demo and the peers run out here, the server and psql in there; /tmp is what both see, for as
# long as the demo runs.
echo "== the demo"
cargo build --quiet -p server-tests --bin demo
demo=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug/demo
# shellcheck disable=SC2016 # the inner shell expands it
"${sudo[@]}" env PATH="$PATH" LC_ALL=C MI_ROOT="$root" PG_CONFIG="/usr/lib/postgresql/$major/bin/pg_config" \
    MI_AZURITE="$MI_AZURITE" MI_PYTHON="$MI_PYTHON" \
    unshare --mount sh -c 'mount --bind /tmp "$MI_ROOT/tmp" && exec "$@"' sh "$demo"
inside dpkg --purge "postgresql-$major-managed-identity" >/dev/null
if inside find /usr -name '*managed?identity*' | grep .; then
    echo "purging the package leaves these behind" >&2
    exit 1
fi

# 5. The folder of the image, read-only and with nothing of ours installed in the server.
echo "== the image's folder"
PG_CONFIG=$PG18_CONFIG MI_IMAGE=$dist/managed_identity-$(mi_version)-pg18-image \
    cargo test --quiet -p server-tests --test mounted -- --show-output
echo "test-package: all is well"
