//! `cargo hv test`: the tests on the host, then every scenario on each of its machines.

use std::collections::VecDeque;
use std::io::{Write, stderr};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::install::{self, Need};
use crate::machine::Machine;
use crate::scenarios::{self, Scenario};
use crate::status::{DONE, Doing, FAILED, Result};
use crate::supervise::{Source, supervise};
use crate::{bochs_build, command, place, run};

/// Lines of each serial line that a failure shows.
const TAIL: usize = 25;

/// Tests on the host that need more than Rust, and so are no part of `cargo test`: packages, and what they need.
const PACKAGES: [(&str, Need); 1] = [("pmu-model", Need::BochsBuild)];

/// What the command line selects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a> {
    pub(crate) pattern: Option<&'a str>,
    pub(crate) on: Option<&'a str>,
    pub(crate) verbose: bool,
}

impl Selection<'_> {
    fn has(&self, title: &str) -> bool {
        self.pattern.is_none_or(|pattern| title.contains(pattern))
    }

    fn has_host_tests(&self) -> bool {
        self.on.is_none() && self.pattern.is_none_or(|pattern| pattern == "host")
    }

    fn packages(&self) -> impl Iterator<Item = (&'static str, Need)> {
        PACKAGES.into_iter().filter(|(package, _)| self.on.is_none() && self.has(&on_host(package)))
    }

    fn rows(&self) -> Result<VecDeque<(Scenario, String)>> {
        let mut rows = VecDeque::new();
        for scenario in scenarios::all()? {
            for machine in scenario.on.iter().filter(|machine| self.on.is_none_or(|on| on == machine.as_str())) {
                if self.has(&scenario.title(machine)) {
                    rows.push_back((scenario.clone(), machine.clone()));
                }
            }
        }
        Ok(rows)
    }
}

/// Prints what would be run.
pub(crate) fn list(selection: Selection<'_>) -> Result<u8> {
    if selection.has_host_tests() {
        println!("host");
    }
    for (package, _) in selection.packages() {
        println!("{}", on_host(package));
    }
    for (scenario, machine) in selection.rows()? {
        println!("{}", scenario.title(&machine));
    }
    Ok(DONE)
}

