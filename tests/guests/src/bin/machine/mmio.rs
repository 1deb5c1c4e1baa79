//! Device memory through every form of instruction: the I/O APIC's IOREGSEL, an 8-bit register that keeps what it is given
//! and shows it in the low byte of its doubleword, and the local APIC's page.

use core::arch::asm;
use guests::boot::{bare_on, has_word};
use guests::cpu::{cpuid, load32, store32};
use guests::ioapic::SELECT;
use guests::lapic::{self, register};
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, ioapic};

pub(crate) unsafe fn run(tests: &mut Tests) {
    lapic::enter_xapic();
    tests.run("mmio-store", stores);
    tests.run("mmio-load", loads);
    tests.run("mmio-address-forms", addresses);
    tests.run("mmio-read-modify-write", modifies);
    tests.run("mmio-locked", locked);
    tests.run("mmio-compare", compares);
    tests.run("mmio-bits", bits);
    tests.run("mmio-string", strings);
    tests.run("mmio-stack", stack);
    tests.run("mmio-sse", sse);
    if cpuid(1, 0)[2] & 1 << 28 != 0 {
        tests.run("mmio-avx", avx);
    }
    tests.run("mmio-set-and-move-on-condition", conditions);
    tests.run("mmio-local-apic", local_apic);
    ioapic::mask_all();
}

static mut SCRATCH: [u64; 8] = [0; 8];
const OLD: u64 = 0xaaaa_bbbb_cccc_dddd;

// Puts `before` into IOREGSEL, runs the code with RDI at it, RSI at scratch memory and RAX = OLD, and compares RAX and
// IOREGSEL with what they should be.
macro_rules! form {
    ($before:literal, $code:literal => $rax:expr, $after:literal) => {{
        store32(SELECT, $before);
        let rax: u64;
        asm!(
            "mov {saved}, rbx", $code, "cld", "mov rbx, {saved}",
            saved = out(reg) _,
            inout("rax") OLD => rax, inout("rdi") SELECT => _, inout("rsi") &raw mut SCRATCH => _,
            out("rcx") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _,
        );
        same(concat!($code, ": rax"), rax, $rax as u64)?;
        same(concat!($code, ": register"), load32(SELECT) & 0xff, $after as u32)?;
    }};
}

unsafe fn stores() -> Outcome {
    form!(0, "mov byte ptr [rdi], 0x12" => OLD, 0x12);
    form!(0, "mov word ptr [rdi], 0x12" => OLD, 0x12);
    form!(0, "mov dword ptr [rdi], 0x12" => OLD, 0x12);
    form!(0, "mov ecx, 0x21; mov [rdi], cl" => OLD, 0x21);
    form!(0, "mov ecx, 0x21; mov [rdi], cx" => OLD, 0x21);
    form!(0, "mov ecx, 0x21; mov [rdi], ecx" => OLD, 0x21);
    form!(0, "mov r9d, 0x23; mov [rdi], r9d" => OLD, 0x23);
    form!(0, "mov r10d, 0x24; mov [rdi], r10b" => OLD, 0x24);
    form!(0, "mov eax, 0x1345; mov [rdi], ah" => 0x1345, 0x13);
    form!(0, "mov r8, rsi; mov [rdi], r8b; mov byte ptr [rdi], 0x31" => OLD, 0x31);
    form!(0, "mov ecx, 0x2b; movnti [rdi], ecx" => OLD, 0x2b);
    Ok(())
}

