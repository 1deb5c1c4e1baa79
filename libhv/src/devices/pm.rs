//! ACPI fixed hardware: PM1 event and control registers, the power-management timer, and the reset register.
//!
//! ACPI is always enabled (SCI_EN is fixed at 1, there is no SMI command port). Sleep type 5 is S5, soft off; others do
//! nothing (ACPI 6.5 §4.8).

use super::clock::Clock;
use crate::exit::{StopReason, Width};
use crate::time::{Frequency, Tsc};

/// The first port of the PM1a event block: status and enable, 16 bits each.
pub const EVENT_BLOCK: u16 = 0x600;
/// The PM1a control block, 16 bits.
pub const CONTROL_BLOCK: u16 = 0x604;
/// The power-management timer, 32 bits.
pub const TIMER_BLOCK: u16 = 0x608;
/// The first port after all of them.
pub const END: u16 = 0x60C;
/// The reset control register of PC chipsets, which the FADT gives as the reset register.
pub const RESET: u16 = 0xCF9;
/// What resets when written to [`RESET`].
pub const RESET_VALUE: u8 = 0x06;
/// The sleep type of S5.
pub const S5: u8 = 5;
/// The interrupt line of the SCI: level, active high.
pub const LINE: u8 = 9;
/// Pulses of the timer in a second.
pub const TIMER_HZ: u64 = 3_579_545;

const TIMER_STATUS: u16 = 1 << 0;
const POWER_BUTTON_STATUS: u16 = 1 << 8;
/// TMR_STS, GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS.
const STATUS_BITS: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 10 | 1 << 15;
/// TMR_EN, GBL_EN, PWRBTN_EN, RTC_EN.
const ENABLE_BITS: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 10;
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
/// TMR_STS is set whenever this bit of the timer changes.
const TIMER_CARRY: u64 = 1 << 31;

/// The fixed hardware registers.
#[derive(Clone, Debug)]
pub struct PowerManagement {
    clock: Clock,
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
    /// TMR_STS is up to date until this pulse of the timer.
    seen: u64,
}

impl PowerManagement {
    /// Makes the registers of a guest whose time-stamp counter runs at `frequency`.
    pub const fn new(frequency: Frequency) -> Self {
        Self { clock: Clock::new(TIMER_HZ, frequency), status: 0, enable: 0, control: 0, reset: 0, seen: 0 }
    }

