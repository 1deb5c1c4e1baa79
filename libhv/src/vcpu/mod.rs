//! A virtual processor: the one run loop, the order in which rooms are asked, and the trait that a backend implements.

mod answer;
mod apic;
mod backend;
pub mod control;
mod counters;
pub mod cpuid;
mod direct;
pub mod events;
mod host_counters;
pub mod msr;
pub mod mtrr;
mod own;
mod paravirt;
mod resolve;
mod run;
pub mod xsetbv;

pub use backend::{Backend, Handler, Offers};
pub use own::UNKNOWN_HYPERCALL;

use crate::devices::Chipset;
use crate::emulate::{Emulator, PagingFeatures};
use crate::exit::{Event, Exit, Resolution, StopReason};
use crate::memory::GuestMemory;
use crate::pmu::emulated::{EmulatedPmu, answers};
use crate::pmu::paravirt::Paravirt;
use crate::pmu::paravirt::lent::{Lender, lends};
use crate::pmu::{Pmu, PmuCapability, PmuPolicy, PmuView};
use crate::registers::{EntryState, GuestState};
use crate::time::Tsc;
use crate::trace::Trace;
use alloc::boxed::Box;
use control::ControlRules;
use cpuid::{CpuidSource, CpuidTable, Feature, Settings};
use msr::{MsrSettings, Msrs};

/// The appliance's own voice: asked about every exit before the devices and the library's own answers.
///
/// ```
/// use libhv::exit::{Exit, Resolution};
/// use libhv::registers::{Gpr, GuestState};
/// use libhv::vcpu::Appliance;
///
/// /// Answers every hypercall with 42.
/// struct Answer;
/// impl Appliance for Answer {
///     fn on_exit(&mut self, exit: &Exit, guest: &mut impl GuestState) -> Resolution {
///         if !matches!(exit, Exit::Hypercall) {
///             return Resolution::NotMine;
///         }
///         guest.set_gpr(Gpr::Rax, 42);
///         Resolution::Complete
///     }
/// }
/// ```
pub trait Appliance {
    /// Decides about an exit, or leaves it to the library.
    #[inline]
    fn on_exit(&mut self, exit: &Exit, guest: &mut impl GuestState) -> Resolution {
        let _ = (exit, guest);
        Resolution::NotMine
    }
}

/// No wishes of its own.
impl Appliance for () {}

/// What a virtual processor shares with the rest of its guest, and the host it runs on.
#[derive(Debug)]
pub struct World<'a, H> {
    /// The guest's devices.
    pub chipset: &'a mut Chipset,
    /// The guest's memory.
    pub memory: &'a mut GuestMemory,
    /// The logical processor.
    pub host: &'a mut H,
}

/// The revision of microcode that a guest is told: the highest, so that it looks for no newer one.
const MICROCODE: u32 = u32::MAX;

/// One virtual processor on a backend.
#[derive(Debug)]
pub struct Vcpu<B, A = (), P = ()> {
    backend: B,
    appliance: A,
    pmu: Pmu<P>,
    paravirt: Option<Box<Paravirt>>,
    /// The processor's counters, where they are lent to paravirtual events.
    lender: Option<Box<Lender>>,
    /// Its PMU, where that is emulated: `pmu` is none then.
    emulated: Option<EmulatedPmu>,
    /// The processor's PMU, of which the host has its counters.
    processor_pmu: Option<PmuCapability>,
    /// The host's own counters.
    beside: Option<Box<host_counters::Beside>>,
    index: usize,
    cpuid: CpuidTable,
    control_rules: ControlRules,
    msrs: Msrs,
    emulator: Emulator,
    apic: apic::Pages,
    trace: Trace,
    /// An event whose delivery was interrupted, and that something more urgent overtook.
    deferred: Option<Event>,
    /// How the guest has ended.
    end: Option<StopReason>,
    /// Something may be waiting to be injected, or the guest has ended.
    attention: bool,
    /// Paravirtual events have something to do at every exit.
    asked: bool,
    watches_interrupts: bool,
    watches_nmi: bool,
    /// What the timer is set to, where that is known: not after it went off.
    armed: Option<Option<Tsc>>,
    /// When devices move on at the latest: at an exit, where the timer has not come before.
    due: Tsc,
}

