//! Laying out the directory of the home:
//!
//! ```text
//! core.toml  core.log  remote.token, sunlight_remote.py (the scene's remote plugin)
//! data/  run/ (sockets)  plugins/NAME/plugin.toml
//! ```
//!
//! The manifests are those of `examples/`, with the command pointing to what was built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use crate::checkout::Checkout;
use crate::python::Python;
use crate::remote;

/// The Rust plugins of the home: directories with `Cargo.toml` and `plugin.toml`.
const RUST_PLUGINS: &str = "examples/home";
/// The plugin from plain generated stubs.
const PYTHON_PLUGIN: &str = "examples/raw/python";

/// Longest path of a unix socket, its final NUL included; beyond it the sockets go elsewhere.
const MAX_SOCKET_PATH_BYTES: usize = 108;

/// Configuration of the plugins in a home where only what a script does happens: nobody moves, no
/// lamp goes off by itself while a busy machine takes its time, and any use of memory deserves a
/// warning.
const STILL: &str = "
devices.config.motion_every_ms = 0
automation.config.lamp_off_after_seconds = 86400
host_sensors.config.thresholds.memory_percent = 0.0
";

/// A home that is ready to be started.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) directory: PathBuf,
    /// Holds the sockets.
    pub(crate) runtime_dir: PathBuf,
    /// The plugins that the core starts, in order of name.
    pub(crate) plugins: Vec<String>,
}

/// Differences between homes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residents {
    /// Things happen by themselves.
    Lively,
    /// Only what a script does happens; with Python, a remote plugin may come.
    Still,
}

impl Home {
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("core.toml")
    }

    /// Everything that the core and, through it, its plugins write.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("core.log")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(crate) fn operator_socket(&self) -> PathBuf {
        self.runtime_dir.join("operator.sock")
    }
}

/// Lays out a home in `directory`. Data that is there already stays.
pub(crate) fn home(
    checkout: &Checkout,
    directory: PathBuf,
    python: Option<&Python>,
    residents: Residents,
) -> Result<Home> {
    let plugins_dir = directory.join("plugins");
    // Plugins that are no longer part of the home must not come back from an earlier time.
    if plugins_dir.exists() {
        fs::remove_dir_all(&plugins_dir).context("cannot clear the plugins directory")?;
    }
    let mut plugins = Vec::new();
    for plugin in rust_plugins(checkout)? {
        let binary = checkout.binary(&plugin.binary)?;
        let command = Table::from_iter([("command".to_owned(), text(&binary))]);
        plugins.push(install(&plugin.manifest, &plugins_dir, command)?);
    }
    if let Some(python) = python {
        let source = checkout.root.join(PYTHON_PLUGIN);
        let environment = Table::from_iter([("PYTHONPATH".to_owned(), text(&python.stubs))]);
        let command = Table::from_iter([
            ("command".to_owned(), text(&python.interpreter)),
            (
                "args".to_owned(),
                Value::Array(vec![text(&source.join("plugin.py"))]),
            ),
            ("env".to_owned(), Value::Table(environment)),
        ]);
        plugins.push(install(&source.join("plugin.toml"), &plugins_dir, command)?);
    }
    plugins.sort();
    let runtime_dir = runtime_dir(&directory);
    let mut config = config(&runtime_dir, residents);
    if python.is_some() && residents == Residents::Still {
        let program = checkout.root.join(PYTHON_PLUGIN).join("plugin.py");
        let settings = remote::install(&directory, &program)?;
        let plugins = config.get_mut("plugins").and_then(Value::as_table_mut);
        plugins
            .context("a still home configures plugins")?
            .insert(remote::NAME.to_owned(), Value::Table(settings));
    }
    fs::write(directory.join("core.toml"), config.to_string()).context("cannot write core.toml")?;
    Ok(Home {
        directory,
        runtime_dir,
        plugins,
    })
}

/// Copies a manifest with another `[run]`; gives the plugin's name.
fn install(manifest: &Path, plugins_dir: &Path, run: Table) -> Result<String> {
    let place = || manifest.display().to_string();
    let original = fs::read_to_string(manifest).with_context(place)?;
    let (name, text) = with_command(&original, run).with_context(place)?;
    let directory = plugins_dir.join(&name);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    fs::write(directory.join("plugin.toml"), text).with_context(place)?;
    Ok(name)
}

/// The manifest with the keys of `run` in place of its own command and arguments, and the plugin's
/// name.
fn with_command(manifest: &str, run: Table) -> Result<(String, String)> {
    let mut manifest: Table = manifest.parse()?;
    let name = manifest
        .get("name")
        .and_then(Value::as_str)
        .context("has no name")?
        .to_owned();
    let table = manifest
        .entry("run")
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()
        .context("run is not a table")?;
    table.remove("args");
    table.extend(run);
    Ok((name, manifest.to_string()))
}

