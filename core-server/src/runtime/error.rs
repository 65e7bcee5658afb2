//! Why a core does not start.

use std::io;
use std::path::PathBuf;

use crate::storage;
use crate::transport;
use crate::types::BadPluginName;

/// Why the runtime cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage cannot be opened.
    #[error("cannot open the storage")]
    Storage(#[source] storage::OpenError),
    /// The data directory is another core's, or cannot be had.
    #[error(
        "the data directory {} cannot be used; stop whoever uses it, or give this core a data_dir of its own",
        path.display()
    )]
    DataDirectory {
        /// Which.
        path: PathBuf,
        /// Who uses it, or what is wrong.
        source: io::Error,
    },
    /// Half a home.
    #[error(
        "a restore into {} was interrupted and is not through: start `core-server` there once, or have this program \
         call core_server::home::finish before it starts its core",
        path.display()
    )]
    RestoreUnfinished {
        /// The data directory that it goes to.
        path: PathBuf,
    },
    /// It cannot be seen whether there is half a home, or told that there is another one.
    #[error("what a restore has left cannot be dealt with")]
    Home(#[from] crate::home::Error),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] transport::Error),
    /// The core's certificate cannot be shown.
    #[error(transparent)]
    Tls(#[from] transport::TlsError),
    /// There is no certificate authority.
    #[error("the certificate authority cannot be used")]
    Authority(#[from] crate::security::authority::Error),
    /// What is kept of credentials cannot be read.
    #[error("what is kept of credentials in {} cannot be read", path.display())]
    Credentials {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What operators have granted cannot be read.
    #[error(
        "what operators have granted, grants.json in {}, cannot be read; put it right, or take it away: then \
         plugins have what manifests and configuration grant",
        path.display()
    )]
    Grants {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no threads.
    #[error("threads cannot be started")]
    Threads(#[source] io::Error),
    /// An embedded plugin cannot be one.
    #[error("a plugin of this program cannot be embedded")]
    EmbeddedName(#[from] BadPluginName),
}
