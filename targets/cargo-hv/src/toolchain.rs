//! Finds a Rust toolchain that can build `core` from source: one of rustup's with rust-src, or Debian's.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::status::{MISSING, Result};

/// A compiler with the sources of its library, and the cargo beside it.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
}

impl Toolchain {
    /// The first one that has everything: the one that runs this tool, then Debian's.
    pub(crate) fn find() -> Option<Self> {
        let own = sysroot(Path::new("rustc"), false).map(|sysroot| sysroot.join("bin"));
        own.into_iter().chain([PathBuf::from("/usr/bin")]).find_map(|folder| {
            let toolchain = Self { rustc: folder.join("rustc"), cargo: folder.join("cargo") };
            let source = sysroot(&toolchain.rustc, true)?.join("lib/rustlib/src/rust/library/core/Cargo.toml");
            (source.is_file() && toolchain.cargo.is_file()).then_some(toolchain)
        })
    }

    /// `cargo`, with unstable features allowed and nothing inherited from the cargo above.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(&self.cargo);
        command::without_cargo(&mut cargo).env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        cargo
    }

    /// Whether this cargo wants to be asked before it reads a target file.
    pub(crate) fn has_target_spec_option(&self) -> bool {
        command::output(self.cargo().args(["-Z", "help"]), MISSING).is_ok_and(|text| text.contains("json-target-spec"))
    }

    /// `rustc`'s own name and version.
    pub(crate) fn version(&self) -> Result<String> {
        let text = command::output(command::without_cargo(&mut Command::new(&self.rustc)).arg("-V"), MISSING)?;
        Ok(text.trim().to_owned())
    }
}

/// Where the compiler `rustc` has its files. `alone`: not as a proxy that asks the environment which toolchain is meant.
fn sysroot(rustc: &Path, alone: bool) -> Option<PathBuf> {
    let mut command = Command::new(rustc);
    if alone {
        command::without_cargo(&mut command);
    }
    let text = command::output(command.args(["--print", "sysroot"]), MISSING).ok()?;
    Some(PathBuf::from(text.trim()))
}
