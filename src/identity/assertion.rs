//! The federated token: what a pod's service account or a CI job shows to the authority. Its issuer
//! replaces the file every few minutes to hours, so it is read at each use and never kept.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::http::failure::{Failure, Kind, said_by_the_system};
use crate::token::claims;

/// The longest federated token that is sent, in bytes; they have one or two thousand.
const LONGEST: usize = 32 << 10;

/// What to change where the file holds something else.
const NOTHING_ELSE: &str = "Name the file that holds the federated token and nothing else.";

/// A federated token, in a type that cannot be printed and is wiped on drop.
pub struct Assertion(Zeroizing<String>);

impl Assertion {
    /// Reads the file. What it holds is never part of an error.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let unreadable = |why: &str, hint: &str| {
            Failure::new(Kind::Local, format!("could not use federated token file \"{}\"", path.display()))
                .detail(why)
                .hint(hint)
        };
        let failed = |error: std::io::Error| {
            let hint = match error.kind() {
                ErrorKind::NotFound => {
                    "On AKS give the pod the label azure.workload.identity/use; elsewhere name the file that holds the federated token."
                }
                ErrorKind::PermissionDenied => {
                    "The operating system user that runs PostgreSQL must be able to read it; in Kubernetes set fsGroup in the pod's securityContext."
                }
                _ => "It is a regular file that the operating system user of PostgreSQL can read.",
            };
            let why = said_by_the_system(&error);
            let message = format!("could not open federated token file \"{}\": {why}", path.display());
            Failure::new(Kind::Local, message).hint(hint)
        };
        // Without blocking: a FIFO that nobody writes to would hold the session for ever. Links are
        // followed, as Kubernetes replaces the file by turning one.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(unreadable("It is not a regular file.", "Name the file that holds the federated token."));
        }
        let mut room = Zeroizing::new(vec![0; LONGEST + 1]);
        let length = fill(&mut file, &mut room).map_err(failed)?;
        if length > LONGEST {
            let failure = Failure::new(Kind::TooLarge, format!("\"{}\" is no federated token", path.display()));
            return Err(failure.detail(format!("At most {LONGEST} bytes are read.")));
        }
        match room[..length].trim_ascii() {
            [] => Err(unreadable("It is empty.", "It may be about to be replaced: try again in a moment.")),
            text if text.iter().all(u8::is_ascii_graphic) => {
                let mut kept = Zeroizing::new(String::with_capacity(text.len()));
                kept.extend(text.iter().map(|byte| char::from(*byte)));
                Ok(Self(kept))
            }
            _ => Err(unreadable("It holds a character that no token has.", NOTHING_ELSE)),
        }
    }

    /// What the token says of itself, to be told to whom it may concern: the authority compares it with the
    /// identity's federated credentials.
    pub fn claims(&self) -> Result<Claims, Failure> {
        let payload = claims::payload(&self.0)
            .ok_or_else(|| Failure::new(Kind::Local, "the federated token is no JSON web token").hint(NOTHING_ELSE))?;
        let texts = |name: &str| match payload.get(name) {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            Some(Value::String(one)) => one.clone(),
            _ => String::new(),
        };
        let ends = payload.get("exp").and_then(Value::as_f64).map(|seconds| seconds as i64);
        Ok(Claims { issuer: texts("iss"), subject: texts("sub"), audience: texts("aud"), ends })
    }

    /// The token's text. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What a federated token says of itself; nobody has verified it.
#[derive(Debug, PartialEq, Eq)]
pub struct Claims {
    pub issuer: String,
    pub subject: String,
    pub audience: String,
    /// Unix time.
    pub ends: Option<i64>,
}

impl std::fmt::Debug for Assertion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assertion").finish_non_exhaustive()
    }
}

/// Reads until the end or until the room is full; a growing buffer would leave copies unwiped.
fn fill(file: &mut File, room: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < room.len() {
        match file.read(&mut room[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("assertion-{name}-{}", std::process::id())))
        }

        fn holding(name: &str, content: &[u8]) -> Self {
            let scratch = Self::new(name);
            std::fs::write(&scratch.0, content).expect("a file");
            scratch
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_file_is_read_anew_each_time_and_its_line_end_is_cut_off() {
        let file = Scratch::holding("changes", b"one.two.three\n");
        assert_eq!(Assertion::read(&file.0).expect("a token").expose(), "one.two.three");
        std::fs::write(&file.0, "four").expect("a file");
        let assertion = Assertion::read(&file.0).expect("a token");
        assert_eq!(assertion.expose(), "four");
        assert!(!format!("{assertion:?}").contains("four"));
        let link = Scratch::new("link");
        std::os::unix::fs::symlink(&file.0, &link.0).expect("a link");
        assert_eq!(Assertion::read(&link.0).expect("a token").expose(), "four");
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_quoted() {
        let long = vec![b'a'; LONGEST + 1];
        for (name, content, kind) in [
            ("empty", b"".as_slice(), Kind::Local),
            ("blank", b" \n", Kind::Local),
            ("lines", b"canary\ncanary", Kind::Local),
            ("binary", b"canary\xff", Kind::Local),
            ("long", &long, Kind::TooLarge),
        ] {
            let file = Scratch::holding(name, content);
            let refused = Assertion::read(&file.0).expect_err(name);
            assert_eq!(refused.kind, kind, "{name}");
            assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");
        }
        let whole = Scratch::holding("whole", &long[1..]);
        assert_eq!(Assertion::read(&whole.0).expect("a token").expose().len(), LONGEST);
    }

    #[test]
    fn its_claims_are_told_in_every_form_that_issuers_write_and_nothing_else_is() {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let read = |payload: &str| {
            let text = format!("e30.{}.canary", URL_SAFE_NO_PAD.encode(payload));
            Assertion::read(&Scratch::holding("claims", text.as_bytes()).0).expect("a token").claims()
        };
        let claims =
            |audience: &str, ends| Claims { issuer: "i".into(), subject: "s".into(), audience: audience.into(), ends };
        let listed = read(r#"{"iss": "i", "sub": "s", "aud": ["a", "b"], "exp": 5, "jti": "canary"}"#).expect("claims");
        assert_eq!(listed, claims("a, b", Some(5)));
        assert_eq!(read(r#"{"iss": "i", "sub": "s", "aud": "a", "exp": "5"}"#).expect("claims"), claims("a", None));
        let other = read("canary").expect_err("no JSON");
        assert!(other.hint.as_deref().is_some_and(|hint| hint.contains("nothing else")), "{other:?}");
        assert!(!format!("{other:?}").contains("canary"));
    }

    #[test]
    fn a_missing_file_a_folder_a_device_and_a_fifo_are_refused_at_once() {
        let missing = Assertion::read(Path::new("/nonexistent/token")).expect_err("no file");
        assert!(missing.message.contains("/nonexistent/token"));
        assert!(missing.hint.is_some_and(|hint| hint.contains("azure.workload.identity/use")));
        let fifo = Scratch::new("fifo");
        nix::unistd::mkfifo(&fifo.0, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        for path in [Path::new("/tmp"), Path::new("/dev/zero"), &fifo.0] {
            let refused = Assertion::read(path).expect_err("no regular file");
            assert_eq!(refused.detail.as_deref(), Some("It is not a regular file."), "{}", path.display());
        }
    }
}
