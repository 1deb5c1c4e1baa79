//! Guest registers: their names, and the trait through which every room reads and writes them.

use bit_field::BitField;

/// A general-purpose register, numbered as instructions encode it (SDM Vol. 2A 2.1.5, REX included).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Gpr {
    /// RAX
    Rax,
    /// RCX
    Rcx,
    /// RDX
    Rdx,
    /// RBX
    Rbx,
    /// RSP
    Rsp,
    /// RBP
    Rbp,
    /// RSI
    Rsi,
    /// RDI
    Rdi,
    /// R8
    R8,
    /// R9
    R9,
    /// R10
    R10,
    /// R11
    R11,
    /// R12
    R12,
    /// R13
    R13,
    /// R14
    R14,
    /// R15
    R15,
}

impl Gpr {
    /// All sixteen, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// Returns the register that the low four bits of `number` encode.
    #[inline]
    pub const fn from_number(number: u8) -> Self {
        Self::ALL[(number & 15) as usize]
    }
}

/// A segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum SegmentRegister {
    /// ES
    Es,
    /// CS
    Cs,
    /// SS
    Ss,
    /// DS
    Ds,
    /// FS
    Fs,
    /// GS
    Gs,
    /// LDTR
    Ldtr,
    /// TR
    Tr,
}

impl SegmentRegister {
    /// All eight, in the order of the VMCS fields (SDM Vol. 3D App. B.1.2).
    pub const ALL: [Self; 8] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];
}

/// The attributes of a segment, in the layout of the VMCS access-rights field (SDM Vol. 3C 25.4.1): type 3:0, S 4,
/// DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentAttributes(pub u32);

impl SegmentAttributes {
    /// A segment register that holds nothing.
    pub const UNUSABLE: Self = Self(1 << 16);
    /// 64-bit code, DPL 0, accessed.
    pub const CODE64: Self = Self(0xA09B);
    /// 32-bit code, DPL 0, accessed, 4 KiB granularity.
    pub const CODE32: Self = Self(0xC09B);
    /// 16-bit code as real mode has it.
    pub const CODE16: Self = Self(0x009B);
    /// 32-bit writable data, DPL 0, accessed, 4 KiB granularity.
    pub const DATA32: Self = Self(0xC093);
    /// 16-bit writable data as real mode has it.
    pub const DATA16: Self = Self(0x0093);
    /// A busy 64-bit (in IA-32e mode) or 32-bit task-state segment.
    pub const TSS_BUSY: Self = Self(0x008B);
    /// A local descriptor table.
    pub const LDT: Self = Self(0x0082);

