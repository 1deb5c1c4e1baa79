//! The registers as MSRs, and which accesses x2APIC mode refuses (SDM Vol. 3A 11.12.1).

use super::lvt;
use super::registers::*;
use super::{Effect, GeneralProtection, IA32_APIC_BASE, IA32_TSC_DEADLINE, LocalApic};
use crate::exit::Msr;
use crate::time::Tsc;

/// The first MSR of x2APIC mode.
const FIRST: u32 = 0x800;
/// The MSRs that are set aside for it.
const SIZE: u32 = 0x100;

impl LocalApic {
    /// Returns whether an MSR belongs to the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE and 800H-8FFH.
    #[inline]
    pub const fn owns(msr: Msr) -> bool {
        Self::owns_in_x2apic_mode(msr) || msr.0 == IA32_TSC_DEADLINE || msr.0 == IA32_APIC_BASE
    }

    /// Returns whether an MSR is one of those that x2APIC mode has: 800H-8FFH.
    #[inline]
    pub const fn owns_in_x2apic_mode(msr: Msr) -> bool {
        msr.0.wrapping_sub(FIRST) < SIZE
    }

    /// Reads an MSR; `now` serves the timer.
    ///
    /// # Errors
    /// When there is no such register, it cannot be read, or the local APIC is not in x2APIC mode.
    pub fn read_msr(&mut self, msr: Msr, now: Tsc) -> Result<u64, GeneralProtection> {
        match msr.0 {
            IA32_APIC_BASE => return Ok(self.base),
            IA32_TSC_DEADLINE => {
                self.advance(now);
                return Ok(self.timer.tsc_deadline());
            }
            _ => {}
        }
        let number = self.number(msr)?;
        match number {
            ID => Ok(self.id.into()),
            LDR => Ok(self.logical_id().into()),
            ICR => Ok(self.command),
            _ => self.read_shared(number, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes an MSR; `now` serves the timer.
    ///
    /// # Errors
    /// When there is no such register, it cannot be written, a reserved bit is set, or the local APIC is not in
    /// x2APIC mode.
    #[inline]
    pub fn write_msr(&mut self, msr: Msr, value: u64, now: Tsc) -> Result<Effect, GeneralProtection> {
        match msr.0 {
            IA32_TSC_DEADLINE => {
                self.advance(now);
                self.timer.set_tsc_deadline(value);
                self.advance(now);
                return Ok(Effect::None);
            }
            IA32_APIC_BASE => return self.set_base(value).map(|()| Effect::None),
            _ => {}
        }
        let number = self.number(msr)?;
        if value & !allowed(number)? != 0 {
            return Err(GeneralProtection);
        }
        match number {
            EOI => return Ok(self.end_of_interrupt()),
            SELF_IPI => self.send_to_self(value as u8),
            ICR => {
                self.command = value & (!0xFFFF_FFFF | u64::from(ICR_WRITABLE));
                return Ok(self.send(self.command));
            }
            _ => {
                self.write_shared(number, value as u32, now);
            }
        }
        Ok(Effect::None)
    }

    /// Returns the number of the register that an MSR is in x2APIC mode.
    #[inline]
    fn number(&self, msr: Msr) -> Result<u32, GeneralProtection> {
        let number = msr.0.wrapping_sub(FIRST);
        if self.x2apic() && number < SIZE { Ok(number) } else { Err(GeneralProtection) }
    }
}

/// Returns the bits that may be 1 in a write to register `number`, read-only ones that are merely ignored included.
#[inline]
fn allowed(number: u32) -> Result<u64, GeneralProtection> {
    Ok(match number {
        EOI | ESR => 0,
        TPR | SELF_IPI => 0xFF,
        SVR => SVR_WRITABLE.into(),
        // Bit 12, the delivery status of xAPIC mode, is ignored.
        ICR => !0xFFFF_FFFF | u64::from(ICR_WRITABLE) | 1 << 12,
        LVT_TIMER..=LVT_ERROR => {
            let index = (number - LVT_TIMER) as usize;
            u64::from(lvt::WRITABLE[index] | lvt::READ_ONLY[index])
        }
        INITIAL_COUNT => 0xFFFF_FFFF,
        DIVIDE => 0b1011,
        _ => return Err(GeneralProtection),
    })
}
