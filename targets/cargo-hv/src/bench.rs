//! `cargo hv bench`: what things cost in instructions, beside Linux KVM's figures and the targets.

use std::collections::BTreeMap;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::install::{self, Need};
use crate::say::say;
use crate::status::{BUILD, DONE, Doing, FAILED, Failure, Result};
use crate::supervise::{Source, supervise};
use crate::{bench_pmu, bochs_build, build, cli, command, guests, place, run};

/// The file, from the repository's root.
const FILE: &str = "tests/bench.toml";
/// Machines that are measured when none is named: those whose TSC counts instructions.
const MACHINES: [&str; 2] = ["svm", "vmx"];
/// What may be added to Linux's way to its first process, in percent.
const LINUX_PERCENT: u64 = 3;
/// Name in a machine's place that stands for all machines.
const ANY: &str = "any";

/// A row of the file; its head explains the fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    about: String,
    source: From,
    unit: String,
    #[serde(default)]
    target: BTreeMap<String, f64>,
    #[serde(default)]
    peer: BTreeMap<String, f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum From {
    Guest,
    Log,
    Linux,
    Size,
    Pmu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    bench: Vec<Row>,
}

/// One figure; a line of the JSON output.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Figure {
    name: String,
    machine: String,
    #[serde(serialize_with = "plain")]
    value: f64,
    unit: String,
    #[serde(serialize_with = "plain_or_none")]
    target: Option<f64>,
    #[serde(serialize_with = "plain_or_none")]
    peer: Option<f64>,
}

/// Writes whole numbers without a point, and others with two digits behind it.
fn plain<S: serde::Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 {
        to.serialize_i64(*value as i64)
    } else {
        to.serialize_f64((value * 100.0).round() / 100.0)
    }
}

fn plain_or_none<S: serde::Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => plain(value, to),
        None => to.serialize_none(),
    }
}

/// Measures what has `name` in its name, on the machine `on` or on all, and prints a table or a JSON object a line.
pub(crate) fn run(name: Option<&str>, on: Option<&str>, json: bool) -> Result<u8> {
    let path = place::root().join(FILE);
    let file: File = toml::from_str(&std::fs::read_to_string(&path).doing(FILE)?).doing(FILE)?;
    let rows: Vec<Row> = file.bench.into_iter().filter(|row| name.is_none_or(|name| row.name.contains(name))).collect();
    if rows.is_empty() {
        return Err(Failure::request(format!("{FILE} has nothing with {} in its name", name.unwrap_or_default())));
    }
    let mut figures = Vec::new();
    let mut whole = true;
    let mut measured = |result: Result<Vec<Figure>>| match result {
        Ok(more) => figures.extend(more),
        Err(failure) => {
            say(&failure);
            whole = false;
        }
    };
    for machine in on.map_or(MACHINES.to_vec(), |on| vec![on]) {
        if rows.iter().any(|row| matches!(row.source, From::Guest | From::Log)) {
            measured(exits(&rows, machine));
        }
        if let Some(row) = rows.iter().find(|row| row.source == From::Linux) {
            measured(linux(row, machine).map(|figure| vec![figure]));
        }
    }
    if name.is_some() && on.is_none_or(|on| on == bench_pmu::MACHINE) && rows.iter().any(|row| row.source == From::Pmu)
    {
        measured(pmu(&rows));
    }
    if let Some(row) = rows.iter().find(|row| row.source == From::Size) {
        measured(minimal_size(row).map(|figure| vec![figure]));
    }
    if json {
        for figure in &figures {
            println!("{}", serde_json::to_string(figure).doing("writing JSON")?);
        }
    } else {
        print!("{}", table(&rows, &figures));
    }
    Ok(if whole { DONE } else { FAILED })
}

