//! The processor that the tests run on as the judge of the emulator: the same bytes are executed by both, with the same
//! registers, flags and memory before, and all of them are compared after.
#![expect(unsafe_code, reason = "executes instructions under test; this module exists in tests alone")]

use crate::address::Gpa;
use crate::emulate::fake::{FakeBus, FakeCpu};
use crate::emulate::flags::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::emulate::{Cause, Emulator, Outcome, PagingFeatures};
use crate::memory::GuestMemory;
use crate::registers::{EntryState, Gpr, RFLAGS_RESERVED};
use core::arch::asm;
use proptest::prelude::*;

/// Registers in the order of the assembly below, then RFLAGS, two vector registers, and 64 bytes of memory whose middle
/// RDI points to.
#[repr(C)]
#[derive(Clone, PartialEq, Debug)]
struct State {
    registers: [u64; 6],
    rflags: u64,
    vectors: [[u64; 4]; 2],
    memory: [u8; 64],
}

/// RAX, RCX, RDX, RBX, RSI and R8.
const REGISTERS: [Gpr; 6] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsi, Gpr::R8];
const CODE: u64 = 0x8000;
const DATA: u64 = 0xA040;

/// Executes one instruction on this processor and returns its bytes.
macro_rules! native {
    ($text:literal) => {
        (
            $text,
            (|state: &mut State| {
                let (start, end): (*const u8, *const u8);
                // SAFETY: the block saves and loads the registers it uses, and `text` reads and writes no memory but
                // the 64 bytes of `state.memory`, around whose middle RDI points.
                unsafe {
                    asm!(
                        "push rbx",
                        "lea rdi, [r10 + 120 + 32]",
                        "vmovups ymm0, [r10 + 56]",
                        "vmovups ymm1, [r10 + 88]",
                        "push qword ptr [r10 + 48]",
                        "popfq",
                        "mov rax, [r10]",
                        "mov rcx, [r10 + 8]",
                        "mov rdx, [r10 + 16]",
                        "mov rbx, [r10 + 24]",
                        "mov rsi, [r10 + 32]",
                        "mov r8, [r10 + 40]",
                        "2:",
                        $text,
                        "3:",
                        "pushfq",
                        "pop qword ptr [r10 + 48]",
                        "mov [r10], rax",
                        "mov [r10 + 8], rcx",
                        "mov [r10 + 16], rdx",
                        "mov [r10 + 24], rbx",
                        "mov [r10 + 32], rsi",
                        "mov [r10 + 40], r8",
                        "vmovups [r10 + 56], ymm0",
                        "vmovups [r10 + 88], ymm1",
                        "vzeroupper",
                        "lea r9, [rip + 2b]",
                        "lea r11, [rip + 3b]",
                        "pop rbx",
                        in("r10") state as *mut State,
                        out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _,
                        out("r9") start, out("r11") end, out("xmm0") _, out("xmm1") _,
                    );
                }
                let length = end as usize - start as usize;
                // SAFETY: the bytes between the labels are code of this program.
                unsafe { core::slice::from_raw_parts(start, length) }
            }) as fn(&mut State) -> &'static [u8],
        )
    };
}

type Native = (&'static str, fn(&mut State) -> &'static [u8]);

