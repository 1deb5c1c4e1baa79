//! The virtual-machine control structure of this processor: VMX operation and its current VMCS, as one value.
#![expect(unsafe_code, reason = "enables VMX, and reads and writes the current VMCS")]

use super::capability::{self, Capabilities};
use super::debug_control::DebugControl;
use super::field::{self, Field, Guest, Host, Value};
use super::flags::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use super::instructions;
use super::msr_list::MsrList;
use crate::error::{EntryFailure, Error, Requirement, Result};
use crate::exit::Msr;
use crate::hw::bare;
use crate::memory::{FrameSource, Frames};
use crate::registers::CR4_VMXE;
use core::hint::assert_unchecked;
use core::marker::PhantomData;
use core::num::NonZeroU16;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr0, Cr4};

/// VMX operation of one processor with a VMCS that is current for as long as the value lives.
///
/// There is one at most on a processor, and it does not leave it: that is why reading and writing fields is safe.
#[derive(Debug)]
pub(super) struct Vmcs {
    region: Frames,
    _vmxon: Frames,
    pin: PinControls,
    /// NMIs reach the guest without leaving it, unless it is watched for an NMI window.
    passes_nmis: bool,
    primary: PrimaryControls,
    secondary: SecondaryControls,
    priority_threshold: u8,
    /// The EPT pointer and the VPID, for invalidation; and which kinds of it the processor has.
    ept_pointer: u64,
    tag: Option<NonZeroU16>,
    invept_kind: u64,
    invvpid_kind: u64,
    debug_control: DebugControl,
    processor: PhantomData<*const ()>,
}

/// A field and the value it is to have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assignment {
    encoding: u32,
    word: u64,
}

impl<V: Value> Field<V, Host> {
    /// Pairs the field with a value, for [`Vmcs::assign`].
    pub(super) fn of(self, value: V) -> Assignment {
        Assignment { encoding: self.encoding(), word: value.word() }
    }
}

impl Vmcs {
    /// Enters VMX operation and makes a fresh VMCS current.
    ///
    /// # Errors
    /// [`Requirement::VmxNotInUse`] when the processor is in VMX operation already, [`Error::OutOfMemory`] when there
    /// are no frames, and [`Error::VmEntry`] when an instruction of VMX refuses its region.
    ///
    /// # Safety
    /// The processor runs at privilege level 0, `capabilities` are its own, and it is not taken out of VMX operation
    /// by anybody else.
    pub(super) unsafe fn enable(capabilities: &Capabilities, source: &mut impl FrameSource) -> Result<Self> {
        if Cr4::read_raw() & CR4_VMXE != 0 {
            return Err(Error::Unsupported(Requirement::VmxNotInUse));
        }
        let mut region = || {
            let mut frames = source.allocate(1).ok_or(Error::OutOfMemory("a VMX region"))?;
            if let Some(first) = frames.words_mut().first_mut() {
                *first = capabilities.revision().into();
            }
            Ok::<_, Error>(frames)
        };
        let (vmxon, vmcs) = (region()?, region()?);
        let unlocked = capabilities.raw().feature_control & capability::FEATURE_CONTROL_LOCK == 0;
        if unlocked {
            let value = capabilities.raw().feature_control
                | capability::FEATURE_CONTROL_LOCK
                | capability::FEATURE_CONTROL_VMXON;
            // SAFETY: the register exists with VMX, is not locked, and these bits allow VMXON and nothing else.
            unsafe { bare::write_msr(Msr(capability::FEATURE_CONTROL), value) }
        }
        let (cr0, cr4) = (capabilities.host_cr0(Cr0::read_raw()), capabilities.host_cr4(Cr4::read_raw() | CR4_VMXE));
        // SAFETY: what VMX adds to CR0 is NE, beyond PE and PG, which are set in 64-bit mode.
        unsafe { Cr0::write_raw(cr0) }
        // SAFETY: what VMX adds to CR4 is VMXE.
        unsafe { Cr4::write_raw(cr4) }
        // SAFETY: privilege and fixed bits: just above; IA32_FEATURE_CONTROL: judged, or set above; the region is
        // ours, and kept for as long as VMX operation lasts.
        if !unsafe { instructions::vmxon(vmxon.physical()) } {
            // SAFETY: outside VMX operation, where VMXE was clear before.
            unsafe { Cr4::write_raw(cr4 & !CR4_VMXE) }
            return Err(Error::VmEntry(EntryFailure::NoCurrentVmcs));
        }
        // SAFETY: in VMX root operation since the line above; the region is ours.
        let cleared = unsafe { instructions::vmclear(vmcs.physical()) };
        // SAFETY: as above; kept until `drop` clears it.
        let current = unsafe { instructions::vmptrld(vmcs.physical()) };
        let controls = capabilities.controls();
        let this = Self {
            region: vmcs,
            _vmxon: vmxon,
            pin: controls.pin,
            passes_nmis: false,
            primary: controls.primary,
            secondary: controls.secondary,
            priority_threshold: 0,
            ept_pointer: 0,
            tag: None,
            invept_kind: if capabilities.single_context_invept() { 1 } else { 2 },
            invvpid_kind: if capabilities.single_context_invvpid() { 1 } else { 2 },
            debug_control: DebugControl::of_host(0),
            processor: PhantomData,
        };
        if cleared && current { Ok(this) } else { Err(Error::VmEntry(EntryFailure::NoCurrentVmcs)) }
    }