impl Row {
    fn figure(&self, machine: &str, value: f64) -> Figure {
        let of = |figures: &BTreeMap<String, f64>| figures.get(machine).or_else(|| figures.get(ANY)).copied();
        Figure {
            name: self.name.clone(),
            machine: machine.to_owned(),
            value,
            unit: self.unit.clone(),
            target: of(&self.target),
            peer: of(&self.peer),
        }
    }
}

/// Runs a request to its end and gives what both serial lines said, with the request's own end where `status` is not it.
fn lines(request: &cli::Run, status: u8) -> Result<(String, String)> {
    let scratch = tempfile::tempdir().doing("making a folder for the run")?;
    let job = run::job(request, scratch.path())?;
    let bochs = bochs_build::for_machine(&job.machine)?;
    let (mut com1, mut com2) = (Vec::new(), Vec::new());
    let outcome = supervise(&job, bochs.as_ref(), None, &mut |source, piece| match source {
        Source::Guest => com1.extend_from_slice(piece),
        Source::Hypervisor => com2.extend_from_slice(piece),
    })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    if outcome.status != status {
        let tail = command::last_lines(&format!("{}\n{}", text(&com1), text(&com2)), 12);
        let sentence = format!("{} on {}: {}\n{tail}", request.image, request.on, outcome.sentence);
        return Err(Failure::new(outcome.status, sentence));
    }
    Ok((text(&com1), text(&com2)))
}

fn request(machine: &str, kernel: &str, timeout: u64) -> cli::Run {
    cli::Run {
        image: "guest".to_owned(),
        on: machine.to_owned(),
        cpus: 1,
        guest: cli::Guest { memory: 256, kernel: Some(kernel.to_owned()), initrd: None, append: None },
        image_append: String::new(),
        timeout: Some(timeout),
        bare: false,
        deterministic: true,
        emulator: Vec::new(),
        environment: Vec::new(),
        elf: None,
    }
}

/// Round trips as the test guest `bench` sees them, and what the hypervisor tells of its start in the same run.
fn exits(rows: &[Row], machine: &str) -> Result<Vec<Figure>> {
    say(format_args!("measuring exits on {machine}"));
    let (com1, com2) = lines(&request(machine, "bench", 300), 1)?;
    let found = |row: &Row| {
        let (text, mark) = match row.source {
            From::Guest => (&com1, "BENCH "),
            From::Log => (&com2, "libhv: bench "),
            From::Linux | From::Size | From::Pmu => return None,
        };
        value(text, mark, &row.name).map(|value| row.figure(machine, value as f64))
    };
    Ok(rows.iter().filter_map(found).collect())
}

/// The number after the words `mark` and `name` at the start of a line.
fn value(text: &str, mark: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(mark)?.strip_prefix(name)?.strip_prefix(' '));
    lines.next_back()?.split_whitespace().next()?.parse().ok()
}

/// The time stamp counter when Linux's first process starts, with the hypervisor and without.
fn linux(row: &Row, machine: &str) -> Result<Figure> {
    let mut request = request(machine, guests::KERNELS[0], 300);
    request.guest.initrd = Some(guests::BUSYBOX.to_owned());
    request.guest.append = Some("console=ttyS0 quiet rdinit=/first".to_owned());
    say(format_args!("measuring Linux's start on {machine}, with the hypervisor"));
    let (com1, com2) = lines(&request, DONE)?;
    // A counter that the hypervisor moves for the guest is told by it, to be moved back here.
    let offset = value(&com2, "libhv: bench ", "tsc-offset").unwrap_or(0);
    let with = first_process(&com1)?.wrapping_sub(offset);
    say(format_args!("measuring Linux's start on {machine}, without"));
    request.bare = true;
    let without = first_process(&lines(&request, DONE)?.0)?;
    let target = without + without * LINUX_PERCENT / 100;
    Ok(Figure { target: Some(target as f64), peer: Some(without as f64), ..row.figure(machine, with as f64) })
}

