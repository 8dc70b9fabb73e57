//! A throwaway PostgreSQL server.

mod standby;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use postgres::error::DbError;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tempfile::TempDir;

use crate::programs::{as_server, bindir, is_root, program};
use crate::wait;

/// What a server is started with, beside what every test needs.
#[derive(Default, Clone)]
pub struct Options {
    /// Lines of postgresql.conf.
    pub conf: Vec<String>,
    /// The postmaster's environment.
    pub environment: Vec<(String, String)>,
    /// Without the extension in shared_preload_libraries.
    pub not_preloaded: bool,
    /// Where the server's programs are; `None`: those of the server under test.
    pub programs: Option<PathBuf>,
    /// On a system whose /etc/ssl is empty. Needs root.
    pub no_certificates: bool,
}

impl Options {
    pub fn conf(mut self, line: impl Into<String>) -> Self {
        self.conf.push(line.into());
        self
    }

    /// Sessions renew tokens themselves, as without the background worker.
    pub fn no_renewal_ahead(self) -> Self {
        self.conf("managed_identity.refresh_ahead = off")
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }
}

/// A running server in a folder of its own. Stopped and removed when dropped.
pub struct Cluster {
    dir: TempDir,
    options: Options,
    /// Shared with all that live at the same time: the last one to go removes it.
    template: Arc<TempDir>,
}

impl Cluster {
    pub fn start(options: Options) -> Self {
        let cluster = Self::configured(options);
        cluster.pg_ctl(&["start", "-w", "-t", "60"]);
        cluster
    }

    /// An empty server, not started.
    fn configured(options: Options) -> Self {
        let template = template(&options.programs.clone().unwrap_or_else(bindir));
        let data = template.path().join("data");
        let cluster = Self { dir: shared_folder(), options, template };
        successful(as_server("cp").arg("-a").arg(data).arg(cluster.data()));
        let preload = if cluster.options.not_preloaded { "" } else { "managed_identity" };
        let mut conf = format!(
            "shared_preload_libraries = '{preload}'\nunix_socket_directories = '{}'\nlisten_addresses = ''\n\
             max_connections = 250\nfsync = off\nlog_line_prefix = '%m [%p] '\n\
             restart_after_crash = on\n",
            cluster.dir.path().display()
        );
        for line in &cluster.options.conf {
            conf.push_str(line);
            conf.push('\n');
        }
        let path = cluster.data().join("postgresql.conf");
        append(&path, &conf);
        cluster
    }

    /// This server, stopped, as one of the server under test: what pg_upgrade makes of it. Of its settings those
    /// in `Options` go along.
    pub fn upgraded(self) -> Self {
        // 15.20 gives tables' columns an option (pg_attver) that an 18 which came out before it does not know; the
        // extension's tables have it, too.
        for database in self.session().rows("SELECT datname FROM pg_database WHERE datallowconn") {
            self.session_in(&database).run(
                "SET allow_system_table_mods = on;
                 UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '%pg_attver%'",
            );
        }
        self.stop("fast");
        let new = Self::configured(Options { programs: None, ..self.options.clone() });
        let mut upgrade = as_server(new.programs().join("pg_upgrade"));
        // It leaves its sockets and what it says in the folder where it runs.
        upgrade.current_dir(new.folder());
        upgrade.args(["-U", "postgres", "-b"]).arg(self.programs()).arg("-B").arg(new.programs());
        upgrade.arg("-d").arg(self.data()).arg("-D").arg(new.data()).stdin(Stdio::null());
        let output = upgrade.output().expect("pg_upgrade runs");
        if !output.status.success() {
            // What it prints only names the file that says why.
            let mut why = Command::new("grep");
            let why = why.args(["-r", "-h", "-A", "40", "error:"]).arg(new.data().join("pg_upgrade_output.d")).output();
            panic!("{}{}", text(&output), why.map(|why| text(&why)).unwrap_or_default());
        }
        new.start_again();
        new
    }

