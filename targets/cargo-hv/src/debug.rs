//! `cargo hv debug`: an image that waits for gdb before its first instruction.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::install::{self, Need};
use crate::machine::{Com1, Emulator};
use crate::say::say;
use crate::status::{Doing, Failure, MISSING, Result};
use crate::{cli, command, place, qemu, run};

/// Where gdb finds a machine that waits in another terminal.
const ADDRESS: &str = "127.0.0.1:1234";

/// Starts gdb on the machine that the command line describes; with `no_gdb`, the machine alone, and says how to reach it.
pub(crate) fn run(request: &cli::Run, no_gdb: bool) -> Result<u8> {
    let folder = place::root().join("target/hv-debug");
    std::fs::create_dir_all(&folder).doing(folder.display())?;
    let job = run::job(request, &folder)?;
    if job.machine.emulator != Emulator::Qemu {
        return Err(Failure::request(format!(
            "the machine {} has no connection for gdb: Bochs with several processors is built without its gdb stub. \
             Its own log and the hypervisor's on COM2 are what it offers; debug on svm",
            job.machine.name
        )));
    }
    let symbols = job.start.kernel.clone();
    if no_gdb {
        say(format_args!("in another terminal: gdb {} -ex 'target remote {ADDRESS}'", symbols.display()));
        let mut request = request.clone();
        request.emulator.extend(["-S", "-gdb"].map(str::to_owned));
        request.emulator.push(format!("tcp:{ADDRESS}"));
        return run::run(&request);
    }
    install::ensure(&[Need::Debug])?;
    let (com1, com2) = (folder.join("com1"), folder.join("com2"));
    // In a session of its own, so that Ctrl-C reaches gdb alone.
    let mut words = vec!["setsid".to_owned(), qemu::PROGRAM.to_owned()];
    words.extend(qemu::arguments(&job, Com1::File(&com1), &com2));
    words.extend(["-S", "-gdb", "stdio"].map(str::to_owned));
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    say(format_args!("the guest's console is in {}, the hypervisor's log in {}", com1.display(), com2.display()));
    let gdb = command::find("gdb").ok_or_else(|| Failure::new(MISSING, "gdb is missing"))?;
    let error = Command::new(gdb)
        .arg(&symbols)
        .args(["-iex", "set debuginfod enabled off"])
        // gdb then holds the machine for one that it has started, and ends it when it ends itself.
        .args(["-iex", "set remote query-attached-packet off", "-ex"])
        .arg(format!("target remote | exec {}", words.join(" ")))
        .exec();
    Err(Failure::new(MISSING, format!("gdb could not be started: {error}")))
}

/// A word that the shell leaves as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
