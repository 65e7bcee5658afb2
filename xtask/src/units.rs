//! The units of `deploy/systemd/`, read by systemd itself where it is installed.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::steps::Outcome;
use crate::workspace::Workspace;

const UNITS: &str = "deploy/systemd";
/// Where the units expect the binaries.
const INSTALLED: &str = "/usr/local/bin/";

/// Has all units verified. Their programs are those that cargo has built: they must exist.
pub(crate) fn verify(workspace: &Workspace) -> Result<Outcome> {
    let mut version = Command::new("systemd-analyze");
    version.arg("--version").stdin(Stdio::null());
    if !version.output().is_ok_and(|said| said.status.success()) {
        let reason = "systemd-analyze is not installed";
        println!("SKIP: {reason}");
        return Ok(Outcome::Skipped(reason.to_owned()));
    }
    let copies = workspace.target.join("units");
    fs::create_dir_all(&copies).context("cannot make a directory for units")?;
    let built = format!("{}/", workspace.target.join("debug").display());
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).stdin(Stdio::null());
    let mut units = 0;
    for entry in fs::read_dir(workspace.root.join(UNITS)).context(UNITS)? {
        let path = entry?.path();
        let unit = path
            .extension()
            .is_some_and(|end| end == "service" || end == "timer");
        let (true, Some(name)) = (unit, path.file_name()) else {
            continue;
        };
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let copy = copies.join(name);
        fs::write(&copy, text.replace(INSTALLED, &built)).context("cannot copy a unit")?;
        verify.arg(copy);
        units += 1;
    }
    ensure!(units > 0, "{UNITS} has no units");
    let said = verify.output().context("cannot run systemd-analyze")?;
    // What it does not know it ignores, says so, and calls that a success.
    let complaints = String::from_utf8_lossy(&said.stderr);
    print!("{complaints}");
    Ok(if said.status.success() && complaints.trim().is_empty() {
        Outcome::Passed(format!("{units} units"))
    } else {
        Outcome::Failed("systemd-analyze verify complains".to_owned())
    })
}
