//! QEMU: from a job to a command line.

use std::path::Path;

use crate::machine::{Com1, Job};

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// The arguments for `job`, with the hypervisor's log (COM2) in the file `com2`.
pub(crate) fn arguments(job: &Job, com1: Com1<'_>, com2: &Path) -> Vec<String> {
    let mut arguments = job.settings();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-nodefaults", "-monitor", "none"]);
    let com1 = match com1 {
        Com1::Stdio => "stdio,id=com1,signal=off".to_owned(),
        Com1::File(path) => format!("file,id=com1,path={}", escaped(path)),
        Com1::Terminal(path) => format!("serial,id=com1,path={}", escaped(path)),
    };
    add(&["-chardev", &com1, "-serial", "chardev:com1"]);
    add(&["-chardev", &format!("file,id=com2,path={}", escaped(com2)), "-serial", "chardev:com2"]);
    if job.is_bare() {
        add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    }
    add(&["-kernel", &job.start.kernel.to_string_lossy()]);
    if !job.start.modules.is_empty() {
        add(&["-initrd", &job.start.modules.iter().map(|module| escaped(module)).collect::<Vec<_>>().join(",")]);
    }
    add(&["-append", &job.start.arguments]);
    arguments
}

/// A path inside a list of QEMU's: commas are doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Machine, Protocol, Start};

    #[test]
    fn commas_in_paths_are_doubled_and_modules_keep_their_order() {
        let job = Job {
            machine: Machine::named("svm").unwrap(),
            start: Start {
                protocol: Protocol::Image,
                kernel: "image.elf".into(),
                modules: vec!["a,b".into(), "c".into()],
                arguments: "memory=256M -- console=ttyS0".into(),
            },
            memory: 512,
            cpus: 1,
            deterministic: false,
            extra: Vec::new(),
            environment: Vec::new(),
            timeout: None,
        };
        let arguments = arguments(&job, Com1::Stdio, Path::new("/tmp/com2"));
        let after = |name: &str| &arguments[arguments.iter().position(|word| word == name).unwrap() + 1];
        assert_eq!(after("-initrd"), "a,,b,c");
        assert_eq!(after("-append"), "memory=256M -- console=ttyS0");
        assert_eq!(after("-m"), "512M");
        assert!(!arguments.iter().any(|word| word.contains("isa-debug-exit")));
    }
}
