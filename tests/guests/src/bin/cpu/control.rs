//! Control registers, XCR0, debug registers, and instructions that are not there.

use core::arch::asm;
use guests::boot::has_word;
use guests::cpu::{self, cpuid};
use guests::faults::{GP, NM, UD, catch, quiet, raises};
use guests::report::{Outcome, Tests, check, same};

pub(crate) unsafe fn run(tests: &mut Tests) {
    if cpuid(1, 0)[2] & 1 << 26 != 0 {
        tests.run("xsetbv", xsetbv);
    }
    tests.run("cr0", cr0);
    tests.run("cr0-ts-is-nm", task_switched);
    tests.run("cr4", cr4);
    tests.run("cr8", cr8);
    tests.run("lmsw-and-clts", lmsw);
    tests.run("debug-registers", debug_registers);
    tests.run("absent-instructions-are-ud", absent);
    tests.run("harmless-instructions", harmless);
    if !has_word("bare") {
        tests.run("unknown-hypercall", hypercall);
        tests.run("rdpmc-is-gp", rdpmc);
    }
}

unsafe fn xsetbv() -> Outcome {
    let old = cpu::read_cr4();
    cpu::write_cr4(old & !(1 << 18));
    raises("without CR4.OSXSAVE", UD, 0, || cpu::xsetbv(0, 1))?;
    // The check of CR4 comes before that of the operand.
    raises("without CR4.OSXSAVE, bad value", UD, 0, || cpu::xsetbv(0, 0))?;
    cpu::write_cr4(old | 1 << 18);
    let offered = u64::from(cpuid(0xd, 0)[0]) | u64::from(cpuid(0xd, 0)[3]) << 32;
    raises("x87 off", GP, 0, || cpu::xsetbv(0, 2))?;
    raises("nothing", GP, 0, || cpu::xsetbv(0, 0))?;
    raises("register 1", GP, 0, || cpu::xsetbv(1, 1))?;
    raises("bit 63", GP, 0, || cpu::xsetbv(0, 1 << 63 | 3))?;
    raises("AVX without SSE", GP, 0, || cpu::xsetbv(0, 5))?;
    for value in [3, offered & 7, 1] {
        quiet("legal value", || cpu::xsetbv(0, value))?;
        same("XCR0", cpu::xgetbv(), value)?;
    }
    raises("register 2 of XGETBV", GP, 0, || asm!("xgetbv", in("ecx") 2, out("eax") _, out("edx") _))
}

unsafe fn cr0() -> Outcome {
    let old = cpu::read_cr0();
    // QEMU checks nothing.
    if !has_word("qemu") {
        raises("paging without protection", GP, 0, || cpu::write_cr0(old & !1))?;
        raises("NW without CD", GP, 0, || cpu::write_cr0(old & !(1 << 30) | 1 << 29))?;
        raises("upper half", GP, 0, || cpu::write_cr0(old | 1 << 32))?;
    }
    same("unchanged", cpu::read_cr0(), old)?;
    for (name, bit) in [("WP", 16), ("AM", 18), ("MP", 1), ("CD", 30)] {
        cpu::write_cr0(old ^ 1 << bit);
        let found = cpu::read_cr0();
        cpu::write_cr0(old);
        same(name, found, old ^ 1 << bit)?;
    }
    Ok(())
}

unsafe fn task_switched() -> Outcome {
    let old = cpu::read_cr0();
    cpu::write_cr0(old | 8);
    let fault = catch(|| asm!("movd xmm0, eax"));
    asm!("clts");
    same("vector", fault.map_or(255, |fault| fault.vector), NM)?;
    same("CR0 after CLTS", cpu::read_cr0(), old & !8)?;
    quiet("after CLTS", || asm!("movd xmm0, eax"))
}

unsafe fn cr4() -> Outcome {
    let old = cpu::read_cr4();
    if !has_word("qemu") {
        raises("PAE off in 64-bit mode", GP, 0, || cpu::write_cr4(old & !0x20))?;
        raises("bit 63", GP, 0, || cpu::write_cr4(old | 1 << 63))?;
        raises("bit 31", GP, 0, || cpu::write_cr4(old | 1 << 31))?;
    }
    if !has_word("bare") {
        raises("VMXE", GP, 0, || cpu::write_cr4(old | 1 << 13))?;
    }
    same("unchanged", cpu::read_cr4(), old)?;
    for (name, bit) in [("TSD", 2), ("DE", 3), ("PGE", 7), ("MCE", 6), ("PCE", 8)] {
        cpu::write_cr4(old ^ 1 << bit);
        let found = cpu::read_cr4();
        cpu::write_cr4(old);
        same(name, found, old ^ 1 << bit)?;
    }
    Ok(())
}

