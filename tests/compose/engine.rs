//! The docker engine, and everything that this test makes there: one project with a name of its own,
//! so that it can all be found and removed.
//!
//! Every command ends in time: `timeout` runs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};

/// Bounds any one command; building images takes longest.
const COMMAND_SECONDS: &str = "900";
/// Label of images that have no name (`deploy/Dockerfile`).
const BUILT_FOR: &str = "core-runtime.built-for";
/// Arguments of the Dockerfile, and the variables that the compose file takes them from.
const ARGUMENTS: [(&str, &str); 5] = [
    ("RUST", "RUST_IMAGE"),
    ("BASE", "BASE_IMAGE"),
    ("PYTHON", "PYTHON_IMAGE"),
    ("BINARIES", "BINARIES"),
    ("BUILT_FOR", "IMAGES"),
];

/// The engine, and our project in it.
#[derive(Debug)]
pub(crate) struct Engine {
    /// `docker compose` or `docker-compose`.
    compose: Vec<&'static str>,
    project: String,
    /// The directory of the compose file, and the variables that it is given; empty until it is made.
    used: Mutex<(PathBuf, BTreeMap<String, String>)>,
}

impl Engine {
    /// Finds an engine and a compose tool; the error says what is missing.
    /// `name` tells projects of one program apart.
    pub(crate) fn find(name: &str) -> Result<Self> {
        run(Command::new("docker").arg("info")).context("no docker engine")?;
        let candidates = [vec!["docker", "compose"], vec!["docker-compose"]];
        let works =
            |tool: &Vec<&str>| run(Command::new(tool[0]).args(&tool[1..]).arg("version")).is_ok();
        let compose = candidates.into_iter().find(works);
        Ok(Self {
            compose: compose.context("neither `docker compose` nor `docker-compose`")?,
            project: format!("core{name}{}", std::process::id()),
            used: Mutex::default(),
        })
    }

    /// Names our containers, volumes, networks and images.
    pub(crate) fn project(&self) -> &str {
        &self.project
    }

    /// Marks what compose does not make, so that it is found.
    pub(crate) fn label(&self) -> String {
        format!("{BUILT_FOR}={}", self.project)
    }

    /// From here on compose works on the file in `directory`.
    pub(crate) fn use_context(&self, directory: &Path, environment: BTreeMap<String, String>) {
        *self.used.lock().expect("no panic inside") = (directory.to_owned(), environment);
    }

    fn used(&self) -> (PathBuf, BTreeMap<String, String>) {
        self.used.lock().expect("no panic inside").clone()
    }

    /// Runs compose on our project.
    pub(crate) fn compose(&self, arguments: &[&str]) -> Result<String> {
        let (context, environment) = self.used();
        let mut command = Command::new(self.compose[0]);
        command
            .args(&self.compose[1..])
            .args(["--project-name", &self.project])
            .args(arguments)
            .current_dir(context)
            .envs(environment);
        run(&mut command)
    }

    /// Builds a target of the Dockerfile that no service is made of, as compose would.
    pub(crate) fn build(&self, target: &str) -> Result<String> {
        let (context, environment) = self.used();
        let image = format!("{}/{target}", self.project);
        let mut command = Command::new("docker");
        command.args(["build", "--file", "deploy/Dockerfile"]);
        command.args(["--target", target, "--tag", &image]);
        for (argument, variable) in ARGUMENTS {
            let value = environment.get(variable);
            let value = value.with_context(|| format!("{variable} is not set"))?;
            command.args(["--build-arg", &format!("{argument}={value}")]);
        }
        run(command.arg(".").current_dir(context).envs(environment))?;
        Ok(image)
    }

