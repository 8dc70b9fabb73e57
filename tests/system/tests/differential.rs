//! COPY by URL behaves as COPY by file: PostgreSQL's own regression scripts, rewritten into one script over
//! server-side files and one over blobs, say the same and write the same.
//!
//! The scripts come from the source of the major under test (`make test` unpacks it); none is in this
//! repository.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use server_tests::{ACCOUNT, World, given, major};

#[test]
fn copy2() {
    compare("copy2");
}

#[test]
fn copyselect() {
    compare("copyselect");
}

#[test]
fn generated_columns() {
    if major() < 18 {
        compare("generated");
    } else {
        compare("generated_stored");
        compare("generated_virtual");
    }
}

/// Lines that may differ, each with its reason. At most ten.
const EXCEPTIONS: [(&str, &str); 0] = [];

fn compare(name: &str) {
    let scripts = Scripts::of(name);
    assert!(scripts.statements > 0, "{name} has COPY statements");
    let (by_file, by_blob) = (World::with_storage(), World::with_storage());
    let folder = by_file.cluster.folder().join("files");
    fs::create_dir(&folder).unwrap();
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&folder, everyone).unwrap();
    for (file, data) in &scripts.inputs {
        fs::write(folder.join(file), data).unwrap();
        by_blob.azurite().put(&format!("box/{file}"), data.clone());
    }
    let folder = folder.to_str().unwrap();
    let url = by_blob.url("box");
    let expected = said(&by_file, &scripts.script, folder);
    let got = said(&by_blob, &scripts.script, &url);
    for (line, (left, right)) in expected.iter().zip(&got).enumerate() {
        let excepted = EXCEPTIONS.iter().any(|(part, _)| left.contains(part) || right.contains(part));
        let before = expected[line.saturating_sub(12)..line].join("\n");
        assert!(left == right || excepted, "{name}, after\n{before}\nby file: {left}\nby blob: {right}");
    }
    assert_eq!(expected.len(), got.len(), "{name}: one script said more");
    for file in &scripts.outputs {
        let written = fs::read(PathBuf::from(folder).join(file)).ok();
        let blob = by_blob.azurite().get(&format!("box/{file}"));
        // A statement that failed may have left core an empty file; a failed COPY leaves no blob.
        assert_eq!(blob.unwrap_or_default(), written.unwrap_or_default(), "{name}: {file}");
    }
    eprintln!("{name}: {} COPY statements compared", scripts.statements);
}

