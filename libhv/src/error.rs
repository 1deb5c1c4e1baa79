//! Why the host could not do its part. What a guest does wrong is never an [`Error`]: it is a
//! [`Resolution`](crate::exit::Resolution).

use crate::devices::Conflict;
use crate::exit::RawExit;
use crate::pmu::host::HostCountersError;
use core::fmt;

/// The result of what only the host can fail at.
pub type Result<T> = core::result::Result<T, Error>;

/// What was needed of the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Requirement {
    /// VMX or SVM.
    Virtualization,
    /// IA32_FEATURE_CONTROL allows VMXON outside SMX (SDM Vol. 3C 24.7).
    VmxEnabledByFirmware,
    /// CR4.VMXE is 0: nobody else has put the processor into VMX operation.
    VmxNotInUse,
    /// VM_CR.SVMDIS is 0 (APM Vol. 2 15.4).
    SvmEnabledByFirmware,
    /// EPT or nested paging.
    NestedPaging,
    /// The "unrestricted guest" VM-execution control.
    UnrestrictedGuest,
    /// A VM-execution, VM-entry or VM-exit control: the capability MSR and the bits it lacks.
    VmxControl {
        /// The capability MSR (SDM Vol. 3D App. A).
        capability: u32,
        /// Bits required that the processor does not allow to be 1.
        missing: u32,
    },
    /// A time-stamp counter that runs at a constant rate.
    InvariantTsc,
    /// A local APIC.
    LocalApic,
    /// Counters for what the host counts beside its guest, and why there are none.
    HostCounters(HostCountersError),
    /// An I/O APIC that takes the interval timer's interrupt.
    IoApic,
    /// An interval timer whose interrupt an I/O APIC sends as an NMI.
    TimerNmi,
    /// A PMU whose registers can be given all that they can come to hold, where guests take turns on it: full-width writes
    /// (IA32_PERF_CAPABILITIES\[13\]) and IA32_PERF_GLOBAL_STATUS_SET (version 4).
    RestorablePmu,
    /// The execute-disable bit of page-table entries (CPUID 8000_0001H:EDX\[20\]).
    ExecuteDisable,
}

/// Whom the processor's NMIs are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NmiUser {
    /// The host's counters, which interrupt it.
    HostCounters,
    /// A watchdog's tick.
    Watchdog,
    /// The guest, which gets them without an exit.
    Guest,
}

impl fmt::Display for NmiUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostCounters => "the host's counters",
            Self::Watchdog => "a watchdog",
            Self::Guest => "the guest",
        })
    }
}

/// Why a VM entry failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryFailure {
    /// VMfailValid, with the VM-instruction error (SDM Vol. 3C 31.4).
    VmInstruction(u32),
    /// VMfailInvalid: no current VMCS.
    NoCurrentVmcs,
    /// The processor refused the guest's state (exit reason with bit 31, or VMEXIT_INVALID).
    InvalidState(RawExit),
}

