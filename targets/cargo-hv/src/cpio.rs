//! Archives in the "newc" format that Linux unpacks as its initial file system.

/// An archive that grows entry by entry.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMBOLIC_LINK: u32 = 0o120_000;

impl Archive {
    pub(crate) fn folder(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[]);
    }

    /// A file with these permissions.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, FILE | mode, content);
    }

    pub(crate) fn link(&mut self, name: &str, target: &str) {
        self.entry(name, SYMBOLIC_LINK | 0o777, target.as_bytes());
    }

    /// The archive with its end mark.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let links = if mode & DIRECTORY == DIRECTORY && mode & FILE != FILE { 2 } else { 1 };
        // Inode, mode, owner, group, links, time, size, device (two), device of a node (two), length of the name, check sum.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inodes, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn entries_are_aligned_and_complete() {
        let mut archive = Archive::default();
        archive.folder("a");
        archive.file("a/b", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let header = text.find("a/b").unwrap() - 110;
        assert_eq!(&text[header..header + 6], "070701");
        assert_eq!(&text[header + 54..header + 62], "00000005", "the size of the file");
        assert_eq!(&text[header + 116..header + 121], "12345", "the content begins at a multiple of four");
    }

    #[test]
    fn cpio_reads_the_archive() {
        let Ok(mut cpio) =
            Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        else {
            return;
        };
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.link("sh", "init");
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "bin\ninit\nsh\n");
    }
}
