//! What a guest's use of the PMU costs, beside the same run on the same machine without a hypervisor.

use std::collections::BTreeMap;

use crate::say::say;
use crate::status::{Failure, Result};
use crate::{cli, guests, perf};

/// The machine that counts.
pub(crate) const MACHINE: &str = "vmx";
/// The image, and what its command line calls the policies that are measured.
const IMAGE: &str = "pmu-profiler";
const POLICIES: [&str; 5] = ["passthrough", "filtered", "direct", "filtered-direct", "emulated"];
/// Numbers of events that are sampled at once: as many as there are counters for, and more.
const EVENTS: [u8; 2] = [6, 10];
/// Ticks of the machine's clock in a second, so that 1000 samples a second come as rarely as on silicon.
const TICKS: u64 = 2_000_000_000;
/// Cycles that an entry and an exit take beyond the one of the simulator: a model of silicon.
const TRANSITION: &str = "600";
/// Turns of the mixed workload, 48 instructions each: about a quarter of a second.
const TURNS: u64 = 10_000_000;
/// Turns of the counted loop, and forced exits on the way.
const COUNTED: [u64; 2] = [1_000_000, 1000];
const TIMEOUT: u64 = 1500;

/// The image in which owners of the PMU take turns, and the two ways in which it says that they do.
const OWNERS: &str = "pmu-owners";
const TURNS_OF_OWNERS: [&str; 2] = ["alike", "unlike"];

/// What a row of the file measures, by the rest of its name: `6-passthrough` for the overhead with 6 events.
pub(crate) type Values = BTreeMap<String, f64>;

/// One run that gives both serial lines.
type Run<'a> = &'a dyn Fn(&cli::Run) -> Result<(String, String)>;

/// Runs what `wanted` rows need: those of perf take minutes, those of owners seconds.
pub(crate) fn measure(wanted: &[&str], run: Run<'_>) -> Result<Values> {
    let of_owners = |name: &&str| name.starts_with("owner-");
    let mut values = if wanted.iter().all(&of_owners) { Values::new() } else { perf(run)? };
    if wanted.iter().any(of_owners) {
        values.append(&mut owners(run)?);
    }
    Ok(values)
}

/// What a change of the PMU's owner costs with all counters live.
fn owners(run: Run<'_>) -> Result<Values> {
    say("measuring changes of the PMU's owner");
    let guest = cli::Guest { memory: 256, kernel: None, initrd: None, append: None };
    let request = cli::Run { image: OWNERS.to_owned(), guest, timeout: Some(TIMEOUT), ..request(None, "") };
    let (_, com2) = run(&cli::Run { bare: false, environment: Vec::new(), ..request })?;
    if !com2.contains("libhv: pass pmu-owners") {
        return Err(missing("that its owners kept their counts"));
    }
    let mut values = Values::new();
    for how in TURNS_OF_OWNERS {
        for what in ["writes", "reads", "instructions"] {
            let value = number(&com2, &format!("libhv: pmu owner {how}: "), what)?;
            values.insert(format!("owner-{what}-{how}"), value);
        }
    }
    Ok(values)
}

/// What a Linux guest's use of the PMU costs.
fn perf(run: Run<'_>) -> Result<Values> {
    let mut values = Values::new();
    say("measuring perf record without a hypervisor");
    let bare = Sampled::of(&run(&request(None, &bench()))?.0)?;
    for events in EVENTS {
        values.insert(format!("{events}-bare"), bare.overhead(events));
    }
    for policy in POLICIES {
        say(format_args!("measuring perf record with the policy {policy}"));
        let (com1, com2) = run(&request(Some(policy), &bench()))?;
        let sampled = Sampled::of(&com1)?;
        for events in EVENTS {
            values.insert(format!("{events}-{policy}"), sampled.overhead(events) - bare.overhead(events));
        }
        if policy == POLICIES[0] {
            values.insert("accesses-per-exit".to_owned(), accesses_per_exit(&com2)?);
        }
    }
    say("measuring perf stat of a loop with forced exits");
    let [turns, exits] = COUNTED;
    let words = format!("hv.perf=stat hv.turns={turns} hv.exits={exits}");
    let (com1, com2) = run(&request(Some(POLICIES[0]), &words))?;
    values.insert("loop-error".to_owned(), loop_error(&com1)?);
    values.insert("stat-exits".to_owned(), number(&com2, "libhv: pmu exits ", "rdpmc")?);
    // A hundredth is as exact as one run can be.
    Ok(values.into_iter().map(|(name, value)| (name, (value * 100.0).round() / 100.0)).collect())
}

fn bench() -> String {
    format!("hv.perf=bench hv.turns={TURNS}")
}

