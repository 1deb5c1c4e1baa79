//! What the registers keep, refuse and answer, with nothing counting.

use crate::unit::*;
use guests::cpu::{cpuid, rdmsr, wrmsr};
use guests::faults::{GP, raises};
use guests::pmu::*;
use guests::report::{Outcome, Tests, same};

pub(crate) unsafe fn run(tests: &mut Tests) {
    // The counters are enabled here by RESET alone: whoever runs first finds it so.
    tests.run("pmu-cpuid", identification);
    tests.run("pmu-reset-value-of-global-ctrl", reset_value);
    clear();
    tests.run("pmu-round-trips", round_trips);
    tests.run("pmu-reserved-bits-are-gp", reserved);
    tests.run("pmu-read-only-is-gp", read_only);
    tests.run("pmu-legacy-and-full-width-writes", widths);
    tests.run("pmu-status-set-and-reset", status);
    tests.run("pmu-in-use", in_use);
    tests.run("pmu-capabilities", capabilities);
    tests.run("pmu-absent-counters-are-gp", absent);
    clear();
}

unsafe fn identification() -> Outcome {
    let [eax, ebx, ecx, edx] = cpuid(0xa, 0);
    same("version", eax & 0xff, 5u64)?;
    same("general-purpose counters", eax >> 8 & 0xff, 8u64)?;
    same("their width", eax >> 16 & 0xff, 48u64)?;
    same("architectural events that are missing", ebx & 0x7f, 0u64)?;
    same("fixed counters", ecx, 0xfu64)?;
    same("contiguous fixed counters", edx & 0x1f, 4u64)?;
    same("their width", edx >> 5 & 0xff, 48u64)?;
    same("AnyThread deprecated", edx >> 15 & 1, 1u64)?;
    same("PDCM", cpuid(1, 0)[2] >> 15 & 1, 1u64)
}

unsafe fn reset_value() -> Outcome {
    same("GLOBAL_CTRL", rdmsr(GLOBAL_CTRL), 0xffu64)?;
    same("FIXED_CTR_CTRL", rdmsr(FIXED_CTR_CTRL), 0u64)?;
    same("PERFEVTSEL0", rdmsr(PERFEVTSEL), 0u64)?;
    same("PMC0", rdmsr(PMC), 0u64)
}

unsafe fn round_trip(msr: u32, value: u64, what: &'static str) -> Outcome {
    wrmsr(msr, value);
    let found = rdmsr(msr);
    wrmsr(msr, 0);
    same(what, found, value)
}

unsafe fn round_trips() -> Outcome {
    for n in 0..8 {
        round_trip(PERFEVTSEL + n, SELECTOR_BITS & !EN, "PERFEVTSEL")?;
        round_trip(A_PMC + n, 0x1234_5678_9abc + u64::from(n), "A_PMC")?;
    }
    for n in 0..4 {
        round_trip(FIXED_CTR + n, 0xfedc_ba98_7654 - u64::from(n), "FIXED_CTR")?;
    }
    round_trip(FIXED_CTR_CTRL, 0xbbbb, "FIXED_CTR_CTRL")?;
    round_trip(DEBUGCTL, FREEZE, "DEBUGCTL")?;
    round_trip(GLOBAL_CTRL, ALL, "GLOBAL_CTRL")
}

unsafe fn reserved() -> Outcome {
    let legal = [
        (PERFEVTSEL + 1, SELECTOR_BITS),
        (FIXED_CTR_CTRL, 0xbbbb),
        (GLOBAL_CTRL, ALL),
        (A_PMC + 7, LAST),
        (FIXED_CTR + 3, LAST),
        (STATUS_RESET, ALL | LBR_FRZ | CTR_FRZ | 7 << 61),
        (STATUS_SET, ALL | LBR_FRZ | CTR_FRZ | 3 << 61),
        // BTF and the freezing of branch records and SMM are a hypervisor's to give or not.
        (DEBUGCTL, FREEZE | 1 << 1 | 1 << 11 | 1 << 14),
    ];
    for (msr, legal) in legal {
        for bit in (0..64).filter(|bit| legal >> bit & 1 == 0) {
            raises("a reserved bit", GP, 0, || wrmsr(msr, 1 << bit))
                .or_else(|_| same("wrote the bit", u64::from(msr) << 8 | bit, 0u64))?;
        }
        same("left as it was", rdmsr(msr), 0u64)?;
    }
    Ok(())
}

