//! What events count, to the last one.

use crate::abi::*;
use guests::report::{Outcome, Tests, check, same};
use guests::{boot, cpu, ioapic};

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("detection", detection);
    tests.run("exits-by-reason", by_reason);
    tests.run("exits-in-all", in_all);
    tests.run("enable-and-disable", pauses);
    tests.run("nested-faults-and-emulation", nested);
    tests.run("stolen-time", stolen);
    tests.run("overflows-without-interrupt", silent);
    tests.run("close-leaves-the-result", close);
}

unsafe fn detection() -> Outcome {
    check(cpu::cpuid(0x4000_0000, 0)[0] >= 0x4000_0011, "the signature's maximum")?;
    let [version, events, features, rest] = cpu::cpuid(0x4000_0011, 0);
    same("version", version, 1u32)?;
    same("events", events, 16u32)?;
    same("software events and the page", features & 0b101, 0b101u32)?;
    check((features & 0b10 != 0) == (rest != 0), "hardware events")
}

/// K times CPUID are K, on every number of times.
unsafe fn by_reason() -> Outcome {
    for times in [0, 1, 2, 50, 1000] {
        start(&event(2, CPUID_EXITS, 0))?;
        leave(times);
        done(DISABLE, 2, 0)?;
        same("CPUIDs", result(2).count, times)?;
        leave(3);
        done(READ, 2, 0)?;
        same("CPUIDs, and no more", result(2).count, times)?;
        done(CLOSE, 2, 0)?;
    }
    Ok(())
}

/// Nothing but the guest's own exits: as many as the page counts, of which some may be the host's interrupts.
unsafe fn in_all() -> Outcome {
    done(PAGE, 0, page_address())?;
    start(&event(0, ALL_EXITS, 0))?;
    start(&event(1, HYPERCALL_EXITS, 0))?;
    let before = all_exits();
    done(READ, 0, 0)?;
    let first = result(0).count;
    leave(20);
    let after = all_exits();
    done(READ, 0, 0)?;
    let (found, until) = (result(0).count - first, all_exits());
    check(found >= after - before && found < until - before, "exits in all")?;
    check(found >= 21, "READ and the CPUIDs are among them")?;
    done(DISABLE, 1, 0)?;
    same("hypercalls", result(1).count, 2u32)?;
    done(RESET, 0, 0)
}

unsafe fn pauses() -> Outcome {
    same("OPEN", open(&event(4, CPUID_EXITS, 0)), 0u32)?;
    leave(5);
    done(READ, 4, 0)?;
    check(result(4).count == 0 && !result(4).enabled, "an event begins stopped")?;
    for round in 1..4u32 {
        done(ENABLE, 4, 0)?;
        leave(4);
        done(ENABLE, 4, 0)?;
        leave(3);
        done(READ, 4, 0)?;
        check(result(4).enabled, "READ stops nothing")?;
        same("running", result(4).count, 7 * round)?;
        done(DISABLE, 4, 0)?;
        done(DISABLE, 4, 0)?;
        leave(9);
    }
    same("seven a round", result(4).count, 21u32)?;
    check(!result(4).enabled, "DISABLE stops")?;
    done(CLOSE, 4, 0)
}

/// A device in memory: each access is a fault of nested paging and an instruction in software.
unsafe fn nested() -> Outcome {
    start(&event(0, NESTED_FAULTS, 0))?;
    start(&event(1, EMULATED, 0))?;
    for _ in 0..30 {
        cpu::load32(ioapic::SELECT);
    }
    done(DISABLE, 0, 0)?;
    done(DISABLE, 1, 0)?;
    same("nested faults", result(0).count, 30u32)?;
    same("emulated instructions", result(1).count, 30u32)?;
    done(RESET, 0, 0)
}

unsafe fn stolen() -> Outcome {
    let before = cpu::rdtsc();
    start(&event(0, STOLEN_TICKS, 0))?;
    leave(100);
    let all = cpu::rdtsc() - before;
    done(DISABLE, 0, 0)?;
    let found = result(0).count;
    check(found > 100, "100 exits take more than 100 ticks")?;
    check(found < all, "more was stolen than went by")?;
    let quiet = result(0).count;
    leave(100);
    done(READ, 0, 0)?;
    same("an event that is stopped", result(0).count, quiet)?;
    done(CLOSE, 0, 0)
}

unsafe fn silent() -> Outcome {
    start(&Open { flags: 0, ..event(5, CPUID_EXITS, 7) })?;
    leave(6);
    done(READ, 5, 0)?;
    same("one before the period", result(5).overflows, 0u32)?;
    leave(1);
    done(READ, 5, 0)?;
    same("at the period", result(5).overflows, 1u32)?;
    leave(70);
    done(DISABLE, 5, 0)?;
    same("eleven periods", result(5).overflows, 11u32)?;
    same("and what they count", result(5).count, 77u32)?;
    done(CLOSE, 5, 0)
}

unsafe fn close() -> Outcome {
    start(&event(6, CPUID_EXITS, 0))?;
    leave(8);
    done(READ, 6, 0)?;
    leave(8);
    done(CLOSE, 6, 0)?;
    same("CLOSE writes no result", result(6).count, 8u32)?;
    leave(8);
    same("nor does anything after it", result(6).count, 8u32)?;
    check(!boot::has_word("bare"), "there is no interface without a hypervisor")
}