unsafe fn cr8() -> Outcome {
    for value in [0, 7, 15, 0] {
        cpu::write_cr8(value);
        same("CR8", cpu::read_cr8(), value)?;
    }
    if !has_word("qemu") {
        raises("16", GP, 0, || cpu::write_cr8(16))?;
    }
    Ok(())
}

unsafe fn lmsw() -> Outcome {
    let old = cpu::read_cr0();
    asm!("lmsw {:x}", in(reg) 0xau16);
    let set = cpu::read_cr0();
    let word: u64;
    asm!("smsw {:e}", out(reg) word);
    asm!("clts");
    let cleared = cpu::read_cr0();
    cpu::write_cr0(old);
    same("after LMSW", set & 0xf, 0xbu64)?;
    same("SMSW", word & 0xf, 0xbu64)?;
    same("after CLTS", cleared & 0xf, 3u64)
}

unsafe fn debug_registers() -> Outcome {
    cpu::write_dr0(0x1234_5678_9abc);
    cpu::write_dr3(0x8765_4321);
    let (first, last) = (cpu::read_dr0(), cpu::read_dr3());
    cpu::write_dr0(0);
    cpu::write_dr3(0);
    same("DR0", first, 0x1234_5678_9abcu64)?;
    same("DR3", last, 0x8765_4321u64)?;
    cpu::write_dr7(0);
    same("DR7 with everything off", cpu::read_dr7(), 0x400u64)?;
    if !has_word("qemu") {
        raises("upper half of DR7", GP, 0, || cpu::write_dr7(1 << 32))?;
        raises("upper half of DR6", GP, 0, || cpu::write_dr6(1 << 32))?;
    }
    let old = cpu::read_cr4();
    cpu::write_cr4(old | 8);
    let fault = catch(|| asm!("mov rax, dr4", out("rax") _));
    cpu::write_cr4(old);
    same("DR4 with CR4.DE", fault.map_or(255, |fault| fault.vector), UD)
}

unsafe fn absent() -> Outcome {
    raises("UD2", UD, 0, || asm!("ud2"))?;
    raises("VMREAD", UD, 0, || asm!("vmread rax, rax", out("rax") _))?;
    raises("VMLAUNCH", UD, 0, || asm!("vmlaunch"))?;
    raises("VMXOFF", UD, 0, || asm!("vmxoff"))?;
    raises("VMRUN", UD, 0, || asm!("vmrun rax", in("rax") 0))?;
    raises("VMSAVE", UD, 0, || asm!("vmsave rax", in("rax") 0))?;
    raises("CLGI", UD, 0, || asm!("clgi"))?;
    if !has_word("bare") {
        raises("MONITOR", UD, 0, || asm!("monitor", in("rax") 0, in("rcx") 0, in("rdx") 0))?;
        raises("MWAIT", UD, 0, || asm!("mwait", in("rax") 0, in("rcx") 0))?;
    }
    // QEMU takes INTO in 64-bit mode.
    if !has_word("qemu") {
        raises("INTO", UD, 0, || asm!(".byte 0xce"))?;
    }
    Ok(())
}

unsafe fn harmless() -> Outcome {
    quiet("PAUSE", || asm!("pause"))?;
    quiet("WBINVD", || asm!("wbinvd"))?;
    quiet("INVD", || asm!("invd"))?;
    quiet("INVLPG", || asm!("invlpg [rax]", in("rax") 0))?;
    quiet("CLFLUSH", || asm!("clflush [rsp]"))?;
    quiet("MFENCE", || asm!("mfence", "lfence", "sfence"))
}

/// An unknown hypercall answers with an error in RAX, or is #UD; it changes no other register.
unsafe fn hypercall() -> Outcome {
    let mut answer = 99u64;
    let mut kept = 0x1234u64;
    let fault = if cpu::is_intel() {
        catch(|| asm!("vmcall", inout("rax") answer, inout("rcx") kept, in("rdx") 0))
    } else {
        catch(|| asm!("vmmcall", inout("rax") answer, inout("rcx") kept, in("rdx") 0))
    };
    match fault {
        Some(fault) => same("vector", fault.vector, UD),
        None => {
            check((answer as i64) < 0, "no error in RAX")?;
            same("RCX", kept, 0x1234u64)
        }
    }
}

unsafe fn rdpmc() -> Outcome {
    raises("RDPMC", GP, 0, || asm!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _))
}
