//! Tries to count what it may not and to see what is not its own: random writes and reads of the performance monitoring
//! unit's registers, their neighbours, its interrupt's entry and RDPMC, each judged by an oracle of its own. Between them
//! it works for a known length, with events selected that are denied and such as are not.
//!
//! Command line: `seed=N`, `steps=N`, `skid=N` as the machine has it, `policy=deny`, `policy=allow` or `policy=all` as the image has it,
//! `from=N` to say every step from N on before it is done.
#![no_std]
#![no_main]

mod operations;
mod oracle;
mod policy;
mod work;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use guests::interrupts::{self, Frame, on};
use guests::random::Random;
use guests::{boot, end, lapic, main, say};
use oracle::Oracle;

/// Interrupts of the counters: as a vector, and as an NMI.
pub(crate) static VECTORED: AtomicU32 = AtomicU32::new(0);
static NMIS: AtomicU32 = AtomicU32::new(0);
static STEP: AtomicU64 = AtomicU64::new(0);

unsafe fn served(_: &mut Frame) {
    VECTORED.fetch_add(1, Relaxed);
    lapic::end();
}

unsafe fn nmi(_: &mut Frame) {
    NMIS.fetch_add(1, Relaxed);
}

/// Says what was found and ends.
#[cold]
pub(crate) unsafe fn fail(what: &str, about: u64, found: u64, wanted: u64) -> ! {
    let step = STEP.load(Relaxed);
    say!("libhv: fail pmu-hostile: step {step}: {what} ({about:#x}): {found:#x}, wanted {wanted:#x}");
    end::debug_exit(1)
}

/// Fails unless both are the same.
pub(crate) unsafe fn same(what: &str, about: impl Into<u64>, found: u64, wanted: u64) {
    if found != wanted {
        fail(what, about.into(), found, wanted);
    }
}

unsafe fn run() -> ! {
    let seed = boot::number("seed").unwrap_or(1);
    let steps = boot::number("steps").unwrap_or(100_000);
    let from = boot::number("from").unwrap_or(u64::MAX);
    for vector in 32..=255 {
        on(vector, served);
    }
    on(2, nmi);
    lapic::enter_xapic();
    let mut random = Random::new(seed);
    let mut oracle = Oracle::new(policy::named());
    say!("pmu-hostile: seed {seed}, {steps} steps to go, {oracle}");
    for step in 0..steps {
        STEP.store(step, Relaxed);
        if step == steps / 10 && lapic::has_x2apic() {
            lapic::enter_x2apic();
        }
        let kind = random.below(100);
        if step >= from {
            say!("pmu-hostile: step {step}, kind {kind}");
        }
        operations::step(kind, &mut oracle, &mut random);
        oracle.look_at_one(&mut random);
    }
    work::quiet(&mut oracle);
    oracle.look_at_all();
    let (vectored, nmis) = (VECTORED.load(Relaxed), NMIS.load(Relaxed));
    say!("pmu-hostile: {steps} steps, {oracle}");
    say!("pmu-hostile: {vectored} interrupts by a vector, {nmis} by NMI");
    interrupts::off(2);
    say!("libhv: pass pmu-hostile");
    end::debug_exit(0)
}

main!(run);
