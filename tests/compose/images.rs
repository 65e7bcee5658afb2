//! Images without a registry: bases made of this machine's own files, and a build context with the
//! binaries that cargo has built.
//!
//! Two bases are made. *plain*: a shell, a few tools, and the libraries that they and our binaries
//! need, as the dynamic linker names them. *python*: the same with this machine's Python at its own
//! path, pip, and the packages of the example as files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::engine::{Engine, run};
use crate::step;

/// What the Dockerfile's commands, `ownership` and this test use.
const TOOLS: [&str; 8] = ["sh", "cat", "chown", "cp", "env", "mkdir", "rm", "sleep"];
/// Binaries that go into images.
const BINARIES: [&str; 6] = [
    "core-server",
    "corectl",
    "automation",
    "devices",
    "host_sensors",
    "notifications",
];
/// Parts of the repository that the images are made from.
const SOURCES: [&str; 5] = [
    "docker-compose.yml",
    "deploy",
    "proto",
    "examples/home",
    "examples/raw/python",
];
/// Where in the context the binaries are.
const PREBUILT: &str = "prebuilt";
/// Names a directory with other binaries than those of the tests' profile: `cargo xtask dist` makes one.
const OTHER_BINARIES: &str = "COMPOSE_BINARIES";
/// Only what this test does happens: nobody moves, no lamp goes off by itself, and any use of memory
/// deserves a warning. Containers join in any order: a warning that nobody could take yet comes again soon.
const STILL: &str = "
[plugins.devices.config]
motion_every_ms = 0
[plugins.automation.config]
lamp_off_after_seconds = 86400
remind_after_seconds = 5
[plugins.host_sensors.config]
thresholds.memory_percent = 0.0
";
/// Parts of a Python library that no image needs.
const UNUSED: [&str; 7] = [
    "__pycache__",
    "config-",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "test",
    "turtledemo",
];

/// The service whose image is not made of binaries, and those whose images are.
const IN_PYTHON: &str = "sunlight";
const IN_RUST: [&str; 5] = [
    "automation",
    "devices",
    "host_sensors",
    "notifications",
    "home",
];

/// Bases and context, ready for compose.
#[derive(Debug)]
pub(crate) struct Images {
    context: PathBuf,
    /// What the bases are made of.
    root: PathBuf,
    requirements: PathBuf,
    python: String,
    environment: BTreeMap<String, String>,
}

impl Images {
    /// Makes the context and the plain base in `scratch`.
    pub(crate) fn prepare(engine: &Engine, repository: &Path, scratch: &Path) -> Result<Self> {
        let context = context(repository, &scratch.join("context"))?;
        let plain = format!("{}/base:plain", engine.project());
        let python = format!("{}/base:python", engine.project());
        let root = scratch.join("root");

        step("a base of this machine's own files");
        plain_root(&root, &context)?;
        import(engine, &root, &plain, &[])?;

        let environment = [
            ("IMAGES", engine.project()),
            ("RUST_IMAGE", &plain),
            ("BASE_IMAGE", &plain),
            ("PYTHON_IMAGE", python.as_str()),
            ("BINARIES", PREBUILT),
            // The builder that needs no plugin; `docker compose` has its own.
            ("DOCKER_BUILDKIT", "0"),
        ];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Ok(Self {
            context,
            root,
            requirements: repository.join("examples/raw/python/requirements.txt"),
            environment: environment.map(own).into(),
            python,
        })
    }

    /// Builds all images. Compose and the engine make one after the other, and those of Python mostly wait
    /// for packages: they are made beside the others.
    pub(crate) fn build(&self, engine: &Engine) -> Result<()> {
        let build = |services: &[&str]| {
            engine.compose(&[&["--profile", "children", "build"], services].concat())
        };
        std::thread::scope(|threads| {
            let python = threads.spawn(|| self.python_base(engine));
            // By itself: its stages are the first ones of all others, which find them made.
            let core = build(&["core"]);
            python.join().expect("it does not panic")?;
            core?;
            let python = threads.spawn(|| build(&[IN_PYTHON]));
            let rust = build(&IN_RUST);
            python.join().expect("it does not panic")?;
            rust?;
            Ok(())
        })
    }

    fn python_base(&self, engine: &Engine) -> Result<()> {
        let root = &self.root;
        add_python(root, &self.requirements)?;
        // pip finds everything in the image and asks nobody.
        let offline = ["ENV PIP_NO_INDEX=1", "ENV PIP_FIND_LINKS=/wheels"];
        import(engine, root, &self.python, &offline)?;
        fs::remove_dir_all(root).context("cannot remove the root of the bases")
    }

