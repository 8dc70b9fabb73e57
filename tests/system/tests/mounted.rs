//! From 18 on the extension needs no place among the server's own files: the folder of an image will do, which can
//! only be read, on a system that has no certificates.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use server_tests::{ACCOUNT, Options, World, is_root, major, pg_config};
use tempfile::TempDir;

/// The folder that `make package` has written, named by `make test-package`; else the installed files in its layout.
/// Nobody may write there.
fn image() -> TempDir {
    let folder = tempfile::Builder::new().prefix("mi-image-").tempdir_in("/tmp").unwrap();
    let (lib, share) = (folder.path().join("lib"), folder.path().join("share/extension"));
    match std::env::var_os("MI_IMAGE") {
        Some(image) => {
            let (image, copy) = (Path::new(&image), folder.path());
            let done = Command::new("cp").arg("-R").args([image.join("lib"), image.join("share")]).arg(copy).status();
            assert!(done.unwrap().success(), "{}", image.display());
        }
        None => copy_installed(&lib, &share),
    }
    for folder in [&lib, &share, &folder.path().join("share"), &folder.path().to_owned()] {
        fs::set_permissions(folder, Permissions::from_mode(0o555)).unwrap();
    }
    folder
}

fn copy_installed(lib: &Path, share: &Path) {
    fs::create_dir(lib).unwrap();
    fs::create_dir_all(share).unwrap();
    let library = "managed_identity.so";
    fs::copy(Path::new(&pg_config("--pkglibdir")).join(library), lib.join(library)).unwrap();
    for file in fs::read_dir(Path::new(&pg_config("--sharedir")).join("extension")).unwrap() {
        let file = file.unwrap();
        // The scripts for psql stand beside, in a folder of this name; CREATE EXTENSION has no need of them.
        if file.file_name().to_str().unwrap().starts_with("managed_identity") && file.file_type().unwrap().is_file() {
            fs::copy(file.path(), share.join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn everything_works_from_a_read_only_folder_where_etc_ssl_is_empty() {
    if major() < 18 {
        eprintln!("left out on {}: a read-only folder (extension_control_path came with 18)", major());
        return;
    }
    if !is_root() {
        eprintln!("left out on {}: a read-only folder with an empty /etc/ssl (only root can hide files)", major());
        return;
    }
    let image = image();
    let folder = image.path().display();
    // Not $system, and $libdir behind: PL/pgSQL is the server's, everything of ours is the folder's.
    let options = Options { no_certificates: true, ..Options::default() }
        .conf(format!("extension_control_path = '{folder}/share'"))
        .conf(format!("dynamic_library_path = '{folder}/lib:$libdir'"));
    let world = World::with_storage_and(options);
    let mut session = world.session();
    session.run("CREATE TABLE t AS SELECT 1 AS a");
    assert!(session.value("SELECT managed_identity.access_token('storage')").starts_with("ey"));
    assert_eq!(session.value("SELECT azure_key_vault.secret('vault', 'db-password')"), "hunter2");
    for name in ["a.csv", "a.csv.gz"] {
        let url = world.url(&format!("box/{name}"));
        assert_eq!(session.count(&format!("COPY t TO '{url}'")), 1);
        assert_eq!(session.count(&format!("COPY t FROM '{url}' WITH (server '{ACCOUNT}')")), 1);
        session.run("DELETE FROM t WHERE ctid <> (SELECT min(ctid) FROM t)");
    }
    let mapped = fs::read_to_string(format!("/proc/{}/maps", session.pid())).unwrap();
    let libraries: Vec<&str> = mapped.lines().filter(|line| line.contains("managed_identity.so")).collect();
    assert!(!libraries.is_empty() && libraries.iter().all(|line| line.contains(&format!("{folder}/lib/"))), "{mapped}");
    // Where no file of authorities is named either, Mozilla's are trusted, and nobody has those of this test.
    world.set("managed_identity.tls_ca_file", "");
    let mut session = world.session();
    assert!(session.value("SELECT managed_identity.access_token('storage', NULL, true)").starts_with("ey"));
    for sql in
        ["SELECT azure_key_vault.secret('vault', 'db-password')", &format!("COPY t TO '{}'", world.url("box/b.csv"))]
    {
        let error = session.error(sql);
        assert_eq!(error.code().code(), "08001", "{error:?}");
        assert!(error.detail().is_some_and(|detail| detail.contains("UnknownIssuer")), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("managed_identity.tls_ca_file")), "{error:?}");
    }
}
