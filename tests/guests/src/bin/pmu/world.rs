//! The unit across VM entry and VM exit, with this guest as the hypervisor.

use crate::interrupt::skid;
use crate::unit::*;
use crate::vmx::{self, *};
use guests::boot::{has_word, number};
use guests::cpu::{rdmsr, rdtsc, wrmsr};
use guests::interrupts::{self, Frame, count, on};
use guests::lapic::{self, MASKED, SILENT, register::LVT_PMC};
use guests::pmu::*;
use guests::report::{Outcome, Tests, check, same};

/// Instructions of `vmx_guest_loop` before its first exit.
const TURN: u64 = 1 + 20;
/// Exit reasons (SDM Vol. 3D App. C).
const EXTERNAL_INTERRUPT: u64 = 1;
const RDPMC: u64 = 15;
const VMCALL: u64 = 18;
const RDMSR: u64 = 31;
const INVALID_GUEST_STATE: u64 = 1 << 31 | 33;
/// VM-instruction error: entry with invalid host-state field(s).
const INVALID_HOST_STATE: u64 = 8;

pub(crate) unsafe fn run(tests: &mut Tests) {
    if !has_word("bare") || !has_vmx() {
        return tests.skip("pmu-world", "this needs VMX of the machine");
    }
    tests.run("pmu-world-switch-is-exact", exact);
    tests.run("pmu-world-global-ctrl-is-saved", saved);
    tests.run("pmu-world-guest-reserved-bits", guest_bits);
    tests.run("pmu-world-host-reserved-bits", host_bits);
    tests.run("pmu-world-msr-lists", lists);
    tests.run("pmu-world-msr-bitmap-and-rdpmc-exiting", intercepts);
    tests.run("pmu-world-overflow-exits", overflow);
    tests.run("pmu-world-cost", cost);
    clear();
}

/// Counter 0 for the guest, counter 1 for the host after the exit, counter 2 for the host before the entry.
unsafe fn prepare(event: u64) {
    clear();
    for n in 0..3 {
        program(n, event, 0);
    }
    vmx::write(GUEST_GLOBAL_CTRL, 1);
    vmx::write(HOST_GLOBAL_CTRL, 2);
}

/// Runs `test` with VMX on and a guest at `rip`.
unsafe fn with(rip: unsafe extern "C" fn(), test: impl Fn() -> Outcome) -> Outcome {
    create(rip);
    let outcome = test();
    destroy();
    outcome
}

/// A17: no instruction counts on the other side, and the one that exits does not retire.
unsafe fn exact() -> Outcome {
    with(vmx_guest_loop, || {
        prepare(INSTRUCTIONS);
        check(launch(4), "VM entry failed")?;
        same("exit", vmx::read(REASON), VMCALL)?;
        same("the guest", general(0), TURN)?;
        same("the host after", general(1), AFTER)?;
        same("the host before", general(2), BEFORE)?;
        const MORE: u64 = 100;
        for _ in 0..MORE {
            skip();
            check(resume(4), "VM entry failed")?;
        }
        // Each further turn begins with the jump.
        same("the guest, again", general(0), TURN + MORE * (TURN + 1))?;
        same("the host after, again", general(1), (MORE + 1) * AFTER)?;
        same("the host before, again", general(2), (MORE + 1) * BEFORE)
    })
}

unsafe fn saved() -> Outcome {
    with(vmx_guest_writes, || {
        prepare(INSTRUCTIONS);
        vmx::write(GUEST_DEBUGCTL, 2);
        check(launch(4), "VM entry failed")?;
        same("exit", vmx::read(REASON), VMCALL)?;
        // MOV, MOV, XOR, WRMSR count under the old value, MOV, MOV, WRMSR under the new one: counter 0 has both.
        same("instructions", general(0), 7u64)?;
        let kept = if can_save() { 9 } else { 1 };
        same("the guest's GLOBAL_CTRL", vmx::read(GUEST_GLOBAL_CTRL), kept as u64)?;
        same("the guest's DEBUGCTL", vmx::read(GUEST_DEBUGCTL), FREEZE)?;
        same("the host's DEBUGCTL", rdmsr(DEBUGCTL), 0u64)?;
        same("the control", u64::from(can_save()), u64::from(!has_word("no-save")))
    })
}

