//! How fast the time-stamp counter and the local APIC's timer run: what CPUID says, or a short measurement.
#![expect(unsafe_code, reason = "reads the ports of the PC's timers")]

use super::apic;
use crate::hw::bare;
use crate::time::{Frequency, Tsc};
use x86_64::instructions::port::Port;

/// How long a measurement takes: the clock of the reference in hertz, over this.
const PART_OF_SECOND: u64 = 333;
/// Samples at each end of a measurement; the one that took the shortest counts.
const SAMPLES: u32 = 6;

/// A clock of known frequency.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reference {
    /// The ACPI power-management timer at a port, with 32 bits or 24 (ACPI 6.5, 4.8.3.3).
    PowerManagement(u16, bool),
    /// Channel 2 of the programmable interval timer.
    IntervalTimer,
}

impl Reference {
    /// Returns its frequency in hertz.
    fn hz(self) -> u64 {
        match self {
            Self::PowerManagement(..) => 3_579_545,
            Self::IntervalTimer => 1_193_182,
        }
    }

    /// Starts it, where it does not run by itself.
    fn start(self) {
        if let Self::IntervalTimer = self {
            // Gate on, speaker off; mode 0, counting down once from FFFFH.
            let gate = input::<u8>(0x61) & !3 | 1;
            output(0x61, gate);
            for (port, value) in [(0x43, 0xB0), (0x42, 0xFF), (0x42, 0xFF)] {
                output(port, value);
            }
        }
    }

    fn read(self) -> u32 {
        match self {
            Self::PowerManagement(port, _) => input(port),
            Self::IntervalTimer => {
                output(0x43, 0x80);
                let low = u32::from(input::<u8>(0x42));
                !(low | u32::from(input::<u8>(0x42)) << 8)
            }
        }
    }

    /// Returns the periods from `earlier` to `later`.
    fn since(self, earlier: u32, later: u32) -> u64 {
        let mask = match self {
            Self::PowerManagement(_, true) => u32::MAX,
            Self::PowerManagement(_, false) => 0xFF_FFFF,
            Self::IntervalTimer => 0xFFFF,
        };
        (later.wrapping_sub(earlier) & mask).into()
    }
}

fn input<T: x86_64::instructions::port::PortRead>(port: u16) -> T {
    // SAFETY: the ports read here are timers'; reading them changes no memory.
    unsafe { Port::new(port).read() }
}

fn output(port: u16, value: u8) {
    // SAFETY: the ports written here are those of the interval timer's channel 2 and its gate, which interrupt nobody.
    unsafe { Port::new(port).write(value) }
}

/// What the three clocks said at one moment.
#[derive(Clone, Copy)]
struct Sample {
    tsc: Tsc,
    apic: u32,
    reference: u32,
    took: u64,
}

fn sample(reference: Reference) -> Sample {
    let mut best: Option<Sample> = None;
    for _ in 0..SAMPLES {
        let before = bare::read_tsc();
        let periods = reference.read();
        let tsc = bare::read_tsc();
        let sample = Sample { tsc, apic: apic::counted(), reference: periods, took: tsc.since(before) };
        if best.is_none_or(|best| sample.took < best.took) {
            best = Some(sample);
        }
    }
    best.unwrap_or(Sample { tsc: Tsc(0), apic: 0, reference: 0, took: 0 })
}

/// Measures the time-stamp counter and the local APIC's timer, which must be in one-shot mode, against `reference`: in
/// 3 ms, to about a ten-thousandth. A reference that stands still gives 1 GHz for both.
pub(crate) fn measure(reference: Reference) -> (Frequency, u64) {
    apic::count_down(u32::MAX);
    reference.start();
    let start = sample(reference);
    let goal = reference.hz() / PART_OF_SECOND;
    // A reference that stands still is given up after more ticks than any processor makes in 3 ms.
    while reference.since(start.reference, reference.read()) < goal && bare::read_tsc().since(start.tsc) < 100_000_000 {
    }
    let end = sample(reference);
    apic::count_down(0);
    let periods = reference.since(start.reference, end.reference);
    if periods < goal {
        return (Frequency::from_hz(1_000_000_000), 1_000_000_000);
    }
    let hz = |ticks: u64| ticks.saturating_mul(reference.hz()) / periods;
    (Frequency::from_hz(hz(end.tsc.since(start.tsc))), hz(start.apic.wrapping_sub(end.apic).into()))
}

/// Returns the time-stamp counter's frequency where CPUID states it: leaf 15H with a crystal clock (SDM Vol. 3B 19.7.3),
/// or a hypervisor's leaf 4000_0010H.
pub(crate) fn stated(cpuid: &raw_cpuid::CpuId<impl raw_cpuid::CpuIdReader>) -> Option<Frequency> {
    if let Some(hypervisor) = cpuid.get_hypervisor_info() {
        return hypervisor.tsc_frequency().filter(|khz| *khz != 0).map(|khz| Frequency::from_hz(u64::from(khz) * 1000));
    }
    let hz = cpuid.get_tsc_info()?.tsc_frequency()?;
    (hz != 0).then(|| Frequency::from_hz(hz))
}

/// Converts a stretch of the time-stamp counter to counts of the local APIC's timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ratio {
    /// Counts per tick, times 2^32.
    counts: u64,
    /// The longest stretch whose counts the timer holds.
    longest: u64,
}

impl Ratio {
    pub(crate) fn new(tsc: Frequency, apic_hz: u64) -> Self {
        // Rounded up, so that no stretch is cut short.
        let counts = ((u128::from(apic_hz) << 32).div_ceil(u128::from(tsc.hz())) as u64).max(1);
        Self { counts, longest: ((u64::from(u32::MAX) << 32) / counts).min(u64::MAX / counts) }
    }

    /// Returns the counts for `ticks`, 1 at least, rounded up. A stretch longer than the timer holds is cut.
    #[inline]
    pub(crate) fn counts(self, ticks: u64) -> u32 {
        let product = ticks.min(self.longest) * self.counts;
        u32::try_from((product >> 32) + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_never_early_and_hardly_late(tsc in 1_000_000u64..6_000_000_000, apic in 1_000_000u64..2_000_000_000, shift in 0u32..64, ticks: u64) {
            let ticks = ticks >> shift;
            let ratio = Ratio::new(Frequency::from_hz(tsc), apic);
            let exact = (u128::from(ticks) * u128::from(apic)).div_ceil(u128::from(tsc));
            let counts = u128::from(ratio.counts(ticks));
            // The ratio is rounded up by less than 2^-32.
            let slack = 1 + u128::from(ticks >> 32);
            if exact + slack < 1 << 32 {
                prop_assert!(counts >= exact && counts <= exact + slack, "{} for {}", counts, exact);
            } else {
                prop_assert!(counts >= 1 << 31, "{} for {}", counts, exact);
            }
        }
    }

    #[test]
    fn a_power_management_timer_of_24_bits_wraps_at_them() {
        assert_eq!(Reference::PowerManagement(0, false).since(0xFF_FFF0, 0x10), 0x20);
        assert_eq!(Reference::PowerManagement(0, true).since(0xFF_FFF0, 0x0100_0010), 0x20);
    }
}
