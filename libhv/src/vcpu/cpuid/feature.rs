//! CPUID feature bits by their names, and the list of those a guest may see.

use super::Leaf;

/// A register that CPUID returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Register {
    /// EAX
    Eax,
    /// EBX
    Ebx,
    /// ECX
    Ecx,
    /// EDX
    Edx,
}

/// A bit of what CPUID returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature {
    /// EAX as CPUID is executed.
    pub leaf: u32,
    /// ECX as CPUID is executed.
    pub subleaf: u32,
    /// The register that holds the bit.
    pub register: Register,
    /// The bit's number, 0 to 31.
    pub bit: u8,
}

impl Feature {
    /// Returns the bit as a mask of its register.
    pub const fn mask(self) -> u32 {
        1 << (self.bit & 31)
    }
}

macro_rules! features {
    ($($(#[$doc:meta])* ($leaf:literal, $subleaf:literal) $register:ident { $($name:ident = $bit:literal),* $(,)? })*) => {
        impl Feature {
            $($(
                #[doc = concat!(stringify!($name), ": leaf ", stringify!($leaf), ", subleaf ", stringify!($subleaf),
                    ", ", stringify!($register), " bit ", stringify!($bit), ".")]
                pub const $name: Self =
                    Self { leaf: $leaf, subleaf: $subleaf, register: Register::$register, bit: $bit };
            )*)*
            /// The features of the host that a guest sees. All others stay hidden until
            /// [`CpuidTable::offer`](super::CpuidTable::offer) shows them.
            pub const ALLOWED: &'static [Self] = &[$($(Self::$name),*),*];
        }
    };
}

// Named as the SDM (Vol. 2A, CPUID) and the APM (Vol. 3 App. E) name them.
features! {
    (0x1, 0) Ecx {
        SSE3 = 0, PCLMULQDQ = 1, SSSE3 = 9, FMA = 12, CMPXCHG16B = 13, PCID = 17, SSE4_1 = 19, SSE4_2 = 20, MOVBE = 22,
        POPCNT = 23, AES = 25, XSAVE = 26, AVX = 28, F16C = 29, RDRAND = 30,
    }
    (0x1, 0) Edx {
        FPU = 0, VME = 1, DE = 2, PSE = 3, TSC = 4, MSR = 5, PAE = 6, MCE = 7, CX8 = 8, SEP = 11, MTRR = 12, PGE = 13,
        MCA = 14, CMOV = 15, PAT = 16, PSE36 = 17, CLFSH = 19, MMX = 23, FXSR = 24, SSE = 25, SSE2 = 26, SS = 27,
    }
    (0x7, 0) Ebx {
        FSGSBASE = 0, TSC_ADJUST = 1, BMI1 = 3, AVX2 = 5, FDP_EXCPTN_ONLY = 6, SMEP = 7, BMI2 = 8, ERMS = 9,
        INVPCID = 10, FPU_CS_DS_DEPRECATED = 13, AVX512F = 16, AVX512DQ = 17, RDSEED = 18, ADX = 19, SMAP = 20,
        AVX512_IFMA = 21, CLFLUSHOPT = 23, CLWB = 24, AVX512CD = 28, SHA = 29, AVX512BW = 30, AVX512VL = 31,
    }
    (0x7, 0) Ecx {
        AVX512_VBMI = 1, UMIP = 2, PKU = 3, AVX512_VBMI2 = 6, GFNI = 8, VAES = 9, VPCLMULQDQ = 10, AVX512_VNNI = 11,
        AVX512_BITALG = 12, AVX512_VPOPCNTDQ = 14, RDPID = 22, CLDEMOTE = 25, MOVDIRI = 27, MOVDIR64B = 28,
    }
    (0x7, 0) Edx {
        FSRM = 4, AVX512_VP2INTERSECT = 8, MD_CLEAR = 10, SERIALIZE = 14, AMX_BF16 = 22, AVX512_FP16 = 23,
        AMX_TILE = 24, AMX_INT8 = 25, IBRS_IBPB = 26, STIBP = 27, ARCH_CAPABILITIES = 29, SSBD = 31,
    }
    (0x7, 1) Eax {
        SHA512 = 0, SM3 = 1, SM4 = 2, AVX_VNNI = 4, AVX512_BF16 = 5, CMPCCXADD = 7, FZRM = 10, FSRS = 11, FSRC = 12,
        AMX_FP16 = 21, AVX_IFMA = 23,
    }
    (0x7, 1) Edx { AVX_VNNI_INT8 = 4, AVX_NE_CONVERT = 5, AMX_COMPLEX = 8, AVX_VNNI_INT16 = 10, PREFETCHI = 14 }
    (0x7, 2) Edx { MCDT_NO = 5 }
    (0xD, 1) Eax { XSAVEOPT = 0, XSAVEC = 1, XGETBV_ECX_1 = 2, XSAVES = 3, XFD = 4 }
    (0x8000_0001, 0) Ecx { LAHF64 = 0, ABM = 5, SSE4A = 6, MISALIGNSSE = 7, PREFETCHW = 8, TOPOLOGY_EXTENSIONS = 22 }
    (0x8000_0001, 0) Edx {
        AMD_FPU = 0, AMD_VME = 1, AMD_DE = 2, AMD_PSE = 3, AMD_TSC = 4, AMD_MSR = 5, AMD_PAE = 6, AMD_MCE = 7,
        AMD_CX8 = 8, AMD_APIC = 9, SYSCALL = 11, AMD_MTRR = 12, AMD_PGE = 13, AMD_MCA = 14, AMD_CMOV = 15,
        AMD_PAT = 16, AMD_PSE36 = 17, NX = 20, MMXEXT = 22, AMD_MMX = 23, AMD_FXSR = 24, FFXSR = 25, PAGE_1GB = 26,
        RDTSCP = 27, LONG_MODE = 29,
    }
    (0x8000_0007, 0) Edx { INVARIANT_TSC = 8 }
    (0x8000_0008, 0) Ebx {
        CLZERO = 0, XSAVEERPTR = 2, AMD_IBPB = 12, AMD_IBRS = 14, AMD_STIBP = 15, IBRS_PREFERRED = 18,
        IBRS_SAME_MODE = 19, EFER_LMSLE_UNSUPPORTED = 20, AMD_SSBD = 24, SSB_NO = 26, BTC_NO = 29,
    }
    (0x8000_0021, 0) Eax {
        NO_NESTED_DATA_BREAKPOINT = 0, LFENCE_SERIALIZING = 2, NULL_SELECTOR_CLEARS_BASE = 6, AMD_FSRS = 10,
        AMD_FSRC = 11, SRSO_NO = 29,
    }
}