    /// Reads a field.
    #[inline]
    pub(super) fn read<V: Value, A>(&self, field: Field<V, A>) -> V {
        // SAFETY: the VMCS is current, see the type.
        let word = unsafe { instructions::vmread(field.encoding()) };
        let value = V::from_word(word);
        // SAFETY: VMREAD clears the bits of its destination beyond the field's (SDM Vol. 3C 31.3 "VMREAD"), so that none is
        // lost, unless it fails. It does not: the VMCS is current, see the type, and every processor has those of the fields
        // read that are narrower than the destination. Said so, no instruction clears the bits again.
        unsafe { assert_unchecked(value.word() == word) }
        value
    }

    /// Writes a field of the guest's.
    #[inline]
    pub(super) fn write<V: Value>(&mut self, field: Field<V, Guest>, value: V) {
        // SAFETY: the VMCS is current, see the type; no value of a `Guest` field harms the host.
        unsafe { instructions::vmwrite(field.encoding(), value.word()) }
    }

    /// Writes fields of the host's.
    ///
    /// # Safety
    /// The values make VM entries and exits that are safe for the host: its own state, and controls under which the
    /// guest reaches nothing but its own.
    pub(super) unsafe fn assign(&mut self, assignments: &[Assignment]) {
        for assignment in assignments {
            // SAFETY: the VMCS is current, see the type; the caller vouches for the values.
            unsafe { instructions::vmwrite(assignment.encoding, assignment.word) }
        }
    }

    /// Writes the controls the virtual processor starts with, the EPT pointer, the tag and the physical addresses of
    /// the permissions.
    ///
    /// # Safety
    /// The tables behind `ept_pointer` map nothing but memory of this guest, now and later; the permission bitmaps
    /// live as long as the VMCS, and open nothing that endangers the host.
    pub(super) unsafe fn arrange(
        &mut self,
        capabilities: &Capabilities,
        ept_pointer: u64,
        tag: NonZeroU16,
        ports: [u64; 2],
        msrs: u64,
    ) {
        const DEBUG_ALIGNMENT_AND_MACHINE_CHECK: u32 = 1 << 1 | 1 << 17 | 1 << 18;
        let controls = capabilities.controls();
        let assignments = [
            field::PIN_CONTROLS.of(controls.pin.0),
            field::PRIMARY_CONTROLS.of(controls.primary.0),
            field::SECONDARY_CONTROLS.of(controls.secondary.0),
            field::EXIT_CONTROLS.of(controls.exit.with(ExitControls::SAVE_PREEMPTION_TIMER, false).0),
            field::ENTRY_CONTROLS.of(controls.entry.0),
            // A guest whose #DB or #AC handler raises the same again would keep the processor for ever (SDM Vol. 3C
            // 26.2), and a machine check is the host's business.
            field::EXCEPTION_BITMAP.of(DEBUG_ALIGNMENT_AND_MACHINE_CHECK),
            field::PAGE_FAULT_MASK.of(0),
            field::PAGE_FAULT_MATCH.of(0),
            field::CR3_TARGET_COUNT.of(0),
            field::EXIT_MSR_STORE_COUNT.of(0),
            field::EXIT_MSR_LOAD_COUNT.of(0),
            field::ENTRY_MSR_LOAD_COUNT.of(0),
            field::VMCS_LINK_POINTER.of(u64::MAX),
            field::IO_BITMAP_A.of(ports[0]),
            field::IO_BITMAP_B.of(ports[1]),
            field::MSR_BITMAPS.of(msrs),
            field::EPT_POINTER.of(ept_pointer),
        ];
        // SAFETY: the caller vouches for tables and bitmaps; the controls are those that `Controls::choose` closed.
        unsafe { self.assign(&assignments) }
        self.ept_pointer = ept_pointer;
        if controls.secondary.contains(SecondaryControls::VPID) {
            // SAFETY: a tag other than the host's, 0, harms no one.
            unsafe { self.assign(&[field::VPID.of(tag.get())]) }
            self.tag = Some(tag);
        }
        if controls.secondary.contains(SecondaryControls::XSAVES) {
            // SAFETY: without this no XSAVES leaves the guest; what it saves is the guest's own state.
            unsafe { self.assign(&[field::XSS_EXITING_BITMAP.of(0)]) }
        }
    }

