//! Bochs from Debian's source package, built once into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Release};
use crate::bochs::Bochs;
use crate::bochs_edits::Additions;
use crate::install::{self, Need};
use crate::machine::{Emulator, Machine};
use crate::say::say;
use crate::status::{Doing, Failure, MISSING, Result};
use crate::{command, place};

pub(crate) const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
pub(crate) const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";

/// What the build is configured with. No debugger: it would stop at every panic and wait for a word.
const OPTIONS: &[&str] = &[
    "--with-nogui",
    "--enable-x86-64",
    "--enable-cpu-level=6",
    "--enable-smp",
    "--enable-vmx=2",
    "--enable-svm",
    "--enable-avx",
    "--enable-evex",
    "--enable-amx",
    "--enable-cet",
    "--enable-uintr",
    "--enable-pci",
    "--enable-memtype",
    "--enable-all-optimizations",
    "--enable-repeat-speedups",
    "--enable-configurable-msrs",
    "--disable-debugger",
    "--disable-docbook",
];

/// Names a Bochs to run instead of the one in the cache, for who works on `targets/bochs`.
const OVERRIDE: &str = "LIBHV_BOCHS";

/// Files compiled between two lines of progress.
const PROGRESS: usize = 40;

/// Bochs for `machine`, if it is one: from the cache, or built now, or Debian's own where building is not possible.
pub(crate) fn for_machine(machine: &Machine) -> Result<Option<Bochs>> {
    if machine.emulator != Emulator::Bochs {
        return Ok(None);
    }
    if let Some(program) = std::env::var_os(OVERRIDE).map(PathBuf::from) {
        return Ok(Some(Bochs { program, bios: BIOS.into(), vga_bios: VGA_BIOS.into() }));
    }
    let program = program().or_else(|failure| {
        // What is missing on this computer may be had in another way; what is wrong in this repository may not.
        let debian = command::find("bochs").filter(|_| failure.status == MISSING).ok_or(failure)?;
        say(format_args!("Bochs could not be built; {} is used, which has fewer features", debian.display()));
        Ok::<_, Failure>(debian)
    })?;
    Ok(Some(Bochs { program, bios: BIOS.into(), vga_bios: VGA_BIOS.into() }))
}

/// The name of the cache entry: another one when an option, a file of ours or an edit changes.
fn entry(additions: &Additions) -> String {
    format!("bochs-{}", place::key(OPTIONS.iter().copied().chain(additions.texts())))
}

/// Whether the build is in the cache.
pub(crate) fn is_built() -> bool {
    let built = |additions| Some(place::cache().ok()?.join(entry(&additions)).join("bochs").is_file());
    Additions::read().ok().and_then(built).unwrap_or(false)
}

/// The program, built when the cache lacks it.
pub(crate) fn program() -> Result<PathBuf> {
    let additions = Additions::read()?;
    Ok(place::cached(&entry(&additions), |folder| build(folder, &additions))?.join("bochs"))
}

fn build(folder: &Path, additions: &Additions) -> Result<()> {
    install::ensure(&[Need::BochsBuild])?;
    let work = tempfile::tempdir().doing("making a folder for the build of Bochs")?;
    let source = source(work.path())?;
    additions.apply(&source)?;
    say("building Bochs: configuring (1 of 2)");
    command::output(Command::new("./configure").args(OPTIONS).current_dir(&source), MISSING)?;
    let jobs = std::thread::available_parallelism().map_or(1, |count| count.get());
    say(format_args!("building Bochs: compiling with {jobs} processes, some minutes (2 of 2)"));
    let mut compiled = 0;
    command::watched(Command::new("make").arg(format!("-j{jobs}")).current_dir(&source), MISSING, &mut |line| {
        compiled += usize::from(line.contains(" -c "));
        if compiled % PROGRESS == 0 && line.contains(" -c ") {
            say(format_args!("building Bochs: {compiled} files are compiled or being compiled"));
        }
    })?;
    let program = source.join("bochs");
    fs::copy(&program, folder.join("bochs")).doing(format_args!("copying {}", program.display()))?;
    say("Bochs is built and in the cache");
    Ok(())
}

/// Fetches Debian's source package and unpacks the original source in it.
fn source(work: &Path) -> Result<PathBuf> {
    let apt = Apt::of(Release::Trixie)?;
    say("fetching the source package of Bochs");
    let fetched = command::output(apt.get().args(["source", "--download-only", "bochs"]).current_dir(work), MISSING);
    // A mirror may lack the description of the package; apt has verified the original source all the same.
    let archive = file_like(work, |name| name.starts_with("bochs_3") && name.contains(".orig.tar."));
    let archive = match (archive, fetched) {
        (Some(archive), _) => archive,
        (None, Err(failure)) => return Err(failure),
        (None, Ok(_)) => return Err(Failure::new(MISSING, "the source package of Bochs holds no original source")),
    };
    command::output(Command::new("tar").arg("-xf").arg(archive).current_dir(work), MISSING)?;
    file_like(work, |name| name.starts_with("bochs-") && work.join(name).is_dir())
        .ok_or_else(|| Failure::new(MISSING, "the source of Bochs did not unpack into a folder"))
}

fn file_like(folder: &Path, is_it: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut files = fs::read_dir(folder).ok()?.flatten();
    files.find(|file| file.file_name().to_str().is_some_and(&is_it)).map(|file| file.path())
}
