//! The programs of the server under test: where they are, and who runs them.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::given;

/// A program of the server, in the system where the server is: this one, or the one in the folder MI_ROOT, into which
/// `make test-package` has installed the package. Of this one's files that sees /tmp and nothing else.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    match std::env::var_os("MI_ROOT") {
        Some(root) => {
            let mut command = Command::new("chroot");
            command.arg(root).arg(path);
            command
        }
        None => Command::new(path),
    }
}

/// The same as the user that servers run as: PostgreSQL refuses to be root.
pub(crate) fn as_server(path: impl AsRef<OsStr>) -> Command {
    if is_root() {
        let mut command = program("runuser");
        command.args(["-u", "postgres", "--"]).arg(path);
        command.current_dir("/");
        return command;
    }
    program(path)
}

/// Whether this is root, who runs servers as another user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// What the pg_config of the server under test says.
pub fn pg_config(option: &str) -> String {
    ask_pg_config(&given("PG_CONFIG"), option)
}

/// The folder of the programs of another server: that of the pg_config in this variable.
pub fn programs_of(variable: &str) -> PathBuf {
    ask_pg_config(&given(variable), "--bindir").into()
}

fn ask_pg_config(pg_config: &str, option: &str) -> String {
    let output = program(pg_config).arg(option).output().unwrap_or_else(|error| panic!("{pg_config}: {error}"));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// The server's major version.
pub fn major() -> u32 {
    static MAJOR: OnceLock<u32> = OnceLock::new();
    *MAJOR.get_or_init(|| {
        let version = pg_config("--version");
        let number: String =
            version.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        number.parse().expect("a version")
    })
}

pub(crate) fn bindir() -> PathBuf {
    static BINDIR: OnceLock<PathBuf> = OnceLock::new();
    BINDIR.get_or_init(|| pg_config("--bindir").into()).clone()
}
