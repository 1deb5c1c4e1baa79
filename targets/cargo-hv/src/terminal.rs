//! The user's terminal: every key to the guest while a guest runs, and a pseudo-terminal for emulators that want one.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Stdin, stdin};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::status::{Doing, Result};

/// Keys that end a run from the terminal: Ctrl-A, then x.
pub(crate) const ESCAPE: [u8; 2] = [0x01, b'x'];

/// Gives the terminal's keys to the guest, Ctrl-C included, until dropped.
pub(crate) struct RawTerminal {
    stdin: Stdin,
    before: Termios,
}

impl RawTerminal {
    /// `None` where stdin is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        raw.input_modes -= InputModes::IXON | InputModes::ICRNL;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { stdin, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing is left to do if the terminal has gone away.
        let _ = tcsetattr(&self.stdin, OptionalActions::Now, &self.before);
    }
}

/// A pseudo-terminal: the tool holds one end, an emulator opens the other by its path.
pub(crate) struct PseudoTerminal {
    pub(crate) ours: File,
    pub(crate) path: PathBuf,
    /// Keeps the emulator's end open, so that reading ours does not fail before the emulator is there.
    _theirs: File,
}

impl Read for PseudoTerminal {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.ours.read(into)
    }
}

impl PseudoTerminal {
    pub(crate) fn open() -> Result<Self> {
        let ours: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).doing("opening a pseudo-terminal")?;
        grantpt(&ours).doing("opening a pseudo-terminal")?;
        unlockpt(&ours).doing("opening a pseudo-terminal")?;
        let name = ptsname(&ours, Vec::new()).doing("opening a pseudo-terminal")?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        let theirs = File::options().read(true).write(true).open(&path).doing(path.display())?;
        let mut raw = tcgetattr(&theirs).doing(path.display())?;
        raw.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &raw).doing(path.display())?;
        Ok(Self { ours: ours.into(), path, _theirs: theirs })
    }
}
