//! The guest: from real mode to 64-bit mode, one thing after the other, each announced by what leaves the guest.
#![expect(unsafe_code, reason = "the guest is assembly, between two labels")]

/// Where the guest's code lies, and what `guest.s` computes its addresses from.
pub(crate) const CODE: u64 = 0x1000;
/// Words the guest leaves its results in.
pub(crate) const RESULTS: u64 = 0x3000;
/// The guest's page tables: one of each level, then the page directory with one 2 MiB page.
pub(crate) const TABLES: [u64; 3] = [0x4000, 0x5000, 0x6000];
/// A page that may not be written until an event has been pushed onto it.
pub(crate) const STACK: u64 = 0x8000;
/// A page that is never mapped: a device.
pub(crate) const DEVICE: u64 = 0x10_0000;
/// Round trips in the guest's loop.
pub(crate) const ROUNDS: u64 = 64;

core::arch::global_asm!(include_str!("guest.s"), rounds = const ROUNDS);

unsafe extern "C" {
    static vmx_smoke_guest: u8;
    static vmx_smoke_guest_end: u8;
}

/// Returns the guest's code.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const vmx_smoke_guest;
    let length = (&raw const vmx_smoke_guest_end).addr() - start.addr();
    // SAFETY: the assembler put `length` bytes between the two labels, in `.rodata`.
    unsafe { core::slice::from_raw_parts(start, length) }
}