impl<B: Backend, A: Appliance> Vcpu<B, A> {
    /// Makes virtual processor `index` of a guest that has `processors`, on a host whose time-stamp counter runs at
    /// `frequency`, with the registers of `entry`. What the guest sees of its processor is computed from the host's
    /// CPUID, which `host` reads. It has no PMU.
    pub fn new(
        backend: B,
        appliance: A,
        index: usize,
        host: &impl CpuidSource,
        settings: &Settings,
        entry: &EntryState,
    ) -> Self {
        Self::with_pmu(backend, appliance, (), None, index, host, settings, entry)
    }
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// As [`new`](Vcpu::new), with what `policy` gives it of `pmu`, the processor's.
    #[expect(clippy::too_many_arguments, reason = "all that a virtual processor is made of")]
    pub fn with_pmu(
        mut backend: B,
        appliance: A,
        policy: P,
        pmu: Option<PmuCapability>,
        index: usize,
        host: &impl CpuidSource,
        settings: &Settings,
        entry: &EntryState,
    ) -> Self {
        let offers = backend.offers();
        let mut cpuid = CpuidTable::new(
            host,
            &Settings { rdtscp: offers.rdtscp, invpcid: offers.invpcid, xsaves: offers.xsaves, ..*settings },
        );
        let pmu = pmu.filter(|pmu| !(Pmu::<P>::PRESENT || lends::<P>()) || answers(pmu, &mut backend));
        let processor_pmu = pmu.filter(|_| P::HOST_COUNTS);
        let emulated = EmulatedPmu::decide(&policy, pmu.as_ref(), &backend).filter(|_| Pmu::<P>::EMULATED);
        let lender = Lender::decide::<P>(pmu.as_ref(), &backend).map(Box::new);
        let mut pmu = Pmu::new(policy, pmu.filter(|_| !Pmu::<P>::EMULATED), &backend);
        if P::PARAVIRTUAL {
            paravirt::announce(&mut cpuid, lender.as_deref());
        }
        let view = emulated.as_ref().map(EmulatedPmu::view);
        if Pmu::<P>::PRESENT {
            pmu.describe(&mut cpuid, host);
            if let Some(view) = view {
                view.describe(&mut cpuid, host);
            }
            pmu.arrange(&mut backend);
        }
        let control_rules = ControlRules::of(&cpuid);
        let features = PagingFeatures {
            physical_bits: control_rules.physical_bits,
            gigabyte_pages: cpuid.offers(Feature::PAGE_1GB),
        };
        let mut msrs =
            Msrs::new(&cpuid, &MsrSettings { tsc: settings.tsc, microcode: MICROCODE, arch_capabilities: 0 });
        let view = pmu.view().or(view);
        msrs.show_performance_monitoring(view.is_some(), view.map_or(0, PmuView::debugctl_bits));
        backend.own_cr4(control_rules.cr4);
        backend.load(entry);
        let apic = apic::Pages::of(&mut backend);
        Self {
            backend,
            appliance,
            pmu,
            paravirt: P::PARAVIRTUAL.then(Box::default),
            lender,
            emulated,
            processor_pmu,
            beside: None,
            index,
            cpuid,
            control_rules,
            msrs,
            emulator: Emulator::new(features),
            apic,
            trace: Trace::new(index),
            deferred: None,
            end: None,
            attention: true,
            asked: false,
            watches_interrupts: false,
            watches_nmi: false,
            armed: None,
            due: Tsc(u64::MAX),
        }
    }

    /// Returns what it has been through.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Returns its PMU.
    pub fn pmu(&self) -> &Pmu<P> {
        &self.pmu
    }

    /// Returns the backend, for its registers.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }
}
