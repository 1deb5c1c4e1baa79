//! The MC146818 real-time clock and the CMOS memory of a PC.
//!
//! The time is computed from the time-stamp counter: a second begins where the guest started. Registers are those of
//! the Motorola MC146818A data sheet; the memory size and the century are where PC firmware puts them.

pub(crate) mod civil;

use super::clock::Clock;
use crate::time::{Frequency, Tsc};

/// The index port; bit 7 masks NMIs.
pub const INDEX: u16 = 0x70;
/// The data port.
pub const DATA: u16 = 0x71;
/// The interrupt line.
pub const LINE: u8 = 8;
/// The register that holds the century.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0A;
const B: u8 = 0x0B;
const C: u8 = 0x0C;
const D: u8 = 0x0D;

/// The registers in which the time is, in the order of [`Rtc::set_time`].
const TIME: [u8; 7] = [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY];

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const C_REQUEST: u8 = 1 << 7;
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const D_VALID: u8 = 1 << 7;
/// Alarm values from here on match everything.
const DO_NOT_CARE: u8 = 0xC0;
const PM: u8 = 0x80;

/// The last second of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;
const CRYSTAL_HZ: u64 = 32_768;
/// How long before a second ends the update is in progress, as a part of a second: 244 microseconds.
const UPDATE_PART: u64 = 4096;

/// The clock and its memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    frequency: Frequency,
    crystal: Clock,
    /// The index with the NMI mask.
    index: u8,
    memory: [u8; 128],
    /// A moment at which a second began, and which: since 1970-01-01.
    base: Tsc,
    base_seconds: i64,
    /// Interrupt flags, as register C has them.
    flags: u8,
    /// Flags are up to date until this second and this period.
    seen_seconds: i64,
    seen_periods: u64,
}

impl Rtc {
    /// Makes the clock of a guest that starts at `start`, when it is `wall_clock` seconds past 1970-01-01 UTC, and that
    /// has these sizes of memory in bytes.
    pub fn new(frequency: Frequency, start: Tsc, wall_clock: u64, memory_below_4g: u64, memory_above_4g: u64) -> Self {
        let seconds = i64::try_from(wall_clock).unwrap_or(i64::MAX).min(LAST_SECOND);
        let crystal = Clock::new(CRYSTAL_HZ, frequency);
        let mut rtc = Self {
            frequency,
            crystal,
            index: 0,
            memory: [0; 128],
            base: start,
            base_seconds: seconds,
            flags: 0,
            seen_seconds: seconds,
            seen_periods: 0,
        };
        rtc.memory[usize::from(A)] = 0x26;
        rtc.seen_periods = rtc.period().map_or(0, |period| crystal.pulses(start) / period);
        rtc.memory[usize::from(B)] = B_24_HOURS;
        rtc.store_memory_size(memory_below_4g, memory_above_4g);
        rtc
    }

    /// Stores the memory size as PC firmware does.
    fn store_memory_size(&mut self, below_4g: u64, above_4g: u64) {
        let capped = |units: u64| (units.min(0xFFFF) as u16).to_le_bytes();
        let base = capped((below_4g / 1024).min(640));
        let extended = capped(below_4g.saturating_sub(1 << 20) / 1024);
        let above_16m = capped(below_4g.saturating_sub(16 << 20) / 0x1_0000);
        let above_4g = (above_4g / 0x1_0000).min(0xFF_FFFF).to_le_bytes();
        for (at, bytes) in [(0x15, base), (0x17, extended), (0x30, extended), (0x34, above_16m)] {
            self.memory[at..at + 2].copy_from_slice(&bytes);
        }
        self.memory[0x5B..0x5E].copy_from_slice(&above_4g[..3]);
    }

    /// Returns whether the guest masked NMIs of the chipset.
    pub const fn masks_nmi(&self) -> bool {
        self.index & 0x80 != 0
    }

    /// Returns the level of the interrupt line.
    pub const fn line(&self) -> bool {
        self.flags & self.memory[B as usize] & (PERIODIC | ALARM | UPDATE) != 0
    }

    const fn control(&self, bit: u8) -> bool {
        self.memory[B as usize] & bit != 0
    }

