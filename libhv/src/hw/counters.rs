//! The registers of the processor's PMU.
#![expect(unsafe_code, reason = "reads and writes MSRs, and executes RDPMC")]

use super::bare;
use crate::pmu::registers::{CounterIndex, Maker, PmuRegister};

/// Reads a register (RDMSR); 0 where `maker`'s processors have no such register. One that this processor lacks is a panic
/// by #GP, and so is privilege level 3.
#[inline]
pub fn read(register: PmuRegister, maker: Maker) -> u64 {
    // SAFETY: a register of the PMU is read without side effects, or faults.
    register.msr(maker).map_or(0, |msr| unsafe { bare::read_msr(msr) })
}

/// Writes a register (WRMSR); nothing to do where `maker`'s processors have no such register. One that this processor
/// lacks, or a value that it refuses, is a panic by #GP, and so is privilege level 3.
#[inline]
pub fn write(register: PmuRegister, maker: Maker, value: u64) {
    if let Some(msr) = register.msr(maker) {
        // SAFETY: no register of `PmuRegister` holds an address or reaches memory: it changes what is counted, and when
        // the local APIC interrupts, for which every vector has a handler. Otherwise it faults.
        unsafe { bare::write_msr(msr, value) }
    }
}

/// Reads a counter (RDPMC). One that the processor lacks is a panic by #GP.
#[inline]
pub fn read_counter(counter: CounterIndex) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDPMC changes nothing but its two result registers, or faults.
    unsafe {
        core::arch::asm!("rdpmc", in("ecx") counter.ecx(), out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}
