//! Who owns a processor's PMU, and the registers of those who had to leave it.

use super::bank::Bank;
use super::branches::Branches;
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

/// What has come of a guest's interrupts that its local APIC has not been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// One to the host.
    pub late: bool,
    /// One to the guest, without an exit.
    pub unseen: bool,
    /// Another NMI of the guest's that met the host.
    pub nmi: bool,
}

/// The registers of one who had to leave.
#[derive(Debug)]
struct Parked {
    owner: Owner,
    bank: Bank,
    pending: Pending,
    branches: Branches,
}

/// The account of one processor's PMU: as with lazily switched vector registers, whoever used it last is still in it.
#[derive(Debug, Default)]
pub struct PmuSlot {
    owner: Option<Owner>,
    /// Last-branch records that the owner uses.
    depth: u8,
    parked: Vec<Parked>,
}

impl PmuSlot {
    /// Returns who is in the registers.
    #[inline]
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }
    /// Returns how many last-branch records the owner uses.
    pub fn depth(&self) -> u8 {
        self.depth
    }
    /// Notes who is in the registers from now on, and how many last-branch records it uses.
    pub fn set_owner(&mut self, owner: Option<Owner>, depth: u8) {
        (self.owner, self.depth) = (owner, depth);
    }
    /// Keeps the registers of one who has left, and what has come of its interrupts.
    pub fn park(&mut self, owner: Owner, bank: Bank, pending: Pending, branches: Branches) {
        self.parked.retain(|parked| parked.owner != owner);
        self.parked.push(Parked { owner, bank, pending, branches });
    }
    /// Returns what is kept for one who has left: its registers, its last-branch records, and whether an interrupt waits to
    /// be delivered to it.
    pub fn parked(&self, owner: Owner) -> Option<(&Bank, &Branches, bool)> {
        let parked = self.parked.iter().find(|parked| parked.owner == owner)?;
        Some((&parked.bank, &parked.branches, parked.pending.late))
    }
    /// Returns what was kept for one who comes back.
    pub fn unpark(&mut self, owner: Owner) -> Option<(Bank, Pending, Branches)> {
        let place = self.parked.iter().position(|parked| parked.owner == owner)?;
        let Parked { bank, pending, branches, .. } = self.parked.swap_remove(place);
        Some((bank, pending, branches))
    }
}
