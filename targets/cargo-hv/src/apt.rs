//! Debian packages: configurations of apt of our own, beside the system's, so that older and newer releases can be read
//! without changing the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::say::say;
use crate::sources::{self, Source};
use crate::status::{Doing, Failure, MISSING, Result};
use crate::{command, place};

/// How long downloaded package lists are good.
const FRESH: Duration = Duration::from_secs(20 * 3600);
/// Lets apt choose among what it can download: what the system has installed may be newer.
const NOTHING_INSTALLED: [&str; 2] = ["-o", "Dir::State::status=/dev/null"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A Debian release that packages are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian 12 with its security updates and backports.
    Bookworm,
    /// Debian 13, with sources.
    Trixie,
}

impl Release {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    fn list(self, mirror: &Source, security: Option<&Source>) -> String {
        let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let line = |kind: &str, uri: &str, suite: &str| format!("{kind} {signed}{uri} {suite} main\n");
        match self {
            Self::Bookworm => {
                let suites = ["bookworm", "bookworm-updates", "bookworm-backports"];
                let mut list: String = suites.iter().map(|suite| line("deb", &mirror.uri, suite)).collect();
                if let Some(security) = security {
                    list.push_str(&line("deb", &security.uri, "bookworm-security"));
                }
                list
            }
            Self::Trixie => line("deb", &mirror.uri, "trixie") + &line("deb-src", &mirror.uri, "trixie"),
        }
    }
}

/// apt with lists of its own in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Writes the configuration for `release`, and fetches its package lists unless they are fresh.
    pub(crate) fn of(release: Release) -> Result<Self> {
        let sources = sources::system();
        let missing =
            || Failure::new(MISSING, "apt's sources name no Debian mirror, so Debian packages cannot be fetched");
        let mirror = sources::mirror(&sources, "debian").ok_or_else(missing)?;
        let list = release.list(mirror, sources::mirror(&sources, "debian-security"));
        let cache = place::cache()?;
        let name = format!("apt-{}", release.name());
        let _lock = place::lock(&cache, &name)?;
        let apt = Self { folder: cache.join(name) };
        apt.configure(&list)?;
        apt.update(release)?;
        Ok(apt)
    }

    /// The configuration file, for `apt-get -c`.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.folder.join("apt.conf")
    }

    fn configure(&self, list: &str) -> Result<()> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).doing(folder.display())?;
        }
        let folder = self.folder.display();
        let configuration = format!(
            "Dir::Etc::sourcelist \"{folder}/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{folder}/lists\";\n\
             Dir::Cache \"{folder}/cache\";\n\
             APT::Default-Release \"\";\n\
             APT::Sandbox::User \"root\";\n"
        );
        let known = fs::read_to_string(self.folder.join("sources.list")).is_ok_and(|known| known == list);
        if !known {
            // Lists of other sources are no use, and only the first update would say so.
            let _ = fs::remove_file(self.folder.join("updated"));
        }
        fs::write(self.folder.join("sources.list"), list).doing("writing sources.list")?;
        fs::write(self.configuration(), configuration).doing("writing apt.conf")
    }

    fn update(&self, release: Release) -> Result<()> {
        let stamp = self.folder.join("updated");
        let age = stamp.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        say(format_args!("fetching the package lists of Debian {} into the cache", release.name()));
        match command::output(self.get().arg("update"), MISSING) {
            Ok(_) => fs::write(stamp, "").doing("writing into the cache"),
            Err(failure) if age.is_some() => {
                say(format_args!("older package lists are used: {failure}"));
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// `apt-get` with this configuration.
    pub(crate) fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-c").arg(self.configuration()).args(["-q", "-y"]);
        command
    }

    /// The text of `apt-cache show PACKAGE`: a paragraph for each version there is.
    pub(crate) fn show(&self, package: &str) -> Result<String> {
        let mut command = Command::new("apt-cache");
        command::output(command.arg("-c").arg(self.configuration()).args(["show", package]), MISSING)
    }

    /// Libraries that the newest version of `package` depends on, by the names of their packages.
    pub(crate) fn libraries(&self, package: &str) -> Result<Vec<String>> {
        let mut command = Command::new("apt-cache");
        command.arg("-c").arg(self.configuration()).args(NOTHING_INSTALLED);
        let shown = command::output(command.args(["show", "--no-all-versions", package]), MISSING)?;
        Ok(libraries(&shown))
    }

    /// Downloads `package` (a name, or `name=version`) and unpacks it into `folder`.
    pub(crate) fn unpack(&self, package: &str, folder: &Path) -> Result<()> {
        let download = tempfile::tempdir().doing("making a folder for a download")?;
        say(format_args!("fetching the Debian package {package}"));
        let mut get = self.get();
        get.args(NOTHING_INSTALLED).args(["download", package]).current_dir(download.path());
        command::output(&mut get, MISSING)?;
        let file = only_file(download.path(), "deb")?;
        command::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(folder), MISSING).map(drop)
    }
}

/// The one file in `folder` that ends in `extension`.
fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let files = fs::read_dir(folder).doing(folder.display())?.flatten().map(|file| file.path());
    files
        .into_iter()
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .ok_or_else(|| Failure::new(MISSING, format!("apt-get downloaded no file of the kind .{extension}")))
}

/// The names of libraries in the field `Depends` of a package's description, the first where there is a choice.
fn libraries(shown: &str) -> Vec<String> {
    let dependencies = shown.lines().filter_map(|line| line.strip_prefix("Depends:")).flat_map(|line| line.split(','));
    let names = dependencies.filter_map(|dependency| dependency.split_whitespace().next());
    names.filter(|name| name.starts_with("lib") || name.starts_with("zlib")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_other_dependencies() {
        let shown = "Package: linux-perf\nPre-Depends: libno\nDepends: libelf1 (>= 0.144), perl:any, zlib1g (>= 1:1.2) | other\n";
        assert_eq!(libraries(shown), ["libelf1", "zlib1g"]);
    }
}
