//! The guest's registers: general ones in memory, the rest in the VMCS or still in the processor.

use super::Vmx;
use super::field;
use crate::registers::{
    CR0_PE, CR4_VMXE, ControlRegister, DescriptorTable, EFER_LMA, Gpr, GuestState, RFLAGS_VM, Segment,
    SegmentAttributes, SegmentRegister,
};
use bit_field::BitField;

/// CR0 bits that are the guest's own: PE, MP, EM, TS, ET, WP, AM and PG. Under "unrestricted guest" the processor
/// follows them without the host: it keeps EFER.LMA and the entry control true, and loads PDPTEs.
pub(super) const CR0_OWN: u64 = 0x8005_001F;
/// CR0.NE, which VMX operation wants set.
const CR0_NE: u64 = 1 << 5;
/// CR0.ET, which is always set.
const CR0_ET: u64 = 1 << 4;

/// CR4.MCE: machine checks are delivered; without it they shut the processor down.
const CR4_MCE: u64 = 1 << 6;
/// CR4 bits that the guest never owns: VMXE, which VMX operation wants set, and MCE, which guards the host.
pub(super) const CR4_HOST: u64 = CR4_VMXE | CR4_MCE;

/// Returns access rights that agree with the limit in what granularity goes with it (SDM Vol. 3C 27.3.1.2): a guest's
/// segment always does, one from a table of a loader may not.
fn with_granularity(segment: Segment) -> u32 {
    let mut rights = segment.attributes.0;
    if segment.limit.get_bits(20..32) != 0 {
        rights.set_bit(15, true);
    } else if segment.limit.get_bits(0..12) != 0xFFF {
        rights.set_bit(15, false);
    }
    rights
}

impl GuestState for Vmx {
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rsp => self.vmcs.read(field::GUEST_RSP),
            other => self.registers.general[other as usize],
        }
    }
    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::Rsp => self.vmcs.write(field::GUEST_RSP, value),
            other => self.registers.general[other as usize] = value,
        }
    }
    #[inline]
    fn rip(&self) -> u64 {
        self.vmcs.read(field::GUEST_RIP)
    }
    #[inline]
    fn set_rip(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_RIP, value);
    }
    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcs.read(field::GUEST_RFLAGS)
    }
    #[inline]
    fn set_rflags(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_RFLAGS, value);
    }
    fn control(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => {
                let (own, shadow) = (self.vmcs.read(field::GUEST_CR0), self.vmcs.read(field::CR0_SHADOW));
                own & CR0_OWN | shadow & !CR0_OWN
            }
            ControlRegister::Cr2 => self.vmcs.cr2(),
            ControlRegister::Cr3 => self.vmcs.read(field::GUEST_CR3),
            ControlRegister::Cr4 => {
                let (own, shadow) = (self.vmcs.read(field::GUEST_CR4), self.vmcs.read(field::CR4_SHADOW));
                own & self.cr4_own | shadow & !self.cr4_own
            }
        }
    }
    fn set_control(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => {
                self.vmcs.write(field::CR0_SHADOW, value);
                self.vmcs.write(field::GUEST_CR0, value & CR0_OWN | CR0_NE | CR0_ET);
            }
            ControlRegister::Cr2 => self.vmcs.set_cr2(value),
            ControlRegister::Cr3 => self.vmcs.write(field::GUEST_CR3, value),
            ControlRegister::Cr4 => {
                self.vmcs.write(field::CR4_SHADOW, value);
                self.vmcs.write(field::GUEST_CR4, value & !CR4_HOST | self.cr4_host);
            }
        }
    }
    #[inline]
    fn efer(&self) -> u64 {
        self.vmcs.read(field::GUEST_EFER)
    }
    fn set_efer(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_EFER, value);
        self.vmcs.set_ia32e_mode(value & EFER_LMA != 0);
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        Segment {
            selector: self.vmcs.read(field::selector(register)),
            base: self.vmcs.read(field::base(register)),
            limit: self.vmcs.read(field::limit(register)),
            attributes: SegmentAttributes(self.vmcs.read(field::access_rights(register))),
        }
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.vmcs.write(field::selector(register), segment.selector);
        self.vmcs.write(field::base(register), segment.base);
        self.vmcs.write(field::limit(register), segment.limit);
        self.vmcs.write(field::access_rights(register), with_granularity(segment));
    }
    /// The DPL of SS (SDM Vol. 3C 25.4.1), but 3 in virtual-8086 mode, where SS has that (27.3.1.2), and 0 in real mode.
    #[inline]
    fn cpl(&self) -> u8 {
        match SegmentAttributes(self.vmcs.read(field::access_rights(SegmentRegister::Ss))).dpl() {
            0 => 0,
            _ if self.vmcs.read(field::GUEST_CR0) & CR0_PE == 0 => 0,
            _ if self.rflags() & RFLAGS_VM != 0 => 3,
            dpl => dpl,
        }
    }
    #[inline]
    fn code_bits(&self) -> u32 {
        let code = SegmentAttributes(self.vmcs.read(field::access_rights(SegmentRegister::Cs)));
        if code.long() && self.efer() & EFER_LMA != 0 {
            64
        } else if code.default_big() {
            32
        } else {
            16
        }
    }
}

impl Vmx {
    /// Returns GDTR and IDTR.
    pub(super) fn tables(&self) -> (DescriptorTable, DescriptorTable) {
        let table = |base, limit: u32| DescriptorTable { base, limit: limit as u16 };
        (
            table(self.vmcs.read(field::GUEST_GDTR_BASE), self.vmcs.read(field::GUEST_GDTR_LIMIT)),
            table(self.vmcs.read(field::GUEST_IDTR_BASE), self.vmcs.read(field::GUEST_IDTR_LIMIT)),
        )
    }

    /// Sets GDTR and IDTR.
    pub(super) fn set_tables(&mut self, gdtr: DescriptorTable, idtr: DescriptorTable) {
        self.vmcs.write(field::GUEST_GDTR_BASE, gdtr.base);
        self.vmcs.write(field::GUEST_GDTR_LIMIT, gdtr.limit.into());
        self.vmcs.write(field::GUEST_IDTR_BASE, idtr.base);
        self.vmcs.write(field::GUEST_IDTR_LIMIT, idtr.limit.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn limits_and_granularity_pass_the_entry_checks(limit in prop_oneof![any::<u32>(), 0u32..0x11_0000], rights in 0u32..0x10000) {
            let segment = Segment { selector: 8, base: 0, limit, attributes: SegmentAttributes(rights) };
            let adjusted = with_granularity(segment);
            let pages = adjusted >> 15 & 1 == 1;
            prop_assert_eq!(adjusted & 0x7FFF, rights & 0x7FFF);
            prop_assert!(limit & 0xFFF == 0xFFF || !pages || limit >> 20 != 0);
            prop_assert!(limit >> 20 == 0 || pages);
        }
    }
}
