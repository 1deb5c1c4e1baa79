//! What the processor's SVM can do, and whether firmware lets it (APM Vol. 2 15.4, App. E.4.9).

use super::instructions;
use crate::error::{Error, Requirement, Result};
use crate::memory::nested::Level;
use bit_field::BitField;
use raw_cpuid::{CpuId, CpuIdReader};

/// VM_CR.SVMDIS: EFER.SVME cannot be set.
const VM_CR_SVMDIS: usize = 4;

/// What SVM can do on this processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Address-space tags, of which 0 is the host's.
    pub asids: u32,
    /// #VMEXIT saves the next sequential instruction's address.
    pub nrip_save: bool,
    /// TLB_CONTROL can flush one address-space tag.
    pub flush_by_asid: bool,
    /// #VMEXIT reports instruction bytes and operands.
    pub decode_assists: bool,
    /// The largest page that nested tables can map.
    pub largest_page: Level,
}

impl Capability {
    /// Returns what CPUID reports, or what it lacks.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: SVM, or nested paging, is not there.
    pub fn from_cpuid<R: CpuIdReader>(cpuid: &CpuId<R>) -> Result<Self> {
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        if !extended.as_ref().is_some_and(|features| features.has_svm()) {
            return Err(Error::Unsupported(Requirement::Virtualization));
        }
        let svm = cpuid.get_svm_info().ok_or(Error::Unsupported(Requirement::NestedPaging))?;
        if !svm.has_nested_paging() {
            return Err(Error::Unsupported(Requirement::NestedPaging));
        }
        let huge = extended.is_some_and(|features| features.has_1gib_pages());
        Ok(Self {
            asids: svm.supported_asids(),
            nrip_save: svm.has_nrip(),
            flush_by_asid: svm.has_flush_by_asid(),
            decode_assists: svm.has_decode_assists(),
            largest_page: if huge { Level::Size1G } else { Level::Size2M },
        })
    }

    /// Returns what this processor can do, or what it or its firmware lacks.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: SVM or nested paging is not there, or VM_CR.SVMDIS is set.
    pub fn of_this_processor() -> Result<Self> {
        let capability = Self::from_cpuid(&CpuId::new())?;
        if instructions::vm_cr().get_bit(VM_CR_SVMDIS) {
            return Err(Error::Unsupported(Requirement::SvmEnabledByFirmware));
        }
        Ok(capability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raw_cpuid::CpuIdResult;

    #[derive(Clone)]
    struct Leaves {
        features: u32,
        svm: u32,
    }

    impl CpuIdReader for Leaves {
        fn cpuid2(&self, leaf: u32, _: u32) -> CpuIdResult {
            let mut result = CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
            match leaf {
                0x8000_0000 => result.eax = 0x8000_001F,
                0 => (result.eax, result.ebx, result.edx, result.ecx) = (0xD, 0x6874_7541, 0x6974_6E65, 0x444D_4163),
                0x8000_0001 => result.ecx = self.features,
                0x8000_000A => (result.ebx, result.edx) = (16, self.svm),
                _ => {}
            }
            result
        }
    }

    fn capability(features: u32, svm: u32) -> Result<Capability> {
        Capability::from_cpuid(&CpuId::with_cpuid_reader(Leaves { features, svm }))
    }

    #[test]
    fn what_is_lacking_is_named() {
        assert_eq!(capability(0, 1), Err(Error::Unsupported(Requirement::Virtualization)));
        assert_eq!(capability(1 << 2, 1 << 3), Err(Error::Unsupported(Requirement::NestedPaging)));
    }

    #[test]
    fn an_emulated_processor_has_nested_paging_and_little_else() {
        let found = capability(1 << 2, 1).expect("SVM and nested paging");
        assert_eq!((found.nrip_save, found.flush_by_asid, found.decode_assists), (false, false, false));
        let full = capability(1 << 2, 1 | 1 << 3 | 1 << 6 | 1 << 7).expect("SVM and nested paging");
        assert_eq!((full.nrip_save, full.flush_by_asid, full.decode_assists, full.asids), (true, true, true, 16));
    }
}