/// A run of Linux with these words on its command line, under `policy` or without a hypervisor.
fn request(policy: Option<&str>, words: &str) -> cli::Run {
    let costs = ["LIBHV_VMENTRY_COST", "LIBHV_VMEXIT_COST"];
    cli::Run {
        image: IMAGE.to_owned(),
        on: MACHINE.to_owned(),
        cpus: 1,
        guest: cli::Guest {
            memory: 512,
            kernel: Some(guests::KERNELS[0].to_owned()),
            initrd: Some(perf::PERF.to_owned()),
            append: Some(format!("console=ttyS0 quiet panic=-1 nmi_watchdog=0 {words}")),
        },
        image_append: policy.map_or(String::new(), |policy| format!("pmu={policy}")),
        timeout: Some(TIMEOUT),
        bare: policy.is_none(),
        deterministic: true,
        emulator: vec![format!("cpu: ips={TICKS}")],
        environment: costs.map(|name| (name.to_owned(), TRANSITION.to_owned())).to_vec(),
        elf: None,
    }
}

/// Ticks that the workload took without perf and with each number of events.
struct Sampled {
    none: f64,
    with: BTreeMap<u8, f64>,
}

impl Sampled {
    fn of(com1: &str) -> Result<Self> {
        let ticks = |name: &str| number(com1, "libhv: perf ", &format!("ticks-{name}"));
        let with = EVENTS.map(|events| Ok((events, ticks(&format!("{events}-events"))?)));
        Ok(Self { none: ticks("none")?, with: with.into_iter().collect::<Result<_>>()? })
    }

    /// What sampling so many events adds, in percent.
    fn overhead(&self, events: u8) -> f64 {
        self.with.get(&events).map_or(f64::NAN, |with| (with - self.none) * 100.0 / self.none)
    }
}

/// Registers of the PMU that the hypervisor put into the processor, divided by all exits: those of the first entry are among
/// them.
fn accesses_per_exit(com2: &str) -> Result<f64> {
    let (_, table) = com2.split_once("exits of the guest:").ok_or_else(|| missing("the table of exits"))?;
    let exits_of =
        |line: &str| -> Option<f64> { line.split_once(" exits")?.0.split_whitespace().next_back()?.parse().ok() };
    let exits: f64 = table.lines().filter_map(exits_of).sum();
    Ok(number(com2, "libhv: pmu interrupts", "writes")? / exits)
}

/// By how many instructions the count of the loop with forced exits is wrong.
fn loop_error(com1: &str) -> Result<f64> {
    let (_, after) = com1.split_once("perf stat of workload exits").ok_or_else(|| missing("the loop with exits"))?;
    let line = after.lines().find_map(|line| line.split_once("libhv: perf instructions:u ")).map(|(_, line)| line);
    let line = line.ok_or_else(|| missing("the count of instructions"))?;
    if line.ends_with("is exact") {
        return Ok(0.0);
    }
    let more = line.split_whitespace().rev().nth(1).and_then(|number| number.parse::<f64>().ok());
    more.map(f64::abs).ok_or_else(|| Failure::request(format!("the loop was not counted: {line}")))
}

/// The number after the word `name` on the last line that begins with `line`.
fn number(text: &str, line: &str, name: &str) -> Result<f64> {
    let mut words = text.lines().filter_map(|found| found.strip_prefix(line)).filter_map(|rest| {
        let mut words = rest.split([' ', ',']).filter(|word| !word.is_empty()).skip_while(|word| *word != name);
        words.nth(1)?.parse().ok()
    });
    words.next_back().ok_or_else(|| missing(name))
}

fn missing(what: &str) -> Failure {
    Failure::request(format!("the run does not tell {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_what_sampling_adds_to_the_workload() {
        let text = "libhv: perf ticks-none 1000\nlibhv: perf ticks-6-events 1050\nlibhv: perf ticks-10-events 1500\n";
        let sampled = Sampled::of(text).unwrap();
        assert_eq!((sampled.overhead(6), sampled.overhead(10)), (5.0, 50.0));
        assert!(Sampled::of("libhv: perf ticks-none 1000\n").is_err());
    }

    #[test]
    fn an_inexact_loop_has_an_error() {
        let text = |verdict: &str| {
            format!(
                "libhv: perf instructions:u 7 is not 5: 2 more\nlibhv: perf stat of workload exits 1 1\n\
                 libhv: perf instructions:u 9 {verdict}\n"
            )
        };
        assert_eq!(loop_error(&text("is exact")).unwrap(), 0.0);
        assert_eq!(loop_error(&text("is not 12: -3 more")).unwrap(), 3.0);
        assert!(loop_error(&text("<not supported>")).is_err());
    }

    #[test]
    fn exits_of_all_kinds_are_added_up() {
        let log = "libhv: exits of the guest:\nCPUID      30 exits   5 ticks each\nport   20 exits  1 ticks each\n\n\
            libhv: pmu interrupts 3, credited 4, loads 1, writes 5\n";
        assert_eq!(accesses_per_exit(log).unwrap(), 0.1);
    }
}
