//! What a guest gets of the PMU and what it does not, with the reason: read out of the [`PmuView`] that CPUID and every
//! access follow, so that it says nothing else than they do (requirement 1.4.5).

use super::capability::{ARCHITECTURAL_EVENTS, PERF_METRICS};
use super::direct::InterruptPath;
use super::policy::Means;
use super::registers::{MAX_COUNTERS, Maker, PmuRegister};
use super::view::{NoPmu, PmuView};
use crate::hw::pmu::GlobalSwitch;
use core::fmt;

/// Something that a PMU may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Item {
    /// A general-purpose counter, 0 to 7.
    Counter(u8),
    /// A fixed-function counter, 0 to 7.
    Fixed(u8),
    /// An architectural event by its bit in CPUID.0AH:EBX, 0 to 7.
    Event(u8),
    /// IA32_PERFEVTSELn or PERF_CTLn.
    Selectors,
    /// IA32_FIXED_CTR_CTRL
    FixedControl,
    /// IA32_A_PMCn, or the counters of AMD's core extensions.
    FullWidthWrites,
    /// RDPMC
    Rdpmc,
    /// IA32_PERF_GLOBAL_CTRL
    GlobalControl,
    /// IA32_PERF_GLOBAL_STATUS and its clearing.
    GlobalStatus,
    /// IA32_PERF_GLOBAL_STATUS_SET
    StatusSet,
    /// IA32_PERF_GLOBAL_INUSE
    InUse,
    /// That counters stand still outside the guest.
    Switch,
    /// That guests take turns on one processor, each with its counts.
    Turns,
    /// The interrupt on overflow.
    Interrupt,
    /// Freezing on the interrupt: IA32_DEBUGCTL.FREEZE_PERFMON_ON_PMI.
    Freeze,
    /// AnyThread, which counts the core's other thread too.
    AnyThread,
    /// IN_TX and IN_TXCP, which count in transactions.
    Transactions,
    /// Last-branch records.
    Lbr,
    /// Processor event-based sampling.
    Pebs,
    /// Branch trace storage.
    BranchTrace,
    /// IA32_PERF_METRICS
    PerfMetrics,
    /// Off-core responses, load latency, front-end events: whatever has an MSR beside its selector.
    OffCore,
    /// Counters of what processors share.
    Uncore,
    /// CPUID leaf 23H and what it lists.
    Leaf23,
    /// AMD's instruction-based sampling.
    Ibs,
}

/// Why a guest has something in part only, or not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Why {
    /// The guest has no PMU.
    NoPmu(NoPmu),
    /// The processor has none.
    Processor,
    /// The policy does not share it, or CPUID cannot say that the guest has it and not what is before it.
    Share,
    /// The filter looks at each write, or denies the event.
    Filter,
    /// The processor has counters that are not the guest's, and the register speaks of them too.
    HiddenCounters,
    /// The host counts too, and tells by it whose an interrupt is.
    HostCounts,
    /// IA32_PERF_METRICS would be reached, which is not the guest's.
    Metrics,
    /// Counters that cores share would be read, which are not the guest's.
    Uncore,
    /// Entries and exits load and store a list of MSRs, as they can do no better.
    MsrList,
    /// What the registers can come to hold cannot all be written into them again.
    NotRestorable,
    /// The processor would let the guest count its core's other thread.
    OtherThread,
    /// The hypervisor adds GuestOnly.
    GuestOnly,
    /// It reaches the guest through its virtual local APIC.
    LocalApic,
    /// IA32_DEBUGCTL is in part the host's.
    DebugControl,
    /// The guest has no transactional memory.
    NoTransactions,
    /// It stores to memory whatever the permissions of MSRs are, and may store records of the host's branches.
    Pebs,
    /// It stores to memory by addresses of the guest.
    Memory,
    /// Its MSRs are not the guest's; what needs them counts nothing.
    OwnRegisters,
    /// It counts what others do.
    Others,
    /// It reaches the guest through its virtual local APIC, as the processor does not mask its entry on delivery.
    NotMaskedOnDelivery,
    /// It reaches the guest through its virtual local APIC, as every NMI leaves the guest.
    NmisExit,
    /// Counters that the hypervisor counts for the guest have none.
    Means,
    /// It is not virtualized.
    NotVirtualized,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPmu(why) => return write!(f, "no PMU: {why}"),
            Self::Processor => "the processor has none",
            Self::Share => "not shared",
            Self::Filter => "filtered",
            Self::HiddenCounters => "the processor has counters that are not the guest's",
            Self::HostCounts => "the host, which counts too, tells by it whose an interrupt is",
            Self::Metrics => "the processor has performance metrics that are not the guest's",
            Self::Uncore => "counters that cores share would be read",
            Self::MsrList => "by lists of MSRs",
            Self::NotRestorable => "the processor's counts or status could not be restored",
            Self::OtherThread => "the processor would count the core's other thread",
            Self::GuestOnly => "by GuestOnly in the selectors",
            Self::LocalApic => "through the virtual local APIC",
            Self::DebugControl => "IA32_DEBUGCTL is in part the host's",
            Self::NoTransactions => "no transactional memory",
            Self::Pebs => "stores past the permissions of MSRs, and may store the host's branches",
            Self::Memory => "stores to memory by addresses of the guest",
            Self::OwnRegisters => "its MSRs are not the guest's; it counts nothing",
            Self::Others => "counts what others do",
            Self::NotMaskedOnDelivery => {
                "through the virtual local APIC, not direct: the processor does not mask its entry on delivery"
            }
            Self::NmisExit => "through the virtual local APIC, not direct: every NMI leaves the guest",
            Self::Means => "not with emulated counters",
            Self::NotVirtualized => "not virtualized",
        })
    }
}

