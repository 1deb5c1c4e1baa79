//! Windows: the host's views of guest memory, which the guest may change at any moment.
#![expect(unsafe_code, reason = "reads and writes memory that a guest shares")]

use crate::exit::Width;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use x86_64::PhysAddr;

/// Words of 64 bits in a page.
const PAGE_WORDS: usize = 512;

/// Host memory that is a guest's to change: the proof without which nothing is put into nested tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestFrames {
    start: PhysAddr,
    bytes: u64,
}

impl GuestFrames {
    /// Returns the host-physical address of the first byte.
    pub fn start(self) -> PhysAddr {
        self.start
    }
    /// Returns the number of bytes.
    pub fn bytes(self) -> u64 {
        self.bytes
    }
    /// Returns a part of it: `bytes` bytes from `offset` on, if it has them.
    pub fn part(self, offset: u64, bytes: u64) -> Option<Self> {
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes).then(|| Self { start: PhysAddr::new_truncate(self.start.as_u64() + offset), bytes })
    }
    /// Makes a claim that only tables no processor walks may rely on.
    #[cfg(test)]
    pub(crate) fn for_tests(start: PhysAddr, bytes: u64) -> Self {
        Self { start, bytes }
    }
}

/// A view of `bytes` bytes that a guest shares.
///
/// Every access is atomic word by word, so that a guest that writes at the same moment gives a stale or a new value
/// and never undefined behaviour.
#[derive(Debug)]
pub struct Window {
    base: NonNull<u8>,
    bytes: usize,
    host: Option<PhysAddr>,
}