/// Executes the bytes in the emulator, in 64-bit mode with one 2 MiB page.
fn emulated(bytes: &[u8], before: &State) -> (Outcome, State) {
    let mut memory = GuestMemory::for_tests(0x10000);
    for (at, entry) in [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
        memory.write(Gpa::new(at), &entry.to_le_bytes()).expect("inside");
    }
    memory.write(Gpa::new(CODE), bytes).expect("inside");
    memory.write(Gpa::new(DATA - 32), &before.memory).expect("inside");
    let mut cpu = FakeCpu::new(EntryState::long_mode(CODE, 0x1000));
    for (register, value) in REGISTERS.into_iter().zip(before.registers) {
        cpu.state.set_gpr(register, value);
    }
    cpu.state.set_gpr(Gpr::Rdi, DATA);
    cpu.state.rflags = before.rflags;
    cpu.vectors[..2].copy_from_slice(&before.vectors);
    let mut emulator = Emulator::new(PagingFeatures { physical_bits: 40, gigabyte_pages: true });
    let outcome = emulator.execute(&mut cpu, &mut memory, &mut FakeBus::default(), &Cause::UNKNOWN);
    let mut after = before.clone();
    after.registers = REGISTERS.map(|register| cpu.state.gprs[register as usize]);
    after.rflags = cpu.state.rflags;
    after.vectors.copy_from_slice(&cpu.vectors[..2]);
    memory.read(Gpa::new(DATA - 32), &mut after.memory).expect("inside");
    (outcome, after)
}

/// Compares both, without the flags that the instruction leaves undefined.
fn agree((text, execute): Native, undefined: u64, before: &State) {
    let mut expected = before.clone();
    let bytes = execute(&mut expected);
    let (outcome, mut found) = emulated(bytes, before);
    assert_eq!(outcome, Outcome::Done { next_rip: CODE + bytes.len() as u64, branch: false }, "{text}");
    let compared = STATUS & !undefined;
    expected.rflags &= compared;
    found.rflags &= compared;
    assert_eq!(found, expected, "{text} {bytes:02x?} from {before:x?}");
}

fn number() -> impl Strategy<Value = u64> {
    let edge = prop::sample::select(
        &[0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 63, u64::MAX]
            [..],
    );
    prop_oneof![edge, any::<u64>(), 0u64..80]
}

prop_compose! {
    fn state()(
        registers in prop::array::uniform6(number()),
        flags in any::<u64>(),
        vectors in prop::array::uniform2(prop::array::uniform4(any::<u64>())),
        words in prop::array::uniform8(number()),
    ) -> State {
        let mut memory = [0; 64];
        for (chunk, word) in memory.chunks_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        State { registers, rflags: flags & STATUS | RFLAGS_RESERVED | 1 << 9, vectors, memory }
    }
}

macro_rules! oracle {
    ($($name:ident($undefined:expr): $($text:literal)*;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(48))]
            $(
                #[test]
                fn $name(before in state()) {
                    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("movbe") {
                        for native in [$(native!($text)),*] {
                            agree(native, $undefined, &before);
                        }
                    }
                }
            )*
        }
    };
}

