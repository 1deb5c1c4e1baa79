//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::machine::mebibytes;

/// The one tool of libhv: builds images, runs them in emulators, tests, measures and checks.
#[derive(Debug, Parser)]
#[command(name = "cargo hv", bin_name = "cargo hv", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Boots an image in an emulator: without a name the `linux` example, a real Linux with a shell on this terminal
    ///
    /// The guest's serial console is stdin and stdout; all else is on stderr. Leave the shell with `poweroff -f`, or end the
    /// emulator with Ctrl-A x.
    #[command(after_long_help = crate::status::table())]
    Run(Run),
    /// Compiles images for bare metal and prints the paths of the ELF files
    Build {
        /// Images to build; all when none is named
        images: Vec<String>,
    },
    /// Makes a bootable ISO and a bare ELF, and prints their paths
    Image(Image),
    /// Runs the host tests, then the scenarios of tests/scenarios.toml
    Test {
        /// Only what has this in its name; `host` is the host tests
        pattern: Option<String>,
        /// Only scenarios of this machine
        #[arg(long)]
        on: Option<String>,
        /// Prints the names and runs nothing
        #[arg(long)]
        list: bool,
        /// Shows both serial lines of every scenario as they come
        #[arg(long)]
        verbose: bool,
    },
    /// Measures in instructions, and prints the figures beside Linux KVM's and the targets
    ///
    /// What is measured of the PMU takes many minutes, and runs when it is named alone: `cargo hv bench pmu`.
    Bench {
        /// Only what has this in its name
        name: Option<String>,
        /// Only on this machine
        #[arg(long)]
        on: Option<String>,
        /// Prints one JSON object a line: name, machine, value, unit, target, peer
        #[arg(long)]
        json: bool,
    },
    /// Format, clippy, rustdoc, unsafe modules, file sizes, README tables, object code, package
    Check {
        /// Only checks with this in their name
        name: Option<String>,
        /// Writes what can be generated (README tables) instead of comparing
        #[arg(long)]
        write: bool,
    },
    /// Boots an image that waits for gdb before its first instruction
    Debug {
        #[command(flatten)]
        run: Run,
        /// Prints the gdb command and waits, instead of starting gdb
        #[arg(long)]
        no_gdb: bool,
    },
    /// Says what is there, what is missing, and what each is for
    Doctor {
        /// Installs and builds all that is missing
        #[arg(long)]
        install: bool,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// The image to run: an example, or a test image
    #[arg(default_value = "linux")]
    pub(crate) image: String,
    /// The machine, a file of targets/machines
    #[arg(long, default_value = "svm")]
    pub(crate) on: String,
    /// Processors of the machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) guest: Guest,
    /// More words of the image's own command line, before the `--`
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) image_append: String,
    /// Ends the run after this many seconds, with exit status 124
    #[arg(long, value_name = "S")]
    pub(crate) timeout: Option<u64>,
    /// Boots the guest straight on the machine, without the hypervisor
    #[arg(long)]
    pub(crate) bare: bool,
    /// Every run the same: time follows executed instructions where the machine can
    #[arg(long)]
    pub(crate) deterministic: bool,
    /// One more setting for the emulator: an argument of QEMU, a line of a Bochs configuration
    #[arg(long, value_name = "SETTING", allow_hyphen_values = true)]
    pub(crate) emulator: Vec<String>,
    /// One more variable of the emulator's environment; `targets/bochs/README.md` lists those of the machine vmx
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) environment: Vec<(String, String)>,
    /// An image that is built already, instead of one of this repository
    #[arg(long, value_name = "ELF")]
    pub(crate) elf: Option<PathBuf>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

/// What the guest is made of.
#[derive(Clone, Debug, Args)]
pub(crate) struct Guest {
    /// Memory of the guest
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = mebibytes)]
    pub(crate) memory: u64,
    /// What the guest boots: a kernel or image file; `linux-6.1` and `linux-6.12` are Debian's, and the name of a test guest
    /// is that guest
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<String>,
    /// Its initial file system; `busybox` and `perf` are the tool's own
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<String>,
    /// Its command line
    #[arg(long, value_name = "TEXT")]
    pub(crate) append: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Image {
    /// The image to make
    #[arg(default_value = "linux")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) guest: Guest,
    /// Where the ISO goes; beside the ELF when not said
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_without_words_is_linux_on_svm() {
        let cli = Cli::parse_from(["cargo hv", "run"]);
        let Verb::Run(run) = cli.verb else { panic!("not run") };
        assert_eq!((run.image.as_str(), run.on.as_str(), run.guest.memory), ("linux", "svm", 256));
    }
}