    /// Says which bits of CR0 and CR4 are the host's: a guest's write that would change one leaves the guest, and a
    /// read finds the shadow's.
    pub(super) fn set_masks(&mut self, cr0: u64, cr4: u64) {
        // SAFETY: a bit that is the guest's can be set in the guest's register alone, where VM entry checks it.
        unsafe { self.assign(&[field::CR0_MASK.of(cr0), field::CR4_MASK.of(cr4)]) }
    }

    /// Switches the interrupt or NMI window.
    #[inline]
    pub(super) fn watch(&mut self, window: Window, on: bool) {
        let control = match window {
            Window::Interrupt => PrimaryControls::INTERRUPT_WINDOW_EXITING,
            Window::Nmi => PrimaryControls::NMI_WINDOW_EXITING,
        };
        self.set_primary(control, on);
        if window == Window::Nmi {
            self.route_nmis();
        }
    }

    /// Has NMIs reach the guest without leaving it, or no longer. The processor can.
    pub(super) fn pass_nmis(&mut self, pass: bool) {
        self.passes_nmis = pass;
        self.route_nmis();
    }

    /// NMI-window exiting needs virtual NMIs, and they need NMI exiting (SDM Vol. 3C 27.2.1.1). Blocking by NMI is the
    /// same bit of the guest's interruptibility with them and without: of virtual NMIs with, of NMIs without.
    fn route_nmis(&mut self) {
        const LEAVE: PinControls = PinControls::NMI_EXITING.union(PinControls::VIRTUAL_NMIS);
        let passes = self.passes_nmis && !self.primary.contains(PrimaryControls::NMI_WINDOW_EXITING);
        self.set_pin(self.pin.with(LEAVE, !passes));
    }

    fn set_pin(&mut self, controls: PinControls) {
        if controls != self.pin {
            self.pin = controls;
            // SAFETY: an NMI that does not leave the guest is its own to handle, and the timer makes it leave.
            unsafe { instructions::vmwrite(field::PIN_CONTROLS.encoding(), controls.0.into()) }
        }
    }

    /// Says whether RDPMC leaves the guest.
    pub(super) fn intercept_rdpmc(&mut self, on: bool) {
        self.set_primary(PrimaryControls::RDPMC_EXITING, on);
    }

    /// Switches a window, or the interception of RDPMC.
    #[inline]
    fn set_primary(&mut self, control: PrimaryControls, on: bool) {
        let controls = self.primary.with(control, on);
        if controls != self.primary {
            self.primary = controls;
            // SAFETY: a window makes the guest leave more often, nothing else; RDPMC reads counters, nothing else.
            unsafe { instructions::vmwrite(field::PRIMARY_CONTROLS.encoding(), controls.0.into()) }
        }
    }

    /// Has the processor serve the local APIC: from a virtual-APIC page, where the guest reaches an APIC-access page; or, with
    /// `None`, has CR8 leave the guest. The processor has the controls.
    ///
    /// # Safety
    /// Both pages are the guest's own, and live as long as the VMCS.
    pub(super) unsafe fn virtualize_apic(&mut self, pages: Option<[PhysAddr; 2]>) {
        let on = pages.is_some();
        if let Some([page, access]) = pages {
            let assignments =
                [field::VIRTUAL_APIC_ADDRESS.of(page.as_u64()), field::APIC_ACCESS_ADDRESS.of(access.as_u64())];
            // SAFETY: the caller vouches for the pages.
            unsafe { self.assign(&assignments) }
            self.write(field::TPR_THRESHOLD, 0);
            self.priority_threshold = 0;
        }
        self.primary = self
            .primary
            .with(PrimaryControls::TPR_SHADOW, on)
            .with(PrimaryControls::CR8_LOAD_EXITING.union(PrimaryControls::CR8_STORE_EXITING), !on);
        self.secondary = self
            .secondary
            .with(SecondaryControls::VIRTUALIZE_APIC_ACCESSES, on)
            .with(SecondaryControls::APIC_REGISTER_VIRTUALIZATION, on);
        let assignments = [field::PRIMARY_CONTROLS.of(self.primary.0), field::SECONDARY_CONTROLS.of(self.secondary.0)];
        // SAFETY: CR8 leaves the guest unless it goes to the page, which the caller vouches for.
        unsafe { self.assign(&assignments) }
    }