impl Feature {
    /// x2APIC: the guest's local APIC always has it.
    pub const X2APIC: Self = Self { leaf: 1, subleaf: 0, register: Register::Ecx, bit: 21 };
    /// The guest's local APIC timer always has the TSC-deadline mode.
    pub const TSC_DEADLINE: Self = Self { leaf: 1, subleaf: 0, register: Register::Ecx, bit: 24 };
    /// CR4.OSXSAVE as the guest set it.
    pub const OSXSAVE: Self = Self { leaf: 1, subleaf: 0, register: Register::Ecx, bit: 27 };
    /// There is a hypervisor.
    pub const HYPERVISOR: Self = Self { leaf: 1, subleaf: 0, register: Register::Ecx, bit: 31 };
    /// The guest always has a local APIC.
    pub const APIC: Self = Self { leaf: 1, subleaf: 0, register: Register::Edx, bit: 9 };
    /// The package has more than one logical processor.
    pub const HTT: Self = Self { leaf: 1, subleaf: 0, register: Register::Edx, bit: 28 };
    /// The guest's local APIC timer always runs.
    pub const ARAT: Self = Self { leaf: 6, subleaf: 0, register: Register::Eax, bit: 2 };
    /// CR4.PKE as the guest set it.
    pub const OSPKE: Self = Self { leaf: 7, subleaf: 0, register: Register::Ecx, bit: 4 };
    /// Logical processors of the package are cores (APM Vol. 3 App. E.4.2).
    pub const CMP_LEGACY: Self = Self { leaf: 0x8000_0001, subleaf: 0, register: Register::Ecx, bit: 1 };

    /// Architectural last-branch records, where the guest's PMU has them.
    pub const ARCH_LBR: Self = Self { leaf: 7, subleaf: 0, register: Register::Edx, bit: 19 };
    /// IA32_PERF_CAPABILITIES exists, where the guest's PMU has it.
    pub const PDCM: Self = Self { leaf: 1, subleaf: 0, register: Register::Ecx, bit: 15 };
    /// Six performance counters with registers of their own (APM Vol. 3 App. E.4.2), where the guest's PMU has them.
    pub const PERF_CTR_EXT_CORE: Self = Self { leaf: 0x8000_0001, subleaf: 0, register: Register::Ecx, bit: 23 };

    /// What needs XCR0.AVX.
    pub(super) const NEED_AVX: &'static [Self] = &[
        Self::AVX,
        Self::FMA,
        Self::F16C,
        Self::AVX2,
        Self::VAES,
        Self::VPCLMULQDQ,
        Self::SHA512,
        Self::SM3,
        Self::SM4,
        Self::AVX_VNNI,
        Self::AVX_IFMA,
        Self::AVX_VNNI_INT8,
        Self::AVX_NE_CONVERT,
        Self::AVX_VNNI_INT16,
    ];
    /// What needs the three AVX-512 components of XCR0.
    pub(super) const NEED_AVX512: &'static [Self] = &[
        Self::AVX512F,
        Self::AVX512DQ,
        Self::AVX512_IFMA,
        Self::AVX512CD,
        Self::AVX512BW,
        Self::AVX512VL,
        Self::AVX512_VBMI,
        Self::AVX512_VBMI2,
        Self::AVX512_VNNI,
        Self::AVX512_BITALG,
        Self::AVX512_VPOPCNTDQ,
        Self::AVX512_VP2INTERSECT,
        Self::AVX512_FP16,
        Self::AVX512_BF16,
    ];
    /// What needs the two AMX components of XCR0.
    pub(super) const NEED_AMX: &'static [Self] =
        &[Self::AMX_TILE, Self::AMX_INT8, Self::AMX_BF16, Self::AMX_FP16, Self::AMX_COMPLEX, Self::XFD];
    /// What needs IA32_SPEC_CTRL or IA32_PRED_CMD.
    pub(super) const NEED_SPECULATION_CONTROL: &'static [Self] = &[
        Self::IBRS_IBPB,
        Self::STIBP,
        Self::SSBD,
        Self::AMD_IBPB,
        Self::AMD_IBRS,
        Self::AMD_STIBP,
        Self::IBRS_PREFERRED,
        Self::IBRS_SAME_MODE,
        Self::AMD_SSBD,
    ];
}

/// Returns `raw`, what the host reports, with the bits of [`Feature::ALLOWED`] alone.
pub(super) fn allowed(leaf: u32, subleaf: u32, raw: Leaf) -> Leaf {
    let mut mask = [0; 4];
    for feature in Feature::ALLOWED.iter().filter(|feature| feature.leaf == leaf && feature.subleaf == subleaf) {
        mask[feature.register as usize] |= feature.mask();
    }
    [raw[0] & mask[0], raw[1] & mask[1], raw[2] & mask[2], raw[3] & mask[3]]
}
