//! Bootable ISO images, made with GRUB.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::install::{self, Need};
use crate::machine::{Protocol, Start};
use crate::status::{BUILD, DONE, Doing, Result};
use crate::{build, cli, command, payload, run};

/// GRUB modules that the menu below needs; fewer make a smaller image that boots sooner.
const MODULES: &str = "multiboot multiboot2 linux iso9660 biosdisk part_msdos normal configfile";

/// Writes an ISO to `iso` whose GRUB boots `start` without asking.
pub(crate) fn make_iso(start: &Start, iso: &Path) -> Result<()> {
    let tree = tempfile::tempdir().doing("making a folder for the ISO")?;
    let boot = tree.path().join("boot");
    fs::create_dir_all(boot.join("grub")).doing("making a folder for the ISO")?;
    let copy = |from: &Path, name: &str| {
        fs::copy(from, boot.join(name)).map(drop).doing(format_args!("copying {}", from.display()))
    };
    copy(&start.kernel, "kernel")?;
    for (index, module) in start.modules.iter().enumerate() {
        copy(module, &format!("module{index}"))?;
    }
    fs::write(boot.join("grub/grub.cfg"), menu(start)).doing("writing grub.cfg")?;
    let mut grub = Command::new(command::find("grub-mkrescue").unwrap_or_else(|| "grub-mkrescue".into()));
    grub.arg(format!("--install-modules={MODULES}"));
    grub.args(["--locales=", "--themes=", "--fonts=", "--compress=no", "-o"]).arg(iso).arg(tree.path());
    command::output(&mut grub, BUILD).map(drop)
}

/// `cargo hv image`: makes an ISO of an image with its guest, and prints the paths of the ELF and of the ISO.
pub(crate) fn run(request: &cli::Image) -> Result<u8> {
    install::ensure(&[Need::Build, Need::Iso])?;
    let scratch = tempfile::tempdir().doing("making a folder for the image")?;
    let (kernel, initrd, append) = run::guest_of(&request.image, &request.guest);
    let kernel = kernel.map(|word| payload::kernel(&word, scratch.path())).transpose()?;
    let initrd = initrd.map(|word| payload::initrd(&word, scratch.path())).transpose()?;
    let elf = build::image(&request.image)?;
    let start = Start {
        protocol: Protocol::Image,
        kernel: elf.clone(),
        modules: kernel.map(|kernel| kernel.file).into_iter().chain(initrd).collect(),
        arguments: run::image_arguments(request.guest.memory, "", &append),
    };
    let iso = request.output.clone().unwrap_or_else(|| elf.with_extension("iso"));
    make_iso(&start, &iso)?;
    println!(
        "{}
{}",
        elf.display(),
        iso.display()
    );
    Ok(DONE)
}

/// GRUB's menu: one entry, started at once.
fn menu(start: &Start) -> String {
    let (load, module) = match start.protocol {
        Protocol::Image => ("multiboot2", "module2 --nounzip"),
        Protocol::Multiboot => ("multiboot", "module --nounzip"),
        Protocol::Linux => ("linux", "initrd"),
    };
    let mut text = String::from("terminal_output console\n");
    let words: Vec<String> = start.arguments.split_whitespace().map(quoted).collect();
    let _ = writeln!(text, "{load} /boot/kernel {}", words.join(" "));
    for index in 0..start.modules.len() {
        let _ = writeln!(text, "{module} /boot/module{index}");
    }
    text.push_str("boot\n");
    text
}

/// A word that GRUB's shell leaves as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_menu_quotes_what_the_shell_would_read() {
        let start = Start {
            protocol: Protocol::Image,
            kernel: "image".into(),
            modules: vec!["kernel".into(), "initrd".into()],
            arguments: "memory=256M -- root=$x; it's".into(),
        };
        let menu = menu(&start);
        assert!(menu.contains(r"multiboot2 /boot/kernel 'memory=256M' '--' 'root=$x;' 'it'\''s'"), "{menu}");
        let first = menu.find("module2 --nounzip /boot/module0").unwrap();
        assert!(first < menu.find("module2 --nounzip /boot/module1").unwrap());
    }
}
