//! Bochs: from a job to a configuration file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::machine::{Com1, Job};

/// A Bochs that can be run, and the firmware it needs.
#[derive(Clone, Debug)]
pub(crate) struct Bochs {
    pub(crate) program: PathBuf,
    pub(crate) bios: PathBuf,
    pub(crate) vga_bios: PathBuf,
}

/// The configuration that boots `iso` for `job`, with the hypervisor's log (COM2) in the file `com2` and Bochs' own words in `log`.
pub(crate) fn configuration(bochs: &Bochs, job: &Job, iso: &Path, com1: Com1<'_>, com2: &Path, log: &Path) -> String {
    let com1 = match com1 {
        Com1::File(path) => format!("mode=file, dev={}", path.display()),
        Com1::Terminal(path) => format!("mode=term, dev={}", path.display()),
        Com1::Stdio => "mode=file, dev=/dev/stdout".to_owned(),
    };
    let mut text = String::new();
    for line in [
        format!("romimage: file={}", bochs.bios.display()),
        format!("vgaromimage: file={}", bochs.vga_bios.display()),
        "display_library: nogui".to_owned(),
        format!("ata0-master: type=cdrom, path={}, status=inserted", iso.display()),
        "boot: cdrom".to_owned(),
        format!("com1: enabled=1, {com1}"),
        format!("com2: enabled=1, mode=file, dev={}", com2.display()),
        format!("log: {}", log.display()),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
        "info: action=report".to_owned(),
        "debug: action=ignore".to_owned(),
    ] {
        let _ = writeln!(text, "{line}");
    }
    for line in job.settings() {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What Bochs' log says about its end: a sentence for a power-off through ACPI, otherwise the panic.
pub(crate) fn ended_by_power_off(log: &str) -> bool {
    log.contains("ACPI control: soft power off")
}

/// The last panic in Bochs' log.
pub(crate) fn panic(log: &str) -> Option<&str> {
    log.lines().rev().find(|line| line.contains(">>PANIC<<") || (line.contains("p[") && line.contains(']')))
}