// SAFETY: every access through a window is atomic, see the type.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Makes a window.
    ///
    /// # Safety
    /// `base` points to `bytes` bytes, aligned to 8 and a multiple of 8, mapped writable for as long as the window lives, and no Rust
    /// reference to them exists; whoever else uses them (a guest) does so by the processor's own memory accesses. They
    /// lie at `host`, contiguous in physical memory, and are given to the guest for good: even when the window is gone,
    /// they serve nobody else while a processor may walk nested tables that map them.
    pub unsafe fn new(base: NonNull<u8>, bytes: usize, host: PhysAddr) -> Self {
        Self { base, bytes, host: Some(host) }
    }

    /// Returns the host memory behind the window; `None` for one that no processor may be given.
    pub fn frames(&self) -> Option<GuestFrames> {
        self.host.map(|start| GuestFrames { start, bytes: self.bytes as u64 })
    }

    /// Makes a window onto fresh zeroed memory of its own, which lives for ever: for host tests and `sim`.
    pub fn leaked(bytes: usize) -> Self {
        let words = alloc::vec![0u64; bytes.div_ceil(8)].leak();
        Self { base: NonNull::from(words).cast(), bytes, host: None }
    }

    /// Makes two windows as [`leaked`](Self::leaked) does, onto the same memory: one for the host and one for a
    /// simulated processor.
    pub fn leaked_pair(bytes: usize) -> (Self, Self) {
        let one = Self::leaked(bytes);
        let other = Self { base: one.base, bytes, host: None };
        (one, other)
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes
    }
    /// Returns whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns a pointer to `length` bytes at `offset`, if the window has them.
    #[inline]
    fn at(&self, offset: usize, length: usize) -> Option<*mut u8> {
        let end = offset.checked_add(length)?;
        // `wrapping_add` stays inside the window: `end` is at most `bytes`.
        (end <= self.bytes).then(|| self.base.as_ptr().wrapping_add(offset))
    }

    /// Reads bytes; `None` when the window does not have them all.
    #[inline]
    #[must_use]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        let from = self.at(offset, into.len())?;
        copy(from, into.as_mut_ptr(), into.len());
        Some(())
    }

    /// Writes bytes; `None`, and nothing written, when the window does not have them all.
    #[inline]
    #[must_use]
    pub(super) fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let into = self.at(offset, from.len())?;
        copy(from.as_ptr(), into, from.len());
        Some(())
    }

    /// Reads a number of `width` bytes; in one access where it is aligned, else byte by byte.
    #[inline]
    #[must_use]
    pub fn read_number(&self, offset: usize, width: Width) -> Option<u64> {
        let from = self.at(offset, width.bytes())?;
        if !(from as usize).is_multiple_of(width.bytes()) {
            let mut bytes = [0; 8];
            copy(from, bytes.as_mut_ptr(), width.bytes());
            return Some(u64::from_le_bytes(bytes));
        }
        Some(match width {
            // SAFETY: in the window (`at`), aligned (above), shared by atomic accesses alone.
            Width::Byte => unsafe { AtomicU8::from_ptr(from) }.load(Ordering::Relaxed).into(),
            // SAFETY: as above.
            Width::Word => unsafe { AtomicU16::from_ptr(from.cast()) }.load(Ordering::Relaxed).into(),
            // SAFETY: as above.
            Width::Dword => unsafe { AtomicU32::from_ptr(from.cast()) }.load(Ordering::Relaxed).into(),
            // SAFETY: as above.
            Width::Qword => unsafe { AtomicU64::from_ptr(from.cast()) }.load(Ordering::Relaxed),
        })
    }

    /// Reads the aligned word of 64 bits that holds the byte at `offset`, in one access.
    #[inline]
    #[must_use]
    pub fn word(&self, offset: usize) -> Option<u64> {
        if offset >= self.bytes {
            return None;
        }
        let from = self.base.cast::<u64>().as_ptr().wrapping_add(offset / 8);
        // SAFETY: the base is aligned to 8 and the memory a multiple of 8 bytes (`new`), so that the whole word is in
        // it where one byte is; shared by atomic accesses alone.
        Some(unsafe { AtomicU64::from_ptr(from) }.load(Ordering::Relaxed))
    }

    /// Writes a number of `width` bytes; in one access where it is aligned, else byte by byte.
    #[inline]
    #[must_use]
    pub(super) fn write_number(&self, offset: usize, width: Width, value: u64) -> Option<()> {
        let into = self.at(offset, width.bytes())?;
        if !(into as usize).is_multiple_of(width.bytes()) {
            copy(value.to_le_bytes().as_ptr(), into, width.bytes());
            return Some(());
        }
        match width {
            // SAFETY: in the window (`at`), aligned (above), shared by atomic accesses alone.
            Width::Byte => unsafe { AtomicU8::from_ptr(into) }.store(value as u8, Ordering::Relaxed),
            // SAFETY: as above.
            Width::Word => unsafe { AtomicU16::from_ptr(into.cast()) }.store(value as u16, Ordering::Relaxed),
            // SAFETY: as above.
            Width::Dword => unsafe { AtomicU32::from_ptr(into.cast()) }.store(value as u32, Ordering::Relaxed),
            // SAFETY: as above.
            Width::Qword => unsafe { AtomicU64::from_ptr(into.cast()) }.store(value, Ordering::Relaxed),
        }
        Some(())
    }

    /// Returns the page at `offset`; `None` where none begins there, or the window does not have all of it.
    #[inline(always)]
    pub(super) fn page(&self, offset: usize) -> Option<PageWords<'_>> {
        if !offset.is_multiple_of(PAGE_WORDS * 8) {
            return None;
        }
        let words = self.at(offset, PAGE_WORDS * 8)?.cast();
        Some(PageWords { words, window: PhantomData })
    }

    /// Exchanges a number if it still is `current`: `Some(Ok)` when it was, `Some(Err)` with what it is when not, and
    /// `None` when it is outside the window or not aligned to its width.
    #[inline]
    #[must_use]
    pub(super) fn compare_exchange(
        &self,
        offset: usize,
        width: Width,
        current: u64,
        new: u64,
    ) -> Option<Result<u64, u64>> {
        let at = self.at(offset, width.bytes())?;
        if !(at as usize).is_multiple_of(width.bytes()) {
            return None;
        }
        macro_rules! exchange {
            ($atomic:ty, $number:ty) => {{
                // SAFETY: in the window (`at`), aligned (above), shared by atomic accesses alone.
                let cell = unsafe { <$atomic>::from_ptr(at.cast()) };
                cell.compare_exchange(current as $number, new as $number, Ordering::SeqCst, Ordering::SeqCst)
                    .map(u64::from)
                    .map_err(u64::from)
            }};
        }
        Some(match width {
            Width::Byte => exchange!(AtomicU8, u8),
            Width::Word => exchange!(AtomicU16, u16),
            Width::Dword => exchange!(AtomicU32, u32),
            Width::Qword => exchange!(AtomicU64, u64),
        })
    }
}

/// A page of a window, to write its words.
#[derive(Debug)]
pub struct PageWords<'a> {
    /// The first of [`PAGE_WORDS`], all of them in the window.
    words: *mut u64,
    window: PhantomData<&'a Window>,
}

impl PageWords<'_> {
    /// Writes a word by its number, of which nine bits count. Whoever sees it sees what was written before it.
    #[inline(always)]
    pub fn set(&self, number: usize, value: u64) {
        let word = self.words.wrapping_add(number % PAGE_WORDS);
        // SAFETY: the whole page is in the window, whose base is aligned to 8 (`Window::new`) as is the page's offset
        // (`Window::page`); the window is borrowed; shared by atomic accesses alone.
        unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release);
    }
}

/// Copies bytes to or from memory that a guest shares, with one instruction that the compiler knows nothing about.
#[inline]
fn copy(from: *const u8, into: *mut u8, bytes: usize) {
    // SAFETY: both callers' ranges are valid for `bytes` bytes, and one of them is a local slice that the window does
    // not overlap. The direction flag is clear (System V ABI).
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
}
