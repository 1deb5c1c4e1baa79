//! Emulated counters: every access leaves the guest, and the hypervisor counts on its behalf.
//!
//! For guests that are not to reach the processor's registers, and for processors that have none. A counter is backed by
//! the processor's of the same number, which then holds the guest's value and keeps it across exits, so that only the
//! guest's accesses cost anything; or, for cycles, by the time-stamp counter while the guest runs. What neither can count
//! is shown as missing (CPUID.0AH:EBX) and stays 0: no counter counts what it was not asked for.

mod clock;
mod counter;
mod guest;
mod policy;
#[cfg(test)]
mod tests;

pub use counter::EmulatedPmu;
pub use guest::answers;
pub use policy::Emulated;