    /// Returns the second at `now`.
    fn seconds(&self, now: Tsc) -> i64 {
        let since = now.since(self.base) / self.frequency.hz();
        self.base_seconds.saturating_add_unsigned(since).min(LAST_SECOND)
    }

    /// Returns when a second begins.
    fn moment(&self, seconds: i64) -> Tsc {
        let whole = u64::try_from(seconds.saturating_sub(self.base_seconds)).unwrap_or(0);
        self.base + whole.saturating_mul(self.frequency.hz())
    }

    /// Pulses of the crystal in a period of the periodic interrupt.
    fn period(&self) -> Option<u64> {
        match self.memory[usize::from(A)] & 0x0F {
            0 => None,
            // The fastest two rates cannot be had from a crystal of 32768 Hz.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Returns the first second after `after` at which the alarm goes off; `None` when it never does.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let wanted = |register: usize, hours: bool, end: u8| match self.memory[register] {
            DO_NOT_CARE.. => Some(None),
            raw => {
                let value = if hours { self.decode_hours(raw) } else { self.decode(raw) };
                (value < end).then_some(Some(i64::from(value)))
            }
        };
        let second = wanted(SECONDS_ALARM, false, 60)?;
        let minute = wanted(MINUTES_ALARM, false, 60)?;
        let hour = wanted(HOURS_ALARM, true, 24)?;
        let mut at = after + 1;
        // Each step goes to where the coarser unit can match and the finer ones begin.
        if let Some(hour) = hour
            && at.rem_euclid(86_400) / 3600 != hour
        {
            at = at - at.rem_euclid(3600) + (hour - at.rem_euclid(86_400) / 3600).rem_euclid(24) * 3600;
        }
        if let Some(minute) = minute
            && at.rem_euclid(3600) / 60 != minute
        {
            at = at - at.rem_euclid(60) + (minute - at.rem_euclid(3600) / 60).rem_euclid(60) * 60;
        }
        if let Some(second) = second {
            at += (second - at.rem_euclid(60)).rem_euclid(60);
        }
        // The finer units may have carried out of the coarser ones; the coarser then begin anew.
        let matches = |at: i64| {
            hour.is_none_or(|hour| at.rem_euclid(86_400) / 3600 == hour)
                && minute.is_none_or(|minute| at.rem_euclid(3600) / 60 == minute)
        };
        if matches(at) { Some(at) } else { self.next_alarm(at - at.rem_euclid(60) - 1) }
    }

    /// Brings the interrupt flags to `now`.
    pub fn advance(&mut self, now: Tsc) {
        let seconds = self.seconds(now);
        if !self.control(B_SET) && seconds > self.seen_seconds {
            self.flags |= UPDATE;
            if self.flags & ALARM == 0 && self.next_alarm(self.seen_seconds).is_some_and(|alarm| alarm <= seconds) {
                self.flags |= ALARM;
            }
        }
        self.seen_seconds = seconds;
        if let Some(period) = self.period() {
            let periods = self.crystal.pulses(now) / period;
            if periods > self.seen_periods {
                self.flags |= PERIODIC;
            }
            self.seen_periods = periods;
        }
    }

    /// Returns when the clock next interrupts; `None` when it will not, or a flag that would is still set.
    pub fn deadline(&self) -> Option<Tsc> {
        let waits = |bit: u8| self.control(bit) && self.flags & bit == 0;
        let runs = !self.control(B_SET);
        let update = (runs && waits(UPDATE)).then(|| self.moment(self.seen_seconds + 1));
        let alarm = (runs && waits(ALARM)).then(|| self.next_alarm(self.seen_seconds)).flatten();
        let alarm = alarm.map(|alarm| self.moment(alarm));
        let periodic = self.period().filter(|_| waits(PERIODIC));
        let periodic = periodic.map(|period| self.crystal.moment((self.seen_periods + 1).saturating_mul(period)));
        [update, alarm, periodic].into_iter().flatten().min()
    }

