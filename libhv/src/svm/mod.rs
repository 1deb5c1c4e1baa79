//! The SVM backend (APM Vol. 2 chapter 15).

pub mod capability;
pub mod decode;
pub mod entry;
pub mod event;
mod guest_state;
pub mod instructions;
mod msr;
pub mod npt;
mod pmu;
mod vcpu;
pub mod vmcb;

pub use capability::Capability;
pub use vcpu::Svm;
