//! Memory of a thread's own, kept from one kernel to the next.

use std::cell::RefCell;

use super::Arena;

thread_local! {
    static KEPT: RefCell<Vec<Arena>> = const { RefCell::new(Vec::new()) };
}

/// Floats to work in, aligned to a cache line; what they hold at first means nothing.
pub struct Scratch {
    /// Taken when it goes back to the thread.
    arena: Option<Arena>,
    len: usize,
}

impl Scratch {
    /// Takes `len` floats.
    pub fn take(len: usize) -> Self {
        let kept = KEPT.with_borrow_mut(Vec::pop).filter(|arena| arena.as_slice().len() >= len);
        Self { arena: Some(kept.unwrap_or_else(|| Arena::new(len))), len }
    }

    /// All of it.
    pub fn all(&mut self) -> &mut [f32] {
        self.arena.as_mut().map_or(&mut [], |arena| &mut arena.all()[..self.len])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| kept.extend(self.arena.take()));
    }
}
