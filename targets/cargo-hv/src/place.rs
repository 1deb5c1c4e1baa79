//! Where things are: the repository, the cache outside it, and how files get into the cache whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::say::say;
use crate::status::{Doing, Failure, Result};

/// The repository's root: the folder that holds `targets/cargo-hv`.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.filter(|folder| folder.ends_with("targets/cargo-hv"));
    let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.ancestors().nth(2).map(Path::to_path_buf).unwrap_or(package)
}

/// `$XDG_CACHE_HOME/libhv`, or `~/.cache/libhv`, made when it is not there.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(base) => base,
        None => std::env::home_dir()
            .ok_or_else(|| Failure::request("no home folder, and XDG_CACHE_HOME is not set"))?
            .join(".cache"),
    };
    let folder = base.join("libhv");
    fs::create_dir_all(&folder).doing(format_args!("making {}", folder.display()))?;
    Ok(folder)
}

/// Gives `cache()/name`, which `make` fills when it is not there yet: `make` gets a temporary folder beside it, which takes the
/// name only when it is complete. Other runs of the tool wait for the one that makes.
pub(crate) fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache()?;
    let folder = cache.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    let _lock = lock(&cache, name)?;
    if folder.exists() {
        return Ok(folder);
    }
    let unfinished = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .tempdir_in(&cache)
        .doing(format_args!("making a folder in {}", cache.display()))?;
    make(unfinished.path())?;
    fs::rename(unfinished.path(), &folder).doing(format_args!("naming {}", folder.display()))?;
    Ok(folder)
}

/// Holds every other run of the tool off the cache entry `name` until the file is dropped.
pub(crate) fn lock(cache: &Path, name: &str) -> Result<File> {
    let path = cache.join(format!(".{name}.lock"));
    let file = File::create(&path).doing(format_args!("making {}", path.display()))?;
    if file.try_lock().is_err() {
        say(format_args!("another cargo hv is making {name}; waiting for it"));
        file.lock().doing(format_args!("locking {}", path.display()))?;
    }
    Ok(file)
}

/// A short name for a set of options: a changed set has another one (FNV-1a, 64 bits).
pub(crate) fn key<'a>(options: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in options.into_iter().flat_map(|option| option.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_option_changes_the_key() {
        assert_eq!(key(["a", "b"]), key(["a", "b"]));
        assert_ne!(key(["a", "b"]), key(["ab"]));
        assert_ne!(key(["a", "b"]), key(["b", "a"]));
    }

    #[test]
    fn the_root_holds_the_tool() {
        assert!(root().join("targets/cargo-hv/Cargo.toml").is_file());
    }
}