/// Runs what is selected; the last line on stdout is `N passed, N failed`.
pub(crate) fn run(selection: Selection<'_>) -> Result<u8> {
    let rows = if selection.pattern == Some("host") { VecDeque::new() } else { selection.rows()? };
    let mut total = Count::default();
    if selection.has_host_tests() {
        total.add(host_tests("host", &[]));
    }
    for (package, need) in selection.packages() {
        total.add(package_tests(package, need));
    }
    let queue = Mutex::new(rows);
    let total = Mutex::new(total);
    let workers = thread::available_parallelism().map_or(1, |count| count.get()).min(4);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((scenario, machine)) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                    let count = one(&scenario, &machine, selection.verbose);
                    if let Ok(mut total) = total.lock() {
                        total.add(count);
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 { DONE } else { FAILED })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs one scenario on one machine, and prints how it went in one piece.
fn one(scenario: &Scenario, machine: &str, verbose: bool) -> Count {
    let title = scenario.title(machine);
    let started = Instant::now();
    let (mut com1, mut com2) = (Vec::new(), Vec::new());
    let complaints = match attempt(scenario, machine, &mut |source, piece| {
        if verbose {
            // Nothing is lost but the show.
            let _ = stderr().write_all(piece);
        }
        match source {
            Source::Guest => com1.extend_from_slice(piece),
            Source::Hypervisor => com2.extend_from_slice(piece),
        }
    }) {
        Ok(None) => {
            println!("skip             {title}");
            return Count::default();
        }
        Ok(Some(outcome)) => scenario.complaints(&outcome, &com1, &com2),
        Err(failure) => vec![failure.sentence],
    };
    let took = started.elapsed();
    if complaints.is_empty() {
        println!("{}", line("pass", took, &title));
        return Count { passed: 1, failed: 0 };
    }
    let mut report = line("FAIL", took, &title);
    for complaint in complaints {
        report.push_str(&format!("\n     {complaint}"));
    }
    for (name, bytes) in [("COM1", &com1), ("COM2", &com2)] {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        report.push_str(&format!("\n  -- the end of {name} --\n{}", command::last_lines(&text, TAIL)));
    }
    println!("{report}\n  --");
    Count { passed: 0, failed: 1 }
}

fn line(verdict: &str, took: Duration, title: &str) -> String {
    format!("{verdict} {:>8.1} s  {title}", took.as_secs_f64())
}

/// `None` where this computer cannot have the machine.
fn attempt(
    scenario: &Scenario,
    machine: &str,
    sink: &mut dyn FnMut(Source, &[u8]),
) -> Result<Option<crate::supervise::Outcome>> {
    if Machine::named(machine)?.lacking().is_some() {
        return Ok(None);
    }
    let scratch = tempfile::tempdir().doing("making a folder for the run")?;
    let job = run::job(&scenario.request(machine)?, scratch.path())?;
    let bochs = bochs_build::for_machine(&job.machine)?;
    supervise(&job, bochs.as_ref(), None, sink).map(Some)
}

fn on_host(package: &str) -> String {
    format!("{package} on host")
}

/// The tests of a package of its own, once all they need is there.
fn package_tests(package: &str, need: Need) -> Count {
    let title = on_host(package);
    match install::ensure(&[need]) {
        Ok(()) => host_tests(&title, &["--package", package]),
        Err(failure) => {
            println!("{}\n     {}", line("FAIL", Duration::ZERO, &title), failure.sentence);
            Count { passed: 0, failed: 1 }
        }
    }
}

/// `cargo test`: without more arguments on everything that runs on a host and needs nothing but Rust.
fn host_tests(title: &str, arguments: &[&str]) -> Count {
    let started = Instant::now();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo.args(["test", "--no-fail-fast"]).args(arguments).current_dir(place::root()).env("CARGO_TERM_COLOR", "never");
    let (text, complete) = match command::output(&mut cargo, FAILED) {
        Ok(text) => (text, true),
        Err(failure) => (failure.sentence, false),
    };
    let mut count = counted(&text);
    if !complete {
        println!("{text}");
        count.failed = count.failed.max(1);
    }
    println!("{}", line(if count.failed == 0 { "pass" } else { "FAIL" }, started.elapsed(), title));
    println!("     {} host tests passed, {} failed", count.passed, count.failed);
    count
}

/// The sum of the lines `test result: ok. N passed; N failed; ...`.
fn counted(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = |word: &str| {
            let at = words.iter().position(|found| found.trim_end_matches(';') == word)?;
            words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
        };
        count.add(Count { passed: before("passed").unwrap_or(0), failed: before("failed").unwrap_or(0) });
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_tests_are_summed_over_all_crates() {
        let text = "test result: ok. 22 passed; 0 failed; 1 ignored; 0 measured\nother\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored";
        assert_eq!(counted(text), Count { passed: 25, failed: 2 });
    }

    #[test]
    fn a_pattern_selects_by_part_of_the_name() {
        let selection = Selection { pattern: Some("linux"), on: None, verbose: false };
        assert!(selection.has("boots linux-6.1 on svm") && !selection.has("timer on svm"));
        assert!(!selection.has_host_tests() && selection.packages().count() == 0);
    }

    #[test]
    fn a_package_is_selected_by_its_name_or_with_the_host_and_on_no_machine() {
        let selects =
            |pattern, on| Selection { pattern, on, verbose: false }.packages().any(|(name, _)| name == "pmu-model");
        assert!([None, Some("pmu"), Some("host")].into_iter().all(|pattern| selects(pattern, None)));
        assert!(!selects(None, Some("vmx")) && !selects(Some("timer"), None));
    }
}