/// What psql shows of a script, without what must differ: the place, and excerpts and positions that
/// contain it.
fn said(world: &World, script: &str, place: &str) -> Vec<String> {
    let path = world.cluster.file("script.sql", script.replace(PLACE, place));
    let psql = world.cluster.psql(&["-a", "-v", "VERBOSITY=verbose", "-f", &path]);
    // One stream, so that an error stands behind its statement.
    let mut both = Command::new("sh");
    both.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(psql.get_program()).args(psql.get_args());
    let output = both.stdin(Stdio::null()).output().expect("psql runs");
    let text = String::from_utf8_lossy(&output.stdout).replace(place, PLACE).replace(&path, "script.sql");
    let mut lines: Vec<String> = Vec::new();
    let mut excerpt = false;
    for line in text.lines() {
        if excerpt && line.trim() == "^" {
            excerpt = false;
            continue;
        }
        // A temporary schema's number is the session's, not the statement's.
        let line = match line.split_once("pg_temp_") {
            Some((before, after)) => {
                format!("{before}pg_temp_{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
            }
            None => line.to_owned(),
        };
        excerpt = line.starts_with("LINE ");
        if !excerpt && !line.starts_with("LOCATION:") {
            lines.push(line);
        }
    }
    lines
}

/// Stands for the folder or the container in the rewritten script.
const PLACE: &str = "@PLACE@";

/// One regression file, rewritten.
struct Scripts {
    script: String,
    /// Data that the file holds inline, by the name it gets.
    inputs: Vec<(String, Vec<u8>)>,
    /// What is written.
    outputs: Vec<String>,
    statements: usize,
}

impl Scripts {
    fn of(name: &str) -> Self {
        let path = format!("{}/source/{}/src/test/regress/sql/{name}.sql", given("MI_CACHE"), major());
        let source = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; make test unpacks it"));
        // As Latin-1, so that every byte is one character and comes back as it was.
        let text: String = source.into_iter().map(char::from).collect();
        let lines: Vec<&str> = text.lines().collect();
        let mut scripts = Self { script: String::new(), inputs: Vec::new(), outputs: Vec::new(), statements: 0 };
        let (mut at, mut statement) = (0, String::new());
        while let Some(line) = lines.get(at) {
            at += 1;
            let apart = line.starts_with('\\') || line.starts_with("--") || line.trim().is_empty();
            if statement.is_empty() && apart {
                scripts.emit(line);
                continue;
            }
            statement.push_str(line);
            statement.push('\n');
            let code = line.split("--").next().unwrap_or_default().trim_end();
            if !code.ends_with(';') {
                continue;
            }
            let whole = std::mem::take(&mut statement);
            at += scripts.statement(&whole, &lines[at..], name);
        }
        scripts.emit(&statement);
        scripts
    }

    fn emit(&mut self, line: &str) {
        self.script.push_str(line.trim_end_matches('\n'));
        self.script.push('\n');
    }

    /// Rewrites one statement; returns how many lines of inline data followed it.
    fn statement(&mut self, statement: &str, following: &[&str], name: &str) -> usize {
        let lower = statement.to_ascii_lowercase();
        let first = lower.trim_start();
        let copies = first.starts_with("copy") && statement.matches(';').count() == 1;
        let input = copies.then(|| words(&lower, "from", "stdin")).flatten();
        let output = copies.then(|| words(&lower, "to", "stdout")).flatten();
        let Some((start, end, direction)) =
            input.map(|(start, end)| (start, end, "from")).or(output.map(|(start, end)| (start, end, "to")))
        else {
            self.emit(statement);
            let made = ["create role ", "create user "].iter().find_map(|verb| first.strip_prefix(verb));
            if let Some(role) = made.and_then(|rest| rest.split([' ', ';', '\n']).next()) {
                self.emit(&format!("GRANT pg_read_server_files, pg_write_server_files TO {role};"));
                self.emit(&format!("GRANT USAGE ON FOREIGN SERVER {ACCOUNT} TO {role};"));
            }
            return 0;
        };
        self.statements += 1;
        // By its name it is core's text, which is what a COPY without FORMAT is.
        let file = format!("{name}{}.tsv", self.statements);
        self.emit(&format!("{}{direction} '{PLACE}/{file}'{}", &statement[..start], &statement[end..]));
        if direction == "to" {
            self.outputs.push(file);
            return 0;
        }
        let data = inline_data(following);
        let taken = data.map_or(0, |length| length + 1);
        let text: String = following[..data.unwrap_or(0)].iter().flat_map(|line| [line, "\n"]).collect();
        let bytes = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        self.inputs.push((file, bytes));
        taken
    }
}

/// Where two words stand, one after the other.
fn words(lower: &str, first: &str, second: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    while let Some(found) = lower[from..].find(first) {
        let start = from + found;
        let rest = &lower[start + first.len()..];
        let gap = rest.len() - rest.trim_start().len();
        let alone = start > 0 && lower.as_bytes()[start - 1].is_ascii_whitespace();
        if alone && gap > 0 && rest.trim_start().starts_with(second) {
            return Some((start, start + first.len() + gap + second.len()));
        }
        from = start + first.len();
    }
    None
}

/// How many of the following lines are data, up to `\.`. A statement that fails before it reads has
/// none: then a statement comes before the next `\.`.
fn inline_data(following: &[&str]) -> Option<usize> {
    const VERBS: [&str; 14] = [
        "copy", "select", "create", "drop", "alter", "begin", "insert", "update", "delete", "commit", "rollback",
        "truncate", "--", "\\p",
    ];
    let end = following.iter().position(|line| *line == "\\.")?;
    let is_statement = |line: &&str| {
        let lower = line.trim_start().to_ascii_lowercase();
        VERBS.iter().any(|verb| lower.starts_with(verb))
    };
    let none = following.first().is_some_and(is_statement) || (end > 0 && following[..end].iter().any(is_statement));
    (!none).then_some(end)
}
