//! `core-server verify` and `core-server restore`: databases and whole homes that no core needs to run for.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use core_server::config::{self, Config, Flags};
use core_server::error::chain;
use core_server::home::{self, Places, Restored};
use core_server::security::audit;
use core_server::storage::{OpenError, offline};

use crate::cli::{ExitCode, tell};

/// Says what a database or a backup is, on standard output, and what is wrong with it, on standard error.
pub(crate) fn verify(path: &Path) -> ExitCode {
    if home::is_home(path) {
        return verify_home(path);
    }
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
    if let Some(finding) = &report.miscounted {
        tell(&format!(
            "{}: {finding}; a restore counts anew",
            path.display()
        ));
    }
    let is_whole = report.findings.is_empty() && report.miscounted.is_none();
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
    if is_whole {
        ExitCode::Clean
    } else {
        ExitCode::Internal
    }
}

fn verify_home(path: &Path) -> ExitCode {
    match home::verify(path) {
        Ok(report) => {
            for (name, bytes) in &report.parts {
                say(&format!("{name}: {bytes} bytes"));
            }
            say(&format!(
                "{}: a whole home, made at {} by core {}, revision {}; every sum is right",
                path.display(),
                report.about.made_at,
                report.about.core,
                report.about.revision
            ));
            ExitCode::Clean
        }
        Err(error) => {
            tell(&chain(&error));
            ExitCode::Internal
        }
    }
}

/// Puts a backup in place.
pub(crate) fn restore(
    flags: &Flags,
    cwd: &Path,
    backup: &Path,
    keep_configuration: bool,
) -> Result<ExitCode, ExitCode> {
    if home::is_home(backup) {
        return restore_home(flags, cwd, backup, keep_configuration);
    }
    let config = load(flags, cwd)?;
    note_restore(backup, &config.data_dir);
    Ok(restore_database(backup, &config.storage.path))
}

/// Before it is done, like everything that is allowed.
fn note_restore(backup: &Path, data_dir: &Path) {
    let record = audit::Record {
        action: "restore".to_owned(),
        decision: audit::decision::ALLOWED,
        operator: format!("uid {}", rustix::process::geteuid().as_raw()),
        resource: backup.display().to_string(),
        rule: "operator".to_owned(),
        ..audit::Record::default()
    };
    if let Err(error) = audit::note_offline(&data_dir.join("security"), &record) {
        tell(&format!("the audit log cannot be written: {error}"));
    }
}

fn restore_database(backup: &Path, database: &Path) -> ExitCode {
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

/// The home goes where its own configuration says, read as if it lay in its place already.
fn restore_home(
    flags: &Flags,
    cwd: &Path,
    backup: &Path,
    keep_configuration: bool,
) -> Result<ExitCode, ExitCode> {
    let failed = |error: home::Error| {
        tell(&chain(&error));
        ExitCode::Internal
    };
    // Of two at once one would be forgotten.
    finish_restore(flags, cwd)?;
    let report = home::inspect(backup).map_err(failed)?;
    let places = match report.configuration {
        Some(text) if !keep_configuration => {
            let path = config::core_file_path(flags, cwd);
            let trial = Trial::write(&path, &text)?;
            let flags = Flags {
                config: Some(trial.0.display().to_string()),
                ..flags.clone()
            };
            let config = load(&flags, cwd).inspect_err(|_| {
                tell(
                    "that is the configuration in the backup; --keep-configuration restores all else",
                );
            })?;
            Places {
                configuration: Some(path),
                ..Places::of(&config)
            }
        }
        _ => Places {
            configuration: None,
            ..Places::of(&load(flags, cwd)?)
        },
    };
    let data_dir = &places.data_dir;
    note_restore(backup, data_dir);
    let restored = home::restore(backup, &places, SystemTime::now()).map_err(|error| {
        // Where it cannot go is often a place of the machine that it was made on.
        let is_a_place = matches!(
            &error,
            home::Error::File { .. } | home::Error::Database(OpenError::Io { .. })
        );
        let code = failed(error);
        if is_a_place && places.configuration.is_some() {
            tell(&format!(
                "the configuration in the backup puts its home in {}; --keep-configuration leaves core.toml as \
                 it is, and restores all else where that says",
                places.data_dir.display()
            ));
        }
        code
    })?;
    say(&told(&backup.display().to_string(), &places, &restored));
    Ok(ExitCode::Clean)
}

/// Goes on with the restore of a home that was interrupted, if there is one.
pub(crate) fn finish_restore(flags: &Flags, cwd: &Path) -> Result<(), ExitCode> {
    // What is wrong with the configuration is told by who loads all of it.
    let in_force = || config::load_core(flags, config::process_environment(), cwd).ok();
    let failed = |error: home::Error| {
        tell(&format!("an interrupted restore: {}", chain(&error)));
        ExitCode::Internal
    };
    let done = |restored: &Restored| {
        if let Some(config) = in_force() {
            let places = Places::of(&config);
            tell(&told("an interrupted restore", &places, restored));
        }
    };
    // First the one that may bring another configuration, and with it another data directory.
    let data_dir = in_force().map(|config| config.data_dir);
    let path = config::core_file_path(flags, cwd);
    let marked = home::finish_marked(&path, data_dir.as_deref()).map_err(failed)?;
    if let Some((_, restored)) = &marked {
        done(restored);
    }
    let Some(config) = in_force() else {
        return Ok(());
    };
    if let Some(restored) = home::finish(&config.data_dir).map_err(failed)? {
        done(&restored);
    }
    Ok(())
}

fn told(what: &str, places: &Places, restored: &Restored) -> String {
    let mut text = format!("{what} is in place: {} files", restored.files);
    if let Some(revision) = restored.revision {
        let database = places.database.display();
        text.push_str(&format!(", and {database} at revision {revision}"));
    }
    let kept = [&restored.replaced, &restored.replaced_database];
    let kept: Vec<_> = kept
        .into_iter()
        .flatten()
        .map(|path| path.display().to_string())
        .collect();
    if !kept.is_empty() {
        text.push_str(&format!(
            "; what was there is kept as {}",
            kept.join(" and ")
        ));
    }
    text
}

fn load(flags: &Flags, cwd: &Path) -> Result<Config, ExitCode> {
    config::load_core(flags, config::process_environment(), cwd).map_err(|error| {
        tell(&error.to_string());
        ExitCode::BadConfiguration
    })
}

/// A configuration beside its place, so that its paths mean what they will mean there. Removed in the end.
struct Trial(PathBuf);

impl Trial {
    fn write(place: &Path, text: &[u8]) -> Result<Self, ExitCode> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut name = place.as_os_str().to_owned();
        name.push(".restoring");
        let path = PathBuf::from(name);
        let written = remove(&path).and_then(|()| {
            let mut options = std::fs::File::options();
            let file = options.write(true).create_new(true).mode(0o600).open(&path);
            file?.write_all(text)
        });
        let trial = Self(path);
        written.map(|()| trial).map_err(|error| {
            tell(&format!("cannot write beside {}: {error}", place.display()));
            ExitCode::Internal
        })
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tell(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn say(text: &str) {
    // Nobody reads it: then nobody misses it.
    let _unread = writeln!(io::stdout().lock(), "{text}");
}
