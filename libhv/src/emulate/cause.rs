//! What an exit says of the instruction that is to be emulated.

use crate::address::{Gpa, PAGE_SIZE};
use crate::exit::NestedPageFault;

/// The longest instruction, in bytes (SDM Vol. 2A 2.3.11).
const LONGEST: usize = 15;

/// What the processor has found out about an instruction by the time it exits. All of it saves work and none is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cause {
    fetched: [u8; LONGEST],
    length: u8,
    access: Option<(Gpa, bool)>,
}

impl Cause {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { fetched: [0; LONGEST], length: 0, access: None };

    /// Takes the instruction's bytes, of which there may be none or too few, and the access that nested paging refused.
    #[inline]
    pub fn new(fetched: &[u8], fault: Option<&NestedPageFault>) -> Self {
        let mut cause = Self::UNKNOWN;
        if !fetched.is_empty() {
            for (to, from) in cause.fetched.iter_mut().zip(fetched) {
                *to = *from;
            }
            cause.length = fetched.len().min(LONGEST) as u8;
        }
        cause.access = fault.filter(|fault| !fault.page_walk && !fault.fetch).map(|fault| (fault.gpa, fault.write));
        cause
    }

    /// Returns the instruction's bytes as far as they are known.
    #[inline]
    pub(super) fn fetched(&self) -> &[u8] {
        self.fetched.get(..self.length.into()).unwrap_or(&[])
    }

    /// Returns where the only operand in memory lies, if the exit was for an access to it: one that writes where the
    /// instruction does, to the same place in a page. Whatever another processor has made of the instruction or the
    /// tables since, the guest's tables have allowed that access, and marked it.
    #[inline]
    pub(super) fn place(&self, linear: u64, bytes: u64, write: bool) -> Option<Gpa> {
        let (gpa, wrote) = self.access?;
        let offset = linear % PAGE_SIZE;
        (gpa.page_offset() == offset && offset + bytes <= PAGE_SIZE && (wrote || !write)).then_some(gpa)
    }
}
