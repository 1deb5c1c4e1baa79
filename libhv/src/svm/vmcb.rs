//! The control structure, VMCB (APM Vol. 2 App. B).
#![expect(unsafe_code, reason = "sees a frame as the VMCB that it holds")]

use crate::memory::Frames;
use core::mem::offset_of;
use core::ops::{Deref, DerefMut};
use x86_64::PhysAddr;

/// Intercepts of vector 3, offset 00CH.
pub mod intercept3 {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO_PROT: u32 = 1 << 27;
    pub const MSR_PROT: u32 = 1 << 28;
    pub const FERR_FREEZE: u32 = 1 << 30;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of vector 4, offset 010H.
pub mod intercept4 {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// V_IRQ, in the word at 060H: a virtual interrupt is pending.
pub const V_IRQ: u64 = 1 << 8;
/// V_INTR_PRIO at its highest.
pub const V_INTR_PRIO: u64 = 0xF << 16;
/// V_IGN_TPR: the virtual interrupt is not held back by the task priority.
pub const V_IGN_TPR: u64 = 1 << 20;
/// V_INTR_MASKING: RFLAGS.IF of the guest masks virtual interrupts alone, that of the host physical ones.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// INTERRUPT_SHADOW, in the word at 068H.
pub const SHADOW: u64 = 1 << 0;
/// NP_ENABLE, in the word at 090H.
pub const NP_ENABLE: u64 = 1 << 0;

/// The control area.
#[expect(missing_docs, reason = "the names are the manual's")]
#[repr(C)]
#[derive(Debug)]
pub struct ControlArea {
    pub cr_reads: u16,
    pub cr_writes: u16,
    pub dr_reads: u16,
    pub dr_writes: u16,
    pub exceptions: u32,
    pub intercept3: u32,
    pub intercept4: u32,
    pub intercept5: u32,
    reserved_018: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base_pa: u64,
    pub msrpm_base_pa: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    pub interrupt_state: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_control: u64,
    pub avic_apic_bar: u64,
    pub ghcb: u64,
    pub event_injection: u64,
    pub nested_cr3: u64,
    pub virtualization_extensions: u64,
    pub clean: u32,
    reserved_0c4: u32,
    pub next_rip: u64,
    pub fetched_count: u8,
    pub fetched: [u8; 15],
    reserved_0e0: [u8; 0x320],
}

/// A segment register in the state-save area.
#[expect(missing_docs, reason = "the names are the manual's")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VmcbSegment {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// The state-save area.
#[expect(missing_docs, reason = "the names are the manual's")]
#[repr(C)]
#[derive(Debug)]
pub struct SaveArea {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_0a0: [u8; 0x2B],
    pub cpl: u8,
    reserved_0cc: u32,
    pub efer: u64,
    reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    reserved_1e0: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    pub pat: u64,
    pub debugctl: u64,
    reserved_278: [u8; 0x988],
}

/// The whole VMCB.
#[expect(missing_docs, reason = "the names are the manual's")]
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct VmcbLayout {
    pub control: ControlArea,
    pub save: SaveArea,
}

const _: () = {
    assert!(offset_of!(ControlArea, intercept3) == 0x00C);
    assert!(offset_of!(ControlArea, pause_filter_threshold) == 0x03C);
    assert!(offset_of!(ControlArea, iopm_base_pa) == 0x040);
    assert!(offset_of!(ControlArea, msrpm_base_pa) == 0x048);
    assert!(offset_of!(ControlArea, tsc_offset) == 0x050);
    assert!(offset_of!(ControlArea, asid) == 0x058);
    assert!(offset_of!(ControlArea, tlb_control) == 0x05C);
    assert!(offset_of!(ControlArea, virtual_interrupt) == 0x060);
    assert!(offset_of!(ControlArea, interrupt_state) == 0x068);
    assert!(offset_of!(ControlArea, exit_code) == 0x070);
    assert!(offset_of!(ControlArea, exit_info1) == 0x078);
    assert!(offset_of!(ControlArea, exit_info2) == 0x080);
    assert!(offset_of!(ControlArea, exit_int_info) == 0x088);
    assert!(offset_of!(ControlArea, nested_control) == 0x090);
    assert!(offset_of!(ControlArea, event_injection) == 0x0A8);
    assert!(offset_of!(ControlArea, nested_cr3) == 0x0B0);
    assert!(offset_of!(ControlArea, clean) == 0x0C0);
    assert!(offset_of!(ControlArea, next_rip) == 0x0C8);
    assert!(offset_of!(ControlArea, fetched_count) == 0x0D0);
    assert!(offset_of!(ControlArea, fetched) == 0x0D1);
    assert!(size_of::<ControlArea>() == 0x400);
    assert!(offset_of!(SaveArea, cs) == 0x010);
    assert!(offset_of!(SaveArea, gdtr) == 0x060);
    assert!(offset_of!(SaveArea, ldtr) == 0x070);
    assert!(offset_of!(SaveArea, idtr) == 0x080);
    assert!(offset_of!(SaveArea, tr) == 0x090);
    assert!(offset_of!(SaveArea, cpl) == 0x0CB);
    assert!(offset_of!(SaveArea, efer) == 0x0D0);
    assert!(offset_of!(SaveArea, cr4) == 0x148);
    assert!(offset_of!(SaveArea, cr3) == 0x150);
    assert!(offset_of!(SaveArea, cr0) == 0x158);
    assert!(offset_of!(SaveArea, dr7) == 0x160);
    assert!(offset_of!(SaveArea, dr6) == 0x168);
    assert!(offset_of!(SaveArea, rflags) == 0x170);
    assert!(offset_of!(SaveArea, rip) == 0x178);
    assert!(offset_of!(SaveArea, rsp) == 0x1D8);
    assert!(offset_of!(SaveArea, rax) == 0x1F8);
    assert!(offset_of!(SaveArea, star) == 0x200);
    assert!(offset_of!(SaveArea, sysenter_eip) == 0x238);
    assert!(offset_of!(SaveArea, cr2) == 0x240);
    assert!(offset_of!(SaveArea, pat) == 0x268);
    assert!(offset_of!(SaveArea, debugctl) == 0x270);
    assert!(size_of::<VmcbLayout>() == 4096);
};

/// A VMCB in a frame of its own.
#[derive(Debug)]
pub struct Vmcb(Frames);

impl Vmcb {
    /// Takes a frame of zeros, and makes an empty VMCB of it.
    pub fn new(frame: Frames) -> Self {
        Self(frame)
    }
    /// Returns what VMRUN, VMLOAD and VMSAVE take.
    #[inline]
    pub fn physical(&self) -> PhysAddr {
        self.0.physical()
    }
}

impl Deref for Vmcb {
    type Target = VmcbLayout;
    #[inline]
    fn deref(&self) -> &VmcbLayout {
        // SAFETY: the frame has the layout's size and alignment, any bits are valid in it, and it is ours; the
        // processor changes it during VMRUN and VMSAVE alone, when it is borrowed exclusively.
        unsafe { self.0.as_ptr().cast().as_ref() }
    }
}

impl DerefMut for Vmcb {
    #[inline]
    fn deref_mut(&mut self) -> &mut VmcbLayout {
        // SAFETY: as in `deref`.
        unsafe { self.0.as_ptr().cast().as_mut() }
    }
}
