//! The parts of the README that are made from the repository: which modules hold unsafe code, and what runs where.

use std::collections::BTreeSet;

use crate::check::{Mode, rust_files};
use crate::status::{Doing, Failure, Result};
use crate::{machine, place, scenarios};

/// The list of modules that hold unsafe code, each with its reason.
pub(crate) fn unsafe_modules(mode: Mode) -> Result<()> {
    let library = place::root().join("libhv/src");
    let mut table = String::from("| module | why it holds unsafe code |\n| --- | --- |\n");
    for file in rust_files(&library) {
        let text = std::fs::read_to_string(&file).doing(file.display())?;
        let name = file.strip_prefix(&library).unwrap_or(&file).display().to_string();
        if without_spaces(&text).contains("allow(unsafe_code") {
            return Err(Failure::request(format!("  {name} allows unsafe code instead of expecting it with a reason")));
        }
        if let Some(reason) = reason(&text) {
            table.push_str(&format!("| `{name}` | {reason} |\n"));
        }
    }
    section("unsafe-modules", &table, mode)
}

/// The reason in a file's first `expect(unsafe_code, reason = "...")`.
fn reason(text: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once("expect(")?;
        rest = after;
        let Some(after) = after.trim_start().strip_prefix("unsafe_code") else { continue };
        let attribute = after.split(']').next().unwrap_or(after);
        let reason = attribute.split_once('"').and_then(|(_, reason)| reason.split_once('"')).map(|(reason, _)| reason);
        let reason = reason.unwrap_or("no reason is given").replace("\\\n", "").replace('|', "\\|");
        return Some(reason.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

/// What runs where: a line for each promise that a scenario stands behind, a column for each machine.
pub(crate) fn support_table(mode: Mode) -> Result<()> {
    let scenarios = scenarios::all()?;
    let promised = scenarios.iter().filter_map(|scenario| Some((scenario.support.as_deref()?, &scenario.on)));
    section("support", &table(&promised.collect::<Vec<_>>(), &machine::names()), mode)
}

fn table(promised: &[(&str, &Vec<String>)], machines: &[String]) -> String {
    let shown: Vec<_> = machines
        .iter()
        .filter(|machine| promised.iter().any(|(_, on)| on.contains(machine)))
        .map(String::as_str)
        .collect();
    let mut text = format!("| what | {} |\n| --- |{}\n", shown.join(" | "), " --- |".repeat(shown.len()));
    let mut done = BTreeSet::new();
    for (promise, _) in promised {
        if !done.insert(promise) {
            continue;
        }
        let runs =
            |machine: &&str| promised.iter().any(|(other, on)| other == promise && on.iter().any(|on| on == machine));
        let cells: Vec<_> = shown.iter().map(|machine| if runs(machine) { "yes" } else { "-" }).collect();
        text.push_str(&format!("| {promise} | {} |\n", cells.join(" | ")));
    }
    text
}

/// Compares or writes what stands in the README between `<!-- NAME -->` and `<!-- /NAME -->`.
fn section(name: &str, content: &str, mode: Mode) -> Result<()> {
    let path = place::root().join("README.md");
    let text = std::fs::read_to_string(&path).doing("README.md")?;
    let (before, now, after) = parts(&text, name)
        .ok_or_else(|| Failure::request(format!("  README.md has no `<!-- {name} -->` and `<!-- /{name} -->`")))?;
    if now.trim() == content.trim() {
        return Ok(());
    }
    match mode {
        Mode::Write => std::fs::write(&path, format!("{before}\n{content}{after}")).doing("README.md"),
        Mode::Compare => Err(Failure::request(format!(
            "  README.md is behind the repository; `cargo hv check \"{}\" --write` writes:\n{content}",
            name.replace('-', " ")
        ))),
    }
}

/// A text before, within and after the section `name`.
fn parts<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let open = format!("<!-- {name} -->");
    let start = text.find(&open)? + open.len();
    let end = start + text[start..].find(&format!("<!-- /{name} -->"))?;
    Some((&text[..start], &text[start..end], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_however_they_are_broken_into_lines() {
        assert_eq!(reason("#![expect(unsafe_code, reason = \"ports\")]").as_deref(), Some("ports"));
        let broken = "#[expect(dead_code, reason = \"x\")]\n#![expect(\n    unsafe_code,\n    reason = \"page \\\n    tables\"\n)]";
        assert_eq!(reason(broken).as_deref(), Some("page tables"));
        assert_eq!(reason("#[expect(dead_code, reason = \"no unsafe_code\")]"), None);
    }

    #[test]
    fn a_line_is_supported_where_any_of_its_rows_runs() {
        let (both, one) = (vec!["svm".to_owned(), "vmx".to_owned()], vec!["svm".to_owned()]);
        let machines = ["kvm", "svm", "vmx"].map(str::to_owned);
        let table = table(&[("Linux", &one), ("Timer", &one), ("Linux", &both)], &machines);
        assert_eq!(table, "| what | svm | vmx |\n| --- | --- | --- |\n| Linux | yes | yes |\n| Timer | yes | - |\n");
    }

    #[test]
    fn a_section_is_what_stands_between_its_marks() {
        assert_eq!(parts("a<!-- x -->b<!-- /x -->c", "x"), Some(("a<!-- x -->", "b", "<!-- /x -->c")));
        assert_eq!(parts("<!-- x --> no end", "x"), None);
    }
}
