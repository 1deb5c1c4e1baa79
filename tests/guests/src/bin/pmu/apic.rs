//! Accesses to the local APIC's page: each counts once, whether the processor carries it out, leaves the guest after it, or
//! leaves it to a hypervisor.

use crate::unit::*;
use core::arch::asm;
use guests::boot::has_word;
use guests::lapic::register::*;
use guests::lapic::{self, MASKED, PAGE, SILENT};
use guests::pmu::*;
use guests::report::{Outcome, Tests, same};

const TIMES: u64 = 100;
/// The loops below: a MOV before them, three instructions each time.
const LENGTH: u64 = 1 + 3 * TIMES + STOP;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("pmu-stores-to-the-local-apic-count-once", stores);
    tests.run("pmu-loads-from-the-local-apic-count-once", loads);
    tests.run("pmu-wide-and-modifying-accesses-to-the-local-apic-count-once", others);
    lapic::write(LVT_PMC, SILENT);
    lapic::write(TPR, 0);
    clear();
}

macro_rules! counted {
    ($access:literal, $register:expr, $value:expr) => {{
        clear();
        program(0, INSTRUCTIONS, 0);
        program(1, BRANCHES, 0);
        program(2, CONDITIONAL, 0);
        asm!(
            "wrmsr", "mov esi, {times}",
            "2:", $access, "dec esi", "jnz 2b",
            "xor eax, eax", "xor edx, edx", "mov ecx, {GLOBAL_CTRL}", "wrmsr",
            GLOBAL_CTRL = const GLOBAL_CTRL, times = const TIMES, in("r8") PAGE + u64::from($register), in("r9") u64::from($value), out("r10") _,
            inout("ecx") GLOBAL_CTRL => _, inout("eax") 7 => _, inout("edx") 0 => _, out("esi") _,
        );
        same("instructions", general(0), LENGTH)?;
        same("branches", general(1), TIMES)?;
        same("conditional branches", general(2), TIMES)
    }};
}

/// A26: what the guest itself has executed is not credited again.
unsafe fn stores() -> Outcome {
    let id = lapic::id() << 24;
    for (register, value) in [
        (LVT_PMC, MASKED | 0x51),
        (LVT_PMC, 0x51),
        (LVT_ERROR, MASKED | 0x52),
        (EOI, 0),
        (TPR, 0x20),
        (TPR, 0),
        (ICR_HIGH, id),
        // To all but itself: to nobody.
        (ICR, 0xc_4051),
        (ESR, 0),
        (DIVIDE, 0xb),
        (INITIAL, 0),
    ] {
        counted!("mov dword ptr [r8], r9d", register, value)?;
    }
    Ok(())
}

unsafe fn loads() -> Outcome {
    for register in [LVT_PMC, TPR, PPR, ICR, ICR_HIGH, ISR, IRR, VERSION, CURRENT] {
        counted!("mov r10d, dword ptr [r8]", register, 0u32)?;
    }
    Ok(())
}

unsafe fn others() -> Outcome {
    counted!("or dword ptr [r8], r9d", LVT_PMC, MASKED)?;
    counted!("xchg dword ptr [r8], r9d", LVT_PMC, MASKED | 0x51)?;
    // Bochs' own local APIC ends the emulator at these.
    if has_word("bare") {
        return Ok(());
    }
    counted!("mov r10, qword ptr [r8]", TPR, 0u32)?;
    counted!("mov qword ptr [r8], r9", TPR, 0x10u32)
}
