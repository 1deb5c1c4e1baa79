//! Software interrupts, exceptions, and faults in the delivery of either.

use core::arch::asm;
use guests::boot::has_word;
use guests::faults::{BP, DE, GP, NP, PF, SS, UD, catch, raises};
use guests::interrupts::{self, IDT, count, last_rip, on, set_stack};
use guests::report::{Outcome, Tests, check, same};

const VECTOR: u8 = 0x60;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("int-n-and-int3", software);
    tests.run("exceptions", exceptions);
    tests.run("int-n-beyond-the-table", beyond);
    tests.run("int-n-through-an-absent-gate", absent_gate);
    tests.run("page-fault-in-delivery", fault_in_delivery);
    tests.run("double-fault", double_fault);
}

unsafe fn nothing(_: &mut interrupts::Frame) {}

unsafe fn software() -> Outcome {
    on(VECTOR, nothing);
    let wanted: u64;
    asm!("lea {}, [rip + 3f]", "int 0x60", "3:", out(reg) wanted);
    same("INT n", count(VECTOR), 1u64)?;
    same("INT n: RIP", last_rip(VECTOR), wanted)?;
    on(BP, nothing);
    asm!("lea {}, [rip + 3f]", "int3", "3:", out(reg) _);
    same("INT3", count(BP), 1u64)?;
    interrupts::off(BP);
    Ok(())
}

unsafe fn exceptions() -> Outcome {
    raises("DIV by 0", DE, 0, || asm!("div ecx", inout("eax") 1 => _, inout("edx") 0 => _, in("ecx") 0))?;
    raises("LOCK NOP", UD, 0, || asm!(".byte 0xf0, 0x90"))?;
    raises("non-canonical load", GP, 0, || asm!("mov rax, [rcx]", in("rcx") 1u64 << 63, out("rax") _))?;
    // QEMU makes it #GP.
    if !has_word("qemu") {
        set_stack(SS, 1);
        let stack = raises("non-canonical stack", SS, 0, || asm!("mov rsp, rcx", "push rax", in("rcx") 1u64 << 63));
        set_stack(SS, 0);
        stack?;
    }
    raises("load of a selector beyond the table", GP, 0x1238, || asm!("mov ds, ecx", in("ecx") 0x1238))?;
    raises("store to unmapped memory", PF, 2, || asm!("mov [rcx], al", in("rcx") 0x40_0000_0000u64))
}

unsafe fn beyond() -> Outcome {
    interrupts::load_idt(0x21 * 16 - 1);
    let outcome = raises("INT 60H", GP, u64::from(VECTOR) << 3 | 2, || asm!("int 0x60"));
    interrupts::load_idt(0xfff);
    outcome
}

unsafe fn absent_gate() -> Outcome {
    let gate = IDT[usize::from(VECTOR)][0];
    IDT[usize::from(VECTOR)][0] = gate & !(1 << 47);
    let outcome = raises("INT 60H", NP, u64::from(VECTOR) << 3 | 2, || asm!("int 0x60"));
    IDT[usize::from(VECTOR)][0] = gate;
    outcome
}

/// Delivery through IST3, which points at unmapped memory, raises #PF where the frame would have gone.
unsafe fn fault_in_delivery() -> Outcome {
    let stack = 0x40_0000_1000u64;
    interrupts::TASK[13] = stack as u32;
    interrupts::TASK[14] = (stack >> 32) as u32;
    set_stack(VECTOR, 3);
    let fault = catch(|| asm!("int 0x60"));
    set_stack(VECTOR, 0);
    let Some(fault) = fault else { return check(false, "nothing raised") };
    same("vector", fault.vector, PF)?;
    same("error code", fault.error_code, 2u64)?;
    same("CR2", fault.cr2, stack - 8)
}

/// #DE, whose gate is absent, makes #NP; two contributory exceptions make #DF with error code 0.
unsafe fn double_fault() -> Outcome {
    let gate = IDT[0][0];
    IDT[0][0] = gate & !(1 << 47);
    let outcome = raises("vector", 8, 0, || asm!("div ecx", inout("eax") 1 => _, inout("edx") 0 => _, in("ecx") 0));
    IDT[0][0] = gate;
    outcome
}
