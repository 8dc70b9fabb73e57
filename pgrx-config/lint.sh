#!/usr/bin/env bash
# lint.sh: formatting, shellcheck, clippy on both ends of the version range, what may be linked, licences and advisories.
set -euo pipefail
cd "$(dirname "$0")/.."
pgrx-config/setup.sh lint
# shellcheck source-path=SCRIPTDIR source=env.sh
. pgrx-config/env.sh

echo "== formatting"
cargo fmt --all --check

echo "== shell scripts"
find . -path ./target -prune -o -name '*.sh' -print0 | xargs -0 shellcheck -x .ci/run

# What must never be linked into a backend: a runtime that starts threads or takes signals, and a second crypto library.
echo "== crates and features"
for major in 15 18; do
    tree=$(cargo tree --locked -e features,no-dev -p managed_identity --no-default-features --features "pg$major" --prefix none)
    # The list would be empty of findings too if it were empty.
    grep -q '^tokio feature "rt"' <<<"$tree"
    if grep -E '^(tokio feature "(full|process|rt-multi-thread|signal)"|(native-tls|openssl|openssl-sys|ring) v)' <<<"$tree" | sort -u; then
        echo "these must not be linked into PostgreSQL; cargo tree -e features -i NAME tells who asks for them" >&2
        exit 1
    fi
done

tree=$(cargo tree --locked -e features,no-dev -p managed_identity --no-default-features --features command --prefix none)
grep -q '^clap v' <<<"$tree"
if grep -E '^(tokio feature "(full|process|rt-multi-thread|signal)"|(native-tls|openssl|openssl-sys|ring|pgrx|pgrx-pg-sys) v)' <<<"$tree" | sort -u; then
    echo "these must not be linked into the command managed-identity, PostgreSQL least of all" >&2
    exit 1
fi

for major in 15 18; do
    echo "== clippy, PostgreSQL $major"
    cargo clippy --locked --keep-going --workspace --all-targets --no-default-features \
        --features "managed_identity/pg$major,managed_identity/command" -- -D warnings
done
echo "== clippy, the command without PostgreSQL"
cargo clippy --locked --bin managed-identity --no-default-features --features command -- -D warnings

echo "== licences, bans, sources"
cargo deny --locked check --hide-inclusion-graph licenses bans sources

echo "== notices"
pgrx-config/notices.sh check

echo "== advisories"
if GIT_TERMINAL_PROMPT=0 timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
    cargo deny --locked check --hide-inclusion-graph advisories
else
    echo "NOT CHECKED: the database of security advisories cannot be fetched from here"
fi
echo "lint: all is well"
