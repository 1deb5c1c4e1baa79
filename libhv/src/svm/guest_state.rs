//! The guest's registers in the VMCB.

use super::vcpu::Svm;
use super::vmcb::{SaveArea, VmcbSegment};
use crate::registers::{
    ControlRegister, DescriptorTable, EFER_SVME, EntryState, Gpr, GuestState, Segment, SegmentAttributes,
    SegmentRegister,
};
use bit_field::BitField;

impl VmcbSegment {
    /// Returns the segment in the VMCS's words: the VMCB keeps AVL, L, D and G in bits 11:8 (APM Vol. 2 15.5.1), and
    /// has no "unusable" but only a P bit.
    fn segment(self) -> Segment {
        let low = u32::from(self.attributes).get_bits(0..8);
        let high = u32::from(self.attributes).get_bits(8..12);
        let attributes = low | high << 12 | if low.get_bit(7) { 0 } else { SegmentAttributes::UNUSABLE.0 };
        Segment {
            selector: self.selector,
            base: self.base,
            limit: self.limit,
            attributes: SegmentAttributes(attributes),
        }
    }

    fn from_segment(segment: Segment) -> Self {
        let bits = segment.attributes.0;
        let attributes =
            if segment.attributes.unusable() { 0 } else { (bits.get_bits(0..8) | bits.get_bits(12..16) << 8) as u16 };
        Self { selector: segment.selector, attributes, limit: segment.limit, base: segment.base }
    }

    fn from_table(table: DescriptorTable) -> Self {
        Self { selector: 0, attributes: 0, limit: table.limit.into(), base: table.base }
    }

    fn table(self) -> DescriptorTable {
        DescriptorTable { base: self.base, limit: self.limit as u16 }
    }
}

impl SaveArea {
    fn slot(&self, register: SegmentRegister) -> &VmcbSegment {
        match register {
            SegmentRegister::Es => &self.es,
            SegmentRegister::Cs => &self.cs,
            SegmentRegister::Ss => &self.ss,
            SegmentRegister::Ds => &self.ds,
            SegmentRegister::Fs => &self.fs,
            SegmentRegister::Gs => &self.gs,
            SegmentRegister::Ldtr => &self.ldtr,
            SegmentRegister::Tr => &self.tr,
        }
    }

    fn slot_mut(&mut self, register: SegmentRegister) -> &mut VmcbSegment {
        match register {
            SegmentRegister::Es => &mut self.es,
            SegmentRegister::Cs => &mut self.cs,
            SegmentRegister::Ss => &mut self.ss,
            SegmentRegister::Ds => &mut self.ds,
            SegmentRegister::Fs => &mut self.fs,
            SegmentRegister::Gs => &mut self.gs,
            SegmentRegister::Ldtr => &mut self.ldtr,
            SegmentRegister::Tr => &mut self.tr,
        }
    }

    /// Sets all that a loader or a reset determines.
    pub(super) fn load(&mut self, entry: &EntryState) {
        for register in SegmentRegister::ALL {
            *self.slot_mut(register) = VmcbSegment::from_segment(entry.segments[register as usize]);
        }
        self.gdtr = VmcbSegment::from_table(entry.gdtr);
        self.idtr = VmcbSegment::from_table(entry.idtr);
        self.cpl = entry.segments[SegmentRegister::Ss as usize].attributes.dpl();
        self.cr0 = entry.cr0;
        self.cr3 = entry.cr3;
        self.cr4 = entry.cr4;
        self.efer = entry.efer | EFER_SVME;
        self.rflags = entry.rflags;
        self.rip = entry.rip;
        self.rsp = entry.gprs[Gpr::Rsp as usize];
        self.rax = entry.gprs[Gpr::Rax as usize];
        self.dr6 = 0xFFFF_0FF0;
        self.dr7 = 0x400;
        self.cr2 = 0;
    }

    /// Returns GDTR and IDTR.
    pub(super) fn tables(&self) -> (DescriptorTable, DescriptorTable) {
        (self.gdtr.table(), self.idtr.table())
    }
}

