//! Everything that a statement says, as text: what core says of a file can be compared with what we say
//! of a blob.

use postgres::SimpleQueryMessage;
use postgres::error::{DbError, ErrorPosition};

use crate::Session;

/// The count, or the error with all of its fields, then the notices. Where the two statements differ in
/// the place they name, the caller replaces it.
pub fn outcome(session: &mut Session, sql: &str) -> String {
    drop(session.notices());
    let mut said = match session.client().simple_query(sql) {
        Ok(messages) => {
            let count = |message: &SimpleQueryMessage| match message {
                SimpleQueryMessage::CommandComplete(count) => Some(*count),
                _ => None,
            };
            format!("COPY {}", messages.iter().filter_map(count).next_back().expect("a command tag"))
        }
        Err(error) => fields(error.as_db_error().unwrap_or_else(|| panic!("{sql}: the session ended: {error}")), sql),
    };
    for notice in session.notices() {
        said.push('\n');
        said.push_str(&fields(&notice, sql));
    }
    said
}

fn fields(error: &DbError, sql: &str) -> String {
    // The text from there on: what comes before may differ in length.
    let at = match error.position() {
        Some(ErrorPosition::Original(at)) => sql.chars().skip(*at as usize - 1).collect(),
        Some(ErrorPosition::Internal { position, query }) => query.chars().skip(*position as usize - 1).collect(),
        None => String::from("none"),
    };
    let optional = [
        ("DETAIL", error.detail()),
        ("HINT", error.hint()),
        ("CONTEXT", error.where_()),
        ("TABLE", error.table()),
        ("COLUMN", error.column()),
        ("CONSTRAINT", error.constraint()),
    ];
    let mut said = format!("{} {}: {}\nat: {at}", error.severity(), error.code().code(), error.message());
    for (name, value) in optional {
        if let Some(value) = value {
            said.push_str(&format!("\n{name}: {value}"));
        }
    }
    said
}
