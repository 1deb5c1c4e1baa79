//! Compiles images and test guests for bare metal.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde::Deserialize;

use crate::install::{self, Need};
use crate::say::say;
use crate::status::{BUILD, DONE, Doing, Failure, Result};
use crate::toolchain::Toolchain;
use crate::{command, place};

/// The target file, from the repository's root.
pub(crate) const TARGET: &str = "targets/x86_64-libhv.json";
/// The package of the test guests.
const GUESTS: &str = "guests";
/// The package of the Linux programs that guests run.
const USERLAND: &str = "userland";
/// Folders whose packages are images.
const IMAGE_FOLDERS: [&str; 2] = ["examples", "tests/images"];

/// The names of all images of this repository, sorted within their folder.
pub(crate) fn images() -> Vec<String> {
    IMAGE_FOLDERS.iter().flat_map(|folder| packages(&place::root().join(folder))).collect()
}

/// The names of the packages in the folders of `folder`.
fn packages(folder: &Path) -> Vec<String> {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let manifests = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("Cargo.toml")).ok());
    let mut names: Vec<String> =
        manifests.filter_map(|text| Some(toml::from_str::<Manifest>(&text).ok()?.package.name)).collect();
    names.sort();
    names
}

/// Compiles the image `name` and gives its ELF file.
pub(crate) fn image(name: &str) -> Result<PathBuf> {
    if !images().iter().any(|image| image == name) {
        return Err(Failure::request(format!("no image is called {name}; there are: {}", images().join(", "))));
    }
    build(name)?;
    Ok(output(name))
}

/// Compiles all test guests and gives the ELF file of the guest `name`.
pub(crate) fn guest(name: &str) -> Result<PathBuf> {
    build(GUESTS)?;
    let file = output(name);
    if file.is_file() { Ok(file) } else { Err(Failure::request(format!("no test guest is called {name}"))) }
}

/// Compiles the Linux programs of [`USERLAND`] and gives the ELF file of `program`.
pub(crate) fn userland(program: &str) -> Result<PathBuf> {
    let folder = place::root().join("target/userland");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::root()).args(["build", "--quiet", "--release", "--package", USERLAND]);
    command::output(cargo.arg("--target-dir").arg(&folder), BUILD)?;
    Ok(folder.join("release").join(program))
}

/// `cargo hv build`: compiles the images named, or all, and prints the paths of their ELF files.
pub(crate) fn run(names: &[String]) -> Result<u8> {
    install::ensure(&[Need::Build])?;
    let all = images();
    for name in if names.is_empty() { &all } else { names } {
        println!("{}", image(name)?.display());
    }
    Ok(DONE)
}

fn output(binary: &str) -> PathBuf {
    place::root().join("target/image/x86_64-libhv/release").join(binary)
}

/// Compiles `package` for bare metal, once in the life of the tool. Cargo itself finds out that nothing has changed.
fn build(package: &str) -> Result<()> {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !built.iter().any(|name| name == package) {
        command::output(compiler(package)?.arg("--quiet"), BUILD)?;
        built.push(package.to_owned());
    }
    Ok(())
}

/// Everything that is built for bare metal: the images, and the test guests where there are any.
pub(crate) fn packages_for_bare_metal() -> Vec<String> {
    let guests = place::root().join("tests").join(GUESTS).join("Cargo.toml").is_file();
    images().into_iter().chain(guests.then(|| GUESTS.to_owned())).collect()
}

/// What the compiler says about `package`; cargo repeats it when nothing has changed.
pub(crate) fn said(package: &str) -> Result<String> {
    let output = compiler(package)?.stdin(Stdio::null()).output().doing("starting cargo")?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The cargo that compiles `package` for bare metal.
fn compiler(package: &str) -> Result<Command> {
    let root = place::root();
    let toolchain =
        Toolchain::find().ok_or_else(|| Failure::new(BUILD, "no Rust toolchain with the source of core"))?;
    let mut cargo = toolchain.cargo();
    cargo.current_dir(&root).args(["build", "--release", "--package", package]);
    cargo.arg("--target").arg(root.join(TARGET)).arg("--target-dir").arg(root.join("target/image"));
    cargo.args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
    if toolchain.has_target_spec_option() {
        cargo.arg("-Zjson-target-spec");
    }
    say(format_args!("building {package} for bare metal with {}", toolchain.version()?));
    Ok(cargo)
}
