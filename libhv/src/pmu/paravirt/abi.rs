//! The ABI of paravirtual events: the one definition of its numbers and blocks (requirements B5, B10). The words around
//! the tables are those of the specification, `abi.md`.

use super::layout::{block, constants, numbers};
use crate::trace::Kind;

constants! {
    CONSTANTS: u32 {
        /// The version of every block, and of this interface.
        VERSION = 1,
        /// Events that a virtual processor can have open: identifiers are below it. CPUID tells it.
        MAX_EVENTS = 16,
        /// The CPUID leaf that announces the interface. It exists where EAX of leaf 40000000H is not below it and EAX of
        /// itself is not 0. EAX: the highest version; EBX: MAX_EVENTS; ECX: features; EDX: hardware events that can be
        /// open at a time.
        CPUID_LEAF = 0x4000_0011,
        /// What EAX holds at a call beside the operation's number.
        CALL = 0x4C48_0000,
        /// Added to a reason's number in `config` of a software event: the exits for that reason.
        EXITS_BY_REASON = 0x100,
    }
}

constants! {
    FEATURES: u32 {
        /// Software events.
        FEATURE_SOFTWARE = 1 << 0,
        /// Hardware events.
        FEATURE_HARDWARE = 1 << 1,
        /// The page of counters.
        FEATURE_PAGE = 1 << 2,
    }
}

constants! {
    HARDWARE_EVENTS: u64 {
        /// Core cycles while the guest runs.
        CYCLES = 0x003C,
        /// Instructions retired.
        INSTRUCTIONS = 0x00C0,
        /// References to the last-level cache. Intel's processors only.
        LLC_REFERENCES = 0x4F2E,
        /// Of these, misses. Intel's processors only.
        LLC_MISSES = 0x412E,
        /// Branches retired.
        BRANCHES = 0x00C4,
        /// Of these, mispredicted.
        BRANCH_MISSES = 0x00C5,
    }
}

constants! {
    HARDWARE_FLAGS: u64 {
        /// Counts at CPL 1 to 3.
        COUNT_USER = 1 << 16,
        /// Counts at CPL 0. With neither of the two an event stays 0.
        COUNT_KERNEL = 1 << 17,
        /// Counts the beginnings of what CMASK and INV select, not its cycles.
        COUNT_EDGES = 1 << 18,
        /// Counts the cycles in which less happens than CMASK says, not those in which as much does.
        INVERT = 1 << 23,
    }
}

constants! {
    OPEN_FLAGS: u64 {
        /// An overflow raises the interrupt of the local APIC's LVT entry for performance monitoring.
        OPEN_NOTIFY = 1 << 0,
    }
}

constants! {
    RESULT_FLAGS: u64 {
        /// The event was counting when the host wrote the block.
        RESULT_ENABLED = 1 << 0,
    }
}

constants! {
    STATE_FLAGS: u64 {
        /// The guest has a page of counters.
        STATE_PAGE = 1 << 0,
        /// A notification is due.
        STATE_DUE = 1 << 1,
    }
}

constants! {
    SAVED_FLAGS: u64 {
        /// The event is open.
        SAVED_OPEN = 1 << 0,
        /// The event is counting.
        SAVED_ENABLED = 1 << 1,
        /// The event has overflowed since its result was last written.
        SAVED_OVERFLOWED = 1 << 2,
    }
}

numbers! {
    /// What a call asks for.
    Operation {
        /// ECX, EDX: an open block. Opens the event it describes, stopped, at 0, and writes its result block.
        Open = 1,
        /// EBX: an event. Stops it and forgets it. Its result block is not written, neither now nor later.
        Close = 2,
        /// EBX: an event. Has it count, from after this call on. Nothing changes where it counts already.
        Enable = 3,
        /// EBX: an event. Stops it and writes its result block.
        Disable = 4,
        /// EBX: an event. Writes its result block; counting goes on.
        Read = 5,
        /// ECX, EDX: a page. Keeps the page of counters there from now on, instead of where it was: there the guest's
        /// memory is as it was before.
        Page = 6,
        /// Gives the page of counters up: the guest's memory is there again as it was before Page.
        PageOff = 7,
        /// Closes all events and gives the page up, as a reset of the guest does.
        Reset = 8,
    }
}