impl GuestState for Svm {
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        let registers = &self.registers;
        match register {
            Gpr::Rax => self.vmcb.save.rax,
            Gpr::Rsp => self.vmcb.save.rsp,
            Gpr::Rcx => registers.rcx,
            Gpr::Rdx => registers.rdx,
            Gpr::Rbx => registers.rbx,
            Gpr::Rbp => registers.rbp,
            Gpr::Rsi => registers.rsi,
            Gpr::Rdi => registers.rdi,
            Gpr::R8 => registers.r8,
            Gpr::R9 => registers.r9,
            Gpr::R10 => registers.r10,
            Gpr::R11 => registers.r11,
            Gpr::R12 => registers.r12,
            Gpr::R13 => registers.r13,
            Gpr::R14 => registers.r14,
            Gpr::R15 => registers.r15,
        }
    }
    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        let registers = &mut self.registers;
        let slot = match register {
            Gpr::Rax => &mut self.vmcb.save.rax,
            Gpr::Rsp => &mut self.vmcb.save.rsp,
            Gpr::Rcx => &mut registers.rcx,
            Gpr::Rdx => &mut registers.rdx,
            Gpr::Rbx => &mut registers.rbx,
            Gpr::Rbp => &mut registers.rbp,
            Gpr::Rsi => &mut registers.rsi,
            Gpr::Rdi => &mut registers.rdi,
            Gpr::R8 => &mut registers.r8,
            Gpr::R9 => &mut registers.r9,
            Gpr::R10 => &mut registers.r10,
            Gpr::R11 => &mut registers.r11,
            Gpr::R12 => &mut registers.r12,
            Gpr::R13 => &mut registers.r13,
            Gpr::R14 => &mut registers.r14,
            Gpr::R15 => &mut registers.r15,
        };
        *slot = value;
    }
    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }
    #[inline]
    fn set_rip(&mut self, value: u64) {
        self.vmcb.save.rip = value;
    }
    #[inline]
    fn rflags(&self) -> u64 {
        self.guest_rflags()
    }
    #[inline]
    fn set_rflags(&mut self, value: u64) {
        self.set_guest_rflags(value);
    }
    #[inline]
    fn control(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => self.vmcb.save.cr0,
            ControlRegister::Cr2 => self.vmcb.save.cr2,
            ControlRegister::Cr3 => self.vmcb.save.cr3,
            ControlRegister::Cr4 => self.vmcb.save.cr4,
        }
    }
    fn set_control(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => self.vmcb.save.cr0 = value,
            ControlRegister::Cr2 => self.vmcb.save.cr2 = value,
            ControlRegister::Cr3 => self.vmcb.save.cr3 = value,
            ControlRegister::Cr4 => self.vmcb.save.cr4 = value,
        }
    }
    /// SVME is the host's: the guest reads 0.
    #[inline]
    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !EFER_SVME
    }
    fn set_efer(&mut self, value: u64) {
        self.vmcb.save.efer = value | EFER_SVME;
    }
    #[inline]
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.vmcb.save.slot(register).segment()
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        *self.vmcb.save.slot_mut(register) = VmcbSegment::from_segment(segment);
    }
    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_packed_as_the_manual_packs_them() {
        let packed = |attributes| VmcbSegment::from_segment(Segment::flat(8, attributes)).attributes;
        assert_eq!(packed(SegmentAttributes::CODE64), 0xA9B);
        assert_eq!(packed(SegmentAttributes::DATA32), 0xC93);
        assert_eq!(packed(SegmentAttributes::UNUSABLE), 0);
    }

    proptest! {
        #[test]
        fn a_present_segment_survives(selector: u16, base: u64, limit: u32, low in 0x80u32..0x100, high in 0u32..16) {
            let segment = Segment { selector, base, limit, attributes: SegmentAttributes(low | high << 12) };
            prop_assert_eq!(VmcbSegment::from_segment(segment).segment(), segment);
        }
    }
}