unsafe fn loads() -> Outcome {
    form!(0x84, "mov eax, [rdi]" => 0x84, 0x84);
    form!(0x84, "mov ax, [rdi]" => OLD & !0xffff | 0x84, 0x84);
    form!(0x84, "mov al, [rdi]" => OLD & !0xff | 0x84, 0x84);
    form!(0x84, "mov ah, [rdi]" => OLD & !0xff00 | 0x8400, 0x84);
    form!(0x84, "mov r9d, [rdi]; mov rax, r9" => 0x84, 0x84);
    form!(0x84, "movzx eax, byte ptr [rdi]" => 0x84, 0x84);
    form!(0x84, "movzx ax, byte ptr [rdi]" => OLD & !0xffff | 0x84, 0x84);
    form!(0x84, "movzx rax, byte ptr [rdi]" => 0x84, 0x84);
    form!(0x84, "movzx eax, word ptr [rdi]" => 0x84, 0x84);
    form!(0x84, "movsx eax, byte ptr [rdi]" => 0xffff_ff84u32, 0x84);
    form!(0x84, "movsx rax, byte ptr [rdi]" => -0x7ci64, 0x84);
    form!(0x84, "movsx eax, word ptr [rdi]" => 0x84, 0x84);
    form!(0x84, "movsxd rax, dword ptr [rdi]" => 0x84, 0x84);
    Ok(())
}

unsafe fn addresses() -> Outcome {
    form!(0x45, "mov eax, [edi]" => 0x45, 0x45);
    form!(0x45, "sub rdi, 0x1000; mov eax, [rdi + 0x1000]" => 0x45, 0x45);
    form!(0x45, "add rdi, 8; mov eax, [rdi - 8]" => 0x45, 0x45);
    form!(0x45, "mov ecx, 2; sub rdi, 8; mov eax, [rdi + rcx * 4]" => 0x45, 0x45);
    form!(0x45, "mov r9, rdi; mov r10d, 3; mov eax, [r9 + r10 * 8 - 24]" => 0x45, 0x45);
    form!(0x45, "movabs eax, [0xfec00000]" => 0x45, 0x45);
    form!(0x45, "movabs al, [0xfec00000]" => OLD & !0xff | 0x45, 0x45);
    form!(0x45, "mov eax, 0x46; movabs [0xfec00000], eax" => 0x46, 0x46);
    form!(0x45, "mov r8, rsp; lea rsp, [rdi - 16]; mov eax, [rsp + 16]; mov rsp, r8" => 0x45, 0x45);
    form!(0x45, "mov ecx, 0xc0000100; mov eax, 0xfec00000; xor edx, edx; wrmsr; xor ecx, ecx; mov eax, fs:[rcx]" => 0x45, 0x45);
    cpu::wrmsr(0xc000_0100, 0);
    Ok(())
}

unsafe fn modifies() -> Outcome {
    form!(0x31, "or dword ptr [rdi], 6" => OLD, 0x37);
    form!(0x31, "or byte ptr [rdi], 6" => OLD, 0x37);
    form!(0x31, "and dword ptr [rdi], 0xf0" => OLD, 0x30);
    form!(0x31, "add dword ptr [rdi], 6" => OLD, 0x37);
    form!(0x31, "add word ptr [rdi], 6" => OLD, 0x37);
    form!(0x31, "stc; adc dword ptr [rdi], 6" => OLD, 0x38);
    form!(0x31, "sub dword ptr [rdi], 6" => OLD, 0x2b);
    form!(0x31, "stc; sbb dword ptr [rdi], 6" => OLD, 0x2a);
    form!(0x31, "xor dword ptr [rdi], 0xff" => OLD, 0xce);
    form!(0x31, "inc dword ptr [rdi]" => OLD, 0x32);
    form!(0x31, "dec byte ptr [rdi]" => OLD, 0x30);
    form!(0x31, "not byte ptr [rdi]" => OLD, 0xce);
    form!(0x31, "neg byte ptr [rdi]" => OLD, 0xcf);
    form!(0x31, "mov ecx, 6; or [rdi], ecx" => OLD, 0x37);
    form!(0x31, "mov eax, 6; add eax, [rdi]" => 0x37, 0x31);
    form!(0x31, "mov eax, 0x36; and eax, [rdi]" => 0x30, 0x31);
    form!(0x31, "mov eax, 0x36; sub eax, [rdi]" => 5, 0x31);
    form!(0x31, "mov eax, 0x36; xor al, [rdi]" => 7, 0x31);
    form!(0xff, "clc; add byte ptr [rdi], 1; setc al; movzx eax, al" => 1, 0);
    form!(0x00, "or byte ptr [rdi], 0; setz al; movzx eax, al" => 1, 0);
    form!(0x7f, "inc byte ptr [rdi]; seto al; movzx eax, al" => 1, 0x80);
    Ok(())
}