oracle! {
    moves_agree_with_the_processor(0):
        "mov [rdi], al" "mov [rdi + 1], ah" "mov [rdi], cx" "mov [rdi + 3], edx" "mov [rdi - 32], r8" "mov al, [rdi]"
        "mov bh, [rdi + 5]" "mov dx, [rdi]" "mov eax, [rdi]" "mov rsi, [rdi + 24]" "mov byte ptr [rdi], 0x80"
        "mov word ptr [rdi], 0x8001" "mov dword ptr [rdi], 0x80000001" "mov qword ptr [rdi], -2" "mov sil, [rdi]"
        "movzx eax, byte ptr [rdi]" "movzx cx, byte ptr [rdi]" "movzx rdx, word ptr [rdi]" "movsx ax, byte ptr [rdi]"
        "movsx eax, byte ptr [rdi]" "movsx rcx, word ptr [rdi]" "movsxd rdx, dword ptr [rdi]" "movsx edx, word ptr [rdi]"
        "movbe ax, [rdi]" "movbe ecx, [rdi]" "movbe rdx, [rdi]" "movbe [rdi], ax" "movbe [rdi], ecx" "movbe [rdi], rdx"
        "movnti [rdi], eax" "movnti [rdi], rax" "xchg [rdi], al" "xchg [rdi], ch" "xchg [rdi], cx" "xchg [rdi], edx"
        "xchg [rdi], rbx" "xchg eax, edx";
    conditional_moves_agree_with_the_processor(0):
        "cmovo eax, [rdi]" "cmovno ax, [rdi]" "cmovb rax, [rdi]" "cmovae ecx, [rdi]" "cmove edx, [rdi]"
        "cmovne rdx, [rdi]" "cmovbe ebx, [rdi]" "cmova esi, [rdi]" "cmovs r8d, [rdi]" "cmovns eax, [rdi]"
        "cmovp eax, [rdi]" "cmovnp eax, [rdi]" "cmovl eax, [rdi]" "cmovge eax, [rdi]" "cmovle rax, [rdi]"
        "cmovg ax, [rdi]" "seto [rdi]" "setno [rdi]" "setb [rdi]" "setae [rdi]" "sete [rdi]" "setne [rdi]" "setbe [rdi]"
        "seta [rdi]" "sets [rdi]" "setns [rdi]" "setp [rdi]" "setnp [rdi]" "setl [rdi]" "setge [rdi]" "setle [rdi]"
        "setg [rdi]";
    sums_and_differences_agree_with_the_processor(0):
        "add [rdi], al" "add [rdi], cx" "add [rdi], edx" "lock add [rdi], rbx" "add ah, [rdi]" "add ax, [rdi]"
        "add eax, [rdi]" "add rax, [rdi]" "adc [rdi], al" "adc [rdi], ax" "adc [rdi], eax" "adc [rdi], rax"
        "adc rcx, [rdi]" "adc cl, [rdi]" "sub [rdi], dl" "sub [rdi], dx" "sub [rdi], edx" "lock sub [rdi], rdx"
        "sub rbx, [rdi]" "sbb [rdi], al" "sbb [rdi], ax" "sbb [rdi], eax" "sbb [rdi], rax" "sbb eax, [rdi]"
        "cmp [rdi], al" "cmp ax, [rdi]" "cmp [rdi], eax" "cmp rax, [rdi]" "cmp byte ptr [rdi], -1"
        "cmp dword ptr [rdi], -1" "add qword ptr [rdi], 0x7FFFFFFF" "adc qword ptr [rdi], -1" "inc byte ptr [rdi]"
        "inc word ptr [rdi]" "lock inc dword ptr [rdi]" "inc qword ptr [rdi]" "dec byte ptr [rdi]" "dec word ptr [rdi]"
        "dec dword ptr [rdi]" "lock dec qword ptr [rdi]" "neg byte ptr [rdi]" "neg word ptr [rdi]" "neg dword ptr [rdi]"
        "neg qword ptr [rdi]" "not byte ptr [rdi]" "not word ptr [rdi]" "not dword ptr [rdi]" "lock not qword ptr [rdi]"
        "xadd [rdi], al" "xadd [rdi], cx" "lock xadd [rdi], edx" "xadd [rdi], rbx" "xadd ecx, edx" "xadd rax, rax"
        "cmpxchg [rdi], cl" "cmpxchg [rdi], cx" "lock cmpxchg [rdi], ecx" "lock cmpxchg [rdi], rcx"
        "cmpxchg8b [rdi]" "lock cmpxchg8b [rdi]" "add eax, edx" "sub r8d, esi" "inc eax";
    bitwise_operations_agree_with_the_processor(AF):
        "and [rdi], al" "and [rdi], ax" "lock and [rdi], eax" "and [rdi], rax" "and edx, [rdi]" "or [rdi], bl"
        "or [rdi], bx" "or [rdi], ebx" "lock or [rdi], rbx" "or rdx, [rdi]" "xor [rdi], cl" "xor [rdi], cx"
        "xor [rdi], ecx" "lock xor [rdi], rcx" "xor dl, [rdi]" "test [rdi], al" "test [rdi], ax" "test [rdi], eax"
        "test [rdi], rax" "test byte ptr [rdi], 0x80" "test dword ptr [rdi], -2" "test qword ptr [rdi], -2";
    bit_tests_agree_with_the_processor(OF | SF | AF | PF):
        "bt word ptr [rdi], 17" "bt dword ptr [rdi], 31" "bt qword ptr [rdi], 63" "bts word ptr [rdi], 9"
        "lock bts dword ptr [rdi], 40" "bts qword ptr [rdi], 33" "btr word ptr [rdi], 1" "btr dword ptr [rdi], 5"
        "lock btr qword ptr [rdi], 50" "btc word ptr [rdi], 15" "btc dword ptr [rdi], 0" "btc qword ptr [rdi], 62"
        "bts eax, 5" "btr rcx, rdx" "btc r8d, esi" "bt edx, eax";
    products_agree_with_the_processor(SF | ZF | AF | PF):
        "mul byte ptr [rdi]" "mul word ptr [rdi]" "mul dword ptr [rdi]" "mul qword ptr [rdi]" "imul byte ptr [rdi]"
        "imul word ptr [rdi]" "imul dword ptr [rdi]" "imul qword ptr [rdi]" "imul ax, [rdi]" "imul ecx, [rdi]"
        "imul rdx, [rdi]" "imul ax, [rdi], -3" "imul ecx, [rdi], 0x12345678" "imul rdx, [rdi], -128";
    vector_moves_agree_with_the_processor(0):
        "movups xmm0, [rdi + 1]" "movups [rdi - 1], xmm1" "movupd xmm1, [rdi]" "movdqu xmm0, [rdi + 3]" "lddqu xmm0, [rdi]"
        "movdqu [rdi], xmm0" "movd xmm0, dword ptr [rdi]" "movd dword ptr [rdi], xmm0" "movq xmm1, qword ptr [rdi]"
        "movq qword ptr [rdi], xmm1" "movss xmm0, [rdi]" "movss [rdi], xmm0" "movsd xmm0, [rdi]" "movsd [rdi], xmm0"
        "movlps xmm0, [rdi]" "movlps [rdi], xmm0" "movhps xmm0, [rdi]" "movhps [rdi], xmm0" "movlpd xmm1, [rdi]"
        "movhpd xmm1, [rdi]" "movhpd [rdi], xmm1" "vmovups xmm0, [rdi]" "vmovups ymm0, [rdi]" "vmovups [rdi], ymm0"
        "vmovups [rdi], xmm0" "vmovdqu ymm1, [rdi - 5]" "vmovdqu [rdi - 5], ymm1" "vmovd xmm0, dword ptr [rdi]"
        "vmovq xmm0, qword ptr [rdi]" "vmovss xmm1, [rdi]" "vmovsd xmm1, [rdi]" "vmovlps xmm0, xmm1, [rdi]"
        "vmovhps xmm0, xmm1, [rdi]" "vmovhpd [rdi], xmm0" "vlddqu ymm0, [rdi]";
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn shifts_agree_with_the_processor(mut before in state(), count in prop_oneof![Just(0u64), Just(1), 0u64..70]) {
        before.registers[1] = before.registers[1] & !0xFF | count;
        let narrow = count & 31;
        let overflow = |taken: u64| if taken == 1 { 0 } else { OF };
        let shifts: [(Native, u64); 16] = [
            (native!("shl byte ptr [rdi], cl"), 8), (native!("shl word ptr [rdi], cl"), 16),
            (native!("shl dword ptr [rdi], cl"), 32), (native!("shl qword ptr [rdi], cl"), 64),
            (native!("shr byte ptr [rdi], cl"), 8), (native!("shr word ptr [rdi], cl"), 16),
            (native!("shr dword ptr [rdi], cl"), 32), (native!("shr qword ptr [rdi], cl"), 64),
            (native!("sar byte ptr [rdi], cl"), 8), (native!("sar word ptr [rdi], cl"), 16),
            (native!("sar dword ptr [rdi], cl"), 32), (native!("sar qword ptr [rdi], cl"), 64),
            (native!("shld dword ptr [rdi], eax, cl"), 32), (native!("shld qword ptr [rdi], rax, cl"), 64),
            (native!("shrd dword ptr [rdi], eax, cl"), 32), (native!("shrd qword ptr [rdi], rax, cl"), 64),
        ];
        for (shift, size) in shifts {
            let taken = if size == 64 { count & 63 } else { narrow };
            // CF is undefined where all bits have left; SAR repeats the sign and defines it.
            let carry = if taken >= size && !shift.0.starts_with("sar") { CF } else { 0 };
            agree(shift, if taken == 0 { 0 } else { AF | carry | overflow(taken) }, &before);
        }
        if narrow <= 16 {
            for shift in [native!("shld word ptr [rdi], ax, cl"), native!("shrd word ptr [rdi], ax, cl")] {
                agree(shift, if narrow == 0 { 0 } else { AF | overflow(narrow) }, &before);
            }
        }
        for (rotate, size) in [
            (native!("rol byte ptr [rdi], cl"), 8), (native!("rol word ptr [rdi], cl"), 16),
            (native!("rol dword ptr [rdi], cl"), 32), (native!("rol qword ptr [rdi], cl"), 64),
            (native!("ror byte ptr [rdi], cl"), 8), (native!("ror word ptr [rdi], cl"), 16),
            (native!("ror dword ptr [rdi], cl"), 32), (native!("ror qword ptr [rdi], cl"), 64),
            (native!("rcl byte ptr [rdi], cl"), 8), (native!("rcl word ptr [rdi], cl"), 16),
            (native!("rcl dword ptr [rdi], cl"), 32), (native!("rcl qword ptr [rdi], cl"), 64),
            (native!("rcr byte ptr [rdi], cl"), 8), (native!("rcr word ptr [rdi], cl"), 16),
            (native!("rcr dword ptr [rdi], cl"), 32), (native!("rcr qword ptr [rdi], cl"), 64),
        ] {
            let taken = if size == 64 { count & 63 } else { narrow };
            agree(rotate, if taken == 0 { 0 } else { overflow(taken) }, &before);
        }
        for shift in [native!("shl dword ptr [rdi], 1"), native!("sar qword ptr [rdi], 1"), native!("rcr byte ptr [rdi], 1")] {
            agree(shift, AF, &before);
        }
    }

    #[test]
    fn bit_numbers_reach_beyond_the_operand_as_on_the_processor(mut before in state(), bit in -256i64..192) {
        before.registers[0] = bit as u64;
        for native in [
            native!("bt word ptr [rdi], ax"), native!("bts dword ptr [rdi], eax"), native!("btr qword ptr [rdi], rax"),
            native!("btc word ptr [rdi], ax"), native!("lock btc dword ptr [rdi], eax"),
        ] {
            agree(native, OF | SF | AF | PF, &before);
        }
    }

    #[test]
    fn quotients_agree_with_the_processor(mut before in state(), divisor in 1u64..=0x7F, negative: bool, dividend in 0u64..0x3F) {
        before.memory[32..40].copy_from_slice(&divisor.to_le_bytes());
        before.registers[2] = 0;
        for native in [native!("div word ptr [rdi]"), native!("div dword ptr [rdi]"), native!("div qword ptr [rdi]")] {
            agree(native, STATUS, &before);
        }
        before.registers[0] = dividend;
        agree(native!("div byte ptr [rdi]"), STATUS, &before);
        if negative {
            before.registers[0] = dividend.wrapping_neg();
            before.registers[2] = if dividend == 0 { 0 } else { u64::MAX };
        }
        for native in [
            native!("idiv byte ptr [rdi]"), native!("idiv word ptr [rdi]"), native!("idiv dword ptr [rdi]"),
            native!("idiv qword ptr [rdi]"),
        ] {
            agree(native, STATUS, &before);
        }
    }
}