    fn encode(&self, value: u8) -> u8 {
        if self.control(B_BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, raw: u8) -> u8 {
        if self.control(B_BINARY) { raw } else { (raw >> 4) * 10 + (raw & 0xF) }
    }

    fn encode_hours(&self, hours: u8) -> u8 {
        if self.control(B_24_HOURS) {
            return self.encode(hours);
        }
        let twelve = (hours + 11) % 12 + 1;
        self.encode(twelve) | if hours >= 12 { PM } else { 0 }
    }

    fn decode_hours(&self, raw: u8) -> u8 {
        if self.control(B_24_HOURS) {
            return self.decode(raw);
        }
        self.decode(raw & !PM) % 12 + if raw & PM != 0 { 12 } else { 0 }
    }

    /// Returns a register of the time, and the weekday.
    fn time(&self, register: u8, seconds: i64) -> u8 {
        let days = seconds.div_euclid(86_400);
        let second = seconds.rem_euclid(86_400);
        let (year, month, day) = civil::date(days);
        match register {
            SECONDS => self.encode((second % 60) as u8),
            MINUTES => self.encode((second / 60 % 60) as u8),
            HOURS => self.encode_hours((second / 3600) as u8),
            // 1970-01-01 was a Thursday; Sunday is 1.
            WEEKDAY => self.encode(((days + 4).rem_euclid(7) + 1) as u8),
            DAY => self.encode(day),
            MONTH => self.encode(month),
            YEAR => self.encode((year % 100) as u8),
            _ => self.encode((year / 100) as u8),
        }
    }

    /// Copies the running time to its registers, where a halted clock keeps it.
    fn freeze(&mut self, now: Tsc) {
        let seconds = self.seconds(now);
        for register in TIME.into_iter().chain([WEEKDAY]) {
            self.memory[usize::from(register)] = self.time(register, seconds);
        }
    }

    /// Sets the running time to what the registers hold; the second goes on where it was.
    fn set_time(&mut self, now: Tsc) {
        let raw = TIME.map(|register| self.memory[usize::from(register)]);
        let [second, minute, _, day, month, year, century] = raw.map(|raw| self.decode(raw));
        let hour = self.decode_hours(raw[2]);
        let year = (u16::from(century) * 100 + u16::from(year)).min(9999);
        let seconds = civil::days(year, month, day) * 86_400
            + i64::from(hour) * 3600
            + i64::from(minute) * 60
            + i64::from(second);
        self.base = now - now.since(self.base) % self.frequency.hz();
        self.base_seconds = seconds;
        self.seen_seconds = seconds;
    }

    /// Reads the index or the data port.
    pub fn read(&mut self, port: u16, now: Tsc) -> u8 {
        if port != DATA {
            return self.index;
        }
        self.advance(now);
        let halted = self.control(B_SET);
        match self.index & 0x7F {
            A => {
                let hz = self.frequency.hz();
                let left = hz - now.since(self.base) % hz;
                let updating = !halted && left <= hz / UPDATE_PART;
                self.memory[usize::from(A)] | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            C => {
                let request = if self.line() { C_REQUEST } else { 0 };
                core::mem::take(&mut self.flags) | request
            }
            D => D_VALID,
            register if !halted && (TIME.contains(&register) || register == WEEKDAY) => {
                self.time(register, self.seconds(now))
            }
            register => self.memory[usize::from(register)],
        }
    }

    /// Writes the index or the data port.
    pub fn write(&mut self, port: u16, value: u8, now: Tsc) {
        if port != DATA {
            self.index = value;
            return;
        }
        self.advance(now);
        let register = self.index & 0x7F;
        let halted = self.control(B_SET);
        match register {
            C | D => {}
            A => {
                self.memory[usize::from(A)] = value & !A_UPDATE_IN_PROGRESS;
                if let Some(period) = self.period() {
                    self.seen_periods = self.crystal.pulses(now) / period;
                }
            }
            B => {
                if !halted && value & B_SET != 0 {
                    self.freeze(now);
                }
                // Setting the clock ends the update interrupt.
                self.memory[usize::from(B)] = if value & B_SET != 0 { value & !UPDATE } else { value };
                if halted && value & B_SET == 0 {
                    self.set_time(now);
                }
            }
            _ if TIME.contains(&register) && !halted => {
                self.freeze(now);
                self.memory[usize::from(register)] = value;
                self.set_time(now);
            }
            _ => self.memory[usize::from(register)] = value,
        }
    }
}

#[cfg(test)]
mod tests;
