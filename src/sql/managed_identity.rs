//! Schema `managed_identity`: tokens, and the validator of its wrapper.

use pgrx::prelude::*;

#[pg_schema]
mod managed_identity {
    use pgrx::datum::TimestampWithTimeZone;
    use pgrx::prelude::*;

    use crate::pg::name::Name;
    use crate::pg::record::Record;
    use crate::pg::text::SqlText;
    use crate::pg::{clock, diagnose, options, settings, stats, status, tokens};

    /// The token of an identity for a resource.
    #[pg_extern(volatile, parallel_restricted)]
    fn access_token(
        resource: Option<&str>,
        identity: default!(Option<Name>, "NULL"),
        force_refresh: default!(Option<bool>, "false"),
    ) -> SqlText {
        let resource = resource.unwrap_or_else(|| tokens::null_argument("resource"));
        let identity = identity.as_ref().map(Name::as_c_str);
        tokens::with_own(resource, identity, force_refresh.unwrap_or(false), |token| {
            SqlText::from_ascii(&[token.expose()])
        })
    }

    /// `Bearer` and the token, as an HTTP request carries it.
    #[pg_extern(volatile, parallel_restricted)]
    fn authorization_header(resource: Option<&str>, identity: default!(Option<Name>, "NULL")) -> SqlText {
        let resource = resource.unwrap_or_else(|| tokens::null_argument("resource"));
        let identity = identity.as_ref().map(Name::as_c_str);
        tokens::with_own(resource, identity, false, |token| SqlText::from_ascii(&["Bearer ", token.expose()]))
    }

