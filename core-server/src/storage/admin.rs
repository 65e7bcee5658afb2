//! What operators do with the store: usage, quotas, dropping a namespace, backup, check.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use super::adapter::{CopyFault, Op, StorageAdapter, Stretch};
use super::config::Config;
use super::error::{Error, Fault};
use super::names::{Direction, KeyRange, Namespace};
use super::quota::{
    CORE_NAMESPACE, OwnQuota, Owned, Quota, Quotas, Usage, key_of, of_owner, owner,
};
use super::request::{Apply, MAX_OPS, MAX_PAGE_SIZE, Query};
use super::sqlite::lock::rename_new;
use super::writer::Shared;
use super::{MAX_PAGE_BYTES, READ_TIMEOUT, Storage};
use crate::error::Outcome;
use crate::types::Revision;

/// What a namespace holds, and may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceUsage {
    /// Its name.
    pub namespace: Namespace,
    /// What it holds.
    pub usage: Usage,
    /// What it may hold.
    pub quota: Quota,
    /// What all namespaces of its owner hold, it included.
    pub owned: OwnerUsage,
}

/// What all namespaces of one owner hold together, and may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerUsage {
    /// The first part of their names.
    pub owner: String,
    /// What they hold.
    pub held: Owned,
    /// What they may hold.
    pub quota: Quota,
}

/// Where a namespace stands among all.
fn usage_of(
    namespace: &Namespace,
    all: &BTreeMap<Namespace, Usage>,
    quotas: &Quotas,
) -> NamespaceUsage {
    let mut held = Owned::default();
    for (_, usage) in of_owner(all, namespace) {
        held.add(*usage);
    }
    NamespaceUsage {
        namespace: namespace.clone(),
        usage: all.get(namespace).copied().unwrap_or_default(),
        quota: quotas.of(namespace),
        owned: OwnerUsage {
            owner: owner(namespace).to_owned(),
            held,
            quota: quotas.of_owner(namespace),
        },
    }
}

/// A copy that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The file; beside it lies `<path>.sha256`.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// The store's revision in it.
    pub revision: Revision,
}

