//! Every difference between PostgreSQL's majors.

use pgrx::pg_sys;

/// Whether `role` has USAGE on a foreign server.
pub fn has_usage(server: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    let usage = pg_sys::AclMode::from(pg_sys::ACL_USAGE);
    #[cfg(feature = "pg15")]
    // SAFETY: reads the syscache; both arguments are plain values.
    let result = unsafe { pg_sys::pg_foreign_server_aclcheck(server, role, usage) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    let result = unsafe { pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server, role, usage) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// What `PostmasterIsAlive()` calls; pgrx binds neither.
mod pmsignal {
    unsafe extern "C" {
        #[allow(non_snake_case)]
        pub fn PostmasterIsAliveInternal() -> bool;
    }
}

/// Whether the postmaster lives. A system call: not for a hot path.
pub fn postmaster_is_alive() -> bool {
    // SAFETY: reads a pipe that every child of the postmaster has.
    unsafe { pmsignal::PostmasterIsAliveInternal() }
}
