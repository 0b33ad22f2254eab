//! Where values lie whose lives end: memory that one no longer needs goes to another.

use super::{ALIGN_FLOATS, Buffer};

/// A value's memory, and the steps of a plan in which it is needed.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime<K> {
    /// Floats.
    pub len: usize,
    /// The step that makes it.
    pub first: usize,
    /// The last step that reads it.
    pub last: usize,
    /// Memory of a kind holds values of that kind alone, each from its first float to its last: what lies
    /// between their values, such as a border of zeros, is written once. None where memory may hold anything.
    pub kind: Option<K>,
}

impl<K: PartialEq> Lifetime<K> {
    /// Floats up to where the next buffer may begin.
    fn room(&self) -> usize {
        self.len.next_multiple_of(ALIGN_FLOATS)
    }

    /// Whether two values may share memory, at these offsets.
    fn shares(&self, other: &Self, same_offset: bool) -> bool {
        let apart = self.last < other.first || other.last < self.first;
        let same_kind = self.kind == other.kind && (self.kind.is_none() || same_offset && self.len == other.len);
        apart && same_kind
    }
}

/// Gives every value the lowest offset where it meets no other that it may not share memory with, largest
/// first. Returns the buffers and the length of the arena.
pub fn place<K: PartialEq>(values: &[Lifetime<K>]) -> (Vec<Buffer>, usize) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&id| (std::cmp::Reverse(values[id].len), values[id].first));
    let mut buffers = vec![Buffer { offset: 0, len: 0 }; values.len()];
    let mut placed: Vec<usize> = Vec::new(); // by offset
    let mut arena_len = 0;
    for id in order {
        let value = &values[id];
        let mut offset = 0;
        for &other in &placed {
            let (start, room) = (buffers[other].offset, values[other].room());
            let meets = offset < start + room && start < offset + value.room();
            if meets && !value.shares(&values[other], offset == start) {
                offset = start + room;
            }
        }
        buffers[id] = Buffer { offset, len: value.len };
        arena_len = arena_len.max(offset + value.room());
        let position = placed.partition_point(|&other| buffers[other].offset <= offset);
        placed.insert(position, id);
    }
    (buffers, arena_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some values with lives of up to nine steps.
    fn values(kind: impl Fn(usize) -> Option<usize>) -> Vec<Lifetime<usize>> {
        let value = |i: usize| {
            let kind = kind(i);
            // Values of a kind are of one length.
            let len = 10 + 16 * (1 + kind.unwrap_or(i * 7 % 5));
            Lifetime { len, first: i * 13 % 31, last: i * 13 % 31 + i % 9, kind }
        };
        (0..60).map(value).collect()
    }

    #[test]
    fn values_alive_at_the_same_time_never_overlap() {
        for kind in [|_| None, |i| Some(i * 7 % 5), |i| (i % 3 != 0).then_some(i * 7 % 5)] {
            let values = values(kind);
            let (buffers, arena_len) = place(&values);
            let total: usize = values.iter().map(|value| value.len).sum();
            assert!(arena_len < total, "memory is used again");
            for i in 0..values.len() {
                assert!(buffers[i].offset.is_multiple_of(ALIGN_FLOATS) && buffers[i].len == values[i].len);
                assert!(buffers[i].offset + buffers[i].len <= arena_len);
                for j in 0..i {
                    let together = values[i].first <= values[j].last && values[j].first <= values[i].last;
                    let apart = buffers[i].offset >= buffers[j].offset + buffers[j].len
                        || buffers[j].offset >= buffers[i].offset + buffers[i].len;
                    assert!(!together || apart, "{i} and {j} overlap");
                }
            }
        }
    }

    #[test]
    fn memory_of_a_kind_holds_whole_values_of_that_kind_alone() {
        let values = values(|i| (i % 3 != 0).then_some(i * 7 % 5));
        let (buffers, _) = place(&values);
        for i in 0..values.len() {
            for j in (0..i).filter(|&j| values[i].kind.is_some() || values[j].kind.is_some()) {
                let apart = buffers[i].offset >= buffers[j].offset + buffers[j].len
                    || buffers[j].offset >= buffers[i].offset + buffers[i].len;
                assert!(apart || values[i].kind == values[j].kind && buffers[i] == buffers[j], "{i} and {j}");
            }
        }
    }
}
