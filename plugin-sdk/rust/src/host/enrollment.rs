//! The certificate of a plugin on another machine: got once with a join string, renewed in time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use core_tls::{ClientTls, CredentialsDir, EnrollError, JoinString};
use tokio::sync::Notify;

use crate::error::{Code, Error, Result};

/// The clock may be set while a plugin waits: what is left is counted again after this.
const LONGEST_NAP: Duration = Duration::from_secs(3_600);
/// Between two tries to renew.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// Where the certificate is kept, and how it is got. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Enrollment {
    pub(crate) directory: CredentialsDir,
    pub(crate) invitation: Option<JoinString>,
    /// The core has refused the certificate: perhaps it has expired by the core's clock.
    refused: Arc<Notify>,
    /// The first certificate is there.
    joined: Arc<Notify>,
    /// Another one is.
    renewed: Arc<Notify>,
}

impl Enrollment {
    pub(crate) fn new(directory: CredentialsDir, invitation: Option<JoinString>) -> Self {
        Self {
            directory,
            invitation,
            refused: Arc::default(),
            joined: Arc::default(),
            renewed: Arc::default(),
        }
    }

    /// Completes when the certificate was renewed since this was last asked, or will be.
    pub(crate) async fn renewed(&self) {
        self.renewed.notified().await;
    }

    /// Joins, unless there is a certificate.
    pub(crate) async fn join_once(&self) -> Result<()> {
        if self.directory.holds_certificate() {
            return Ok(());
        }
        let Some(invitation) = &self.invitation else {
            return Err(Error::new(
                Code::Unauthenticated,
                "there is no certificate in CORE_CREDENTIALS_DIR: set CORE_JOIN to a join string, \
                 or fill it with `corectl join`",
            ));
        };
        let (enrolled, address) = core_tls::join(invitation).await.map_err(refusal)?;
        // The one that answered first.
        let mut addresses = vec![address];
        let others = invitation.addresses.iter();
        addresses.extend(
            others
                .filter(|other| **other != addresses[0])
                .cloned()
                .collect::<Vec<_>>(),
        );
        self.directory
            .write(&enrolled, &addresses)
            .map_err(|error| {
                Error::unavailable(format!(
                    "the certificate cannot be kept in CORE_CREDENTIALS_DIR: {error}"
                ))
            })?;
        tracing::info!(plugin = enrolled.plugin, "joined");
        self.joined.notify_one();
        Ok(())
    }

    /// The certificate was refused: another one is asked for at once.
    pub(crate) fn was_refused(&self) {
        self.refused.notify_one();
    }

    /// Renews the certificate for ever.
    pub(crate) async fn keep_renewed(self) {
        loop {
            let due = match self.directory.read() {
                Ok(stored) => stored.renew_in(SystemTime::now()),
                // Not joined yet.
                Err(_) => RENEW_AGAIN,
            };
            if !due.is_zero() {
                let nap = tokio::time::sleep(due.min(LONGEST_NAP));
                tokio::select! {
                    () = nap => continue,
                    () = self.joined.notified() => continue,
                    () = self.refused.notified() => {}
                }
            }
            match self.renew().await {
                Ok(()) => {
                    tracing::info!("the certificate was renewed");
                    self.renewed.notify_one();
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate was not renewed");
                    // Whoever is refused has reached the core: it may be asked again.
                    let refused = self.refused.notified();
                    drop(tokio::time::timeout(RENEW_AGAIN, refused).await);
                }
            }
        }
    }

    async fn renew(&self) -> Result<()> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Error::unavailable(format!("CORE_CREDENTIALS_DIR cannot be used: {error}"))
        };
        let directory = &self.directory;
        let stored = directory.read().map_err(|error| unreadable(&error))?;
        let key = directory.read_key().map_err(|error| unreadable(&error))?;
        let identity = (directory.certificate(), directory.key());
        let tls = ClientTls::from_files(&directory.ca(), Some((&identity.0, &identity.1)));
        let tls = tls.map_err(|error| unreadable(&error))?;
        let renewed = core_tls::renew(&stored.addresses, &tls, &key).await;
        let (enrolled, _) = renewed.map_err(refusal)?;
        directory
            .write(&enrolled, &stored.addresses)
            .map_err(|error| unreadable(&error))
    }
}

fn refusal(error: EnrollError) -> Error {
    match error {
        EnrollError::Refused(status) => Error::from_grpc(&status),
        EnrollError::Unreachable { .. } => Error::unavailable(error.to_string()),
        other => Error::new(Code::Internal, other.to_string()),
    }
}
