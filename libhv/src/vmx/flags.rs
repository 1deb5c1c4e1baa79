//! Flag words of the VMCS and of the capability MSRs, and basic exit reasons, as newtypes over their bits.

/// Makes a newtype over a flag word with its named bits.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $number:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name(pub u32);

        impl $name {
            $( $(#[$bit_doc])* pub const $bit: Self = Self(1 << $number); )*

            /// Returns the flags that are in either.
            #[inline]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// Returns whether all of `other`'s flags are set.
            #[inline]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// Returns these flags with `other`'s set or cleared.
            #[inline]
            pub const fn with(self, other: Self, on: bool) -> Self {
                if on { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
            }
        }
    };
}

flags! {
    /// Pin-based VM-execution controls (SDM Vol. 3C 25.6.1).
    PinControls {
        /// External interrupts cause VM exits.
        EXTERNAL_INTERRUPT_EXITING = 0;
        /// NMIs cause VM exits.
        NMI_EXITING = 3;
        /// NMIs for the guest have a blocking of their own.
        VIRTUAL_NMIS = 5;
        /// The VMX-preemption timer counts down in the guest.
        PREEMPTION_TIMER = 6;
    }
}

flags! {
    /// Primary processor-based VM-execution controls (SDM Vol. 3C 25.6.2).
    PrimaryControls {
        /// A VM exit as soon as the guest can take an interrupt.
        INTERRUPT_WINDOW_EXITING = 2;
        /// The TSC offset is added to what the guest reads.
        TSC_OFFSETTING = 3;
        /// HLT causes VM exits.
        HLT_EXITING = 7;
        /// MWAIT causes VM exits.
        MWAIT_EXITING = 10;
        /// RDPMC causes VM exits.
        RDPMC_EXITING = 11;
        /// MOV to CR8 causes VM exits.
        CR8_LOAD_EXITING = 19;
        /// MOV from CR8 causes VM exits.
        CR8_STORE_EXITING = 20;
        /// CR8 and the page of the local APIC share a task priority: the TPR shadow.
        TPR_SHADOW = 21;
        /// A VM exit as soon as the guest can take an NMI.
        NMI_WINDOW_EXITING = 22;
        /// Ports cause VM exits as the bitmaps say.
        IO_BITMAPS = 25;
        /// MSRs cause VM exits as the bitmaps say.
        MSR_BITMAPS = 28;
        /// MONITOR causes VM exits.
        MONITOR_EXITING = 29;
        /// The secondary controls are used.
        SECONDARY_CONTROLS = 31;
    }
}

flags! {
    /// Secondary processor-based VM-execution controls (SDM Vol. 3C 25.6.2).
    SecondaryControls {
        /// Accesses to the APIC-access page are virtualized, or cause VM exits.
        VIRTUALIZE_APIC_ACCESSES = 0;
        /// Extended page tables.
        EPT = 1;
        /// RDTSCP and RDPID exist for the guest.
        RDTSCP = 3;
        /// Translations are tagged with a virtual-processor identifier.
        VPID = 5;
        /// WBINVD causes VM exits.
        WBINVD_EXITING = 6;
        /// The guest may run unpaged, and in real mode.
        UNRESTRICTED_GUEST = 7;
        /// More registers of the local APIC than the task priority are read from the virtual-APIC page and written to it.
        APIC_REGISTER_VIRTUALIZATION = 8;
        /// INVPCID exists for the guest.
        INVPCID = 12;
        /// XSAVES and XRSTORS exist for the guest.
        XSAVES = 20;
    }
}

flags! {
    /// Primary VM-exit controls (SDM Vol. 3C 25.7.1).
    ExitControls {
        /// DR7 and IA32_DEBUGCTL are saved.
        SAVE_DEBUG_CONTROLS = 2;
        /// The host is in 64-bit mode.
        HOST_64_BIT = 9;
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        LOAD_PERF_GLOBAL_CTRL = 12;
        /// An external interrupt is acknowledged, and its vector saved.
        ACKNOWLEDGE_INTERRUPT = 15;
        /// IA32_PAT is saved.
        SAVE_PAT = 18;
        /// IA32_PAT is loaded.
        LOAD_PAT = 19;
        /// IA32_EFER is saved.
        SAVE_EFER = 20;
        /// IA32_EFER is loaded.
        LOAD_EFER = 21;
        /// What is left on the preemption timer is saved.
        SAVE_PREEMPTION_TIMER = 22;
        /// IA32_LBR_CTL is cleared.
        CLEAR_LBR_CTL = 26;
        /// IA32_PERF_GLOBAL_CTRL is saved; not before Sapphire Rapids.
        SAVE_PERF_GLOBAL_CTRL = 30;
    }
}

flags! {
    /// VM-entry controls (SDM Vol. 3C 25.8.1).
    EntryControls {
        /// DR7 and IA32_DEBUGCTL are loaded.
        LOAD_DEBUG_CONTROLS = 2;
        /// The guest is in IA-32e mode after the entry.
        IA32E_MODE_GUEST = 9;
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        LOAD_PERF_GLOBAL_CTRL = 13;
        /// IA32_PAT is loaded.
        LOAD_PAT = 14;
        /// IA32_EFER is loaded.
        LOAD_EFER = 15;
        /// IA32_LBR_CTL is loaded.
        LOAD_LBR_CTL = 21;
    }
}

flags! {
    /// Guest interruptibility state (SDM Vol. 3C 25.4.2).
    Interruptibility {
        /// The instruction after STI.
        BLOCKING_BY_STI = 0;
        /// The instruction after MOV SS or POP SS.
        BLOCKING_BY_MOV_SS = 1;
        /// An NMI has been delivered and no IRET executed since.
        BLOCKING_BY_NMI = 3;
    }
}

impl Interruptibility {
    /// Both shadows.
    pub const SHADOW: Self = Self::BLOCKING_BY_STI.union(Self::BLOCKING_BY_MOV_SS);
}

/// A basic exit reason (SDM Vol. 3D App. C). Any 16-bit value is one; new processors have more than are named here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitReason(pub u16);

/// Bit 31 of the exit reason: the VM entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl ExitReason { $( $(#[$doc])* pub const $name: Self = Self($number); )* }
    };
}

