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
    cpu: &impl GuestState,
    paging: &Paging,
    code_bits: u32,
    Reference { segment: register, offset, bytes, write }: Reference,
) -> Result<Gva, Event> {
    let fault = if register == SegmentRegister::Ss { STACK_FAULT } else { Event::GENERAL_PROTECTION };
    let more = bytes.saturating_sub(1);
    if code_bits == 64 {
        let address = match register {
            SegmentRegister::Fs | SegmentRegister::Gs => cpu.segment(register).base.wrapping_add(offset),
            _ => offset,
        };
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