impl Storage {
    /// What a namespace holds, and may hold. One that holds nothing is no error.
    ///
    /// # Errors
    /// Those of [`Self::get`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn usage(&self, namespace: &Namespace) -> Result<NamespaceUsage, Error> {
        let all = self.read(|shared, _| shared.adapter.namespaces()).await?;
        let all = all.into_iter().collect();
        Ok(usage_of(namespace, &all, &self.inner.shared.quotas.read()))
    }

    /// The same of all namespaces that hold anything, in order of their names; the core's own too.
    ///
    /// # Errors
    /// Those of [`Self::get`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceUsage>, Error> {
        let all = self.read(|shared, _| shared.adapter.namespaces()).await?;
        let all = all.into_iter().collect();
        let quotas = self.inner.shared.quotas.read();
        let used = BTreeMap::keys(&all);
        Ok(used
            .map(|namespace| usage_of(namespace, &all, &quotas))
            .collect())
    }

    /// Sets what a namespace may hold. It may be less than what it holds: then only growth is refused. What holds
    /// for its owner goes on to hold; where it has the owner's name, that is what is set. Answers as
    /// [`Self::usage`].
    ///
    /// # Errors
    /// Those of [`Self::apply`] and [`Self::get`].
    ///
    /// # Cancel safety
    /// The write goes on.
    pub async fn set_quota(
        &self,
        namespace: &Namespace,
        own: OwnQuota,
        deadline: Instant,
    ) -> Result<NamespaceUsage, Error> {
        let key = key_of(namespace);
        let core = Namespace::parse(CORE_NAMESPACE)?;
        if own == OwnQuota::default() {
            self.delete(&core, key, None, deadline).await?;
        } else {
            let text = serde_json::to_vec(&own).expect("two numbers are JSON");
            self.set(&core, key, text.into(), None, deadline).await?;
        }
        self.usage(namespace).await
    }

    /// Removes all that a namespace holds, some keys at a time: who watches hears of each. Not one
    /// transaction; when it fails in between, the rest is there, and it can be repeated. Returns how
    /// many keys were removed.
    ///
    /// # Errors
    /// Those of [`Self::apply`] and [`Self::get`].
    ///
    /// # Cancel safety
    /// What was removed is.
    pub async fn drop_namespace(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<u64, Error> {
        let mut removed = 0;
        loop {
            let query = Query {
                page_size: u32::try_from(MAX_PAGE_SIZE).unwrap_or(u32::MAX),
                ..Query::all(namespace.clone())
            };
            let page = self.list_keys(query).await?;
            // All are queued at once, so that they share transactions.
            let writes: Vec<_> = page
                .items
                .chunks(MAX_OPS)
                .map(|keys| {
                    let delete = |key: &super::Key| Op::Delete { key: key.clone() };
                    let apply = Apply {
                        namespace: namespace.clone(),
                        checks: Vec::new(),
                        ops: keys.iter().map(delete).collect(),
                        after_commit: None,
                        after_commit_bytes: 0,
                    };
                    self.apply(apply, deadline)
                })
                .collect();
            for write in writes {
                let applied = write.await?;
                removed += applied.existed.iter().filter(|existed| **existed).count() as u64;
            }
            if page.next_page_token.is_empty() {
                return Ok(removed);
            }
        }
    }

    /// Where a backup goes for which nothing else is said: `backups/` beside the database.
    #[must_use]
    pub fn default_backup_path(&self, now: SystemTime, extension: &str) -> PathBuf {
        let database = Path::new(&self.inner.info.location);
        let directory = database.parent().unwrap_or(Path::new(""));
        let stem = database.file_stem().unwrap_or_default().to_string_lossy();
        let time = jiff::Timestamp::try_from(now).unwrap_or_default();
        let time = time.strftime("%Y%m%dT%H%M%S%3fZ");
        let path = directory
            .join("backups")
            .join(format!("{stem}-{time}.{extension}"));
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Writes a copy of one snapshot, checks it, and writes its digest beside it. Writes go on
    /// meanwhile. Waits for another backup or check to end.
    ///
    /// # Errors
    /// [`Error::FileExists`], [`Error::Unsupported`], [`Error::LogTooLong`], [`Error::BadCopy`],
    /// [`Error::DiskLow`], [`Error::Failed`], [`Error::Deadline`], [`Error::ShuttingDown`]; no file is
    /// left.
    ///
    /// # Cancel safety
    /// The backup goes on.
    pub async fn backup(&self, path: PathBuf, deadline: Instant) -> Result<Backup, Error> {
        self.read_long(deadline, move |shared| {
            let revision = shared.adapter.backup(&path)?;
            digested(path, revision)
        })
        .await
    }

    /// As [`Self::backup`], but what is kept at `path` is what `wrap` makes of the copy: it is given the
    /// copy, its revision, and the name of the file to make. The copy is gone afterwards. Both are made in
    /// the directory `<path>.tmp`, which is only left behind by a core that was killed.
    ///
    /// # Errors
    /// Those of [`Self::backup`]; what `wrap` gives is an [`Error::Failed`] or [`Error::DiskLow`], and its
    /// `InvalidData` an [`Error::Unfit`].
    ///
    /// # Cancel safety
    /// The backup goes on.
    pub async fn backup_wrapped(
        &self,
        path: PathBuf,
        deadline: Instant,
        wrap: impl FnOnce(&Path, Revision, &Path) -> io::Result<()> + Send + 'static,
    ) -> Result<Backup, Error> {
        self.read_long(deadline, move |shared| {
            for path in [path.clone(), digest_path(&path)] {
                if path.symlink_metadata().is_ok() {
                    return Err(CopyFault::Exists { path });
                }
            }
            let workshop = Workshop::open(&path)?;
            let (copy, whole) = (workshop.0.join("copy.db"), workshop.0.join("whole"));
            let revision = shared.adapter.backup(&copy)?;
            wrap(&copy, revision, &whole).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => CopyFault::Unfit(error.to_string()),
                _ => failed(error),
            })?;
            rename_new(&whole, &path).map_err(|error| not_new(&path, error))?;
            drop(workshop);
            digested(path, revision)
        })
        .await
    }

    /// Reads all there is and says what is wrong with it, at most 100 findings. Writes go on
    /// meanwhile. Waits for another backup or check to end.
    ///
    /// # Errors
    /// [`Error::LogTooLong`], [`Error::Failed`], [`Error::Deadline`], [`Error::ShuttingDown`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn check(&self, deadline: Instant) -> Result<Vec<String>, Error> {
        self.read_long(deadline, |shared| shared.adapter.check())
            .await
    }

    async fn read_long<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce(&Shared) -> Result<T, CopyFault> + Send + 'static,
    ) -> Result<T, Error> {
        let late = |_| Error::Deadline {
            outcome: Outcome::Unknown,
        };
        let permit = timeout_at(
            deadline,
            Arc::clone(&self.inner.long_reader).acquire_owned(),
        )
        .await
        .map_err(late)?
        .map_err(|_| Error::ShuttingDown)?;
        let shared = Arc::clone(&self.inner.shared);
        #[expect(
            clippy::disallowed_methods,
            reason = "engines block; this is where they may"
        )]
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job(&shared)
        });
        match timeout_at(deadline, reading).await.map_err(late)? {
            Ok(result) => result.map_err(|fault| self.copy_error(fault)),
            Err(panic) => Err(Error::Failed {
                outcome: Outcome::NotApplied,
                source: Arc::new(panic),
            }),
        }
    }

    fn copy_error(&self, fault: CopyFault) -> Error {
        match fault {
            CopyFault::Unsupported => Error::Unsupported {
                adapter: self.inner.info.name,
            },
            CopyFault::LogTooLong { limit_bytes } => Error::LogTooLong { limit_bytes },
            CopyFault::Exists { path } => Error::FileExists { path },
            CopyFault::BadCopy(finding) => Error::BadCopy { finding },
            CopyFault::Unfit(why) => Error::Unfit { why },
            CopyFault::Failed(fault) => fault.into_error(Outcome::NotApplied),
        }
    }
}

