//! The form of the file: written in one go, read in one go, every sum checked on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use super::parts::{self, ABOUT, CONFIGURATION, DATABASE, MAX_PARTS, PART_BYTES, SUMS};
use super::{Error, Places, Report};
use crate::storage::{digest, digest_path};
use crate::types::Revision;

/// Form of the archive.
const FORMAT: u32 = 1;
/// Of a block of a tar archive.
const BLOCK_BYTES: usize = 512;

/// What an archive says of itself: `home.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Form of the archive.
    pub format: u32,
    /// Version of the core that made it.
    pub core: String,
    /// When, by that core's clock, in RFC 3339.
    pub made_at: String,
    /// The store's revision in it.
    pub revision: u64,
}

/// Whether a file is such an archive, by its beginning. What cannot be read is none.
#[must_use]
pub fn is_home(path: &Path) -> bool {
    let mut block = [0; BLOCK_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut block));
    read.is_ok() && block.starts_with(ABOUT.as_bytes()) && block[ABOUT.len()] == 0
}

pub(super) fn write(places: &Places, copy: &Path, revision: Revision, to: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    let time = jiff::Timestamp::try_from(now).unwrap_or_default();
    let about = About {
        format: FORMAT,
        core: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: time.to_string(),
        revision: revision.0,
    };
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let mut writer = Writer {
        archive: Builder::new(BufWriter::new(file)),
        sums: String::new(),
        mtime: u64::try_from(time.as_second()).unwrap_or(0),
    };
    writer.small(ABOUT, &serde_json::to_vec_pretty(&about)?)?;
    for part in parts::belonging(places)? {
        let content = match std::fs::read(&part.path) {
            Ok(content) => content,
            // Removed since: then it is no part.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let why = format!("{}: {error}", part.path.display());
                return Err(io::Error::new(error.kind(), why));
            }
        };
        if content.len() as u64 > PART_BYTES {
            let why = format!("{} is too large for a backup", part.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        writer.small(&part.name, &content)?;
    }
    writer.database(copy)?;
    let sums = std::mem::take(&mut writer.sums);
    writer.small(SUMS, sums.as_bytes())?;
    let file = writer.archive.into_inner()?.into_inner()?;
    file.sync_all()
}

struct Writer {
    archive: Builder<BufWriter<File>>,
    sums: String,
    /// In seconds since 1970.
    mtime: u64,
}

impl Writer {
    fn small(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.note(name, &hex(Sha256::digest(content).as_slice()));
        let mut header = self.header(content.len() as u64);
        self.archive.append_data(&mut header, name, content)
    }

    fn database(&mut self, copy: &Path) -> io::Result<()> {
        let (bytes, sum) = digest(copy)?;
        self.note(DATABASE, &sum);
        let mut header = self.header(bytes);
        self.archive
            .append_data(&mut header, DATABASE, File::open(copy)?)
    }

    fn note(&mut self, name: &str, sum: &str) {
        self.sums.push_str(&format!("{sum}  {name}\n"));
    }

    fn header(&self, bytes: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        header.set_entry_type(EntryType::Regular);
        header
    }
}

/// Reads an archive to its end. Parts for which `keep` names a file are written there, for their user only, and
/// synced.
pub(super) fn read(path: &Path, keep: impl Fn(&str) -> Option<PathBuf>) -> Result<Report, Error> {
    let file = File::open(path).map_err(Error::file("read", path))?;
    let mut reading = Reading {
        path,
        about: None,
        sums: BTreeMap::new(),
        parts: Vec::new(),
        configuration: None,
        listed: None,
        last: "its beginning".to_owned(),
    };
    let mut archive = Archive::new(io::BufReader::new(file));
    let entries = archive.entries().map_err(|error| reading.torn(&error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| reading.torn(&error))?;
        let name = match std::str::from_utf8(&entry.path_bytes()) {
            Ok(name) => name.to_owned(),
            Err(_) => return Err(reading.damaged("a part", "its name is not text")),
        };
        let is_file = entry.header().entry_type() == EntryType::Regular;
        reading.take(&name, is_file, entry.size(), &mut entry, &keep)?;
    }
    let report = reading.finish()?;
    check_digest(path)?;
    Ok(report)
}

/// What was read so far.
struct Reading<'a> {
    path: &'a Path,
    about: Option<About>,
    /// As found.
    sums: BTreeMap<String, String>,
    parts: Vec<(String, u64)>,
    configuration: Option<Vec<u8>>,
    /// `SHA256SUMS`, once it was read.
    listed: Option<String>,
    /// Of the part that was read last.
    last: String,
}

