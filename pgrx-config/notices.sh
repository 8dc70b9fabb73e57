#!/usr/bin/env bash
# notices.sh check|write
#
# notices/THIRD-PARTY-NOTICES: the licences of the crates that are linked into the library or the command, with their authors' notices.
#
# cargo-about writes it from the crates themselves. It is committed, as Cargo.lock is, so that nobody needs cargo-about
# to make a package, and so that a change of what is passed on can be read.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

notices=pgrx-config/notices/THIRD-PARTY-NOTICES

# What is linked, or with "generates" what has also written code that is. Which major the library is for adds no
# crate; which processor does.
linked() {
    local target edges=normal,no-proc-macro
    if [ "${1:-}" = generates ]; then edges=normal; fi
    for target in x86_64 aarch64; do
        cargo tree --locked -p managed_identity --features command -e "$edges" --target "$target-unknown-linux-gnu" --prefix none --format '{p}'
    done | awk '$1 != "managed_identity" { sub(/^v/, "", $2); print $1, $2 }' | LC_ALL=C sort -u
}
listed() { sed -n 's/^\([^ ]* [0-9][^ ]*\) (.*)$/\1/p' "$notices" | LC_ALL=C sort -u; }

case ${1:?check or write?} in
    check)
        missing=$(comm -13 <(listed) <(linked))
        gone=$(comm -23 <(listed) <(linked generates))
        if [ -z "$missing$gone" ]; then exit 0; fi
        echo "$notices is of other crates than Cargo.lock; please run pgrx-config/notices.sh write" >&2
        printf '%s\n' "missing: ${missing:-none}" "no longer linked: ${gone:-none}" >&2
        exit 1
        ;;
    write)
        pgrx-config/setup.sh notices
        cargo about --color never generate --locked --features command --fail --config pgrx-config/notices/about.toml \
            --manifest-path Cargo.toml --output-file "$notices" pgrx-config/notices/notices.hbs
        "$0" check
        echo "written: $notices"
        ;;
    *)
        echo "check or write?" >&2
        exit 1
        ;;
esac
