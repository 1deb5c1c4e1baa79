//! When a pending interrupt is taken: STI and MOV SS shadows, POPF, HLT, and exits inside a shadow.

use core::arch::asm;
use guests::boot::DATA;
use guests::faults::DB;
use guests::interrupts::{Frame, count, last_rip, off, on};
use guests::report::{Outcome, Tests, check, same};
use guests::{ioapic, lapic};

const VECTOR: u8 = 0x61;

pub(crate) unsafe fn run(tests: &mut Tests) {
    lapic::enter_xapic();
    tests.run("sti-shadow", sti_shadow);
    tests.run("sti-shadow-over-exits", sti_shadow_over_exits);
    tests.run("sti-cli-lets-nothing-in", sti_cli);
    tests.run("sti-hlt-does-not-sleep", sti_hlt);
    tests.run("popf-has-no-shadow", popf);
    tests.run("mov-ss-holds-back-single-step", mov_ss);
    tests.run("mov-ss-icebp-under-tf", mov_ss_icebp);
}

unsafe fn serve(_: &mut Frame) {
    lapic::end();
}

// Runs code with an interrupt pending and IF clear; label 3 is where the interrupt has to find RIP.
macro_rules! pending {
    ($what:literal, $($code:literal),*) => {{
        on(VECTOR, serve);
        lapic::send_self(VECTOR);
        let wanted: u64;
        asm!(
            "mov {saved}, rbx",
            "lea {wanted}, [rip + 3f]",
            $($code,)*
            "nop",
            "cli",
            "mov rbx, {saved}",
            saved = out(reg) _, wanted = out(reg) wanted, in("rdi") ioapic::SELECT,
            out("rax") _, out("rcx") _, out("rdx") _, out("r8") _,
        );
        same(concat!($what, ": interrupts"), count(VECTOR), 1u64)?;
        same(concat!($what, ": RIP"), last_rip(VECTOR), wanted)?;
    }};
}

unsafe fn sti_shadow() -> Outcome {
    pending!("sti, nop", "sti", "nop", "3:", "nop");
    Ok(())
}

unsafe fn sti_shadow_over_exits() -> Outcome {
    pending!("sti, cpuid", "xor eax, eax", "xor ecx, ecx", "sti", "cpuid", "3:");
    pending!("sti, rdmsr", "mov ecx, 0x277", "sti", "rdmsr", "3:");
    pending!("sti, in", "mov edx, 0x61", "sti", "in al, dx", "3:");
    pending!("sti, out", "mov edx, 0x3ff", "sti", "out dx, al", "3:");
    pending!("sti, mmio load", "sti", "mov eax, [rdi]", "3:");
    pending!("sti, mmio store", "sti", "mov dword ptr [rdi], 1", "3:");
    pending!("sti, wbinvd", "sti", "wbinvd", "3:");
    Ok(())
}

unsafe fn sti_cli() -> Outcome {
    on(VECTOR, serve);
    lapic::send_self(VECTOR);
    asm!("sti", "cli", "nop", options(nostack));
    let inside = count(VECTOR);
    asm!("sti", "nop", "cli", options(nostack));
    same("interrupts between STI and CLI", inside, 0u64)?;
    same("interrupts afterwards", count(VECTOR), 1u64)
}

unsafe fn sti_hlt() -> Outcome {
    pending!("sti, hlt", "sti", "hlt", "3:");
    Ok(())
}

unsafe fn popf() -> Outcome {
    pending!("popf", "pushfq", "or dword ptr [rsp], 0x200", "popfq", "3:");
    Ok(())
}

unsafe fn mov_ss() -> Outcome {
    unsafe fn stop(frame: &mut Frame) {
        frame.rflags &= !0x100;
    }
    on(DB, stop);
    let wanted: u64;
    asm!(
        "lea {wanted}, [rip + 3f]",
        "pushfq",
        "or dword ptr [rsp], 0x100",
        "popfq",
        "mov ss, {data:e}",
        "nop",
        "3:",
        "nop",
        "nop",
        wanted = out(reg) wanted, data = in(reg) u32::from(DATA),
    );
    let came = count(DB);
    off(DB);
    check(came == 1, "not one #DB")?;
    same("RIP", last_rip(DB), wanted)
}

// An intercepted #DB in a shadow under TF is what VMX refuses to go on from, unless the host makes it consistent.
unsafe fn mov_ss_icebp() -> Outcome {
    unsafe fn stop(frame: &mut Frame) {
        frame.rflags &= !0x100;
    }
    on(DB, stop);
    let wanted: u64;
    asm!(
        "lea {wanted}, [rip + 3f]",
        "pushfq",
        "or dword ptr [rsp], 0x100",
        "popfq",
        "mov ss, {data:e}",
        ".byte 0xf1",
        "3:",
        "nop",
        "nop",
        wanted = out(reg) wanted, data = in(reg) u32::from(DATA),
    );
    let came = count(DB);
    off(DB);
    check(came == 1, "not one #DB")?;
    same("RIP", last_rip(DB), wanted)
}
