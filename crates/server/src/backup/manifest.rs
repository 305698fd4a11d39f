//! `MANIFEST`: what a backup consists of.
//!
//! **Shape**: text, a line each: `version`, `node`, `partitions`, `taken-ms`, a `file` with checksum, bytes and name for each file, and last the `checksum` of
//! all lines before. Checksums are XXH3 of 128 bits. Owns: these bytes. Does not own: writing or reading files.

use std::fmt::Write;
use std::path::{Component, Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// The layout of a backup that this build reads and writes.
const VERSION: u32 = 1;

pub(crate) const NAME: &str = "MANIFEST";
/// Under this name it is written.
pub(crate) const NEW_NAME: &str = "MANIFEST.new";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) node_id: u64,
    pub(crate) partitions: u16,
    /// Wall clock.
    pub(crate) taken_ms: u64,
    pub(crate) files: Vec<Listed>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Below the backup's directory, and later below the data directory.
    pub(crate) name: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) checksum: u128,
}

impl Manifest {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub(crate) fn encode(&self) -> String {
        let Self { node_id, partitions, taken_ms, files } = self;
        let mut text = format!("version={VERSION}\nnode={node_id:016x}\npartitions={partitions}\ntaken-ms={taken_ms}\n");
        for Listed { name, bytes, checksum } in files {
            writeln!(text, "file={checksum:032x} {bytes} {}", name.display()).expect("a string takes all");
        }
        let checksum = xxh3_128(text.as_bytes());
        writeln!(text, "checksum={checksum:032x}").expect("a string takes all");
        text
    }

    /// **Errors**: what is wrong with it.
    pub(crate) fn decode(text: &str) -> Result<Self, String> {
        let version = text.lines().next().and_then(|line| line.strip_prefix("version=")).ok_or("it has no version")?;
        if version != VERSION.to_string() {
            return Err(format!(
                "it has format version {version}, and this build reads version {VERSION}: use the version that made it"
            ));
        }
        let (lines, checksum) = text.rsplit_once("checksum=").ok_or("its end is missing")?;
        if u128::from_str_radix(checksum.trim_end(), 16) != Ok(xxh3_128(lines.as_bytes())) {
            return Err("its checksum does not match".to_owned());
        }
        let field = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
        let files = lines.lines().filter_map(|line| line.strip_prefix("file=")).map(Listed::decode);
        let manifest = || {
            Some(Self {
                node_id: u64::from_str_radix(field("node")?, 16).ok()?,
                partitions: number("partitions")?.try_into().ok()?,
                taken_ms: number("taken-ms")?,
                files: files.collect::<Option<_>>()?,
            })
        };
        manifest().ok_or_else(|| "a line of it cannot be read".to_owned())
    }
}

impl Listed {
    fn decode(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ' ');
        let checksum = u128::from_str_radix(parts.next()?, 16).ok()?;
        let bytes = parts.next()?.parse().ok()?;
        let name = PathBuf::from(parts.next()?);
        stays_below(&name).then_some(Self { name, bytes, checksum })
    }
}

/// Whether a name leads nowhere but down.
fn stays_below(name: &Path) -> bool {
    let mut parts = name.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str, bytes| Listed { name: name.into(), bytes, checksum: u128::from(bytes) << 70 };
        let files = vec![file("tables/version", 4), file("log/0000000001.seg", 1 << 40)];
        Manifest { node_id: 7, partitions: 16, taken_ms: 1_700_000_000_000, files }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Manifest::decode(&manifest().encode()), Ok(manifest()));
        let empty = Manifest { files: Vec::new(), ..manifest() };
        assert_eq!(Manifest::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn a_changed_or_cut_manifest_is_refused() {
        let text = manifest().encode();
        for end in 0..text.len() - 1 {
            assert!(Manifest::decode(&text[..end]).is_err(), "cut at {end}");
        }
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Manifest::decode(&changed).is_err(), "changed at {at}:\n{changed}");
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in ["../etc/passwd", "/etc/passwd", "log/../../x", ""] {
            let files = vec![Listed { name: name.into(), bytes: 1, checksum: 1 }];
            let text = Manifest { files, ..manifest() }.encode();
            assert!(Manifest::decode(&text).is_err(), "{name}");
        }
    }
}
