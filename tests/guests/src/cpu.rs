//! Privileged instructions, one function each.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

/// Executes OUT with a byte.
pub unsafe fn out8(port: u16, value: u8) {
    asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
}

/// Executes OUT with a word.
pub unsafe fn out16(port: u16, value: u16) {
    asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags));
}

/// Executes OUT with a doubleword.
pub unsafe fn out32(port: u16, value: u32) {
    asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags));
}

/// Executes IN of a byte.
pub unsafe fn in8(port: u16) -> u8 {
    let value;
    asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    value
}

/// Executes IN of a word.
pub unsafe fn in16(port: u16) -> u16 {
    let value;
    asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags));
    value
}

/// Executes IN of a doubleword.
pub unsafe fn in32(port: u16) -> u32 {
    let value;
    asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags));
    value
}

/// Executes RDMSR.
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack));
    u64::from(high) << 32 | u64::from(low)
}

/// Executes WRMSR.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
}

/// Executes RDPMC.
pub unsafe fn rdpmc(index: u32) -> u64 {
    let (low, high): (u32, u32);
    asm!("rdpmc", in("ecx") index, out("eax") low, out("edx") high, options(nostack));
    u64::from(high) << 32 | u64::from(low)
}

/// Executes RDTSC.
pub unsafe fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    asm!("rdtsc", out("eax") low, out("edx") high, options(nostack));
    u64::from(high) << 32 | u64::from(low)
}

/// Executes CPUID and returns EAX, EBX, ECX and EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let found = __cpuid_count(leaf, subleaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// Returns whether the processor is Intel's by name, the one vendor whose hypercall is VMCALL.
pub fn is_intel() -> bool {
    cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu")
}

/// Executes a loop of two instructions `turns` times, which is not 0.
#[inline]
pub unsafe fn spin(turns: u64) {
    asm!("2: dec {0}", "jnz 2b", inout(reg) turns => _, options(nomem, nostack));
}

/// Sets RFLAGS.IF.
pub unsafe fn sti() {
    asm!("sti", options(nostack));
}

/// Clears RFLAGS.IF.
pub unsafe fn cli() {
    asm!("cli", options(nostack));
}

/// Sets RFLAGS.IF, halts until an interrupt has been served, and clears IF again.
pub unsafe fn wait() {
    asm!("sti", "hlt", "cli", options(nostack));
}

/// Lets pending interrupts in for a moment.
pub unsafe fn breathe() {
    asm!("sti", "nop", "nop", "cli", options(nostack));
}

/// Lets interrupts in until `done` or until about half a second of most machines has gone by; returns `done`'s answer.
pub unsafe fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = rdtsc();
    while !done() {
        if rdtsc().wrapping_sub(start) > 1_000_000_000 {
            return false;
        }
        for _ in 0..20 {
            asm!("sti", "nop", "pause", "cli", options(nostack));
        }
    }
    true
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        pub unsafe fn $read() -> u64 {
            let value;
            asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack));
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        pub unsafe fn $write(value: u64) {
            asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack));
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr2, write_cr2, "cr2");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_cr8, write_cr8, "cr8");
control_register!(read_dr0, write_dr0, "dr0");
control_register!(read_dr3, write_dr3, "dr3");
control_register!(read_dr6, write_dr6, "dr6");
control_register!(read_dr7, write_dr7, "dr7");

/// Executes XGETBV of XCR0.
pub unsafe fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack));
    u64::from(high) << 32 | u64::from(low)
}

/// Executes XSETBV.
pub unsafe fn xsetbv(index: u32, value: u64) {
    asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
}

/// Reads a doubleword of device memory.
pub unsafe fn load32(address: u64) -> u32 {
    let value;
    asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    value
}

/// Writes a doubleword of device memory.
pub unsafe fn store32(address: u64, value: u32) {
    asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags));
}