numbers! {
    /// Why a call is refused. Nothing has changed then.
    Refusal {
        /// The identifier is not below MAX_EVENTS.
        IdOutOfRange = 1,
        /// No event with this identifier is open.
        UnknownId = 2,
        /// An event with this identifier is open.
        IdInUse = 3,
        /// The address, or part of what stands there, is not memory of the guest.
        BadAddress = 4,
        /// The block is not aligned to 8 bytes, or the page not to 4096.
        Unaligned = 5,
        /// The block is of a version that the host does not know.
        WrongVersion = 6,
        /// The block's length is not that of its version.
        WrongLength = 7,
        /// A flag without meaning is set, or a reserved field is not 0.
        ReservedBits = 8,
        /// There are no such types of events: host breakpoints are none.
        UnsupportedType = 9,
        /// The type is known, and nobody can count this event of it.
        UnsupportedEvent = 10,
        /// The event could be counted, and all counters are taken: the host does not multiplex them.
        TooManyEvents = 11,
        /// A notification is asked for without a period.
        NoPeriod = 12,
        /// A result block and the page of counters would share memory.
        Overlap = 13,
        /// The guest has a PMU of its own, with which it counts hardware events itself.
        OwnCounters = 14,
        /// Nested paging cannot keep the guest from writing to the page.
        NotProtected = 15,
    }
}

numbers! {
    /// Types of events.
    EventType {
        /// What the hypervisor knows and no counter counts.
        Software = 1,
        /// What a counter of the processor counts while the guest runs. `config` is one of the hardware events, by its
        /// number on Intel's processors whatever the processor is, with flags; bits 31:24 are the threshold CMASK of
        /// IA32_PERFEVTSELx. Other bits are reserved.
        Hardware = 2,
    }
}

numbers! {
    /// Software events that are not exits for one reason.
    Software {
        /// VM exits, for whatever reason.
        Exits = 0,
        /// Ticks of the time-stamp counter that the host took between exits and entries, but for HLT. It counts while
        /// there is a page or an event of this kind is open.
        StolenTicks = 1,
        /// Exits because nested paging refused an access: the exits for reason 6.
        NestedFaults = 2,
        /// Interrupts of performance-monitoring counters, paravirtual ones among them, that the host raised.
        InjectedPmis = 3,
        /// Maskable interrupts that the host delivered.
        InjectedInterrupts = 4,
        /// Instructions that the host executed in software.
        EmulatedInstructions = 5,
    }
}

numbers! {
    /// Reasons for a VM exit.
    Reason {
        /// CPUID
        Cpuid = 0,
        /// RDMSR
        Rdmsr = 1,
        /// WRMSR
        Wrmsr = 2,
        /// RDPMC
        Rdpmc = 3,
        /// XSETBV
        Xsetbv = 4,
        /// IN, OUT, INS, OUTS
        PortIo = 5,
        /// Nested paging refused an access: devices in memory, for the most part.
        NestedPageFault = 6,
        /// A control register
        ControlRegister = 7,
        /// A debug register
        DebugRegister = 8,
        /// An exception
        Exception = 9,
        /// An interrupt for the host
        ExternalInterrupt = 10,
        /// An NMI for the host
        Nmi = 11,
        /// The guest has become able to take an interrupt that waited.
        InterruptWindow = 12,
        /// The guest has become able to take an NMI that waited.
        NmiWindow = 13,
        /// A timer of the host's
        TimerExpired = 14,
        /// VMCALL, VMMCALL
        Hypercall = 15,
        /// HLT
        Halt = 16,
        /// PAUSE, MONITOR, MWAIT
        Relax = 17,
        /// INVD, WBINVD
        CacheFlush = 18,
        /// An instruction that the guest's processor does not have
        Undefined = 19,
        /// A triple fault
        Shutdown = 20,
        /// INIT
        Init = 21,
        /// Any other
        Unhandled = 22,
        /// An access to the local APIC's page that the processor did not carry out by itself
        ApicAccess = 23,
        /// A write to the local APIC's page that it did
        ApicWrite = 24,
        /// The task priority fell below that of an interrupt it had held back
        TprBelowThreshold = 25,
    }
}

/// Reasons that have room in the page of counters.
pub const REASONS: usize = 64;

/// The reasons are the kinds of exit that the host knows, by numbers of their own that stay.
macro_rules! reasons_are_kinds {
    ($($name:ident)*) => {
        impl From<Kind> for Reason {
            #[inline]
            fn from(kind: Kind) -> Self {
                match kind { $(Kind::$name => Self::$name,)* }
            }
        }
        impl From<Reason> for Kind {
            #[inline]
            fn from(reason: Reason) -> Self {
                match reason { $(Reason::$name => Self::$name,)* }
            }
        }
    };
}

