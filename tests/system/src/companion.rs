//! Extensions of others that ours is tested beside.

use std::path::Path;

use crate::{major, pg_config};

/// What apt has for each server that it has.
const IN_APT: [&str; 2] = ["pg_cron", "plpython3u"];

/// Whether the server has this extension. Where there is a package of it, `make test` has installed it; where there
/// is none, `test` is left out.
pub fn has_extension(name: &str, test: &str) -> bool {
    let control = Path::new(&pg_config("--sharedir")).join("extension").join(format!("{name}.control"));
    if control.exists() {
        return true;
    }
    let packaged = control.starts_with("/usr/share") && IN_APT.contains(&name);
    assert!(!packaged, "{} is missing: run this by `make test`", control.display());
    eprintln!("left out on {}: {test} (there is no package of {name} for this server)", major());
    false
}
