// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a spec's text to what it says, or to the line and field that make no sense.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{File, Origin, Part, Server, Spec, SpecError};
use crate::remote::wire::Name;

/// No stripe is smaller: a READ of a megabyte is put together from 2048 at most.
const SMALLEST_STRIPE: u64 = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpec {
    #[serde(default)]
    server: BTreeMap<String, Server>,
    #[serde(default)]
    file: Vec<Spanned<RawFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: Spanned<String>,
    mode: Option<Spanned<u32>>,
    stripe: Option<Spanned<u64>>,
    parts: Spanned<Vec<Spanned<RawPart>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPart {
    local: Option<String>,
    server: Option<String>,
    path: Option<String>,
    zeros: Option<u64>,
    offset: Option<u64>,
    length: Option<u64>,
}

/// The text, and where it is from.
struct Text<'t> {
    file: &'t Path,
    text: &'t str,
}

impl Text<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn error(&self, line: usize, reason: impl Into<String>) -> SpecError {
        SpecError {
            file: self.file.to_owned(),
            line: Some(line),
            reason: reason.into(),
        }
    }

    /// What the parser says, and of which line it says so.
    fn parse_error(&self, error: &toml::de::Error) -> SpecError {
        let line = error.span().map(|span| self.line(span.start));
        let shown = line.and_then(|line| self.text.lines().nth(line - 1));
        let shown = shown.map(str::trim).filter(|shown| !shown.is_empty());
        let shown: String = shown.unwrap_or_default().chars().take(80).collect();
        let reason = match shown.is_empty() {
            true => error.message().to_owned(),
            false => format!("{} (in `{shown}`)", error.message()),
        };
        SpecError {
            file: self.file.to_owned(),
            line,
            reason,
        }
    }

    /// The field of this file, or of a part of it, is wrong.
    fn wrong(&self, at: usize, file: &str, field: &str, reason: impl fmt::Display) -> SpecError {
        self.error(self.line(at), format!("file {file:?}: {field}: {reason}"))
    }

    fn part(
        &self,
        raw: &Spanned<RawPart>,
        (file, number): (&str, usize),
        servers: &BTreeMap<String, Server>,
    ) -> Result<Part, SpecError> {
        let at = raw.span().start;
        let raw = raw.as_ref();
        let wrong = |field: &str, reason: &str| {
            let field = format!("part {}: {field}", number + 1);
            self.wrong(at, file, &field, reason)
        };
        let (origin, length) = match (&raw.local, &raw.server, raw.zeros) {
            (Some(local), None, None) => {
                if local.is_empty() || local.contains('\0') {
                    return Err(wrong("local", "no path of a file"));
                }
                if raw.path.is_some() {
                    return Err(wrong("path", "goes with server, not with local"));
                }
                (Origin::Local(self.beside(local)), raw.length)
            }
            (None, Some(server), None) => {
                if !servers.contains_key(server) {
                    return Err(wrong("server", &format!("there is no [server.{server}]")));
                }
                let Some(path) = &raw.path else {
                    return Err(wrong("path", "missing: which file of the server?"));
                };
                let names = names(path).map_err(|reason| wrong("path", reason))?;
                let names = names.iter().map(|name| Name::new(name.as_bytes()));
                let names = names.collect::<Result<_, _>>();
                let names = names.map_err(|error| wrong("path", &error.to_string()))?;
                let server = server.clone();
                (Origin::Remote { server, names }, raw.length)
            }
            (None, None, Some(zeros)) => {
                for (field, given) in [("offset", raw.offset.is_some()), ("length", raw.length.is_some())] {
                    if given {
                        return Err(wrong(field, "not with zeros, which say how many they are"));
                    }
                }
                if raw.path.is_some() {
                    return Err(wrong("path", "goes with server, not with zeros"));
                }
                (Origin::Zeros, Some(zeros))
            }
            (None, None, None) => {
                return Err(wrong("local, server or zeros", "one of them has to be there"));
            }
            _ => return Err(wrong("local, server, zeros", "only one of them can be there")),
        };
        let offset = raw.offset.unwrap_or(0);
        // TOML has no number above 2^63 - 1, so that this does not overflow.
        if offset.saturating_add(length.unwrap_or(0)) > i64::MAX as u64 {
            return Err(wrong("offset + length", "ends behind the largest file"));
        }
        Ok(Part {
            origin,
            offset,
            length,
            line: self.line(at),
        })
    }

    /// What is relative is so to the spec's own folder. The daemon works elsewhere, later.
    fn beside(&self, path: impl AsRef<Path>) -> PathBuf {
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let path = folder.join(path);
        std::path::absolute(&path).unwrap_or(path)
    }

    fn file(&self, raw: &Spanned<RawFile>, servers: &BTreeMap<String, Server>) -> Result<File, SpecError> {
        let begin = raw.span().start;
        let raw = raw.as_ref();
        let path = raw.path.as_ref();
        let wrong = |at: usize, field: &str, reason: &dyn fmt::Display| self.wrong(at, path, field, reason);
        let at = raw.path.span().start;
        let names = names(path).map_err(|reason| wrong(at, "path", &reason))?;
        let mode = raw.mode.as_ref().map(|mode| match u16::try_from(*mode.as_ref()) {
            Ok(bits) if bits <= 0o777 => Ok(bits),
            _ => Err(wrong(
                mode.span().start,
                "mode",
                &"0o000 to 0o777 (octal numbers begin with 0o)",
            )),
        });
        let stripe = raw.stripe.as_ref().map(|stripe| {
            let bytes = NonZeroU64::new(*stripe.as_ref()).filter(|bytes| bytes.get() >= SMALLEST_STRIPE);
            let few = format!("at least {SMALLEST_STRIPE} bytes");
            bytes.ok_or_else(|| wrong(stripe.span().start, "stripe", &few))
        });
        let (mode, stripe) = (mode.transpose()?, stripe.transpose()?);
        if raw.parts.as_ref().is_empty() {
            return Err(wrong(raw.parts.span().start, "parts", &"there are none"));
        }
        let parts = raw.parts.as_ref().iter().enumerate();
        let parts: Vec<Part> = parts
            .map(|(number, part)| self.part(part, (path, number), servers))
            .collect::<Result<_, _>>()?;
        let known = parts.iter().map(|part| part.length.unwrap_or(0));
        let total = known.fold(0u64, u64::saturating_add);
        if total > i64::MAX as u64 {
            let at = raw.parts.span().start;
            return Err(wrong(at, "parts", &"together larger than the largest file"));
        }
        Ok(File {
            names,
            mode,
            stripe,
            parts,
            line: self.line(begin),
        })
    }
}

