//! What core's callbacks work on. They have no argument of our own, and COPY nests (a trigger or a
//! query's function may run another), so each direction has a stack.

use std::cell::{RefCell, RefMut};
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::thread::LocalKey;

/// A stack of entries. Never dropped: FATAL leaves by exit(), with a transfer in the middle of its work
/// and no frame unwound.
pub struct Stack<T>(ManuallyDrop<RefCell<Vec<Rc<RefCell<T>>>>>);

impl<T> Stack<T> {
    pub const fn new() -> Self {
        Self(ManuallyDrop::new(RefCell::new(Vec::new())))
    }
}

/// The entry on top: that of the COPY whose callback is running.
pub fn top<T>(stack: &'static LocalKey<Stack<T>>) -> Option<Rc<RefCell<T>>> {
    stack.with(|Stack(entries)| entries.borrow().last().cloned())
}

/// An entry's place on its stack, given up on return and on every ERROR, also one that plpgsql catches.
pub struct Pushed<T: 'static> {
    stack: &'static LocalKey<Stack<T>>,
    depth: usize,
    entry: Rc<RefCell<T>>,
}

impl<T> Pushed<T> {
    pub fn new(stack: &'static LocalKey<Stack<T>>, entry: T) -> Self {
        let entry = Rc::new(RefCell::new(entry));
        let depth = stack.with(|Stack(entries)| {
            let mut entries = entries.borrow_mut();
            entries.push(entry.clone());
            entries.len() - 1
        });
        Self { stack, depth, entry }
    }

    pub fn entry(&self) -> RefMut<'_, T> {
        self.entry.borrow_mut()
    }
}

impl<T> Drop for Pushed<T> {
    fn drop(&mut self) {
        // Cut, not popped: whatever lies above belongs to a COPY inside of this one.
        self.stack.with(|Stack(entries)| entries.borrow_mut().truncate(self.depth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static NUMBERS: Stack<u8> = const { Stack::new() };
    }

    #[test]
    fn an_inner_entry_hides_the_outer_one_and_an_unwinding_gives_it_back() {
        let now = || top(&NUMBERS).map(|number| *number.borrow());
        assert_eq!(now(), None);
        let outer = Pushed::new(&NUMBERS, 1);
        let caught = std::panic::catch_unwind(|| {
            let _inner = Pushed::new(&NUMBERS, 2);
            assert_eq!(now(), Some(2));
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(caught.is_err());
        assert_eq!(now(), Some(1));
        *outer.entry() += 2;
        assert_eq!(now(), Some(3));
        drop(outer);
        assert_eq!(now(), None);
    }
}
