//! `Hypervisor`: what an appliance asks for, composed by type, and the launch that makes it run.

use crate::devices::{Chipset, Configuration, acpi};
use crate::error::{Error, NmiUser, Requirement, Result};
use crate::exit::StopReason;
use crate::guest::Guest;
use crate::hw::Host;
use crate::loader::{self, FOUR_GIB, Options};
use crate::memory::GuestMemory;
use crate::memory::guest::Region;
use crate::memory::nested::{Level, NestedEntry, NestedTables};
use crate::platform::{Machine, nmi};
use crate::pmu::paravirt::lent::lends;
use crate::pmu::{Pmu, PmuPolicy};
use crate::svm;
use crate::vcpu::cpuid::{HostCpuid, Settings};
use crate::vcpu::{Appliance, Backend, Vcpu, World};
use crate::vmx::Vmx;
use crate::watchdog::Watchdog;
use alloc::boxed::Box;
use core::ops::Range;
use raw_cpuid::CpuId;

/// A hypervisor to be. What is not asked for costs nothing: it is not even there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hypervisor<P = (), A = ()> {
    pmu: P,
    appliance: A,
    watchdog: Option<Watchdog>,
}

impl Hypervisor {
    /// Begins with no wishes.
    pub const fn new() -> Self {
        Self { pmu: (), appliance: (), watchdog: None }
    }
}

/// The processor's means of virtualization, of which it has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vendor {
    Vmx,
    Svm,
}

impl Vendor {
    fn of_this_processor() -> Result<Self> {
        let cpuid = CpuId::new();
        if cpuid.get_feature_info().is_some_and(|features| features.has_vmx()) {
            return Ok(Self::Vmx);
        }
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        if extended.is_some_and(|features| features.has_svm()) {
            return Ok(Self::Svm);
        }
        Err(Error::Unsupported(Requirement::Virtualization))
    }
}

impl<P: PmuPolicy, A: Appliance> Hypervisor<P, A> {
    /// Has `appliance` asked about every exit before the library's own rooms.
    pub fn appliance<N: Appliance>(self, appliance: N) -> Hypervisor<P, N> {
        Hypervisor { pmu: self.pmu, appliance, watchdog: self.watchdog }
    }

    /// Has the guest get what `policy` gives it of the PMU; it gets nothing when this is not called.
    pub fn pmu<N: PmuPolicy>(self, policy: N) -> Hypervisor<N, A> {
        Hypervisor { pmu: policy, appliance: self.appliance, watchdog: self.watchdog }
    }

    /// Has a watchdog bark when the host makes no progress while it runs the guest, by a timer's NMI and without a counter
    /// of the PMU: `watchdog(Duration::from_secs(2))`, or a [`Watchdog`] with more to say. See
    /// [`Machine::watch`](crate::platform::Machine::watch) for what it asks of the machine.
    ///
    /// Beside a host that counts it is refused, because NMIs have one user: such a host has a
    /// [watchdog](crate::pmu::host::HostCounters::watchdog) of its counters'.
    pub fn watchdog(self, watchdog: impl Into<Watchdog>) -> Self {
        Self { watchdog: Some(watchdog.into()), ..self }
    }

    /// Makes the guest and runs it until it ends.
    ///
    /// # Errors
    /// Whatever the machine, its boot loader or the guest's image lack: one [`Error`] that names it.
    pub fn launch(self, mut machine: Machine, guest: Guest<'_>) -> Result<StopReason> {
        match Vendor::of_this_processor()? {
            Vendor::Vmx => {
                let largest = Vmx::check()?.largest_page();
                self.launch_on(&mut machine, guest, largest, Machine::vmx)
            }
            Vendor::Svm => {
                let largest = svm::Capability::of_this_processor()?.largest_page;
                self.launch_on(&mut machine, guest, largest, Machine::svm)
            }
        }
    }

    fn launch_on<B: Backend, E: NestedEntry>(
        self,
        machine: &mut Machine,
        guest: Guest<'_>,
        largest: Level,
        make: impl FnOnce(&mut Machine, NestedTables<E>) -> Result<B>,
    ) -> Result<StopReason> {
        let nmis = if P::HOST_COUNTS { Some(nmi::claim(NmiUser::HostCounters)?) } else { None };
        let mut memory = machine.guest_memory(guest.memory_bytes)?;
        let (start, frequency) = (machine.processor().now(), machine.processor().frequency());
        let settings = Settings::new(1, frequency);
        let configuration = Configuration {
            memory_below_4g: memory_in(&memory, 0..FOUR_GIB),
            memory_above_4g: memory_in(&memory, FOUR_GIB..u64::MAX),
            start,
            wall_clock: machine.wall_clock(),
            ..Configuration::new(frequency)
        };
        let mut chipset = Chipset::new(configuration, Box::new(machine.console()));
        for device in guest.devices {
            chipset.add(device)?;
        }
        let tables = acpi::tables(&configuration);
        let options = Options {
            kind: guest.kind,
            command_line: guest.command_line.as_bytes(),
            modules: &guest.modules,
            rsdp: Some(tables.rsdp),
            reserved: &[],
        };
        let entry = loader::load(guest.image, &mut memory, &options)?;
        for (address, bytes) in &tables.parts {
            // A guest too small to hold them has none.
            let _ = memory.write(*address, bytes);
        }
        let mut nested = NestedTables::new(&mut machine.frames(), largest)?;
        nested.map_all(&mut machine.frames(), &memory)?;
        if P::PARAVIRTUAL {
            nested.prepare_read_only(&mut machine.frames())?;
        }
        let backend = make(machine, nested)?;
        let counters =
            if Pmu::<P>::PRESENT || P::HOST_COUNTS || lends::<P>() { machine.pmu_capability() } else { None };
        let mut vcpu = Vcpu::with_pmu(backend, self.appliance, self.pmu, counters, 0, &HostCpuid, &settings, &entry);
        crate::log!("bench kept-memory {} bytes", machine.kept());
        if Pmu::<P>::PRESENT {
            crate::log!("what the guest gets of the PMU:\n{}", vcpu.pmu_report());
        }
        let direct = vcpu.pmu().is_direct().then(|| nmi::claim(NmiUser::Guest)).transpose()?;
        let watching = self.watchdog.map(|watchdog| machine.watch(watchdog)).transpose()?;
        let entry_tsc = machine.entry_tsc();
        let host = machine.processor();
        crate::log!("bench entry-to-guest {} ticks", host.now().since(entry_tsc));
        let outcome = vcpu.run(&mut World { chipset: &mut chipset, memory: &mut memory, host });
        drop((watching, direct, nmis));
        crate::log!("exits of the guest:\n{}", vcpu.trace());
        if Pmu::<P>::PRESENT {
            crate::log!("pmu {}", vcpu.pmu_counts());
        }
        if P::HOST_COUNTS
            && let Some(post) = vcpu.host_counters()
        {
            crate::log!("the host counted:\n{post}");
        }
        outcome
    }
}

/// Returns the bytes of guest memory in a range of addresses.
fn memory_in(memory: &GuestMemory, range: Range<u64>) -> u64 {
    let inside = memory.regions().iter().filter(|region| range.contains(&region.start().as_u64()));
    inside.map(Region::bytes).sum()
}
