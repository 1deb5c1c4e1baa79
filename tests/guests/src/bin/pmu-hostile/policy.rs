//! What the image's filters deny, told once more and in another way.

use guests::boot::has_word;

/// A policy of the image's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// No branches but the conditional ones (C4H/11H), no reference cycles, neither fixed counter 1 nor 2.
    Deny,
    /// Conditional branches, core cycles and references to the last level with what missed there; of the fixed counters 1.
    Allow,
    /// Whatever there is.
    All,
}

/// Returns the policy that the command line names.
pub(crate) fn named() -> Policy {
    if has_word("policy=deny") {
        Policy::Deny
    } else if has_word("policy=allow") {
        Policy::Allow
    } else {
        Policy::All
    }
}

impl Policy {
    /// Returns whether a selector names an event that is denied.
    pub(crate) fn denies(self, selector: u64) -> bool {
        let (event, unit_mask) = (selector & 0xff, selector >> 8 & 0xff);
        match self {
            Self::Deny => match event {
                0xc4 => unit_mask != 0x11,
                0x3c => unit_mask == 1,
                _ => false,
            },
            Self::Allow => {
                let memory = event == 0x2e && (unit_mask == 0x41 || unit_mask == 0x4f);
                !(memory || event == 0xc4 && unit_mask == 0x11 || event == 0x3c && unit_mask == 0)
            }
            Self::All => false,
        }
    }

    /// Returns whether a fixed counter is denied.
    pub(crate) fn denies_fixed(self, n: u32) -> bool {
        match self {
            Self::Deny => n == 1 || n == 2,
            Self::Allow => n != 1,
            Self::All => false,
        }
    }
}
