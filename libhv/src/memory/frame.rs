//! Frames: page-aligned host memory with a known physical address, for control structures and tables.
#![expect(unsafe_code, reason = "turns frames into references: one place for every structure the processor reads")]

use crate::address::PAGE_SIZE;
use alloc::vec::Vec;
use core::ptr::NonNull;
use x86_64::PhysAddr;

/// Words of 64 bits in a frame.
pub const WORDS: usize = (PAGE_SIZE / 8) as usize;

/// Contiguous frames that belong to whoever holds the value.
///
/// Dropping it does not give the memory back: the processor may still read it. [`FrameSource::release`] does.
#[derive(Debug)]
pub struct Frames {
    physical: PhysAddr,
    words: NonNull<u64>,
    count: usize,
}

// SAFETY: `Frames` owns its memory, as a `Box` does; nothing in it is tied to a thread.
unsafe impl Send for Frames {}

impl Frames {
    /// Makes the owner of `count` frames.
    ///
    /// # Safety
    /// `words` points to `count` times 4096 bytes, aligned to 4096, initialised, writable, mapped for as long as the
    /// value lives and used by nobody else; they lie at `physical`, contiguous in physical memory.
    pub unsafe fn new(physical: PhysAddr, words: NonNull<u64>, count: usize) -> Self {
        Self { physical, words, count }
    }

    /// Returns the physical address of the first frame.
    pub fn physical(&self) -> PhysAddr {
        self.physical
    }
    /// Returns the number of frames.
    pub fn count(&self) -> usize {
        self.count
    }
    /// Returns the memory as 64-bit words.
    #[inline]
    pub fn words(&self) -> &[u64] {
        // SAFETY: `new`'s caller vouched for the memory, and the shared borrow of `self` covers the slice.
        unsafe { core::slice::from_raw_parts(self.words.as_ptr(), self.count * WORDS) }
    }
    /// Returns the memory as 64-bit words.
    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: `new`'s caller vouched for the memory, and the exclusive borrow of `self` covers the slice.
        unsafe { core::slice::from_raw_parts_mut(self.words.as_ptr(), self.count * WORDS) }
    }
    /// Returns where the memory is in the host's address space, for structures the processor changes under way.
    #[inline]
    pub fn as_ptr(&self) -> NonNull<u64> {
        self.words
    }
}

/// Gives frames to the structures that need them.
///
/// # Safety
/// `allocate` returns frames as [`Frames::new`] requires them, filled with zeros.
pub unsafe trait FrameSource {
    /// Returns `count` contiguous frames of zeros, or `None` when there are none left.
    fn allocate(&mut self, count: usize) -> Option<Frames>;
    /// Takes frames back. No processor reads them any more.
    fn release(&mut self, frames: Frames);
}

/// Single frames that are kept by for later.
#[derive(Debug, Default)]
pub struct Spare(Vec<Frames>);

impl Spare {
    /// Takes frames from `source` until there are `count`; returns whether there are.
    pub fn fill(&mut self, source: &mut impl FrameSource, count: usize) -> bool {
        while self.0.len() < count {
            match source.allocate(1) {
                Some(frame) => self.0.push(frame),
                None => return false,
            }
        }
        true
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: what `allocate` returns came from another source as a single frame of zeros, or was zeroed in `release`.
unsafe impl FrameSource for Spare {
    fn allocate(&mut self, count: usize) -> Option<Frames> {
        if count == 1 { self.0.pop() } else { None }
    }

    /// Keeps a single frame; more than one are never given out.
    fn release(&mut self, mut frames: Frames) {
        if frames.count() == 1 {
            frames.words_mut().fill(0);
            self.0.push(frames);
        }
    }
}

/// Frames from the heap whose "physical" address is their address: for host tests and `sim`.
#[derive(Debug, Default)]
pub struct HeapFrames;

// SAFETY: a fresh zeroed allocation with page alignment is what `Frames::new` asks for.
unsafe impl FrameSource for HeapFrames {
    fn allocate(&mut self, count: usize) -> Option<Frames> {
        let bytes = count.checked_mul(PAGE_SIZE as usize).filter(|&bytes| bytes > 0)?;
        let layout = core::alloc::Layout::from_size_align(bytes, PAGE_SIZE as usize).ok()?;
        // SAFETY: the layout has a size above 0.
        let memory = unsafe { alloc::alloc::alloc_zeroed(layout) };
        let words = NonNull::new(memory.cast::<u64>())?;
        let physical = PhysAddr::try_new(words.as_ptr() as u64).ok()?;
        // SAFETY: zeroed, aligned and exclusively ours, see above.
        Some(unsafe { Frames::new(physical, words, count) })
    }

    fn release(&mut self, frames: Frames) {
        let bytes = frames.count * PAGE_SIZE as usize;
        if let Ok(layout) = core::alloc::Layout::from_size_align(bytes, PAGE_SIZE as usize) {
            // SAFETY: allocated in `allocate` with this very layout; `frames` was the only owner.
            unsafe { alloc::alloc::dealloc(frames.words.as_ptr().cast(), layout) }
        }
    }
}
