//! What CPUID says, and that it says the same as the rest of the processor.

use core::arch::asm;
use guests::boot::has_word;
use guests::cpu::{self, cpuid};
use guests::report::{Outcome, Tests, check, same};

pub(crate) unsafe fn run(tests: &mut Tests) {
    if !has_word("bare") {
        tests.run("cpuid-offers-what-the-hypervisor-has", offers);
        tests.run("cpuid-hides-virtualization", hides);
        tests.run("cpuid-hides-the-pmu", no_pmu);
    }
    tests.run("cpuid-fsrm-implies-erms", fsrm);
    tests.run("cpuid-clears-upper-halves", upper_halves);
    if cpuid(1, 0)[2] & 1 << 26 != 0 {
        tests.run("cpuid-osxsave-mirrors-cr4", osxsave);
        tests.run("cpuid-0d-follows-xcr0", sizes);
    }
}

unsafe fn offers() -> Outcome {
    let ecx = cpuid(1, 0)[2];
    check(ecx & 1 << 31 != 0, "no hypervisor bit")?;
    check(ecx & 1 << 21 != 0, "no x2APIC")?;
    let leaf = cpuid(0x4000_0000, 0);
    check(leaf[0] >= 0x4000_0000, "no hypervisor leaf")?;
    check(leaf[1] != 0, "the hypervisor has no name")
}

unsafe fn hides() -> Outcome {
    check(cpuid(1, 0)[2] & 1 << 5 == 0, "VMX is offered")?;
    check(cpuid(0x8000_0001, 0)[2] & 1 << 2 == 0, "SVM is offered")?;
    check(cpuid(1, 0)[2] & 1 << 3 == 0, "MONITOR is offered")
}

unsafe fn no_pmu() -> Outcome {
    if cpu::is_intel() && cpuid(0, 0)[0] >= 0xa {
        same("version of the architectural PMU", cpuid(0xa, 0)[0] & 0xff, 0u64)?;
    }
    check(cpuid(1, 0)[2] & 1 << 15 == 0, "PDCM is offered")?;
    check(cpuid(0x8000_0001, 0)[2] & 1 << 23 == 0, "PerfCtrExtCore is offered")
}

unsafe fn fsrm() -> Outcome {
    let leaf = cpuid(7, 0);
    check(leaf[3] & 1 << 4 == 0 || leaf[1] & 1 << 9 != 0, "FSRM without ERMS")
}

unsafe fn upper_halves() -> Outcome {
    let (mut rax, mut rcx, rdx, rbx) = (0xffff_ffff_0000_0000u64, 0xffff_ffff_0000_0000u64, u64::MAX, u64::MAX);
    let (rdx_after, rbx_after): (u64, u64);
    asm!(
        "xchg rbx, {b}", "cpuid", "xchg rbx, {b}",
        b = inout(reg) rbx => rbx_after, inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx => rdx_after,
    );
    same("upper halves", (rax | rbx_after | rcx | rdx_after) >> 32, 0u64)
}

unsafe fn osxsave() -> Outcome {
    let old = cpu::read_cr4();
    cpu::write_cr4(old | 1 << 18);
    let on = cpuid(1, 0)[2] >> 27 & 1;
    cpu::write_cr4(old & !(1 << 18));
    let off = cpuid(1, 0)[2] >> 27 & 1;
    cpu::write_cr4(old);
    same("OSXSAVE with CR4.OSXSAVE", on, 1u64)?;
    same("OSXSAVE without CR4.OSXSAVE", off, 0u64)
}

unsafe fn sizes() -> Outcome {
    cpu::write_cr4(cpu::read_cr4() | 1 << 18);
    let offered = u64::from(cpuid(0xd, 0)[0]);
    cpu::xsetbv(0, 1);
    same("size with XCR0 = 1", cpuid(0xd, 0)[1], 576u64)?;
    cpu::xsetbv(0, 3);
    same("size with XCR0 = 3", cpuid(0xd, 0)[1], 576u64)?;
    check(offered & 3 == 3, "x87 and SSE are not offered")?;
    if offered & 4 != 0 {
        let [size, offset, ..] = cpuid(0xd, 2);
        cpu::xsetbv(0, 7);
        same("size with XCR0 = 7", cpuid(0xd, 0)[1], offset + size)?;
        same("size for everything", cpuid(0xd, 0)[2] >= offset + size, true)?;
        cpu::xsetbv(0, 3);
    }
    Ok(())
}
