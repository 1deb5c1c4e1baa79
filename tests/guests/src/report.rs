//! Collects results of tests and prints them the way the scenario runner reads them.

use crate::{boot, end, say};

/// What a test answers: nothing, or why it failed.
pub type Outcome = Result<(), Failure>;

/// Why a test failed: words, and the two numbers that should have been one.
#[derive(Clone, Copy)]
pub struct Failure {
    what: &'static str,
    found: u64,
    wanted: u64,
}

/// Fails with `what` unless `fact` holds.
pub fn check(fact: bool, what: &'static str) -> Outcome {
    if fact { Ok(()) } else { Err(Failure { what, found: 0, wanted: 0 }) }
}

/// Fails with `what` and both numbers unless they are equal.
pub fn same(what: &'static str, found: impl Into<u64>, wanted: impl Into<u64>) -> Outcome {
    let (found, wanted) = (found.into(), wanted.into());
    if found == wanted { Ok(()) } else { Err(Failure { what, found, wanted }) }
}

/// Runs tests one by one and counts.
pub struct Tests {
    only: Option<&'static str>,
    group: &'static str,
    passed: u32,
    failed: u32,
}

impl Default for Tests {
    fn default() -> Self {
        Self::new()
    }
}

impl Tests {
    /// Starts with no results. `only=TEXT` on the command line leaves out every test whose name lacks TEXT.
    pub fn new() -> Self {
        let only = boot::command_line().split_ascii_whitespace().find_map(|word| word.strip_prefix("only="));
        Self { only, group: "", passed: 0, failed: 0 }
    }

    /// Puts `name` before the names of the tests that follow.
    pub fn group(&mut self, name: &'static str) {
        self.group = name;
    }

    /// Runs one test and prints its line.
    pub unsafe fn run(&mut self, name: &str, test: unsafe fn() -> Outcome) {
        if self.only.is_some_and(|part| !name.contains(part)) {
            return;
        }
        let group = self.group;
        match test() {
            Ok(()) => {
                self.passed += 1;
                say!("libhv: pass {group}{name}");
            }
            Err(Failure { what, found: 0, wanted: 0 }) => {
                self.failed += 1;
                say!("libhv: fail {group}{name}: {what}");
            }
            Err(Failure { what, found, wanted }) => {
                self.failed += 1;
                say!("libhv: fail {group}{name}: {what}: {found:#x}, wanted {wanted:#x}");
            }
        }
    }

    /// Says that a test does not apply here, and why.
    pub fn skip(&mut self, name: &str, why: &str) {
        say!("libhv: skip {}{name}: {why}", self.group);
    }

    /// Returns how many tests failed.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Prints how many passed and failed.
    pub fn sum(&self) {
        say!("libhv: {} passed, {} failed", self.passed, self.failed);
    }

    /// Prints the sum and ends the machine with the number of failed tests (at most 61) through the debug-exit port.
    pub unsafe fn finish(&self) -> ! {
        self.sum();
        end::debug_exit(self.failed.min(61))
    }
}
