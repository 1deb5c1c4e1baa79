//! `cargo hv check`: what must hold of the repository besides its tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::install::{self, Need};
use crate::status::{BUILD, DONE, Doing, FAILED, Failure, Result};
use crate::{build, command, place, readme, scan};

/// The most lines a source file may have.
const LINES: usize = 500;
/// Folders with source files of ours.
const SOURCES: [&str; 4] = ["libhv", "targets", "examples", "tests"];
const LINKER_SCRIPT: &str = "linker/libhv.ld";

/// Whether what can be generated is compared or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Compare,
    Write,
}

struct Check {
    name: &'static str,
    run: fn(Mode) -> Result<()>,
}

const CHECKS: &[Check] = &[
    Check { name: "format", run: |_| cargo(&["fmt", "--all", "--check"], &[]) },
    Check { name: "clippy", run: |_| cargo(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"], &[]) },
    Check {
        name: "rustdoc",
        run: |_| cargo(&["doc", "--quiet", "--no-deps", "-p", "libhv"], &[("RUSTDOCFLAGS", "-D warnings")]),
    },
    Check { name: "file sizes", run: |_| file_sizes() },
    Check { name: "linker script", run: linker_script },
    Check { name: "unsafe modules", run: readme::unsafe_modules },
    Check { name: "support table", run: readme::support_table },
    Check { name: "image warnings", run: |_| image_warnings() },
    Check { name: "object code", run: |_| object_code() },
    Check { name: "package", run: |_| cargo(&["package", "--quiet", "-p", "libhv", "--allow-dirty"], &[]) },
];

/// Runs the checks that have `name` in their name; the last line on stdout is `N passed, N failed`.
pub(crate) fn run(name: Option<&str>, mode: Mode) -> Result<u8> {
    install::ensure(&[Need::Check, Need::Build])?;
    let (mut passed, mut failed) = (0, 0);
    for check in CHECKS.iter().filter(|check| name.is_none_or(|name| check.name.contains(name))) {
        let started = Instant::now();
        let result = (check.run)(mode);
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("pass {took:>8.1} s  {}", check.name);
            }
            Err(failure) => {
                failed += 1;
                println!("FAIL {took:>8.1} s  {}\n{failure}", check.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { DONE } else { FAILED })
}

/// The cargo that runs this tool, in the repository's root.
fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).envs(environment.iter().copied()).current_dir(place::root());
    command::output(cargo.env("CARGO_TERM_COLOR", "never"), FAILED).map(drop)
}

fn file_sizes() -> Result<()> {
    let mut long = Vec::new();
    for file in SOURCES.iter().flat_map(|folder| rust_files(&place::root().join(folder))) {
        let lines = std::fs::read_to_string(&file).doing(file.display())?.lines().count();
        if lines > LINES {
            long.push(format!("  {} has {lines} lines; {LINES} are the limit", file.display()));
        }
    }
    if long.is_empty() { Ok(()) } else { Err(Failure::request(long.join("\n"))) }
}

/// All Rust files below `folder`, sorted.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The target file carries the linker script, so that a target file is all an appliance needs.
fn linker_script(mode: Mode) -> Result<()> {
    let script = std::fs::read_to_string(place::root().join(LINKER_SCRIPT)).doing(LINKER_SCRIPT)?;
    let path = place::root().join(build::TARGET);
    let mut target: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).doing(build::TARGET)?).doing(build::TARGET)?;
    if target["link-script"].as_str() == Some(&script) {
        return Ok(());
    }
    if mode == Mode::Compare {
        return Err(Failure::request(format!(
            "  the link-script in {} is not {LINKER_SCRIPT}; `cargo hv check \"linker script\" --write` writes it",
            build::TARGET
        )));
    }
    target["link-script"] = script.into();
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(&target, &mut writer).doing(build::TARGET)?;
    text.push(b'\n');
    std::fs::write(path, text).doing(build::TARGET)
}

fn image_warnings() -> Result<()> {
    for package in build::packages_for_bare_metal() {
        let said = build::said(&package)?;
        if said.lines().any(|line| line.starts_with("warning")) {
            return Err(Failure::new(BUILD, format!("  {package}:\n{said}")));
        }
    }
    Ok(())
}

fn object_code() -> Result<()> {
    let mut found = Vec::new();
    for name in build::images() {
        let elf = build::image(&name)?;
        for finding in scan::vector_state(&std::fs::read(&elf).doing(elf.display())?)? {
            found.push(format!("  {name}: {finding}"));
        }
    }
    if found.is_empty() { Ok(()) } else { Err(Failure::request(found.join("\n"))) }
}
