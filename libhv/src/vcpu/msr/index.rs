//! The indices of the MSRs a guest may reach (SDM Vol. 4; APM Vol. 2 App. A).

/// IA32_TIME_STAMP_COUNTER
pub const TSC: u32 = 0x10;
/// IA32_PLATFORM_ID
pub const PLATFORM_ID: u32 = 0x17;
/// IA32_APIC_BASE
pub const APIC_BASE: u32 = 0x1B;
/// IA32_TSC_ADJUST
pub const TSC_ADJUST: u32 = 0x3B;
/// IA32_SPEC_CTRL
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD
pub const PRED_CMD: u32 = 0x49;
/// IA32_BIOS_SIGN_ID; MSR_PATCH_LEVEL on AMD's processors
pub const BIOS_SIGN_ID: u32 = 0x8B;
/// MSR_PLATFORM_INFO
pub const PLATFORM_INFO: u32 = 0xCE;
/// IA32_MTRRCAP
pub const MTRRCAP: u32 = 0xFE;
/// IA32_ARCH_CAPABILITIES
pub const ARCH_CAPABILITIES: u32 = 0x10A;
/// IA32_SYSENTER_CS
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_MCG_CAP
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS
pub const MCG_STATUS: u32 = 0x17A;
/// IA32_MISC_ENABLE
pub const MISC_ENABLE: u32 = 0x1A0;
/// IA32_XFD
pub const XFD: u32 = 0x1C4;
/// IA32_XFD_ERR
pub const XFD_ERR: u32 = 0x1C5;
/// IA32_DEBUGCTL
pub const DEBUGCTL: u32 = 0x1D9;
/// IA32_MTRR_PHYSBASE0, the first of the variable-range registers
pub const MTRR_PHYSBASE0: u32 = 0x200;
/// IA32_MTRR_PHYSMASK7, the last of the variable-range registers there are
pub const MTRR_PHYSMASK7: u32 = 0x20F;
/// IA32_MTRR_FIX64K_00000
pub const MTRR_FIX64K: u32 = 0x250;
/// IA32_MTRR_FIX16K_80000
pub const MTRR_FIX16K_80000: u32 = 0x258;
/// IA32_MTRR_FIX16K_A0000
pub const MTRR_FIX16K_A0000: u32 = 0x259;
/// IA32_MTRR_FIX4K_C0000, the first of eight
pub const MTRR_FIX4K_C0000: u32 = 0x268;
/// IA32_MTRR_FIX4K_F8000, the last of eight
pub const MTRR_FIX4K_F8000: u32 = 0x26F;
/// IA32_PAT
pub const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE
pub const MTRR_DEF_TYPE: u32 = 0x2FF;
/// IA32_TSC_DEADLINE
pub const TSC_DEADLINE: u32 = 0x6E0;
/// The first x2APIC register
pub const X2APIC_FIRST: u32 = 0x800;
/// The last index reserved for x2APIC registers
pub const X2APIC_LAST: u32 = 0x8FF;
/// IA32_XSS
pub const XSS: u32 = 0xDA0;
/// IA32_EFER
pub const EFER: u32 = 0xC000_0080;
/// IA32_STAR
pub const STAR: u32 = 0xC000_0081;
/// IA32_LSTAR
pub const LSTAR: u32 = 0xC000_0082;
/// IA32_CSTAR
pub const CSTAR: u32 = 0xC000_0083;
/// IA32_FMASK
pub const FMASK: u32 = 0xC000_0084;
/// IA32_FS_BASE
pub const FS_BASE: u32 = 0xC000_0100;
/// IA32_GS_BASE
pub const GS_BASE: u32 = 0xC000_0101;
/// IA32_KERNEL_GS_BASE
pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
/// IA32_TSC_AUX
pub const TSC_AUX: u32 = 0xC000_0103;
/// SYSCFG (AMD)
pub const SYSCFG: u32 = 0xC001_0010;
/// HWCR (AMD)
pub const HWCR: u32 = 0xC001_0015;
/// NB_CFG (AMD)
pub const NB_CFG: u32 = 0xC001_001F;
/// Interrupt Pending Message (AMD, family 0FH)
pub const INT_PENDING_MESSAGE: u32 = 0xC001_0055;
/// DE_CFG (AMD)
pub const DE_CFG: u32 = 0xC001_1029;