unsafe fn guest_bits() -> Outcome {
    with(vmx_guest_loop, || {
        prepare(INSTRUCTIONS);
        for bit in (0..64).filter(|bit| ALL >> bit & 1 == 0) {
            vmx::write(GUEST_GLOBAL_CTRL, 1 << bit);
            check(launch(0), "VMfail instead of an exit")?;
            same("exit", vmx::read(REASON), INVALID_GUEST_STATE)?;
        }
        for bit in (0..64).filter(|bit| 0x5802 >> bit & 1 == 0) {
            vmx::write(GUEST_GLOBAL_CTRL, 1);
            vmx::write(GUEST_DEBUGCTL, 1 << bit);
            check(launch(0), "VMfail instead of an exit")?;
            same("exit for DEBUGCTL", vmx::read(REASON), INVALID_GUEST_STATE)?;
        }
        // What is not loaded is not looked at.
        vmx::write(GUEST_DEBUGCTL, 0);
        vmx::write(GUEST_GLOBAL_CTRL, u64::MAX);
        vmx::write(ENTRY_CONTROLS, vmx::read(ENTRY_CONTROLS) & !GUEST_LOADS);
        check(launch(1), "VMfail")?;
        same("exit", vmx::read(REASON), VMCALL)?;
        same("GLOBAL_CTRL went through", general(0), BEFORE + TURN)
    })
}

unsafe fn host_bits() -> Outcome {
    with(vmx_guest_loop, || {
        prepare(INSTRUCTIONS);
        for bit in (0..64).filter(|bit| ALL >> bit & 1 == 0) {
            vmx::write(HOST_GLOBAL_CTRL, 1 << bit);
            check(!launch(0), "an exit instead of VMfail")?;
            same("error", vmx::read(ERROR), INVALID_HOST_STATE)?;
        }
        vmx::write(HOST_GLOBAL_CTRL, ALL);
        check(launch(0), "a legal value")
    })
}

/// The exit's store list sees the guest's values, the load lists write the registers.
unsafe fn lists() -> Outcome {
    with(vmx_guest_loop, || {
        prepare(INSTRUCTIONS);
        vmx::write(ENTRY_CONTROLS, vmx::read(ENTRY_CONTROLS) & !GUEST_LOADS);
        vmx::write(EXIT_CONTROLS, vmx::read(EXIT_CONTROLS) & !(HOST_LOADS | SAVE_GLOBAL_CTRL));
        let entries = |list: u64, values: &[(u32, u64)]| {
            for (index, (msr, value)) in values.iter().enumerate() {
                word(list + 16 * index as u64).write_volatile(u64::from(*msr));
                word(list + 16 * index as u64 + 8).write_volatile(*value);
            }
        };
        entries(LIST, &[(GLOBAL_CTRL, 0), (A_PMC, 0), (STATUS, 7)]);
        entries(LIST + 0x1000, &[(GLOBAL_CTRL, 2)]);
        entries(LIST + 0x2000, &[(A_PMC, 1000), (GLOBAL_CTRL, 9)]);
        vmx::write(EXIT_STORE_COUNT, 3);
        vmx::write(EXIT_LOAD_COUNT, 1);
        vmx::write(ENTRY_LOAD_COUNT, 2);
        check(launch(4), "VM entry failed")?;
        same("exit", vmx::read(REASON), VMCALL)?;
        let stored = |index: u64| word(LIST + 16 * index + 8).read_volatile();
        same("GLOBAL_CTRL of the guest", stored(0), 9u64)?;
        same("its counter", stored(1), 1000 + TURN)?;
        same("status", stored(2), 0u64)?;
        same("the counter now", general(0), 1000 + TURN)?;
        same("the host after", general(1), AFTER)?;
        same("the host before", general(2), BEFORE)
    })
}

