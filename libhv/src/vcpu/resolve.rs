//! The order of the rooms: devices, the appliance, and the answers a virtual processor has of its own.

use super::answer::Answer;
use super::{Appliance, Backend, Vcpu, World, control};
use crate::address::{Gpa, Gva};
use crate::devices::Chipset;
use crate::devices::lapic::ApicPage;
use crate::emulate::{Bus, Cause, Outcome, control_access, locate};
use crate::exit::{ControlAccess, Event, Exit, NestedPageFault, PortIo, StopReason, Width};
use crate::hw::Host;
use crate::pmu::paravirt::Paravirt;
use crate::pmu::{Pmu, PmuPolicy};
use crate::registers::{ControlRegister, Gpr};
use crate::time::Tsc;

/// The devices as an emulated instruction reaches them.
struct DeviceBus<'a> {
    chipset: &'a mut Chipset,
    page: Option<&'a ApicPage>,
    processor: usize,
    now: Tsc,
}

impl Bus for DeviceBus<'_> {
    fn read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.chipset.memory_read_beside(self.page, self.processor, gpa, width, self.now)
    }
    fn write(&mut self, gpa: Gpa, width: Width, value: u64) {
        self.chipset.memory_write_beside(self.page, self.processor, gpa, width, value, self.now);
    }
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.chipset.port_read(self.processor, port, width, self.now)
    }
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.chipset.port_write(self.processor, port, width, value, self.now);
    }
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Asks the rooms in their order. There is no code for the frequent kinds of exit where this is of a rare one.
    #[inline(always)]
    pub(super) fn resolve<const RARE: bool, H: Host>(
        &mut self,
        exit: &Exit,
        world: &mut World<'_, H>,
        now: Tsc,
    ) -> Answer {
        match self.ask_appliance(*exit) {
            Answer::NotMine => {}
            answer => return answer,
        }
        match *exit {
            _ if RARE => self.resolve_further(exit, world, now),
            Exit::Cpuid { leaf, subleaf } => self.cpuid(leaf, subleaf),
            Exit::PortIo(access) => self.port(access, world, now),
            Exit::Rdmsr(msr) => self.read_msr(msr, world, now),
            Exit::Wrmsr(msr, value) => self.write_msr(msr, value, world, now),
            Exit::NestedPageFault(fault) => self.nested_page_fault(fault, world, now),
            Exit::Hypercall => self.hypercall(world),
            Exit::ApicWrite { offset } => self.apic_write(offset, world, now),
            _ => self.resolve_further(exit, world, now),
        }
    }

    /// It gets a copy: of what an appliance shows to others the compiler knows nothing any more, and the code after this is
    /// made for each kind of exit.
    #[inline(always)]
    fn ask_appliance(&mut self, exit: Exit) -> Answer {
        let resolution = self.appliance.on_exit(&exit, &mut self.backend).after(&exit);
        self.answer(resolution)
    }

    /// The less frequent kinds of exit.
    #[inline(never)]
    fn resolve_further<H: Host>(&mut self, exit: &Exit, world: &mut World<'_, H>, now: Tsc) -> Answer {
        match *exit {
            Exit::ExternalInterrupt(vector) => {
                world.host.serve_interrupts(vector);
                self.hear_pmu(world);
                self.pass_time(world, now);
                Answer::Retry
            }
            Exit::TimerExpired => {
                self.pass_time(world, now);
                Answer::Retry
            }
            Exit::ApicAccess(access) => self.apic_access(access, world, now),
            Exit::InterruptWindow | Exit::NmiWindow | Exit::Nmi | Exit::TprBelowThreshold => {
                if P::HOST_COUNTS && matches!(exit, Exit::Nmi) {
                    self.host_nmi(world);
                }
                if Pmu::<P>::DIRECT && matches!(exit, Exit::Nmi) {
                    self.guest_nmi(world);
                }
                self.attention = true;
                Answer::Retry
            }
            Exit::Halt => self.halt(world),
            Exit::ControlRegister(access) => self.control_register(access, world),
            Exit::Xsetbv { xcr, value } => self.xsetbv(xcr, value),
            Exit::Relax => Answer::Complete,
            // QEMU's TCG intercepts before it checks the privilege level.
            Exit::CacheFlush if self.backend.cpl() != 0 => self.raise(Event::GENERAL_PROTECTION),
            Exit::CacheFlush => Answer::Complete,
            Exit::Rdpmc(ecx) => self.read_counter(ecx),
            Exit::Undefined => self.raise(Event::UNDEFINED),
            Exit::Exception { vector: vector @ (1 | 17), error_code } => {
                // #DB and #AC are intercepted so that a guest cannot hold the processor in their endless delivery.
                self.raise(Event::Exception { vector, error_code })
            }
            Exit::Shutdown => self.stop(StopReason::Shutdown),
            Exit::Init => Answer::Retry,
            _ => Answer::NotMine,
        }
    }

    /// The devices have been touched: they may have ended the guest or have something for it.
    #[inline]
    pub(super) fn after_devices<H: Host>(&mut self, world: &mut World<'_, H>, otherwise: Answer) -> Answer {
        self.backend.set_task_priority(world.chipset.cr8(self.index));
        self.mirror_pmu(world);
        self.after_ports(world, otherwise)
    }

    /// As above for devices at ports, which do not touch the task priority.
    #[inline]
    pub(super) fn after_ports<H: Host>(&mut self, world: &mut World<'_, H>, otherwise: Answer) -> Answer {
        if world.chipset.take_attention() {
            self.attention = true;
            if let Some(reason) = world.chipset.stop() {
                return self.stop(reason);
            }
        }
        otherwise
    }

    #[inline(always)]
    fn port<H: Host>(&mut self, access: PortIo, world: &mut World<'_, H>, now: Tsc) -> Answer {
        if access.string {
            return self.string_port(world, now);
        }
        let PortIo { port, width, input, .. } = access;
        let rax = self.backend.gpr(Gpr::Rax);
        if input {
            let value = u64::from(world.chipset.port_read(self.index, port, width, now));
            // A 32-bit IN clears the upper half of RAX, as all 32-bit results do.
            let kept = if width == Width::Dword { 0 } else { rax & !width.mask() };
            self.backend.set_gpr(Gpr::Rax, kept | value & width.mask());
        } else {
            let value = (rax & width.mask()) as u32;
            world.chipset.port_write(self.index, port, width, value, now);
        }
        self.after_ports(world, Answer::Complete)
    }

    #[cold]
    fn string_port<H: Host>(&mut self, world: &mut World<'_, H>, now: Tsc) -> Answer {
        self.emulate(None, world, now)
    }

    /// An access to what is not memory goes to the devices, instruction by instruction.
    pub(super) fn nested_page_fault<H: Host>(
        &mut self,
        fault: NestedPageFault,
        world: &mut World<'_, H>,
        now: Tsc,
    ) -> Answer {
        if P::PARAVIRTUAL && world.memory.is_read_only(fault.gpa) {
            return self.write_to_page(fault, world, now);
        }
        // Memory is mapped whole: a fault there is none of the devices'.
        if world.memory.contains(fault.gpa, 1) && !fault.page_walk {
            return Answer::NotMine;
        }
        // The frame of an event went to a stack that is no memory: no instruction did it that could be emulated.
        if self.backend.take_interrupted().is_some() {
            return Answer::NotMine;
        }
        // Where nothing answers, all ones are read, as on a machine: no instruction begins so.
        if fault.fetch && !fault.page_walk {
            return self.raise(Event::UNDEFINED);
        }
        // The code's own tables lead where nothing answers: an entry of all ones has reserved bits set.
        let rip = Gva::new(self.backend.rip());
        if fault.page_walk && locate(&self.backend, world.memory, rip).is_none() {
            self.backend.set_control(ControlRegister::Cr2, fault.gva.unwrap_or(rip).as_u64());
            let user = u32::from(self.backend.cpl() == 3);
            return self.raise(Event::Exception { vector: 14, error_code: Some(1 | user << 2 | 1 << 3) });
        }
        self.emulate(Some(&fault), world, now)
    }

    pub(super) fn emulate<H: Host>(
        &mut self,
        fault: Option<&NestedPageFault>,
        world: &mut World<'_, H>,
        now: Tsc,
    ) -> Answer {
        if Pmu::<P>::DIRECT
            && let Some(fault) = fault
        {
            self.before_memory(fault.gpa, world);
        }
        let page = self.apic.served::<B>().map(|page| &*page);
        let mut bus = DeviceBus { chipset: world.chipset, page, processor: self.index, now };
        let cause = Cause::new(self.backend.fetched(), fault);
        let outcome = self.emulator.execute(&mut self.backend, world.memory, &mut bus, &cause);
        let answer = match outcome {
            Outcome::Done { next_rip, branch } => {
                self.backend.advance_to(next_rip);
                self.retired(branch, world);
                self.happened(Paravirt::count_emulated);
                Answer::Retry
            }
            Outcome::Repeat => Answer::Retry,
            Outcome::Fault(event) => self.raise(event),
            Outcome::PageFault(fault) => {
                self.backend.set_control(ControlRegister::Cr2, fault.address.as_u64());
                self.raise(Event::Exception { vector: 14, error_code: Some(fault.error_code) })
            }
            Outcome::Unemulated(what) => self.stop(StopReason::Unemulated(what)),
        };
        self.after_devices(world, answer)
    }

    fn control_register<H: Host>(&mut self, access: ControlAccess, world: &mut World<'_, H>) -> Answer {
        let access = match access {
            ControlAccess::Undecoded => match control_access(&self.backend, world.memory) {
                Some(decoded) => decoded,
                None => return Answer::NotMine,
            },
            known => known,
        };
        match access {
            ControlAccess::Read { number: 8, destination } => {
                let priority = world.chipset.cr8(self.index);
                self.backend.set_gpr(destination, priority.into());
                Answer::Complete
            }
            ControlAccess::Write { number: 8, source } => match u8::try_from(self.backend.gpr(source)) {
                Ok(priority @ 0..16) => {
                    world.chipset.set_cr8(self.index, priority);
                    self.backend.set_task_priority(priority);
                    self.attention = true;
                    Answer::Complete
                }
                _ => self.raise(Event::GENERAL_PROTECTION),
            },
            access => {
                let resolution = control::resolve(access, &mut self.backend, world.memory, &self.control_rules);
                self.answer(resolution)
            }
        }
    }
}
