//! Random ports and random device memory.

use core::arch::asm;
use guests::boot::has_word;
use guests::faults::{Fault, catch};
use guests::random::Random;
use guests::{acpi, cpu};

/// Returns whether an access may end or wreck the machine: debug-exit, keyboard controller, fast A20, SMI, reset control, the
/// power-management block, Bochs' own port, and the UART's data.
unsafe fn ends(port: u16) -> bool {
    static mut POWER: Option<u16> = None;
    let power = match POWER {
        Some(port) => port,
        None => {
            let found = acpi::soft_off().map_or(0x600, |(port, _)| port);
            POWER = Some(found);
            found
        }
    };
    let near = |place: u16, reach: u16| (place.saturating_sub(3)..=place.saturating_add(reach)).contains(&port);
    near(0xf4, 3)
        || near(0x64, 0)
        || near(0x92, 0)
        || near(0xb2, 1)
        || near(0xcf9, 0)
        || near(power & !0x3f, 0x40)
        || near(0x8900, 0)
        || near(0x3f8, 0)
}

pub(crate) unsafe fn port(random: &mut Random) -> Option<Fault> {
    let port = match random.below(4) {
        0 => random.next() as u16,
        1 => random.below(0x400) as u16,
        2 => 0xcf8 + random.below(8) as u16,
        _ => random
            .one_of(&[0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x60, 0x61, 0x70, 0x71, 0x80, 0x3f9, 0x3fb, 0x3ff]),
    };
    // A machine of its own has devices that write memory by themselves, and QEMU dies of a doubleword across two devices.
    let forgiven = !has_word("bare") || matches!(port, 0x20..=0x43 | 0x70 | 0x71 | 0xa0 | 0xa1 | 0x3ff);
    let value = random.value() as u32;
    let way = random.below(6);
    if ends(port) || (way >= 3 && !forgiven) || (way % 3 != 0 && has_word("bare")) {
        return None;
    }
    if way >= 3 && (0x3d..0x44).contains(&port) {
        crate::TOUCHED = true;
    }
    catch(|| match way {
        0 => drop_value(cpu::in8(port).into()),
        1 => drop_value(cpu::in16(port).into()),
        2 => drop_value(cpu::in32(port)),
        3 => cpu::out8(port, value as u8),
        4 => cpu::out16(port, value as u16),
        _ => cpu::out32(port, value),
    })
}

fn drop_value(_: u32) {}

/// Accesses the I/O APIC, the local APIC or nothing at all. Not written: the I/O APIC's window and the local APIC's interrupt
/// command, LINT0 and LINT1, which can mean INIT.
pub(crate) unsafe fn memory(random: &mut Random) -> Option<Fault> {
    let offset = random.below(0x400) & !3;
    let bare = has_word("bare");
    let (at, readable_only) = match random.below(4) {
        0 => (0xfec0_0000 + (offset & 0x1f), offset & 0x1f > 4),
        // QEMU drowns in the ticks of a periodic timer with a small count, and takes a store to offset 0 for an MSI.
        1 => (
            0xfee0_0000 + (offset & !15),
            matches!(offset & !15, 0x300 | 0x350 | 0x360) || (bare && !(0x10..0x380).contains(&offset)),
        ),
        2 => (0xfed0_0000 + offset, bare),
        _ => (0xe000_0000 + random.below(0x1000_0000), bare),
    };
    let value = random.value();
    macro_rules! access {
        ($code:literal) => {
            catch(|| asm!($code, inout("rax") value => _, inout("rdi") at => _, inout("rsi") at => _, inout("rcx") value & 3 => _))
        };
    }
    crate::TOUCHED |= at < 0xff00_0000 && at >= 0xfec0_0000;
    match random.below(if readable_only { 8 } else { 24 }) {
        0 => access!("mov eax, [rdi]"),
        1 => access!("mov al, [rdi]"),
        2 => access!("movzx eax, word ptr [rdi]"),
        3 => access!("mov rax, [rdi]"),
        4 => access!("test [rdi], eax"),
        5 => access!("cmp al, [rdi]"),
        6 => access!("movsx rax, byte ptr [rdi]"),
        7 => access!("lodsd"),
        8 => access!("mov [rdi], eax"),
        9 => access!("mov [rdi], al"),
        10 => access!("mov [rdi], ax"),
        11 => access!("mov [rdi], rax"),
        12 => access!("or [rdi], eax"),
        13 => access!("and dword ptr [rdi], 0x7f"),
        14 => access!("add [rdi], al"),
        15 => access!("xchg [rdi], eax"),
        16 => access!("lock cmpxchg [rdi], ecx"),
        17 => access!("lock xadd [rdi], eax"),
        18 => access!("bts dword ptr [rdi], 3"),
        19 => access!("stosd"),
        20 => access!("rep stosd"),
        21 => access!("push [rdi]; pop rax"),
        22 => access!("movd xmm0, [rdi]"),
        _ => access!("movd [rdi], xmm0"),
    }
}
