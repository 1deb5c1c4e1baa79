//! Looks through an image's object code for instructions that touch vector, x87, MMX or tile state, which belongs to the guest.

use std::collections::BTreeSet;
use std::fmt;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, Register};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::status::{Doing, Failure, Result};

/// The only room of the library that may touch this state.
const ALLOWED: &str = "libhv::hw::vector";
/// Instructions that reach the state without naming a register of it.
const WHOLE_STATE: [Mnemonic; 20] = [
    Mnemonic::Fxsave,
    Mnemonic::Fxsave64,
    Mnemonic::Fxrstor,
    Mnemonic::Fxrstor64,
    Mnemonic::Xsave,
    Mnemonic::Xsave64,
    Mnemonic::Xsaveopt,
    Mnemonic::Xsaveopt64,
    Mnemonic::Xsavec,
    Mnemonic::Xsavec64,
    Mnemonic::Xsaves,
    Mnemonic::Xsaves64,
    Mnemonic::Xrstor,
    Mnemonic::Xrstor64,
    Mnemonic::Xrstors,
    Mnemonic::Xrstors64,
    Mnemonic::Ldmxcsr,
    Mnemonic::Stmxcsr,
    Mnemonic::Vldmxcsr,
    Mnemonic::Vstmxcsr,
];

/// One instruction that should not be there.
#[derive(Debug)]
pub(crate) struct Finding {
    address: u64,
    mnemonic: Mnemonic,
    function: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {:?} in {}", self.address, self.mnemonic, self.function)
    }
}

/// All instructions in `.text` that touch such state or cannot be decoded, outside the room that may.
pub(crate) fn vector_state(elf: &[u8]) -> Result<Vec<Finding>> {
    let file = object::File::parse(elf).doing("reading the image")?;
    let text = file.section_by_name(".text").ok_or_else(|| Failure::request("the image has no .text"))?;
    let code = text.data().doing("reading .text")?;
    let functions = functions(&file);
    if functions.is_empty() {
        return Err(Failure::request("the image has no symbols, so its functions cannot be told apart"));
    }
    let function_at = |address: u64| {
        let after = functions.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).and_then(|at| functions.get(at)).map_or("no function", |(_, name)| name)
    };
    let findings = touching(code, text.address()).into_iter();
    let findings =
        findings.map(|(address, mnemonic)| Finding { address, mnemonic, function: function_at(address).to_owned() });
    Ok(findings.filter(|finding| !finding.function.contains(ALLOWED)).collect())
}

/// Address and readable name of every function, in order of address.
fn functions(file: &object::File<'_>) -> Vec<(u64, String)> {
    let symbols = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    let named = symbols.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())));
    let sorted: BTreeSet<(u64, String)> = named.collect();
    sorted.into_iter().map(|(address, name)| (address, format!("{:#}", rustc_demangle::demangle(&name)))).collect()
}

/// Address and kind of every instruction in 64-bit code that touches such state, or is none.
fn touching(code: &[u8], address: u64) -> Vec<(u64, Mnemonic)> {
    let mut factory = InstructionInfoFactory::new();
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder
        .into_iter()
        .filter(|instruction| touches(&mut factory, instruction))
        .map(|instruction| (instruction.ip(), instruction.mnemonic()))
        .collect()
}

fn touches(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    if instruction.is_invalid() || WHOLE_STATE.contains(&instruction.mnemonic()) {
        return true;
    }
    let x87 = |feature: &CpuidFeature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::MMX)
    };
    instruction.cpuid_features().iter().any(x87)
        || factory.info(instruction).used_registers().iter().any(|used| is_extended(used.register()))
}

fn is_extended(register: Register) -> bool {
    register.is_vector_register() || register.is_mm() || register.is_st() || register.is_tmm() || register.is_k()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &[u8]) -> bool {
        // A decoder built together with the library's takes AVX for bytes that are no instruction, which is found too.
        touching(code, 0).first().is_some_and(|(address, _)| *address == 0)
    }

    #[test]
    fn general_instructions_are_left_in_peace() {
        // mov rax, rbx; mfence; lfence; pause; xgetbv; xsetbv; movnti [rax], ebx; prefetcht0 [rax]; rdtsc; int3
        let code = [
            0x48, 0x89, 0xd8, 0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xe8, 0xf3, 0x90, 0x0f, 0x01, 0xd0, 0x0f, 0x01, 0xd1, 0x0f,
            0xc3, 0x18, 0x0f, 0x18, 0x08, 0x0f, 0x31, 0xcc,
        ];
        assert_eq!(touching(&code, 0), []);
    }

    #[test]
    fn every_kind_of_extended_state_is_found() {
        assert!(found(&[0x0f, 0x28, 0xc1]), "movaps xmm0, xmm1");
        assert!(found(&[0xc5, 0xfc, 0x28, 0xc1]), "vmovaps ymm0, ymm1");
        assert!(found(&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1]), "vmovaps zmm0, zmm1");
        assert!(found(&[0xd9, 0xe8]), "fld1");
        assert!(found(&[0xdb, 0xe3]), "fninit");
        assert!(found(&[0x0f, 0x77]), "emms");
        assert!(found(&[0x0f, 0xef, 0xc0]), "pxor mm0, mm0");
        assert!(found(&[0x0f, 0xae, 0x20]), "xsave [rax]");
        assert!(found(&[0x0f, 0xae, 0x10]), "ldmxcsr [rax]");
        assert!(found(&[0xc4, 0xe2, 0x7b, 0x49, 0xc0]), "tilezero tmm0");
    }
}
