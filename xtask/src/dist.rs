//! `cargo xtask dist`: what ships, for each platform that can be built for here.
//!
//! ```text
//! target/distribution/PLATFORM/
//!     core-server  corectl  and the plugins of examples/home     stripped
//!     DEPENDENCIES   each package that is part of them, and its licence
//!     LICENSE-APACHE  LICENSE-MIT
//!     SHA256SUMS     of all of these: sha256sum --check SHA256SUMS
//! ```
//!
//! Images take the directory as it is (`deploy/Dockerfile`, BINARIES).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::workspace::Workspace;

/// Packages that ship, each with a binary of its name.
pub(crate) const SHIPPED: [&str; 6] = [
    "core-server",
    "corectl",
    "automation",
    "devices",
    "host_sensors",
    "notifications",
];
const LICENCES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];
/// Another platform than this one, and the linker for it.
const OTHER: (&str, &str) = ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-gcc");

/// Builds for this platform, and for [`OTHER`] where that is possible.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let rustc = Rustc::ask()?;
    build(workspace, &rustc.host, None)?;
    let (platform, linker) = OTHER;
    if rustc.host == platform {
        return Ok(());
    }
    match rustc.lacks(platform, linker) {
        None => build(workspace, platform, Some(linker)),
        Some(lacking) => {
            println!("{platform}: not built: {lacking}");
            Ok(())
        }
    }
}

/// What the compiler says of itself.
struct Rustc {
    host: String,
    sysroot: PathBuf,
}

impl Rustc {
    fn ask() -> Result<Self> {
        let version = output(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        Ok(Self {
            host: host.context("rustc names no host")?.to_owned(),
            sysroot: PathBuf::from(sysroot.trim()),
        })
    }

    /// What is missing to build for a platform.
    fn lacks(&self, platform: &str, linker: &str) -> Option<String> {
        if !self
            .sysroot
            .join("lib/rustlib")
            .join(platform)
            .join("lib")
            .is_dir()
        {
            return Some(format!(
                "its standard library is missing (rustup target add {platform})"
            ));
        }
        let found = output(Command::new(linker).arg("--version"));
        found
            .is_err()
            .then(|| format!("the linker {linker} is missing"))
    }
}

fn build(workspace: &Workspace, platform: &str, linker: Option<&str>) -> Result<()> {
    let mut cargo = workspace.cargo(["build", "--profile", "dist", "--locked"]);
    for package in SHIPPED {
        cargo.args(["--package", package]);
    }
    let mut built = workspace.target.clone();
    if let Some(linker) = linker {
        let name = platform.to_uppercase().replace('-', "_");
        cargo
            .args(["--target", platform])
            .env(format!("CARGO_TARGET_{name}_LINKER"), linker)
            .env(format!("CC_{}", platform.replace('-', "_")), linker);
        built.push(platform);
    }
    ensure!(
        cargo.status().context("cannot run cargo")?.success(),
        "the build for {platform} failed"
    );
    let out = workspace.target.join("distribution").join(platform);
    if out.exists() {
        fs::remove_dir_all(&out).context("cannot clear the last distribution")?;
    }
    fs::create_dir_all(&out).context("cannot make a directory")?;
    for binary in SHIPPED {
        copy(&built.join("dist").join(binary), &out.join(binary))?;
    }
    for licence in LICENCES {
        copy(&workspace.root.join(licence), &out.join(licence))?;
    }
    let dependencies = dependencies(&tree(workspace, platform)?)?;
    fs::write(out.join("DEPENDENCIES"), &dependencies).context("cannot write DEPENDENCIES")?;

    println!("{}", out.display());
    let mut total = 0;
    for binary in SHIPPED {
        let bytes = fs::metadata(out.join(binary))?.len();
        total += bytes;
        println!("  {binary:<16} {:>6.2} MB", megabytes(bytes));
    }
    println!("  {:<16} {:>6.2} MB", "together", megabytes(total));
    println!("  {} dependencies", dependencies.lines().count());
    let sums = sums(&out)?;
    fs::write(out.join("SHA256SUMS"), sums).context("cannot write SHA256SUMS")
}

#[expect(clippy::cast_precision_loss, reason = "to be read by people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// Every package that ends in a binary, one a line, with its licence behind a tab.
fn tree(workspace: &Workspace, platform: &str) -> Result<String> {
    let mut tree = workspace.cargo([
        "tree", "--locked", "--edges", "normal", "--target", platform,
    ]);
    tree.args(["--prefix", "none", "--format", "{p}\t{l}"]);
    for package in SHIPPED {
        tree.args(["--package", package]);
    }
    output(&mut tree)
}

/// Sorted, each once, without what is ours: `name version licence`.
fn dependencies(tree: &str) -> Result<String> {
    let mut found = BTreeSet::new();
    for line in tree.lines().filter(|line| !line.trim().is_empty()) {
        let (package, licence) = line.split_once('\t').context("a line without a licence")?;
        // Behind name and version stand a path, where it is ours, and remarks.
        if package.contains("(/") {
            continue;
        }
        let mut words = package.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            bail!("{line:?} names no package");
        };
        let licence = licence.trim_end_matches("(*)").trim();
        ensure!(!licence.is_empty(), "{name} says nothing of its licence");
        found.insert(format!(
            "{name} {} {licence}",
            version.trim_start_matches('v')
        ));
    }
    let mut text = String::new();
    for line in found {
        writeln!(text, "{line}").ok();
    }
    Ok(text)
}

/// As `sha256sum` writes them.
fn sums(directory: &Path) -> Result<String> {
    let mut files: Vec<_> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut text = String::new();
    for file in files {
        let digest = Sha256::digest(fs::read(directory.join(&file))?);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{hex}  {file}").ok();
    }
    Ok(text)
}

fn output(command: &mut Command) -> Result<String> {
    let said = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        said.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&said.stderr).trim()
    );
    String::from_utf8(said.stdout).with_context(|| format!("{command:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_listed_once_and_ours_are_not() {
        let tree = "core-server v0.1.0 (/some/where)\tMIT OR Apache-2.0\n\
                    tokio v1.2.3\tMIT\nserde_derive v1.0.1 (proc-macro)\tMIT OR Apache-2.0\n\
                    tokio v1.2.3\tMIT (*)\n\ncorectl v0.1.0 (/some/where)\tMIT\nring v0.17.0\tISC\n";
        assert_eq!(
            dependencies(tree).expect("listed"),
            "ring 0.17.0 ISC\nserde_derive 1.0.1 MIT OR Apache-2.0\ntokio 1.2.3 MIT\n"
        );
        assert!(dependencies("tokio v1.2.3\t\n").is_err(), "no licence");
    }

    #[test]
    fn sums_are_those_of_sha256sum() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("b"), "abc").expect("written");
        fs::write(directory.path().join("a"), "").expect("written");
        assert_eq!(
            sums(directory.path()).expect("made"),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\n\
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  b\n"
        );
    }
}
