//! Segmentation: from a segment and an offset to a linear address, or to the fault the processor would raise
//! (SDM Vol. 3A 5.3 to 5.5, Vol. 1 3.3.7).

use super::translate::Paging;
use crate::address::Gva;
use crate::exit::Event;
use crate::registers::{CR0_PE, ControlRegister, GuestState, RFLAGS_VM, Segment, SegmentRegister};

/// #SS with error code 0.
const STACK_FAULT: Event = Event::Exception { vector: 12, error_code: Some(0) };

/// Bytes that an instruction names in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reference {
    /// The segment.
    pub segment: SegmentRegister,
    /// The effective address of the first byte.
    pub offset: u64,
    /// How many there are, 1 at least.
    pub bytes: u64,
    /// They are written.
    pub write: bool,
}

/// Returns the linear address of what an instruction in code of `code_bits` bits (16, 32 or 64) refers to.
///
/// # Errors
/// #GP(0), or #SS(0) through SS, where the segment does not hold the bytes or does not allow the access, and in 64-bit
/// mode where an address is not canonical.
#[inline]
pub fn linear_address(
    cpu: &(impl GuestState + ?Sized),
    paging: &Paging,
    code_bits: u32,
    Reference { segment: register, offset, bytes, write }: Reference,
) -> Result<Gva, Event> {
    let fault = if register == SegmentRegister::Ss { STACK_FAULT } else { Event::GENERAL_PROTECTION };
    let more = bytes.saturating_sub(1);
    if code_bits == 64 {
        let address = address_in_64_bit_mode(cpu, register, offset);
        let last = address.wrapping_add(more);
        return if paging.canonical(address) && paging.canonical(last) { Ok(Gva::new(address)) } else { Err(fault) };
    }
    let segment = cpu.segment(register);
    let offset = offset & 0xFFFF_FFFF;
    let real = cpu.control(ControlRegister::Cr0) & CR0_PE == 0 || cpu.rflags() & RFLAGS_VM != 0;
    if !real && !type_allows(segment, write) {
        return Err(Event::GENERAL_PROTECTION);
    }
    let (first, last) = bounds(segment, real);
    if offset < first || offset + more > last {
        return Err(fault);
    }
    Ok(Gva::new(segment.base.wrapping_add(offset) & 0xFFFF_FFFF))
}

/// Returns the linear address of an offset in 64-bit mode, canonical or not: only FS and GS have a base there.
#[inline]
pub(super) fn address_in_64_bit_mode(cpu: &(impl GuestState + ?Sized), register: SegmentRegister, offset: u64) -> u64 {
    match register {
        SegmentRegister::Fs | SegmentRegister::Gs => cpu.segment(register).base.wrapping_add(offset),
        _ => offset,
    }
}

/// Returns whether a segment of protected mode may be read, or written.
fn type_allows(segment: Segment, write: bool) -> bool {
    const CODE: u8 = 1 << 3;
    const WRITABLE_OR_READABLE: u8 = 1 << 1;
    let kind = segment.attributes.segment_type();
    let right = kind & WRITABLE_OR_READABLE != 0;
    let allowed = match (kind & CODE != 0, write) {
        (true, true) => false,
        (true, false) | (false, true) => right,
        (false, false) => true,
    };
    !segment.attributes.unusable() && allowed
}

