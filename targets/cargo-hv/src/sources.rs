//! The system's own package sources, read for the mirrors they name.

use std::fs;

/// Where packages come from, as apt knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uri: String,
}

/// All enabled binary sources of the system's `sources.list` and `sources.list.d`.
pub(crate) fn system() -> Vec<Source> {
    let mut sources = one_line(&fs::read_to_string("/etc/apt/sources.list").unwrap_or_default());
    let mut files: Vec<_> =
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(one_line(&text)),
            Some("sources") => sources.extend(paragraphs(&text)),
            _ => {}
        }
    }
    sources
}

/// The first source whose address ends in the archive's name, `debian` or `debian-security`.
pub(crate) fn mirror<'a>(sources: &'a [Source], archive: &str) -> Option<&'a Source> {
    sources.iter().find(|source| source.uri.trim_end_matches('/').rsplit('/').next() == Some(archive))
}

/// `deb [options] URI SUITE COMPONENT...` lines.
fn one_line(text: &str) -> Vec<Source> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("deb "));
    lines
        .filter_map(|line| {
            let line = line.trim_start();
            let line = if line.starts_with('[') { line.split_once(']')?.1 } else { line };
            Some(Source { uri: line.split_whitespace().next()?.to_owned() })
        })
        .collect()
}

/// Paragraphs of `Field: value` lines (deb822).
fn paragraphs(text: &str) -> Vec<Source> {
    let text: String = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    text.split("\n\n")
        .filter(|paragraph| {
            field(paragraph, "Types").is_some_and(|types| types.split_whitespace().any(|kind| kind == "deb"))
        })
        .filter(|paragraph| field(paragraph, "Enabled").is_none_or(|enabled| enabled != "no"))
        .filter_map(|paragraph| field(paragraph, "URIs"))
        .flat_map(|uris| uris.split_whitespace())
        .map(|uri| Source { uri: uri.to_owned() })
        .collect()
}

fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_name_their_mirror() {
        let old = one_line("# deb http://no/debian x\ndeb [arch=amd64 signed-by=/k] http://a/debian bookworm main\n");
        assert_eq!(mirror(&old, "debian").map(|source| source.uri.as_str()), Some("http://a/debian"));
        let new = paragraphs(
            "Types: deb\n# http://old/debian\nURIs: http://b/debian\nSuites: bookworm\n\n\
             Types: deb\nURIs: http://b/debian-security/\nSuites: bookworm-security\n\n\
             Types: deb-src\nURIs: http://c/debian\n",
        );
        assert_eq!(new.len(), 2);
        assert_eq!(mirror(&new, "debian").map(|source| source.uri.as_str()), Some("http://b/debian"));
        assert_eq!(mirror(&new, "debian-security"), Some(&new[1]));
    }

    #[test]
    fn a_source_that_is_switched_off_does_not_count() {
        assert!(paragraphs("Types: deb\nEnabled: no\nURIs: http://b/debian\n").is_empty());
    }

    #[test]
    fn other_archives_are_no_mirror() {
        let sources = one_line("deb https://x/apt cloud main\n");
        assert_eq!(mirror(&sources, "debian"), None);
    }
}