unsafe fn locked() -> Outcome {
    form!(0x31, "mov eax, 0x44; xchg [rdi], eax" => 0x31, 0x44);
    form!(0x31, "mov eax, 0x44; xchg [rdi], al" => 0x31, 0x44);
    form!(0x31, "mov eax, 0x31; mov ecx, 0x55; lock cmpxchg [rdi], ecx" => 0x31, 0x55);
    form!(0x31, "mov eax, 0x32; mov ecx, 0x55; lock cmpxchg [rdi], ecx" => 0x31, 0x31);
    form!(0x31, "mov eax, 0x31; mov ecx, 0x55; cmpxchg [rdi], ecx; setz al; movzx eax, al" => 1, 0x55);
    form!(0x31, "mov eax, 6; lock xadd [rdi], eax" => 0x31, 0x37);
    form!(0x31, "lock or dword ptr [rdi], 6" => OLD, 0x37);
    form!(0x31, "lock inc dword ptr [rdi]" => OLD, 0x32);
    form!(0x31, "lock bts dword ptr [rdi], 1" => OLD, 0x33);
    Ok(())
}

unsafe fn compares() -> Outcome {
    form!(0x31, "cmp dword ptr [rdi], 0x31; sete al; movzx eax, al" => 1, 0x31);
    form!(0x31, "cmp dword ptr [rdi], 0x32; setb al; movzx eax, al" => 1, 0x31);
    form!(0x31, "mov ecx, 0x32; cmp ecx, [rdi]; seta al; movzx eax, al" => 1, 0x31);
    form!(0x31, "cmp byte ptr [rdi], 0x30; seta al; movzx eax, al" => 1, 0x31);
    form!(0x31, "test byte ptr [rdi], 0x10; setnz al; movzx eax, al" => 1, 0x31);
    form!(0x31, "mov ecx, 0x0e; test [rdi], ecx; setz al; movzx eax, al" => 1, 0x31);
    Ok(())
}

unsafe fn bits() -> Outcome {
    form!(0x31, "bt dword ptr [rdi], 4; setc al; movzx eax, al" => 1, 0x31);
    form!(0x31, "bt dword ptr [rdi], 3; setc al; movzx eax, al" => 0, 0x31);
    form!(0x31, "bts dword ptr [rdi], 3; setc al; movzx eax, al" => 0, 0x39);
    form!(0x31, "btr dword ptr [rdi], 4; setc al; movzx eax, al" => 1, 0x21);
    form!(0x31, "btc dword ptr [rdi], 0; setc al; movzx eax, al" => 1, 0x30);
    form!(0x31, "mov ecx, 3; bts [rdi], ecx" => OLD, 0x39);
    // A bit offset in a register reaches beyond its doubleword.
    form!(0x31, "mov ecx, 0x83; sub rdi, 16; bts [rdi], ecx" => OLD, 0x39);
    Ok(())
}

