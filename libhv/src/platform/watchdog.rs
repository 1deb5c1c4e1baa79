//! The tick of a [`Watchdog`]: the interval timer's interrupt, which the I/O APIC sends as an NMI.
//!
//! An NMI interrupts the host although it runs with interrupts off, and the guest leaves for it: 18 exits a second. It
//! needs no acknowledgement, neither by the timer nor by an interrupt controller.
#![expect(unsafe_code, reason = "writes the ports of the interval timer")]

use super::acpi::Madt;
use super::nmi::{self, Claim};
use super::{apic, interrupts};
use crate::error::{Error, NmiUser, Requirement, Result};
use crate::hw::bare;
use crate::time::Frequency;
use crate::trace;
use crate::watchdog::{Bark, Buddies, Watchdog, pets};
use hermit_sync::SpinMutex;
use x86_64::instructions::port::Port;

/// The interval timer's clock in hertz.
const HZ: u64 = 1_193_182;
/// Its longest period in periods of the clock: ticks are 55 ms apart.
const LONGEST: u64 = 0x1_0000;
/// The period of the first tick, by which it is tried: a millisecond.
const TRIAL: u16 = 1193;
/// How long the first tick may take, in milliseconds: a virtual machine may have waited for its processor.
const TRIAL_MILLISECONDS: u64 = 250;
/// The ISA interrupt of the interval timer.
const IRQ: u8 = 0;
/// RFLAGS.IF
const INTERRUPTS: u64 = 1 << 9;

/// Who watches, and whom a bark is told.
struct Watch {
    buddies: Buddies,
    on_bark: fn(&Bark),
}

/// The handler of NMIs takes what it finds here, and nothing while it is being changed.
static WATCH: SpinMutex<Option<Watch>> = SpinMutex::new(None);

/// A watchdog that watches, until this is dropped.
#[derive(Debug)]
pub struct Watching {
    input: apic::Input,
    _nmis: Claim,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.input.mask();
        stop();
        *WATCH.lock() = None;
    }
}

fn output(port: u16, value: u8) {
    // SAFETY: the ports written here are those of the interval timer's channel 0, whose interrupt is masked or an NMI,
    // which has a handler.
    unsafe { Port::new(port).write(value) }
}

/// Has channel 0 interrupt each `period` of its clock, 0 for [`LONGEST`] (mode 2).
fn start_ticks(period: u16) {
    let [low, high] = period.to_le_bytes();
    for (port, value) in [(0x43, 0x34), (0x40, low), (0x40, high)] {
        output(port, value);
    }
}

/// Stops channel 0: mode 0 with its output low until a count is written.
fn stop() {
    output(0x43, 0x30);
}

/// Starts a watchdog over this processor.
///
/// # Errors
/// As [`Machine::watch`](super::Machine::watch).
pub(super) fn start(madt: Option<&Madt>, frequency: Frequency, watchdog: Watchdog) -> Result<Watching> {
    let nmis = nmi::claim(NmiUser::Watchdog)?;
    let input = madt.and_then(|madt| apic::input(madt, IRQ)).ok_or(Error::Unsupported(Requirement::IoApic))?;
    let watching = Watching { input, _nmis: nmis };
    let (before, began) = (interrupts::nmis(), bare::read_tsc());
    let enough = frequency.ticks_from(TRIAL_MILLISECONDS, 1000);
    watching.input.send_nmi();
    start_ticks(TRIAL);
    while interrupts::nmis() == before {
        if bare::read_tsc().since(began) > enough {
            return Err(Error::Unsupported(Requirement::TimerNmi));
        }
    }
    let nanoseconds = u64::try_from(watchdog.patience.as_nanos()).unwrap_or(u64::MAX);
    let (patience, tick) = (frequency.ticks_from(nanoseconds, 1_000_000_000), frequency.ticks_from(LONGEST, HZ));
    let buddies = Buddies::new(1, patience, tick, bare::read_tsc());
    *WATCH.lock() = Some(Watch { buddies, on_bark: watchdog.on_bark });
    start_ticks(0);
    Ok(watching)
}

/// An NMI has interrupted the host at `rip`.
///
/// The host runs with interrupts off, but for where it halts and waits for one: there it rests.
pub(super) fn nmi(rip: u64, rflags: u64) {
    let Some(mut watch) = WATCH.try_lock() else { return };
    let Some(Watch { buddies, on_bark }) = watch.as_mut() else { return };
    let rests = rflags & INTERRUPTS != 0;
    let beats = |processor| (!rests).then(|| trace::begun(processor).wrapping_add(pets()));
    let (bark, on_bark) = (buddies.look(bare::read_tsc(), 0, rip, beats), *on_bark);
    drop(watch);
    if let Some(bark) = bark {
        on_bark(&bark);
    }
}
