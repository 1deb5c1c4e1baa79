//! An appliance that looks at each exit whether the host's counters are what they must be.
//!
//! Several of them count the host's instructions, in counters of their own: whatever a guest does to one of them, the others
//! do not agree any more. At exits the host works for a known length, which each must count exactly.

use core::arch::asm;
use libhv::log;
use libhv::platform::interrupts;
use libhv::pmu::host::Post;
use libhv::prelude::*;

/// Exits from one stretch of work to the next.
const EACH: u64 = 64;
/// Instructions of the host from one exit to the next at most, without those of the guest.
const LONGEST: u64 = 1 << 20;
const MASK: u64 = (1 << 48) - 1;

/// Bits 47:32 of whatever is the host's and no count: the guest looks for them.
pub(crate) const SECRET: u64 = 0xDEAD << 32;
/// The period of an event that stands at [`SECRET`] at first.
pub(crate) const SECRET_PERIOD: u64 = (1 << 48) - SECRET;

/// IA32_PERF_GLOBAL_STATUS and IA32_PERF_GLOBAL_STATUS_SET
const STATUS: u32 = 0x38E;
const STATUS_SET: u32 = 0x391;

/// RDMSR of a performance counter's register.
fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: such a register is read without side effects.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

/// RDPMC.
fn read(counter: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDPMC changes nothing but its two result registers.
    unsafe { asm!("rdpmc", in("ecx") counter, out("eax") low, out("edx") high, options(nomem, nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

/// Works for `turns`, and returns how many instructions a counter has counted from one RDPMC to the other.
fn work(counter: u32, turns: u32) -> u32 {
    let (before, after): (u32, u32);
    // SAFETY: it changes nothing but these registers.
    unsafe {
        asm!(
            "rdpmc", "mov {before:e}, eax", "2: dec {turns:e}", "jnz 2b", "rdpmc",
            before = out(reg) before, turns = inout(reg) turns => _, in("ecx") counter, out("eax") after, out("edx") _,
            options(nomem, nostack)
        );
    }
    after.wrapping_sub(before)
}

/// What the host counts: how it looks at its own counters.
#[derive(Clone, Copy)]
pub(crate) struct Watched {
    /// Counters of instructions by their number for RDPMC, and as events of the host.
    pub(crate) instructions: &'static [(u32, usize)],
    /// The one that stands at [`SECRET`] and above.
    pub(crate) secret: Option<u32>,
    /// The period of the first event, if that is sampled.
    pub(crate) period: Option<u64>,
    /// Counters that are neither the guest's nor the host's, by their numbers for RDPMC and their MSRs: [`SECRET`] stands
    /// in them, and their status bits are set.
    pub(crate) nobodys: &'static [(u32, u32)],
}

#[derive(Default)]
pub(crate) struct Warden {
    watched: Option<Watched>,
    /// Bits of IA32_PERF_GLOBAL_STATUS that are neither the guest's nor the host's.
    marks: u64,
    last: Option<u64>,
    exits: u64,
    stretches: u64,
    wrong: u64,
}

/// WRMSR of a performance counter's register.
pub(crate) fn write(msr: u32, value: u64) {
    // SAFETY: a counter, a selector or the status reaches no memory.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

impl Warden {
    pub(crate) fn new(watched: Watched) -> Self {
        Self { watched: Some(watched), ..Self::default() }
    }

    fn wrong(&mut self, what: &str, counter: u32, found: u64, wanted: u64) {
        self.wrong += 1;
        if self.wrong < 20 {
            log!("fail host: exit {}: {what} {counter:#x}: {found:#x}, wanted {wanted:#x}", self.exits);
        }
    }

    fn look(&mut self, watched: &Watched) {
        self.exits += 1;
        let first = watched.instructions[0].0;
        let now = read(first);
        if let Some(last) = self.last {
            let since = now.wrapping_sub(last) & MASK;
            // A sampled counter begins anew with each sample.
            if watched.period.is_none() && (since == 0 || since > LONGEST) {
                self.wrong("instructions since the last exit", first, since, LONGEST);
            }
        } else {
            for (counter, msr) in watched.nobodys {
                write(*msr, SECRET);
                self.marks |= 1 << (counter % 32 + 32 * (counter >> 30));
            }
            if self.marks != 0 {
                write(STATUS_SET, self.marks);
            }
        }
        if let Some(secret) = watched.secret {
            let value = read(secret);
            if value >> 32 != SECRET >> 32 {
                self.wrong("the host's own value", secret, value, SECRET);
            }
        }
        for (counter, _) in watched.nobodys {
            let value = read(*counter);
            if value != SECRET {
                self.wrong("what is nobody's", *counter, value, SECRET);
            }
        }
        let marks = if self.marks == 0 { 0 } else { read_msr(STATUS) & self.marks };
        if marks != self.marks {
            self.wrong("status bits that are nobody's", STATUS, marks, self.marks);
        }
        if self.exits % EACH == 0 {
            for (counter, _) in watched.instructions {
                let interrupts = interrupts::counts().nmi;
                let turns = 1 + (self.exits / EACH % 100) as u32;
                let counted = work(*counter, turns);
                // A sample was taken meanwhile: its handler counts too.
                if interrupts::counts().nmi == interrupts {
                    self.stretches += 1;
                    if counted != 2 * turns + 2 {
                        self.wrong("a stretch of work", *counter, counted.into(), (2 * turns + 2).into());
                    }
                }
            }
        }
        self.last = Some(read(first));
    }
}

impl Appliance for Warden {
    fn on_exit(&mut self, _: &Exit, _: &mut impl GuestState) -> Resolution {
        if let Some(watched) = self.watched {
            self.look(&watched);
        }
        Resolution::NotMine
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        let Some(watched) = self.watched else { return };
        let Some(post) = Post::published() else { return log!("fail host: it counts nothing") };
        let total = post.value(watched.instructions[0].1);
        for (counter, event) in watched.instructions {
            if post.value(*event) != total {
                self.wrong("instructions in all", *counter, post.value(*event), total);
            }
        }
        if let Some(period) = watched.period {
            // Up to the last one, which may have come with the last instruction.
            if post.samples(0) != total / period || post.lost() != 0 {
                self.wrong("samples", 0, post.samples(0), total / period);
            }
        }
        let Self { exits, stretches, wrong, .. } = self;
        log!("host: {exits} exits, {stretches} stretches of work, {total} instructions, {} samples", post.samples(0));
        if *wrong == 0 && *stretches > 0 {
            log!("pass host");
        } else {
            log!("fail host: {wrong} wrong");
        }
    }
}