    /// Has the guest leave when its task priority falls below a class, 0 to 15.
    #[inline]
    pub(super) fn set_priority_threshold(&mut self, class: u8) {
        if class != self.priority_threshold {
            self.priority_threshold = class;
            self.write(field::TPR_THRESHOLD, (class & 0xF).into());
        }
    }

    /// Has entries load IA32_PERF_GLOBAL_CTRL, and exits save the guest's and load `host`, or no longer; with `list` the
    /// guest's is in it, without it is in the VMCS. The processor has the controls.
    ///
    /// # Safety
    /// `list` has IA32_PERF_GLOBAL_CTRL alone and lives as long as the VMCS.
    pub(super) unsafe fn switch_global_control(&mut self, on: bool, host: u64, list: Option<&MsrList>) {
        let by_fields = on && list.is_none();
        let exit = ExitControls(self.read(field::EXIT_CONTROLS))
            .with(ExitControls::LOAD_PERF_GLOBAL_CTRL, on)
            .with(ExitControls::SAVE_PERF_GLOBAL_CTRL, by_fields);
        let entry =
            EntryControls(self.read(field::ENTRY_CONTROLS)).with(EntryControls::LOAD_PERF_GLOBAL_CTRL, by_fields);
        let assignments =
            [field::HOST_PERF_GLOBAL_CTRL.of(host), field::EXIT_CONTROLS.of(exit.0), field::ENTRY_CONTROLS.of(entry.0)];
        // SAFETY: these say which counters count when, nothing else.
        unsafe { self.assign(&assignments) }
        if let Some(list) = list {
            let (address, count) = (list.physical().as_u64(), if on { list.count() } else { 0 });
            let assignments = [
                field::EXIT_MSR_STORE_ADDRESS.of(address),
                field::ENTRY_MSR_LOAD_ADDRESS.of(address),
                field::EXIT_MSR_STORE_COUNT.of(count),
                field::ENTRY_MSR_LOAD_COUNT.of(count),
            ];
            // SAFETY: as above; the caller vouches for what is on the list, and for its life.
            unsafe { self.assign(&assignments) }
        }
    }

    /// Has entries load IA32_LBR_CTL, with 0 at first, and exits save and clear it; or no longer. The processor has the
    /// controls.
    pub(super) fn switch_branch_control(&mut self, on: bool) {
        let exit = ExitControls(self.read(field::EXIT_CONTROLS)).with(ExitControls::CLEAR_LBR_CTL, on);
        let entry = EntryControls(self.read(field::ENTRY_CONTROLS)).with(EntryControls::LOAD_LBR_CTL, on);
        if on {
            self.write(field::GUEST_LBR_CTL, 0);
        }
        // SAFETY: these say which branches are recorded in registers, nothing else.
        unsafe { self.assign(&[field::EXIT_CONTROLS.of(exit.0), field::ENTRY_CONTROLS.of(entry.0)]) }
    }

    /// Has exits load the MSRs of `list`, which is where the host's bit of IA32_DEBUGCTL comes back from.
    ///
    /// # Safety
    /// `list` has values that the host wants to have after an exit, of MSRs that exits can load, and lives as long as the
    /// VMCS.
    pub(super) unsafe fn load_on_exit(&mut self, debug_control: DebugControl, list: &MsrList) {
        self.debug_control = debug_control;
        let assignments =
            [field::EXIT_MSR_LOAD_ADDRESS.of(list.physical().as_u64()), field::EXIT_MSR_LOAD_COUNT.of(list.count())];
        // SAFETY: the caller vouches for the list.
        unsafe { self.assign(&assignments) }
    }

    /// Returns IA32_DEBUGCTL as the guest reads it.
    pub(super) fn debugctl(&self) -> u64 {
        DebugControl::as_guest_reads(self.read(field::GUEST_DEBUGCTL))
    }
    /// Sets IA32_DEBUGCTL as the guest writes it.
    pub(super) fn set_debugctl(&mut self, value: u64) {
        self.write(field::GUEST_DEBUGCTL, self.debug_control.while_guest_runs(value));
    }

