//! What made a guest leave, and what is decided about it: values, so that every handler is a plain function.

use crate::address::{Gpa, Gva};
use crate::registers::Gpr;
use core::fmt;

/// A model-specific register by its index. Any 32-bit value names one; few exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msr(pub u32);

impl Msr {
    /// Returns the register as one that a guest may own, which the processor switches with it: SYSENTER, STAR, LSTAR,
    /// CSTAR, SFMASK, the bases of FS and GS, and IA32_TSC_AUX. None of them reaches memory or the host by itself.
    pub const fn guest_ownable(self) -> Option<GuestOwnedMsr> {
        match self.0 {
            0x174..=0x176 | 0xC000_0081..=0xC000_0084 | 0xC000_0100..=0xC000_0103 => Some(GuestOwnedMsr(self)),
            _ => None,
        }
    }
}

/// A model-specific register that the guest may read and write without leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestOwnedMsr(Msr);

impl GuestOwnedMsr {
    /// Returns which register it is.
    pub const fn msr(self) -> Msr {
        self.0
    }
}

impl fmt::Debug for Msr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Msr({:#x})", self.0)
    }
}

/// The width of a port or memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Width {
    /// 8 bits
    Byte = 1,
    /// 16 bits
    Word = 2,
    /// 32 bits
    Dword = 4,
    /// 64 bits; memory only
    Qword = 8,
}

impl Width {
    /// Returns the width in bytes: 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(self) -> usize {
        self as usize
    }
    /// Returns the mask of the bits a value of this width has.
    #[inline]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
    /// Returns the width of `bytes` bytes.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }
}

/// An IN, OUT, INS or OUTS that was intercepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortIo {
    /// The first port.
    pub port: u16,
    /// The width, [`Width::Dword`] at most.
    pub width: Width,
    /// True for IN and INS.
    pub input: bool,
    /// True for INS and OUTS, which `emulate` executes.
    pub string: bool,
}

/// An access that nested paging refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedPageFault {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// The guest-linear address, where the processor reports one.
    pub gva: Option<Gva>,
    /// The access was a write.
    pub write: bool,
    /// The access was an instruction fetch.
    pub fetch: bool,
    /// A translation was present and its permissions refused.
    pub present: bool,
    /// The access was the processor's own, to the guest's page tables.
    pub page_walk: bool,
}

/// An access to the page of the local APIC's registers that the processor does not carry out by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicAccess {
    /// The offset in the page, below 4096.
    pub offset: u16,
    /// The access was a write.
    pub write: bool,
    /// The access was an instruction fetch.
    pub fetch: bool,
    /// The access was the processor's own, to the guest's page tables.
    pub page_walk: bool,
}

/// Which control register a MOV, CLTS or LMSW reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlAccess {
    /// MOV to CRn, from a general-purpose register.
    Write {
        /// The n of CRn: 0, 3, 4 or 8.
        number: u8,
        /// Where the value is.
        source: Gpr,
    },
    /// MOV from CRn.
    Read {
        /// The n of CRn.
        number: u8,
        /// Where the value goes.
        destination: Gpr,
    },
    /// CLTS
    Clts,
    /// LMSW with its 16-bit operand.
    Lmsw(u16),
    /// The processor does not say which: the instruction has to be decoded (SVM without decode assists).
    Undecoded,
}

/// Why the guest left, in words both vendors share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// CPUID, with EAX and ECX.
    Cpuid {
        /// EAX
        leaf: u32,
        /// ECX
        subleaf: u32,
    },
    /// RDMSR
    Rdmsr(Msr),
    /// WRMSR with EDX:EAX.
    Wrmsr(Msr, u64),
    /// RDPMC with ECX.
    Rdpmc(u32),
    /// XSETBV with ECX and EDX:EAX.
    Xsetbv {
        /// ECX
        xcr: u32,
        /// EDX:EAX
        value: u64,
    },
    /// A port access.
    PortIo(PortIo),
    /// Nested paging refused an access.
    NestedPageFault(NestedPageFault),
    /// An access to the local APIC's page, where the processor serves that page, of a kind that it does not (SDM Vol. 3C
    /// "APIC-Access VM Exits").
    ApicAccess(ApicAccess),
    /// The guest has written a register of the local APIC in the page that the processor serves; the instruction has been
    /// executed (SDM Vol. 3C "APIC-Write VM Exits"). To complete it and to retry are the same.
    ApicWrite {
        /// The register's offset in the page, a multiple of 16 below 4096, whatever part of it was written.
        offset: u16,
    },
    /// The guest has lowered its task priority below the class that was asked for; the instruction has been executed (SDM
    /// Vol. 3C "TPR Virtualization"). To complete it and to retry are the same.
    TprBelowThreshold,
    /// A control register that is not the guest's own.
    ControlRegister(ControlAccess),
    /// MOV to or from a debug register.
    DebugRegister,
    /// An exception that is intercepted.
    Exception {
        /// 0 to 31
        vector: u8,
        /// For the vectors that have one.
        error_code: Option<u32>,
    },
    /// An interrupt for the host; the vector where the processor acknowledged it (VMX).
    ExternalInterrupt(Option<u8>),
    /// A non-maskable interrupt for the host.
    Nmi,
    /// The guest can now take an interrupt.
    InterruptWindow,
    /// The guest can now take an NMI.
    NmiWindow,
    /// The time asked for with the backend's own timer has come.
    TimerExpired,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// HLT
    Halt,
    /// PAUSE where intercepted: nothing to do but go on after it.
    Relax,
    /// INVD or WBINVD.
    CacheFlush,
    /// An instruction that does not exist for the guest: it gets #UD.
    Undefined,
    /// Triple fault (SDM), shutdown (APM).
    Shutdown,
    /// INIT arrived.
    Init,
    /// Anything else, whole.
    Unhandled(RawExit),
}

