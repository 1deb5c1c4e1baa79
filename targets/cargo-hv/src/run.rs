//! `cargo hv run`: an image or a bare guest on a machine, with this terminal as its console.

use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::install::{self, Need};
use crate::machine::{Job, Machine, Protocol, Start};
use crate::say::say;
use crate::status::{Doing, Failure, Result};
use crate::supervise::{Input, Outcome, Source, Typed, supervise};
use crate::terminal::{ESCAPE, RawTerminal};
use crate::{bochs_build, build, cli, guests, payload, perf};

/// Runs what the command line asks for and gives the exit status.
pub(crate) fn run(request: &cli::Run) -> Result<u8> {
    let scratch = tempfile::tempdir().doing("making a folder for the run")?;
    let job = job(request, scratch.path())?;
    let bochs = bochs_build::for_machine(&job.machine)?;
    if stdin().is_terminal() {
        say("the guest has the keyboard; Ctrl-A x ends the emulator");
    }
    let terminal = RawTerminal::enter();
    let after = (terminal.is_none() && waits_for_shell(request)).then(|| "libhv: userspace".to_owned());
    let input = Input { typed: keys(terminal.is_some()), after };
    let outcome = supervise(&job, bochs.as_ref(), Some(input), &mut |source, piece| match source {
        // A reader that has gone away is no reason to end the guest.
        Source::Guest => drop(stdout().write_all(piece).and_then(|()| stdout().flush())),
        Source::Hypervisor => drop(stderr().write_all(piece)),
    });
    drop(terminal);
    let Outcome { status, sentence, took } = outcome?;
    say(format_args!("{sentence} (exit status {status}, {:.1} s)", took.as_secs_f64()));
    Ok(status)
}

/// The job that a command line describes, with all its files made and found.
pub(crate) fn job(request: &cli::Run, scratch: &Path) -> Result<Job> {
    let machine = Machine::named(&request.on)?;
    if let Some(lacking) = machine.lacking() {
        return Err(Failure::request(format!("the machine {} needs {lacking}, which is not here", machine.name)));
    }
    install::ensure(&[Need::Build, Need::of(machine.emulator)])?;
    let (kernel, initrd, append) = guest_of(image_of(request), &request.guest);
    let kernel = kernel.map(|word| payload::kernel(&word, scratch)).transpose()?;
    let initrd = initrd.map(|word| payload::initrd(&word, scratch)).transpose()?;
    let (start, headroom) = if request.bare {
        let kernel = kernel.ok_or_else(|| Failure::request("--bare needs a --kernel"))?;
        let modules = initrd.into_iter().collect();
        (Start { protocol: kernel.bare, kernel: kernel.file, modules, arguments: append }, 0)
    } else {
        let image = match &request.elf {
            Some(elf) => elf.clone(),
            None => build::image(&request.image)?,
        };
        let modules = kernel.map(|kernel| kernel.file).into_iter().chain(initrd).collect();
        let arguments = image_arguments(request.guest.memory, &request.image_append, &append);
        (Start { protocol: Protocol::Image, kernel: image, modules, arguments }, machine.headroom)
    };
    Ok(Job {
        start,
        memory: request.guest.memory + headroom,
        cpus: request.cpus,
        deterministic: request.deterministic,
        extra: request.emulator.clone(),
        environment: request.environment.clone(),
        timeout: request.timeout.map(Duration::from_secs),
        machine,
    })
}

/// The image's command line: its own words, then `--`, then the guest's.
pub(crate) fn image_arguments(memory: u64, own: &str, guest: &str) -> String {
    let own = if own.is_empty() { String::new() } else { format!(" {own}") };
    format!("memory={memory}M{own} -- {guest}")
}

/// What an image boots when the command line does not say: kernel, initial file system and command line.
const GUESTS: [(&str, [&str; 3]); 2] = [
    ("linux", [guests::KERNELS[0], guests::BUSYBOX, "console=ttyS0"]),
    ("pmu-profiler", [guests::KERNELS[0], perf::PERF, "console=ttyS0 quiet hv.perf=profile"]),
];

/// Kernel, initial file system and command line: what was asked for, or what the image is run with.
pub(crate) fn guest_of(image: &str, guest: &cli::Guest) -> (Option<String>, Option<String>, String) {
    let usual = GUESTS.iter().find(|(name, _)| *name == image).filter(|_| guest.kernel.is_none());
    let or =
        |asked: &Option<String>, part: usize| asked.clone().or_else(|| usual.map(|(_, parts)| parts[part].to_owned()));
    (or(&guest.kernel, 0), or(&guest.initrd, 1), or(&guest.append, 2).unwrap_or_default())
}

/// The image's name; an ELF file from elsewhere has none.
fn image_of(request: &cli::Run) -> &str {
    if request.elf.is_some() { "" } else { &request.image }
}

/// Whether the guest's initial file system is one of the tool's own, whose shell reads the keyboard when it is there.
fn waits_for_shell(request: &cli::Run) -> bool {
    let initrd = guest_of(image_of(request), &request.guest).1;
    initrd.is_some_and(|initrd| [guests::BUSYBOX, perf::PERF].contains(&initrd.as_str()))
}

/// The keys typed, as they come. On a terminal the escape ends the tool, and with it the emulator.
fn keys(is_terminal: bool) -> Receiver<Typed> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut piece = [0; 256];
        let mut last = 0;
        while let Ok(length @ 1..) = stdin().read(&mut piece) {
            for key in &piece[..length] {
                if is_terminal && [last, *key] == ESCAPE {
                    let _ = sender.send(Typed::Escape);
                    return;
                }
                last = *key;
            }
            if sender.send(Typed::Keys(piece[..length].to_vec())).is_err() {
                return;
            }
        }
        // The sender stays until the process ends: the end of stdin is no key.
        loop {
            thread::park();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_before_what_is_usual() {
        let none = cli::Guest { memory: 256, kernel: None, initrd: None, append: None };
        let (kernel, initrd, append) = guest_of("pmu-profiler", &none);
        assert_eq!((kernel.as_deref(), initrd.as_deref()), (Some("linux-6.1"), Some("perf")));
        assert!(append.contains("hv.perf=profile"));
        let mine = cli::Guest { append: Some("x".to_owned()), ..none.clone() };
        assert_eq!(guest_of("linux", &mine).2, "x");
        let other = cli::Guest { kernel: Some("k".to_owned()), ..none.clone() };
        assert_eq!(
            guest_of("linux", &other),
            (Some("k".to_owned()), None, String::new()),
            "a kernel of one's own comes alone"
        );
        assert_eq!(guest_of("guest", &none), (None, None, String::new()));
    }
}
