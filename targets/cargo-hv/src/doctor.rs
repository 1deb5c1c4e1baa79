//! `cargo hv doctor`: what is there, what is missing, and what each is for.

use crate::install::{self, Need, PREREQUISITES};
use crate::machine::{self, Machine};
use crate::status::{DONE, MISSING, Result};
use crate::toolchain::Toolchain;
use crate::{bochs_build, guests, perf};

/// Prints a line for each prerequisite, after installing what is missing where `install` says so.
pub(crate) fn run(install: bool) -> Result<u8> {
    if install {
        install::ensure(&[Need::Build, Need::Qemu, Need::Bochs, Need::Iso, Need::Check, Need::Debug])?;
        bochs_build::program()?;
        for kernel in guests::KERNELS {
            guests::kernel(kernel)?;
        }
        guests::initrd()?;
        perf::initrd()?;
    }
    let mut missing = 0;
    let mut line = |there: bool, name: &str, purpose: &str| {
        missing += usize::from(!there);
        println!("{:<8} {name:<32} {purpose}", if there { "there" } else { "missing" });
    };
    for prerequisite in PREREQUISITES {
        line(prerequisite.is_there(), prerequisite.name, &prerequisite.purpose());
    }
    line(bochs_build::is_built(), "Bochs, built into the cache", "the machine vmx");
    for kernel in guests::KERNELS {
        line(guests::has_kernel(kernel), &format!("Debian's kernel {kernel}"), "a guest");
    }
    line(guests::has_busybox(), "busybox, for a guest", "the initial file system of Linux guests");
    line(perf::has_perf(), "Linux's perf, for a guest", "the initial file system perf");
    for name in machine::names() {
        let machine = Machine::named(&name)?;
        let lacking = machine.lacking().map_or(String::new(), |lacking| format!(" (not here, for want of {lacking})"));
        println!("the machine {name}: {}{lacking}", machine.about);
    }
    if let Some(toolchain) = Toolchain::find() {
        println!("images are built by {} with {}", toolchain.cargo.display(), toolchain.version()?);
    }
    if missing > 0 {
        println!(
            "{missing} missing; each is installed when it is first needed, or all now with: cargo hv doctor --install"
        );
    }
    Ok(if missing == 0 { DONE } else { MISSING })
}