unsafe fn strings() -> Outcome {
    SCRATCH = [0x5152_5354_5556_5758, 0, 0, 0, 0, 0, 0, 0];
    form!(0x31, "mov ecx, 1; rep movsb" => OLD, 0x58);
    form!(0x31, "mov ecx, 1; rep movsd; mov rax, rcx" => 0, 0x58);
    form!(0x31, "mov r8, rsi; movsd; mov rax, rsi; sub rax, r8" => 4, 0x58);
    form!(0x31, "mov r8, rdi; std; movsd; mov rax, rdi; sub rax, r8" => -4i64, 0x58);
    form!(0x31, "xor ecx, ecx; rep movsd" => OLD, 0x31);
    form!(0x31, "mov eax, 0x66; stosd" => 0x66, 0x66);
    form!(0x31, "mov eax, 0x67; mov ecx, 1; rep stosb" => 0x67, 0x67);
    form!(0x31, "xchg rsi, rdi; lodsd" => 0x31, 0x31);
    form!(0x31, "xchg rsi, rdi; lodsb" => OLD & !0xff | 0x31, 0x31);
    form!(0x31, "mov eax, 0x31; scasd; setz al; movzx eax, al" => 1, 0x31);
    form!(0x31, "mov eax, 0x32; scasb; setz al; movzx eax, al" => 0, 0x31);
    form!(0x31, "xchg rsi, rdi; mov ecx, 1; rep movsd; mov rax, rcx" => 0, 0x31);
    same("doubleword copied out", SCRATCH[0], 0x5152_5354_0000_0031u64)?;
    form!(0x31, "xchg rsi, rdi; movsb" => OLD, 0x31);
    form!(0x31, "cmpsd; setz al; movzx eax, al" => 1, 0x31);
    form!(0x32, "cmpsb; seta al; movzx eax, al" => 0, 0x32);
    if !has_word("bare") {
        // The reserved doublewords beside IOREGSEL take writes and lose them.
        form!(0x31, "mov eax, 0x66; mov ecx, 4; rep stosd; mov rax, rcx" => 0, 0x66);
        form!(0x31, "mov ecx, 2; rep movsd; mov rax, rcx" => 0, 0x31);
    }
    Ok(())
}

unsafe fn stack() -> Outcome {
    if bare_on("bochs") {
        return Ok(());
    }
    form!(0x31, "push [rdi]; pop rax; and eax, 0xff" => 0x31, 0x31);
    form!(0x31, "push word ptr [rdi]; pop ax" => OLD & !0xffff | 0x31, 0x31);
    form!(0x31, "push 0x41; pop [rdi]" => OLD, 0x41);
    form!(0x31, "mov r8, rsp; push 0x42; pop [rdi]; mov rax, rsp; sub rax, r8" => 0, 0x42);
    // IOREGSEL holds the address of code in the first page: MOV EAX, 77H and RET, then a jump back through R8.
    let page = core::ptr::with_exposed_provenance_mut::<[u8; 6]>(0x90);
    page.write_volatile([0xb8, 0x77, 0, 0, 0, 0xc3]);
    form!(0x90, "call [rdi]" => 0x77, 0x90);
    let page = core::ptr::with_exposed_provenance_mut::<[u8; 8]>(0xa0);
    page.write_volatile([0xb8, 0x78, 0, 0, 0, 0x41, 0xff, 0xe0]);
    form!(0xa0, "lea r8, [rip + 2f]; jmp [rdi]; 2:" => 0x78, 0xa0);
    Ok(())
}

unsafe fn sse() -> Outcome {
    form!(0x31, "movd xmm1, [rdi]; movd eax, xmm1" => 0x31, 0x31);
    form!(0x31, "movss xmm9, [rdi]; movd eax, xmm9" => 0x31, 0x31);
    form!(0x31, "mov eax, 0x51; movd xmm2, eax; movd [rdi], xmm2" => 0x51, 0x51);
    form!(0x31, "mov eax, 0x52; movd xmm12, eax; movss [rdi], xmm12" => 0x52, 0x52);
    if bare_on("bochs") {
        return Ok(());
    }
    form!(0x31, "movq xmm3, [rdi]; movq rax, xmm3" => 0x31, 0x31);
    form!(0x31, "movups xmm4, [rdi]; movd eax, xmm4" => 0x31, 0x31);
    form!(0x31, "movaps xmm4, [rdi]; movd eax, xmm4" => 0x31, 0x31);
    form!(0x31, "movdqu xmm15, [rdi]; movd eax, xmm15" => 0x31, 0x31);
    form!(0x31, "mov eax, 0x53; movq xmm5, rax; movq [rdi], xmm5" => 0x53, 0x53);
    form!(0x31, "mov eax, 0x54; movq xmm6, rax; movups [rdi], xmm6" => 0x54, 0x54);
    form!(0x31, "mov eax, 0x55; movq xmm7, rax; movdqa [rdi], xmm7" => 0x55, 0x55);
    Ok(())
}

