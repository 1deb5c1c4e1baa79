//! Leaf DH against the manual, and against what the instructions of the XSAVE feature set write.

use crate::area::{AREA_BYTES, Area, Form};
use crate::tiles::{self, Tile};
use crate::{TILECFG, TILEDATA, offered, start};
use guests::cpu::{cpuid, wrmsr, xsetbv};
use guests::report::{Outcome, Tests, check, same};

/// IA32_XSS
const XSS: u32 = 0xda0;
/// User state of CET in IA32_XSS: 16 bytes.
const CET_U: u64 = 1 << 11;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("xfd-leaf-0d-of-the-tiles", components);
    tests.run("xfd-leaf-0d-sizes", sizes);
    tests.run("xfd-areas-are-as-long-as-leaf-0d-says", lengths);
}

unsafe fn components() -> Outcome {
    same("tiles in XCR0", offered() & (TILECFG | TILEDATA), TILECFG | TILEDATA)?;
    check(cpuid(0xd, 1)[0] & 1 << 4 != 0, "XFD is not offered")?;
    check(cpuid(7, 0)[3] & 1 << 24 != 0, "AMX-TILE is not offered")?;
    check(cpuid(0xd, 17) == [64, 2752, 0b010, 0], "TILECFG")?;
    check(cpuid(0xd, 18) == [8192, 2816, 0b110, 0], "TILEDATA")?;
    for component in 2..32 {
        let attributes = cpuid(0xd, component)[2];
        check(component == 18 || attributes & 0b100 == 0, "XFD for another component")?;
        check(component == 17 || component == 18 || attributes & 0b010 == 0, "another component is aligned")?;
    }
    Ok(())
}

/// Returns the size of an area with these components, computed from the subleaves.
fn size(components: u64, compacted: bool) -> u32 {
    let mut end = 576;
    for number in 2..32 {
        let [size, offset, attributes, _] = cpuid(0xd, number);
        if components >> number & 1 == 0 {
            continue;
        }
        let start = match (compacted, attributes & 2 != 0) {
            (true, true) => (end + 63) / 64 * 64,
            (true, false) => end,
            (false, _) => offset,
        };
        end = start + size;
    }
    end
}

unsafe fn sizes() -> Outcome {
    for components in [3, 7, 7 | TILECFG | TILEDATA, offered()] {
        xsetbv(0, components & offered());
        same("standard", cpuid(0xd, 0)[1], size(components, false))?;
        same("compacted", cpuid(0xd, 1)[1], size(components, true))?;
        same("of everything", cpuid(0xd, 0)[2], size(offered(), false))?;
    }
    // With CET_U before it, TILECFG does not start where the component before it ends.
    xsetbv(0, 7 | TILECFG | TILEDATA);
    wrmsr(XSS, CET_U);
    let found = cpuid(0xd, 1)[1];
    wrmsr(XSS, 0);
    same("CET_U in IA32_XSS", u64::from(cpuid(0xd, 1)[2]) & CET_U, CET_U)?;
    same("aligned", found, 576u32 + 256 + 64 + 64 + 8192)
}

unsafe fn lengths() -> Outcome {
    let supervisor = u64::from(cpuid(0xd, 1)[2]);
    for (components, xss) in [(TILECFG | TILEDATA, 0), (7 | TILECFG | TILEDATA, CET_U), (offered(), supervisor)] {
        for form in Form::ALL {
            start();
            wrmsr(XSS, xss);
            let components = if form == Form::Supervisor { components | xss } else { components };
            tiles::fill(&Tile::pattern(0x11));
            let area = Area::with(0x5a);
            form.save(area, components);
            wrmsr(XSS, 0);
            let size = size(components, form.compacts()) as usize;
            let beyond = &area.bytes()[size..];
            check(beyond.iter().all(|byte| *byte == 0x5a), "written beyond its end")?;
            let expected = Tile::pattern(0x11);
            let tile0 = &area.bytes()[size - 8192..][..1024];
            check(tile0 == &expected.0[..], "TILEDATA does not end where the area ends")?;
            // In both formats nothing lies between the two, and both start at a multiple of 64.
            let configuration = &area.bytes()[size - 8192 - 64..][..64];
            check(configuration == &tiles::CONFIGURATION.0[..], "TILECFG is not before TILEDATA")?;
            check(size <= AREA_BYTES, "the area is too small for the test")?;
        }
    }
    Ok(())
}
