//! Model-specific registers: round trips, refusals, and the ones whose effect shows.

use core::arch::asm;
use guests::boot::{bare_on, has_word};
use guests::cpu::{self, cpuid, rdmsr, wrmsr};
use guests::faults::{GP, catch, raises};
use guests::report::{Outcome, Tests, check, same};

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;

pub(crate) unsafe fn run(tests: &mut Tests) {
    // QEMU and Bochs answer 0.
    if !has_word("bare") {
        tests.run("msr-unknown-is-gp", unknown);
    }
    tests.run("msr-round-trips", round_trips);
    tests.run("msr-efer", efer);
    tests.run("msr-segment-bases", bases);
    tests.run("msr-pat", pat);
    tests.run("msr-mtrr", mtrr);
    tests.run("msr-tsc", tsc);
    // QEMU takes any address.
    if !bare_on("qemu") {
        tests.run("msr-non-canonical-is-gp", non_canonical);
    }
    if cpuid(0x8000_0001, 0)[3] & 1 << 27 != 0 {
        tests.run("msr-tsc-aux", tsc_aux);
    }
}

unsafe fn refused(what: &'static str, msr: u32, value: u64) -> Outcome {
    raises(what, GP, 0, || wrmsr(msr, value))
}

unsafe fn unknown() -> Outcome {
    for msr in [0xeee, 0x1f0, 0x4000_1234, 0xc001_1fff, 0xc000_0fff, 0xdead_beef, 0xffff_ffff] {
        raises("RDMSR", GP, 0, || {
            rdmsr(msr);
        })?;
        refused("WRMSR", msr, 0)?;
    }
    Ok(())
}

unsafe fn round_trips() -> Outcome {
    let registers = [
        ("STAR", 0xc000_0081, 0x0033_0008_0000_0000),
        ("LSTAR", 0xc000_0082, 0xffff_8000_1234_5678),
        ("CSTAR", 0xc000_0083, 0x0000_7fff_8765_4321),
        ("SFMASK", 0xc000_0084, 0x0004_7700),
        ("KernelGSBase", 0xc000_0102, 0xffff_9000_0000_1000),
        ("SYSENTER_CS", 0x174, 0x10),
        ("SYSENTER_ESP", 0x175, 0xffff_8000_0000_2000),
        ("SYSENTER_EIP", 0x176, 0xffff_8000_0000_3000),
    ];
    for (name, msr, value) in registers {
        let old = rdmsr(msr);
        wrmsr(msr, value);
        let found = rdmsr(msr);
        wrmsr(msr, old);
        same(name, found, value)?;
    }
    Ok(())
}

unsafe fn efer() -> Outcome {
    let old = rdmsr(EFER);
    same("LME and LMA", old & 0x500, 0x500u64)?;
    wrmsr(EFER, old ^ 1);
    same("SCE", rdmsr(EFER), old ^ 1)?;
    wrmsr(EFER, old);
    if cpuid(0x8000_0001, 0)[3] & 1 << 20 != 0 {
        wrmsr(EFER, old ^ 1 << 11);
        same("NXE", rdmsr(EFER), old ^ 1 << 11)?;
        wrmsr(EFER, old);
    }
    // QEMU drops what it does not know, and lets LME go.
    if bare_on("qemu") {
        return Ok(());
    }
    refused("LME cleared with paging on", EFER, old & !0x100)?;
    refused("bit 1", EFER, old | 2)?;
    refused("bit 63", EFER, old | 1 << 63)?;
    same("unchanged", rdmsr(EFER), old)
}

unsafe fn bases() -> Outcome {
    static PLACE: [u64; 2] = [0x1111_2222, 0x3333_4444];
    let place = (&raw const PLACE).expose_provenance() as u64;
    wrmsr(0xc000_0100, place);
    wrmsr(0xc000_0101, place + 8);
    wrmsr(0xc000_0102, 0x5000);
    let (fs, gs): (u64, u64);
    asm!("mov {}, fs:[0]", "mov {}, gs:[0]", "swapgs", out(reg) fs, out(reg) gs);
    let (active, kernel) = (rdmsr(0xc000_0101), rdmsr(0xc000_0102));
    wrmsr(0xc000_0100, 0);
    wrmsr(0xc000_0101, 0);
    wrmsr(0xc000_0102, 0);
    same("through FS", fs, PLACE[0])?;
    same("through GS", gs, PLACE[1])?;
    same("GS base after SWAPGS", active, 0x5000u64)?;
    same("kernel GS base after SWAPGS", kernel, place + 8)
}

