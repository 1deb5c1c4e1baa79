//! XSAVE areas: what each instruction stores and loads of a disabled component, and that tiles survive both ways.

use crate::tiles::{self, CONFIGURATION, Tile};
use crate::{TILECFG, TILEDATA, disable, enable, offered, start, take_error};
use core::arch::asm;
use guests::faults::{NM, catch, quiet, raises};
use guests::report::{Outcome, Tests, check, same};

/// Bytes of the area under test, with room behind it.
pub(crate) const AREA_BYTES: usize = 12 * 1024;

/// Where XSTATE_BV and XCOMP_BV are.
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
/// Where the standard format has TILEDATA.
const STANDARD_TILEDATA: usize = 2816;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("xfd-in-use-follows-the-tiles", in_use);
    tests.run("xfd-tiles-survive-a-save-and-a-restore", round_trips);
    tests.run("xfd-a-part-of-a-compacted-area-is-restored", partial);
    tests.run("xfd-tilecfg-and-tiledata-are-two-components", separate);
    tests.run("xfd-saves-a-disabled-component-as-initial", saves_initial);
    tests.run("xfd-restoring-a-disabled-component-is-nm", restore_faults);
    tests.run("xfd-initialising-a-disabled-component-is-not", restore_initialises);
}

/// An XSAVE area.
#[repr(C, align(64))]
pub(crate) struct Area([u8; AREA_BYTES]);

static mut AREA: Area = Area([0; AREA_BYTES]);

impl Area {
    /// Returns the one area there is, filled with `filler` but for the header, which is 0.
    pub(crate) unsafe fn with(filler: u8) -> &'static mut Self {
        let area = &mut *(&raw mut AREA);
        area.0.fill(filler);
        area.0[XSTATE_BV..XSTATE_BV + 64].fill(0);
        // A legal MXCSR.
        area.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        area
    }

    /// Returns its bytes as they are now.
    pub(crate) fn bytes(&self) -> &[u8; AREA_BYTES] {
        core::hint::black_box(&self.0)
    }

    fn word(&self, at: usize) -> u64 {
        let bytes = &self.bytes()[at..at + 8];
        bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn set_word(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Returns where TILEDATA is.
    fn tile_data(&self, form: Form) -> usize {
        let before = if self.word(XCOMP_BV) & TILECFG == 0 { 576 } else { 640 };
        if form.compacts() { before } else { STANDARD_TILEDATA }
    }
}

/// An instruction that saves, with its companion that restores.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Optimized,
    Compacted,
    Supervisor,
}

