//! What is read and what is written. Neither is kept longer than it is needed, nor anywhere but in memory that is wiped.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use clap::ValueEnum;
use data_encoding::{BASE64, BASE64URL, BASE64URL_NOPAD, Encoding as Alphabet, HEXLOWER, HEXLOWER_PERMISSIVE};
use managed_identity::http::failure::{Failure, Kind};
use zeroize::Zeroizing;

use crate::Secret;
use crate::arguments::{Output, UnwrapKey};
use crate::outcome::Stop;

/// The longest that is read: more than any wrapped key has, in any encoding.
const LONGEST: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    Raw,
    Base64,
    Base64url,
    Hex,
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Base64 => "base64",
            Self::Base64url => "base64url",
            Self::Hex => "hexadecimal digits",
        }
    }

    /// What writes it; nothing for what is written as it is.
    fn writer(self) -> Option<Alphabet> {
        match self {
            Self::Raw => None,
            Self::Base64 => Some(BASE64),
            Self::Base64url => Some(BASE64URL_NOPAD),
            Self::Hex => Some(HEXLOWER),
        }
    }

    /// What reads this text.
    fn reader(self, text: &[u8]) -> Option<Alphabet> {
        match self {
            Self::Base64url if text.ends_with(b"=") => Some(BASE64URL),
            Self::Hex => Some(HEXLOWER_PERMISSIVE),
            _ => self.writer(),
        }
    }

    fn decoded(self, mut read: Secret) -> Result<Secret, Stop> {
        if self == Self::Raw {
            return Ok(read);
        }
        // Line ends and the like are no part of it, wherever they stand.
        read.retain(|byte| !byte.is_ascii_whitespace());
        let decode = |text: &[u8]| {
            let alphabet = self.reader(text)?;
            let mut bytes = Zeroizing::new(vec![0; alphabet.decode_len(text.len()).ok()?]);
            let length = alphabet.decode_mut(text, &mut bytes).ok()?;
            bytes.truncate(length);
            Some(bytes)
        };
        decode(&read).ok_or_else(|| {
            let failure = Failure::new(Kind::InvalidValue, format!("the wrapped key is not {}", self.name()));
            Stop::data(failure.hint("Option --encoding says how it is written: raw, base64, base64url or hex."))
        })
    }
}

/// The wrapped key.
pub fn read(key: &UnwrapKey) -> Result<Secret, Stop> {
    let read = match &key.input {
        Some(path) => File::open(path).and_then(|file| all_of(&file)).map_err(|error| unread(path, &error))?,
        None => all_of(io::stdin().lock()).map_err(|error| unread(Path::new("standard input"), &error))?,
    };
    if read.len() > LONGEST {
        let failure = Failure::new(Kind::TooLarge, "what was read is too long for a wrapped key");
        return Err(Stop::data(failure.detail(format!("At most {LONGEST} bytes are read."))));
    }
    let wrapped = key.encoding.decoded(read)?;
    if wrapped.is_empty() {
        return Err(Stop::data(Failure::new(Kind::InvalidValue, "there is no wrapped key: nothing was read")));
    }
    Ok(wrapped)
}

/// With room for all of it from the start: a moved buffer leaves a copy unwiped.
fn all_of(source: impl Read) -> io::Result<Secret> {
    let mut read = Zeroizing::new(Vec::with_capacity(LONGEST + 64));
    source.take(LONGEST as u64 + 1).read_to_end(&mut read)?;
    Ok(read)
}

fn unread(path: &Path, error: &io::Error) -> Stop {
    let message = format!("could not read the wrapped key from {}", path.display());
    let failure = Failure::new(Kind::Local, message).detail(format!("The operating system says: {}.", error.kind()));
    match error.kind() {
        ErrorKind::NotFound => Stop::missing(failure),
        _ => Stop::unreadable(failure),
    }
}

/// A terminal keeps what it shows, and so does who looks on.
pub fn refuse_a_terminal(output: &Output) -> Result<(), Stop> {
    if io::stdout().is_terminal() && !output.force_tty {
        return Err(Stop::usage(
            Failure::new(Kind::Forbidden, "a secret is not written to a terminal")
                .hint("Send standard output to a program or a file; --force-tty writes it nevertheless."),
        ));
    }
    Ok(())
}

/// Writes the value, whole.
pub fn write(value: Secret, encoding: Encoding, output: &Output) -> Result<(), Stop> {
    let text = match encoding.writer() {
        None => value,
        Some(alphabet) => {
            let mut text = Zeroizing::new(vec![0; alphabet.encode_len(value.len())]);
            alphabet.encode_mut(&value, &mut text);
            text
        }
    };
    let write = || {
        // Past Rust's own buffer, which nobody wipes.
        let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        out.write_all(&text)?;
        if output.newline { out.write_all(b"\n") } else { Ok(()) }
    };
    write().map_err(|error| {
        let failure = Failure::new(Kind::Local, "could not write the value to standard output");
        Stop::unreadable(failure.detail(format!("The operating system says: {}.", error.kind())))
    })
}
