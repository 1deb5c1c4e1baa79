//! What an exit costs while the guest asks for nothing, while it has a page, and while it has an event with a period.

use crate::abi::*;
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, say};

const SAMPLES: usize = 101;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("cost", cost);
}

/// Returns the median of the ticks that CPUID takes, RDTSC before and after it included.
unsafe fn cpuid() -> u64 {
    let mut samples = [0; SAMPLES];
    for sample in &mut samples {
        let before = cpu::rdtsc();
        leave(1);
        *sample = cpu::rdtsc() - before;
    }
    samples.sort_unstable();
    samples[SAMPLES / 2]
}

unsafe fn cost() -> Outcome {
    let idle = cpuid();
    done(PAGE, 0, page_address())?;
    let page = cpuid();
    start(&Open { flags: 0, ..event(0, CPUID_EXITS, u64::MAX) })?;
    let both = cpuid();
    done(PAGE_OFF, 0, 0)?;
    let watched = cpuid();
    done(RESET, 0, 0)?;
    let again = cpuid();
    say!("paravirt: ticks of a CPUID: {idle} idle, {page} with a page, {watched} with a period, {both} with both");
    // Where ticks are instructions, what an exit costs is known to the last of them.
    if cpu::is_intel() {
        same("what is not asked for any more", again, idle)?;
        check(page - idle < 50, "a page costs an exit 50 instructions or more")?;
    }
    Ok(())
}
