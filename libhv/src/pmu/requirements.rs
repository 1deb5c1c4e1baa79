//! That the table of requirements does not rot: each number is there, each test it names exists and cites the number.

use std::collections::BTreeMap;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, fs};

const TABLE: &str = include_str!("requirements.md");

/// Returns the doc comment of each test below a folder, by the test's name; tests of one name are one.
fn tests_in(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            tests_in(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            tests_of(&fs::read_to_string(&entry).expect("a source"), found);
        }
    }
}

fn tests_of(source: &str, found: &mut BTreeMap<String, String>) {
    let (mut doc, mut is_test) = (String::new(), false);
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
        } else if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            let name = rest.split('(').next().unwrap_or_default();
            found.entry(name.to_string()).or_default().push_str(&doc);
            (doc, is_test) = (String::new(), false);
        } else if !line.starts_with("#[") {
            (doc, is_test) = (String::new(), false);
        }
    }
}

/// Returns the numbers that a doc comment cites, "A22 to A25" being all between.
fn cited(doc: &str) -> Vec<String> {
    let mut numbers: Vec<String> = Vec::new();
    let mut ranges = false;
    for word in doc.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).filter(|word| !word.is_empty()) {
        let split = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
        let (kind, digits) = word.split_at(split);
        match (kind, digits.parse::<u32>()) {
            ("A" | "B" | "T-A", Ok(number)) => {
                let first = match numbers.last().and_then(|last| last.strip_prefix(kind)).map(str::parse::<u32>) {
                    Some(Ok(last)) if ranges => last + 1,
                    _ => number,
                };
                numbers.extend((first..=number).map(|number| format!("{kind}{number}")));
                ranges = false;
            }
            _ => ranges = word == "to",
        }
    }
    numbers
}

/// Returns the rows: a number, and the names in its last column.
fn rows() -> Vec<(&'static str, Vec<&'static str>)> {
    let rows = TABLE.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|row| {
        let columns: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [number, what, last] = columns[..] else { panic!("{row} has other columns") };
        assert!(!what.is_empty() && !last.is_empty(), "{number} says nothing");
        (number, last.split('`').skip(1).step_by(2).collect())
    })
    .collect()
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources")]
fn every_requirement_names_tests_that_exist_and_cite_it_or_a_reason() {
    let mut tests = BTreeMap::new();
    tests_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut tests);
    let mut wrong = Vec::new();
    for (number, names) in rows() {
        for name in names {
            match tests.get(name) {
                None => wrong.push(format!("{number}: there is no test {name}")),
                Some(doc) if !cited(doc).iter().any(|cited| cited == number) => {
                    wrong.push(format!("{number}: {name} does not cite it"));
                }
                Some(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_every_number_once_and_in_order() {
    let all = [("A", 30), ("B", 10), ("T-A", 26)];
    let expected: Vec<_> =
        all.into_iter().flat_map(|(kind, last)| (1..=last).map(move |n| format!("{kind}{n}"))).collect();
    let found: Vec<_> = rows().into_iter().map(|(number, _)| number.to_string()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_range_is_all_numbers_between() {
    assert_eq!(cited("A4, B1 to B3 and T-A10: up to A2, SHA256, 1.4, A7b"), ["A4", "B1", "B2", "B3", "T-A10", "A2"]);
}
