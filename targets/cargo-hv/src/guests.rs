//! Guests from Debian: cloud kernels, and an initial file system made of busybox.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::{Apt, Release};
use crate::cpio::Archive;
use crate::place;
use crate::say::say;
use crate::status::{Doing, Failure, MISSING, Result};

/// Kernels by the name that a command line or a scenario gives them.
pub(crate) const KERNELS: [&str; 2] = ["linux-6.1", "linux-6.12"];
/// The initial file system's name.
pub(crate) const BUSYBOX: &str = "busybox";

pub(crate) const INIT: &str = include_str!("init.sh");
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// The kernel called `name` in [`KERNELS`], fetched when the cache lacks it.
pub(crate) fn kernel(name: &str) -> Result<PathBuf> {
    let folder = place::cached(name, |folder| {
        let apt = Apt::of(Release::Bookworm)?;
        let prefix = format!("linux-image-{}.", name.trim_start_matches("linux-"));
        let package = newest(&apt.show(METAPACKAGE)?, &prefix)
            .ok_or_else(|| Failure::new(MISSING, format!("Debian has no package {prefix}*-cloud-amd64")))?;
        let unpacked = tempfile::tempdir().doing("making a folder for a package")?;
        apt.unpack(&package, unpacked.path())?;
        let kernel = only_kernel(&unpacked.path().join("boot"))?;
        fs::copy(&kernel, folder.join("vmlinuz")).doing(format_args!("copying {}", kernel.display()))?;
        fs::write(folder.join("package"), package).doing("writing into the cache")
    })?;
    Ok(folder.join("vmlinuz"))
}

/// Whether the kernel called `name` is in the cache.
pub(crate) fn has_kernel(name: &str) -> bool {
    place::cache().is_ok_and(|cache| cache.join(name).join("vmlinuz").is_file())
}

/// The kernel package that the newest version of the metapackage names, of those that begin with `prefix`.
fn newest(shown: &str, prefix: &str) -> Option<String> {
    let names = shown.lines().filter_map(|line| line.strip_prefix("Depends:")).flat_map(|line| line.split(','));
    let names = names.filter_map(|dependency| dependency.split_whitespace().next());
    let names = names.filter(|name| name.starts_with(prefix) && name.ends_with("-cloud-amd64"));
    names.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The numbers in a package's name, for comparing.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn only_kernel(folder: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(folder).doing(folder.display())?.flatten();
    files
        .find(|file| file.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|file| file.path())
        .ok_or_else(|| Failure::new(MISSING, "the kernel package holds no vmlinuz"))
}

/// The busybox program, fetched when the cache lacks it.
pub(crate) fn busybox() -> Result<PathBuf> {
    let folder = place::cached(BUSYBOX, |folder| {
        let apt = Apt::of(Release::Bookworm)?;
        let unpacked = tempfile::tempdir().doing("making a folder for a package")?;
        apt.unpack("busybox-static", unpacked.path())?;
        let found = ["bin/busybox", "usr/bin/busybox"].map(|path| unpacked.path().join(path));
        let program = found.iter().find(|path| path.is_file());
        let program = program.ok_or_else(|| Failure::new(MISSING, "busybox-static holds no busybox"))?;
        fs::copy(program, folder.join("busybox")).map(drop).doing("copying busybox")
    })?;
    Ok(folder.join("busybox"))
}

/// Whether busybox is in the cache.
pub(crate) fn has_busybox() -> bool {
    place::cache().is_ok_and(|cache| cache.join(BUSYBOX).join("busybox").is_file())
}

/// What every initial file system holds: busybox, and an `/init` that gives a shell on the console, or with `hv.test` on the
/// kernel's command line powers off. `/first` is a first process that tells the time stamp counter and powers off.
pub(crate) fn archive() -> Result<Archive> {
    let busybox = busybox()?;
    let mut archive = Archive::default();
    archive.folder("bin");
    archive.file("bin/busybox", 0o755, &fs::read(&busybox).doing("reading busybox")?);
    archive.link("bin/sh", "busybox");
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("first", 0o755, &crate::first_process::elf());
    Ok(archive)
}

/// The initial file system of [`archive`] and nothing else.
pub(crate) fn initrd() -> Result<PathBuf> {
    let first = crate::first_process::elf();
    let name = format!("initrd-{}", place::key([INIT, &format!("{first:x?}")]));
    let folder = place::cached(&name, |folder| {
        say("writing the initial file system");
        fs::write(folder.join("initrd.cpio"), archive()?.finish()).doing("writing into the cache")
    })?;
    Ok(folder.join("initrd.cpio"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_greatest_numbers() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 2\nDepends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.9-1)\n\n\
            Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\n\
            Depends: linux-image-6.12.43+deb12-cloud-amd64 (= 6.12.43-1~bpo12+1), other\n";
        assert_eq!(newest(shown, "linux-image-6.1.").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(shown, "linux-image-6.12.").as_deref(), Some("linux-image-6.12.43+deb12-cloud-amd64"));
        assert_eq!(newest(shown, "linux-image-6.9."), None);
    }
}