    /// Switches the preemption timer, which the processor has.
    #[inline]
    pub(super) fn run_timer(&mut self, on: bool) {
        let controls = self.pin.with(PinControls::PREEMPTION_TIMER, on);
        if controls != self.pin {
            self.pin = controls;
            // SAFETY: the timer makes the guest leave, nothing else.
            unsafe { instructions::vmwrite(field::PIN_CONTROLS.encoding(), controls.0.into()) }
            // The timer cannot be saved unless it runs (SDM Vol. 3C 27.2.1.2).
            let exit = ExitControls(self.read(field::EXIT_CONTROLS)).with(ExitControls::SAVE_PREEMPTION_TIMER, on);
            // SAFETY: as above.
            unsafe { instructions::vmwrite(field::EXIT_CONTROLS.encoding(), exit.0.into()) }
        }
    }

    /// Says whether the guest is in IA-32e mode after the next entry. The processor keeps the control true itself
    /// while the guest runs.
    pub(super) fn set_ia32e_mode(&mut self, on: bool) {
        let controls = EntryControls(self.read(field::ENTRY_CONTROLS)).with(EntryControls::IA32E_MODE_GUEST, on);
        // SAFETY: the control describes the guest, and entry checks it against EFER and CR0.
        unsafe { self.assign(&[field::ENTRY_CONTROLS.of(controls.0)]) }
    }

    /// Forgets the guest's nested translations.
    pub(super) fn invalidate_nested(&mut self) {
        // SAFETY: VMX root operation, see the type; `Capabilities::judge` asked for INVEPT.
        unsafe { instructions::invept(self.invept_kind, [self.ept_pointer, 0]) }
    }

    /// Forgets the guest's linear translations. Without a tag every entry and exit forgets them.
    pub(super) fn invalidate_linear(&mut self) {
        if let Some(tag) = self.tag {
            // SAFETY: VMX root operation, see the type; there is a tag only where there is INVVPID.
            unsafe { instructions::invvpid(self.invvpid_kind, [tag.get().into(), 0]) }
        }
    }

    /// Returns CR2, which VM exits leave as the guest had it.
    #[inline]
    pub(super) fn cr2(&self) -> u64 {
        // SAFETY: VMX root operation, see the type, is at privilege level 0.
        unsafe { instructions::read_cr2() }
    }
    /// Sets CR2.
    #[inline]
    pub(super) fn set_cr2(&mut self, value: u64) {
        // SAFETY: as above; the host reads CR2 only after a page fault of its own has set it.
        unsafe { instructions::write_cr2(value) }
    }
    /// Does what the delivery of a #DB with these causes does beside calling the handler, and its interception leaves to
    /// the host (SDM Vol. 3C 28.1): the causes go to DR6, DR7.GD and IA32_DEBUGCTL.LBR are cleared.
    #[cold]
    pub(super) fn take_debug_causes(&mut self, causes: u64) {
        /// B0 to B3, BD and BS, where DR6 has them too.
        const CAUSES: u64 = 0x600F;
        const DR7_GD: u64 = 1 << 13;
        const DEBUGCTL_LBR: u64 = 1 << 0;
        self.write(field::GUEST_DR7, self.read(field::GUEST_DR7) & !DR7_GD);
        self.write(field::GUEST_DEBUGCTL, self.read(field::GUEST_DEBUGCTL) & !DEBUGCTL_LBR);
        // SAFETY: as above, and VM exits set DR7 to 400H.
        let old = unsafe { instructions::read_dr6() };
        // SAFETY: as above; no host debugs itself on this processor while it has a guest, see `Vmx::new`.
        unsafe { instructions::write_dr6(old | causes & CAUSES) }
    }
    /// Sets CR2 and DR6 to what they are after a reset.
    pub(super) fn reset_residents(&mut self) {
        const DR6_AFTER_RESET: u64 = 0xFFFF_0FF0;
        self.set_cr2(0);
        // SAFETY: as above.
        unsafe { instructions::write_dr6(DR6_AFTER_RESET) }
    }
}

/// What can be watched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Window {
    /// The guest can take an interrupt.
    Interrupt,
    /// The guest can take an NMI.
    Nmi,
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // SAFETY: in VMX root operation on this processor, see the type; nobody uses the VMCS any more.
        unsafe { instructions::vmclear(self.region.physical()) };
        // SAFETY: as above; the one VMCS of this processor is no longer active.
        unsafe { instructions::vmxoff() }
        // SAFETY: VMXE may be cleared outside VMX operation, and `enable` found it clear.
        unsafe { Cr4::write_raw(Cr4::read_raw() & !CR4_VMXE) }
    }
}
