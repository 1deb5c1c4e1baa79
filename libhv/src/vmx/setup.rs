//! From a processor outside VMX operation to a virtual processor that can be entered.
#![expect(unsafe_code, reason = "has conditions that only the caller can vouch for")]

use super::apic::VirtualApic;
use super::entry::Registers;
use super::flags::SecondaryControls;
use super::pmu::GlobalControl;
use super::vmcs::Vmcs;
use super::{Deliveries, EptEntry, Vmx, ept, guest_state, host_state, msr};
use crate::error::{Error, Result};
use crate::memory::permissions::{MsrPermissions, PortPermissions, vmx_layout};
use crate::memory::{FrameSource, NestedTables};
use crate::registers::EntryState;
use crate::vcpu::Backend;
use core::num::NonZeroU16;
use x86_64::PhysAddr;

impl Vmx {
    /// Enters VMX operation on this processor and makes a virtual processor in the state after a reset, with nested
    /// tables of its own; `tag` is its virtual-processor identifier.
    ///
    /// # Errors
    /// [`Error::Unsupported`] as [`check`](Self::check), and when the processor is in VMX operation already;
    /// [`Error::OutOfMemory`]; [`Error::VmEntry`] when the processor refuses a region.
    ///
    /// # Safety
    /// 1. Code, stacks, page tables, GDT, IDT and TSS of the host stay as they are as long as the value lives; TR is
    ///    loaded.
    /// 2. While the value lives the host does not rely on the registers that stay in the processor (see the type), and
    ///    nobody else takes the processor into or out of VMX operation.
    /// 3. Interrupts are off from every exit to the next entry.
    pub unsafe fn new(
        frames: &mut impl FrameSource,
        mut nested: NestedTables<EptEntry>,
        tag: NonZeroU16,
    ) -> Result<Self> {
        let capabilities = Self::check()?;
        let port_frames = frames.allocate(2).ok_or(Error::OutOfMemory("port permissions"))?;
        let msr_frames = frames.allocate(1).ok_or(Error::OutOfMemory("MSR permissions"))?;
        let ports = PortPermissions::closed(port_frames);
        let msrs = MsrPermissions::closed(msr_frames, vmx_layout);
        let global_control = GlobalControl::new(&capabilities, frames)?;
        let virtual_apic = VirtualApic::new(&capabilities, frames, &mut nested)?;
        // SAFETY: `check` found privilege level 0 and these capabilities; condition 2 above.
        let mut vmcs = unsafe { Vmcs::enable(&capabilities, frames) }?;
        let bitmaps = ports.physical().as_u64();
        let pointer = ept::pointer(nested.root());
        // SAFETY: nested tables map only what is the guest's (`GuestFrames`); the bitmaps are closed, live in `Vmx`, and are opened by `pass_msr` and
        // `pass_ports` alone.
        unsafe { vmcs.arrange(&capabilities, pointer, tag, [bitmaps, bitmaps + 4096], msrs.physical().as_u64()) }
        // SAFETY: condition 1 above.
        unsafe { host_state::capture(&mut vmcs) }
        let exit_loads = host_state::keep_debug_control(&mut vmcs, &capabilities, frames)?;
        let tsc_aux = capabilities.controls().secondary.contains(SecondaryControls::RDTSCP);
        vmcs.reset_residents();
        msr::reset(&mut vmcs, tsc_aux);
        vmcs.invalidate_nested();
        vmcs.invalidate_linear();
        let machine_check = x86_64::registers::control::Cr4::read_raw() & guest_state::CR4_HOST;
        let mut this = Self {
            registers: Registers::default(),
            vmcs,
            deliveries: Deliveries::default(),
            cr4_own: 0,
            cr4_host: capabilities.cr4_required() | machine_check,
            timer_shift: capabilities.preemption_timer_shift(),
            tsc_aux,
            capabilities,
            nested,
            msrs,
            ports,
            global_control,
            virtual_apic,
            _exit_loads: exit_loads,
        };
        this.own_cr4(0);
        this.load(&EntryState::real_mode(0xF000, 0xFFF0));
        Ok(this)
    }

    /// Has exits load `root` into CR3.
    ///
    /// # Safety
    /// The page tables at `root` map everything that the host uses from an exit on, as the present ones do.
    pub unsafe fn set_host_cr3(&mut self, root: PhysAddr) {
        // SAFETY: the caller vouches for the tables.
        unsafe { host_state::set_cr3(&mut self.vmcs, root) }
    }
}
