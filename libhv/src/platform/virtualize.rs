//! Virtual processors on a machine that is all the appliance's: what the backends ask of their host is true here.
#![expect(unsafe_code, reason = "vouches to the backends for the host the platform set up")]

use super::Machine;
use crate::error::Result;
use crate::memory::NestedTables;
use crate::svm::Svm;
use crate::svm::npt::NptEntry;
use crate::vmx::{EptEntry, Vmx};
use core::num::NonZeroU16;

/// The address-space tag of the one guest; 0 is the host's.
const TAG: NonZeroU16 = NonZeroU16::MIN;

impl Machine {
    /// Makes a virtual processor on VMX.
    ///
    /// # Errors
    /// As [`Vmx::new`].
    pub fn vmx(&mut self, nested: NestedTables<EptEntry>) -> Result<Vmx> {
        // SAFETY: the platform's descriptor tables, stacks and page tables are statics or never freed; an appliance is
        // soft-float and uses no debug registers; it runs with interrupts off outside `serve_interrupts` and `wait`,
        // which are no part of an entry. VMXON fails where somebody is in VMX operation already.
        unsafe { Vmx::new(&mut self.frames(), nested, TAG) }
    }

    /// Makes a virtual processor on SVM.
    ///
    /// # Errors
    /// As [`Svm::new`].
    pub fn svm(&mut self, nested: NestedTables<NptEntry>) -> Result<Svm> {
        // SAFETY: as above.
        unsafe { Svm::new(&mut self.frames(), nested, TAG.get().into()) }
    }
}
