//! The model that Bochs is built with, as a program of its own.

use crate::Command;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../targets/bochs");

/// The program around a model, compiled.
#[derive(Debug)]
pub struct Theirs {
    folder: PathBuf,
}

impl Theirs {
    /// Compiles the model into `folder`, which is its own from then on.
    ///
    /// # Errors
    /// A sentence when g++ is missing or refuses.
    pub fn new(folder: &Path) -> Result<Self, String> {
        let mut compiler = std::process::Command::new("g++");
        compiler.args(["-std=c++17", "-O2", "-o"]).arg(folder.join("model")).args(["pmu_harness.cc", "pmu_model.cc"]);
        let compiled = compiler.current_dir(SOURCES).output().map_err(|error| {
            format!("g++ is needed and does not start ({error}); `cargo hv test pmu` installs it where it may")
        })?;
        if !compiled.status.success() {
            return Err(format!("g++ refuses the model:\n{}", String::from_utf8_lossy(&compiled.stderr)));
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Carries out commands on a new model and returns their answers.
    ///
    /// # Errors
    /// A sentence when the program does not run to its end.
    pub fn answers(&self, program: &[Command]) -> Result<Vec<String>, String> {
        // Files, not pipes: the model sends each answer by itself, and would wake this process as often.
        let (input, output) = (self.folder.join("commands"), self.folder.join("answers"));
        let text: String = program.iter().map(|command| format!("{command}\n")).collect();
        let run = || {
            fs::write(&input, text)?;
            let mut model = std::process::Command::new(self.folder.join("model"));
            let status = model.stdin(File::open(&input)?).stdout(File::create(&output)?).status()?;
            Ok::<_, std::io::Error>((status, fs::read_to_string(&output)?))
        };
        let (status, answers) = run().map_err(|error| format!("the model does not run: {error}"))?;
        let answers: Vec<String> = answers.lines().map(str::to_owned).collect();
        if status.success() && answers.len() == program.len() {
            Ok(answers)
        } else {
            Err(format!("{status} after {} answers to {} commands", answers.len(), program.len()))
        }
    }
}
