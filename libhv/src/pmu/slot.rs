//! Who owns a processor's PMU, and the registers of those who had to leave it.

use super::bank::Bank;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// A virtual processor's PMU among all there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u32);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Owner {
    /// Returns one that is unlike any before, until 2^32 have been made.
    #[expect(clippy::new_without_default, reason = "each one is another")]
    pub fn new() -> Self {
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The account of one processor's PMU: as with lazily switched vector registers, whoever used it last is still in it.
#[derive(Debug, Default)]
pub struct PmuSlot {
    owner: Option<Owner>,
    parked: Vec<(Owner, Bank)>,
}

impl PmuSlot {
    /// Returns who is in the registers.
    #[inline]
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }
    /// Notes who is in the registers from now on.
    pub fn set_owner(&mut self, owner: Option<Owner>) {
        self.owner = owner;
    }
    /// Keeps the registers of one who has left.
    pub fn park(&mut self, owner: Owner, bank: Bank) {
        self.parked.retain(|(other, _)| *other != owner);
        self.parked.push((owner, bank));
    }
    /// Returns the registers of one who comes back.
    pub fn unpark(&mut self, owner: Owner) -> Option<Bank> {
        let place = self.parked.iter().position(|(other, _)| *other == owner)?;
        Some(self.parked.swap_remove(place).1)
    }
}
