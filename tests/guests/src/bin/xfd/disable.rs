//! IA32_XFD and IA32_XFD_ERR, and which instructions raise #NM.

use crate::tiles::{self, CONFIGURATION, Tile};
use crate::{TILECFG, TILEDATA, XFD, XFD_ERR, disable, enable, offered, start, take_error};
use core::arch::asm;
use guests::cpu::{rdmsr, read_cr0, write_cr0, wrmsr, xsetbv};
use guests::faults::{GP, NM, UD, catch, quiet, raises};
use guests::report::{Outcome, Tests, check, same};

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("xfd-registers-are-0-after-reset", reset);
    tests.run("xfd-reserved-bits-are-gp", reserved);
    tests.run("xfd-tile-instructions-are-nm", not_available);
    tests.run("xfd-error-stays-until-written", sticky);
    tests.run("xfd-configuration-instructions-run", configuration);
    tests.run("xfd-ud-comes-before-nm", priority);
    tests.run("xfd-has-no-effect-without-xcr0", without_xcr0);
    tests.run("xfd-error-is-not-for-cr0-ts", task_switched);
    tests.run("xfd-changed-code-runs-as-changed", changed_code);
}

unsafe fn reset() -> Outcome {
    same("IA32_XFD", rdmsr(XFD), 0u64)?;
    same("IA32_XFD_ERR", rdmsr(XFD_ERR), 0u64)
}

unsafe fn reserved() -> Outcome {
    start();
    for msr in [XFD, XFD_ERR] {
        for value in [0, TILEDATA] {
            wrmsr(msr, value);
            same("round trip", rdmsr(msr), value)?;
            for bit in (0..64).filter(|bit| *bit != 18) {
                raises("a reserved bit", GP, 0, || wrmsr(msr, 1 << bit | TILEDATA))?;
                same("after #GP", rdmsr(msr), value)?;
            }
        }
        wrmsr(msr, 0);
    }
    // The components that XFD supports are those of the processor, whatever XCR0 holds.
    xsetbv(0, 3);
    let outcome = quiet("without tiles in XCR0", || wrmsr(XFD, TILEDATA));
    wrmsr(XFD, 0);
    outcome
}

const INSTRUCTIONS: [(&str, unsafe fn()); 4] =
    [("TILELOADD", load), ("TILESTORED", store), ("TILEZERO", tiles::zero), ("TDPBUUD", tiles::multiply)];

unsafe fn load() {
    tiles::load(&Tile::ZERO);
}

unsafe fn store() {
    tiles::stored();
}

unsafe fn not_available() -> Outcome {
    for (name, instruction) in INSTRUCTIONS {
        start();
        let tile = Tile::pattern(2);
        tiles::fill(&tile);
        quiet(name, || instruction())?;
        tiles::load(&tile);
        disable();
        let outcome = raises(name, NM, 0, || instruction());
        let error = take_error();
        enable();
        outcome?;
        same("IA32_XFD_ERR", error, TILEDATA)?;
        check(tiles::stored() == tile, "the tile has changed")?;
        quiet(name, || instruction())?;
    }
    Ok(())
}

unsafe fn sticky() -> Outcome {
    start();
    tiles::configure(&CONFIGURATION);
    disable();
    raises("TILEZERO", NM, 0, || tiles::zero())?;
    enable();
    tiles::zero();
    tiles::release();
    same("after the cause is gone", rdmsr(XFD_ERR), TILEDATA)?;
    wrmsr(XFD_ERR, 0);
    same("after a write", rdmsr(XFD_ERR), 0u64)
}

unsafe fn configuration() -> Outcome {
    start();
    tiles::fill(&Tile::pattern(4));
    disable();
    let mut found = tiles::CONFIGURATION;
    let store = quiet("STTILECFG", || found = tiles::configured());
    let configure = quiet("LDTILECFG", || tiles::configure(&CONFIGURATION));
    enable();
    store?;
    configure?;
    check(found == CONFIGURATION, "what STTILECFG stores")?;
    check(tiles::stored() == Tile::ZERO, "LDTILECFG leaves tiles as they are")?;
    disable();
    let release = quiet("TILERELEASE", || tiles::release());
    enable();
    release?;
    same("IA32_XFD_ERR", take_error(), 0u64)?;
    check(tiles::configured().0 == [0; 64], "TILERELEASE leaves a configuration")
}

unsafe fn priority() -> Outcome {
    start();
    disable();
    for (name, instruction) in INSTRUCTIONS {
        let outcome = raises(name, UD, 0, || instruction());
        if outcome.is_err() {
            enable();
            return outcome;
        }
    }
    enable();
    same("IA32_XFD_ERR", take_error(), 0u64)
}

unsafe fn without_xcr0() -> Outcome {
    start();
    tiles::configure(&CONFIGURATION);
    disable();
    xsetbv(0, offered() & !(TILECFG | TILEDATA));
    let fault = catch(|| tiles::zero());
    xsetbv(0, offered());
    enable();
    same("vector", fault.map_or(0xff, |fault| fault.vector), UD)?;
    same("IA32_XFD_ERR", take_error(), 0u64)
}

unsafe fn task_switched() -> Outcome {
    start();
    disable();
    let old = read_cr0();
    write_cr0(old | 8);
    let fault = catch(|| asm!("fnop", options(nostack)));
    write_cr0(old);
    enable();
    same("vector", fault.map_or(0xff, |fault| fault.vector), NM)?;
    same("IA32_XFD_ERR", take_error(), 0u64)
}

#[repr(C, align(4096))]
struct Code([u8; 4096]);

static mut CODE: Code = Code([0x90; 4096]);

/// An emulator that keeps what it has decoded must notice the store whatever is enabled in XCR0.
unsafe fn changed_code() -> Outcome {
    start();
    for place in (0..4096).step_by(128) {
        let code = (&raw mut CODE).cast::<u8>().add(place);
        for value in [1u8, 2] {
            // mov eax, value; ret
            for (index, byte) in [0xb8, value, 0, 0, 0, 0xc3].into_iter().enumerate() {
                code.add(index).write_volatile(byte);
            }
            let found: u32;
            asm!("call {}", in(reg) code, out("eax") found);
            same("what the code returns", found, value)?;
        }
    }
    Ok(())
}
