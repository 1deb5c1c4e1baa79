//! Instructions of the bare machine that the backends and the platform share.
#![expect(unsafe_code, reason = "executes privileged instructions")]

use crate::exit::Msr;
use crate::time::Tsc;

/// Reads an MSR.
///
/// # Safety
/// The processor runs at privilege level 0, and `msr` exists on it and can be read without side effects.
#[inline]
pub unsafe fn read_msr(msr: Msr) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for the MSR.
    unsafe {
        core::arch::asm!("rdmsr", in("ecx") msr.0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The processor runs at privilege level 0, `msr` exists on it and accepts `value`, and the code that runs from here
/// on is prepared for what the write changes.
#[inline]
pub unsafe fn write_msr(msr: Msr, value: u64) {
    // SAFETY: the caller vouches for the MSR and the value. No `nomem`: the write may change what memory means.
    unsafe {
        core::arch::asm!("wrmsr", in("ecx") msr.0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// Returns the time-stamp counter.
#[inline]
pub fn read_tsc() -> Tsc {
    // SAFETY: RDTSC has no effect on memory; where CR4.TSD forbids it, it faults at privilege levels above 0 alone.
    Tsc(unsafe { core::arch::x86_64::_rdtsc() })
}

/// Returns XCR0. The processor has CR4.OSXSAVE set; without, this is a panic by #UD.
#[inline]
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: XGETBV changes nothing but its two result registers.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Sets XCR0. A value that the processor refuses is a panic by #GP, and so is privilege level 3.
#[inline]
pub fn set_xcr0(value: u64) {
    // SAFETY: the host is soft-float: no state that XCR0 governs is the host's.
    unsafe {
        core::arch::asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// Sets XCR0 to what it is after a reset, where there is one: x87 state alone (SDM Vol. 3A 10.1.1).
pub fn reset_xcr0() {
    const X87: u64 = 1 << 0;
    if raw_cpuid::CpuId::new().get_feature_info().is_some_and(|features| features.has_oxsave()) {
        set_xcr0(X87);
    }
}

/// Ends the blocking of NMIs that an NMI has begun, as its handler's IRET would: a VM exit for one leaves them blocked up
/// to the next entry (SDM Vol. 3C 28.1), and what the host does until then would not be interrupted.
#[inline]
pub(crate) fn unblock_nmis() {
    // SAFETY: IRETQ goes on at the next instruction with the selectors and the stack pointer there are, at whatever
    // privilege level that is; RSP steps over what a function may keep below it, and comes back.
    unsafe {
        core::arch::asm!(
            "mov {stack}, rsp",
            "sub rsp, 128",
            "mov {word:e}, ss",
            "push {word}",
            "push {stack}",
            "pushfq",
            "mov {word:e}, cs",
            "push {word}",
            "lea {word}, [rip + 2f]",
            "push {word}",
            "iretq",
            "2:",
            stack = out(reg) _,
            word = out(reg) _,
        );
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn unblocking_nmis_changes_nothing_else() {
        let around = [1u64, 2];
        super::unblock_nmis();
        assert_eq!(core::hint::black_box(around), [1, 2]);
    }
}
