//! The machine's real-time clock (MC146818): what the clock on the wall says when a guest starts.
#![expect(unsafe_code, reason = "reads the real-time clock through ports")]

use crate::devices::rtc::civil;
use x86_64::instructions::port::Port;

/// Registers: seconds, minutes, hours, day, month, year.
const REGISTERS: [u8; 6] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09];
/// Register A; bit 7 says that an update is under way.
const A: u8 = 0x0A;
/// Register B; bit 1: hours up to 23, bit 2: binary.
const B: u8 = 0x0B;

fn read(register: u8) -> u8 {
    // SAFETY: selecting a register of the clock changes nothing else; bit 7, which masks NMIs, stays 0.
    unsafe { Port::<u8>::new(0x70).write(register) };
    // SAFETY: none of the registers that are read here has a side effect.
    unsafe { Port::<u8>::new(0x71).read() }
}

/// Returns seconds since 1970-01-01 by the machine's clock, taken as UTC; 0 where it makes no sense.
pub(crate) fn seconds() -> u64 {
    // A reading across an update is torn: two that agree are not. A clock that is not there reads all ones.
    for _ in 0..1000 {
        if read(A) & 0x80 == 0 {
            let first = REGISTERS.map(read);
            if read(A) & 0x80 == 0 && first == REGISTERS.map(read) {
                return seconds_of(first, read(B)).unwrap_or(0);
            }
        }
    }
    0
}

/// Converts the clock's registers, in the format that register B says. Years are those of the 21st century.
fn seconds_of(registers: [u8; 6], format: u8) -> Option<u64> {
    let binary = |value: u8| {
        let value = u64::from(value);
        if format & 4 != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    };
    let [second, minute, hour, day, month, year] = registers;
    let hours = if format & 2 != 0 {
        binary(hour)
    } else {
        // 12, 1, ... 11 with bit 7 for the afternoon.
        binary(hour & 0x7F) % 12 + if hour & 0x80 != 0 { 12 } else { 0 }
    };
    let (second, minute, day, month, year) =
        (binary(second), binary(minute), binary(day), binary(month), 2000 + binary(year));
    if second > 59 || minute > 59 || hours > 23 || !(1..=31).contains(&day) || !(1..=12).contains(&month) {
        return None;
    }
    let days = u64::try_from(civil::days(year as u16, month as u8, day as u8)).ok()?;
    Some((days * 24 + hours) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_a_calendar() {
        let cases = [
            ([0, 0, 0, 1, 1, 0], 6, 946_684_800),
            ([0x59, 0x59, 0x23, 0x29, 0x02, 0x24], 2, 1_709_251_199),
            ([0x30, 0x15, 0x92, 0x21, 0x11, 0x26], 0, 1_795_263_330),
            ([0x30, 0x15, 0x12, 0x21, 0x11, 0x26], 0, 1_795_220_130),
        ];
        for (registers, format, seconds) in cases {
            assert_eq!(seconds_of(registers, format), Some(seconds), "{registers:x?}");
        }
        assert_eq!(seconds_of([0xFF; 6], 0xFF), None);
    }
}
