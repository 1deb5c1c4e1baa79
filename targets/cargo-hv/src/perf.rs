//! The initial file system with Linux's `perf` in it: Debian's program, its libraries, and the workload it measures.

use std::fs;
use std::path::PathBuf;

use crate::apt::{Apt, Release};
use crate::say::say;
use crate::status::{Doing, Result};
use crate::{build, guests, libraries, place};

/// The initial file system's name.
pub(crate) const PERF: &str = "perf";

const PACKAGE: &str = "linux-perf";
const SCRIPT: &str = include_str!("perf.sh");
/// The loader that Linux programs name, and its folder in the archive.
const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The folder in the cache with the program `perf` and, in `lib`, its libraries; fetched when the cache lacks it.
fn perf() -> Result<PathBuf> {
    place::cached(PERF, |folder| {
        let apt = Apt::of(Release::Bookworm)?;
        let unpacked = tempfile::tempdir().doing("making a folder for a package")?;
        apt.unpack(PACKAGE, unpacked.path())?;
        let program = unpacked.path().join("usr/bin/perf");
        let found = libraries::of(&program, PACKAGE, &apt, unpacked.path())?;
        let lib = folder.join("lib");
        fs::create_dir(&lib).doing(lib.display())?;
        for (name, file) in &found {
            fs::copy(file, lib.join(name)).doing(format_args!("copying {}", file.display()))?;
        }
        fs::copy(&program, folder.join("perf")).map(drop).doing("copying perf")
    })
}

/// Whether perf is in the cache.
pub(crate) fn has_perf() -> bool {
    place::cache().is_ok_and(|cache| cache.join(PERF).join("perf").is_file())
}

/// The initial file system: all of the one with busybox, `perf`, the program `workload`, and a script that runs what `hv.perf=`
/// on the kernel's command line names and powers off; its head says what there is.
pub(crate) fn initrd() -> Result<PathBuf> {
    let perf = perf()?;
    let workload = build::userland("workload")?;
    let workload = fs::read(&workload).doing(workload.display())?;
    let name = format!("initrd-perf-{}", place::key([guests::INIT, SCRIPT, &format!("{workload:x?}")]));
    let folder = place::cached(&name, |folder| {
        say("writing the initial file system with perf");
        let mut archive = guests::archive()?;
        for folder in ["lib", LIBRARIES, "lib64"] {
            archive.folder(folder);
        }
        let lib = perf.join("lib");
        let mut names: Vec<_> =
            fs::read_dir(&lib).doing(lib.display())?.flatten().map(|file| file.file_name()).collect();
        names.sort();
        for name in names {
            let content = fs::read(lib.join(&name)).doing(lib.display())?;
            archive.file(&format!("{LIBRARIES}/{}", name.to_string_lossy()), 0o755, &content);
        }
        archive.link(&format!("lib64/{LOADER}"), &format!("../{LIBRARIES}/{LOADER}"));
        archive.file("bin/perf", 0o755, &fs::read(perf.join("perf")).doing("reading perf")?);
        archive.file("bin/workload", 0o755, &workload);
        archive.file("perf.sh", 0o755, SCRIPT.as_bytes());
        fs::write(folder.join("initrd.cpio"), archive.finish()).doing("writing into the cache")
    })?;
    Ok(folder.join("initrd.cpio"))
}