/// The sockets stand beside the data, unless that path is too long for a socket.
fn runtime_dir(directory: &Path) -> PathBuf {
    let beside = directory.join("run");
    if beside.join("operator.sock").as_os_str().len() < MAX_SOCKET_PATH_BYTES {
        return beside;
    }
    std::env::temp_dir().join(format!("core-demo-{}", std::process::id()))
}

fn config(runtime_dir: &Path, residents: Residents) -> Table {
    let listen = Table::from_iter([
        ("runtime_dir".to_owned(), text(runtime_dir)),
        // A free port: shows that plugins from elsewhere could join.
        (
            "tcp".to_owned(),
            Value::Array(vec![Value::from("127.0.0.1:0")]),
        ),
    ]);
    let mut config = Table::from_iter([
        ("plugins_dir".to_owned(), Value::from("plugins")),
        ("data_dir".to_owned(), Value::from("data")),
        ("listen".to_owned(), Value::Table(listen)),
    ]);
    if residents == Residents::Still {
        let plugins = STILL.parse::<Table>().expect("it is valid TOML");
        config.insert("plugins".to_owned(), Value::Table(plugins));
    }
    config
}

fn text(path: &Path) -> Value {
    Value::from(path.to_string_lossy().into_owned())
}

/// A plugin that cargo builds.
struct RustPlugin {
    binary: String,
    manifest: PathBuf,
}

fn rust_plugins(checkout: &Checkout) -> Result<Vec<RustPlugin>> {
    let directory = checkout.root.join(RUST_PLUGINS);
    let mut plugins = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let place = entry?.path();
        let (cargo, manifest) = (place.join("Cargo.toml"), place.join("plugin.toml"));
        if cargo.is_file() && manifest.is_file() {
            let text = fs::read_to_string(&cargo).with_context(|| cargo.display().to_string())?;
            let binary = binary(&text).with_context(|| cargo.display().to_string())?;
            plugins.push(RustPlugin { binary, manifest });
        }
    }
    plugins.sort_by(|one, other| one.binary.cmp(&other.binary));
    Ok(plugins)
}

/// Name of the binary that a `Cargo.toml` makes.
fn binary(cargo: &str) -> Result<String> {
    let cargo: Table = cargo.parse()?;
    let name = |table: &Value| table.get("name").and_then(Value::as_str).map(str::to_owned);
    let package = cargo
        .get("package")
        .and_then(name)
        .context("has no package name")?;
    let binaries = cargo.get("bin").and_then(Value::as_array);
    let binary = binaries
        .and_then(|binaries| binaries.first())
        .and_then(name);
    Ok(binary.unwrap_or(package))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_keeps_all_but_its_command() {
        let manifest = "name = \"lamp\"\n[run]\ncommand = \"./run.sh\"\nargs = [\"x\"]\n\
                        [run.env]\nA = \"1\"\n[config]\nrooms = [\"hall\"]\n";
        let run = Table::from_iter([("command".to_owned(), Value::from("/bin/lamp"))]);
        let (name, changed) = with_command(manifest, run).expect("a manifest");
        let changed: Table = changed.parse().expect("it is TOML");
        let expected = "name = \"lamp\"\n[run]\ncommand = \"/bin/lamp\"\n\
                        [run.env]\nA = \"1\"\n[config]\nrooms = [\"hall\"]\n";
        assert_eq!(name, "lamp");
        assert_eq!(changed, expected.parse::<Table>().expect("it is TOML"));
        assert!(with_command("[run]\n", Table::new()).is_err());
    }

    #[test]
    fn the_binary_is_named_like_the_package_unless_it_says_otherwise() {
        let package = "[package]\nname = \"lamp\"\n";
        assert_eq!(binary(package).expect("a name"), "lamp");
        let other = format!("{package}[[bin]]\nname = \"light\"\n");
        assert_eq!(binary(&other).expect("a name"), "light");
    }

    #[test]
    fn sockets_go_elsewhere_when_their_path_would_be_too_long() {
        let short = Path::new("/here");
        assert_eq!(runtime_dir(short), short.join("run"));
        let long = short.join("x".repeat(MAX_SOCKET_PATH_BYTES));
        assert!(!runtime_dir(&long).starts_with(&long));
    }

    #[test]
    fn nobody_moves_by_himself_in_a_still_home() {
        let config = config(Path::new("/run/x"), Residents::Still);
        let every = config["plugins"]["devices"]["config"]["motion_every_ms"].as_integer();
        assert_eq!(every, Some(0));
    }
}