    /// The directory with the compose file.
    pub(crate) fn context(&self) -> &Path {
        &self.context
    }

    /// The variables of the compose file.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.environment.clone()
    }
}

/// The repository as far as the images need it, with the binaries in [`PREBUILT`].
fn context(repository: &Path, context: &Path) -> Result<PathBuf> {
    renew(context)?;
    for source in SOURCES {
        let target = context.join(source);
        let parent = target.parent().context("a source without a parent")?;
        fs::create_dir_all(parent)?;
        let copied = Command::new("cp")
            .arg("-rL")
            .arg(repository.join(source))
            .arg(&target)
            .status();
        ensure!(copied?.success(), "cannot copy {source}");
    }
    let core = context.join("deploy/core.toml");
    let text = fs::read_to_string(&core)? + STILL;
    fs::write(&core, text).context("cannot configure the core")?;
    let prebuilt = context.join(PREBUILT);
    fs::create_dir(&prebuilt)?;
    let built = Built::find(repository)?;
    step(&format!("binaries of {}", built.directory.display()));
    for binary in BINARIES {
        built.copy(binary, &prebuilt.join(binary))?;
    }
    Ok(context.to_owned())
}

/// Programs that are built already.
pub(crate) struct Built {
    directory: PathBuf,
    /// What makes them.
    by: &'static str,
}

impl Built {
    /// Those in [`OTHER_BINARIES`], a relative path as seen from the root of the repository, or where cargo
    /// puts them: this test is in its `deps/`.
    pub(crate) fn find(repository: &Path) -> Result<Self> {
        if let Some(other) = std::env::var_os(OTHER_BINARIES) {
            let other = repository.join(other);
            let directory = fs::canonicalize(&other);
            return Ok(Self {
                directory: directory.with_context(|| other.display().to_string())?,
                by: "cargo xtask dist",
            });
        }
        let test = std::env::current_exe().context("this test has no path")?;
        let directory = test.parent().and_then(Path::parent);
        let directory = directory.context("this test is not in cargo's target directory")?;
        Ok(Self {
            directory: directory.to_owned(),
            by: "cargo build --workspace",
        })
    }

    /// Copies one, stripped.
    fn copy(&self, binary: &str, to: &Path) -> Result<()> {
        let from = self.directory.join(binary);
        ensure!(
            from.is_file(),
            "{} is not there: {} makes it",
            from.display(),
            self.by
        );
        fs::copy(&from, to).with_context(|| from.display().to_string())?;
        // Debug information is most of a binary; without the tool the images are only larger.
        if let Err(error) = run(Command::new("strip").arg(to)) {
            println!("not stripped: {error:#}");
        }
        Ok(())
    }

    /// Copies one into a directory below `root`, stripped, and the libraries that it needs to their own places.
    pub(crate) fn install(&self, binary: &str, root: &Path, directory: &Path) -> Result<()> {
        let directory = root.join(directory);
        fs::create_dir_all(&directory)?;
        let to = directory.join(binary);
        self.copy(binary, &to)?;
        copy_libraries(root, &libraries(&to)?)
    }
}