    /// Returns the descriptor privilege level, 0 to 3.
    #[inline]
    pub fn dpl(self) -> u8 {
        self.0.get_bits(5..7) as u8
    }
    /// Returns whether the segment is 64-bit code (the L bit).
    #[inline]
    pub fn long(self) -> bool {
        self.0.get_bit(13)
    }
    /// Returns the D/B bit: 32-bit operands or stack.
    #[inline]
    pub fn default_big(self) -> bool {
        self.0.get_bit(14)
    }
    /// Returns whether the register holds no segment.
    #[inline]
    pub fn unusable(self) -> bool {
        self.0.get_bit(16)
    }
    /// Returns the type field, 0 to 15.
    #[inline]
    pub fn segment_type(self) -> u8 {
        self.0.get_bits(0..4) as u8
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// The base, a guest-linear address.
    pub base: u64,
    /// The limit in bytes (granularity already applied).
    pub limit: u32,
    /// Type, privilege and sizes.
    pub attributes: SegmentAttributes,
}

impl Segment {
    /// A flat segment: base 0, limit 2^32 - 1.
    pub const fn flat(selector: u16, attributes: SegmentAttributes) -> Self {
        Self { selector, base: 0, limit: u32::MAX, attributes }
    }
    /// A segment register that holds nothing.
    pub const fn unusable() -> Self {
        Self { selector: 0, base: 0, limit: 0, attributes: SegmentAttributes::UNUSABLE }
    }
    /// What real mode loads for `selector`: base = selector x 16, limit 64 KiB - 1.
    pub const fn real_mode(selector: u16, attributes: SegmentAttributes) -> Self {
        Self { selector, base: (selector as u64) << 4, limit: 0xFFFF, attributes }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DescriptorTable {
    /// The base, a guest-linear address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u16,
}

/// A control register that a guest's MOV reaches, without CR8, which belongs to the local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlRegister {
    /// CR0
    Cr0,
    /// CR2
    Cr2,
    /// CR3
    Cr3,
    /// CR4
    Cr4,
}

/// CR0.PE: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.NE: numeric error reporting through #MF.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.ET: always 1.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.WP: supervisor writes obey read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.PG: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE: 4 MiB pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE: entries of 64 bits.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.LA57: five levels of paging.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.VMXE: VMX operation.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR4.OSXSAVE: XSAVE and XCR0 are in use.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.SMEP: no supervisor fetches from user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP: no supervisor access to user pages unless RFLAGS.AC.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4.PKE: protection keys for user pages.
pub const CR4_PKE: u64 = 1 << 22;
/// CR4.PKS: protection keys for supervisor pages.
pub const CR4_PKS: u64 = 1 << 24;
/// IA32_EFER.SCE: SYSCALL.
pub const EFER_SCE: u64 = 1 << 0;
/// IA32_EFER.LME: IA-32e mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// IA32_EFER.LMA: IA-32e mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// IA32_EFER.NXE: execute-disable.
pub const EFER_NXE: u64 = 1 << 11;
/// EFER.SVME: SVM enabled (APM Vol. 2 3.1.7).
pub const EFER_SVME: u64 = 1 << 12;
/// RFLAGS bit 1, always set.
pub const RFLAGS_RESERVED: u64 = 1 << 1;
/// RFLAGS.TF: single step.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF: interrupts enabled.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.DF: strings run downwards.
pub const RFLAGS_DF: u64 = 1 << 10;
/// RFLAGS.RF: resume, no instruction breakpoint.
pub const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS.VM: virtual-8086 mode.
pub const RFLAGS_VM: u64 = 1 << 17;
/// RFLAGS.AC: alignment check; with SMAP, permission to access user pages.
pub const RFLAGS_AC: u64 = 1 << 18;

/// The guest's registers as any backend presents them while the guest is not running.
///
/// `set_*` methods store what they are given; that the value is one the guest may hold is the caller's duty, and a
/// value the processor refuses ends in an entry failure, never in anything worse.
pub trait GuestState {
    /// Returns a general-purpose register.
    fn gpr(&self, register: Gpr) -> u64;
    /// Sets a general-purpose register.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// Returns RIP.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, value: u64);
    /// Returns RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// Returns a control register as the guest reads it.
    fn control(&self, register: ControlRegister) -> u64;
    /// Sets a control register as the guest shall read it. Side effects on paging modes (EFER.LMA) are the caller's.
    fn set_control(&mut self, register: ControlRegister, value: u64);
    /// Returns IA32_EFER as the guest reads it.
    fn efer(&self) -> u64;
    /// Sets IA32_EFER as the guest shall read it.
    fn set_efer(&mut self, value: u64);
    /// Returns a segment register.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Sets a segment register.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// Returns the current privilege level, 0 to 3.
    fn cpl(&self) -> u8;