unsafe fn avx() -> Outcome {
    cpu::write_cr4(cpu::read_cr4() | 1 << 18);
    cpu::xsetbv(0, 7);
    form!(0x31, "vmovd xmm1, [rdi]; vmovd eax, xmm1" => 0x31, 0x31);
    form!(0x31, "vmovss xmm9, [rdi]; vmovd eax, xmm9" => 0x31, 0x31);
    form!(0x31, "mov eax, 0x51; vmovd xmm2, eax; vmovd [rdi], xmm2" => 0x51, 0x51);
    if bare_on("bochs") {
        return Ok(());
    }
    form!(0x31, "vmovdqu xmm4, [rdi]; vmovd eax, xmm4" => 0x31, 0x31);
    form!(0x31, "mov eax, 0x54; vmovq xmm6, rax; vmovups [rdi], xmm6" => 0x54, 0x54);
    // A 128-bit VEX load clears the upper half of the register, in the guest's own state.
    form!(0x31, "vpcmpeqd xmm8, xmm8, xmm8; vinsertf128 ymm8, ymm8, xmm8, 1; vmovdqu xmm8, [rdi]; vextractf128 xmm9, ymm8, 1; vmovd eax, xmm9" => 0, 0x31);
    form!(0x31, "mov eax, 0x55; vmovq xmm6, rax; vmovups [rdi], ymm6" => 0x55, 0x55);
    form!(0x31, "vmovups ymm7, [rdi]; vmovd eax, xmm7" => 0x31, 0x31);
    Ok(())
}

unsafe fn conditions() -> Outcome {
    form!(0x31, "cmp eax, eax; sete byte ptr [rdi]" => OLD, 1);
    form!(0x31, "cmp eax, eax; setne byte ptr [rdi]" => OLD, 0);
    form!(0x31, "cmp eax, eax; cmove eax, [rdi]" => 0x31, 0x31);
    form!(0x31, "cmp eax, eax; cmovne eax, [rdi]" => OLD & 0xffff_ffff, 0x31);
    Ok(())
}

/// The local APIC's registers take aligned doublewords (SDM Vol. 3A 12.4.1).
unsafe fn local_apic() -> Outcome {
    let at = lapic::PAGE + u64::from(register::TPR);
    let step = |code: &'static str, wanted: u32| same(code, load32(at), wanted);
    asm!("mov dword ptr [{}], 0x20", in(reg) at);
    step("mov", 0x20)?;
    asm!("or dword ptr [{}], 0x40", in(reg) at);
    step("or", 0x60)?;
    asm!("and dword ptr [{}], 0x40", in(reg) at);
    step("and", 0x40)?;
    asm!("add dword ptr [{}], 0x10", in(reg) at);
    step("add", 0x50)?;
    asm!("bts dword ptr [{}], 5", in(reg) at);
    step("bts", 0x70)?;
    let mut value = 0x30u32;
    asm!("xchg [{}], {:e}", in(reg) at, inout(reg) value);
    step("xchg", 0x30)?;
    check(value == 0x70, "xchg returns another value")?;
    asm!("stosd", inout("rdi") at => _, in("eax") 0x10);
    step("stosd", 0x10)?;
    asm!("mov dword ptr [{}], 0", in(reg) at);
    step("mov 0", 0)
}