/// What was wrong with an image a guest was to be made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ImageError {
    /// Bytes needed and bytes found.
    Truncated {
        /// Bytes needed.
        needed: u64,
        /// Bytes found.
        found: u64,
    },
    /// A magic number was not there: what kind of image was expected.
    NotThisKind(&'static str),
    /// The field of the format that holds an impossible value, and the value.
    BadField(&'static str, u64),
    /// A part of the image that no guest memory holds: its name, first and last address.
    DoesNotFit {
        /// "kernel", "initrd", "module", "segment", ...
        part: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are for it.
        available: u64,
    },
    /// The image asks for something this loader does not do.
    Unsupported(&'static str),
}

/// Why the host could not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The processor or its firmware lacks something.
    Unsupported(Requirement),
    /// VM entry failed.
    VmEntry(EntryFailure),
    /// A guest image was no good.
    Image(ImageError),
    /// The guest needs more memory than the machine has: bytes needed, bytes available.
    GuestTooLarge {
        /// Bytes the guest was to have.
        needed: u64,
        /// Bytes the machine can give it.
        available: u64,
    },
    /// No frame of memory is left: what it was for.
    OutOfMemory(&'static str),
    /// A boot module is missing: its position on the boot loader's list, from 0, and what it was to be.
    MissingModule {
        /// The position, from 0.
        index: usize,
        /// What it was to be: "kernel", "initrd".
        role: &'static str,
    },
    /// The boot loader's information could not be used: what was wrong with it.
    BootInformation(&'static str),
    /// Two regions of guest-physical memory overlap, or one is not aligned to pages: its first address.
    BadRegion(u64),
    /// The command line is longer than the image's loader takes: bytes given, bytes allowed.
    CommandLineTooLong {
        /// Bytes given.
        given: usize,
        /// Bytes allowed.
        allowed: usize,
    },
    /// A device of the appliance's own claims what is taken.
    Device(Conflict),
    /// NMIs, which have one user, were asked for by two: who has them, and who wanted them.
    NmisInUse {
        /// Who has them.
        by: NmiUser,
        /// Who wanted them.
        wanted: NmiUser,
    },
}

impl From<Conflict> for Error {
    fn from(conflict: Conflict) -> Self {
        Self::Device(conflict)
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl Error {
    /// Returns the number that `cargo hv run` exits with: even, 14 or from 20 on, one for each kind.
    pub fn status(self) -> u8 {
        match self {
            Self::VmEntry(_) => 14,
            Self::Unsupported(Requirement::Virtualization) => 20,
            Self::Unsupported(Requirement::VmxEnabledByFirmware | Requirement::SvmEnabledByFirmware) => 22,
            Self::Unsupported(Requirement::NestedPaging) => 24,
            Self::Unsupported(_) => 26,
            Self::Image(ImageError::Truncated { .. }) => 28,
            Self::Image(ImageError::NotThisKind(_)) => 30,
            Self::Image(ImageError::BadField(..)) => 32,
            Self::Image(ImageError::DoesNotFit { .. }) => 34,
            Self::Image(ImageError::Unsupported(_)) => 36,
            Self::GuestTooLarge { .. } => 38,
            Self::OutOfMemory(_) => 40,
            Self::MissingModule { .. } => 42,
            Self::BootInformation(_) => 44,
            Self::BadRegion(_) => 46,
            Self::CommandLineTooLong { .. } => 48,
            Self::Device(_) => 50,
            Self::NmisInUse { .. } => 52,
        }
    }
}

/// The status of a panic of the host.
pub const PANIC_STATUS: u8 = 16;
/// The status of a host that makes no progress, at which a [watchdog](crate::watchdog) has barked.
pub const HANG_STATUS: u8 = 18;

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtualization => f.write_str("a processor with VMX or SVM; CPUID reports neither"),
            Self::VmxEnabledByFirmware => {
                f.write_str("VMX outside SMX operation; firmware locked IA32_FEATURE_CONTROL (3AH) without bit 2")
            }
            Self::VmxNotInUse => f.write_str("a processor outside VMX operation; CR4.VMXE is set already"),
            Self::SvmEnabledByFirmware => f.write_str("SVM; firmware set VM_CR.SVMDIS (C001_0114H bit 4)"),
            Self::NestedPaging => f.write_str("nested paging (EPT on VMX, NPT on SVM); the processor has none"),
            Self::UnrestrictedGuest => f.write_str("the \"unrestricted guest\" control; the processor lacks it"),
            Self::VmxControl { capability, missing } => {
                write!(f, "VMX controls {missing:#x} of capability MSR {capability:#x}; the processor lacks them")
            }
            Self::InvariantTsc => f.write_str("an invariant time-stamp counter; the processor has none"),
            Self::HostCounters(why) => write!(f, "counters for the host's events beside the guest's: {why}"),
            Self::RestorablePmu => f.write_str(
                "full-width writes and IA32_PERF_GLOBAL_STATUS_SET, to give guests their counts back; the processor lacks them",
            ),
            Self::LocalApic => f.write_str("a local APIC; CPUID reports none"),
            Self::IoApic => f.write_str("an I/O APIC for the interval timer; the firmware's tables list none"),
            Self::TimerNmi => f.write_str("the interval timer's interrupt as an NMI, for a watchdog; none came"),
            Self::ExecuteDisable => f.write_str("the execute-disable bit; CPUID reports none"),
        }
    }
}

impl fmt::Display for EntryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmInstruction(number) => write!(f, "VM-instruction error {number}"),
            Self::NoCurrentVmcs => f.write_str("no current VMCS"),
            Self::InvalidState(raw) => {
                write!(
                    f,
                    "invalid guest state, exit code {:#x}, information {:#x}, RIP {:#x}",
                    raw.code, raw.info1, raw.rip
                )
            }
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, found } => write!(f, "needs {needed} bytes, has {found}"),
            Self::NotThisKind(kind) => write!(f, "is not {kind}"),
            Self::BadField(field, value) => write!(f, "has {value:#x} in {field}"),
            Self::DoesNotFit { part, needed, available } => {
                write!(f, "has a {part} of {needed} bytes, and guest memory has room for {available}")
            }
            Self::Unsupported(what) => write!(f, "asks for {what}, which this loader does not do"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(requirement) => write!(f, "this hypervisor needs {requirement}"),
            Self::VmEntry(failure) => write!(f, "VM entry failed: {failure}"),
            Self::Image(error) => write!(f, "the guest image {error}"),
            Self::GuestTooLarge { needed, available } => {
                write!(f, "the guest needs {needed} bytes of memory, and the machine can give it {available}")
            }
            Self::OutOfMemory(purpose) => write!(f, "no memory left for {purpose}"),
            Self::MissingModule { index, role } => {
                write!(f, "boot module {index} ({role}) is missing; the boot loader gave fewer")
            }
            Self::BootInformation(problem) => write!(f, "the boot loader's information cannot be used: {problem}"),
            Self::BadRegion(start) => {
                write!(f, "the guest memory region at {start:#x} overlaps another or is not aligned to pages")
            }
            Self::CommandLineTooLong { given, allowed } => {
                write!(f, "the command line has {given} bytes, and the image takes {allowed}")
            }
            Self::Device(conflict) => write!(f, "a device cannot be added: {conflict}"),
            Self::NmisInUse { by, wanted } => write!(f, "NMIs are for {by} alone, and {wanted} wants them"),
        }
    }
}

impl core::error::Error for Error {}