    /// Returns EDX:EAX, the pair in which RDMSR, WRMSR and XSETBV carry 64 bits.
    #[inline]
    fn edx_eax(&self) -> u64 {
        self.gpr(Gpr::Rdx) << 32 | self.gpr(Gpr::Rax) & 0xFFFF_FFFF
    }
    /// Sets EDX:EAX; the upper halves of RDX and RAX become 0, as after RDMSR.
    #[inline]
    fn set_edx_eax(&mut self, value: u64) {
        self.set_gpr(Gpr::Rax, value & 0xFFFF_FFFF);
        self.set_gpr(Gpr::Rdx, value >> 32);
    }
    /// Returns the width of the code that runs: 64, 32 or 16 bits, from EFER.LMA, CS.L, CS.D and CR0.PE.
    #[inline]
    fn code_bits(&self) -> u32 {
        let cs = self.segment(SegmentRegister::Cs).attributes;
        if self.efer() & EFER_LMA != 0 && cs.long() {
            64
        } else if cs.default_big() {
            32
        } else {
            16
        }
    }
}

/// The guest's vector registers, which stay in the processor across exits: the host is soft-float.
pub trait VectorState {
    /// Returns the low 256 bits of register `number` (0 to 15); bits 255:128 are 0 where the guest has no AVX.
    fn ymm(&self, number: u8) -> [u64; 4];
    /// Sets bits 127:0 and leaves the rest, as a legacy SSE load does.
    fn set_xmm(&mut self, number: u8, value: [u64; 2]);
    /// Sets bits 255:0 and clears the rest, as a VEX-encoded load does.
    fn set_ymm(&mut self, number: u8, value: [u64; 4]);
    /// Returns PKRU, or `None` where the host cannot read it; accesses that depend on it are then not emulated.
    #[inline]
    fn pkru(&self) -> Option<u32> {
        None
    }
}

/// The registers a guest starts with: what a loader returns, and what INIT and SIPI set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryState {
    /// General-purpose registers in the order of their numbers; RSP among them.
    pub gprs: [u64; 16],
    /// RIP
    pub rip: u64,
    /// RFLAGS
    pub rflags: u64,
    /// CR0
    pub cr0: u64,
    /// CR3
    pub cr3: u64,
    /// CR4
    pub cr4: u64,
    /// IA32_EFER
    pub efer: u64,
    /// Segment registers in the order of [`SegmentRegister::ALL`].
    pub segments: [Segment; 8],
    /// GDTR
    pub gdtr: DescriptorTable,
    /// IDTR
    pub idtr: DescriptorTable,
}

impl EntryState {
    /// Real mode at `segment:offset`, other registers as after a reset (SDM Vol. 3A 10.1.1).
    pub fn real_mode(segment: u16, offset: u16) -> Self {
        let data = Segment::real_mode(0, SegmentAttributes::DATA16);
        Self {
            gprs: [0; 16],
            rip: offset.into(),
            rflags: RFLAGS_RESERVED,
            cr0: CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            segments: [
                data,
                Segment::real_mode(segment, SegmentAttributes::CODE16),
                data,
                data,
                data,
                data,
                Segment { selector: 0, base: 0, limit: 0xFFFF, attributes: SegmentAttributes::LDT },
                Segment { selector: 0, base: 0, limit: 0xFFFF, attributes: SegmentAttributes::TSS_BUSY },
            ],
            gdtr: DescriptorTable { base: 0, limit: 0xFFFF },
            idtr: DescriptorTable { base: 0, limit: 0xFFFF },
        }
    }

    /// Flat 32-bit protected mode without paging, interrupts off: what Multiboot and PVH hand over.
    pub fn protected_mode(rip: u32) -> Self {
        let data = Segment::flat(0x10, SegmentAttributes::DATA32);
        let mut state = Self::real_mode(0, 0);
        state.rip = rip.into();
        state.cr0 = CR0_PE | CR0_ET;
        state.segments[..6].fill(data);
        state.segments[SegmentRegister::Cs as usize] = Segment::flat(0x08, SegmentAttributes::CODE32);
        state
    }

    /// 64-bit mode with the page tables at `cr3`, interrupts off.
    pub fn long_mode(rip: u64, cr3: u64) -> Self {
        let mut state = Self::protected_mode(0);
        state.rip = rip;
        state.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        state.cr3 = cr3;
        state.cr4 = CR4_PAE;
        state.efer = EFER_LME | EFER_LMA;
        state.segments[SegmentRegister::Cs as usize] = Segment::flat(0x08, SegmentAttributes::CODE64);
        state
    }

    /// Sets a general-purpose register.
    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[register as usize] = value;
    }
}
