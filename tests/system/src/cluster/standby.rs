//! Streaming replication: a second server that follows the first.

use super::{Cluster, append, as_server, shared_folder, successful};
use crate::wait;

impl Cluster {
    /// A hot standby that follows this server, with the same settings.
    pub fn standby(&self) -> Self {
        let (options, template) = (self.options.clone(), self.template.clone());
        let standby = Self { dir: shared_folder(), options, template };
        let mut backup = as_server(standby.programs().join("pg_basebackup"));
        backup.args(["-U", "postgres", "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-h"]);
        successful(backup.arg(self.folder()).arg("-D").arg(standby.data()));
        let sockets = format!("unix_socket_directories = '{}'\n", standby.folder().display());
        append(&standby.data().join("postgresql.conf"), &sockets);
        standby.start_again();
        standby
    }

    /// Waits until this standby has replayed all that `primary` has written.
    pub fn catch_up(&self, primary: &Self) {
        let written = primary.session().value("SELECT pg_current_wal_lsn()");
        let mut session = self.session();
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        wait::until("the standby has caught up", || session.value(&replayed) == "t");
    }

    pub fn promote(&self) {
        self.pg_ctl(&["promote", "-w", "-t", "60"]);
    }
}
