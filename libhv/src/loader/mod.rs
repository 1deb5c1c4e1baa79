//! Loaders: an image and a memory map in, entry state out.
//!
//! Every loader first finds a place for each part of the guest and only then writes, so that a guest whose image is
//! refused has not been touched.

mod bytes;
mod elf;
mod flat;
mod linux;
mod long_mode;
mod map;
mod multiboot;
mod pvh;

pub use map::{Entry, FOUR_GIB, HIGH_MEMORY, LOW_MEMORY_END, MemoryMap, Use};

use crate::address::Gpa;
use crate::error::{ImageError, Result};
use crate::memory::GuestMemory;
use crate::registers::EntryState;
use core::ops::Range;

/// The kind of an image, which says how it is loaded and entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A Linux bzImage with a 64-bit entry point (x86 boot protocol 2.12 or later).
    Linux,
    /// A Multiboot 1 kernel.
    Multiboot,
    /// An ELF file with a PVH entry point.
    Pvh,
    /// Bytes that run in real mode from their first one on.
    FlatReal {
        /// CS; the image is loaded at `segment` x 16 + `offset`.
        segment: u16,
        /// IP
        offset: u16,
    },
    /// Bytes that run in 64-bit mode from their first one on, with the first 4 GiB mapped one to one.
    FlatLong {
        /// Where they are loaded and entered, below 4 GiB.
        address: Gpa,
    },
}

/// A file that is handed to the guest beside its kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Module<'a> {
    /// Its content.
    pub bytes: &'a [u8],
    /// The text that goes with it (Multiboot and PVH). It ends before its first NUL.
    pub command_line: &'a [u8],
}

/// What a guest is given beside its image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The kind of image; `None` finds out, see [`detect`].
    pub kind: Option<Kind>,
    /// The kernel's command line. It ends before its first NUL.
    pub command_line: &'a [u8],
    /// Files for the guest. For Linux they are concatenated to one initrd, each padded to 4 bytes.
    pub modules: &'a [Module<'a>],
    /// The address of the ACPI root system description pointer.
    pub rsdp: Option<Gpa>,
    /// Guest-physical addresses that the guest's operating system must not use as memory: tables, holes, devices. The
    /// area from 9FC00H to 1 MiB always is one.
    pub reserved: &'a [Range<u64>],
}

/// Returns the kind of `image` where its first bytes show one; flat binaries do not.
///
/// An ELF file that is both a Multiboot 1 and a PVH kernel is taken as the former.
pub fn detect(image: &[u8]) -> Option<Kind> {
    if linux::matches(image) {
        Some(Kind::Linux)
    } else if multiboot::matches(image) {
        Some(Kind::Multiboot)
    } else if pvh::matches(image) {
        Some(Kind::Pvh)
    } else {
        None
    }
}

/// Places `image` in `memory` and returns the registers it starts with.
///
/// # Errors
/// [`Error::Image`](crate::Error::Image) or [`Error::CommandLineTooLong`](crate::Error::CommandLineTooLong); nothing
/// has been written then.
pub fn load(image: &[u8], memory: &mut GuestMemory, options: &Options<'_>) -> Result<EntryState> {
    match options.kind.or_else(|| detect(image)) {
        Some(Kind::Linux) => linux::load(image, memory, options),
        Some(Kind::Multiboot) => multiboot::load(image, memory, options),
        Some(Kind::Pvh) => pvh::load(image, memory, options),
        Some(Kind::FlatReal { segment, offset }) => flat::load_real(image, memory, options, segment, offset),
        Some(Kind::FlatLong { address }) => flat::load_long(image, memory, options, address),
        None => Err(ImageError::NotThisKind("a bzImage, a Multiboot 1 kernel or an ELF file with a PVH entry").into()),
    }
}

/// Returns the part of `text` before its first NUL.
fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or(text)
}