/// What the first process of the tool's initial file system says.
fn first_process(com1: &str) -> Result<u64> {
    let digits =
        com1.lines().find_map(|line| line.split_once("libhv: first process ")).map(|(_, digits)| digits.trim());
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| Failure::request("Linux's first process did not tell the time"))
}

/// What a guest's use of the PMU costs.
fn pmu(rows: &[Row]) -> Result<Vec<Figure>> {
    let named = |row: &&Row| row.source == From::Pmu;
    let wanted: Vec<&str> = rows.iter().filter(named).filter_map(|row| row.name.strip_prefix("pmu-")).collect();
    let values = bench_pmu::measure(&wanted, &|request| lines(request, DONE))?;
    let found = |row: &Row| Some(row.figure(bench_pmu::MACHINE, *values.get(row.name.strip_prefix("pmu-")?)?));
    Ok(rows.iter().filter(named).filter_map(found).collect())
}

/// Bytes of the stripped image `minimal`.
fn minimal_size(row: &Row) -> Result<Figure> {
    install::ensure(&[Need::Build])?;
    let elf = build::image("minimal")?;
    let scratch = tempfile::tempdir().doing("making a folder")?;
    let stripped = scratch.path().join("minimal");
    command::output(Command::new("strip").arg("-o").arg(&stripped).arg(elf), BUILD)?;
    Ok(row.figure(ANY, stripped.metadata().doing("reading the stripped image")?.len() as f64))
}

/// The figures for people.
fn table(rows: &[Row], figures: &[Figure]) -> String {
    let number = |number: Option<f64>| number.map_or("-".to_owned(), grouped);
    let mut text =
        format!("{:<66} {:<5} {:>14} {:>14} {:>14}  unit\n", "operation", "on", "ours", "to reach", "Linux KVM");
    for row in rows {
        for figure in figures.iter().filter(|figure| figure.name == row.name) {
            let verdict = match figure.target {
                Some(target) if figure.value > target => "  above the target",
                _ => "",
            };
            text.push_str(&format!(
                "{:<66} {:<5} {:>14} {:>14} {:>14}  {}{verdict}\n",
                row.about,
                figure.machine,
                grouped(figure.value),
                number(figure.target),
                number(figure.peer),
                figure.unit,
            ));
        }
    }
    text
}

/// A number with its thousands apart, and with two digits behind the point where it is not whole.
fn grouped(number: f64) -> String {
    if number.fract() != 0.0 {
        return format!("{number:.2}");
    }
    let digits = format!("{:.0}", number.abs());
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{}{}", if number < 0.0 { "-" } else { "" }, groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_that_of_the_whole_name() {
        let text = "BENCH out-61 6 instructions\nBENCH out-device 7 instructions\nBENCH out 9 x\nnoise BENCH out 1\n";
        assert_eq!(value(text, "BENCH ", "out"), Some(9));
        assert_eq!(value(text, "BENCH ", "out-device"), Some(7));
        assert_eq!(value(text, "BENCH ", "in"), None);
    }

    #[test]
    fn the_first_process_speaks_hexadecimal() {
        assert_eq!(first_process("x\nlibhv: first process 00000000000000ff\n").unwrap(), 255);
        assert!(first_process("x").is_err());
    }

    #[test]
    fn a_figure_above_its_target_is_marked() {
        let row = Row {
            name: "a".into(),
            about: "b".into(),
            source: From::Guest,
            unit: "bytes".into(),
            target: BTreeMap::from([(ANY.to_owned(), 5.0)]),
            peer: BTreeMap::new(),
        };
        let rows = [row.clone()];
        assert!(table(&rows, &[row.figure("svm", 6.0)]).contains("above"));
        assert!(!table(&rows, &[row.figure("svm", 5.0)]).contains("above"));
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(0.456), "0.46");
    }

    #[test]
    fn the_file_of_this_repository_is_well_formed() {
        let text = std::fs::read_to_string(place::root().join(FILE)).unwrap();
        assert!(!toml::from_str::<File>(&text).unwrap().bench.is_empty());
    }
}