unsafe fn intercepts() -> Outcome {
    with(vmx_guest_touches, || {
        prepare(INSTRUCTIONS);
        let rdmsr_of_pmc = word(BITMAP + u64::from(PMC / 64 * 8));
        rdmsr_of_pmc.write_volatile(1 << (PMC % 64));
        vmx::write(PRIMARY, vmx::read(PRIMARY) | 1 << 11);
        check(launch(4), "VM entry failed")?;
        same("RDMSR exits", vmx::read(REASON), RDMSR)?;
        same("MOV alone has retired", general(0), 1u64)?;
        // The entry has lost the guest's registers: it goes back to where each is written.
        rdmsr_of_pmc.write_volatile(0);
        vmx::write(GUEST_RIP, vmx_guest_touches as *const () as u64);
        check(resume(4), "VM entry failed")?;
        same("RDPMC exits", vmx::read(REASON), RDPMC)?;
        same("MOV, RDMSR and XOR too", general(0), 4u64)?;
        vmx::write(PRIMARY, vmx::read(PRIMARY) & !(1 << 11));
        vmx::write(GUEST_RIP, vmx::read(GUEST_RIP) - 2);
        check(resume(4), "VM entry failed")?;
        same("VMCALL exits", vmx::read(REASON), VMCALL)?;
        same("XOR and RDPMC too", general(0), 6u64)
    })
}

/// T-A12: the overflow of the guest's instruction exits before its next one, or `skid` later.
unsafe fn overflow() -> Outcome {
    const VECTOR: u8 = 0x52;
    unsafe fn served(_: &mut Frame) {
        lapic::end();
    }
    on(VECTOR, served);
    let outcome = with(vmx_guest_loop, || {
        // External-interrupt exiting.
        vmx::write(0x4000, vmx::read(0x4000) | 1);
        for events in [1, 2, 3, 20 - skid(), 21 - skid()] {
            prepare(INSTRUCTIONS);
            on(VECTOR, served);
            lapic::write(LVT_PMC, u32::from(VECTOR));
            program(0, INSTRUCTIONS | INT, LAST + 1 - events);
            vmx::write(GUEST_RIP, vmx_guest_loop as *const () as u64);
            check(if events == 1 { launch(4) } else { resume(4) }, "VM entry failed")?;
            same(
                "exit, and the events before it",
                vmx::read(REASON) | events << 32,
                EXTERNAL_INTERRUPT | events << 32,
            )?;
            same("counter", general(0), skid())?;
            same("status", rdmsr(STATUS), 1u64)?;
            same("LVTPC", lapic::read(LVT_PMC), MASKED | u32::from(VECTOR))?;
            guests::cpu::breathe();
            same("interrupts of the host", count(VECTOR), 1u64)?;
        }
        Ok(())
    });
    interrupts::off(VECTOR);
    lapic::write(LVT_PMC, SILENT);
    outcome
}

/// `entry=N exit=N` are the machine's costs: time passes by them, and only the host's counters see it.
unsafe fn cost() -> Outcome {
    let (entry, exit) = (number("entry").unwrap_or(0), number("exit").unwrap_or(0));
    with(vmx_guest_loop, || {
        prepare(CYCLES);
        let start = rdtsc();
        check(launch(4), "VM entry failed")?;
        let passed = rdtsc() - start;
        same("cycles of the guest", general(0), TURN)?;
        same("of the host before", general(2), BEFORE + entry)?;
        check((AFTER + exit..=AFTER + exit + 1).contains(&general(1)), "cycles of the host after")?;
        check(passed >= entry + exit, "the TSC does not show the cost")?;
        check(passed < entry + exit + 300, "the TSC shows more than the cost")?;
        wrmsr(GLOBAL_CTRL, 0);
        Ok(())
    })
}
