//! Branches, repeated instructions and the cache, with counts that follow from the code.

use crate::unit::*;
use core::ptr::with_exposed_provenance_mut;
use guests::cpu::wrmsr;
use guests::pmu::*;
use guests::report::{Outcome, Tests, check, same};

const TURNS: u64 = 1000;
/// Physical memory from here on is nobody's; a large page holds all that is touched.
const FREE: usize = 0x1c0_0000;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("pmu-branches-are-exact", branches);
    tests.run("pmu-calls-returns-and-jumps-are-branches", calls);
    tests.run("pmu-mispredicted-branches", mispredicted);
    tests.run("pmu-a-repeated-instruction-retires-once", repeated);
    tests.run("pmu-cache-references-and-misses", cache);
    clear();
}

unsafe fn branches() -> Outcome {
    clear();
    program(0, BRANCHES, 0);
    program(1, CONDITIONAL, 0);
    pmu_loop(3, TURNS);
    same("all", general(0), TURNS)?;
    same("conditional", general(1), TURNS)
}

unsafe fn calls() -> Outcome {
    clear();
    program(0, INSTRUCTIONS, 0);
    program(1, BRANCHES, 0);
    program(2, CONDITIONAL, 0);
    pmu_calls(7, TURNS);
    same("instructions", general(0), 6 * TURNS + STOP)?;
    same("CALL, RET, JMP and JNZ", general(1), 4 * TURNS)?;
    same("JNZ", general(2), TURNS)
}

/// A loop is predicted but for its end, once the predictor has seen it; so are targets that do not change.
unsafe fn mispredicted() -> Outcome {
    clear();
    program(0, MISPREDICTED, 0);
    pmu_loop(1, TURNS);
    check(matches!(general(0), 1..=2), "the first time")?;
    program(0, MISPREDICTED, 0);
    pmu_loop(1, TURNS);
    same("the second time", general(0), 1u64)?;
    pmu_calls(1, TURNS);
    program(0, MISPREDICTED, 0);
    pmu_calls(1, TURNS);
    same("returns and jumps", general(0), 1u64)
}

unsafe fn repeated() -> Outcome {
    for bytes in [0, 1, 100, 5000, 100_000] {
        clear();
        program(0, INSTRUCTIONS, 0);
        program(1, BRANCHES, 0);
        program(2, CYCLES, 0);
        pmu_fill(7, bytes, with_exposed_provenance_mut(FREE));
        same("instructions", general(0), 4 + 1 + STOP)?;
        same("branches", general(1), 0u64)?;
        check(general(2) >= bytes, "fewer cycles than bytes")?;
    }
    Ok(())
}

/// 4096 lines are more than the first level holds and less than the last: each pass refers to the last level for every line,
/// and only the first pass misses there.
unsafe fn cache() -> Outcome {
    const LINES: u64 = 4096;
    let place = with_exposed_provenance_mut::<u8>(FREE).cast_const();
    for misses in [LINES, 0] {
        clear();
        program(0, REFERENCES, 0);
        program(1, MISSES, 0);
        program(2, INSTRUCTIONS, 0);
        pmu_touch(7, LINES, place);
        same("instructions", general(2), 4 * LINES + STOP)?;
        same("references", general(0), LINES)?;
        same("misses", general(1), misses)?;
    }
    // Four lines stay in the first level.
    pmu_touch(7, 4, place);
    clear();
    program(0, REFERENCES, 0);
    pmu_touch(1, 4, place);
    same("references to what is near", general(0), 0u64)?;
    wrmsr(GLOBAL_CTRL, 0);
    Ok(())
}
