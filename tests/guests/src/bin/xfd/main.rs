//! Asks a processor with AMX for what the manual says of extended feature disable and of tiles in an XSAVE area.
//!
//! Runs straight on the machine: a hypervisor that hides AMX hides what is tested here.
#![no_std]
#![no_main]

mod area;
mod disable;
mod layout;
mod tiles;

use guests::cpu::{cpuid, rdmsr, read_cr4, write_cr4, wrmsr, xsetbv};
use guests::main;
use guests::report::Tests;

/// IA32_XFD
pub(crate) const XFD: u32 = 0x1c4;
/// IA32_XFD_ERR
pub(crate) const XFD_ERR: u32 = 0x1c5;
/// TILECFG's bit in XCR0 and in an XSAVE area.
pub(crate) const TILECFG: u64 = 1 << 17;
/// TILEDATA's bit in XCR0, in an XSAVE area and in IA32_XFD.
pub(crate) const TILEDATA: u64 = 1 << 18;

/// Returns every component that XCR0 may hold.
pub(crate) fn offered() -> u64 {
    let [low, _, _, high] = cpuid(0xd, 0);
    u64::from(high) << 32 | u64::from(low)
}

/// Enables every component, disables none, and leaves no tiles configured and no error reported.
pub(crate) unsafe fn start() {
    xsetbv(0, offered());
    wrmsr(XFD, 0);
    wrmsr(XFD_ERR, 0);
    tiles::release();
}

/// Disables TILEDATA.
pub(crate) unsafe fn disable() {
    wrmsr(XFD, TILEDATA);
}

/// Enables TILEDATA again.
pub(crate) unsafe fn enable() {
    wrmsr(XFD, 0);
}

/// Returns IA32_XFD_ERR and clears it.
pub(crate) unsafe fn take_error() -> u64 {
    let error = rdmsr(XFD_ERR);
    wrmsr(XFD_ERR, 0);
    error
}

unsafe fn run() -> ! {
    let mut tests = Tests::new();
    write_cr4(read_cr4() | 1 << 18);
    layout::run(&mut tests);
    disable::run(&mut tests);
    area::run(&mut tests);
    tests.finish()
}

main!(run);
