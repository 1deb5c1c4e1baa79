//! The rows of `tests/scenarios.toml`, and the judgement of what came of one.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cli;
use crate::machine::mebibytes;
use crate::place;
use crate::status::{Doing, Failure, Result};
use crate::supervise::Outcome;

/// The file, from the repository's root.
pub(crate) const FILE: &str = "tests/scenarios.toml";

/// One row; the head of the file explains each field.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// What a reader of the README learns from it; none for a test of details.
    pub(crate) support: Option<String>,
    pub(crate) on: Vec<String>,
    #[serde(default = "guest_image")]
    image: String,
    #[serde(default)]
    bare: bool,
    guest: Option<String>,
    initrd: Option<String>,
    #[serde(default)]
    append: String,
    #[serde(default)]
    image_append: String,
    #[serde(default = "memory")]
    memory: String,
    #[serde(default = "one")]
    processors: u32,
    #[serde(default)]
    emulator: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    timeout: u64,
    #[serde(default)]
    status: u8,
    #[serde(default)]
    expect: Vec<String>,
    #[serde(default)]
    expect_log: Vec<String>,
    #[serde(default)]
    forbid: Vec<String>,
    #[serde(default)]
    agree: Vec<(String, String)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    scenario: Vec<Scenario>,
}

fn guest_image() -> String {
    "guest".to_owned()
}

fn memory() -> String {
    "256M".to_owned()
}

fn one() -> u32 {
    1
}

/// All rows, in order.
pub(crate) fn all() -> Result<Vec<Scenario>> {
    let path = place::root().join(FILE);
    parse(&std::fs::read_to_string(&path).doing(path.display())?)
}

fn parse(text: &str) -> Result<Vec<Scenario>> {
    let file: File = toml::from_str(text).doing(FILE)?;
    let mut names: Vec<_> = file.scenario.iter().map(|scenario| &scenario.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Failure::request(format!("{FILE} has two scenarios named {}", pair[0]))),
        None => Ok(file.scenario),
    }
}

impl Scenario {
    /// The name of the row on one of its machines.
    pub(crate) fn title(&self, machine: &str) -> String {
        format!("{} on {machine}", self.name)
    }

    /// The command line that would run it.
    pub(crate) fn request(&self, machine: &str) -> Result<cli::Run> {
        let memory = mebibytes(&self.memory).map_err(Failure::request)?;
        Ok(cli::Run {
            image: self.image.clone(),
            on: machine.to_owned(),
            cpus: self.processors,
            guest: cli::Guest {
                memory,
                kernel: self.guest.clone(),
                initrd: self.initrd.clone(),
                append: Some(self.append.clone()),
            },
            image_append: self.image_append.clone(),
            timeout: Some(self.timeout),
            bare: self.bare,
            deterministic: true,
            emulator: self.emulator.clone(),
            environment: self.environment.clone().into_iter().collect(),
            elf: None,
        })
    }

    /// What is wrong with how it went; nothing for a pass.
    pub(crate) fn complaints(&self, outcome: &Outcome, com1: &[u8], com2: &[u8]) -> Vec<String> {
        let text = |bytes| String::from_utf8_lossy(bytes).replace('\r', "");
        let (com1, com2) = (text(com1), text(com2));
        let mut complaints = Vec::new();
        if outcome.status != self.status {
            let (status, sentence) = (outcome.status, &outcome.sentence);
            complaints.push(format!("ended with {status} instead of {}: {sentence}", self.status));
        }
        for (line, text, expected) in [("COM1", &com1, &self.expect), ("COM2", &com2, &self.expect_log)] {
            for expected in expected.iter().filter(|expected| !text.contains(expected.as_str())) {
                complaints.push(format!("{line} lacks {expected:?}"));
            }
        }
        for (line, text) in [("COM1", &com1), ("COM2", &com2)] {
            for forbidden in self.forbid.iter().filter(|forbidden| text.contains(forbidden.as_str())) {
                complaints.push(format!("{line} has {forbidden:?}"));
            }
        }
        for (ours, theirs) in &self.agree {
            match (number_after(&com1, ours), number_after(&com2, theirs)) {
                (Some(guest), Some(hypervisor)) if guest == hypervisor => {}
                (guest, hypervisor) => {
                    let said = |number: Option<u64>| number.map_or("no number".to_owned(), |number| number.to_string());
                    let (guest, hypervisor) = (said(guest), said(hypervisor));
                    complaints.push(format!(
                        "COM1 and COM2 disagree: {ours:?} is followed by {guest}, {theirs:?} by {hypervisor}"
                    ));
                }
            }
        }
        complaints
    }
}

/// The number that follows the last `words` in `text`, after spaces.
fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, after) = text.rsplit_once(words)?;
    let after = after.trim_start_matches(' ');
    let end = after.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(after.len());
    after[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ROW: &str = "[[scenario]]\nname = \"a\"\non = [\"svm\"]\ntimeout = 5\nexpect = [\"one\\ntwo\"]\n\
        expect-log = [\"left\"]\nforbid = [\"panic\"]\nstatus = 4\n";

    fn outcome(status: u8) -> Outcome {
        Outcome { status, sentence: String::new(), took: Duration::ZERO }
    }

    #[test]
    fn a_row_passes_when_status_and_both_lines_are_as_expected() {
        let row = &parse(ROW).unwrap()[0];
        assert!(row.complaints(&outcome(4), b"one\r\ntwo\r\n", b"left").is_empty());
    }

    #[test]
    fn each_thing_that_is_wrong_is_a_complaint() {
        let row = &parse(ROW).unwrap()[0];
        assert_eq!(row.complaints(&outcome(0), b"one\r\ntwo", b"left").len(), 1, "status");
        assert_eq!(row.complaints(&outcome(4), b"two", b"left").len(), 1, "COM1");
        assert_eq!(row.complaints(&outcome(4), b"one\ntwo", b"").len(), 1, "COM2");
        assert_eq!(row.complaints(&outcome(4), b"one\ntwo panic", b"left").len(), 1, "forbidden on COM1");
        assert_eq!(row.complaints(&outcome(4), b"one\ntwo", b"left panic").len(), 1, "forbidden on COM2");
    }

    #[test]
    fn guest_and_hypervisor_must_say_the_same_number() {
        let row = &parse(&format!("{ROW}agree = [[\"took\", \"gave:\"]]\n")).unwrap()[0];
        let complaints = |com1: &str, com2: &str| {
            row.complaints(&outcome(4), format!("one\ntwo {com1}").as_bytes(), format!("left {com2}").as_bytes())
        };
        assert!(complaints("took 1 took 12\n", "gave: 12, gave").is_empty(), "the last number counts");
        assert_eq!(complaints("took 12", "gave: 13").len(), 1);
        assert_eq!(complaints("took", "gave:").len(), 1, "no number is no agreement");
        assert_eq!(complaints("took 12", "").len(), 1);
    }

    #[test]
    fn two_rows_of_one_name_are_refused() {
        assert!(parse(&ROW.repeat(2)).is_err());
    }

    #[test]
    fn a_misspelled_field_is_refused() {
        assert!(parse(&ROW.replace("forbid", "forbids")).is_err());
    }

    #[test]
    fn the_rows_of_this_repository_are_well_formed() {
        let machines = crate::machine::names();
        for row in all().unwrap() {
            for machine in &row.on {
                assert!(machines.contains(machine), "{}: no machine {machine}", row.name);
                row.request(machine).unwrap();
            }
        }
    }
}
