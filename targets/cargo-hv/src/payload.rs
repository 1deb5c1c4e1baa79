//! From the words of a command line or a scenario to files: kernels, test guests, broken files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::machine::{Protocol, bytes};
use crate::status::{Doing, Failure, Result};
use crate::{build, guests, perf};

/// What a guest boots, and how it would be booted without a hypervisor below it.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub(crate) file: PathBuf,
    pub(crate) bare: Protocol,
}

/// Finds or makes what `word` names: `linux-6.1`, `linux-6.12`, a test guest, `zeros:SIZE`, `truncated:WORD:SIZE`,
/// `text:WORDS`, or the path of a file. Files that are made go to `scratch`.
pub(crate) fn kernel(word: &str, scratch: &Path) -> Result<Payload> {
    if guests::KERNELS.contains(&word) {
        return Ok(Payload { file: guests::kernel(word)?, bare: Protocol::Linux });
    }
    if let Some(file) = made(word, scratch)? {
        return Ok(Payload { file, bare: Protocol::Multiboot });
    }
    if is_path(word) {
        let file = existing(word)?;
        let bare = if is_linux(&file) { Protocol::Linux } else { Protocol::Multiboot };
        return Ok(Payload { file, bare });
    }
    Ok(Payload { file: build::guest(word)?, bare: Protocol::Multiboot })
}

/// Finds or makes an initial file system: `busybox`, `perf`, `tiles`, `zeros:SIZE`, or the path of a file.
pub(crate) fn initrd(word: &str, scratch: &Path) -> Result<PathBuf> {
    match word {
        guests::BUSYBOX => return guests::initrd(),
        perf::PERF => return perf::initrd(),
        TILES => return tiles(scratch),
        _ => {}
    }
    match made(word, scratch)? {
        Some(file) => Ok(file),
        None => existing(word),
    }
}

/// The initial file system with the Linux program of this name as the first process, and nothing else.
const TILES: &str = "tiles";

fn tiles(scratch: &Path) -> Result<PathBuf> {
    let program = build::userland(TILES)?;
    let mut archive = Archive::default();
    archive.file("init", 0o755, &fs::read(&program).doing(program.display())?);
    let file = scratch.join("tiles.cpio");
    fs::write(&file, archive.finish()).doing(file.display())?;
    Ok(file)
}

/// Files of a kind that are made on the spot.
fn made(word: &str, scratch: &Path) -> Result<Option<PathBuf>> {
    let Some((kind, what)) = word.split_once(':') else { return Ok(None) };
    let size = |text: &str| bytes(text).map_err(Failure::request);
    let file = scratch.join(word.replace(['/', ':', ' ', ','], "-"));
    match kind {
        "zeros" => {
            let zeros = File::create(&file).doing(file.display())?;
            zeros.set_len(size(what)?).doing(file.display())?;
        }
        "text" => fs::write(&file, what).doing(file.display())?,
        "truncated" => {
            let (of, length) = what.rsplit_once(':').ok_or_else(|| Failure::request(format!("{word}: no size")))?;
            let mut content = fs::read(kernel(of, scratch)?.file).doing(of)?;
            content.truncate(usize::try_from(size(length)?).unwrap_or(usize::MAX));
            fs::write(&file, content).doing(file.display())?;
        }
        _ => return Ok(None),
    }
    Ok(Some(file))
}

fn is_path(word: &str) -> bool {
    word.contains('/') || Path::new(word).is_file()
}

fn existing(word: &str) -> Result<PathBuf> {
    fs::canonicalize(word).doing(format_args!("{word}"))
}

/// Whether a file has the header of a Linux kernel (boot protocol: "HdrS" at 202H).
fn is_linux(file: &Path) -> bool {
    fs::read(file).is_ok_and(|content| content.get(0x202..0x206) == Some(b"HdrS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_files_are_made_as_asked() {
        let scratch = tempfile::tempdir().unwrap();
        let zeros = made("zeros:4K", scratch.path()).unwrap().unwrap();
        assert_eq!(zeros.metadata().unwrap().len(), 4096);
        let short = made("truncated:zeros:4K:100", scratch.path()).unwrap().unwrap();
        assert_eq!(short.metadata().unwrap().len(), 100);
        assert_eq!(made("bench", scratch.path()).unwrap(), None);
    }
}