    fn programs(&self) -> PathBuf {
        self.options.programs.clone().unwrap_or_else(bindir)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The folder of sockets, data and log; readable by the server.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_folder(&self) -> PathBuf {
        self.data()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Everything the server has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        let mut command = as_server("env");
        if self.options.no_certificates {
            let mut hiding = Command::new("unshare");
            // In a mount namespace of its own: everybody else keeps what is there.
            hiding.args(["--mount", "sh", "-c", "mount -t tmpfs none /etc/ssl && exec \"$@\"", "sh"]);
            hiding.arg(command.get_program()).args(command.get_args());
            hiding.args(["-u", "SSL_CERT_FILE", "-u", "SSL_CERT_DIR"]).current_dir("/");
            command = hiding;
        }
        // Whatever machine the tests run on: workload identity is what a test gives, and so is a pod.
        command.args([
            "-u",
            "AZURE_FEDERATED_TOKEN_FILE",
            "-u",
            "AZURE_AUTHORITY_HOST",
            "-u",
            "KUBERNETES_SERVICE_HOST",
        ]);
        for (name, value) in &self.options.environment {
            command.arg(format!("{name}={value}"));
        }
        command
            .arg(self.programs().join("pg_ctl"))
            .arg("-D")
            .arg(self.data())
            .arg("-l")
            .arg(self.log_path())
            .args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("pg_ctl runs");
        assert!(output.status.success(), "pg_ctl {arguments:?}: {}\n{}", text(&output), self.log());
    }

    /// `fast`, `immediate` or `smart`.
    pub fn stop(&self, mode: &str) {
        self.pg_ctl(&["stop", "-w", "-m", mode]);
    }

    pub fn restart(&self) {
        self.pg_ctl(&["restart", "-w", "-m", "fast"]);
    }

    /// Starts a stopped server again.
    pub fn start_again(&self) {
        self.pg_ctl(&["start", "-w", "-t", "60"]);
    }

    /// The postmaster's process.
    pub fn postmaster(&self) -> i32 {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).expect("a running server");
        file.lines().next().and_then(|line| line.parse().ok()).expect("a pid")
    }

    /// A session of the superuser in database postgres.
    pub fn session(&self) -> Session {
        self.session_as("postgres")
    }

    pub fn session_as(&self, role: &str) -> Session {
        self.session_of(role, "postgres")
    }

    pub fn session_in(&self, database: &str) -> Session {
        self.session_of("postgres", database)
    }

    pub fn session_of(&self, role: &str, database: &str) -> Session {
        Session::open(&self.dir, role, database).expect("a session")
    }

    /// Waits until a server that crashed takes connections again.
    pub fn wait_until_back(&self) {
        wait::until("the server takes connections", || Session::open(&self.dir, "postgres", "postgres").is_ok());
    }

    /// psql against this server, with these arguments.
    pub fn psql(&self, arguments: &[&str]) -> Command {
        let mut command = program(self.programs().join("psql"));
        command.env_remove("PGOPTIONS").args(["-X", "-h"]).arg(self.dir.path());
        command.args(["-U", "postgres", "-d", "postgres"]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Another program of this server, connected to it.
    pub fn program(&self, name: &str) -> Command {
        let mut command = program(self.programs().join(name));
        command.arg("-h").arg(self.dir.path()).args(["-U", "postgres"]).stdin(Stdio::null());
        command
    }

    /// Writes a file that the server can read; returns its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).expect("a file");
        path.to_str().expect("a path").to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut command = as_server(self.programs().join("pg_ctl"));
        let _ = command.arg("-D").arg(self.data()).args(["stop", "-m", "immediate"]).output();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the server's last words:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let _ = as_server("rm").arg("-rf").arg(self.data()).output();
    }
}

/// A session, and what the server said in it beside its answers.
pub struct Session {
    client: Client,
    notices: Arc<Mutex<Vec<DbError>>>,
}

impl Session {
    pub(crate) fn open(folder: impl AsRef<Path>, role: &str, database: &str) -> Result<Self, postgres::Error> {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let heard = notices.clone();
        let mut config = Config::new();
        config.host_path(folder.as_ref()).user(role).dbname(database);
        config.notice_callback(move |notice| heard.lock().unwrap().push(notice));
        let client = config.connect(NoTls)?;
        Ok(Self { client, notices })
    }