/// The directory in which something is made. Dropping it removes it.
struct Workshop(PathBuf);

impl Workshop {
    /// For what is to lie at `path`.
    fn open(path: &Path) -> Result<Self, CopyFault> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let directory = PathBuf::from(name);
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).recursive(true);
        if let Some(parent) = path.parent() {
            builder.create(parent).map_err(failed)?;
        }
        // One that is there may be anybody's.
        let made = builder.recursive(false).create(&directory);
        made.map_err(|error| not_new(&directory, error))?;
        Ok(Self(directory))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "half a copy is left");
        }
    }
}

fn not_new(path: &Path, error: io::Error) -> CopyFault {
    match error.kind() {
        io::ErrorKind::AlreadyExists => CopyFault::Exists {
            path: path.to_owned(),
        },
        _ => failed(error),
    }
}

fn failed(error: io::Error) -> CopyFault {
    CopyFault::Failed(error.into())
}

/// The quotas that are kept in the store, over the defaults.
pub(super) fn load_quotas(adapter: &dyn StorageAdapter, config: &Config) -> Result<Quotas, Fault> {
    let default = Quota {
        keys: config.namespace_keys,
        bytes: config.namespace_bytes,
    };
    let mut quotas = Quotas::new(default, config.store_bytes);
    let namespace = Namespace::parse(CORE_NAMESPACE).expect("a good namespace");
    let mut start: Option<String> = None;
    loop {
        let stretch = Stretch {
            namespace: namespace.clone(),
            range: KeyRange::new("", start.as_deref(), Direction::Ascending),
            direction: Direction::Ascending,
            limit: MAX_PAGE_SIZE,
            max_bytes: MAX_PAGE_BYTES,
            now: std::time::SystemTime::UNIX_EPOCH,
        };
        let found = adapter.scan(&stretch, Instant::now() + READ_TIMEOUT)?;
        for entry in &found.items {
            quotas.learn(&entry.key, Some(entry.value.as_str()));
        }
        match found.items.last() {
            Some(last) if found.more => start = Some(last.key.to_string()),
            _ => return Ok(quotas),
        }
    }
}

/// The size and SHA-256 of a file.
pub(crate) fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hash.update(&piece[..read]);
    }
    let hex = hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        write!(hex, "{byte:02x}").expect("a String takes everything");
        hex
    });
    Ok((bytes, hex))
}

/// Where the digest of a file stands: in the form that `sha256sum --check` reads.
pub(crate) fn digest_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// What is at `path` with its digest, or nothing: without one it would look like one that was not finished.
fn digested(path: PathBuf, revision: Revision) -> Result<Backup, CopyFault> {
    let (bytes, sha256) = write_digest(&path).inspect_err(|_| {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a copy without its digest is left");
        }
    })?;
    Ok(Backup {
        path,
        bytes,
        sha256,
        revision,
    })
}

/// All of it, or no file.
fn write_digest(path: &Path) -> Result<(u64, String), CopyFault> {
    let (bytes, sha256) = digest(path).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let digest_path = digest_path(path);
    // One that is there may be anybody's.
    let file = std::fs::File::create_new(&digest_path);
    let mut file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CopyFault::Exists {
            path: digest_path.clone(),
        },
        _ => failed(error),
    })?;
    let written = writeln!(file, "{sha256}  {name}").and_then(|()| file.sync_all());
    written.map_err(|error| {
        drop(std::fs::remove_file(&digest_path));
        failed(error)
    })?;
    Ok((bytes, sha256))
}
