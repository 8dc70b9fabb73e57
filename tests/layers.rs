//! The fences between the rooms of `src/`: who may name PostgreSQL, who may be unsafe, who may call whom.

#![allow(clippy::expect_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use beside itself. Nothing points back, so a room can be read without those above.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("sql", &["pg"]),
    ("pg", &["blob", "vault", "identity", "token", "http"]),
    ("blob", &["token", "http"]),
    ("vault", &["identity", "token", "http"]),
    ("identity", &["token", "http"]),
    ("token", &["http"]),
    ("http", &[]),
];

/// The command that is built without PostgreSQL, and the rooms that it may use: it never asks `pg`.
const COMMAND: (&str, &[&str]) = ("bin/managed-identity", &["vault", "identity", "token", "http"]);

const LONGEST_FILE: usize = 450;

struct Source {
    room: String,
    path: PathBuf,
    text: String,
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                walk(&entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push(entry);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    let source = |path: PathBuf| {
        let inside = path.strip_prefix(&root).expect("below src");
        let room = match inside.starts_with(COMMAND.0) {
            true => COMMAND.0.to_owned(),
            false => inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned(),
        };
        let text = fs::read_to_string(&path).expect("text");
        Source { room, path, text }
    };
    paths.into_iter().map(source).collect()
}

/// The lines that are code, without what stands behind `//`.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

#[test]
fn postgresql_is_named_behind_the_fence_only() {
    for source in sources() {
        if matches!(source.room.as_str(), "pg" | "sql" | "lib.rs" | "bin") {
            continue;
        }
        for line in code(&source.text) {
            let named = has_word(line, "pgrx") || has_word(line, "pg_sys");
            assert!(!named, "{}: {line}", source.path.display());
        }
    }
}

#[test]
fn unsafe_code_stands_in_pg_alone() {
    for source in sources().iter().filter(|source| source.room != "pg") {
        for line in code(&source.text) {
            assert!(!has_word(line, "unsafe"), "{}: {line}", source.path.display());
        }
    }
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    for source in sources() {
        let Some((_, below)) = MAY_USE.iter().find(|(room, _)| *room == source.room) else {
            assert!(
                matches!(source.room.as_str(), "lib.rs" | "bin") || source.room == COMMAND.0,
                "a new room: {}",
                source.room
            );
            continue;
        };
        for line in code(&source.text) {
            for (room, _) in &MAY_USE {
                let used = line.contains(&format!("crate::{room}::")) || line.contains(&format!("use crate::{room};"));
                let allowed = *room == source.room || below.contains(room);
                assert!(!used || allowed, "{} uses {room}: {line}", source.path.display());
            }
        }
    }
}

#[test]
fn the_command_uses_the_rooms_that_know_no_postgresql() {
    let all = sources();
    let command: Vec<_> = all.iter().filter(|source| source.room == COMMAND.0).collect();
    assert!(command.len() > 1);
    for source in command {
        for line in code(&source.text) {
            for used in line.split("managed_identity::").skip(1) {
                let room: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(COMMAND.1.contains(&room.as_str()), "{}: {line}", source.path.display());
            }
        }
    }
}

#[test]
fn every_file_can_be_read_in_one_go() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", source.path.display());
    }
}
