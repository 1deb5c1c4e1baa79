//! Single-step over instructions that leave the guest, and breakpoints in memory.

use core::arch::asm;
use guests::cpu;
use guests::faults::DB;
use guests::interrupts::{Frame, count, last_rip, off, on};
use guests::ioapic;
use guests::report::{Outcome, Tests, same};

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("single-step-over-exits", steps);
    tests.run("single-step-into-rep", rep);
    tests.run("write-breakpoint", write_breakpoint);
    tests.run("execute-breakpoint", execute_breakpoint);
    tests.run("icebp", icebp);
    off(DB);
}

static mut STATUS: u64 = 0;

unsafe fn stop(frame: &mut Frame) {
    STATUS = cpu::read_dr6();
    cpu::write_dr6(0xffff_0ff0);
    frame.rflags &= !0x100;
}

// Single-steps one instruction: #DB comes once, right behind it, and says BS.
macro_rules! step {
    ($what:literal, $prepare:literal, $code:literal) => {{
        on(DB, stop);
        let wanted: u64;
        asm!(
            "mov {saved}, rbx", "lea {wanted}, [rip + 3f]", $prepare,
            "pushfq", "or dword ptr [rsp], 0x100", "popfq",
            $code,
            "3:", "nop", "mov rbx, {saved}",
            saved = out(reg) _, wanted = out(reg) wanted,
            in("rdi") ioapic::SELECT, out("rax") _, out("rcx") _, out("rdx") _,
        );
        same(concat!($what, ": exceptions"), count(DB), 1u64)?;
        same(concat!($what, ": RIP"), last_rip(DB), wanted)?;
        same(concat!($what, ": DR6.BS"), STATUS & 0x4000, 0x4000u64)?;
    }};
}

unsafe fn steps() -> Outcome {
    step!("nop", "", "nop");
    step!("cpuid", "xor eax, eax; xor ecx, ecx", "cpuid");
    step!("out", "mov edx, 0x3ff", "out dx, al");
    step!("in", "mov edx, 0x61", "in al, dx");
    step!("in imm", "", "in al, 0x61");
    step!("rdmsr", "mov ecx, 0x277", "rdmsr");
    step!("wrmsr", "mov ecx, 0x277; rdmsr", "wrmsr");
    step!("wbinvd", "", "wbinvd");
    step!("mmio load", "", "mov eax, [rdi]");
    step!("mmio store", "", "mov dword ptr [rdi], 1");
    step!("mmio or", "", "or dword ptr [rdi], 1");
    step!("mov from cr0", "", "mov rax, cr0");
    step!("rdtsc", "", "rdtsc");
    Ok(())
}

static mut STEPS: u32 = 0;

unsafe fn rep() -> Outcome {
    unsafe fn walk(frame: &mut Frame) {
        STEPS += 1;
        if frame.rcx == 0 {
            frame.rflags &= !0x100;
        }
    }
    static mut PLACE: [u32; 4] = [0; 4];
    STEPS = 0;
    on(DB, walk);
    asm!(
        "pushfq", "or dword ptr [rsp], 0x100", "popfq", "rep stosd", "nop",
        inout("rdi") &raw mut PLACE => _, inout("rcx") 4u64 => _, in("eax") 7,
    );
    // One for each round.
    same("exceptions", STEPS, 4u64)?;
    same("stored", PLACE[3], 7u64)
}

unsafe fn write_breakpoint() -> Outcome {
    static mut WATCHED: u64 = 0;
    on(DB, stop);
    let wanted: u64;
    cpu::write_dr6(0xffff_0ff0);
    cpu::write_dr0((&raw const WATCHED).expose_provenance() as u64);
    cpu::write_dr7(0x000d_0402);
    asm!("lea {}, [rip + 3f]", "mov qword ptr [{}], 5", "3:", "nop", out(reg) wanted, in(reg) &raw mut WATCHED);
    cpu::write_dr7(0x400);
    same("exceptions", count(DB), 1u64)?;
    same("RIP", last_rip(DB), wanted)?;
    same("DR6.B0", STATUS & 1, 1u64)?;
    same("stored", WATCHED, 5u64)
}

unsafe fn execute_breakpoint() -> Outcome {
    unsafe fn resume(frame: &mut Frame) {
        stop(frame);
        frame.rflags |= 1 << 16;
    }
    on(DB, resume);
    let wanted: u64;
    asm!(
        "lea {wanted}, [rip + 3f]", "mov dr0, {wanted}", "mov {other}, 0x402", "mov dr7, {other}",
        "xor eax, eax", "xor ecx, ecx", "mov {saved}, rbx",
        "3:", "cpuid",
        "mov rbx, {saved}", "mov {other}, 0x400", "mov dr7, {other}",
        wanted = out(reg) wanted, other = out(reg) _, saved = out(reg) _, out("rax") _, out("rcx") _, out("rdx") _,
    );
    same("exceptions", count(DB), 1u64)?;
    same("RIP", last_rip(DB), wanted)
}

unsafe fn icebp() -> Outcome {
    on(DB, stop);
    let wanted: u64;
    asm!("lea {}, [rip + 3f]", ".byte 0xf1", "3:", out(reg) wanted);
    same("exceptions", count(DB), 1u64)?;
    same("RIP", last_rip(DB), wanted)
}