impl Reading<'_> {
    fn damaged(&self, part: &str, why: impl Into<String>) -> Error {
        Error::Damaged {
            path: self.path.to_owned(),
            part: part.to_owned(),
            why: why.into(),
        }
    }

    fn torn(&self, error: &io::Error) -> Error {
        let part = format!("what follows {}", self.last);
        self.damaged(&part, format!("it cannot be read ({error})"))
    }

    fn take(
        &mut self,
        name: &str,
        is_file: bool,
        bytes: u64,
        content: &mut impl Read,
        keep: &impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<(), Error> {
        let is_own = [ABOUT, SUMS].contains(&name);
        if self.listed.is_some() || !is_file || !(is_own || parts::is_known(name)) {
            return Err(self.damaged(name, "it does not belong into a backup"));
        }
        if self.about.is_none() && name != ABOUT {
            return Err(self.damaged(ABOUT, "it is missing"));
        }
        if self.sums.contains_key(name) || self.sums.len() > MAX_PARTS + 2 {
            return Err(self.damaged(name, "it is there twice, or there are too many parts"));
        }
        let sum = if name == DATABASE {
            let mut sink = keep(name).map(|path| create(&path)).transpose()?;
            let sum = self.copy(name, bytes, content, sink.as_mut().map(|(file, _)| file))?;
            if let Some((file, path)) = sink {
                file.sync_all().map_err(Error::file("write", &path))?;
            }
            sum
        } else {
            if bytes > PART_BYTES {
                return Err(self.damaged(name, "it is larger than such a part ever is"));
            }
            let mut text = Vec::new();
            let read = content.read_to_end(&mut text);
            if read.is_err() || text.len() as u64 != bytes {
                return Err(self.damaged(name, "it is cut off"));
            }
            if let Some(path) = keep(name) {
                let (mut file, path) = create(&path)?;
                let written = file.write_all(&text).and_then(|()| file.sync_all());
                written.map_err(Error::file("write", &path))?;
            }
            let sum = hex(Sha256::digest(&text).as_slice());
            self.look_into(name, text)?;
            sum
        };
        if !is_own {
            self.parts.push((name.to_owned(), bytes));
        }
        self.sums.insert(name.to_owned(), sum);
        name.clone_into(&mut self.last);
        Ok(())
    }

    fn look_into(&mut self, name: &str, text: Vec<u8>) -> Result<(), Error> {
        match name {
            ABOUT => {
                let about: About = serde_json::from_slice(&text)
                    .map_err(|_| self.damaged(name, "it is not what a core writes"))?;
                if about.format > FORMAT {
                    return Err(Error::Newer {
                        path: self.path.to_owned(),
                        found: about.format,
                        known: FORMAT,
                    });
                }
                self.about = Some(about);
            }
            SUMS => {
                let text = String::from_utf8(text);
                self.listed = Some(text.map_err(|_| self.damaged(SUMS, "it is not text"))?);
            }
            CONFIGURATION => self.configuration = Some(text),
            _ => {}
        }
        Ok(())
    }

    /// Sums a large part, and writes it if somebody wants it.
    fn copy(
        &self,
        name: &str,
        bytes: u64,
        content: &mut impl Read,
        mut sink: Option<&mut File>,
    ) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 16];
        let mut found = 0;
        loop {
            let read = match content.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Err(self.damaged(name, format!("it is cut off ({error})"))),
            };
            found += read as u64;
            hash.update(&piece[..read]);
            if let Some(file) = &mut sink {
                let written = file.write_all(&piece[..read]);
                written.map_err(Error::file("unpack", self.path))?;
            }
        }
        if found != bytes {
            return Err(self.damaged(name, "it is cut off"));
        }
        Ok(hex(hash.finalize().as_slice()))
    }

    fn finish(self) -> Result<Report, Error> {
        let Some(listed) = &self.listed else {
            let part = format!("what follows {}", self.last);
            return Err(self.damaged(&part, format!("it ends there, without {SUMS}")));
        };
        let mut missing: BTreeSet<_> = self.sums.keys().map(String::as_str).collect();
        missing.remove(SUMS);
        for line in listed.lines() {
            let Some((wanted, name)) = line.split_once("  ") else {
                return Err(self.damaged(SUMS, "it is not what a core writes"));
            };
            match self.sums.get(name) {
                None => return Err(self.damaged(name, "it is missing")),
                Some(found) if found != wanted => {
                    let why = format!("its SHA-256 is {found}, not {wanted} as when it was made");
                    return Err(self.damaged(name, why));
                }
                Some(_) => missing.remove(name),
            };
        }
        if let Some(name) = missing.first() {
            return Err(self.damaged(name, format!("{SUMS} does not know it")));
        }
        if !self.sums.contains_key(DATABASE) {
            return Err(self.damaged(DATABASE, "it is missing"));
        }
        let Some(about) = self.about.clone() else {
            return Err(self.damaged(ABOUT, "it is missing"));
        };
        Ok(Report {
            about,
            parts: self.parts,
            configuration: self.configuration,
        })
    }
}

/// The digest beside the archive, if one lies there: it knows the sums themselves.
fn check_digest(path: &Path) -> Result<(), Error> {
    let beside = digest_path(path);
    let wanted = match std::fs::read_to_string(&beside) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", &beside)(error)),
    };
    let wanted = wanted.split_whitespace().next().unwrap_or_default();
    let (_, found) = digest(path).map_err(Error::file("read", path))?;
    if found == wanted {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_owned(),
        part: "the archive itself".to_owned(),
        why: format!(
            "its SHA-256 is {found}, not {wanted} as {} says",
            beside.display()
        ),
    })
}

fn create(path: &Path) -> Result<(File, PathBuf), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    if let Some(directory) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(Error::file("make", directory))?;
    }
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let file = file.map_err(Error::file("write", path))?;
    Ok((file, path.to_owned()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
