//! A first process of a few instructions: it writes the time stamp counter to the console and powers off.

/// Where the file is mapped.
const BASE: u64 = 0x40_0000;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// What it writes, with room for 16 hexadecimal digits.
const TEXT: &[u8; 41] = b"libhv: first process 0000000000000000\r\n\0\0";
/// Where the digits end in the text.
const LAST_DIGIT: u64 = 36;
/// How much is written.
const TEXT_LENGTH: u32 = 39;

/// The ELF file: one segment that holds headers, text and code.
pub(crate) fn elf() -> Vec<u8> {
    let text_offset = ELF_HEADER + PROGRAM_HEADER;
    let code_offset = (text_offset + TEXT.len()).next_multiple_of(16);
    let text = BASE + text_offset as u64;
    let code = code(text);
    let size = (code_offset + code.len()) as u64;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 62] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [BASE + code_offset as u64, ELF_HEADER as u64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [ELF_HEADER as u16, PROGRAM_HEADER as u16, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    // PT_LOAD; readable, writable and executable, for the digits are written in place.
    for word in [1_u32, 7] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(TEXT);
    file.resize(code_offset, 0xcc);
    file.extend_from_slice(&code);
    file
}

/// Its instructions, for a text at this address.
fn code(text: u64) -> Vec<u8> {
    let mut code = Vec::new();
    let text = u32::try_from(text).unwrap_or(0);
    code.extend_from_slice(&[0x0f, 0x31]); // rdtsc
    code.extend_from_slice(&[0x48, 0xc1, 0xe2, 0x20]); // shl rdx, 32
    code.extend_from_slice(&[0x48, 0x09, 0xd0]); // or rax, rdx
    code.push(0xbf); // mov edi, the last digit
    code.extend_from_slice(&(text + LAST_DIGIT as u32).to_le_bytes());
    code.extend_from_slice(&[0xb9, 16, 0, 0, 0]); // mov ecx, 16
    code.extend_from_slice(&[0x89, 0xc2]); // digit: mov edx, eax
    code.extend_from_slice(&[0x83, 0xe2, 0x0f]); // and edx, 15
    code.extend_from_slice(&[0x80, 0xc2, 0x30]); // add dl, '0'
    code.extend_from_slice(&[0x80, 0xfa, 0x39]); // cmp dl, '9'
    code.extend_from_slice(&[0x76, 0x03]); // jbe store
    code.extend_from_slice(&[0x80, 0xc2, 0x27]); // add dl, 'a' - '9' - 1
    code.extend_from_slice(&[0x88, 0x17]); // store: mov [rdi], dl
    code.extend_from_slice(&[0xff, 0xcf]); // dec edi
    code.extend_from_slice(&[0x48, 0xc1, 0xe8, 0x04]); // shr rax, 4
    code.extend_from_slice(&[0xff, 0xc9]); // dec ecx
    code.extend_from_slice(&[0x75, 0xe4]); // jnz digit
    code.extend_from_slice(&[0xb8, 1, 0, 0, 0]); // mov eax, write
    code.extend_from_slice(&[0xbf, 1, 0, 0, 0]); // mov edi, stdout
    code.push(0xbe); // mov esi, the text
    code.extend_from_slice(&text.to_le_bytes());
    code.push(0xba); // mov edx, its length
    code.extend_from_slice(&TEXT_LENGTH.to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x05]); // syscall
    for (opcode, value) in [(0xb8, 169), (0xbf, 0xfee1_dead_u32), (0xbe, 672_274_793), (0xba, 0x4321_fedc)] {
        code.push(opcode); // mov eax, reboot; edi and esi: its magic numbers; edx: power off
        code.extend_from_slice(&value.to_le_bytes());
    }
    code.extend_from_slice(&[0x0f, 0x05, 0xeb, 0xfe]); // syscall; jmp to itself
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    #[test]
    fn the_loop_goes_back_to_the_first_instruction_of_a_digit() {
        let code = code(BASE);
        let mut decoder = Decoder::with_ip(64, &code, BASE, DecoderOptions::NONE);
        let instructions: Vec<_> = decoder.iter().collect();
        assert!(instructions.iter().all(|instruction| !instruction.is_invalid()));
        let of = |mnemonic| instructions.iter().find(|instruction| instruction.mnemonic() == mnemonic).unwrap();
        let after_count = instructions.iter().position(|i| i.mnemonic() == Mnemonic::Jne).unwrap();
        let digit = &instructions[5];
        assert_eq!(digit.mnemonic(), Mnemonic::Mov);
        assert_eq!(instructions[after_count].near_branch_target(), digit.ip());
        let store =
            instructions.iter().rfind(|i| i.mnemonic() == Mnemonic::Mov && i.op0_kind() == iced_x86::OpKind::Memory);
        assert_eq!(of(Mnemonic::Jbe).near_branch_target(), store.unwrap().ip());
    }

    #[test]
    fn the_text_has_its_digits_where_the_code_writes_them() {
        assert_eq!(&TEXT[LAST_DIGIT as usize - 15..=LAST_DIGIT as usize], b"0000000000000000");
        assert_eq!(&TEXT[LAST_DIGIT as usize + 1..TEXT_LENGTH as usize], b"\r\n");
    }
}