/// How a guest has something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provision {
    /// As without a hypervisor: no exit.
    Native,
    /// The interrupt: as an NMI, without an exit, and every other NMI of the processor is the guest's then too. In other
    /// delivery modes it reaches the guest through its virtual local APIC.
    Direct,
    /// The processor's, with an exit or the hypervisor's help, and why.
    Mediated(Why),
    /// The hypervisor's imitation.
    Emulated,
    /// Not at all, and why.
    Absent(Why),
}

impl fmt::Display for Provision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Direct => f.write_str("direct: as an NMI without an exit, and other NMIs are the guest's too"),
            Self::Mediated(why) => write!(f, "mediated: {why}"),
            Self::Emulated => f.write_str("emulated"),
            Self::Absent(why) => write!(f, "absent: {why}"),
        }
    }
}

/// What a guest gets of the PMU. Printed, it is a table with a line for each item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmuReport {
    view: Result<PmuView, NoPmu>,
    path: InterruptPath,
}

impl Item {
    const SINGLE: [Self; 22] = [
        Self::Selectors,
        Self::FixedControl,
        Self::FullWidthWrites,
        Self::Rdpmc,
        Self::GlobalControl,
        Self::GlobalStatus,
        Self::StatusSet,
        Self::InUse,
        Self::Switch,
        Self::Turns,
        Self::Interrupt,
        Self::Freeze,
        Self::AnyThread,
        Self::Transactions,
        Self::Lbr,
        Self::Pebs,
        Self::BranchTrace,
        Self::PerfMetrics,
        Self::OffCore,
        Self::Uncore,
        Self::Leaf23,
        Self::Ibs,
    ];

    /// Returns all items, those of a kind one after the other.
    pub fn all() -> impl Iterator<Item = Self> {
        let numbered = |item: fn(u8) -> Self, count| (0..count).map(item);
        numbered(Self::Counter, MAX_COUNTERS)
            .chain(numbered(Self::Fixed, MAX_COUNTERS))
            .chain(numbered(Self::Event, ARCHITECTURAL_EVENTS as u8))
            .chain(Self::SINGLE)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Fixed(_) => "fixed counter",
            Self::Event(_) => "architectural event",
            Self::Selectors => "selectors",
            Self::FixedControl => "fixed counters' control",
            Self::FullWidthWrites => "full-width writes",
            Self::Rdpmc => "RDPMC",
            Self::GlobalControl => "global control",
            Self::GlobalStatus => "global status",
            Self::StatusSet => "global status set",
            Self::InUse => "global in-use",
            Self::Switch => "switch with the world",
            Self::Turns => "turns of guests",
            Self::Interrupt => "interrupt",
            Self::Freeze => "freeze on interrupt",
            Self::AnyThread => "any thread",
            Self::Transactions => "transactions",
            Self::Lbr => "last-branch records",
            Self::Pebs => "PEBS",
            Self::BranchTrace => "branch trace storage",
            Self::PerfMetrics => "performance metrics",
            Self::OffCore => "off-core events",
            Self::Uncore => "uncore counters",
            Self::Leaf23 => "CPUID leaf 23H",
            Self::Ibs => "IBS",
        }
    }

    fn number(self) -> Option<u8> {
        match self {
            Self::Counter(n) | Self::Fixed(n) | Self::Event(n) => Some(n),
            _ => None,
        }
    }
}

