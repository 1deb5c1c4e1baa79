//! The one definition that blocks and numbers of the ABI have: from it come the Rust types, the assertions of their
//! layout as 32- and 64-bit guests see it, and the tables of the specification.

/// A value with a fixed width, as guests of any width lay it out: little-endian, no pointer and no `usize` among them.
pub trait Wire: Sized {
    /// Bytes it takes.
    const BYTES: usize;
    /// Its alignment in a structure of a 32-bit guest, where 64-bit numbers need 4 (System V ABI, i386 supplement 3.1).
    const ALIGN32: usize;
    /// Its alignment in a structure of a 64-bit guest.
    const ALIGN64: usize;
    /// Its type in the C header, and how many of it.
    const C_TYPE: (&'static str, usize);
    /// Reads it from the first bytes of `from`; what is not there reads as 0.
    fn read(from: &[u8]) -> Self;
    /// Writes it to the first bytes of `to`, as many as there are.
    fn write(&self, to: &mut [u8]);
}

macro_rules! number {
    ($number:ty, $align32:literal, $c:literal) => {
        impl Wire for $number {
            const BYTES: usize = size_of::<$number>();
            const ALIGN32: usize = $align32;
            const ALIGN64: usize = align_of::<$number>();
            const C_TYPE: (&'static str, usize) = ($c, 1);
            fn read(from: &[u8]) -> Self {
                from.first_chunk().map_or(0, |bytes| Self::from_le_bytes(*bytes))
            }
            fn write(&self, to: &mut [u8]) {
                to.iter_mut().zip(self.to_le_bytes()).for_each(|(to, byte)| *to = byte);
            }
        }
    };
}

number!(u32, 4, "uint32_t");
number!(u64, 4, "uint64_t");

impl<T: Wire, const N: usize> Wire for [T; N] {
    const BYTES: usize = N * T::BYTES;
    const ALIGN32: usize = T::ALIGN32;
    const ALIGN64: usize = T::ALIGN64;
    const C_TYPE: (&'static str, usize) = (T::C_TYPE.0, N);
    fn read(from: &[u8]) -> Self {
        core::array::from_fn(|index| T::read(from.get(index * T::BYTES..).unwrap_or(&[])))
    }
    fn write(&self, to: &mut [u8]) {
        for (index, value) in self.iter().enumerate() {
            value.write(to.get_mut(index * T::BYTES..).unwrap_or(&mut []));
        }
    }
}

/// A field of a block, for the specification.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Bytes before it.
    pub offset: usize,
    /// Bytes it takes.
    pub bytes: usize,
    /// Its type in the C header, and how many of it.
    pub c_type: (&'static str, usize),
    /// What it means.
    pub about: &'static str,
}

/// A number with a name, for the specification.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    /// The number.
    pub number: u64,
    /// What it means.
    pub about: &'static str,
}

/// A structure that guest and host share.
///
/// # The layout
/// Each field stands at the offset that is written before it, and fields follow each other without a gap: so 32- and
/// 64-bit guests agree, whatever their compilers take for the alignment of a 64-bit number. What does not hold that
/// does not compile.
macro_rules! block {
    (
        $(#[doc = $about:literal])* $name:ident: $bytes:literal {
            $($(#[doc = $doc:literal])* $offset:literal $field:ident: $type:ty,)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(C, align(8))]
        pub struct $name { $($(#[doc = $doc])* pub $field: $type,)* }

        const _: () = {
            use crate::pmu::paravirt::layout::Wire;
            assert!(size_of::<$name>() == $bytes && align_of::<$name>() == 8);
            let mut next = 0;
            $(
                assert!(core::mem::offset_of!($name, $field) == $offset, "not where the specification says");
                assert!(next == $offset, "a gap that a compiler would fill");
                assert!($offset % <$type as Wire>::ALIGN32 == 0 && $offset % <$type as Wire>::ALIGN64 == 0);
                next += <$type as Wire>::BYTES;
            )*
            assert!(next == $bytes && $bytes % 8 == 0, "a tail that a compiler would fill");
        };

        impl $name {
            /// Its fields, in their order.
            pub const FIELDS: &'static [crate::pmu::paravirt::layout::Field] = &[$(crate::pmu::paravirt::layout::Field {
                name: stringify!($field),
                offset: $offset,
                bytes: <$type as crate::pmu::paravirt::layout::Wire>::BYTES,
                c_type: <$type as crate::pmu::paravirt::layout::Wire>::C_TYPE,
                about: concat!($($doc),*),
            },)*];
            /// What it is for.
            pub const ABOUT: &'static str = concat!($($about),*);
            /// Bytes it takes, as its `length` says.
            pub const LENGTH: u32 = $bytes;
            /// One of zeros.
            pub fn zeroed() -> Self {
                Self::from_bytes(&[0; $bytes])
            }
            /// Takes it from the bytes that stand in memory.
            pub fn from_bytes(bytes: &[u8; $bytes]) -> Self {
                <Self as crate::pmu::paravirt::layout::Wire>::read(bytes)
            }
            /// Returns the bytes that stand in memory.
            pub fn to_bytes(&self) -> [u8; $bytes] {
                let mut bytes = [0; $bytes];
                crate::pmu::paravirt::layout::Wire::write(self, &mut bytes);
                bytes
            }
        }

        impl crate::pmu::paravirt::layout::Wire for $name {
            const BYTES: usize = $bytes;
            const ALIGN32: usize = 8;
            const ALIGN64: usize = 8;
            const C_TYPE: (&'static str, usize) = (stringify!($name), 1);
            fn read(from: &[u8]) -> Self {
                Self { $($field: crate::pmu::paravirt::layout::Wire::read(from.get($offset..).unwrap_or(&[])),)* }
            }
            fn write(&self, to: &mut [u8]) {
                $(crate::pmu::paravirt::layout::Wire::write(&self.$field, to.get_mut($offset..).unwrap_or(&mut []));)*
            }
        }
    };
}

/// Numbers with names: a Rust enumeration, and the rows of the specification.
macro_rules! numbers {
    ($(#[doc = $about:literal])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $number:literal,)* }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $doc])* $variant = $number,)* }

        impl $name {
            /// All there are, in the order of the specification.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The rows of the specification.
            pub const ROWS: &'static [crate::pmu::paravirt::layout::Named] = &[$(crate::pmu::paravirt::layout::Named {
                name: stringify!($variant),
                number: $number,
                about: concat!($($doc),*),
            },)*];
            /// Returns the one with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
            /// Returns its number.
            #[inline]
            pub const fn number(self) -> u32 {
                self as u32
            }
        }
    };
}

/// Bits and other constants with names, and the rows of the specification.
macro_rules! constants {
    ($rows:ident: $type:ty { $($(#[doc = $doc:literal])* $name:ident = $value:expr,)* }) => {
        $($(#[doc = $doc])* pub const $name: $type = $value;)*
        /// The rows of the specification.
        pub const $rows: &[crate::pmu::paravirt::layout::Named] = &[$(crate::pmu::paravirt::layout::Named {
            name: stringify!($name),
            number: $value as u64,
            about: concat!($($doc),*),
        },)*];
    };
}

pub(super) use {block, constants, numbers};
