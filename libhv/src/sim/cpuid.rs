//! What CPUID says on a simulated processor: whatever feature a hypervisor may pass on is there.

use super::processor::Vendor;
use crate::vcpu::cpuid::CpuidSource;

/// Components of XCR0 that the processor has: x87, SSE, AVX.
pub(super) const XCR0: u64 = 7;

impl CpuidSource for Vendor {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
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
