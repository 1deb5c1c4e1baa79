//! The shared libraries that a program needs, found in Debian packages that are unpacked but not installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, FileHeader};

use crate::apt::Apt;
use crate::status::{Doing, Failure, MISSING, Result};

/// Where Debian's packages keep libraries.
const FOLDERS: [&str; 4] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib"];

/// The libraries of `program`, by name, and where each is: itself and what they need in turn, from `package` and the packages
/// it depends on, which are unpacked into `folder` as far as they are needed.
pub(crate) fn of(program: &Path, package: &str, apt: &Apt, folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut known = BTreeSet::from([package.to_owned()]);
    let mut level = vec![package.to_owned()];
    loop {
        let (found, missing) = closure(program, folder)?;
        if missing.is_empty() {
            return Ok(found);
        }
        let mut next = Vec::new();
        for package in &level {
            next.extend(apt.libraries(package)?.into_iter().filter(|name| known.insert(name.clone())));
        }
        if next.is_empty() {
            let missing: Vec<_> = missing.into_iter().collect();
            return Err(Failure::new(
                MISSING,
                format!("no package that {package} depends on has {}", missing.join(", ")),
            ));
        }
        for package in &next {
            apt.unpack(package, folder)?;
        }
        level = next;
    }
}

/// What `program` needs and `folder` has, and the names that it lacks.
fn closure(program: &Path, folder: &Path) -> Result<(BTreeMap<String, PathBuf>, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    let mut missing = BTreeSet::new();
    let mut waiting = needed(&fs::read(program).doing(program.display())?)?;
    while let Some(name) = waiting.pop() {
        if found.contains_key(&name) || missing.contains(&name) {
            continue;
        }
        match FOLDERS.iter().map(|sub| folder.join(sub).join(&name)).find(|path| path.is_file()) {
            Some(path) => {
                waiting.extend(needed(&fs::read(&path).doing(path.display())?)?);
                found.insert(name, path);
            }
            None => drop(missing.insert(name)),
        }
    }
    Ok((found, missing))
}

/// The names in an ELF file's DT_NEEDED entries.
fn needed(elf: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<object::Endianness>::parse(elf).doing("reading an ELF file")?;
    let endian = header.endian().doing("reading an ELF file")?;
    let sections = header.sections(endian, elf).doing("reading an ELF file")?;
    let Some((entries, strings)) = sections.dynamic(endian, elf).doing("reading an ELF file")? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(endian, elf, strings).doing("reading an ELF file")?;
    let needed = entries.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED));
    needed
        .map(|entry| {
            let name = entry.string(endian, strings).doing("reading an ELF file")?;
            Ok(String::from_utf8_lossy(name).into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_needs_the_c_library() {
        let program = std::env::current_exe().unwrap();
        assert!(needed(&fs::read(program).unwrap()).unwrap().contains(&"libc.so.6".to_owned()));
        assert!(needed(b"no ELF file").is_err());
    }

    #[test]
    fn what_no_folder_has_is_missing() {
        let (found, missing) = closure(&std::env::current_exe().unwrap(), Path::new("/nowhere")).unwrap();
        assert!(found.is_empty() && missing.contains("libc.so.6"));
        let (found, missing) = closure(&std::env::current_exe().unwrap(), Path::new("/")).unwrap();
        assert!(found.contains_key("libc.so.6") && missing.is_empty(), "{missing:?}");
    }
}
