//! The allocator of all Rust code in this library: what is given back is wiped.
//!
//! Tokens and keys pass through buffers that are not ours to wipe: of TLS, HTTP and JSON. Freed memory keeps its
//! content until it is used again, and a core file has it. What is longer than any answer that may be secret is a blob's,
//! and stays as it is.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::http::request::ANSWER_LIMIT;

struct Wiping;

#[global_allocator]
static WIPING: Wiping = Wiping;

/// # Safety
/// `size` bytes of an allocation that nobody uses any more.
unsafe fn wipe(start: *mut u8, size: usize) {
    // SAFETY: as the caller promises.
    unsafe { start.write_bytes(0, size) };
    // Or the compiler leaves out a write that nobody can read.
    std::hint::black_box(start);
}

// SAFETY: the system's allocator, whose contract is handed on; the memory is written before it is given back.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe {
            if layout.size() <= ANSWER_LIMIT {
                wipe(start, layout.size());
            }
            System.dealloc(start, layout);
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises; what is copied is no longer than either.
        unsafe {
            if layout.size() > ANSWER_LIMIT {
                return System.realloc(start, layout, size);
            }
            // The system might move it, and leave the old place as it was.
            let new = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(start, layout.size().min(size));
                self.dealloc(start, layout);
            }
            new
        }
    }
}