/// Returns the first and the last valid offset; data that expands down begins above its limit.
fn bounds(segment: Segment, real: bool) -> (u64, u64) {
    const CODE_OR_EXPANDS_DOWN: u8 = 0b1100;
    let limit = u64::from(segment.limit);
    if !real && segment.attributes.segment_type() & CODE_OR_EXPANDS_DOWN == 0b0100 {
        (limit + 1, if segment.attributes.default_big() { 0xFFFF_FFFF } else { 0xFFFF })
    } else {
        (0, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::PagingFeatures;
    use crate::emulate::fake::FakeCpu;
    use crate::registers::{EntryState, SegmentAttributes};

    fn judge(cpu: &FakeCpu, segment: SegmentRegister, offset: u64, bytes: u64, write: bool) -> Result<u64, Event> {
        let paging = Paging::of(cpu, PagingFeatures { physical_bits: 40, gigabyte_pages: true });
        linear_address(cpu, &paging, cpu.code_bits(), Reference { segment, offset, bytes, write }).map(Gva::as_u64)
    }

    fn data(kind: u32, base: u64, limit: u32) -> Segment {
        Segment { selector: 8, base, limit, attributes: SegmentAttributes(0x4090 | kind) }
    }

    const GP: Result<u64, Event> = Err(Event::GENERAL_PROTECTION);
    const SS: Result<u64, Event> = Err(STACK_FAULT);

    #[test]
    fn limits_hold_for_the_last_byte() {
        let mut cpu = FakeCpu::flat32(0);
        cpu.set_segment(SegmentRegister::Ds, data(0b0010, 0x1000, 0xFF));
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0xFC, 4, true), Ok(0x10FC));
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0xFD, 4, false), GP);
        cpu.set_segment(SegmentRegister::Ss, data(0b0010, 0, 0xFF));
        assert_eq!(judge(&cpu, SegmentRegister::Ss, 0xFD, 4, true), SS);
    }

    #[test]
    fn data_that_expands_down_lies_above_its_limit() {
        let mut cpu = FakeCpu::flat32(0);
        cpu.set_segment(SegmentRegister::Ds, data(0b0110, 0, 0xFFF));
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0xFFF, 1, true), GP);
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0x1000, 1, true), Ok(0x1000));
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0xFFFF_FFFF, 1, true), Ok(0xFFFF_FFFF));
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0xFFFF_FFFF, 2, true), GP);
        let small = Segment { attributes: SegmentAttributes(0x0096), ..data(0, 0, 0xFFF) };
        cpu.set_segment(SegmentRegister::Ds, small);
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0x1_0000, 1, true), GP);
    }

    #[test]
    fn types_and_null_segments_are_judged_in_protected_mode_alone() {
        let mut cpu = FakeCpu::flat32(0);
        for (kind, read, write) in
            [(0b0000, true, false), (0b0010, true, true), (0b1000, false, false), (0b1010, true, false)]
        {
            cpu.set_segment(SegmentRegister::Es, data(kind, 0, 0xFFFF));
            assert_eq!(judge(&cpu, SegmentRegister::Es, 0, 1, false).is_ok(), read, "{kind:#b}");
            assert_eq!(judge(&cpu, SegmentRegister::Es, 0, 1, true).is_ok(), write, "{kind:#b}");
        }
        cpu.set_segment(SegmentRegister::Es, Segment::unusable());
        assert_eq!(judge(&cpu, SegmentRegister::Es, 0, 1, false), GP);
        let mut real = FakeCpu::new(EntryState::real_mode(0x100, 0));
        assert_eq!(judge(&real, SegmentRegister::Cs, 0xFFFF, 1, true), Ok(0x1_0FFF), "code may be written");
        assert_eq!(judge(&real, SegmentRegister::Ds, 0xFFFF, 2, true), GP);
        real.set_segment(SegmentRegister::Fs, Segment::real_mode(0xFFFF, SegmentAttributes::DATA16));
        assert_eq!(judge(&real, SegmentRegister::Fs, 0xFFFF, 1, true), Ok(0x10_FFEF));
    }

    #[test]
    fn in_64_bit_mode_only_fs_and_gs_have_a_base() {
        let mut cpu = FakeCpu::new(EntryState::long_mode(0, 0x1000));
        for register in [SegmentRegister::Ds, SegmentRegister::Fs, SegmentRegister::Gs] {
            cpu.set_segment(register, data(0b0010, 0x7_0000_0000, 0));
        }
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0x1234, 8, true), Ok(0x1234));
        assert_eq!(judge(&cpu, SegmentRegister::Fs, 0x1234, 8, true), Ok(0x7_0000_1234));
        assert_eq!(judge(&cpu, SegmentRegister::Gs, 0x1234, 8, true), Ok(0x7_0000_1234));
        assert_eq!(judge(&cpu, SegmentRegister::Ds, 0x7FFF_FFFF_FFFC, 8, false), GP, "the last byte is not canonical");
        assert_eq!(judge(&cpu, SegmentRegister::Ss, 0x8000_0000_0000, 8, false), SS);
    }
}
