//! Counting at CPL 3, and RDPMC there.

use crate::unit::*;
use core::arch::asm;
use core::ptr::with_exposed_provenance_mut;
use guests::boot::{USER_CODE64, USER_DATA};
use guests::cpu::{self, wrmsr};
use guests::faults::{BP, Fault, GP, UD, catch};
use guests::interrupts;
use guests::pmu::*;
use guests::report::{Outcome, Tests, check, same};

/// Physical memory that is nobody's, in a large page of its own.
const PLACE: u64 = 0x200_0000;
const USER_PAGE: u64 = 4;
const LARGE: u64 = 0x80;
const PCE: u64 = 1 << 8;

pub(crate) unsafe fn run(tests: &mut Tests) {
    share();
    interrupts::set_privilege(BP, 3);
    tests.run("pmu-user-instructions-are-exact", instructions);
    tests.run("pmu-user-and-kernel-apart", apart);
    tests.run("pmu-user-fault-does-not-retire", fault);
    tests.run("pmu-user-rdpmc-needs-pce", rdpmc);
    interrupts::set_privilege(BP, 0);
    clear();
}

/// Gives the page to CPL 3.
unsafe fn share() {
    let mut table = cpu::read_cr3() & 0xf_ffff_f000;
    for shift in [39, 30, 21] {
        let entry = with_exposed_provenance_mut::<u64>(table as usize).add((PLACE >> shift & 511) as usize);
        entry.write_volatile(entry.read_volatile() | USER_PAGE);
        if entry.read_volatile() & LARGE != 0 {
            break;
        }
        table = entry.read_volatile() & 0xf_ffff_f000;
    }
    cpu::write_cr3(cpu::read_cr3());
}

/// Runs machine code at CPL 3 until it faults; #BP is its end.
unsafe fn enter(code: &[u8]) -> Option<Fault> {
    let place = with_exposed_provenance_mut::<u8>(PLACE as usize);
    for (index, byte) in code.iter().chain(&[0xcc; 8]).enumerate() {
        place.add(index).write_volatile(*byte);
    }
    catch(|| {
        asm!(
            "push {data}", "push {stack}", "push 0x2", "push {code}", "push {at}", "iretq",
            data = in(reg) u64::from(USER_DATA), stack = in(reg) PLACE + 0x2000,
            code = in(reg) u64::from(USER_CODE64), at = in(reg) PLACE,
        );
    })
}

/// mov ecx, TURNS; dec ecx; jnz -4
const LOOP: [u8; 9] = [0xb9, 0x10, 0x27, 0, 0, 0xff, 0xc9, 0x75, 0xfc];
const TURNS: u64 = 10_000;
/// The instructions of the loop and INT3 at its end, which retires: the exception is its effect.
const LENGTH: u64 = 1 + 2 * TURNS + 1;

unsafe fn instructions() -> Outcome {
    clear();
    for (n, event) in [INSTRUCTIONS, BRANCHES, CONDITIONAL, CYCLES].into_iter().enumerate() {
        wrmsr(PERFEVTSEL + n as u32, event | USR | EN);
    }
    wrmsr(FIXED_CTR_CTRL, 2);
    wrmsr(GLOBAL_CTRL, 0xf | 1 << 32);
    let end = enter(&LOOP);
    wrmsr(GLOBAL_CTRL, 0);
    same("its end", end.map_or(0, |fault| fault.vector), BP)?;
    same("instructions", general(0), LENGTH)?;
    same("fixed counter 0", fixed(0), LENGTH)?;
    // INT3 is a far branch.
    same("branches", general(1), TURNS + 1)?;
    same("conditional branches", general(2), TURNS)?;
    check(general(3) >= LENGTH, "fewer cycles than instructions")
}

/// A counter of both levels counts what the counters of each count.
unsafe fn apart() -> Outcome {
    clear();
    wrmsr(PERFEVTSEL, INSTRUCTIONS | USR | EN);
    wrmsr(PERFEVTSEL + 1, INSTRUCTIONS | OS | EN);
    wrmsr(PERFEVTSEL + 2, INSTRUCTIONS | USR | OS | EN);
    wrmsr(GLOBAL_CTRL, 7);
    let end = enter(&LOOP);
    wrmsr(GLOBAL_CTRL, 0);
    same("its end", end.map_or(0, |fault| fault.vector), BP)?;
    same("user", general(0), LENGTH)?;
    same("both", general(2), general(0) + general(1))
}

unsafe fn fault() -> Outcome {
    clear();
    wrmsr(PERFEVTSEL, INSTRUCTIONS | USR | EN);
    wrmsr(PERFEVTSEL + 1, BRANCHES | USR | EN);
    wrmsr(GLOBAL_CTRL, 3);
    // Five NOPs, UD2.
    let end = enter(&[0x90, 0x90, 0x90, 0x90, 0x90, 0x0f, 0x0b]);
    wrmsr(GLOBAL_CTRL, 0);
    same("its end", end.map_or(0, |fault| fault.vector), UD)?;
    same("instructions", general(0), 5u64)?;
    same("a fault is no branch", general(1), 0u64)
}

unsafe fn rdpmc() -> Outcome {
    clear();
    // mov ecx, 0x40000000; rdpmc
    let code = [0xb9, 0, 0, 0, 0x40, 0x0f, 0x33];
    // mov ecx, 8; rdpmc
    let absent = [0xb9, 8, 0, 0, 0, 0x0f, 0x33];
    let vector = |end: Option<Fault>| end.map_or(0, |fault| fault.vector);
    let old = cpu::read_cr4();
    cpu::write_cr4(old & !PCE);
    let without = vector(enter(&code));
    cpu::write_cr4(old | PCE);
    let (with, missing) = (vector(enter(&code)), vector(enter(&absent)));
    cpu::write_cr4(old);
    same("CR4.PCE clear", without, GP)?;
    same("CR4.PCE set", with, BP)?;
    same("no such counter", missing, GP)
}