    /// Runs docker itself.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("docker").args(arguments))
    }

    /// Runs a command in a service's container; gives its standard output.
    pub(crate) fn exec(&self, service: &str, command: &[&str]) -> Result<String> {
        let container = self.container(service)?;
        self.docker(&[&["exec", &container], command].concat())
    }

    /// What runs in a service's container, as columns of `ps`, without a headline.
    pub(crate) fn processes(&self, service: &str, columns: &str) -> Result<Vec<String>> {
        let container = self.container(service)?;
        let listed = self.docker(&["top", &container, "-eo", columns])?;
        Ok(listed.lines().skip(1).map(str::to_owned).collect())
    }

    /// What `docker inspect` says of a service's container.
    pub(crate) fn inspect(&self, service: &str, format: &str) -> Result<String> {
        let container = self.container(service)?;
        let said = self.docker(&["inspect", "--format", format, &container])?;
        Ok(said.trim().to_owned())
    }

    /// How a stopped service ended.
    pub(crate) fn exit_code(&self, service: &str) -> Result<i32> {
        let code = self.inspect(service, "{{.State.ExitCode}}")?;
        code.parse().context("no exit code")
    }

    /// The network of the plugins.
    pub(crate) fn network(&self) -> String {
        format!("{}_plugins", self.project)
    }

    /// The id of a service's container.
    pub(crate) fn container(&self, service: &str) -> Result<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service_label = format!("label=com.docker.compose.service={service}");
        let filters = ["--filter", &project, "--filter", &service_label];
        let found = self.docker(&[&["ps", "--all", "--quiet"], &filters[..]].concat())?;
        let container = found.lines().next();
        Ok(container
            .with_context(|| format!("{service} has no container"))?
            .to_owned())
    }

    /// Shows what the containers wrote.
    pub(crate) fn show_logs(&self) {
        if self.used().0.as_os_str().is_empty() {
            return;
        }
        for arguments in [
            &["ps", "--all"][..],
            &["logs", "--no-color", "--tail", "40"],
        ] {
            match self.compose(arguments) {
                Ok(text) => println!("{text}"),
                Err(error) => println!("{error:#}"),
            }
        }
    }

    /// Removes everything of our project.
    pub(crate) fn clean(&self) -> Result<()> {
        if !self.used().0.as_os_str().is_empty() {
            self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "15"])?;
        }
        let label = format!("label={}", self.label());
        // A build that failed leaves the container of its last command.
        let containers = self.docker(&["ps", "--all", "--quiet", "--filter", &label])?;
        for container in containers.lines() {
            self.docker(&["rm", "--force", container])?;
        }
        for image in self.images()? {
            self.docker(&["image", "rm", "--force", &image])?;
        }
        self.docker(&["image", "prune", "--force", "--filter", &label])?;
        Ok(())
    }

    /// Names of our images.
    pub(crate) fn images(&self) -> Result<Vec<String>> {
        let pattern = format!("reference={}/*", self.project);
        let format = "{{.Repository}}:{{.Tag}}";
        let found = self.docker(&["image", "ls", "--filter", &pattern, "--format", format])?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// Whatever of ours is still there.
    pub(crate) fn leftovers(&self) -> Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let label = format!("label={}", self.label());
        let mut left = self.images()?;
        for list in [
            ["ps", "--all", "--quiet", "--filter", &project].as_slice(),
            &["volume", "ls", "--quiet", "--filter", &project],
            &["network", "ls", "--quiet", "--filter", &project],
            &["ps", "--all", "--quiet", "--filter", &label],
            &["image", "ls", "--all", "--quiet", "--filter", &label],
        ] {
            left.extend(self.docker(list)?.lines().map(str::to_owned));
        }
        Ok(left)
    }
}

impl Drop for Engine {
    /// After a panic; otherwise there is nothing left to remove.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Err(error) = self.clean()
        {
            println!("not everything could be removed: {error:#}");
        }
    }
}

/// Runs a command to its end, or until time is up; gives its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--kill-after", "10", COMMAND_SECONDS])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    if let Some(directory) = command.get_current_dir() {
        bounded.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    let output = bounded.output().with_context(|| format!("{command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = stdout.lines().chain(stderr.lines()).collect();
        let last = lines[lines.len().saturating_sub(25)..].join("\n");
        bail!("{command:?}: {}\n{last}", output.status);
    }
    Ok(stdout)
}
