//! Guest addresses as types; host addresses are those of the `x86_64` crate.

use core::fmt;

/// Bytes in a 4 KiB page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Takes the number as the address; any 64-bit value is one.
            #[inline]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// Returns the address as a number.
            #[inline]
            pub const fn as_u64(self) -> u64 {
                self.0
            }
            /// Returns the address `bytes` further on, wrapping at 2^64 as the processor's address arithmetic does.
            #[inline]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
            /// Returns the address `bytes` further on, or `None` past 2^64.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// Returns the offset of the address in its 4 KiB page.
            #[inline]
            pub const fn page_offset(self) -> u64 {
                self.0 % PAGE_SIZE
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A guest-physical address.
    Gpa
);
address!(
    /// A guest-linear address: what the guest's own page tables translate.
    Gva
);

/// A guest frame number: a guest-physical address divided by the size of a 4 KiB page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gfn(u64);

impl Gfn {
    /// Returns the frame that holds `address`.
    #[inline]
    pub const fn containing(address: Gpa) -> Self {
        Self(address.as_u64() / PAGE_SIZE)
    }
    /// Returns the address of the frame's first byte.
    #[inline]
    pub const fn start(self) -> Gpa {
        Gpa::new(self.0 * PAGE_SIZE)
    }
}
