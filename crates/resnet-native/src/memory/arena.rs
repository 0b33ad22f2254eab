//! The one allocation that holds every activation and gradient of a plan.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Part of an [`Arena`], in floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First float; a multiple of [`ALIGN_FLOATS`].
    pub offset: usize,
    /// Number of floats.
    pub len: usize,
}

impl Buffer {
    fn overlaps(self, other: Self) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// Buffers start at multiples of a cache line, the width of the widest vector.
pub const ALIGN_FLOATS: usize = 16;

/// Bytes of a large page of x86 and ARM.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed floats, aligned to a cache line, allocated once.
pub struct Arena {
    start: NonNull<f32>,
    layout: Layout,
}

// SAFETY: an arena owns its memory and gives it out only through borrows of itself.
unsafe impl Send for Arena {}
// SAFETY: a shared arena gives its memory out for reading alone.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of `floats`.
    pub fn new(floats: usize) -> Self {
        let layout = Layout::array::<f32>(floats.max(1))
            .and_then(|layout| layout.align_to(if layout.size() < HUGE_PAGE { ALIGN_FLOATS * 4 } else { HUGE_PAGE }))
            .expect("an arena below the address space's size");
        // SAFETY: the layout has at least one float.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start.cast::<f32>()) else { handle_alloc_error(layout) };
        prefer_huge_pages(start, layout);
        // SAFETY: inside the allocation; zeroed only now, for the first touch decides the size of the pages.
        unsafe { start.write_bytes(0, layout.size() / size_of::<f32>()) };
        Self { start, layout }
    }

    /// Borrows buffers: `reads` may overlap one another, `writes` nothing.
    ///
    /// # Panics
    /// When a buffer lies outside the arena or a write overlaps another buffer: a mistake of the plan.
    pub fn borrow<const R: usize, const W: usize>(
        &mut self,
        reads: [Buffer; R],
        writes: [Buffer; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        let floats = self.layout.size() / size_of::<f32>();
        for buffer in reads.iter().chain(&writes) {
            assert!(buffer.offset + buffer.len <= floats, "{buffer:?} lies outside the arena of {floats} floats");
        }
        for (index, write) in writes.iter().enumerate() {
            let others = reads.iter().chain(&writes[index + 1..]);
            assert!(others.into_iter().all(|other| !write.overlaps(*other)), "{write:?} overlaps another buffer");
        }
        let start = self.start.as_ptr();
        // SAFETY: all buffers lie inside the allocation, which is initialised; the borrow of `self` keeps
        // others out, and no write overlaps another slice given out here.
        unsafe {
            (
                reads.map(|b| std::slice::from_raw_parts(start.add(b.offset), b.len)),
                writes.map(|b| std::slice::from_raw_parts_mut(start.add(b.offset), b.len)),
            )
        }
    }

    /// All of it, to read.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: the whole allocation, which is initialised; writes need `self` mutably.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size() / size_of::<f32>()) }
    }

    /// All of it.
    pub fn all(&mut self) -> &mut [f32] {
        let len = self.layout.size() / size_of::<f32>();
        let (_, [all]) = self.borrow([], [Buffer { offset: 0, len }]);
        all
    }

    /// Borrows one buffer to read.
    pub fn read(&self, buffer: Buffer) -> &[f32] {
        &self.as_slice()[buffer.offset..][..buffer.len]
    }
}

/// Asks for pages of 2 MB under a large arena: walks of page tables cost more than the first-level cache's
/// misses otherwise.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(start: NonNull<f32>, layout: Layout) {
    if layout.size() >= HUGE_PAGE {
        // SAFETY: the range is an allocation of our own; advice changes nothing but its pages' size, and its
        // refusal costs nothing but speed.
        unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: NonNull<f32>, _: Layout) {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_seen_by_later_reads() {
        let mut arena = Arena::new(64);
        let (a, b) = (Buffer { offset: 0, len: 32 }, Buffer { offset: 32, len: 32 });
        let (_, [first, second]) = arena.borrow([], [a, b]);
        first.fill(1.0);
        second.fill(2.0);
        assert_eq!(arena.read(Buffer { offset: 30, len: 4 }), [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn a_write_may_not_overlap_a_read() {
        Arena::new(64).borrow([Buffer { offset: 0, len: 17 }], [Buffer { offset: 16, len: 16 }]);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_buffer_may_not_leave_the_arena() {
        Arena::new(64).borrow([Buffer { offset: 60, len: 5 }], []);
    }
}
