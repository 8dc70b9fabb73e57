//! A file for the output of COPY TO, where core can only write into a file.
//!
//! It lies where core keeps temporary files and is named as they are, so that the server removes it at
//! its next start if this process cannot.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use pgrx::prelude::*;

use crate::http::failure::{Failure, Kind};
use crate::pg::error::OrRaise;

/// Core's folder for temporary files in `base`, and how their names begin; not every major's bindings
/// have the two constants.
const TEMPORARY: &str = "pgsql_tmp";

thread_local! {
    /// The files of this process. FATAL ends it without dropping anything.
    static FILES: RefCell<Vec<CString>> = const { RefCell::new(Vec::new()) };
    /// The next file's number. Core counts its files from 0 and truncates what it finds; it does not
    /// get this far.
    static NUMBER: Cell<u64> = const { Cell::new(1 << 32) };
}

/// The file, removed when this is dropped.
pub struct Spool {
    path: CString,
}

impl Spool {
    pub fn create() -> Self {
        watch_exit();
        let number = NUMBER.replace(NUMBER.get() + 1);
        // SAFETY: plain globals of a running backend.
        let (data, pid) = unsafe { (CStr::from_ptr(pg_sys::DataDir), pg_sys::MyProcPid) };
        let folder = [data.to_bytes(), b"/base/", TEMPORARY.as_bytes()].concat();
        let name = format!("/{TEMPORARY}{pid}.{number}");
        let path = CString::new([&folder, name.as_bytes()].concat()).unwrap_or_default();
        let made = new_file(&path).or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            let folder = CString::new(folder).unwrap_or_default();
            // SAFETY: a path of our own. It may exist by now; the file tells.
            unsafe { pg_sys::MakePGDirectory(folder.as_ptr()) };
            new_file(&path)
        });
        made.map_err(|error| failed("create", &error)).or_raise();
        FILES.with_borrow_mut(|files| files.push(path.clone()));
        Self { path }
    }

    pub fn path(&self) -> *const c_char {
        self.path.as_ptr()
    }

    pub fn open(&self) -> File {
        File::open(as_path(&self.path)).map_err(|error| failed("open", &error)).or_raise()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        remove(&self.path);
        FILES.with_borrow_mut(|files| files.retain(|path| *path != self.path));
    }
}

/// What went wrong with the file.
pub fn failed(what: &str, error: &Error) -> Failure {
    Failure::new(Kind::Local, format!("could not {what} the temporary file of COPY TO")).detail(error.to_string())
}

/// Made before core opens it, because core would make it readable for others.
fn new_file(path: &CStr) -> Result<(), Error> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(as_path(path)).map(|_| ())
}

fn as_path(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

fn remove(path: &CStr) {
    // A file that cannot be removed now is the server's to remove at its next start.
    let _ = std::fs::remove_file(as_path(path));
}

/// Removes the files when the process exits, by FATAL too.
fn watch_exit() {
    thread_local! {
        static WATCHED: Cell<bool> = const { Cell::new(false) };
    }
    if !WATCHED.replace(true) {
        // SAFETY: a guarded function that takes no argument, registered once per process.
        unsafe { pg_sys::on_proc_exit(Some(exiting), pg_sys::Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exiting(_code: c_int, _arg: pg_sys::Datum) {
    for path in FILES.take() {
        remove(&path);
    }
}
