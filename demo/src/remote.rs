//! A plugin that the core does not start: it comes over TCP, with a token that says who it is.
//!
//! Its program is that of the Python example, which also lives in the home as a child of the core. A
//! plugin's services and topics begin with its name, so the remote one runs from a copy that bears
//! another name. It is a child of ours: it is killed if it is dropped before it has ended.

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use toml::{Table, Value};

use crate::PATIENCE;
use crate::prepare::Home;
use crate::python::Python;

/// The remote plugin's name.
pub(crate) const NAME: &str = "sunlight_remote";
/// The name that its program was written with.
const ORIGINAL: &str = "sunlight";
/// Where its token lies, in the directory of the home.
const TOKEN: &str = "remote.token";
const TOKEN_BYTES: usize = 32;

/// Writes its program and a fresh token into `directory`; gives its table for `core.toml`.
pub(crate) fn install(directory: &Path, original: &Path) -> Result<Table> {
    let source = fs::read_to_string(original).with_context(|| original.display().to_string())?;
    fs::write(program(directory), renamed(&source)?).context("cannot write the remote plugin")?;
    let file = directory.join(TOKEN);
    // Closed to others before there is anything in it.
    let place = File::create(&file).context("cannot make a file for the token")?;
    place
        .set_permissions(Permissions::from_mode(0o600))
        .context("cannot protect the token")?;
    fs::write(&file, token()?).context("cannot write the token")?;
    let run = Table::from_iter([("kind".to_owned(), Value::from("remote"))]);
    Ok(Table::from_iter([
        ("run".to_owned(), Value::Table(run)),
        ("token_file".to_owned(), Value::from(TOKEN)),
    ]))
}

fn program(directory: &Path) -> PathBuf {
    directory.join(format!("{NAME}.py"))
}

/// The program with the names of its service and its topic under the other plugin's name.
fn renamed(source: &str) -> Result<String> {
    let (old, new) = (format!("\"{ORIGINAL}."), format!("\"{NAME}."));
    ensure!(
        source.contains(&old),
        "the program names nothing that begins with {old}"
    );
    Ok(source.replace(&old, &new))
}

fn token() -> Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("no random bytes for a token")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The running plugin.
#[derive(Debug)]
pub(crate) struct Remote {
    child: Child,
    pid: Pid,
}

impl Remote {
    /// Starts it against the core at `address`. What it prints goes to the log of the home.
    pub(crate) fn start(home: &Home, python: &Python, address: &str) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(home.log())
            .context("cannot open the core's log")?;
        let child = Command::new(&python.interpreter)
            .arg(program(&home.directory))
            .current_dir(&home.directory)
            .env_remove("CORE_TOKEN")
            .env("CORE_ADDR", address)
            .env("CORE_PLUGIN", NAME)
            .env("CORE_TOKEN_FILE", home.directory.join(TOKEN))
            .env("PYTHONPATH", &python.stubs)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the core's log")?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the remote plugin")?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        Ok(Self {
            child,
            pid: pid.context("the remote plugin has no process id")?,
        })
    }

    /// Waits for its end, which is not to be expected.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.context("cannot wait for it")
    }

    /// Asks it to end and waits for it.
    pub(crate) async fn stopped(&mut self) -> Result<ExitStatus> {
        // It may have ended just now: then there is nobody to ask.
        kill_process(self.pid, Signal::TERM).ok();
        let ended = timeout(PATIENCE, self.ended()).await;
        ended.context("the remote plugin does not end")?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_change_and_functions_do_not() {
        let source = "name=\"sunlight.now\"\ndef sunlight(): sunlight.x\n";
        let expected = "name=\"sunlight_remote.now\"\ndef sunlight(): sunlight.x\n";
        assert_eq!(renamed(source).expect("it has a name"), expected);
        assert!(renamed("def sunlight(): pass").is_err());
    }

    #[test]
    fn the_token_is_long_fresh_and_for_its_owner_only() {
        let home = tempfile::tempdir().expect("a directory");
        let original = home.path().join("plugin.py");
        fs::write(&original, "\"sunlight.now\"").expect("it is written");
        let file = home.path().join(TOKEN);
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let table = install(home.path(), &original).expect("it is installed");
            assert_eq!(table["run"]["kind"].as_str(), Some("remote"));
            let mode = file.metadata().expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            tokens.push(fs::read_to_string(&file).expect("a token"));
        }
        assert_eq!(tokens[0].len(), 2 * TOKEN_BYTES);
        assert_ne!(tokens[0], tokens[1]);
    }
}
