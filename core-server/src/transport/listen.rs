//! Binding sockets, and the refusals that protect them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

/// Longest path of a unix socket on Linux, its final NUL included.
const MAX_SOCKET_PATH_BYTES: usize = 108;

/// Why the core cannot listen. Each message says the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of the sockets cannot be made or read.
    #[error("cannot use {path} for sockets")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory of the sockets belongs to somebody else.
    #[error(
        "{path} belongs to uid {owner}, not to this user: set `listen.runtime_dir` to a directory of your own"
    )]
    ForeignDirectory {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Others may put sockets into the directory.
    #[error("{path} is writable by other users (mode {mode:o}): chmod 700 {path}")]
    WritableDirectory {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Longer than the system allows.
    #[error("{path} is too long for a unix socket ({} of at most {} bytes): set `listen.runtime_dir` to a shorter one", path.as_os_str().len(), MAX_SOCKET_PATH_BYTES - 1)]
    PathTooLong {
        /// Which.
        path: PathBuf,
    },
    /// Another core is there.
    #[error("another core listens on {path}: stop it, or set `listen.runtime_dir`")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The two unix sockets. Their files are removed when this is dropped.
#[derive(Debug)]
pub struct PluginsAndOperators {
    /// `core.sock`.
    pub plugins: UnixListener,
    /// `operator.sock`.
    pub operators: UnixListener,
    /// Removes the files.
    pub files: SocketFiles,
}

/// Paths of the two sockets; the files are removed on drop.
#[derive(Debug)]
pub struct SocketFiles {
    /// Path of `core.sock`.
    pub plugins: PathBuf,
    /// Path of `operator.sock`.
    pub operators: PathBuf,
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in [&self.plugins, &self.operators] {
            // Gone already is as good; anything else is found by the next start.
            let _gone = fs::remove_file(path);
        }
    }
}

/// Binds `core.sock` and `operator.sock` in `dir`, which is made with mode 0700 if it is absent. With
/// `other_operators` the operator socket itself is open to all users who can reach the directory:
/// the peer's user id decides then, as for everybody.
///
/// # Errors
/// [`Error`], each with the fix.
pub fn bind_unix(dir: &Path, other_operators: bool) -> Result<PluginsAndOperators, Error> {
    prepare_directory(dir)?;
    let (plugins_path, operators_path) = (dir.join("core.sock"), dir.join("operator.sock"));
    let plugins = bind_socket(&plugins_path, 0o600)?;
    let mode = if other_operators { 0o666 } else { 0o600 };
    let operators = bind_socket(&operators_path, mode)?;
    let files = SocketFiles {
        plugins: plugins_path,
        operators: operators_path,
    };
    Ok(PluginsAndOperators {
        plugins,
        operators,
        files,
    })
}

fn prepare_directory(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Directory {
        path: dir.to_owned(),
        source,
    };
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    created.map_err(failed)?;
    let metadata = fs::metadata(dir).map_err(failed)?;
    let owner = metadata.uid();
    if owner != rustix::process::geteuid().as_raw() {
        return Err(Error::ForeignDirectory {
            path: dir.to_owned(),
            owner,
        });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Error::WritableDirectory {
            path: dir.to_owned(),
            mode,
        });
    }
    Ok(())
}

fn bind_socket(path: &Path, mode: u32) -> Result<UnixListener, Error> {
    if path.as_os_str().len() >= MAX_SOCKET_PATH_BYTES {
        return Err(Error::PathTooLong {
            path: path.to_owned(),
        });
    }
    let failed = |source| Error::Bind {
        address: path.display().to_string(),
        source,
    };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(Error::InUse {
                path: path.to_owned(),
            });
        }
        // A file that nobody listens on is left over from a core that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// Binds a TCP address; port 0 takes a free one.
///
/// # Errors
/// [`Error::Bind`].
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| Error::Bind {
        address: address.to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        let run = dir.path().join("run");
        let first = bind_unix(&run, false).expect("binds");
        assert_eq!(
            fs::metadata(&run).expect("made").permissions().mode() & 0o777,
            0o700
        );
        assert!(matches!(bind_unix(&run, false), Err(Error::InUse { .. })));
        let PluginsAndOperators {
            plugins,
            operators,
            files,
        } = first;
        drop((plugins, operators));
        std::mem::forget(files);
        drop(bind_unix(&run, false).expect("the files of a killed core are replaced"));
        assert!(!run.join("core.sock").exists(), "removed in the end");
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        let error = bind_unix(dir.path(), false)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[tokio::test]
    async fn a_path_too_long_says_what_to_set() {
        let dir = tempfile::tempdir().expect("directory");
        let long = dir.path().join("x".repeat(120));
        let error = bind_unix(&long, false).expect_err("refused").to_string();
        assert!(error.contains("listen.runtime_dir"), "{error}");
    }
}