reasons_are_kinds! {
    Cpuid Rdmsr Wrmsr Rdpmc Xsetbv PortIo NestedPageFault ControlRegister DebugRegister Exception ExternalInterrupt Nmi
    InterruptWindow NmiWindow TimerExpired Hypercall Halt Relax CacheFlush Undefined Shutdown Init Unhandled
    ApicAccess ApicWrite TprBelowThreshold
}

block! {
    /// The open block: the event that OPEN is to count. The guest writes it; the host reads it once.
    OpenBlock: 64 {
        /// VERSION.
        0x00 version: u32,
        /// 64.
        0x04 length: u32,
        /// Flags for OPEN; others are reserved.
        0x08 flags: u64,
        /// The type of the event.
        0x10 event_type: u32,
        /// Reserved, 0.
        0x14 reserved0: u32,
        /// Which event of its type. Software: the number of one, or EXITS_BY_REASON plus the number of a reason.
        /// Hardware: see the type.
        0x18 config: u64,
        /// The event overflows whenever it has counted so many; 0: never.
        0x20 period: u64,
        /// The guest-physical address of the result block.
        0x28 result: u64,
        /// The identifier by which all other calls name the event, below MAX_EVENTS.
        0x30 id: u32,
        /// Reserved, 0.
        0x34 reserved1: u32,
        /// Reserved, 0.
        0x38 reserved2: u64,
    }
}

block! {
    /// The result block of an event. Before OPEN the guest writes version and length, and 0 to flags; the host writes
    /// all of it in OPEN, DISABLE and READ, and at no other time.
    ResultBlock: 32 {
        /// VERSION.
        0x00 version: u32,
        /// 32.
        0x04 length: u32,
        /// Flags of a result.
        0x08 flags: u64,
        /// What has been counted since OPEN.
        0x10 count: u64,
        /// How often it has overflowed since OPEN. It only grows: a guest compares it with what it was, and resets nothing.
        0x18 overflows: u64,
    }
}

block! {
    /// The page of counters, of which this is what is used. The host writes it; the guest reads it.
    PageBlock: 768 {
        /// VERSION. A later version only adds to what is here.
        0x000 version: u32,
        /// 768.
        0x004 length: u32,
        /// Reserved, 0.
        0x008 flags: u64,
        /// Odd while the host is writing. A reader that finds it even, and the same after as before it read other
        /// fields, has read what was true at one moment. The lower half suffices.
        0x010 sequence: u64,
        /// A bit for each event that has overflowed since its result block was last written.
        0x018 overflowed: u64,
        /// Software event 1.
        0x020 stolen_ticks: u64,
        /// Software event 3.
        0x028 injected_pmis: u64,
        /// Software event 4.
        0x030 injected_interrupts: u64,
        /// Software event 5.
        0x038 emulated_instructions: u64,
        /// Reserved, 0.
        0x040 reserved: [u64; 24],
        /// VM exits by their reason's number; software event 0 is their sum.
        0x100 exits: [u64; 64],
    }
}

block! {
    /// An event in a saved state.
    SavedEvent: 96 {
        /// The event, as OPEN had it; all 0 where none is open.
        0x00 open: OpenBlock,
        /// Flags of a saved event.
        0x40 flags: u64,
        /// What has been counted.
        0x48 count: u64,
        /// How often it has overflowed.
        0x50 overflows: u64,
        /// The count at which it last overflowed, or would have at a period's distance; at first, and without a period, 0.
        0x58 since: u64,
    }
}

block! {
    /// A saved state: all that a virtual processor's paravirtual events are, for snapshots and migration.
    State: 6240 {
        /// VERSION.
        0x000 version: u32,
        /// 6240.
        0x004 length: u32,
        /// Flags of a state.
        0x008 flags: u64,
        /// The guest-physical address of the page of counters; 0 without.
        0x010 page: u64,
        /// The page's sequence, which is even.
        0x018 sequence: u64,
        /// Software event 1.
        0x020 stolen_ticks: u64,
        /// Software event 3.
        0x028 injected_pmis: u64,
        /// Software event 4.
        0x030 injected_interrupts: u64,
        /// Software event 5.
        0x038 emulated_instructions: u64,
        /// Reserved, 0.
        0x040 reserved: [u64; 4],
        /// VM exits by their reason's number.
        0x060 exits: [u64; 64],
        /// The events, by their identifiers.
        0x260 events: [SavedEvent; 16],
        /// What of the guest's memory is under the page of counters; 0 without.
        0x860 under: [u64; 512],
    }
}
