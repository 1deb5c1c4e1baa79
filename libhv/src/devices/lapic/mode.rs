//! IA32_APIC_BASE: off, xAPIC, x2APIC, and where the registers lie (SDM Vol. 3A 11.4.4, 11.12.5).

use super::{GeneralProtection, LocalApic};
use crate::address::Gpa;

const BOOTSTRAP: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;
const PAGE: u64 = 0xFEE0_0000;

/// Returns the register's value after power-up.
pub(super) const fn at_reset(bootstrap: bool) -> u64 {
    PAGE | ENABLE | if bootstrap { BOOTSTRAP } else { 0 }
}

impl LocalApic {
    /// Returns whether IA32_APIC_BASE enables the local APIC.
    #[inline]
    pub const fn enabled(&self) -> bool {
        self.base & ENABLE != 0
    }

    /// Returns whether the local APIC is in x2APIC mode.
    #[inline]
    pub const fn x2apic(&self) -> bool {
        self.base & X2APIC != 0
    }

    /// Returns the page that holds the registers in xAPIC mode, a multiple of 4096; `None` in the other modes.
    #[inline]
    pub const fn page(&self) -> Option<Gpa> {
        if self.base & (ENABLE | X2APIC) == ENABLE { Some(Gpa::new(self.base & !0xFFF)) } else { None }
    }

    /// Returns IA32_APIC_BASE.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. Turning the local APIC off loses its registers; entering x2APIC mode keeps all but the
    /// ICR's destination, the DFR and the LDR, which x2APIC mode has not, or derives.
    ///
    /// # Errors
    /// When a reserved bit is set, or the modes do not follow each other: x2APIC mode is entered from xAPIC mode and
    /// left for off only.
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let above = u64::MAX.checked_shl(self.physical_address_bits.into()).unwrap_or(0);
        if value & (above | 0xFF | 1 << 9) != 0 {
            return Err(GeneralProtection);
        }
        const XAPIC: u64 = ENABLE;
        const BOTH: u64 = ENABLE | X2APIC;
        match (self.base & BOTH, value & BOTH) {
            (_, X2APIC) | (0, BOTH) | (BOTH, XAPIC) => return Err(GeneralProtection),
            (XAPIC | BOTH, 0) => self.reset_registers(),
            (XAPIC, BOTH) => {
                self.command &= 0xFFFF_FFFF;
                self.destination_format = u32::MAX;
                self.logical_destination = 0;
            }
            _ => {}
        }
        self.base = value;
        Ok(())
    }
}
