//! `cargo hv`: the one tool of libhv.

mod apt;
mod bench;
mod bench_pmu;
mod bochs;
mod bochs_build;
mod bochs_edits;
mod build;
mod check;
mod cli;
mod command;
mod cpio;
mod debug;
mod doctor;
mod first_process;
mod guests;
mod image;
mod install;
mod libraries;
mod machine;
mod payload;
mod perf;
mod place;
mod qemu;
mod readme;
mod run;
mod say;
mod scan;
mod scenarios;
mod sources;
mod status;
mod supervise;
mod terminal;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Verb};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // The stream it belongs on may be closed; the status tells as much.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { status::REQUEST } else { status::DONE });
        }
    };
    let status = match &cli.verb {
        Verb::Run(request) => run::run(request),
        Verb::Doctor { install } => doctor::run(*install),
        Verb::Build { images } => build::run(images),
        Verb::Image(request) => image::run(request),
        Verb::Test { pattern, on, list, verbose } => {
            let selection = test::Selection { pattern: pattern.as_deref(), on: on.as_deref(), verbose: *verbose };
            if *list { test::list(selection) } else { test::run(selection) }
        }
        Verb::Check { name, write } => {
            check::run(name.as_deref(), if *write { check::Mode::Write } else { check::Mode::Compare })
        }
        Verb::Bench { name, on, json } => bench::run(name.as_deref(), on.as_deref(), *json),
        Verb::Debug { run, no_gdb } => debug::run(run, *no_gdb),
    };
    ExitCode::from(status.unwrap_or_else(|failure| {
        say::say(&failure);
        failure.status
    }))
}
