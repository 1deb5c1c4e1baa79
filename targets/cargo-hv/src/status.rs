//! The exit statuses of `cargo hv`, in one table, and the error that carries one.

use std::fmt;

/// The guest switched itself off, or everything asked for was done.
pub(crate) const DONE: u8 = 0;
/// A test or a check failed.
pub(crate) const FAILED: u8 = 1;
/// The emulator did not start, or ended without a word from the hypervisor.
pub(crate) const EMULATOR: u8 = 100;
/// Something this machine lacks could not be installed.
pub(crate) const MISSING: u8 = 102;
/// The compiler, the linker or the ISO maker failed.
pub(crate) const BUILD: u8 = 104;
/// The request made no sense, or a file was not as it must be.
pub(crate) const REQUEST: u8 = 106;
/// The user ended the emulator from the keyboard.
pub(crate) const ESCAPED: u8 = 108;
/// The time allowed was over before the guest had ended.
pub(crate) const TIMEOUT: u8 = 124;

/// What each exit status of `run` means; `--help` prints it.
pub(crate) const TABLE: &[(&str, &str)] = &[
    ("0", "the guest powered itself off"),
    ("odd", "the guest wrote VALUE to the debug-exit port F4H: (VALUE << 1) | 1"),
    ("2", "the guest asked for a reset"),
    ("4", "shutdown (triple fault) of the guest"),
    ("6", "the guest halted with nothing left that could wake it"),
    ("8", "a VM exit that nothing handles"),
    ("10", "an instruction that cannot be emulated"),
    ("12", "the appliance ended the guest"),
    ("14", "VM entry failed"),
    ("16", "the hypervisor panicked"),
    ("18", "the hypervisor hung: a watchdog barked"),
    ("20 to 98", "an error of the host, a number for each kind; the sentence on stderr names it"),
    ("100", "the emulator failed, or ended without a word from the hypervisor"),
    ("102", "a prerequisite is missing and may not be installed"),
    ("104", "the build failed"),
    ("106", "the request made no sense, or a file could not be read or written"),
    ("108", "the emulator was ended from the keyboard"),
    ("124", "the time allowed was over"),
];

/// The table as text, a line for each status.
pub(crate) fn table() -> String {
    let mut text = String::from("Exit status:\n");
    for (status, meaning) in TABLE {
        text.push_str(&format!("  {status:<10}{meaning}\n"));
    }
    text
}

/// Why a command could not do its work: a sentence, and the exit status it leads to.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) sentence: String,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(status: u8, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into() }
    }

    /// A request that makes no sense, or a file that is not as it must be.
    pub(crate) fn request(sentence: impl Into<String>) -> Self {
        Self::new(REQUEST, sentence)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Says what was being done when the system refused.
pub(crate) trait Doing<T> {
    /// Turns an error into a [`Failure`] with exit status 106 and the sentence `doing: error`.
    fn doing(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure::request(format!("{doing}: {error}")))
    }
}
