//! From the Multiboot loader's 32-bit state to Rust in 64-bit mode, with 4 GiB mapped one to one.

use core::arch::global_asm;

/// Selector of the flat 64-bit code segment.
pub const CODE64: u16 = 0x08;
/// Selector of the flat data segment.
pub const DATA: u16 = 0x10;
/// Selector of the flat 32-bit code segment.
pub const CODE32: u16 = 0x18;
/// Selector of a 16-bit code segment of 64 KiB at 0.
pub const CODE16: u16 = 0x20;
/// Selector of a 16-bit data segment of 64 KiB at 0.
pub const DATA16: u16 = 0x28;
/// Selector, with RPL 3, of the user's flat data segment.
pub const USER_DATA: u16 = 0x33;
/// Selector, with RPL 3, of the user's flat 64-bit code segment.
pub const USER_CODE64: u16 = 0x3b;
/// Selector of the 64-bit TSS.
pub const TSS: u16 = 0x40;

/// How far the image's addresses lie above where it is loaded: it is linked for the last 2 GiB.
pub const IMAGE_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// Returns the physical address of something in the image, or of something in the first 4 GiB.
pub fn physical<T: ?Sized>(of: *const T) -> u64 {
    let address = of.expose_provenance() as u64;
    address.checked_sub(IMAGE_OFFSET).unwrap_or(address)
}

// The symbols of the header come from the target's linker script, as does the room for page tables and the first stack;
// everything in `.boot*` is linked where it is loaded. The header asks for memory information (bit 1) and gives its own
// addresses (bit 16), so that a 64-bit ELF is loaded as it lies in the file (Multiboot Specification 0.6.96, 3.1.3).
global_asm!(
    r#"
    .pushsection .boot.header, "a"
    .balign 4
guest_header:
    .long 0x1badb002, 0x00010002, -(0x1badb002 + 0x00010002)
    .long guest_header, libhv_load_start, libhv_load_end, libhv_image_end, libhv_multiboot_entry
    .popsection

    .pushsection .boot.text, "ax"
    .code32
    .globl libhv_multiboot_entry
libhv_multiboot_entry:
    cli
    cld
    mov esp, offset libhv_boot_stack_top
    push eax
    push ebx

    // PML4, PDPT for the first 4 GiB, PDPT for the last 2 GiB, four page directories of 2 MiB pages.
    mov ebx, offset libhv_boot_tables
    lea eax, [ebx + 0x1003]
    mov [ebx], eax
    lea eax, [ebx + 0x2003]
    mov [ebx + 0xff8], eax
    lea eax, [ebx + 0x3003]
    mov [ebx + 0x2ff0], eax
    lea edi, [ebx + 0x1000]
    mov ecx, 4
2:  mov [edi], eax
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz 2b
    mov eax, 0x83
    lea edi, [ebx + 0x3000]
    mov ecx, 2048
3:  mov [edi], eax
    cmp eax, 0xc0000000
    jb 4f
    or byte ptr [edi], 0x18
4:  add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 3b

    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov cr3, ebx
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3
    or eax, 0x80000022
    mov cr0, eax
    lgdt [guest_first_gdt_pointer]
    .byte 0xea
    .long guest_start64
    .word 0x08

    .code64
guest_start64:
    pop rax
    movabs rcx, offset boot_information
    mov [rcx], rax
    mov rax, 0xffffffff80000000
    add rsp, rax
    movabs rax, offset guest_start_high
    jmp rax

    .balign 8
guest_first_gdt:
    .quad 0, 0x00af9b000000ffff
guest_first_gdt_pointer:
    .word guest_first_gdt_pointer - guest_first_gdt - 1
    .long guest_first_gdt
    .popsection

    .pushsection .text.guest_start_high, "ax"
guest_start_high:
    lgdt [boot_gdt_pointer]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    xor ebp, ebp
    fninit
    call guest_enter
    ud2
    .popsection

    .pushsection .data.boot_gdt, "aw"
    .balign 16
    .globl boot_gdt
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
    .quad 0x00009b000000ffff, 0x000093000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
    .quad 0, 0
    .globl boot_gdt_pointer
boot_gdt_pointer:
    .word boot_gdt_pointer - boot_gdt - 1
    .quad boot_gdt
    .balign 8
    .globl boot_information
boot_information: .quad 0
    .popsection
"#
);

unsafe extern "C" {
    /// EBX of the loader in the lower half, EAX in the upper.
    static boot_information: [u32; 2];
    /// The ten slots of the global descriptor table.
    pub static mut boot_gdt: [u64; 10];
    /// The operand of LGDT for `boot_gdt`.
    pub static boot_gdt_pointer: [u8; 10];
    fn guest_main() -> !;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn guest_enter() -> ! {
    crate::serial::initialize();
    crate::interrupts::initialize();
    // The firmware's timer would come as a vector of an exception.
    crate::pic::initialize();
    crate::pic::set_mask(0xffff);
    guest_main()
}

/// Returns the command line the loader gave, or an empty string.
pub fn command_line() -> &'static str {
    unsafe {
        if boot_information[1] != 0x2bad_b002 {
            return "";
        }
        let information = core::ptr::with_exposed_provenance::<u32>(boot_information[0] as usize);
        if information.read() & 4 == 0 {
            return "";
        }
        let text = core::ptr::with_exposed_provenance(information.add(4).read() as usize);
        core::ffi::CStr::from_ptr(text).to_str().unwrap_or("")
    }
}

/// Returns whether the command line holds `word`.
pub fn has_word(word: &str) -> bool {
    command_line().split_ascii_whitespace().any(|found| found == word)
}

/// Returns whether the guest runs straight on `machine` (`qemu`, `bochs`): then that machine's devices and registers are
/// what is tested, with what they leave out. Without the word `bare` they are the hypervisor's, and only what the
/// processor does by itself is the machine's.
pub fn bare_on(machine: &str) -> bool {
    has_word("bare") && has_word(machine)
}

/// Returns the decimal or 0x-prefixed number that stands behind `name=` on the command line.
pub fn number(name: &str) -> Option<u64> {
    let text = command_line()
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')))?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
