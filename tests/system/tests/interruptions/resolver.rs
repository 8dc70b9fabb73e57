//! Names whose look-up takes as long as a test wants: a library preloaded into the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use server_tests::{Options, wait};
use tempfile::TempDir;

/// The folder by which the preloaded library and the test talk.
pub struct Resolver(TempDir);

impl Resolver {
    /// Compiles the library, and has look-ups hang from now on.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("mi-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interruptions/hanging_resolver.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(folder.path().join("resolver.so")).arg(source).arg("-ldl");
        assert!(cc.status().unwrap().success(), "{cc:?}");
        let resolver = Self(folder);
        resolver.hold();
        resolver
    }

    pub fn preloaded(&self, options: Options) -> Options {
        let library = self.0.path().join("resolver.so");
        options
            .environment("LD_PRELOAD", library.to_str().unwrap())
            .environment("HANG_FOLDER", self.0.path().to_str().unwrap())
    }

    pub fn hold(&self) {
        fs::write(self.0.path().join("hold"), "").unwrap();
    }

    /// The threads whose look-up has not ended: those of ended processes too.
    fn under_way(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_prefix("in.").map(str::to_owned)).collect()
    }

    pub fn held(&self) -> usize {
        self.under_way().len()
    }

    /// Ends the look-ups, and waits until they have ended.
    pub fn release(&self) {
        fs::remove_file(self.0.path().join("hold")).unwrap();
        let lives = |thread: &String| Path::new("/proc").join(thread).exists();
        wait::until("the look-ups end", || !self.under_way().iter().any(lives));
        for thread in self.under_way() {
            fs::remove_file(self.0.path().join(format!("in.{thread}"))).unwrap();
        }
    }
}
