//! The virtual environment of the Python plugin and its generated stubs, under the demo's directory.
//!
//! Made once and again whenever the requirements or the contract change. A machine without Python,
//! or without the packages, has a home without that plugin, and is told why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::checkout::Checkout;

const REQUIREMENTS: &str = "examples/raw/python/requirements.txt";

/// Names the interpreter, where it is not `python3`.
const PYTHON_VARIABLE: &str = "PYTHON";

/// What the Python plugin runs with.
#[derive(Debug)]
pub(crate) struct Python {
    pub(crate) interpreter: PathBuf,
    /// Directory of the generated stubs.
    pub(crate) stubs: PathBuf,
}

/// Makes environment and stubs in `directory`, unless they are there. Errors say what is missing.
pub(crate) fn prepare(checkout: &Checkout, directory: &Path) -> Result<Python> {
    let python = Python {
        interpreter: directory.join("venv/bin/python"),
        stubs: directory.join("stubs"),
    };
    let made_from = inputs(checkout)?;
    let marker = directory.join("made-from");
    if python.interpreter.exists() && fs::read(&marker).is_ok_and(|made| made == made_from) {
        return Ok(python);
    }
    println!("preparing Python: a virtual environment and stubs from proto/ ...");
    if directory.exists() {
        fs::remove_dir_all(directory).context("cannot clear the virtual environment")?;
    }
    fs::create_dir_all(&python.stubs).context("cannot make a directory for the stubs")?;
    let system = std::env::var_os(PYTHON_VARIABLE).unwrap_or_else(|| "python3".into());
    quiet(
        Command::new(system)
            .args(["-m", "venv"])
            .arg(directory.join("venv")),
    )
    .context("no virtual environment can be made (python3 with its venv module is needed)")?;
    quiet(
        Command::new(&python.interpreter)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .arg("--requirement")
            .arg(checkout.root.join(REQUIREMENTS)),
    )
    .with_context(|| format!("pip cannot install {REQUIREMENTS}"))?;
    let proto = checkout.root.join("proto");
    quiet(
        Command::new(&python.interpreter)
            .args(["-m", "grpc_tools.protoc", "-I"])
            .arg(&proto)
            .arg(flag("--python_out=", &python.stubs))
            .arg(flag("--grpc_python_out=", &python.stubs))
            .args(checkout.contract()?),
    )
    .context("the stubs cannot be generated")?;
    fs::write(&marker, made_from).context("cannot finish the virtual environment")?;
    Ok(python)
}

fn flag(name: &str, path: &Path) -> std::ffi::OsString {
    let mut flag = std::ffi::OsString::from(name);
    flag.push(path);
    flag
}

/// Everything that environment and stubs are made from.
fn inputs(checkout: &Checkout) -> Result<Vec<u8>> {
    let mut inputs = Vec::new();
    for path in [vec![checkout.root.join(REQUIREMENTS)], checkout.contract()?].concat() {
        inputs.extend(path.to_string_lossy().bytes());
        inputs.extend(fs::read(&path).with_context(|| path.display().to_string())?);
    }
    Ok(inputs)
}

/// Runs a command; its output is shown only when it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = said.trim().lines().collect();
        bail!("{}", lines[lines.len().saturating_sub(5)..].join("\n"));
    }
    Ok(())
}
