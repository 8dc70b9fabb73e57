//! Extensions of others that ours is tested beside.

use std::path::Path;

use crate::{major, pg_config};

/// Whether the server has this extension. apt's servers must: `make test` installs it. For one that was built from
/// source there is no package, and `test` is left out.
pub fn has_extension(name: &str, test: &str) -> bool {
    let control = Path::new(&pg_config("--sharedir")).join("extension").join(format!("{name}.control"));
    if control.exists() {
        return true;
    }
    assert!(!control.starts_with("/usr/share"), "{} is missing: run this by `make test`", control.display());
    eprintln!("left out on {}: {test} (there is no package of {name} for this server)", major());
    false
}