/// The names of a path, or what is wrong with it.
fn names(path: &str) -> Result<Vec<String>, &'static str> {
    let names: Vec<String> = path.split('/').map(str::to_owned).collect();
    match () {
        () if path.is_empty() => Err("it is empty"),
        () if path.starts_with('/') => Err("it must not begin with /"),
        () if path.contains('\0') => Err("it has a NUL"),
        () if path.len() > 4095 => Err("it has more than 4095 bytes"),
        () if names
            .iter()
            .any(|name| name.is_empty() || name == "." || name == "..") =>
        {
            Err("it has an empty name, . or ..")
        }
        () if names.iter().any(|name| name.len() > 255) => Err("it has a name of more than 255 bytes"),
        () => Ok(names),
    }
}

/// What the text of the file says.
pub(super) fn parse(file: &Path, text: &str) -> Result<Spec, SpecError> {
    let text = Text { file, text };
    let raw: RawSpec = toml::from_str(text.text).map_err(|error| text.parse_error(&error))?;
    let mut servers = raw.server;
    let all = raw.file.iter();
    let files: Vec<File> = all
        .map(|file| text.file(file, &servers))
        .collect::<Result<_, _>>()?;
    if files.is_empty() {
        return Err(text.error(1, "there is no [[file]] in it"));
    }
    no_two_at_one_place(&text, &files)?;
    let parts = files.iter().flat_map(|file| &file.parts);
    let used: BTreeSet<String> = parts
        .filter_map(|part| match &part.origin {
            Origin::Remote { server, .. } => Some(server.clone()),
            _ => None,
        })
        .collect();
    servers.retain(|name, _| used.contains(name));
    for server in servers.values_mut() {
        let paths = [
            &mut server.token_file,
            &mut server.tls_ca,
            &mut server.tls_cert,
            &mut server.tls_key,
        ];
        for path in paths.into_iter().flatten() {
            *path = text.beside(&*path);
        }
    }
    Ok(Spec {
        file: file.to_owned(),
        servers,
        files,
    })
}

