//! `core-server verify` and `core-server restore`: databases that no core needs to run for.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

use core_server::error::chain;
use core_server::storage::offline;

use crate::cli::{ExitCode, tell};

/// Says what a database is, on standard output, and what is wrong with it, on standard error.
pub(crate) fn verify(path: &Path) -> ExitCode {
    let report = match offline::verify(path) {
        Ok(report) => report,
        Err(error) => {
            tell(&chain(&error));
            return ExitCode::Internal;
        }
    };
    for finding in &report.findings {
        tell(&format!("{}: {finding}", path.display()));
    }
    let digest = match (report.has_digest, report.findings.is_empty()) {
        (true, true) => "; its SHA-256 is that of its .sha256 file",
        _ => "",
    };
    say(&format!(
        "{}: schema {}, revision {}, {} keys, {} bytes{digest}",
        path.display(),
        report.schema,
        report.revision,
        report.keys,
        report.bytes
    ));
    if report.findings.is_empty() {
        ExitCode::Clean
    } else {
        ExitCode::Internal
    }
}

/// Puts a backup in the place of a database.
pub(crate) fn restore(backup: &Path, database: &Path) -> ExitCode {
    match offline::restore(backup, database, SystemTime::now()) {
        Ok(restored) => {
            let kept = restored.replaced.map_or_else(String::new, |kept| {
                format!("; what was there is kept as {}", kept.display())
            });
            say(&format!(
                "{} is in the place of {}, at revision {}{kept}",
                backup.display(),
                database.display(),
                restored.revision
            ));
            ExitCode::Clean
        }
        Err(error) => {
            tell(&chain(&error));
            ExitCode::Internal
        }
    }
}

fn say(text: &str) {
    // Nobody reads it: then nobody misses it.
    let _unread = writeln!(io::stdout().lock(), "{text}");
}
