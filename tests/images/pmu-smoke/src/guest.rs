//! The guest: real-mode code that programs the PMU itself, each part ended by VMCALL.
#![expect(unsafe_code, reason = "the guest is assembly, between two labels")]

/// Where the guest's code lies.
pub(crate) const CODE: u64 = 0x1000;
/// Words the guest leaves its results in.
pub(crate) const RESULTS: u64 = 0x3000;
/// Rounds of each of the guest's loops.
pub(crate) const ROUNDS: u64 = 1000;

core::arch::global_asm!(include_str!("guest.s"), rounds = const ROUNDS);

unsafe extern "C" {
    static pmu_smoke_guest: u8;
    static pmu_smoke_guest_end: u8;
}

/// Returns the guest's code.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const pmu_smoke_guest;
    let length = (&raw const pmu_smoke_guest_end).addr() - start.addr();
    // SAFETY: the assembler put `length` bytes between the two labels, in `.rodata`.
    unsafe { core::slice::from_raw_parts(start, length) }
}
