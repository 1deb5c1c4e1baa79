//! What the tool needs from the computer, as data, and how it gets there.

use std::path::Path;
use std::process::Command;

use crate::apt::{Apt, Release};
use crate::command;
use crate::machine::Emulator;
use crate::say::say;
use crate::status::{Failure, MISSING, Result};
use crate::toolchain::Toolchain;

/// What a prerequisite is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Build,
    Qemu,
    /// Running Bochs, and making the ISO images it boots from.
    Bochs,
    /// Building Bochs from source.
    BochsBuild,
    Iso,
    Check,
    Debug,
}

impl Need {
    pub(crate) fn of(emulator: Emulator) -> Self {
        match emulator {
            Emulator::Qemu => Self::Qemu,
            Emulator::Bochs => Self::Bochs,
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::Build => "building images",
            Self::Qemu => "the machines svm and kvm",
            Self::Bochs => "the machine vmx",
            Self::BochsBuild => "building Bochs for the machine vmx",
            Self::Iso => "bootable ISO images, which the machine vmx starts from",
            Self::Check => "cargo hv check",
            Self::Debug => "cargo hv debug",
        }
    }
}

/// How to see that a prerequisite is there.
#[derive(Clone, Copy, Debug)]
enum Sign {
    Program(&'static str),
    File(&'static str),
    Toolchain,
}

/// How to get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Debian packages of the system's release.
    Packages(&'static [&'static str]),
    /// Debian packages, from backports where there are newer ones.
    Backports(&'static [&'static str]),
    /// A component of the rustup toolchain in use.
    Component(&'static str),
}

/// One thing the tool needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prerequisite {
    pub(crate) name: &'static str,
    needs: &'static [Need],
    sign: Sign,
    way: Way,
}

/// Everything the tool needs beyond Rust itself.
pub(crate) const PREREQUISITES: &[Prerequisite] = &[
    Prerequisite {
        name: "Rust with the source of core",
        needs: &[Need::Build],
        sign: Sign::Toolchain,
        way: Way::Packages(&["rustc-web", "cargo-web", "rust-web-src"]),
    },
    Prerequisite { name: "ld.lld", needs: &[Need::Build], sign: Sign::Program("ld.lld"), way: Way::Packages(&["lld"]) },
    Prerequisite {
        name: "QEMU",
        needs: &[Need::Qemu],
        sign: Sign::Program(crate::qemu::PROGRAM),
        way: Way::Backports(&["qemu-system-x86"]),
    },
    Prerequisite {
        name: "the BIOS of Bochs",
        needs: &[Need::Bochs],
        sign: Sign::File(crate::bochs_build::BIOS),
        way: Way::Packages(&["bochsbios"]),
    },
    Prerequisite {
        name: "a VGA BIOS",
        needs: &[Need::Bochs],
        sign: Sign::File(crate::bochs_build::VGA_BIOS),
        way: Way::Packages(&["vgabios"]),
    },
    Prerequisite {
        name: "grub-mkrescue",
        needs: &[Need::Bochs, Need::Iso],
        sign: Sign::Program("grub-mkrescue"),
        way: Way::Packages(&["grub-common"]),
    },
    Prerequisite {
        name: "GRUB for BIOS",
        needs: &[Need::Bochs, Need::Iso],
        sign: Sign::File("/usr/lib/grub/i386-pc/multiboot2.mod"),
        way: Way::Packages(&["grub-pc-bin"]),
    },
    Prerequisite {
        name: "xorriso",
        needs: &[Need::Bochs, Need::Iso],
        sign: Sign::Program("xorriso"),
        way: Way::Packages(&["xorriso"]),
    },
    Prerequisite {
        name: "mtools",
        needs: &[Need::Bochs, Need::Iso],
        sign: Sign::Program("mformat"),
        way: Way::Packages(&["mtools"]),
    },
    Prerequisite { name: "g++", needs: &[Need::BochsBuild], sign: Sign::Program("g++"), way: Way::Packages(&["g++"]) },
    Prerequisite {
        name: "make",
        needs: &[Need::BochsBuild],
        sign: Sign::Program("make"),
        way: Way::Packages(&["make"]),
    },
    Prerequisite {
        name: "xz",
        needs: &[Need::BochsBuild],
        sign: Sign::Program("xz"),
        way: Way::Packages(&["xz-utils"]),
    },
    Prerequisite {
        name: "rustfmt",
        needs: &[Need::Check],
        sign: Sign::Program("cargo-fmt"),
        way: Way::Component("rustfmt"),
    },
    Prerequisite {
        name: "clippy",
        needs: &[Need::Check],
        sign: Sign::Program("cargo-clippy"),
        way: Way::Component("clippy"),
    },
    Prerequisite { name: "gdb", needs: &[Need::Debug], sign: Sign::Program("gdb"), way: Way::Packages(&["gdb"]) },
];

