#!/usr/bin/env bash
# package.sh PG_CONFIG
#
# Builds the extension for the major of that server and writes into target/dist what is installed without a compiler:
#   postgresql-NN-managed-identity_VERSION-1_ARCH.deb   for Debian's and the PGDG's servers
#   managed_identity-VERSION-pgNN-linux-MACHINE.tar.gz  for every other
#   managed_identity-VERSION-pgNN-image/                for an image that CloudNativePG mounts as a volume
#
# The same commit, rustc and C compiler give the same bytes, whoever builds and wherever. package-test.sh proves it.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=$(command -v "${1:?which pg_config? make package PG_CONFIG=/path/to/pg_config}" || true)
if [ -z "$pg_config" ]; then
    echo "no pg_config at $1" >&2
    exit 1
fi
pg_config=$(realpath --no-symlinks "$pg_config")
major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
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
for tool in dpkg-deb dpkg-shlibdeps; do
    if ! command -v $tool >/dev/null; then
        echo "$tool is not here; on Debian: apt-get install dpkg-dev" >&2
        exit 1
    fi
done

# The time of the commit is the time of everything: no clock goes into a package.
if [ -z "${SOURCE_DATE_EPOCH:-}" ] && ! SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null); then
    echo "this is no git repository: set SOURCE_DATE_EPOCH to the seconds since 1970 that the packages shall be of" >&2
    exit 1
fi
export SOURCE_DATE_EPOCH

version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
arch=$(dpkg --print-architecture)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dist=$target/dist
# cargo builds everything again when flags change: these have a folder of their own.
build=$target/package
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 1. The library. No path of this machine goes into it: rustc's and the C compiler's names of files begin at the
# same made-up roots everywhere. The later prefix wins, so the outer comes first.
mi_use_pg_config "$major" "$pg_config"
cargo_home=${CARGO_HOME:-$HOME/.cargo}
roots=("$(rustc --print sysroot)=/rust" "$cargo_home=/cargo" "$PWD=/managed_identity" "$target=/target")
flags=()
c_flags=
for root in "${roots[@]}"; do
    flags+=("--remap-path-prefix=$root")
    c_flags+=" -ffile-prefix-map=$root"
done
CARGO_ENCODED_RUSTFLAGS=$(
    IFS=$'\x1f'
    echo "${flags[*]}"
)
export CARGO_ENCODED_RUSTFLAGS
CFLAGS="${CFLAGS:-}$c_flags" CARGO_TARGET_DIR=$build \
    cargo build --locked --release --lib -p managed_identity --no-default-features --features "pg$major"

# 2. The folder of an image: the layout in which CloudNativePG mounts an extension.
name=managed_identity-$version-pg$major
image=$dist/$name-image
rm -rf "$image"
mkdir -p "$image/lib" "$image/share/extension"
install -m 755 "$build/release/libmanaged_identity.so" "$image/lib/managed_identity.so"
# The committed scripts and not generated ones, whose order is another in every build: install.sh, which every test
# runs, fails when they differ in more.
install -m 644 sql/managed_identity--*.sql "$image/share/extension"
install -d -m 755 "$image/share/extension/managed_identity"
install -m 644 sql/scripts/* "$image/share/extension/managed_identity"
sed "s/@CARGO_VERSION@/$version/" managed_identity.control >"$image/share/extension/managed_identity.control"
cat >"$image/Containerfile" <<'FILE'
FROM scratch
COPY lib /lib
COPY share /share
FILE

# 3. The tarball: the same, and what a reader needs.
tree=$work/$name-linux-$(uname -m)
mkdir "$tree"
cp -r "$image/lib" "$image/share" README.md LICENSE "$tree"

# 4. The package, in the folders of Debian's servers.
deb=$work/deb
doc=$deb/usr/share/doc/postgresql-$major-managed-identity
mkdir -p "$deb/DEBIAN" "$deb/usr/lib/postgresql/$major/lib" "$deb/usr/share/postgresql/$major" "$doc"
cp "$image/lib/managed_identity.so" "$deb/usr/lib/postgresql/$major/lib"
cp -r "$image/share/extension" "$deb/usr/share/postgresql/$major"
cp README.md "$doc"
cp LICENSE "$doc/copyright"
# dpkg-shlibdeps wants a source package around it.
mkdir "$work/debian"
printf 'Source: managed-identity\n\nPackage: postgresql-%s-managed-identity\nArchitecture: any\n' "$major" >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O deb/usr/lib/postgresql/*/lib/managed_identity.so | sed -n 's/^shlibs:Depends=//p')
cat >"$deb/DEBIAN/control" <<CONTROL
Package: postgresql-$major-managed-identity
Version: $version-1
Architecture: $arch
Maintainer: managed_identity <managed_identity@localhost>
Section: database
Priority: optional
Depends: postgresql-$major, $libraries
Recommends: ca-certificates
Installed-Size: $(du -k --apparent-size -s "$deb/usr" | cut -f 1)
Description: PostgreSQL $major signs in to Azure as itself
 With the managed identity of its machine the server copies tables to and from
 Azure Blob Storage, reads Key Vault secrets and hands out access tokens. No
 key, password or SAS is stored anywhere.
CONTROL
(cd "$deb" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$deb/DEBIAN/md5sums"

find "$image" "$tree" "$deb" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=gnu \
    -C "$work" -c "$(basename "$tree")" | gzip -n -9 >"$dist/$(basename "$tree").tar.gz"
package=$dist/postgresql-$major-managed-identity_$version-1_$arch.deb
dpkg-deb --root-owner-group -Zgzip --build "$deb" "$package" >/dev/null
printf 'written: %s\n' "$package" "$dist/$(basename "$tree").tar.gz" "$image"
