//! From a method and a path to what they ask for.

use hyper::{Method, StatusCode, Uri};

use super::operation::VaultOperation;
use super::refusal::Refusal;

const API_VERSIONS: [&str; 11] = [
    "7.0",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "2025-06-01-preview",
    "2025-07-01",
    "2026-03-01-preview",
    "2026-04-01",
];

/// What a request is about; a version that is not there is the newest.
pub(super) struct Target<'p> {
    pub operation: VaultOperation,
    pub name: &'p str,
    pub version: Option<&'p str>,
    /// The list of a key's versions instead of one of them.
    pub versions: bool,
}

impl<'p> Target<'p> {
    /// Clients leave an empty segment where a version is not given: `/keys/kek/` and `/keys/kek//wrapkey`.
    pub(super) fn of(method: &Method, path: &'p str) -> Result<Self, Refusal> {
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        let is = |index: usize, word: &str| segments.get(index).is_some_and(|found| found.eq_ignore_ascii_case(word));
        let given = |segment: &'p str| (!segment.is_empty()).then_some(segment);
        let target = |operation, name, version| Self { operation, name, version, versions: false };
        let (expected, target) = match segments[..] {
            [_, name] if is(0, "secrets") => (Method::GET, target(VaultOperation::GetSecret, name, None)),
            [_, name, version] if is(0, "secrets") => {
                (Method::GET, target(VaultOperation::GetSecret, name, given(version)))
            }
            [_, name] if is(0, "keys") => (Method::GET, target(VaultOperation::ReadKey, name, None)),
            [_, name, _] if is(0, "keys") && is(2, "versions") => {
                (Method::GET, Self { operation: VaultOperation::ReadKey, name, version: None, versions: true })
            }
            [_, name, version] if is(0, "keys") => (Method::GET, target(VaultOperation::ReadKey, name, given(version))),
            [_, name, version, operation] if is(0, "keys") => match VaultOperation::with_key(operation) {
                Some(operation) => (Method::POST, target(operation, name, given(version))),
                None => return Err(nothing(path)),
            },
            _ => return Err(nothing(path)),
        };
        if *method != expected {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                format!("The method {method} is not allowed here."),
            ));
        }
        Ok(target)
    }

    /// Its path below the vault, without the version.
    pub(super) fn object(&self) -> String {
        let collection = if self.operation == VaultOperation::GetSecret { "secrets" } else { "keys" };
        format!("{collection}/{}", self.name)
    }
}

fn nothing(path: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "ResourceNotFound",
        format!("The path {path} names nothing that this vault has."),
    )
}

/// The first query parameter of this name, decoded.
pub(super) fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// The version of the API that the request names.
pub(super) fn api_version(uri: &Uri) -> Result<String, Refusal> {
    let Some(version) = parameter(uri, "api-version") else {
        return Err(Refusal::bad_parameter("The request must specify the query parameter api-version."));
    };
    if !API_VERSIONS.contains(&version.as_str()) {
        let newest = API_VERSIONS[API_VERSIONS.len() - 1];
        return Err(Refusal::bad_parameter(format!(
            "The specified version ({version}) is not recognized. Consider using the latest supported version ({newest})."
        )));
    }
    Ok(version)
}
