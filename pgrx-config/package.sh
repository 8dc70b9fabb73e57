#!/usr/bin/env bash
# package.sh PG_CONFIG
#
# Builds the extension for the major of that server and writes into target/dist what is installed without a compiler:
#   postgresql-NN-managed-identity_VERSION-1_ARCH.deb   for Debian's and the PGDG's servers
#   managed_identity-VERSION-pgNN-linux-MACHINE.tar.gz  for every other
#   managed_identity-VERSION-pgNN-image/                for an image that CloudNativePG mounts as a volume
#
# The same commit gives the same bytes wherever build.sh gives the same library. package-test.sh shows it.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

pg_config=$(mi_find_pg_config "${1:?which pg_config? make package PG_CONFIG=/path/to/pg_config}")
for tool in dpkg-deb dpkg-shlibdeps; do
    if ! command -v $tool >/dev/null; then
        echo "$tool is not here; on Debian: apt-get install dpkg-dev" >&2
        exit 1
    fi
done

# The commit's time is the time of everything, and its author answers for it: neither this machine's clock nor its
# user goes into a package.
time=${SOURCE_DATE_EPOCH:-}
maintainer=${MAINTAINER:-}
if [ -z "$time" ] || [ -z "$maintainer" ]; then
    if ! commit=$(git log -1 --format='%ct %an <%ae>'); then
        echo "without git set SOURCE_DATE_EPOCH to the seconds since 1970 that the packages shall be of, and" >&2
        echo "MAINTAINER to who answers for them: 'Name <mail address>'" >&2
        exit 1
    fi
    time=${time:-${commit%% *}}
    maintainer=${maintainer:-${commit#* }}
fi

major=$(mi_major "$pg_config")
version=$(mi_version)
arch=$(dpkg --print-architecture)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dist=$target/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 1. The library, and what stands beside it: the committed scripts.
pgrx-config/notices.sh check
pgrx-config/build.sh "$pg_config"

# 2. The folder of an image: the layout in which CloudNativePG mounts an extension.
name=managed_identity-$version-pg$major
image=$dist/$name-image
rm -rf "$image"
mkdir -p "$image/bin" "$image/lib" "$image/share/extension/managed_identity" "$image/share/doc/managed_identity"
install -m 755 "$target/library-pg$major/managed_identity.so" "$image/lib"
install -m 755 "$target/command/managed-identity" "$image/bin"
install -m 644 sql/managed_identity--*.sql "$image/share/extension"
install -m 644 sql/scripts/* "$image/share/extension/managed_identity"
sed "s/@CARGO_VERSION@/$version/" managed_identity.control >"$image/share/extension/managed_identity.control"
# The licences of all that is linked in want to be where the library is.
install -m 644 LICENSE pgrx-config/notices/THIRD-PARTY-NOTICES README.md "$image/share/doc/managed_identity"
cat >"$image/Containerfile" <<'FILE'
FROM scratch
COPY bin /bin
COPY lib /lib
COPY share /share
FILE

# 3. The tarball: the same without what is an image's.
tree=$work/$name-linux-$(uname -m)
mkdir "$tree"
cp -r "$image/bin" "$image/lib" "$image/share" "$tree"

# 4. The package, in the folders of Debian's servers.
package=postgresql-$major-managed-identity
deb=$work/deb
doc=$deb/usr/share/doc/$package
mkdir -p "$deb/DEBIAN" "$deb/usr/lib/postgresql/$major/bin" "$deb/usr/lib/postgresql/$major/lib" "$deb/usr/share/postgresql/$major" "$doc"
install -m 644 "$image/lib/managed_identity.so" "$deb/usr/lib/postgresql/$major/lib"
install -m 755 "$image/bin/managed-identity" "$deb/usr/lib/postgresql/$major/bin"
cp -r "$image/share/extension" "$deb/usr/share/postgresql/$major"
install -m 644 README.md pgrx-config/notices/THIRD-PARTY-NOTICES "$doc"
gzip -n -9 "$doc/THIRD-PARTY-NOTICES"
cat LICENSE - >"$doc/copyright" <<COPYRIGHT

----------------------------------------------------------------------------

The library managed_identity.so and the command managed-identity also hold the Rust crates, and the part of
Rust's own library, that are listed with their authors' notices and licences in
/usr/share/doc/$package/THIRD-PARTY-NOTICES.gz.
On Debian systems the text of the Apache License 2.0, which many of them are
under, is in /usr/share/common-licenses/Apache-2.0, too.
COPYRIGHT
gzip -n -9 >"$doc/changelog.Debian.gz" <<CHANGELOG
managed-identity ($version-1) unstable; urgency=medium

  * Version $version.

 -- $maintainer  $(LC_ALL=C date --utc --rfc-email --date="@$time")
CHANGELOG
# dpkg-shlibdeps wants a source package around it.
mkdir "$work/debian"
printf 'Source: managed-identity\n\nPackage: %s\nArchitecture: any\n' "$package" >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O deb/usr/lib/postgresql/*/lib/managed_identity.so \
    deb/usr/lib/postgresql/*/bin/managed-identity | sed -n 's/^shlibs:Depends=//p')
# As dpkg-gencontrol counts, which asks no file system how large its folders are.
kilobytes=$(find "$deb/usr" \( -type f -printf '%s\n' -o -printf '1\n' \) | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')
cat >"$deb/DEBIAN/control" <<CONTROL
Package: $package
Source: managed-identity
Version: $version-1
Architecture: $arch
Maintainer: $maintainer
Section: database
Priority: optional
Depends: postgresql-$major, $libraries
Recommends: ca-certificates
Installed-Size: $kilobytes
Description: PostgreSQL $major signs in to Azure as itself
 With the managed identity of its machine the server copies tables to and from
 Azure Blob Storage, reads Key Vault secrets and hands out access tokens. No
 key, password or SAS is stored anywhere.
CONTROL
(cd "$deb" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$deb/DEBIAN/md5sums"

find "$image" "$tree" "$deb" -exec touch --no-dereference --date="@$time" {} +
LC_ALL=C tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$time" --format=gnu \
    -C "$work" -c "$(basename "$tree")" | gzip -n -9 >"$dist/$(basename "$tree").tar.gz"
SOURCE_DATE_EPOCH=$time dpkg-deb --root-owner-group -Zgzip --build "$deb" "$dist/${package}_$version-1_$arch.deb" >/dev/null
printf 'written: %s\n' "$dist/${package}_$version-1_$arch.deb" "$dist/$(basename "$tree").tar.gz" "$image"
