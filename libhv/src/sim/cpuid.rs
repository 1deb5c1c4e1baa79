//! What CPUID says on a simulated processor: whatever feature a hypervisor may pass on is there.

use super::machine::Machine;
use super::pmu::{Config, Pmu};
use super::processor::Vendor;
use crate::vcpu::cpuid::CpuidSource;

/// Components of XCR0 that the processor has: x87, SSE, AVX.
pub(super) const XCR0: u64 = 7;
const PERF_CTR_EXT_CORE: u32 = 1 << 23;
const PDCM: u32 = 1 << 15;
const ARCH_LBR: u32 = 1 << 19;

/// What CPUID says on a processor of a machine: with its PMU, where a bare [`Vendor`] has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpuid {
    vendor: Vendor,
    pmu: Option<Config>,
}

impl Machine {
    /// Returns what CPUID says on the machine's processor, which is of this vendor.
    ///
    /// # Panics
    /// When the machine's PMU is another vendor's.
    pub fn cpuid(&self, vendor: Vendor) -> Cpuid {
        let pmu = self.wires().if_counting(|counting| match &counting.pmu {
            Pmu::Intel(pmu) => Config::Intel(*pmu.config()),
            Pmu::Amd(pmu) => Config::Amd(*pmu.config()),
        });
        assert!(
            pmu.is_none_or(|pmu| matches!(pmu, Config::Intel(_)) == (vendor == Vendor::Intel)),
            "the PMU is not of {vendor:?}"
        );
        Cpuid { vendor, pmu }
    }
}

impl CpuidSource for Cpuid {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut words = self.vendor.words(leaf, subleaf);
        match (self.pmu, leaf, subleaf) {
            (Some(Config::Intel(pmu)), 0, _) if pmu.lbr_depth > 0 => words[0] = words[0].max(0x1C),
            (Some(Config::Intel(pmu)), 1, _) if pmu.version < 2 => words[2] &= !PDCM,
            (Some(Config::Intel(pmu)), 7, 0) if pmu.lbr_depth == 0 => words[3] &= !ARCH_LBR,
            (Some(Config::Intel(pmu)), 0xA, _) => words = pmu.leaf_0a(),
            (Some(Config::Intel(pmu)), 0x1C, _) => words = pmu.leaf_1c(),
            (Some(Config::Amd(pmu)), 0x8000_0001, _) if !pmu.extended => words[2] &= !PERF_CTR_EXT_CORE,
            (Some(Config::Amd(_)), 0x8000_0000, _) => words[0] = 0x8000_0022,
            (Some(Config::Amd(pmu)), 0x8000_000A, _) => words[3] |= u32::from(pmu.virtualized) << 8,
            (Some(Config::Amd(pmu)), 0x8000_0022, _) => words = pmu.leaf_8000_0022(),
            _ => {}
        }
        words
    }
}

impl CpuidSource for Vendor {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.words(leaf, subleaf)
    }
}

impl Vendor {
    fn words(self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let name: &[u8; 12] = match self {
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
        };
        let word = |index: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| name[index * 4 + byte]));
        let (ebx, edx, ecx) = (word(0), word(1), word(2));
        match (leaf, subleaf) {
            (0, _) => [0x16, ebx, ecx, edx],
            (1, _) => [0x0005_06E3, 0x0001_0800, u32::MAX, u32::MAX],
            (7, 0) => [0, u32::MAX, u32::MAX, u32::MAX],
            // The legacy region and header have 576 bytes, the upper halves of the YMM registers 256.
            (0xD, 0) => [XCR0 as u32, 0x340, 0x340, 0],
            (0xD, 2) => [0x100, 0x240, 0, 0],
            (0x8000_0000, _) => [0x8000_0008, ebx, ecx, edx],
            (0x8000_0001, _) => [0, 0, u32::MAX, u32::MAX],
            (0x8000_0008, _) => [0x3028, 0, 0, 0],
            _ => [0; 4],
        }
    }
}
