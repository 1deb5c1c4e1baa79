//! The guest's vector registers and PKRU, in the processor: the host is soft-float and never touches them otherwise.
//!
//! The host keeps CR4.OSFXSR set and CR0.TS and CR0.EM clear; else these functions end in #UD or #NM of the host.
//! AVX and PKRU are used only where CPUID says that the host has enabled them. None of them is inlined: the scan of the
//! object code tells them by their symbols.
#![expect(unsafe_code, reason = "moves vector registers by their names")]

use core::arch::asm;

/// CPUID.01H:ECX.OSXSAVE, which is CR4.OSXSAVE, and CPUID.01H:ECX.AVX.
const OSXSAVE_AND_AVX: u32 = 1 << 27 | 1 << 28;
/// CPUID.(EAX=07H,ECX=0):ECX.OSPKE, which is CR4.PKE.
const OSPKE: u32 = 1 << 4;
/// XCR0.SSE and XCR0.AVX.
const SSE_AND_AVX: u32 = 0b110;

/// Executes an instruction that writes an XMM or YMM register from memory. Where the compiler itself uses vector
/// registers it has to know of it, and then the value does not last: such a host has no guest's registers to keep.
#[cfg(target_feature = "sse")]
macro_rules! write_register {
    ($text:expr, $register:tt, $from:expr) => {
        asm!($text, in(reg) $from, out($register) _, options(nostack, preserves_flags, readonly))
    };
}
#[cfg(not(target_feature = "sse"))]
macro_rules! write_register {
    ($text:expr, $register:tt, $from:expr) => {
        asm!($text, in(reg) $from, options(nostack, preserves_flags, readonly))
    };
}

/// Picks an instruction by the low four bits of a register's number.
macro_rules! by_number {
    ($number:expr, $each:ident) => {
        match $number & 15 {
            0 => $each!("xmm0", "ymm0"),
            1 => $each!("xmm1", "ymm1"),
            2 => $each!("xmm2", "ymm2"),
            3 => $each!("xmm3", "ymm3"),
            4 => $each!("xmm4", "ymm4"),
            5 => $each!("xmm5", "ymm5"),
            6 => $each!("xmm6", "ymm6"),
            7 => $each!("xmm7", "ymm7"),
            8 => $each!("xmm8", "ymm8"),
            9 => $each!("xmm9", "ymm9"),
            10 => $each!("xmm10", "ymm10"),
            11 => $each!("xmm11", "ymm11"),
            12 => $each!("xmm12", "ymm12"),
            13 => $each!("xmm13", "ymm13"),
            14 => $each!("xmm14", "ymm14"),
            _ => $each!("xmm15", "ymm15"),
        }
    };
}

/// Returns whether AVX instructions can be executed: the processor has them, and CR4.OSXSAVE and XCR0, which is the
/// guest's own, enable them.
pub fn avx() -> bool {
    if raw_cpuid::cpuid!(1).ecx & OSXSAVE_AND_AVX != OSXSAVE_AND_AVX {
        return false;
    }
    let low: u32;
    // SAFETY: CR4.OSXSAVE is set, as CPUID has just said, so XGETBV of XCR0 exists; it changes no memory.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low & SSE_AND_AVX == SSE_AND_AVX
}

/// Returns bits 127:0 of register `number`, of which the low four bits count.
#[inline(never)]
pub fn xmm(number: u8) -> [u64; 2] {
    let mut value = [0u64; 2];
    let into = value.as_mut_ptr();
    macro_rules! read {
        ($xmm:tt, $ymm:tt) => {
            // SAFETY: MOVUPS writes 16 bytes to `value`, whatever its alignment.
            unsafe { asm!(concat!("movups [{}], ", $xmm), in(reg) into, options(nostack, preserves_flags)) }
        };
    }
    by_number!(number, read);
    value
}

/// Returns bits 255:0 of register `number`, of which the low four bits count; without AVX bits 255:128 are 0.
#[inline(never)]
pub fn ymm(number: u8) -> [u64; 4] {
    if !avx() {
        let [low, high] = xmm(number);
        return [low, high, 0, 0];
    }
    let mut value = [0u64; 4];
    let into = value.as_mut_ptr();
    macro_rules! read {
        ($xmm:tt, $ymm:tt) => {
            // SAFETY: AVX is enabled (`avx`); VMOVUPS writes 32 bytes to `value`, whatever its alignment.
            unsafe { asm!(concat!("vmovups [{}], ", $ymm), in(reg) into, options(nostack, preserves_flags)) }
        };
    }
    by_number!(number, read);
    value
}

/// Sets bits 127:0 of register `number`, of which the low four bits count, and leaves the others.
#[inline(never)]
pub fn set_xmm(number: u8, value: [u64; 2]) {
    let from = value.as_ptr();
    macro_rules! write {
        ($xmm:tt, $ymm:tt) => {
            // SAFETY: MOVUPS reads 16 bytes of `value` and writes a register that only the guest uses, or that the
            // compiler has been told of.
            unsafe { write_register!(concat!("movups ", $xmm, ", [{}]"), $xmm, from) }
        };
    }
    by_number!(number, write);
}

/// Sets bits 255:0 of register `number`, of which the low four bits count, and clears the others; without AVX sets bits
/// 127:0.
#[inline(never)]
pub fn set_ymm(number: u8, value: [u64; 4]) {
    if !avx() {
        let [low, high, ..] = value;
        return set_xmm(number, [low, high]);
    }
    let from = value.as_ptr();
    macro_rules! write {
        ($xmm:tt, $ymm:tt) => {
            // SAFETY: AVX is enabled (`avx`); VMOVUPS reads 32 bytes of `value` and writes a register that only the
            // guest uses, or that the compiler has been told of.
            unsafe { write_register!(concat!("vmovups ", $ymm, ", [{}]"), $xmm, from) }
        };
    }
    by_number!(number, write);
}

/// Returns PKRU, which is the guest's, or `None` where the host's CR4.PKE is clear and it cannot be read.
#[inline(never)]
pub fn pkru() -> Option<u32> {
    if raw_cpuid::cpuid!(7, 0).ecx & OSPKE == 0 {
        return None;
    }
    let value: u32;
    // SAFETY: CR4.PKE is set, as CPUID has just said, so RDPKRU exists; it changes no memory.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_and_writes_without_a_fault() {
        for number in 0..=255 {
            let (low, whole) = (xmm(number), ymm(number));
            set_ymm(number, whole);
            set_xmm(number, low);
        }
    }
}
