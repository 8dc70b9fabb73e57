//! PgBouncer in transaction mode: each transaction gets one of two connections to the server, whichever is free.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use tempfile::TempDir;

use crate::cluster::{shared_folder, successful};
use crate::programs::as_server;
use crate::{Cluster, Session, given, wait};

/// A running PgBouncer. Ended when dropped.
pub struct PgBouncer {
    dir: TempDir,
}

impl PgBouncer {
    /// Before a cluster, for clients of these roles; database `as_app` is for all of them a session of role app.
    pub fn start(cluster: &Cluster, roles: &[&str]) -> Self {
        let bouncer = Self { dir: shared_folder() };
        let (own, server) = (bouncer.dir.path().display(), cluster.folder().display());
        let users = roles.iter().map(|role| format!("\"{role}\" \"\"\n")).collect::<String>();
        fs::write(bouncer.dir.path().join("users"), users).expect("a file");
        let conf = format!(
            "[databases]
             as_app = host={server} dbname=postgres user=app max_db_connections=2
             postgres = host={server} max_db_connections=2
             [pgbouncer]
             pool_mode = transaction
             server_reset_query_always = 1
             auth_type = trust
             auth_file = {own}/users
             listen_port = 5432
             unix_socket_dir = {own}
             logfile = {own}/log
             pidfile = {own}/pid"
        );
        let path = bouncer.dir.path().join("pgbouncer.ini");
        fs::write(&path, conf.replace("             ", "")).expect("a file");
        successful(as_server(given("MI_PGBOUNCER")).args(["-q", "-d"]).arg(path));
        // The socket's file is there before anybody listens at it.
        wait::until("PgBouncer listens", || UnixStream::connect(bouncer.dir.path().join(".s.PGSQL.5432")).is_ok());
        bouncer
    }

    pub fn session(&self, role: &str, database: &str) -> Session {
        Session::open(&self.dir, role, database).unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
        let _ = Command::new("kill").arg(pid.trim()).status();
    }
}
