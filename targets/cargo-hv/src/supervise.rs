//! Running one job: starts the emulator, carries both serial lines, and finds out how the guest ended.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::{Com1, Emulator, Job};
use crate::status::{self, Doing, Failure, Result};
use crate::terminal::PseudoTerminal;
use crate::{bochs, command, image, qemu};

/// How often files that grow are looked at.
const GLANCE: Duration = Duration::from_millis(10);
/// How long the guest's line must have been quiet, after the hypervisor has said how the guest ended.
const QUIET: Duration = Duration::from_millis(60);
/// Between two bytes to an emulator whose serial line has no flow control.
const PACE: Duration = Duration::from_millis(2);

/// What arrives while a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// COM1: the guest's serial console.
    Guest,
    /// COM2: the hypervisor's log.
    Hypervisor,
}

/// What the user does.
pub(crate) enum Typed {
    Keys(Vec<u8>),
    /// Ends the emulator.
    Escape,
}

/// Bytes for the guest's serial console, and when they may go.
pub(crate) struct Input {
    pub(crate) typed: Receiver<Typed>,
    /// Nothing is sent before the guest has written this.
    pub(crate) after: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// A status of [`status::TABLE`].
    pub(crate) status: u8,
    pub(crate) sentence: String,
    pub(crate) took: Duration,
}

/// Runs `job` to its end. Every piece of the two serial lines goes to `sink` as it comes; `bochs` must be there if the job's
/// machine is one.
pub(crate) fn supervise(
    job: &Job,
    bochs: Option<&bochs::Bochs>,
    input: Option<Input>,
    sink: &mut dyn FnMut(Source, &[u8]),
) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("cargo-hv-").tempdir().doing("making a folder for the run")?;
    let com2 = folder.path().join("com2");
    File::create(&com2).doing("making a file for COM2")?;
    let log = folder.path().join("emulator.log");
    let (to_us, from_guest) = channel();
    let (mut emulator, guest) = match job.machine.emulator {
        Emulator::Qemu => start_qemu(&linked(job, folder.path())?, &com2, &log, input.is_some(), to_us)?,
        Emulator::Bochs => {
            let bochs = bochs.ok_or_else(|| Failure::new(status::MISSING, "Bochs is not there"))?;
            start_bochs(job, bochs, folder.path(), &com2, &log, input.is_some(), to_us)?
        }
    };
    let started = Instant::now();
    let run = Run {
        job,
        input,
        guest,
        from_guest,
        com2: Tail::new(&com2),
        sink,
        started,
        seen: String::new(),
        escaped: false,
    };
    let end = run.until_end(&mut emulator.0);
    drop(emulator);
    let (status, sentence) = match end? {
        End::Told(status, sentence) => (status, sentence),
        End::Escaped => (status::ESCAPED, "ended from the keyboard".to_owned()),
        End::Timeout => (status::TIMEOUT, format!("the time allowed, {:?}, was over", job.timeout.unwrap_or_default())),
        End::Exited(code) => without_word(job, code, &std::fs::read_to_string(&log).unwrap_or_default()),
    };
    Ok(Outcome { status, sentence, took: started.elapsed() })
}

/// How an emulator that ended by itself is to be understood.
fn without_word(job: &Job, code: Option<i32>, log: &str) -> (u8, String) {
    // QEMU warns of every feature of the processor model that TCG lacks.
    let words: Vec<_> = log.lines().filter(|line| !line.contains(": warning: ")).collect();
    let words = command::last_lines(&words.join("\n"), 8);
    match (job.machine.emulator, code) {
        (Emulator::Qemu, Some(0)) if job.is_bare() => (status::DONE, "the machine was switched off".to_owned()),
        (Emulator::Qemu, Some(code @ 1..=255)) if job.is_bare() && code & 1 == 1 && words.is_empty() => {
            (code as u8, format!("the guest wrote {} to the debug-exit port", code >> 1))
        }
        (Emulator::Bochs, _) if job.is_bare() && bochs::ended_by_power_off(log) => {
            (status::DONE, "the machine was switched off".to_owned())
        }
        (Emulator::Bochs, _) => {
            let reason = bochs::panic(log).unwrap_or("no reason in its log");
            (status::EMULATOR, format!("Bochs ended without a word from the hypervisor: {reason}"))
        }
        (Emulator::Qemu, code) => {
            let code = code.map_or("a signal".to_owned(), |code| format!("status {code}"));
            (status::EMULATOR, format!("QEMU ended with {code} and without a word from the hypervisor\n{words}"))
        }
    }
}