impl Exit {
    /// Returns whether the guest executed an instruction that leaves, which no delivery of an event has in its middle.
    #[inline]
    pub const fn is_instruction(&self) -> bool {
        matches!(
            self,
            Self::Cpuid { .. }
                | Self::Rdmsr(_)
                | Self::Wrmsr(..)
                | Self::Rdpmc(_)
                | Self::Xsetbv { .. }
                | Self::PortIo(_)
                | Self::ControlRegister(_)
                | Self::DebugRegister
                | Self::Hypercall
                | Self::Halt
                | Self::Relax
                | Self::CacheFlush
        )
    }
}

/// An exit as the processor told it: exit reason, qualification and guest-physical address (SDM Vol. 3D App. C), or
/// EXITCODE, EXITINFO1 and EXITINFO2 (APM Vol. 2 App. C).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawExit {
    /// Exit reason or EXITCODE.
    pub code: u64,
    /// Exit qualification or EXITINFO1.
    pub info1: u64,
    /// Guest-physical address or EXITINFO2.
    pub info2: u64,
    /// RIP at the exit.
    pub rip: u64,
}

/// An event that VM entry delivers to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A maskable interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A fault, trap or abort of the guest's own.
    Exception {
        /// 0 to 31
        vector: u8,
        /// For the vectors that have one.
        error_code: Option<u32>,
    },
    /// INT n, INT3 or INTO whose delivery an exit interrupted; it is delivered again with its length.
    Software {
        /// The vector.
        vector: u8,
        /// Bytes in the instruction, 1 to 15.
        length: u8,
        /// INT3 or INTO, which are exceptions, rather than INT n.
        exception: bool,
    },
}

impl Event {
    /// #UD, invalid opcode.
    pub const UNDEFINED: Self = Self::Exception { vector: 6, error_code: None };
    /// #GP with error code 0.
    pub const GENERAL_PROTECTION: Self = Self::Exception { vector: 13, error_code: Some(0) };
}

/// A page fault with the address for CR2, as the emulator raises it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// For CR2.
    pub address: Gva,
    /// The error code (SDM Vol. 3A 4.7).
    pub error_code: u32,
}

/// What was decided about an exit; the backend carries it out.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The next room is asked.
    NotMine,
    /// The instruction was executed: go on after it. It counts as one that retired (requirement A26).
    Complete,
    /// Go on where the guest stands: the cause has been removed, or RIP was set.
    Retry,
    /// The guest gets this event, at the instruction that exited.
    Inject(Event),
    /// The guest ends.
    Stop(StopReason),
}

impl Resolution {
    /// Returns what this means after a trap, whose instruction has been executed: there is nothing to complete.
    #[inline(always)]
    pub(crate) fn after(self, exit: &Exit) -> Self {
        match (self, exit) {
            (Self::Complete, Exit::ApicWrite { .. } | Exit::TprBelowThreshold) => Self::Retry,
            (answer, _) => answer,
        }
    }

    /// Asks the next room where this one had no answer.
    #[inline]
    pub fn or_else(self, next: impl FnOnce() -> Self) -> Self {
        match self {
            Self::NotMine => next(),
            answer => answer,
        }
    }
}

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StopReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
    /// Triple fault (SDM), shutdown (APM).
    Shutdown,
    /// HLT with interrupts off, and nothing that could wake it.
    Halted,
    /// An exit that no room knows.
    Unhandled(RawExit),
    /// An instruction that `emulate` cannot execute.
    Unemulated(Unemulated),
    /// The appliance ended it, with a number of its own.
    Appliance(u32),
}

impl StopReason {
    /// Returns the number that `cargo hv run` exits with: 0 for power-off, odd numbers for the guest's own
    /// (`value << 1 | 1`, eight bits of it), even ones for the rest, distinct from those of
    /// [`Error::status`](crate::Error::status).
    pub fn status(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::DebugExit(value) => (value << 1 | 1) as u8,
            Self::Reset => 2,
            Self::Shutdown => 4,
            Self::Halted => 6,
            Self::Unhandled(_) => 8,
            Self::Unemulated(_) => 10,
            Self::Appliance(_) => 12,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered itself off"),
            Self::DebugExit(value) => write!(f, "the guest ended itself with {value}"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Shutdown => f.write_str("the guest shut down (triple fault)"),
            Self::Halted => f.write_str("the guest halted for ever (HLT with interrupts off)"),
            Self::Unhandled(raw) => write!(
                f,
                "the guest left with exit code {:#x}, information {:#x} and {:#x}, at RIP {:#x}, and nothing knows why",
                raw.code, raw.info1, raw.info2, raw.rip
            ),
            Self::Unemulated(what) => write!(f, "no emulation for {what:?}"),
            Self::Appliance(number) => write!(f, "the appliance ended the guest with {number}"),
        }
    }
}

/// An instruction that could not be emulated, with all that is needed to find out why.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unemulated {
    /// Where it stands.
    pub rip: u64,
    /// Its bytes; `length` of them are known.
    pub bytes: [u8; 15],
    /// Bytes known, 0 to 15.
    pub length: u8,
    /// The width of the code, 16, 32 or 64.
    pub code_bits: u8,
}

impl fmt::Debug for Unemulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit code at {:#x}:", self.code_bits, self.rip)?;
        self.bytes.iter().take(self.length.into()).try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}