unsafe fn non_canonical() -> Outcome {
    let registers =
        [("LSTAR", 0xc000_0082), ("FS base", 0xc000_0100), ("GS base", 0xc000_0101), ("KernelGSBase", 0xc000_0102)];
    for (name, msr) in registers {
        let old = rdmsr(msr);
        refused(name, msr, 0x8000_0000_0000_0000)?;
        same(name, rdmsr(msr), old)?;
    }
    Ok(())
}

unsafe fn pat() -> Outcome {
    let old = rdmsr(PAT);
    let new = 0x0007_0406_0107_0506;
    wrmsr(PAT, new);
    let found = rdmsr(PAT);
    wrmsr(PAT, old);
    same("PAT", found, new)?;
    // QEMU keeps any byte.
    if !bare_on("qemu") {
        for bad in [2, 3, 8, 0xff] {
            refused("a type there is none of", PAT, old & !0xff | bad)?;
        }
    }
    same("unchanged", rdmsr(PAT), old)
}

unsafe fn mtrr() -> Outcome {
    if cpuid(1, 0)[3] & 1 << 12 == 0 {
        return Ok(());
    }
    let variable = rdmsr(0xfe) & 0xff;
    check(variable <= 16, "too many variable ranges")?;
    let old = rdmsr(0x2ff);
    wrmsr(0x2ff, 0xc06);
    let default = rdmsr(0x2ff);
    wrmsr(0x2ff, old);
    same("default type", default, 0xc06u64)?;
    if rdmsr(0xfe) & 1 << 8 != 0 {
        let old = rdmsr(0x250);
        wrmsr(0x250, 0x0606_0505_0404_0000);
        let found = rdmsr(0x250);
        wrmsr(0x250, old);
        same("fixed range", found, 0x0606_0505_0404_0000u64)?;
    }
    if variable != 0 {
        let old = (rdmsr(0x200), rdmsr(0x201));
        wrmsr(0x200, 0x8000_0006);
        wrmsr(0x201, 0xf_8000_0800);
        let found = (rdmsr(0x200), rdmsr(0x201));
        wrmsr(0x200, old.0);
        wrmsr(0x201, old.1);
        same("base", found.0, 0x8000_0006u64)?;
        same("mask", found.1, 0xf_8000_0800u64)?;
    }
    Ok(())
}

unsafe fn tsc() -> Outcome {
    let mut last = cpu::rdtsc();
    for step in 0..300 {
        match step % 3 {
            0 => drop(cpuid(0, 0)),
            1 => cpu::out8(0x3ff, 0),
            _ => {}
        }
        // QEMU's register does not count.
        let now = if step % 2 == 0 || bare_on("qemu") { cpu::rdtsc() } else { rdmsr(0x10) };
        check(now >= last, "the time-stamp counter went back")?;
        last = now;
    }
    // Not every processor has RDTSCP's ECX, but where RDTSC is, it may be forbidden to nobody at CPL 0.
    let old = cpu::read_cr4();
    cpu::write_cr4(old | 4);
    let fault = catch(|| {
        cpu::rdtsc();
    });
    cpu::write_cr4(old);
    check(fault.is_none(), "CR4.TSD forbids RDTSC at CPL 0")
}

unsafe fn tsc_aux() -> Outcome {
    let old = rdmsr(0xc000_0103);
    wrmsr(0xc000_0103, 0x1234_5678);
    let aux: u32;
    asm!("rdtscp", out("ecx") aux, out("eax") _, out("edx") _);
    let found = rdmsr(0xc000_0103);
    wrmsr(0xc000_0103, old);
    same("MSR", found, 0x1234_5678u64)?;
    same("ECX of RDTSCP", aux, 0x1234_5678u64)
}
