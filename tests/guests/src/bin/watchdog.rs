//! Has its host run the guest, wait, work and hang, for longer than the patience of a watchdog.
//!
//! Words: `pmu` counts instructions of its own while the watchdog's ticks come, `hang` has the host hang in the end, and
//! `hang-at-nmi` has it hang when the guest leaves for a tick.
#![no_std]
#![no_main]

use guests::cpu::{self, cpuid, rdmsr, rdtsc, wrmsr};
use guests::interrupts::{self, Frame, count};
use guests::lapic::{self, register};
use guests::pmu::{FIXED_CTR, FIXED_CTR_CTRL, GLOBAL_CTRL};
use guests::{boot, end, main, say};

/// What the host is asked for, by leaves of CPUID.
const PATIENCE: u32 = 0x4000_4700;
const WORK: u32 = 0x4000_4701;
const HANG: u32 = 0x4000_4702;
const HANG_AT_NMI: u32 = 0x4000_4703;

const VECTOR: u8 = 0x51;

unsafe fn ended(_: &mut Frame) {
    lapic::end();
}

unsafe fn spin(ticks: u64) {
    let start = rdtsc();
    while rdtsc() - start < ticks {}
}

/// Halts until the local APIC's timer has come.
unsafe fn halt(ticks: u64) {
    lapic::write(register::DIVIDE, 0b1011);
    lapic::write(register::LVT_TIMER, lapic::MASKED);
    lapic::write(register::INITIAL, u32::MAX);
    let start = rdtsc();
    spin(ticks / 16);
    let (counted, passed) = (u32::MAX - lapic::read(register::CURRENT), rdtsc() - start);
    let counts = u128::from(counted) * u128::from(ticks) / u128::from(passed);
    interrupts::on(VECTOR, ended);
    let before = count(VECTOR);
    lapic::write(register::LVT_TIMER, VECTOR.into());
    lapic::write(register::INITIAL, counts as u32);
    while count(VECTOR) == before {
        cpu::wait();
    }
}

/// Returns how many instructions a loop of `turns` takes, by fixed-function counter 0.
#[inline(never)]
unsafe fn counted(turns: u64) -> u64 {
    let before = rdmsr(FIXED_CTR);
    cpu::spin(turns);
    rdmsr(FIXED_CTR) - before
}

unsafe fn run() -> ! {
    let [low, _, _, high] = cpuid(PATIENCE, 0);
    let patience = u64::from(high) << 32 | u64::from(low);
    if boot::has_word("pmu") {
        wrmsr(FIXED_CTR_CTRL, 0b11);
        wrmsr(GLOBAL_CTRL, 1 << 32);
        let (once, twice) = (counted(patience), counted(2 * patience));
        let exact = twice - once == 2 * patience;
        say!("watchdog: {} the loop's instructions are counted", if exact { "exactly" } else { "not" });
    }
    spin(3 * patience);
    say!("watchdog: the guest has run without an exit of its own");
    halt(3 * patience);
    say!("watchdog: the guest has halted");
    cpuid(WORK, 0);
    say!("watchdog: the host has worked");
    if boot::has_word("hang") {
        cpuid(HANG, 0);
    }
    if boot::has_word("hang-at-nmi") {
        cpuid(HANG_AT_NMI, 0);
        spin(3 * patience);
    }
    say!("watchdog: the host goes on");
    end::debug_exit(0)
}

main!(run);
