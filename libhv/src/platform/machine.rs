//! `Machine`: what the platform hands to the appliance.

use crate::time::Tsc;

/// The machine the appliance runs on, as the platform found it.
#[derive(Debug)]
pub struct Machine {
    entry_tsc: u64,
}

impl Machine {
    #[cfg(target_os = "none")]
    pub(crate) fn new(entry_tsc: u64) -> Self {
        Self { entry_tsc }
    }

    /// Returns the time-stamp counter as it was at the image's first instructions.
    pub fn entry_tsc(&self) -> Tsc {
        Tsc(self.entry_tsc)
    }
}
