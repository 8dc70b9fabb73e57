#!/usr/bin/env bash
# build-postgres.sh MAJOR [PREFIX]
#
# Fetches PostgreSQL MAJOR from Debian's source package, keeps its regression files in the cache
# and, with PREFIX, builds the server into PREFIX.
set -euo pipefail
umask 022
# shellcheck source-path=SCRIPTDIR source=env.sh
. "$(dirname "$0")/env.sh"

major=${1:?which major version?}
prefix=${2:-}

# The releases whose main archive has this major.
case $major in
    15) suites="bookworm" ;;
    17) suites="trixie" ;;
    *) suites="forky sid" ;;
esac

# Debian's security archive serves no sources.
mirror=$(mi_debian_mirror)

mkdir -p "$MI_CACHE/source"
work=$(mktemp -d "$MI_CACHE/build-$major.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/download"
# As root apt downloads as the user _apt.
if [ "$(id -u)" = 0 ]; then chown _apt "$work/download"; fi

# apt with a list and a state of its own: the machine's are neither read nor changed.
own_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$work/debian.sources" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" "$@"
}

fetch() {
    local suite
    for suite in $suites; do
        # apt checks the signature of the release, and by it the hash of the tarball.
        cat >"$work/debian.sources" <<LIST
Types: deb-src
URIs: $mirror
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
LIST
        if own_apt -o APT::Update::Error-Mode=any update &&
            (cd "$work/download" && own_apt source --download-only --tar-only "postgresql-$major"); then
            return
        fi
        echo "no source of PostgreSQL $major in $suite" >&2
    done
    echo "If a signature could not be checked, install a newer debian-archive-keyring." >&2
    return 1
}

echo "fetching the source of PostgreSQL $major"
fetch
tarball=$(cd "$work/download" && ls postgresql-*.orig.tar.*)
mkdir "$work/tree"
tar -x -f "$work/download/$tarball" -C "$work/tree" --strip-components=1

# The regression files, with what was fetched beside them.
mkdir -p "$work/source/src/test"
cp -r "$work/tree/src/test/regress" "$work/source/src/test/"
(cd "$work/download" && sha256sum "$tarball") >"$work/source/SHA256SUMS"

if [ -n "$prefix" ]; then
    log=$MI_CACHE/postgresql-$major.log
    echo "building PostgreSQL $major, log in $log"
    # PostgreSQL generates its headers at make's top level only, and this script may itself be run by make.
    unset MAKELEVEL MAKEFLAGS MFLAGS
    if ! { cd "$work/tree" &&
        ./configure --prefix="$prefix" --with-icu --with-openssl &&
        make -j"$(nproc)" world-bin &&
        make DESTDIR="$work/image" install-world-bin; } >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        exit 1
    fi
    # All or nothing: a half-installed server would look like a finished one.
    rm -rf "$prefix"
    mkdir -p "$(dirname "$prefix")"
    mv "$work/image$prefix" "$prefix"
    rm -f "$log"
fi

rm -rf "$MI_CACHE/source/$major"
mv "$work/source" "$MI_CACHE/source/$major"