impl Form {
    /// XSAVE, XSAVEOPT, XSAVEC, XSAVES.
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Optimized, Self::Compacted, Self::Supervisor];

    /// Returns whether it writes the compacted format.
    pub(crate) fn compacts(self) -> bool {
        matches!(self, Self::Compacted | Self::Supervisor)
    }

    /// Executes the one that saves.
    pub(crate) unsafe fn save(self, area: &mut Area, components: u64) {
        let (low, high) = (components as u32, (components >> 32) as u32);
        match self {
            Self::Plain => asm!("xsave64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack)),
            Self::Optimized => asm!("xsaveopt64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack)),
            Self::Compacted => asm!("xsavec64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack)),
            Self::Supervisor => asm!("xsaves64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack)),
        }
    }

    /// Executes the one that restores.
    unsafe fn restore(self, area: &Area, components: u64) {
        let (low, high) = (components as u32, (components >> 32) as u32);
        match self {
            Self::Supervisor => asm!("xrstors64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack)),
            _ => asm!("xrstor64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack)),
        }
    }
}

/// Executes XGETBV of XINUSE.
unsafe fn xinuse() -> u64 {
    let (low, high): (u32, u32);
    asm!("xgetbv", in("ecx") 1, out("eax") low, out("edx") high, options(nostack));
    u64::from(high) << 32 | u64::from(low)
}

unsafe fn in_use() -> Outcome {
    start();
    let tiles = TILECFG | TILEDATA;
    same("after TILERELEASE", xinuse() & tiles, 0u64)?;
    tiles::configure(&CONFIGURATION);
    same("after LDTILECFG", xinuse() & tiles, TILECFG)?;
    tiles::load(&Tile::pattern(1));
    same("after TILELOADD", xinuse() & tiles, tiles)?;
    disable();
    enable();
    check(tiles::stored() == Tile::pattern(1), "IA32_XFD changes the tiles")?;
    tiles::release();
    same("after TILERELEASE again", xinuse() & tiles, 0u64)
}

unsafe fn same_tiles(tile: &Tile) -> Outcome {
    check(tiles::configured() == CONFIGURATION, "TILECFG")?;
    check(tiles::stored() == *tile, "TILEDATA")
}

unsafe fn round_trips() -> Outcome {
    for (seed, form) in (1..).zip(Form::ALL) {
        for components in [TILECFG | TILEDATA, offered()] {
            start();
            let tile = Tile::pattern(seed);
            tiles::fill(&tile);
            let area = Area::with(0);
            form.save(area, components);
            same("XSTATE_BV", area.word(XSTATE_BV) & (TILECFG | TILEDATA), TILECFG | TILEDATA)?;
            tiles::fill(&Tile::pattern(!seed));
            tiles::release();
            form.restore(area, TILECFG | TILEDATA);
            same_tiles(&tile)?;
        }
    }
    Ok(())
}

unsafe fn partial() -> Outcome {
    for form in [Form::Compacted, Form::Supervisor] {
        start();
        let tile = Tile::pattern(9);
        tiles::fill(&tile);
        let area = Area::with(0);
        form.save(area, offered());
        // The tiles alone, and TILEDATA alone: both lie behind components that nobody asks for.
        tiles::fill(&Tile::pattern(10));
        form.restore(area, TILEDATA);
        same_tiles(&tile)?;
        tiles::release();
        form.restore(area, TILECFG | TILEDATA);
        same_tiles(&tile)?;
    }
    Ok(())
}

unsafe fn separate() -> Outcome {
    start();
    let tile = Tile::pattern(12);
    tiles::fill(&tile);
    let area = Area::with(0);
    Form::Plain.save(area, TILECFG);
    Form::Plain.restore(area, TILECFG);
    same_tiles(&tile)?;
    // XSTATE_BV 0 initialises what is asked for.
    area.set_word(XSTATE_BV, 0);
    Form::Plain.restore(area, TILECFG);
    same("in use", xinuse() & (TILECFG | TILEDATA), TILEDATA)?;
    tiles::release();
    Ok(())
}

unsafe fn saves_initial() -> Outcome {
    for form in Form::ALL {
        start();
        let tile = Tile::pattern(3);
        tiles::fill(&tile);
        let area = Area::with(0x5a);
        if !form.compacts() {
            area.set_word(XSTATE_BV, TILECFG | TILEDATA);
        }
        disable();
        let outcome = quiet("saving under XFD", || form.save(area, TILECFG | TILEDATA));
        enable();
        outcome?;
        same("IA32_XFD_ERR", take_error(), 0u64)?;
        same("XSTATE_BV", area.word(XSTATE_BV), TILECFG)?;
        if form.compacts() {
            same("XCOMP_BV", area.word(XCOMP_BV), 1 << 63 | TILECFG | TILEDATA)?;
        }
        // XSAVE alone stores a component that is in its initial configuration.
        let expected = if form == Form::Plain { 0 } else { 0x5a };
        let data = &area.bytes()[area.tile_data(form)..][..8192];
        check(data.iter().all(|byte| *byte == expected), "TILEDATA in the area")?;
        check(area.bytes()[area.tile_data(form) + 8192] == 0x5a, "what follows TILEDATA")?;
        same_tiles(&tile)?;
    }
    Ok(())
}

unsafe fn restore_faults() -> Outcome {
    for form in Form::ALL {
        start();
        let tile = Tile::pattern(5);
        tiles::fill(&tile);
        let area = Area::with(0);
        form.save(area, TILECFG | TILEDATA);
        let other = Tile::pattern(6);
        tiles::load(&other);
        disable();
        let outcome = raises("loading TILEDATA under XFD", NM, 0, || form.restore(area, TILECFG | TILEDATA));
        let error = take_error();
        let without = quiet("loading TILECFG alone", || form.restore(area, TILECFG));
        let after = take_error();
        enable();
        outcome?;
        without?;
        same("IA32_XFD_ERR", error, TILEDATA)?;
        same("IA32_XFD_ERR of TILECFG alone", after, 0u64)?;
        same_tiles(&other)?;
    }
    Ok(())
}

unsafe fn restore_initialises() -> Outcome {
    for form in Form::ALL {
        start();
        let area = Area::with(0);
        form.save(area, TILECFG | TILEDATA);
        tiles::fill(&Tile::pattern(7));
        disable();
        let fault = catch(|| form.restore(area, TILECFG | TILEDATA));
        let error = take_error();
        enable();
        check(fault.is_none(), "initialising TILEDATA faults")?;
        same("IA32_XFD_ERR", error, 0u64)?;
        same("in use", xinuse() & (TILECFG | TILEDATA), 0u64)?;
    }
    Ok(())
}
