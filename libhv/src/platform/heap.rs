//! The heap of the bare machine: grows by 2 MiB at a time.
#![expect(unsafe_code, reason = "gives the allocator its memory")]

use super::memory;
use core::alloc::Layout;
use core::ptr::NonNull;
use hermit_sync::RawSpinMutex;
use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

#[global_allocator]
static HEAP: TalcLock<RawSpinMutex, Grow> = TalcLock::new(Grow { end: None });

/// Gets memory from the host when the heap has none left.
#[derive(Debug)]
struct Grow {
    end: Option<NonNull<u8>>,
}

// SAFETY: the heap's lock is free for its own purposes here: `memory` never allocates.
unsafe impl Send for Grow {}

// SAFETY: `memory::grow_heap` does not allocate, and `Ok` is returned only where there is more memory than before.
unsafe impl Source for Grow {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // The allocator's own bookkeeping fits in a page.
        let bytes = layout.size().checked_add(layout.align()).and_then(|bytes| bytes.checked_add(4096)).ok_or(())?;
        let range = memory::grow_heap(bytes as u64).ok_or(())?;
        let (start, end) = (range.start as *mut u8, range.end as *mut u8);
        talc.source.end = match talc.source.end {
            // SAFETY: the memory up to `end` is mapped right behind the heap, for ever, and nobody else has it.
            Some(old) => Some(unsafe { talc.extend(old, end) }),
            // SAFETY: the memory is mapped for ever, and nobody else has it.
            None => unsafe { talc.claim(start, range.bytes() as usize) },
        };
        talc.source.end.map(|_| ()).ok_or(())
    }
}