reasons! {
    /// An exception that the bitmap selects, or an NMI.
    EXCEPTION_OR_NMI = 0;
    /// An external interrupt.
    EXTERNAL_INTERRUPT = 1;
    /// Triple fault.
    TRIPLE_FAULT = 2;
    /// INIT signal.
    INIT = 3;
    /// Interrupt window.
    INTERRUPT_WINDOW = 7;
    /// NMI window.
    NMI_WINDOW = 8;
    /// CPUID
    CPUID = 10;
    /// GETSEC
    GETSEC = 11;
    /// HLT
    HLT = 12;
    /// INVD
    INVD = 13;
    /// RDPMC
    RDPMC = 15;
    /// RSM
    RSM = 17;
    /// VMCALL
    VMCALL = 18;
    /// VMCLEAR; the other VMX instructions follow up to VMXON.
    VMCLEAR = 19;
    /// VMXON
    VMXON = 27;
    /// Control-register accesses.
    CONTROL_REGISTER = 28;
    /// MOV DR
    MOV_DR = 29;
    /// I/O instruction.
    IO = 30;
    /// RDMSR
    RDMSR = 31;
    /// WRMSR
    WRMSR = 32;
    /// MWAIT
    MWAIT = 36;
    /// MONITOR
    MONITOR = 39;
    /// PAUSE
    PAUSE = 40;
    /// TPR below threshold.
    TPR_BELOW_THRESHOLD = 43;
    /// An access to the APIC-access page that is not virtualized.
    APIC_ACCESS = 44;
    /// EPT violation.
    EPT_VIOLATION = 48;
    /// EPT misconfiguration.
    EPT_MISCONFIGURATION = 49;
    /// INVEPT
    INVEPT = 50;
    /// VMX-preemption timer expired.
    PREEMPTION_TIMER = 52;
    /// INVVPID
    INVVPID = 53;
    /// WBINVD or WBNOINVD
    WBINVD = 54;
    /// XSETBV
    XSETBV = 55;
    /// A write to the virtual-APIC page has been completed: APIC write.
    APIC_WRITE = 56;
    /// VMFUNC
    VMFUNC = 59;
    /// ENCLS
    ENCLS = 60;
    /// UMWAIT
    UMWAIT = 67;
    /// TPAUSE
    TPAUSE = 68;
    /// LOADIWKEY
    LOADIWKEY = 69;
    /// ENCLV
    ENCLV = 70;
    /// SEAMCALL
    SEAMCALL = 76;
    /// TDCALL
    TDCALL = 77;
}