impl Prerequisite {
    pub(crate) fn is_there(&self) -> bool {
        match self.sign {
            Sign::Program(name) => command::find(name).is_some(),
            Sign::File(path) => Path::new(path).is_file(),
            Sign::Toolchain => Toolchain::find().is_some(),
        }
    }

    /// What it is for, in words.
    pub(crate) fn purpose(&self) -> String {
        self.needs.iter().map(|need| need.purpose()).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn is_for(&self, needs: &[Need]) -> bool {
        self.needs.iter().any(|need| needs.contains(need))
    }
}

/// Sees to it that all prerequisites of `needs` are there, and installs what is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing = |prerequisite: &&Prerequisite| prerequisite.is_for(needs) && !prerequisite.is_there();
    let missing: Vec<_> = PREREQUISITES.iter().filter(missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|prerequisite| prerequisite.name).collect();
    let commands = commands(&missing)?;
    let Some(leader) = leader() else {
        let sudo = |words: &[String]| if is_ours(words) { "" } else { "sudo " };
        let lines: Vec<_> = commands.iter().map(|words| format!("  {}{}", sudo(words), words.join(" "))).collect();
        return Err(Failure::new(
            MISSING,
            format!(
                "missing: {}. It may not be installed from here; these commands do it:\n{}",
                names.join(", "),
                lines.join("\n")
            ),
        ));
    };
    for prerequisite in &missing {
        say(format_args!("{} is missing ({})", prerequisite.name, prerequisite.purpose()));
    }
    for words in commands {
        say(format_args!("installing: {}", words.join(" ")));
        let words: Vec<_> = if is_ours(&words) { words } else { leader.iter().cloned().chain(words).collect() };
        let mut command = Command::new(&words[0]);
        command::output(command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive"), MISSING)?;
    }
    match missing.iter().find(|prerequisite| !prerequisite.is_there()) {
        None => Ok(()),
        Some(still) => Err(Failure::new(MISSING, format!("{} is still missing after the installation", still.name))),
    }
}

/// The commands that install `missing`, without a `sudo`.
fn commands(missing: &[&Prerequisite]) -> Result<Vec<Vec<String>>> {
    let mut packages = Vec::new();
    let mut backports = Vec::new();
    let mut components = Vec::new();
    for prerequisite in missing {
        match prerequisite.way {
            Way::Packages(names) => packages.extend(names.iter().map(|name| (*name).to_owned())),
            Way::Backports(names) => backports.extend(names.iter().map(|name| (*name).to_owned())),
            Way::Component(name) => components.push(name.to_owned()),
        }
    }
    let mut commands = Vec::new();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    if !packages.is_empty() || !backports.is_empty() {
        let mut get = words("apt-get -q -y --no-install-recommends");
        if is_bookworm() {
            // Lists of our own, so that the system's may be as old as they are.
            get.extend(["-c".to_owned(), Apt::of(Release::Bookworm)?.configuration().display().to_string()]);
        } else {
            commands.push(words("apt-get -q update"));
            packages.append(&mut backports);
        }
        for (release, packages) in [(None, packages), (Some("bookworm-backports"), backports)] {
            if packages.is_empty() {
                continue;
            }
            let release = release.map(|release| ["-t".to_owned(), release.to_owned()]);
            commands.push(
                get.iter()
                    .cloned()
                    .chain(release.into_iter().flatten())
                    .chain(["install".to_owned()])
                    .chain(packages)
                    .collect(),
            );
        }
    }
    if !components.is_empty() {
        commands.push(words("rustup component add").into_iter().chain(components).collect());
    }
    Ok(commands)
}

/// Whether a command changes the user's own files only.
fn is_ours(words: &[String]) -> bool {
    words.first().is_some_and(|program| program == "rustup")
}

fn is_bookworm() -> bool {
    std::fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "VERSION_CODENAME=bookworm"))
}

/// What stands before a command that must be the administrator's: nothing for root, `sudo -n` where that works; `None` where
/// installing is not possible or not wanted (`LIBHV_NO_INSTALL`).
fn leader() -> Option<Vec<String>> {
    if std::env::var_os("LIBHV_NO_INSTALL").is_some_and(|value| !value.is_empty() && value != "0") {
        return None;
    }
    if rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
    sudo.then(|| vec!["sudo".to_owned(), "-n".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_has_a_prerequisite() {
        for need in [Need::Build, Need::Qemu, Need::Bochs, Need::BochsBuild, Need::Iso, Need::Check, Need::Debug] {
            assert!(PREREQUISITES.iter().any(|prerequisite| prerequisite.is_for(&[need])), "{need:?}");
        }
    }

    #[test]
    fn components_come_from_rustup_and_need_no_package_lists() {
        let clippy = PREREQUISITES.iter().find(|prerequisite| prerequisite.name == "clippy").unwrap();
        assert_eq!(commands(&[clippy]).unwrap(), [["rustup", "component", "add", "clippy"]]);
    }
}
