//! The machines images run on: files of settings in `targets/machines`, read and filled in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::place;
use crate::status::{Doing, Failure, Result};

/// A machine as its file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Machine {
    /// The name of the file.
    #[serde(skip)]
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) emulator: Emulator,
    /// Arguments of QEMU, or lines of a Bochs configuration. `{memory}` (MiB) and `{cpus}` are filled in.
    settings: Vec<String>,
    /// More of them, that make every run the same.
    deterministic: Vec<String>,
    /// Variables of the emulator's environment.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// MiB the machine has more than its guest.
    pub(crate) headroom: u64,
    /// This computer's own processor, through KVM with nested virtualization.
    #[serde(default)]
    nested_kvm: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Emulator {
    Qemu,
    Bochs,
}

impl Machine {
    /// Reads `targets/machines/NAME.toml`.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let path = folder().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path)
            .map_err(|_| Failure::request(format!("no machine is called {name}; there are: {}", names().join(", "))))?;
        let machine: Self = toml::from_str(&text).doing(path.display())?;
        Ok(Self { name: name.to_owned(), ..machine })
    }

    /// What this computer lacks for the machine, if anything.
    pub(crate) fn lacking(&self) -> Option<&'static str> {
        let says_yes = |vendor: &str| {
            let switch = format!("/sys/module/kvm_{vendor}/parameters/nested");
            std::fs::read_to_string(switch).is_ok_and(|text| ["Y", "1"].contains(&text.trim()))
        };
        match self.nested_kvm {
            true if !Path::new("/dev/kvm").exists() => Some("/dev/kvm"),
            true if !says_yes("intel") && !says_yes("amd") => Some("nested virtualization in KVM"),
            _ => None,
        }
    }

    /// The settings for a machine of this size.
    pub(crate) fn settings(&self, memory: u64, cpus: u32, deterministic: bool) -> Vec<String> {
        let more = if deterministic { self.deterministic.as_slice() } else { &[] };
        let fill = |text: &String| text.replace("{memory}", &memory.to_string()).replace("{cpus}", &cpus.to_string());
        self.settings.iter().chain(more).map(fill).collect()
    }
}

fn folder() -> PathBuf {
    place::root().join("targets/machines")
}

/// The names of all machines, sorted.
pub(crate) fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).into_iter().flatten().flatten();
    let mut names: Vec<String> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// What the machine's firmware starts, and what it is given.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) protocol: Protocol,
    pub(crate) kernel: PathBuf,
    /// Boot modules in order; for [`Protocol::Linux`] one initrd.
    pub(crate) modules: Vec<PathBuf>,
    pub(crate) arguments: String,
}

/// How it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// A libhv image: Multiboot 1 from QEMU, Multiboot 2 from GRUB.
    Image,
    /// A test guest without a hypervisor below it: Multiboot 1.
    Multiboot,
    /// A Linux kernel without a hypervisor below it.
    Linux,
}

/// One run of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) machine: Machine,
    pub(crate) start: Start,
    /// The machine's memory in MiB.
    pub(crate) memory: u64,
    pub(crate) cpus: u32,
    /// Every run the same, instead of in the pace of the clock on the wall.
    pub(crate) deterministic: bool,
    /// More settings for the emulator, after the machine's own.
    pub(crate) extra: Vec<String>,
    /// More variables of the emulator's environment, after the machine's own.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) timeout: Option<Duration>,
}

impl Job {
    /// All settings of the emulator that the machine and the job name.
    pub(crate) fn settings(&self) -> Vec<String> {
        let mut settings = self.machine.settings(self.memory, self.cpus, self.deterministic);
        settings.extend(self.extra.iter().cloned());
        settings
    }

    /// All variables that the machine and the job add to the emulator's environment; of two with one name the last counts.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&String, &String)> {
        self.machine.environment.iter().chain(self.environment.iter().map(|pair| (&pair.0, &pair.1)))
    }

    /// Whether the guest runs straight on the machine, so that no word of a hypervisor can be expected.
    pub(crate) fn is_bare(&self) -> bool {
        self.start.protocol != Protocol::Image
    }
}

/// Where the machine's first serial line goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Com1<'a> {
    /// The emulator's own stdin and stdout.
    Stdio,
    /// A file that grows.
    File(&'a Path),
    /// A terminal that the tool holds the other end of.
    Terminal(&'a Path),
}

/// A size as people write it: `256M`, `1G`, `4096K`, or bytes; given in bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        unit => return Err(format!("{unit} is not a unit of memory: K, M and G are")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size such as 256M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is more than 64 bits can say"))
}

/// A size as text, in MiB rounded up.
pub(crate) fn mebibytes(text: &str) -> Result<u64, String> {
    Ok(bytes(text)?.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(bytes("256M"), Ok(256 << 20));
        assert_eq!(bytes("1g"), Ok(1 << 30));
        assert_eq!(bytes("77"), Ok(77));
        assert_eq!(mebibytes("1025K"), Ok(2));
        assert!(bytes("M").is_err());
        assert!(bytes("5X").is_err());
        assert!(bytes("99999999999G").is_err());
    }

    #[test]
    fn every_machine_file_is_well_formed() {
        let names = names();
        assert!(names.contains(&"svm".to_owned()) && names.contains(&"vmx".to_owned()));
        for name in names {
            let machine = Machine::named(&name).unwrap();
            let settings = machine.settings(512, 3, true).join(" ");
            assert!(settings.contains("512") && settings.contains('3') && !settings.contains('{'), "{settings}");
        }
    }
}