/// No file is where another one, or its directory, is.
fn no_two_at_one_place(text: &Text<'_>, files: &[File]) -> Result<(), SpecError> {
    let mut taken: BTreeMap<&[String], &File> = BTreeMap::new();
    for file in files {
        if let Some(other) = taken.insert(&file.names, file) {
            let reason = format!(
                "file {:?}: path: line {} has the same one",
                file.path(),
                other.line
            );
            return Err(text.error(file.line, reason));
        }
    }
    for file in files {
        for above in 1..file.names.len() {
            if let Some(other) = taken.get(&file.names[..above]) {
                let reason = format!(
                    "file {:?}: path: it leads through {:?}, which is a file (line {})",
                    file.path(),
                    other.path(),
                    other.line
                );
                return Err(text.error(file.line, reason));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Spec, SpecError> {
        Spec::parse(Path::new("/etc/x/spec.toml"), text)
    }

    #[test]
    fn what_is_said_is_what_is_meant() {
        let spec = parse(
            r#"
[server.east]
url = "extfuse+unix:/run/x.sock"
token_file = "token"
timeout = 2.5

[server.unused]
url = "extfuse://nowhere:1"

[[file]]
path = "images/disk.img"
mode = 0o440
parts = [
  { local = "a", offset = 7, length = 4096 },
  { server = "east", path = "dir/b" },
  { zeros = 512 },
]

[[file]]
path = "images/striped"
stripe = 512
parts = [{ local = "/data/a" }, { local = "../b" }]
"#,
        )
        .unwrap();
        assert_eq!(spec.servers.keys().collect::<Vec<_>>(), ["east"]);
        let east = &spec.servers["east"];
        assert_eq!(east.token_file.as_deref(), Some(Path::new("/etc/x/token")));
        assert_eq!(east.timeout, Some(2.5));
        let [disk, striped] = &spec.files[..] else {
            panic!("{spec:?}");
        };
        assert_eq!(
            (disk.path().as_str(), disk.mode, disk.line),
            ("images/disk.img", Some(0o440), 10)
        );
        assert_eq!((disk.stripe, striped.stripe), (None, NonZeroU64::new(512)));
        let part = |origin, offset, length, line| Part {
            origin,
            offset,
            length,
            line,
        };
        let names = vec![Name::new(b"dir").unwrap(), Name::new(b"b").unwrap()];
        let server = "east".to_owned();
        let local = |path: &str| Origin::Local(path.into());
        assert_eq!(
            disk.parts,
            [
                part(local("/etc/x/a"), 7, Some(4096), 14),
                part(Origin::Remote { server, names }, 0, None, 15),
                part(Origin::Zeros, 0, Some(512), 16),
            ]
        );
        assert_eq!(disk.parts[1].origin.to_string(), "east:dir/b");
        assert_eq!(
            striped.parts,
            [
                part(local("/data/a"), 0, None, 22),
                part(local("/etc/x/../b"), 0, None, 22)
            ]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_line_and_field() {
        let file = |rest: &str| format!("[[file]]\npath = \"f\"\n{rest}");
        let parts = |parts: &str| file(&format!("parts = [\n{parts}\n]"));
        let path = |path: &str| format!("[[file]]\npath = \"{path}\"\nparts = [{{ zeros = 1 }}]\n");
        let most = i64::MAX;
        let long = "n".repeat(256);
        let cases = [
            (String::new(), 1, "no [[file]]"),
            ("file = 3".into(), 1, "file = 3"),
            ("[[file]\n".into(), 1, "[[file]"),
            (file("bogus = 1\nparts = []"), 3, "bogus"),
            (file("mode = \"x\"\nparts = []"), 3, "mode"),
            (file("mode = -1\nparts = []"), 3, "mode"),
            (file("mode = 0o1777\nparts = [{ zeros = 1 }]"), 3, "\"f\": mode: "),
            (file("parts = []"), 3, "\"f\": parts: there are none"),
            (file(""), 1, "missing field `parts`"),
            (
                "[[file]]\nparts = [{ zeros = 1 }]".into(),
                1,
                "missing field `path`",
            ),
            (
                file("stripe = 0\nparts = [{ zeros = 1 }]"),
                3,
                "\"f\": stripe: at least 512",
            ),
            (
                file("stripe = 511\nparts = [{ zeros = 1 }]"),
                3,
                "\"f\": stripe: at least 512",
            ),
            (file("stripe = -512\nparts = [{ zeros = 1 }]"), 3, "stripe"),
            (parts("{ }"), 4, "\"f\": part 1: local, server or zeros"),
            (
                parts("{ zeros = 1 },\n{ local = \"a\", zeros = 1 }"),
                5,
                "\"f\": part 2: local, server, zeros",
            ),
            (parts("{ local = \"\" }"), 4, "part 1: local"),
            (parts("{ local = \"a\", path = \"b\" }"), 4, "part 1: path"),
            (parts("{ zeros = 1, path = \"b\" }"), 4, "part 1: path"),
            (
                parts("{ server = \"west\", path = \"b\" }"),
                4,
                "no [server.west]",
            ),
            (parts("{ zeros = 1, length = 1 }"), 4, "part 1: length"),
            (parts("{ zeros = 1, offset = 1 }"), 4, "part 1: offset"),
            (parts("{ zeros = -1 }"), 4, "zeros"),
            (parts("{ local = \"a\", size = 1 }"), 4, "size"),
            (
                parts(&format!("{{ local = \"a\", offset = {most}, length = 1 }}")),
                4,
                "offset + length",
            ),
            (
                parts(&format!("{{ zeros = {most} }},\n{{ zeros = 1 }}")),
                3,
                "\"f\": parts: together larger",
            ),
            (path(""), 2, "path: it is empty"),
            (path("/a"), 2, "path: it must not begin with /"),
            (path("a/../b"), 2, "path: it has an empty name, . or .."),
            (path("./b"), 2, "path: it has an empty name, . or .."),
            (path("a//b"), 2, "path: it has an empty name, . or .."),
            (path("a/"), 2, "path: it has an empty name, . or .."),
            (path("a\\u0000b"), 2, "path: it has a NUL"),
            (path(&long), 2, "path: it has a name of more than 255 bytes"),
            (path(&"n/".repeat(2100)), 2, "path: it has more than 4095 bytes"),
            (
                path("a") + &path("b") + &path("a"),
                7,
                "\"a\": path: line 1 has the same one",
            ),
            (
                path("a/b") + &path("a"),
                1,
                "leads through \"a\", which is a file (line 4)",
            ),
            (
                path("a/b/c") + &path("a/b"),
                1,
                "leads through \"a/b\", which is a file (line 4)",
            ),
            ("[server.a]\nurl = 1\n".into(), 2, "url"),
            (
                "[server.a]\ntoken_file = \"x\"\n".into(),
                1,
                "missing field `url`",
            ),
            ("[server.a]\nurl = \"x\"\ntoken = \"x\"\n".into(), 3, "token"),
            (
                "[server.a]\nurl = \"x\"\n[server.a]\nurl = \"x\"\n".into(),
                3,
                "duplicate",
            ),
            (
                "[server.a]\nurl = \"x\"\n".to_owned() + &parts("{ server = \"a\" }"),
                6,
                "part 1: path: missing",
            ),
            (
                "[server.a]\nurl = \"x\"\n".to_owned() + &parts("{ server = \"a\", path = \"../b\" }"),
                6,
                "part 1: path: it has",
            ),
        ];
        for (text, line, named) in cases {
            let error = parse(&text).expect_err(&text).to_string();
            assert!(
                error.starts_with(&format!("/etc/x/spec.toml:{line}: ")),
                "{error}\n{text}"
            );
            assert!(error.contains(named), "{error}: {named}\n{text}");
        }
    }

    /// What looks much like a spec.
    fn whole() -> impl Strategy<Value = String> {
        let number = || proptest::sample::select(vec!["0", "1", "512", "9223372036854775807", "-1", "0x10"]);
        let field = prop_oneof![
            number().prop_map(|number| format!("zeros = {number}")),
            number().prop_map(|number| format!("offset = {number}")),
            number().prop_map(|number| format!("length = {number}")),
            Just("local = \"a\"".to_owned()),
        ];
        let part =
            proptest::collection::vec(field, 1..3).prop_map(|fields| format!("{{ {} }}", fields.join(", ")));
        let file =
            (0..3u8, number(), proptest::collection::vec(part, 0..4)).prop_map(|(name, stripe, parts)| {
                let stripe = if name > 0 {
                    String::new()
                } else {
                    format!("stripe = {stripe}\n")
                };
                format!(
                    "[[file]]\npath = \"{name}\"\n{stripe}parts = [{}]\n",
                    parts.join(", ")
                )
            });
        proptest::collection::vec(file, 1..3).prop_map(|files| files.concat())
    }

    /// What looks like pieces of one.
    fn pieces() -> impl Strategy<Value = String> {
        let known = vec![
            "[[file]]\n",
            "[server.a]\n",
            "path = ",
            "parts = [",
            "]",
            "{",
            "}",
            "local = ",
            "zeros = ",
            ",",
            "url = ",
            "\"a\"",
            "\"b/c\"",
            "1",
            "-1",
            "\n",
            "stripe = ",
            "mode = ",
            "\u{e9}",
            "\"",
            "#",
        ];
        let piece = prop_oneof![
            proptest::sample::select(known).prop_map(str::to_owned),
            "\\PC{0,5}"
        ];
        proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_said_is_understood_or_refused(text in prop_oneof![whole(), pieces()]) {
            match parse(&text) {
                Ok(spec) => {
                    prop_assert!(!spec.files.is_empty());
                    for file in &spec.files {
                        prop_assert!(!file.names.is_empty() && !file.parts.is_empty());
                        let lens = file.parts.iter().map(|part| part.length.unwrap_or(0));
                        prop_assert!(lens.map(u128::from).sum::<u128>() <= i64::MAX as u128);
                    }
                }
                Err(error) => prop_assert!(error.to_string().starts_with("/etc/x/spec.toml:"), "{}", error),
            }
        }
    }

    #[test]
    fn a_spec_that_is_not_there_is_named() {
        let error = Spec::read(Path::new("/nowhere/spec.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("/nowhere/spec.toml: No such file"),
            "{error}"
        );
    }
}