unsafe fn read_only() -> Outcome {
    for msr in [STATUS, INUSE, CAPABILITIES] {
        raises("WRMSR of a read-only register", GP, 0, || wrmsr(msr, 0))?;
    }
    Ok(())
}

/// T-A4: the old addresses take 32 bits and extend the sign, the new ones take the whole width.
unsafe fn widths() -> Outcome {
    wrmsr(PMC + 2, 0x1234_5678_9abc_def0);
    same("sign 1", rdmsr(PMC + 2), 0xffff_9abc_def0u64)?;
    wrmsr(PMC + 2, 0xffff_ffff_7abc_def0);
    same("sign 0", rdmsr(PMC + 2), 0x7abc_def0u64)?;
    wrmsr(A_PMC + 2, 0x8000_7abc_def0);
    same("full width", rdmsr(A_PMC + 2), 0x8000_7abc_def0u64)?;
    same("the same counter", rdmsr(PMC + 2), 0x8000_7abc_def0u64)?;
    wrmsr(PMC + 2, 0);
    Ok(())
}

unsafe fn status() -> Outcome {
    let bits = 0x81 | 5 << 32;
    wrmsr(STATUS_SET, bits);
    same("set", rdmsr(STATUS), bits)?;
    wrmsr(STATUS_SET, 2);
    same("set adds", rdmsr(STATUS), bits | 2)?;
    wrmsr(STATUS_RESET, 1 | 1 << 32);
    same("reset takes away", rdmsr(STATUS), 0x82u64 | 4 << 32)?;
    wrmsr(STATUS_RESET, ALL);
    wrmsr(STATUS_SET, CTR_FRZ);
    same("CTR_FRZ", rdmsr(STATUS), CTR_FRZ)?;
    wrmsr(STATUS_RESET, CTR_FRZ);
    same("all clear", rdmsr(STATUS), 0u64)
}

unsafe fn in_use() -> Outcome {
    same("nothing", rdmsr(INUSE), 0u64)?;
    wrmsr(PERFEVTSEL + 3, INSTRUCTIONS);
    wrmsr(FIXED_CTR_CTRL, 0x20);
    let plain = rdmsr(INUSE);
    wrmsr(PERFEVTSEL + 3, INSTRUCTIONS | INT);
    let interrupting = rdmsr(INUSE);
    wrmsr(PERFEVTSEL + 3, 0);
    wrmsr(FIXED_CTR_CTRL, 0);
    same("counter 3 and fixed counter 1", plain, 8u64 | 2 << 32)?;
    same("an interrupt too", interrupting, 8u64 | 2 << 32 | 1 << 63)
}

/// T-A21: full-width writes, and no PEBS, no LBR format, no metrics; MISC_ENABLE says the same.
unsafe fn capabilities() -> Outcome {
    same("FW_WRITE", rdmsr(CAPABILITIES) >> 13 & 1, 1u64)?;
    same("PEBS and metrics", rdmsr(CAPABILITIES) & (0xfc0 | 0x1c000), 0u64)?;
    same("MISC_ENABLE", rdmsr(MISC_ENABLE) & 0x1880, 0x1880u64)
}

unsafe fn absent() -> Outcome {
    for msr in [PMC + 8, PERFEVTSEL + 8, A_PMC + 8, FIXED_CTR + 4, 0x329, 0x3f1] {
        raises("RDMSR", GP, 0, || {
            rdmsr(msr);
        })?;
        raises("WRMSR", GP, 0, || wrmsr(msr, 0))?;
    }
    Ok(())
}