    /// Runs statements; panics on an error.
    pub fn run(&mut self, sql: &str) {
        self.client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {}", told(&error)));
    }

    /// The rows of a query, columns joined by `|`, as text.
    pub fn rows(&mut self, sql: &str) -> Vec<String> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<String>, Box<DbError>> {
        let messages = self.client.simple_query(sql).map_err(|error| Box::new(db_error(&error, sql)))?;
        let row = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                let cells: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or("")).collect();
                Some(cells.join("|"))
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// The one value of a query.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.into_iter().next().unwrap_or_default()
    }

    /// How many rows the last command of `sql` worked on.
    pub fn count(&mut self, sql: &str) -> u64 {
        let messages = self.client.simple_query(sql).unwrap_or_else(|error| panic!("{sql}: {}", told(&error)));
        let done = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::CommandComplete(count) => Some(*count),
            _ => None,
        };
        messages.iter().filter_map(done).next_back().expect("a command tag")
    }

    /// The error that `sql` ends with; panics when it succeeds.
    pub fn error(&mut self, sql: &str) -> DbError {
        match self.try_rows(sql) {
            Ok(rows) => panic!("{sql} succeeded: {rows:?}"),
            Err(error) => *error,
        }
    }

    /// The SQLSTATE that `sql` ends with.
    pub fn sqlstate(&mut self, sql: &str) -> String {
        self.error(sql).code().code().to_owned()
    }

    pub fn pid(&mut self) -> i32 {
        self.value("SELECT pg_backend_pid()").parse().expect("a pid")
    }

    /// What the server said since the last call: `SEVERITY: message`.
    pub fn notices(&self) -> Vec<DbError> {
        std::mem::take(&mut *self.notices.lock().unwrap())
    }

    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

fn db_error(error: &postgres::Error, sql: &str) -> DbError {
    error.as_db_error().cloned().unwrap_or_else(|| panic!("{sql}: the session ended: {error}"))
}

fn told(error: &postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| format!("{error:?}"))
}

/// A folder that the server may write to, with a short path: a socket's has 107 bytes at most.
pub(crate) fn shared_folder() -> TempDir {
    let dir = tempfile::Builder::new().prefix("mi-").tempdir_in("/tmp").expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(if is_root() { 0o777 } else { 0o700 });
    fs::set_permissions(dir.path(), open).expect("permissions");
    dir
}

/// An initialised data folder, `data` in the result, that is copied from. Kept while any cluster lives.
fn template(programs: &Path) -> Arc<TempDir> {
    // Weak: what a static holds is never dropped, and each program would leave its own in /tmp.
    static TEMPLATES: Mutex<BTreeMap<PathBuf, Weak<TempDir>>> = Mutex::new(BTreeMap::new());
    let mut templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = templates.get(programs).and_then(Weak::upgrade) {
        return dir;
    }
    let dir = Arc::new(shared_folder());
    let mut command = as_server(programs.join("initdb"));
    command.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]);
    // As 18 does unasked: pg_upgrade wants old and new to be alike in this.
    successful(command.arg("--data-checksums").arg("-D").arg(dir.path().join("data")));
    templates.insert(programs.to_owned(), Arc::downgrade(&dir));
    dir
}

fn append(path: &Path, more: &str) {
    let old = fs::read_to_string(path).expect("a file");
    // Written in place, so that the file's owner stays.
    fs::write(path, old + more).expect("a file");
}

/// Runs a program to its end, which must be a good one.
pub fn successful(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
