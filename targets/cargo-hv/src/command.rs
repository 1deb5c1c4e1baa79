//! Running other programs: quietly, with their last words kept for when they fail.

use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::status::{Failure, Result};

/// Lines of a failed program's output that are shown.
const LAST_WORDS: usize = 30;

/// Runs `command` without a terminal and gives what it wrote on stdout. A failure carries `status`, the program's name and the
/// last lines of what it said.
pub(crate) fn output(command: &mut Command, status: u8) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::new(status, format!("{name} could not be started: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    Err(Failure::new(status, format!("{name} failed ({}):\n{}", output.status, last_lines(&said, LAST_WORDS))))
}

/// Runs `command` like [`output`], and shows every line of its stdout to `watch` as it comes.
pub(crate) fn watched(command: &mut Command, status: u8, watch: &mut dyn FnMut(&str)) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |reason: &dyn std::fmt::Display, said: &str| {
        Failure::new(status, format!("{name} failed ({reason}):\n{}", last_lines(said, LAST_WORDS)))
    };
    let errors = tempfile::tempfile().map_err(|error| failed(&error, ""))?;
    let mut file = errors.try_clone().map_err(|error| failed(&error, ""))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let mut child = command.spawn().map_err(|error| failed(&error, ""))?;
    for line in
        child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(|line| line.ok())
    {
        watch(&line);
    }
    let ended = child.wait().map_err(|error| failed(&error, ""))?;
    if ended.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    // Without its words the failure is still told.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut said));
    Err(failed(&ended, &String::from_utf8_lossy(&said)))
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The file that `name` starts, looked up in PATH and in the system's own folders.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// `cargo hv` runs under cargo, whose variables would lead another cargo or compiler astray: this removes them.
pub(crate) fn without_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let stays = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_PROXY", "RUSTUP_HOME"].contains(&name);
        if !stays && (name.starts_with("CARGO") || name.starts_with("RUST") || name == "LD_LIBRARY_PATH") {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_the_last_words() {
        let failure = output(Command::new("sh").args(["-c", "echo first; echo reason >&2; exit 3"]), 104).unwrap_err();
        assert_eq!(failure.status, 104);
        assert!(failure.sentence.contains("first\nreason"), "{}", failure.sentence);
    }

    #[test]
    fn a_watched_program_is_heard_line_by_line() {
        let mut heard = Vec::new();
        let mut program = Command::new("sh");
        let result = watched(program.args(["-c", "echo a; echo b; echo why >&2; exit 1"]), 104, &mut |line| {
            heard.push(line.to_owned());
        });
        assert_eq!(heard, ["a", "b"]);
        assert!(result.unwrap_err().sentence.contains("why"));
    }

    #[test]
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
