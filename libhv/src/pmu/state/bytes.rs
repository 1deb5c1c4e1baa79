//! A state as bytes.

use super::{COUNTERS, State};
use crate::pmu::bank::Bank;
use crate::pmu::branches::BranchState;
use crate::pmu::registers::{MAX_BRANCHES, MAX_COUNTERS, Maker};
use core::fmt;

/// Bytes of a state.
pub const LENGTH: usize = 8 * WORDS;
/// The version of the layout.
pub const VERSION: u16 = 2;
const WORDS: usize = 6 + 3 * COUNT + 3 + COUNTERS / 2 + 3 * MAX_BRANCHES as usize;
const SIGNATURE: u32 = u32::from_le_bytes(*b"lPMU");
const PENDING: u8 = 1;
const COUNT: usize = MAX_COUNTERS as usize;

/// Why bytes are no state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DecodeError {
    /// They do not begin as one.
    Signature,
    /// The layout is of another version.
    Version(u16),
    /// There are fewer or more than [`LENGTH`], or they say so: how many.
    Length(usize),
    /// Nobody's registers: the number.
    Maker(u8),
    /// A byte that must be 0, or has bits that must be, is not: where.
    NotZero(usize),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str("these bytes are no PMU's state"),
            Self::Version(version) => write!(f, "version {version} of a PMU's state is not known"),
            Self::Length(length) => write!(f, "a PMU's state has {LENGTH} bytes, not {length}"),
            Self::Maker(number) => write!(f, "{number} is no maker"),
            Self::NotZero(place) => write!(f, "byte {place} has bits that must be 0"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Takes words from the front of bytes; 0 behind their end.
struct Words<'a>(&'a [u8]);
impl Words<'_> {
    fn next(&mut self) -> u64 {
        match self.0.split_first_chunk() {
            Some((word, rest)) => {
                self.0 = rest;
                u64::from_le_bytes(*word)
            }
            None => 0,
        }
    }
    fn next_array(&mut self) -> [u64; COUNT] {
        core::array::from_fn(|_| self.next())
    }
}

impl State {
    /// Returns the state as bytes.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let Self { maker, capabilities, registers, branches, debug_control, owed, pending } = self;
        let Bank { counters, selectors, fixed, fixed_control, global_control, global_status } = registers;
        let BranchState { control, depth, records } = branches;
        let maker = match maker {
            Maker::Intel => 1u64,
            Maker::Amd => 2,
        };
        let head = u64::from(SIGNATURE) | u64::from(VERSION) << 32 | (LENGTH as u64) << 48;
        let flags = maker | if *pending { u64::from(PENDING) << 8 } else { 0 };
        let single = [head, flags, *capabilities, *fixed_control, *global_control, *global_status];
        let more = [*debug_control, *control, u64::from(*depth)];
        let owed = owed.as_chunks().0.iter().map(|[low, high]| u64::from(*low) | u64::from(*high) << 32);
        let banked = single.iter().chain(counters).chain(selectors).chain(fixed).chain(&more).copied();
        let words = banked.chain(owed).chain(records.as_flattened().iter().copied());
        let mut bytes = [0; LENGTH];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// Reads a state from bytes. Whether a guest can have it, [`check`](Self::check) tells.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut words = Words(bytes);
        let head = words.next();
        if head as u32 != SIGNATURE {
            return Err(DecodeError::Signature);
        }
        let (version, length) = ((head >> 32) as u16, usize::from((head >> 48) as u16));
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if length != LENGTH || bytes.len() != LENGTH {
            return Err(DecodeError::Length(if length != LENGTH { length } else { bytes.len() }));
        }
        let [maker, flags, ..] = words.next().to_le_bytes();
        let maker = match maker {
            1 => Maker::Intel,
            2 => Maker::Amd,
            other => return Err(DecodeError::Maker(other)),
        };
        let mut state = Self {
            maker,
            capabilities: words.next(),
            registers: Bank {
                fixed_control: words.next(),
                global_control: words.next(),
                global_status: words.next(),
                counters: words.next_array(),
                selectors: words.next_array(),
                fixed: words.next_array(),
            },
            debug_control: words.next(),
            branches: BranchState { control: words.next(), depth: words.next() as u8, ..BranchState::default() },
            owed: [0; COUNTERS],
            pending: flags & PENDING != 0,
        };
        for pair in state.owed.as_chunks_mut().0 {
            let word = words.next();
            *pair = [word as u32, (word >> 32) as u32];
        }
        for place in state.branches.records.as_flattened_mut() {
            *place = words.next();
        }
        // All that has a meaning is in `state`, so that whatever else is not 0 makes a difference.
        match state.to_bytes().iter().zip(bytes).position(|(ours, theirs)| ours != theirs) {
            Some(place) => Err(DecodeError::NotZero(place)),
            None => Ok(state),
        }
    }
}