fn plain_root(root: &Path, context: &Path) -> Result<()> {
    renew(root)?;
    for directory in ["tmp", "run", "usr/local/bin", "usr/bin"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    symlink("usr/bin", root.join("bin"))?;
    let mut needed = BTreeSet::new();
    for tool in TOOLS {
        let path = on_path(tool)?;
        fs::copy(&path, root.join("usr/bin").join(tool)).with_context(|| path.clone())?;
        needed.extend(libraries(Path::new(&path))?);
    }
    for binary in BINARIES {
        needed.extend(libraries(&context.join(PREBUILT).join(binary))?);
    }
    copy_libraries(root, &needed)
}

/// The Python that runs here, its library, pip, and the packages of the example.
fn add_python(root: &Path, requirements: &Path) -> Result<()> {
    const ASK: &str = "import sys, sysconfig, os, pip; \
        print(os.path.realpath(getattr(sys, '_base_executable', sys.executable))); \
        print(sysconfig.get_path('stdlib')); print(os.path.dirname(pip.__file__))";
    let answer =
        run(Command::new("python3").args(["-c", ASK])).context("python3 with pip is needed")?;
    let paths: Vec<_> = answer.lines().map(PathBuf::from).collect();
    let [interpreter, library, pip] = paths.as_slice() else {
        bail!("python3 answered {answer:?}");
    };
    let mut needed = libraries(interpreter)?;
    copy_file(root, interpreter)?;
    symlink(interpreter, root.join("usr/local/bin/python3"))?;
    let unused = |name: &str| {
        name == "site-packages"
            || name == "dist-packages"
            || UNUSED.iter().any(|word| name.starts_with(word))
    };
    copy_tree(root, library, &unused, &mut needed)?;
    copy_tree(root, pip, &|name| name == "__pycache__", &mut needed)?;
    // Compiled packages need these; the interpreter itself may not.
    for library in [
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "librt.so.1",
        "libpthread.so.0",
        "libdl.so.2",
    ] {
        needed.insert(shared_library(library)?);
    }
    copy_libraries(root, &needed)?;
    let wheels = root.join("wheels");
    fs::create_dir(&wheels)?;
    let mut download = Command::new("python3");
    download.args(["-m", "pip", "download", "--quiet", "--only-binary", ":all:"]);
    run(download
        .arg("--requirement")
        .arg(requirements)
        .arg("--dest")
        .arg(&wheels))?;
    Ok(())
}

/// Makes an image of a directory.
pub(crate) fn import(engine: &Engine, root: &Path, name: &str, changes: &[&str]) -> Result<()> {
    let archive = root.with_extension("tar");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--owner=0", "--group=0", "--file"])
        .arg(&archive);
    run(tar.arg("--directory").arg(root).arg("."))?;
    let path = archive.to_string_lossy().into_owned();
    let label = format!("LABEL {}", engine.label());
    let mut arguments = vec!["import", "--change", &label];
    for change in changes {
        arguments.extend(["--change", change]);
    }
    arguments.extend([path.as_str(), name]);
    engine.docker(&arguments)?;
    fs::remove_file(&archive).context("cannot remove an archive")
}

/// Copies a directory to its own path below `root`, without what `unused` names.
fn copy_tree(
    root: &Path,
    directory: &Path,
    unused: &dyn Fn(&str) -> bool,
    needed: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if unused(&name) {
            continue;
        }
        if path.is_dir() {
            copy_tree(root, &path, unused, needed)?;
        } else if path.is_file() {
            if name.ends_with(".so") {
                needed.extend(libraries(&path)?);
            }
            copy_file(root, &path)?;
        }
    }
    Ok(())
}

fn copy_libraries(root: &Path, libraries: &BTreeSet<PathBuf>) -> Result<()> {
    libraries
        .iter()
        .try_for_each(|library| copy_file(root, library))
}

/// Copies a file, or what a link points to, to its own path below `root`.
pub(crate) fn copy_file(root: &Path, path: &Path) -> Result<()> {
    let target = root.join(path.strip_prefix("/").unwrap_or(path));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if !target.exists() {
        fs::copy(path, &target).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Copies a program of this machine to its own path below `root`, with the libraries that it needs.
pub(crate) fn copy_program(root: &Path, program: &Path) -> Result<()> {
    copy_file(root, program)?;
    copy_libraries(root, &libraries(program)?)
}

/// What the dynamic linker would load for a binary.
fn libraries(binary: &Path) -> Result<BTreeSet<PathBuf>> {
    // A binary that is linked statically is "not a dynamic executable", which `ldd` calls a failure.
    let Ok(list) = run(Command::new("ldd").arg(binary)) else {
        return Ok(BTreeSet::new());
    };
    ensure!(
        !list.contains("not found"),
        "{} misses a library:\n{list}",
        binary.display()
    );
    let paths = list.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths
        .map(|path| PathBuf::from(path.trim_end_matches(':')))
        .collect())
}

/// The path of a library by its name.
fn shared_library(name: &str) -> Result<PathBuf> {
    let cache = run(Command::new("ldconfig").arg("-p"))
        .or_else(|_| run(Command::new("/sbin/ldconfig").arg("-p")))?;
    let line = cache
        .lines()
        .find(|line| line.trim_start().starts_with(&format!("{name} ")));
    let path = line.and_then(|line| line.split("=> ").nth(1));
    Ok(PathBuf::from(
        path.with_context(|| format!("there is no {name}"))?.trim(),
    ))
}

fn on_path(tool: &str) -> Result<String> {
    let found = run(Command::new("sh").args(["-c", &format!("command -v {tool}")]));
    let path = found
        .with_context(|| format!("{tool} is needed"))?
        .trim()
        .to_owned();
    // Built into the shell: then it is where such tools are.
    Ok(if path.starts_with('/') {
        path
    } else {
        format!("/usr/bin/{tool}")
    })
}

pub(crate) fn renew(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}