    /// What the token of an identity says of itself; not the token.
    #[pg_extern(
        volatile,
        parallel_restricted,
        sql = "CREATE FUNCTION managed_identity.token_info(resource text, identity name DEFAULT NULL, OUT source text, \
               OUT client_id text, OUT object_id text, OUT expires_at timestamptz, OUT refresh_at timestamptz, \
               OUT claims jsonb) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c \
               AS 'MODULE_PATHNAME', 'token_info_wrapper';"
    )]
    fn token_info(resource: Option<&str>, identity: default!(Option<Name>, "NULL")) -> Record<6> {
        let resource = resource.unwrap_or_else(|| tokens::null_argument("resource"));
        let info = tokens::info(resource, identity.as_ref().map(Name::as_c_str));
        let claim = |name| info.claims.get(name).and_then(|claim| claim.as_str()).and_then(IntoDatum::into_datum);
        Record([
            info.source.into_datum(),
            claim("appid"),
            claim("oid"),
            clock::timestamp(info.expires_at).into_datum(),
            clock::timestamp(info.refresh_at).into_datum(),
            (!info.claims.is_empty()).then(|| pgrx::JsonB(info.claims.clone().into()).into_datum()).flatten(),
        ])
    }

    /// The rows of view `resource_aliases`.
    #[pg_extern(stable, parallel_safe)]
    fn resource_aliases() -> TableIterator<
        'static,
        (name!(alias, &'static str), name!(resource, &'static str), name!(description, &'static str)),
    > {
        TableIterator::new(tokens::resource_aliases())
    }

    /// Drops cached tokens; the next use fetches. Returns how many there were.
    #[pg_extern(volatile, parallel_restricted)]
    fn forget_tokens(resource: default!(Option<&str>, "NULL"), identity: default!(Option<Name>, "NULL")) -> i32 {
        tokens::forget(resource, identity.as_ref().map(Name::as_c_str))
    }

    /// The rows of view `cached_tokens`.
    #[pg_extern(volatile, parallel_restricted)]
    #[allow(clippy::type_complexity, reason = "one SQL column after the other")]
    fn cached_tokens() -> TableIterator<
        'static,
        (
            name!(identity, Option<Name>),
            name!(kind, String),
            name!(id, Option<String>),
            name!(resource, String),
            name!(source, String),
            name!(state, &'static str),
            name!(expires_at, Option<TimestampWithTimeZone>),
            name!(refresh_at, Option<TimestampWithTimeZone>),
            name!(fetched_at, Option<TimestampWithTimeZone>),
            name!(hits, i64),
            name!(fetches, i64),
            name!(failures, i64),
            name!(last_error, Option<String>),
            name!(last_error_at, Option<TimestampWithTimeZone>),
            name!(waiting, i32),
        ),
    > {
        TableIterator::new(tokens::rows().into_iter().map(|row| {
            (
                row.identity.as_deref().map(Name::new),
                row.kind,
                row.id,
                row.resource,
                row.source,
                row.state,
                clock::timestamp(row.expires_at),
                clock::timestamp(row.refresh_at),
                clock::timestamp(row.fetched_at),
                row.hits,
                row.fetches,
                row.failures,
                row.last_error,
                clock::timestamp(row.last_error_at),
                row.waiting,
            )
        }))
    }

    /// Where tokens come from on this machine, for an identity whose options do not say it.
    #[pg_extern(volatile, parallel_restricted)]
    fn detected_source() -> &'static str {
        settings::current().machine.detected().as_str()
    }

    /// Asks for a token, once and past the cache, and tells of each step on the way what was found.
    #[pg_extern(volatile, parallel_restricted)]
    fn diagnose(
        resource: default!(Option<&str>, "'storage'"),
        identity: default!(Option<Name>, "NULL"),
    ) -> TableIterator<
        'static,
        (name!(step, &'static str), name!(status, &'static str), name!(detail, String), name!(hint, Option<String>)),
    > {
        let resource = resource.unwrap_or_else(|| tokens::null_argument("resource"));
        let steps = diagnose::steps(resource, identity.as_ref().map(Name::as_c_str));
        TableIterator::new(steps.into_iter().map(|step| (step.name, step.status.as_str(), step.detail, step.hint)))
    }

    /// The row of view `status`.
    #[pg_extern(volatile, parallel_restricted)]
    #[allow(clippy::type_complexity, reason = "one SQL column after the other")]
    fn status() -> TableIterator<
        'static,
        (
            name!(version, &'static str),
            name!(preloaded, bool),
            name!(worker_pid, Option<i32>),
            name!(source, &'static str),
            name!(roots, &'static str),
            name!(slots_used, i32),
            name!(slots_total, i32),
            name!(next_expiry_seconds, Option<i64>),
        ),
    > {
        let status = status::status();
        TableIterator::once((
            status.version,
            status.preloaded,
            status.worker_pid,
            status.source,
            status.roots,
            status.slots_used,
            status.slots_total,
            status.next_expiry_seconds,
        ))
    }

    /// The rows of view `stat_requests`.
    #[pg_extern(volatile, parallel_restricted)]
    #[allow(clippy::type_complexity, reason = "one SQL column after the other")]
    fn stat_requests() -> TableIterator<
        'static,
        (
            name!(kind, &'static str),
            name!(server, Option<String>),
            name!(operation, &'static str),
            name!(requests, i64),
            name!(retries, i64),
            name!(throttled, i64),
            name!(errors, i64),
            name!(bytes_in, i64),
            name!(bytes_out, i64),
            name!(total_time_ms, f64),
            name!(last_error, Option<String>),
            name!(last_error_at, Option<TimestampWithTimeZone>),
            name!(stats_reset, Option<TimestampWithTimeZone>),
            name!(database, Option<String>),
        ),
    > {
        TableIterator::new(stats::rows().into_iter().map(|row| {
            (
                row.kind,
                row.server,
                row.operation,
                row.requests,
                row.retries,
                row.throttled,
                row.errors,
                row.bytes_in,
                row.bytes_out,
                row.total_time_ms,
                row.last_error,
                clock::timestamp(row.last_error_at),
                clock::timestamp(row.counting_since),
                row.database,
            )
        }))
    }

    /// Forgets all that `stat_requests` has counted.
    #[pg_extern(volatile, parallel_restricted)]
    fn stat_reset() {
        stats::reset();
    }

    #[pg_extern(strict, parallel_restricted)]
    fn managed_identity_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
        options::validate_identity(&options::pairs(options), catalog);
    }
}
