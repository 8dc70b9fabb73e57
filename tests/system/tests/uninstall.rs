//! `make uninstall` takes away what `make install` brings, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use server_tests::successful;

/// Every file below a folder, by its path from there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn nothing_of_the_extension_is_left_and_nothing_else_is_taken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let server = tempfile::tempdir().unwrap();
    let put = |name: &str| {
        let path = server.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    };
    let others = ["lib/other.so", "share/extension/other.control", "share/extension/other--1.0.sql"].map(put);
    put("lib/managed_identity.so");
    put("share/extension/managed_identity.control");
    for script in fs::read_dir(root.join("sql")).unwrap() {
        let script = script.unwrap().file_name().into_string().unwrap();
        if script.starts_with("managed_identity--") {
            put(&format!("share/extension/{script}"));
        }
    }
    for script in fs::read_dir(root.join("sql/scripts")).unwrap() {
        put(&format!("share/extension/managed_identity/{}", script.unwrap().file_name().to_str().unwrap()));
    }
    let pg_config = server.path().join("pg_config");
    let [lib, share] = ["lib", "share"].map(|folder| server.path().join(folder).display().to_string());
    let says = format!(
        "#!/bin/sh\ncase $1 in --pkglibdir) echo {lib};; --sharedir) echo {share};; --version) echo PostgreSQL 18.0;; esac\n"
    );
    fs::write(&pg_config, says).unwrap();
    fs::set_permissions(&pg_config, Permissions::from_mode(0o755)).unwrap();
    for _ in 0..2 {
        let setting = format!("PG_CONFIG={}", pg_config.display());
        successful(std::process::Command::new("make").current_dir(&root).args(["-s", "uninstall", &setting]));
        let mut left = files(server.path());
        left.retain(|path| *path != pg_config);
        let mut expected = others.to_vec();
        expected.sort();
        assert_eq!(left, expected);
    }
    assert!(!server.path().join("share/extension/managed_identity").exists());
}
