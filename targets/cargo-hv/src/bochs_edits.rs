//! What the project adds to Bochs: the files of `targets/bochs`, and the edits that its `.toml` files make to Bochs' own source.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::place;
use crate::status::{BUILD, Doing, Failure, Result};

/// Where the added files land, from the root of Bochs' source.
const INTO: &str = "cpu";

/// Everything in `targets/bochs`, read.
#[derive(Debug)]
pub(crate) struct Additions {
    /// Names and contents of all files that a build depends on, sorted by name.
    files: Vec<(String, String)>,
    edits: Vec<Edit>,
}

/// One change of a few lines in a file of Bochs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// From the root of Bochs' source.
    file: String,
    /// Text that stands there once, or `times` times.
    anchor: String,
    #[serde(rename = "where")]
    place: Place,
    text: String,
    /// What it is for: a reader sees no context.
    why: String,
    #[serde(default = "once")]
    times: usize,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Before,
    After,
    Replace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    edit: Vec<Edit>,
}

fn once() -> usize {
    1
}

impl Additions {
    /// Reads the folder of this repository.
    pub(crate) fn read() -> Result<Self> {
        Self::of(&place::root().join("targets/bochs"))
    }

    fn of(folder: &Path) -> Result<Self> {
        let entries = fs::read_dir(folder).doing(format_args!("reading {}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let (mut files, mut edits) = (Vec::new(), Vec::new());
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if !matches!(extension, Some("toml" | "cc" | "h")) {
                continue;
            }
            let text = fs::read_to_string(&path).doing(format_args!("reading {}", path.display()))?;
            if extension == Some("toml") {
                edits.extend(toml::from_str::<File>(&text).doing(path.display())?.edit);
            }
            files.push((name, text));
        }
        Ok(Self { files, edits })
    }

    /// Texts that decide what is built: names and contents in turn.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()])
    }

    /// Copies the files into `source` and makes the edits, in the order of the files' names and of their rows.
    pub(crate) fn apply(&self, source: &Path) -> Result<()> {
        for (name, text) in self.files.iter().filter(|(name, _)| !name.ends_with(".toml")) {
            let path = source.join(INTO).join(name);
            if path.exists() {
                return Err(Failure::new(BUILD, format!("Bochs has a file {INTO}/{name} of its own")));
            }
            fs::write(&path, text).doing(format_args!("writing {}", path.display()))?;
        }
        for edit in &self.edits {
            let path = source.join(&edit.file);
            let text = fs::read_to_string(&path).doing(format_args!("reading {}", path.display()))?;
            fs::write(&path, edit.made_in(&text)?).doing(format_args!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

impl Edit {
    /// `text` with the edit made, or the sentence that says why it cannot be.
    fn made_in(&self, text: &str) -> Result<String> {
        let found = text.matches(&self.anchor).count();
        if found != self.times || self.anchor.is_empty() {
            let Self { file, anchor, times, why, .. } = self;
            let sentence = format!(
                "the edit of Bochs' {file} ({why}) does not fit: {anchor:?} stands there {found} times, not {times}"
            );
            return Err(Failure::new(BUILD, sentence));
        }
        let Self { anchor, text: added, .. } = self;
        let replacement = match self.place {
            Place::Before => format!("{added}{anchor}"),
            Place::After => format!("{anchor}{added}"),
            Place::Replace => added.clone(),
        };
        Ok(text.replace(anchor.as_str(), &replacement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(place: &str, anchor: &str, more: &str) -> Edit {
        let text =
            format!("[[edit]]\nfile = 'f'\nanchor = '{anchor}'\nwhere = '{place}'\ntext = '+'\nwhy = 'a test'\n{more}");
        toml::from_str::<File>(&text).unwrap().edit.remove(0)
    }

    #[test]
    fn an_edit_lands_where_it_says() {
        assert_eq!(edit("before", "b", "").made_in("abc").unwrap(), "a+bc");
        assert_eq!(edit("after", "b", "").made_in("abc").unwrap(), "ab+c");
        assert_eq!(edit("replace", "b", "").made_in("abc").unwrap(), "a+c");
        assert_eq!(edit("after", "b", "times = 2").made_in("bab").unwrap(), "b+ab+");
    }

    #[test]
    fn an_anchor_that_is_missing_or_ambiguous_is_a_build_failure() {
        for (text, times) in [("ac", "0 times"), ("bb", "2 times")] {
            let failure = edit("after", "b", "").made_in(text).unwrap_err();
            assert_eq!(failure.status, BUILD);
            assert!(failure.sentence.contains(times) && failure.sentence.contains("a test"), "{failure}");
        }
        assert!(edit("after", "", "").made_in("a").is_err());
    }

    #[test]
    fn files_are_copied_and_their_content_is_part_of_the_key() {
        let (ours, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(source.path().join(INTO)).unwrap();
        fs::write(source.path().join("f"), "abc").unwrap();
        fs::write(ours.path().join("x.cc"), "int x;").unwrap();
        let row = "[[edit]]\nfile = 'f'\nanchor = 'b'\nwhere = 'after'\ntext = '+'\nwhy = 'a test'\n";
        fs::write(ours.path().join("x.toml"), row).unwrap();
        let key = || place::key(Additions::of(ours.path()).unwrap().texts());
        let first = key();
        Additions::of(ours.path()).unwrap().apply(source.path()).unwrap();
        assert_eq!(fs::read_to_string(source.path().join("f")).unwrap(), "ab+c");
        assert_eq!(fs::read_to_string(source.path().join("cpu/x.cc")).unwrap(), "int x;");
        fs::write(ours.path().join("x.cc"), "int y;").unwrap();
        assert_ne!(key(), first);
    }

    #[test]
    fn the_edits_of_this_repository_are_well_formed() {
        let additions = Additions::read().unwrap();
        assert!(additions.edits.iter().all(|edit| !edit.anchor.is_empty() && !edit.why.is_empty()));
    }
}
