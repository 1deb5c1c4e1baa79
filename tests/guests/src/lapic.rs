//! The local APIC, through its page (xAPIC) or through MSRs (x2APIC).

use crate::cpu::{cpuid, load32, rdmsr, store32, wrmsr};

/// Address of the xAPIC page.
pub const PAGE: u64 = 0xfee0_0000;
/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;
const ENABLE: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;

/// Register offsets in the page; x2APIC's MSR is 800H plus a sixteenth.
#[expect(missing_docs, reason = "the names are the manual's (SDM Vol. 3A Table 12-1)")]
pub mod register {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PMC: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL: u32 = 0x380;
    pub const CURRENT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}
use register::*;

/// Mask bit of every LVT entry.
pub const MASKED: u32 = 1 << 16;
/// An LVT entry that raises nothing.
pub const SILENT: u32 = MASKED | 0xfe;
/// Periodic mode of the timer's LVT entry.
pub const PERIODIC: u32 = 1 << 17;
/// TSC-deadline mode of the timer's LVT entry.
pub const DEADLINE: u32 = 2 << 17;
/// IA32_TSC_DEADLINE.
pub const DEADLINE_MSR: u32 = 0x6e0;

/// Returns whether the processor has x2APIC mode.
pub fn has_x2apic() -> bool {
    cpuid(1, 0)[2] & 1 << 21 != 0
}

/// Returns whether the timer has TSC-deadline mode.
pub fn has_deadline() -> bool {
    cpuid(1, 0)[2] & 1 << 24 != 0
}

/// Returns whether x2APIC mode is on.
pub unsafe fn is_x2apic() -> bool {
    rdmsr(BASE_MSR) & EXTENDED != 0
}

/// Reads a register by the way that is on.
pub unsafe fn read(register: u32) -> u32 {
    if is_x2apic() { rdmsr(0x800 + (register >> 4)) as u32 } else { load32(PAGE + u64::from(register)) }
}

/// Writes a register by the way that is on.
pub unsafe fn write(register: u32, value: u32) {
    if is_x2apic() {
        wrmsr(0x800 + (register >> 4), u64::from(value));
    } else {
        store32(PAGE + u64::from(register), value);
    }
}

/// Returns this processor's APIC ID.
pub unsafe fn id() -> u32 {
    if is_x2apic() { read(ID) } else { read(ID) >> 24 }
}

/// Writes ICR: `low` with destination `to`.
pub unsafe fn send(to: u32, low: u32) {
    if is_x2apic() {
        wrmsr(0x830, u64::from(to) << 32 | u64::from(low));
    } else {
        write(ICR_HIGH, to << 24);
        write(ICR, low);
    }
}

/// Sends `vector` to this processor by ICR's shorthand.
pub unsafe fn send_self(vector: u8) {
    send(0, 0x4_4000 | u32::from(vector));
}

/// Ends the interrupt of highest priority in service.
pub unsafe fn end() {
    write(EOI, 0);
}

/// Returns bit `vector` of the 256-bit register that starts at `register` (IRR, ISR, TMR).
pub unsafe fn bit(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector / 32) * 0x10) >> (vector % 32) & 1 != 0
}

/// Enables the local APIC by software with spurious vector FFH and every LVT entry masked. From x2APIC mode it gets to
/// xAPIC mode through the disabled state, which not every processor leaves again (SDM Vol. 3A 12.4.3): so guests do what
/// needs xAPIC mode first.
pub unsafe fn enter_xapic() {
    let base = rdmsr(BASE_MSR) & !(ENABLE | EXTENDED);
    if is_x2apic() {
        wrmsr(BASE_MSR, base);
    }
    wrmsr(BASE_MSR, base | ENABLE);
    prepare();
    // Flat model, this processor at bit 0.
    write(DFR, 0xffff_ffff);
    write(LDR, 1 << 24);
}

/// Enables the local APIC in x2APIC mode, with spurious vector FFH and every LVT entry masked.
pub unsafe fn enter_x2apic() {
    wrmsr(BASE_MSR, rdmsr(BASE_MSR) | EXTENDED | ENABLE);
    prepare();
}

unsafe fn prepare() {
    write(SVR, 0x1ff);
    for entry in [LVT_TIMER, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR] {
        write(entry, SILENT);
    }
    write(TPR, 0);
    write(DIVIDE, 0xb);
    write(INITIAL, 0);
}
