//! Why a processor refuses an access to its PMU: #GP for a guest, and words for the hypervisor.

use core::fmt;

/// What is wrong with an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No such MSR on this processor.
    NoRegister,
    /// The MSR can be read and not written.
    ReadOnly,
    /// These bits of the value are reserved on this processor.
    Reserved(u64),
    /// The value is not one of those that the MSR takes.
    Value(u64),
    /// RDPMC of a counter, or of a type of counters, that this processor has not.
    NoCounter,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegister => f.write_str("this processor has no such MSR"),
            Self::ReadOnly => f.write_str("the MSR is read-only"),
            Self::Reserved(bits) => write!(f, "bits {bits:#x} are reserved on this processor"),
            Self::Value(value) => write!(f, "{value:#x} is not a value it takes"),
            Self::NoCounter => f.write_str("this processor has no such counter"),
        }
    }
}

impl core::error::Error for Fault {}

/// Refuses a value with any of the bits outside `allowed`.
pub(super) fn only(allowed: u64, value: u64) -> Result<u64, Fault> {
    if value & !allowed == 0 { Ok(value) } else { Err(Fault::Reserved(value & !allowed)) }
}