/// An emulator that is ended when it goes out of scope.
struct Leashed(Child);

impl Drop for Leashed {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill, and waiting only collects it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest's serial console as the tool holds it.
struct Guest {
    /// Where bytes for the guest go.
    keys: Option<Sender<Vec<u8>>>,
    /// A file that the emulator writes; pieces from other kinds of line come through the channel.
    tail: Option<Tail>,
}

fn start_qemu(job: &Job, com2: &Path, log: &Path, typing: bool, to_us: Sender<Vec<u8>>) -> Result<(Leashed, Guest)> {
    let mut command = tied_to_us(Path::new(qemu::PROGRAM));
    command.args(qemu::arguments(job, Com1::Stdio, com2)).envs(job.environment());
    command.stdin(if typing { Stdio::piped() } else { Stdio::null() });
    let mut child = Leashed(spawn(command.stdout(Stdio::piped()).stderr(File::create(log).doing(log.display())?))?);
    if let Some(stdout) = child.0.stdout.take() {
        thread::spawn(move || carry(stdout, &to_us));
    }
    let keys = child.0.stdin.take().map(|stdin| typist(stdin, Duration::ZERO));
    Ok((child, Guest { keys, tail: None }))
}

fn start_bochs(
    job: &Job,
    bochs: &bochs::Bochs,
    folder: &Path,
    com2: &Path,
    log: &Path,
    typing: bool,
    to_us: Sender<Vec<u8>>,
) -> Result<(Leashed, Guest)> {
    let iso = folder.join("boot.iso");
    image::make_iso(&job.start, &iso)?;
    let com1 = folder.join("com1");
    let terminal = if typing { Some(PseudoTerminal::open()?) } else { None };
    let line = terminal.as_ref().map_or(Com1::File(&com1), |terminal| Com1::Terminal(&terminal.path));
    let configuration = folder.join("bochsrc");
    std::fs::write(&configuration, bochs::configuration(bochs, job, &iso, line, com2, log)).doing("writing bochsrc")?;
    File::create(&com1).doing("making a file for COM1")?;
    let mut command = tied_to_us(&bochs.program);
    command.arg("-q").arg("-f").arg(&configuration).envs(job.environment());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Leashed(spawn(&mut command)?);
    let Some(terminal) = terminal else {
        return Ok((child, Guest { keys: None, tail: Some(Tail::new(&com1)) }));
    };
    let keys = terminal.ours.try_clone().doing("opening a pseudo-terminal")?;
    // The thread keeps the emulator's end of the pseudo-terminal open, and ends with the tool.
    thread::spawn(move || carry(terminal, &to_us));
    Ok((child, Guest { keys: Some(typist(keys, PACE)), tail: None }))
}

/// The job with links in `folder` in place of its files: QEMU takes what follows a space in a module's path for the module's
/// command line, and hands the kernel's path on to the kernel.
fn linked(job: &Job, folder: &Path) -> Result<Job> {
    let mut job = job.clone();
    let names = std::iter::once("kernel".to_owned()).chain((0..).map(|index| format!("module{index}")));
    for (file, name) in std::iter::once(&mut job.start.kernel).chain(&mut job.start.modules).zip(names) {
        let link = folder.join(name);
        let target = std::path::absolute(&file).doing(file.display())?;
        std::os::unix::fs::symlink(target, &link).doing(link.display())?;
        *file = link;
    }
    Ok(job)
}

/// A command that dies with the tool, however the tool dies.
fn tied_to_us(program: &Path) -> Command {
    match command::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .map_err(|error| Failure::new(status::EMULATOR, format!("the emulator could not be started: {error}")))
}

/// Sends all that `from` gives, piece by piece.
fn carry(mut from: impl Read, to: &Sender<Vec<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if to.send(piece[..length].to_vec()).is_err() {
            break;
        }
    }
}

/// Writes what it is sent to the guest, a byte each `pace` where that is not zero.
fn typist(mut to: impl Write + Send + 'static, pace: Duration) -> Sender<Vec<u8>> {
    let (sender, keys) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for piece in keys {
            for part in piece.chunks(if pace.is_zero() { 4096 } else { 1 }) {
                if to.write_all(part).and_then(|()| to.flush()).is_err() {
                    return;
                }
                thread::sleep(pace);
            }
        }
    });
    sender
}