    /// Presses the power button: the guest gets an SCI if it enabled it.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON_STATUS;
    }

    /// Returns the level of the SCI.
    #[inline]
    pub const fn line(&self) -> bool {
        self.status & self.enable != 0
    }

    /// Brings TMR_STS up to date.
    pub fn advance(&mut self, now: Tsc) {
        let pulses = self.clock.pulses(now);
        if pulses / TIMER_CARRY > self.seen / TIMER_CARRY {
            self.status |= TIMER_STATUS;
        }
        self.seen = self.seen.max(pulses);
    }

    /// Returns when the timer next causes an SCI; `None` unless the guest enabled that.
    pub fn deadline(&self) -> Option<Tsc> {
        if self.enable & TIMER_STATUS == 0 || self.status & TIMER_STATUS != 0 {
            return None;
        }
        Some(self.clock.moment((self.seen / TIMER_CARRY + 1) * TIMER_CARRY))
    }

    /// Reads `width` at `port`, from [`EVENT_BLOCK`] on; what lies past the registers reads as 0.
    pub fn read(&mut self, port: u16, width: Width, now: Tsc) -> u32 {
        self.advance(now);
        let offset = port.wrapping_sub(EVENT_BLOCK);
        let registers = u128::from(self.status)
            | u128::from(self.enable) << 16
            | u128::from(self.control | SCI_ENABLED) << 32
            | u128::from(self.clock.pulses(now) as u32) << 64;
        let shifted = registers.checked_shr(8 * u32::from(offset)).unwrap_or(0);
        (shifted as u64 & width.mask()) as u32
    }

    /// Writes `width` at `port`, from [`EVENT_BLOCK`] on; returns how the guest ends if it does.
    pub fn write(&mut self, port: u16, width: Width, value: u32, now: Tsc) -> Option<StopReason> {
        self.advance(now);
        let offset = u32::from(port.wrapping_sub(EVENT_BLOCK));
        let shift = 8 * offset.min(8);
        let written = (u64::from(value) & width.mask()).checked_shl(shift).unwrap_or(0);
        let mask = width.mask().checked_shl(shift).unwrap_or(0);
        // A 1 clears its status bit.
        self.status &= !(written as u16 & STATUS_BITS);
        let enable = (mask >> 16) as u16;
        self.enable = self.enable & !enable | (written >> 16) as u16 & ENABLE_BITS;
        let control = (mask >> 32) as u16;
        let control_written = (written >> 32) as u16;
        self.control = self.control & !control | control_written & !(SLEEP_ENABLE | SCI_ENABLED);
        let sleeps = control_written & SLEEP_ENABLE != 0 && (self.control >> 10 & 7) as u8 == S5;
        sleeps.then_some(StopReason::PowerOff)
    }

    /// Reads the reset control register.
    pub const fn read_reset(&self) -> u8 {
        self.reset
    }

    /// Writes the reset control register; returns how the guest ends if it does: when RST_CPU (bit 2) goes from 0 to 1.
    pub fn write_reset(&mut self, value: u8) -> Option<StopReason> {
        let rises = value & !self.reset & 1 << 2 != 0;
        self.reset = value & 0x0E;
        rises.then_some(StopReason::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREQUENCY: Frequency = Frequency::from_hz(1_000_000_000);

    fn registers() -> PowerManagement {
        PowerManagement::new(FREQUENCY)
    }

    #[test]
    fn sleep_type_5_powers_off_whichever_way_it_is_written() {
        let asleep = u32::from(S5) << 10 | 1 << 13;
        let mut pm = registers();
        assert_eq!(pm.write(CONTROL_BLOCK, Width::Word, asleep, Tsc(0)), Some(StopReason::PowerOff));
        assert_eq!(pm.write(CONTROL_BLOCK + 1, Width::Byte, asleep >> 8, Tsc(0)), Some(StopReason::PowerOff));
        assert_eq!(pm.write(CONTROL_BLOCK, Width::Word, u32::from(S5) << 10, Tsc(0)), None);
        assert_eq!(pm.write(CONTROL_BLOCK, Width::Word, 1 << 13, Tsc(0)), None, "S0");
        assert_eq!(pm.read(CONTROL_BLOCK, Width::Word, Tsc(0)) & 1 << 13, 0, "SLP_EN reads as 0");
    }

    #[test]
    fn acpi_is_enabled_and_stays_so() {
        let mut pm = registers();
        pm.write(CONTROL_BLOCK, Width::Word, 0, Tsc(0));
        assert_eq!(pm.read(CONTROL_BLOCK, Width::Word, Tsc(0)) & 1, 1);
    }

    #[test]
    fn the_power_button_interrupts_when_enabled_until_it_is_cleared() {
        let mut pm = registers();
        pm.press_power_button();
        assert!(!pm.line());
        pm.write(EVENT_BLOCK + 2, Width::Word, 1 << 8, Tsc(0));
        assert!(pm.line());
        pm.write(EVENT_BLOCK, Width::Word, !(1 << 8), Tsc(0));
        assert!(pm.line());
        pm.write(EVENT_BLOCK, Width::Word, 1 << 8, Tsc(0));
        assert!(!pm.line());
    }

    #[test]
    fn the_timer_interrupts_when_its_highest_bit_changes() {
        let mut pm = registers();
        assert_eq!(pm.deadline(), None);
        pm.write(EVENT_BLOCK + 2, Width::Word, 1, Tsc(0));
        let deadline = pm.deadline().expect("enabled");
        pm.advance(deadline - 1);
        assert!(!pm.line());
        pm.advance(deadline);
        assert!(pm.line());
        assert_eq!(pm.read(TIMER_BLOCK, Width::Dword, deadline), 1 << 31);
        assert_eq!(pm.deadline(), None, "not again before it is cleared");
        pm.write(EVENT_BLOCK, Width::Byte, 1, deadline);
        assert_eq!(pm.read(TIMER_BLOCK, Width::Dword, pm.deadline().expect("enabled")), 0);
    }

    #[test]
    fn only_a_rising_reset_bit_resets() {
        let mut pm = registers();
        assert_eq!(pm.write_reset(0x02), None);
        assert_eq!(pm.write_reset(RESET_VALUE), Some(StopReason::Reset));
        assert_eq!(pm.write_reset(RESET_VALUE), None);
    }

    proptest! {
        #[test]
        fn bytes_and_words_read_the_same(offset in 0u16..12, value: u32, now in 0u64..1 << 50) {
            let mut pm = registers();
            pm.write(EVENT_BLOCK, Width::Dword, value, Tsc(0));
            let wide = pm.read(EVENT_BLOCK + offset, Width::Dword, Tsc(now));
            let bytes = core::array::from_fn(|index| pm.read(EVENT_BLOCK + offset + index as u16, Width::Byte, Tsc(now)) as u8);
            prop_assert_eq!(wide, u32::from_le_bytes(bytes));
            let ticks = pm.read(TIMER_BLOCK, Width::Dword, Tsc(now));
            prop_assert_eq!(ticks, (u128::from(now) * 3_579_545 / 1_000_000_000) as u32);
        }

        #[test]
        fn any_access_is_harmless(port: u16, shift in 0usize..4, value: u32, now: u64) {
            let width = Width::from_bytes(1 << shift).expect("a power of two up to 8");
            let mut pm = registers();
            let _ = pm.write(port, width, value, Tsc(now));
            pm.read(port, width, Tsc(now));
            pm.deadline();
        }
    }
}
