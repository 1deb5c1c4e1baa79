//! The nested translations of a simulated processor, and what it remembers of them.

use crate::address::{Gpa, PAGE_SIZE};
use crate::memory::nested::Access;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Why an access did not go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    /// A translation was there and its permissions refused.
    pub(super) present: bool,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    access: Option<Access>,
    /// The processor may remember what stood here before.
    stale: bool,
}

/// What each 4 KiB page of guest-physical memory allows, from address 0. Clones are the same map, so that a test can
/// change it while the run loop owns the processor.
#[derive(Clone, Debug)]
pub struct NestedMap(Rc<RefCell<Vec<Page>>>);

impl NestedMap {
    /// Makes a map of `bytes` bytes, rounded up to 4 KiB, every access allowed.
    pub fn new(bytes: usize) -> Self {
        let page = Page { access: Some(Access::ALL), stale: false };
        Self(Rc::new(RefCell::new(alloc::vec![page; bytes.div_ceil(PAGE_SIZE as usize)])))
    }

    /// Changes what the page that holds `address` allows, `None` for nothing; an address outside the map is ignored.
    /// Where something was allowed before, [`flush_nested`](crate::vcpu::Backend::flush_nested) must follow.
    pub fn set(&self, address: Gpa, access: Option<Access>) {
        if let Some(page) = self.0.borrow_mut().get_mut((address.as_u64() / PAGE_SIZE) as usize) {
            page.stale |= page.access.is_some() && page.access != access;
            page.access = access;
        }
    }

    /// Returns what the page that holds `address` allows.
    pub fn access(&self, address: Gpa) -> Option<Access> {
        self.0.borrow().get((address.as_u64() / PAGE_SIZE) as usize)?.access
    }

    pub(super) fn flush(&self) {
        self.0.borrow_mut().iter_mut().for_each(|page| page.stale = false);
    }

    /// Looks up an access.
    ///
    /// # Panics
    /// When the page was changed and the change not flushed.
    pub(super) fn check(&self, address: u64, allowed: impl Fn(Access) -> bool) -> Result<(), Refused> {
        let pages = self.0.borrow();
        let page = pages.get((address / PAGE_SIZE) as usize).ok_or(Refused { present: false })?;
        assert!(!page.stale, "the translation of {address:#x} was changed and not flushed");
        match page.access {
            Some(access) if allowed(access) => Ok(()),
            access => Err(Refused { present: access.is_some() }),
        }
    }
}
