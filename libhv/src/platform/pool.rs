//! The pool of frames: which 4 KiB frames of the 2 MiB chunks the hypervisor keeps are in use. Bookkeeping only.

use super::ranges::{LARGE_PAGE, Range};
use crate::address::PAGE_SIZE;
use bit_field::BitArray;

/// Frames in a chunk.
pub(crate) const CHUNK_FRAMES: usize = (LARGE_PAGE / PAGE_SIZE) as usize;
/// Chunks at most: 256 MiB of frames.
const CHUNKS: usize = 128;

#[derive(Clone, Copy, Debug)]
struct Chunk {
    base: u64,
    used: [u64; CHUNK_FRAMES / 64],
}

/// Chunks of 2 MiB, aligned to their size, and a bit for each of their frames.
#[derive(Debug)]
pub(crate) struct Pool {
    chunks: [Chunk; CHUNKS],
    count: usize,
    free: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// Makes a pool without a frame.
    pub(crate) const fn new() -> Self {
        Self { chunks: [Chunk { base: 0, used: [0; CHUNK_FRAMES / 64] }; CHUNKS], count: 0, free: 0 }
    }

    /// Returns the number of frames that are free.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// Returns the bytes in all chunks.
    pub(crate) fn bytes(&self) -> u64 {
        self.count as u64 * LARGE_PAGE
    }

    /// Returns whether [`add`](Self::add) would take another chunk.
    pub(crate) fn has_room(&self) -> bool {
        self.count < CHUNKS
    }

    /// Adds the chunk at the physical address `base`, a multiple of 2 MiB; returns whether there was room for it.
    pub(crate) fn add(&mut self, base: u64) -> bool {
        let Some(chunk) = self.chunks.get_mut(self.count) else { return false };
        *chunk = Chunk { base, used: [0; CHUNK_FRAMES / 64] };
        self.count += 1;
        self.free += CHUNK_FRAMES;
        true
    }

    /// Takes `frames` contiguous frames of one chunk and returns their range; `None` when no chunk has them.
    pub(crate) fn allocate(&mut self, frames: usize) -> Option<Range> {
        if frames == 0 || frames > CHUNK_FRAMES || frames > self.free {
            return None;
        }
        for chunk in &mut self.chunks[..self.count] {
            if let Some(first) = chunk.run(frames) {
                chunk.mark(first, frames, true);
                self.free -= frames;
                return Some(Range::new(chunk.base + first as u64 * PAGE_SIZE, frames as u64 * PAGE_SIZE));
            }
        }
        None
    }

    /// Puts the frames of `range` back. Frames that are not the pool's, or are free, are left alone.
    pub(crate) fn release(&mut self, range: Range) {
        let chunks = self.chunks[..self.count].iter_mut();
        for chunk in chunks.filter(|chunk| Range::new(chunk.base, LARGE_PAGE).overlaps(range)) {
            let first = (range.start.max(chunk.base) - chunk.base).div_ceil(PAGE_SIZE) as usize;
            let last = ((range.end.min(chunk.base + LARGE_PAGE) - chunk.base) / PAGE_SIZE) as usize;
            for frame in first..last {
                if chunk.used.get_bit(frame) {
                    chunk.used.set_bit(frame, false);
                    self.free += 1;
                }
            }
        }
    }
}

impl Chunk {
    /// Returns the first frame of the first `frames` free ones in a row.
    fn run(&self, frames: usize) -> Option<usize> {
        let (mut first, mut at) = (0, 0);
        while at < CHUNK_FRAMES {
            if at.is_multiple_of(64) && self.used[at / 64] == u64::MAX {
                at += 64;
                first = at;
                continue;
            }
            if self.used.get_bit(at) {
                first = at + 1;
            } else if at + 1 - first == frames {
                return Some(first);
            }
            at += 1;
        }
        None
    }

    fn mark(&mut self, first: usize, frames: usize, used: bool) {
        for frame in first..first + frames {
            self.used.set_bit(frame, used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn no_frame_is_given_twice_and_none_is_lost(sizes in proptest::collection::vec(1usize..200, 1..40), order: u64) {
            let mut pool = Pool::new();
            prop_assert!(pool.add(0x20_0000) && pool.add(0x80_0000));
            let mut held: Vec<Range> = Vec::new();
            for (step, &frames) in sizes.iter().enumerate() {
                if let Some(range) = pool.allocate(frames) {
                    prop_assert_eq!(range.bytes(), frames as u64 * PAGE_SIZE);
                    prop_assert!(held.iter().all(|other| !other.overlaps(range)));
                    let chunk = range.start & !(LARGE_PAGE - 1);
                    prop_assert!((chunk == 0x20_0000 || chunk == 0x80_0000) && range.end <= chunk + LARGE_PAGE);
                    held.push(range);
                }
                if order >> (step % 64) & 1 != 0 && !held.is_empty() {
                    pool.release(held.swap_remove(step % held.len()));
                }
                let frames: BTreeSet<u64> = held.iter().flat_map(|range| (range.start..range.end).step_by(4096)).collect();
                prop_assert_eq!(pool.free(), 2 * CHUNK_FRAMES - frames.len());
            }
            for range in held { pool.release(range); }
            prop_assert!(pool.allocate(CHUNK_FRAMES).is_some() && pool.allocate(CHUNK_FRAMES).is_some());
            prop_assert!(pool.allocate(1).is_none());
        }
    }

    #[test]
    fn releasing_twice_or_foreign_memory_changes_nothing() {
        let mut pool = Pool::new();
        assert!(pool.add(LARGE_PAGE));
        let range = pool.allocate(3).expect("512 are free");
        for _ in 0..2 {
            pool.release(range);
            pool.release(Range::new(0, LARGE_PAGE));
            assert_eq!(pool.free(), CHUNK_FRAMES);
        }
    }
}