/// A file that another process writes.
struct Tail {
    file: Option<File>,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self { file: File::open(path).ok() }
    }

    /// What came since the last time.
    fn more(&mut self) -> Vec<u8> {
        let mut more = Vec::new();
        if let Some(file) = &mut self.file {
            // A piece that cannot be read now is there the next time.
            let _ = file.read_to_end(&mut more);
        }
        more
    }
}

enum End {
    /// The hypervisor's own word.
    Told(u8, String),
    /// The emulator's exit code; none for a signal.
    Exited(Option<i32>),
    Timeout,
    Escaped,
}

struct Run<'a> {
    job: &'a Job,
    input: Option<Input>,
    guest: Guest,
    from_guest: Receiver<Vec<u8>>,
    com2: Tail,
    sink: &'a mut dyn FnMut(Source, &[u8]),
    started: Instant,
    /// What the guest wrote, while input waits for a word in it.
    seen: String,
    escaped: bool,
}

impl Run<'_> {
    fn until_end(mut self, emulator: &mut Child) -> Result<End> {
        let mut log = Vec::new();
        loop {
            let exited = emulator.try_wait().doing("waiting for the emulator")?;
            self.glance(GLANCE);
            if self.escaped {
                return Ok(End::Escaped);
            }
            let more = self.com2.more();
            if !more.is_empty() {
                (self.sink)(Source::Hypervisor, &more);
                log.extend_from_slice(&more);
                if let Some((status, sentence)) = end_line(&log) {
                    while self.glance(QUIET) {}
                    return Ok(End::Told(status, sentence));
                }
            } else if let Some(exited) = exited {
                while self.glance(QUIET) {}
                return Ok(End::Exited(exited.code()));
            }
            if self.job.timeout.is_some_and(|timeout| self.started.elapsed() > timeout) {
                return Ok(End::Timeout);
            }
        }
    }

    /// Carries what there is in both directions, waiting up to `patience` for the guest; tells whether it wrote anything.
    fn glance(&mut self, patience: Duration) -> bool {
        let piece = match &mut self.guest.tail {
            Some(tail) => {
                thread::sleep(patience);
                tail.more()
            }
            None => match self.from_guest.recv_timeout(patience) {
                Ok(piece) => piece,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(patience);
                    Vec::new()
                }
            },
        };
        if !piece.is_empty() {
            (self.sink)(Source::Guest, &piece);
        }
        self.type_keys(&piece);
        !piece.is_empty()
    }

    /// Hands on what was typed, once the guest has written what the input waits for.
    fn type_keys(&mut self, piece: &[u8]) {
        let (Some(input), Some(keys)) = (&mut self.input, &self.guest.keys) else { return };
        if let Some(after) = &input.after {
            self.seen.push_str(&String::from_utf8_lossy(piece));
            if !self.seen.contains(after.as_str()) {
                return;
            }
            self.seen = String::new();
            input.after = None;
        }
        for typed in input.typed.try_iter() {
            match typed {
                // A guest that has ended reads no more.
                Typed::Keys(typed) => drop(keys.send(typed)),
                Typed::Escape => self.escaped = true,
            }
        }
    }
}

/// The hypervisor's last line: `libhv: end STATUS SENTENCE`.
fn end_line(log: &[u8]) -> Option<(u8, String)> {
    let log = String::from_utf8_lossy(log);
    let whole = &log[..log.rfind('\n')?];
    let line = whole.lines().find_map(|line| line.trim_end().strip_prefix("libhv: end "))?;
    let (status, sentence) = line.split_once(' ').unwrap_or((line, ""));
    Some((status.parse().ok()?, sentence.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_line_counts_only_when_it_is_whole() {
        assert_eq!(end_line(b"libhv: end 4 shutd"), None);
        assert_eq!(
            end_line(b"libhv: start\r\nlibhv: end 4 shutdown at 0x10\r\n"),
            Some((4, "shutdown at 0x10".to_owned()))
        );
        assert_eq!(end_line(b"a guest wrote libhv: end 0\n"), None);
        assert_eq!(end_line(b"libhv: end 0\n"), Some((0, String::new())));
    }
}