impl PmuReport {
    /// Reports on what was decided for a guest.
    pub fn new(view: Result<PmuView, NoPmu>) -> Self {
        Self { view, path: InterruptPath::LocalApic }
    }

    /// The same for a guest whose counters interrupt it by this path.
    #[must_use]
    pub fn interrupting_by(self, path: InterruptPath) -> Self {
        Self { path, ..self }
    }

    /// Returns how the guest has an item.
    pub fn of(&self, item: Item) -> Provision {
        match &self.view {
            Ok(_) if item == Item::Interrupt && self.path == InterruptPath::Direct => Provision::Direct,
            Ok(view) => Judge { view, path: self.path }.of(item),
            Err(why) => Provision::Absent(Why::NoPmu(*why)),
        }
    }
}

/// Reads a view.
struct Judge<'a> {
    view: &'a PmuView,
    path: InterruptPath,
}

impl Judge<'_> {
    fn of(&self, item: Item) -> Provision {
        let view = self.view;
        let (guest, host) = (view.guest(), view.host());
        let intel = guest.maker == Maker::Intel;
        let status = if view.matches_hardware() { Why::HostCounts } else { Why::HiddenCounters };
        match item {
            Item::Counter(n) if guest.has_counter(n) => self.counter(n),
            Item::Counter(n) => self.withheld(host.has_counter(n), Why::Share),
            Item::Fixed(n) if guest.has_fixed(n) => self.register(PmuRegister::Fixed(n), Why::Share),
            Item::Fixed(n) => self.withheld(host.has_fixed(n), Why::Share),
            Item::Event(n) => self.event(n),
            Item::Selectors => self.register(self.selector(), self.why_selectors_exit()),
            Item::FixedControl => self.register(PmuRegister::FixedControl, self.why_selectors_exit()),
            Item::FullWidthWrites if !view.exists(PmuRegister::FullCounter(0)) => {
                self.withheld(host.core_extensions, Why::Share)
            }
            Item::FullWidthWrites => self.register(PmuRegister::FullCounter(0), Why::Share),
            Item::Rdpmc if view.passes_rdpmc() => Provision::Native,
            Item::Rdpmc if !view.matches_hardware() => self.mediated(Why::HiddenCounters),
            Item::Rdpmc if view.rdpmc_reaches_uncore() => self.mediated(Why::Uncore),
            Item::Rdpmc => self.mediated(Why::Metrics),
            Item::GlobalControl => self.register(PmuRegister::GlobalControl, Why::HiddenCounters),
            Item::GlobalStatus => self.register(PmuRegister::GlobalStatus, status),
            Item::StatusSet => self.register(PmuRegister::StatusSet, status),
            Item::InUse if view.matches_hardware() => self.register(PmuRegister::InUse, Why::Filter),
            Item::InUse => self.register(PmuRegister::InUse, Why::HiddenCounters),
            Item::Switch if view.switches_by_list() => self.mediated(Why::MsrList),
            Item::Switch if view.switch() == GlobalSwitch::Hardware => self.mediated_or(Provision::Native),
            Item::Switch => self.mediated(Why::GuestOnly),
            Item::Turns if view.means() == Means::Emulated || host.restores_all() => {
                self.mediated_or(Provision::Native)
            }
            Item::Turns => Provision::Absent(Why::NotRestorable),
            Item::Interrupt => match self.path {
                InterruptPath::NotDirect(why) => self.mediated(why),
                InterruptPath::LocalApic | InterruptPath::Direct => self.mediated(Why::LocalApic),
            },
            Item::Freeze if view.freezes() && view.debugctl_bits() != 0 => self.mediated(Why::DebugControl),
            Item::Freeze if !view.freezes() => Provision::Absent(Why::Others),
            Item::Freeze => self.withheld(!intel, Why::NotVirtualized),
            Item::AnyThread => self.withheld(intel && host.version >= 3 && !host.any_thread_deprecated, Why::Others),
            Item::Transactions => self.withheld(intel, Why::NoTransactions),
            Item::Lbr if view.shows_lbr() => Provision::Native,
            Item::Lbr if view.means() == Means::Emulated => self.withheld(host.lbr_depth != 0, Why::Means),
            Item::Lbr => self.withheld(host.lbr_depth != 0, Why::Share),
            Item::Pebs => self.withheld(intel, Why::Pebs),
            Item::BranchTrace => self.withheld(intel, Why::Memory),
            Item::PerfMetrics => self.withheld(host.capabilities & PERF_METRICS != 0, Why::NotVirtualized),
            Item::OffCore => self.withheld(intel, Why::OwnRegisters),
            Item::Uncore => Provision::Absent(Why::Others),
            Item::Leaf23 => self.withheld(intel && host.version > guest.version, Why::NotVirtualized),
            Item::Ibs => self.withheld(!intel, Why::NotVirtualized),
        }
    }

    /// What the processor has is absent for a reason; what it has not, for that.
    fn withheld(&self, processor_has: bool, why: Why) -> Provision {
        Provision::Absent(if processor_has { why } else { Why::Processor })
    }

    fn mediated_or(&self, passed: Provision) -> Provision {
        if self.view.means() == Means::Emulated { Provision::Emulated } else { passed }
    }
    fn mediated(&self, why: Why) -> Provision {
        self.mediated_or(Provision::Mediated(why))
    }

    /// A register without exits, or with exits for a reason.
    fn register(&self, register: PmuRegister, why: Why) -> Provision {
        if !self.view.exists(register) {
            return Provision::Absent(Why::Processor);
        }
        let passed = self.view.passes(register, false);
        let read_only = matches!(register, PmuRegister::GlobalStatus | PmuRegister::InUse);
        if passed.read && (passed.write || read_only) { Provision::Native } else { self.mediated(why) }
    }

    fn selector(&self) -> PmuRegister {
        if self.view.shows_core_extensions() { PmuRegister::CoreSelector(0) } else { PmuRegister::Selector(0) }
    }

    fn counter(&self, n: u8) -> Provision {
        let register =
            if self.view.shows_core_extensions() { PmuRegister::FullCounter(n) } else { PmuRegister::Counter(n) };
        self.register(register, Why::Share)
    }

    fn event(&self, n: u8) -> Provision {
        let missing = |events: u32| u32::from(n) >= ARCHITECTURAL_EVENTS || events >> n & 1 != 0;
        let (guest, host) = (self.view.guest(), self.view.host());
        match guest.maker {
            Maker::Amd => Provision::Absent(Why::Processor),
            Maker::Intel if missing(host.missing_events) => Provision::Absent(Why::Processor),
            Maker::Intel if missing(guest.missing_events) => Provision::Absent(Why::Filter),
            Maker::Intel => self.mediated_or(Provision::Native),
        }
    }

    fn why_selectors_exit(&self) -> Why {
        let host = self.view.host();
        match host.maker {
            _ if self.view.filters() => Why::Filter,
            Maker::Amd => Why::GuestOnly,
            Maker::Intel if !host.any_thread_deprecated && host.version >= 3 => Why::OtherThread,
            Maker::Intel => Why::HiddenCounters,
        }
    }
}

impl fmt::Display for PmuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Err(why) = &self.view {
            return write!(f, "{}", Why::NoPmu(*why));
        }
        let mut items = Item::all().peekable();
        let mut first = true;
        while let Some(item) = items.next() {
            let provision = self.of(item);
            // Those of a kind that are alike share a line.
            let alike = |next: &Item| next.name() == item.name() && self.of(*next) == provision;
            let mut last = item;
            while let Some(next) = items.next_if(alike) {
                last = next;
            }
            if !core::mem::take(&mut first) {
                f.write_str("\n")?;
            }
            match (item.number(), last.number()) {
                (Some(from), Some(to)) if from != to => write!(f, "{:<19} {from}-{to}  {provision}", item.name())?,
                (Some(number), _) => write!(f, "{:<19} {number}    {provision}", item.name())?,
                _ => write!(f, "{:<23}  {provision}", item.name())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
