//! What the storage service's refusals mean.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use crate::http::failure::{Failure, Kind, answered, code};

/// Whether a transfer reads or writes; decides what a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
}

/// An answer that is no success: its status, and what may be quoted of its headers. Its body is the
/// service's text and is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the storage service answered {status}")]
pub struct Refusal {
    status: u16,
    error_code: Option<String>,
    request_id: Option<String>,
}

impl Refusal {
    pub fn read(status: StatusCode, headers: &HeaderMap) -> Self {
        let quotable = |name| headers.get(name)?.to_str().ok().and_then(code).map(str::to_owned);
        Self {
            status: status.as_u16(),
            error_code: quotable("x-ms-error-code"),
            request_id: quotable("x-ms-request-id"),
        }
    }

    /// A state of the service that passes.
    pub fn is_worth_another_try(&self) -> bool {
        matches!(self.status, 408 | 429 | 500..)
    }

    /// Whether the service says that it is asked too often. Blob Storage does so by 503 and a code of its own.
    pub fn is_throttling(&self) -> bool {
        self.status == 429 || self.error_code.as_deref() == Some("ServerBusy")
    }

    pub fn failure(&self, operation: Operation) -> Failure {
        let error_code = self.error_code.as_deref().unwrap_or_default();
        let (kind, message, hint) = match (self.status, operation) {
            (401 | 403, _) => (
                Kind::NotAuthorized,
                "azure_storage: Permission is not sufficient to perform requested operation",
                Some(match operation {
                    Operation::Read => {
                        "The identity needs the role \"Storage Blob Data Reader\" on the account or container."
                    }
                    Operation::Write => {
                        "The identity needs the role \"Storage Blob Data Contributor\" on the account or container."
                    }
                }),
            ),
            (404, Operation::Read) if error_code != "ContainerNotFound" => {
                (Kind::NotFound, "azure_storage: blob with the given name does not exist", None)
            }
            (404, _) => (
                Kind::NotFound,
                "azure_storage: container with the given name does not exist",
                Some("Containers are not created by COPY."),
            ),
            // Only ranges carry a condition of ours; a write meets 412 where somebody holds a lease.
            (412, Operation::Read) => {
                (Kind::Changed, "the blob changed while it was read", Some("Read it again, once nobody writes to it."))
            }
            // A block list drops the blocks of every other upload of the blob, and blocks of one blob
            // must have names of one length.
            (400, Operation::Write) if error_code.starts_with("InvalidBl") => (
                Kind::Conflict,
                "another upload to this blob stands in the way",
                Some("Write to another name, or once the other upload has ended."),
            ),
            (409 | 412, _) => (Kind::Conflict, "the blob's state does not allow the operation", None),
            (413, _) => (Kind::TooLarge, "the storage service found the request too large", None),
            (429, _) => (Kind::Throttled, "the storage service throttles", None),
            (408 | 500.., _) => (Kind::Unavailable, "the storage service is not available", None),
            (300..400, _) => (
                Kind::Protocol,
                "the storage service answered with a redirect",
                Some("No redirect is followed with a credential."),
            ),
            _ => (Kind::Protocol, "the storage service did not accept the request", None),
        };
        let mut failure = Failure::new(kind, message).detail(answered(
            "The storage service",
            self.status,
            self.error_code.as_deref(),
            self.request_id.as_deref(),
        ));
        failure.hint = hint.map(Into::into);
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn refusal(status: u16, error_code: &'static str) -> Refusal {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", HeaderValue::from_static(error_code));
        headers.insert("x-ms-request-id", HeaderValue::from_static("0f1e-2d"));
        Refusal::read(StatusCode::from_u16(status).expect("a status"), &headers)
    }

    #[test]
    fn each_status_has_its_kind() {
        use Operation::*;
        for (status, error_code, operation, kind) in [
            (401, "InvalidAuthenticationInfo", Read, Kind::NotAuthorized),
            (403, "AuthorizationPermissionMismatch", Write, Kind::NotAuthorized),
            (404, "BlobNotFound", Read, Kind::NotFound),
            (404, "ContainerNotFound", Write, Kind::NotFound),
            (412, "ConditionNotMet", Read, Kind::Changed),
            (412, "LeaseIdMissing", Write, Kind::Conflict),
            (409, "BlobArchived", Read, Kind::Conflict),
            (400, "InvalidBlockList", Write, Kind::Conflict),
            (400, "InvalidBlobOrBlock", Write, Kind::Conflict),
            (400, "InvalidHeaderValue", Write, Kind::Protocol),
            (413, "RequestBodyTooLarge", Write, Kind::TooLarge),
            (429, "TooManyRequests", Read, Kind::Throttled),
            (503, "ServerBusy", Read, Kind::Unavailable),
            (302, "", Read, Kind::Protocol),
        ] {
            let failure = refusal(status, error_code).failure(operation);
            assert_eq!(failure.kind, kind, "{status} {error_code}");
        }
    }

    #[test]
    fn microsofts_texts_and_the_roles_are_named() {
        let missing = refusal(404, "ContainerNotFound").failure(Operation::Read);
        assert_eq!(missing.message, "azure_storage: container with the given name does not exist");
        let missing = refusal(404, "BlobNotFound").failure(Operation::Read);
        assert_eq!(missing.message, "azure_storage: blob with the given name does not exist");
        let denied = refusal(403, "AuthorizationFailure").failure(Operation::Write);
        assert_eq!(denied.message, "azure_storage: Permission is not sufficient to perform requested operation");
        assert!(denied.hint.is_some_and(|hint| hint.contains("Storage Blob Data Contributor")));
        let detail = "The storage service answered 403, error code AuthorizationFailure, request id 0f1e-2d.";
        assert_eq!(denied.detail.as_deref(), Some(detail));
    }

    #[test]
    fn only_passing_states_are_tried_again() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(refusal(status, "x").is_worth_another_try(), "{status}");
        }
        for status in [302, 400, 401, 403, 404, 409, 412, 416] {
            assert!(!refusal(status, "x").is_worth_another_try(), "{status}");
        }
        assert!(refusal(429, "TooManyRequests").is_throttling() && refusal(503, "ServerBusy").is_throttling());
        assert!(!refusal(503, "InternalError").is_throttling());
    }
}
