//! The plugins that the core knows: `plugin.toml` files joined with `[plugins.NAME]`, typed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::did_you_mean;
use crate::plugin_manager::{
    Command, Kind, Manifest, OnLoss, RestartMode, RestartPolicy, Timeouts,
};
use crate::security::Token;
use crate::types::PluginName;

use super::error::{Origin, Problem, Problems, SourceFile, label};
use super::permissions::Permissions;
use super::quotas::OwnQuotas;
use super::secrets::{Secrets, read_config};
use super::settings;
use super::shape::Checker;
use super::tree::{Data, Entry, Node, Table, View, merge, parse};
use super::upgraded;
use super::upgrades::{self, Candidate, Upgrade, Upgrades};

/// Name of a manifest.
pub(super) const MANIFEST_FILE: &str = "plugin.toml";

/// Everything that building the list of plugins looks at.
pub(super) struct Context<'a> {
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) cwd: &'a Path,
    pub(super) plugins_dir: &'a Path,
    /// Who says where the plugins are.
    pub(super) plugins_dir_origin: &'a Origin,
    pub(super) data_dir: &'a Path,
    pub(super) upgrades: &'a Upgrades,
    pub(super) candidate: Option<&'a Candidate>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Plugins {
    pub(super) manifests: Vec<Manifest>,
    /// The joined tables by name, disabled plugins too.
    pub(super) effective: Table,
    /// Doubtful, but no reason to refuse.
    pub(super) warnings: Vec<Problem>,
    /// How the candidate is to be kept.
    pub(super) upgrade: Option<Upgrade>,
}

/// Finds, joins and types the plugins. `overrides` is the checked `[plugins]`.
pub(super) fn build(overrides: Table, context: &Context<'_>, problems: &mut Problems) -> Plugins {
    let Discovered { found, complete } = discover(context, problems);
    let mut overrides = overrides;
    let mut plugins = Plugins::default();
    let mut warnings = Problems::default();
    let known: BTreeSet<String> = found.keys().chain(overrides.keys()).cloned().collect();
    let mut enabled = BTreeMap::new();
    for name in &known {
        // Names were checked where they were read.
        let Ok(plugin) = PluginName::parse(name) else {
            continue;
        };
        let mut joined = settings::OVERRIDE.presets();
        let manifest = found.get(name);
        if let Some(manifest) = manifest {
            merge(&mut joined, manifest.table.clone());
        }
        let mut origin = manifest.map(|manifest| Origin::WholeFile(manifest.file.clone()));
        let mut own = Table::new();
        if let Some(entry) = overrides.remove(name) {
            origin.get_or_insert_with(|| entry.key_origin.clone());
            if let Data::Table(table) = entry.node.data {
                if manifest.is_none() && complete && !declares_a_run(&table) {
                    let suggestion = did_you_mean(name, found.keys().map(String::as_str));
                    let place = label(context.plugins_dir, context.cwd);
                    let message = format!(
                        "there is no plugin \"{name}\" in {place}, and no run.command here\
                         {suggestion}"
                    );
                    problems.add(&entry.key_origin, message);
                    continue;
                }
                merge(&mut joined, table.clone());
                own = table;
            }
        }
        let configured = upgraded::configured(&joined);
        let choice = upgrades::choose(&plugin, &configured, context.candidate, context.upgrades);
        if choice.over {
            let message = format!(
                "the upgrade of plugin \"{name}\" is over: its configured program or version is \
                 another now, and counts"
            );
            warnings.add(&context.upgrades.origin(context.cwd), message);
        }
        if let Some(source) = choice.source {
            upgraded::upgrade(&plugin, source, &mut joined, own, context, problems);
        }
        if context
            .candidate
            .is_some_and(|candidate| candidate.plugin == plugin)
        {
            plugins.upgrade = choice.source.cloned().map(|source| Upgrade {
                source,
                replaces: configured,
            });
        }
        let origin = origin.unwrap_or(Origin::Default);
        if View::new(&joined).switch("enabled") == Some(true) {
            enabled.insert(plugin, origin.clone());
        }
        let node = Node {
            data: Data::Table(joined),
            origin: origin.clone(),
        };
        let entry = Entry {
            key_origin: origin,
            node,
        };
        plugins.effective.insert(name.clone(), entry);
    }
    let mut tokens: BTreeMap<String, PluginName> = BTreeMap::new();
    for (name, origin) in &enabled {
        let section = View::new(&plugins.effective).section(name.as_str());
        let mut builder = Builder {
            name,
            origin,
            section,
            context,
            complete,
            secrets: Secrets {
                environment: context.environment,
                cwd: context.cwd,
                problems: &mut *problems,
            },
        };
        let Some(manifest) = builder.manifest() else {
            continue;
        };
        if let Kind::Remote { token: Some(token) } = &manifest.kind {
            let earlier = tokens.insert(token.reveal().to_owned(), name.clone());
            if let Some(earlier) = earlier {
                let message = format!(
                    "plugins \"{earlier}\" and \"{name}\" have the same token; \
                     a token speaks for one plugin only"
                );
                problems.add(origin, message);
            }
        }
        warn(
            &manifest,
            section,
            origin,
            &known,
            &enabled,
            context,
            &mut warnings,
        );
        plugins.manifests.push(manifest);
    }
    plugins.warnings = warnings.into_sorted();
    plugins
}

struct Found {
    table: Table,
    file: std::sync::Arc<SourceFile>,
}

struct Discovered {
    found: BTreeMap<String, Found>,
    /// Every manifest could be read; else a name that seems unknown may be in one that could not.
    complete: bool,
}

/// Reads the manifests below the plugins' directory, in order of the directories' names.
fn discover(context: &Context<'_>, problems: &mut Problems) -> Discovered {
    let mut discovered = Discovered {
        found: BTreeMap::new(),
        complete: true,
    };
    let directory = context.plugins_dir;
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // Nobody asked for it: no plugins, then.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                && *context.plugins_dir_origin == Origin::Default =>
        {
            return discovered;
        }
        Err(error) => {
            let place = label(directory, context.cwd);
            let message = format!("plugins_dir: {place} cannot be read: {error}");
            problems.add(context.plugins_dir_origin, message);
            discovered.complete = false;
            return discovered;
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join(MANIFEST_FILE)))
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    paths.sort();
    for (order, path) in (1..).zip(paths) {
        let file = SourceFile::new(&path, context.cwd, order);
        match read_manifest(&path, &file, context, problems) {
            Some((name, name_origin, table)) => {
                if let Some(earlier) = discovered.found.get(&name) {
                    let message = format!(
                        "plugin \"{name}\" is declared twice: {} has that name too",
                        earlier.file.label
                    );
                    problems.add(&name_origin, message);
                    continue;
                }
                discovered.found.insert(name, Found { table, file });
            }
            None => discovered.complete = false,
        }
    }
    discovered
}

/// Name and checked table, unless there is no name to speak of.
pub(super) fn read_manifest(
    path: &Path,
    file: &std::sync::Arc<SourceFile>,
    context: &Context<'_>,
    problems: &mut Problems,
) -> Option<(String, Origin, Table)> {
    let whole = Origin::WholeFile(file.clone());
    let text = read_config(path)
        .map_err(|wrong| problems.add(&whole, wrong))
        .ok()?;
    let table = parse(&text, file, problems)?;
    let mut checker = Checker {
        cwd: context.cwd,
        problems: &mut *problems,
    };
    let mut table = checker.check(table, &settings::MANIFEST, "");
    let Some(entry) = table.remove("name") else {
        problems.add(&whole, "name is missing; add: name = \"…\"");
        return None;
    };
    match entry.node.data {
        Data::Text(name) => Some((name, entry.node.origin, table)),
        _ => None,
    }
}

fn declares_a_run(table: &Table) -> bool {
    let run = View::new(table).section("run");
    run.node("command").is_some() || run.node("kind").is_some()
}

/// Types one plugin.
struct Builder<'a> {
    name: &'a PluginName,
    /// The file or table that declares it.
    origin: &'a Origin,
    section: View<'a>,
    context: &'a Context<'a>,
    complete: bool,
    secrets: Secrets<'a>,
}

impl Builder<'_> {
    fn manifest(&mut self) -> Option<Manifest> {
        let permissions = Permissions::read(self.section.section("permissions"));
        let granted = Permissions::read(self.section.section("grants"));
        let denied = Permissions::read(self.section.section("deny"));
        let quotas = OwnQuotas::read(self.section.section("quotas"));
        let (config, mut config_secrets) = self.config();
        config_secrets.sort();
        let requires = self.names("requires");
        let wants = self.names("wants");
        for (wanted, origin) in self.section.texts("wants") {
            if requires.iter().any(|name| name.as_str() == wanted) {
                let message = format!("wants: \"{wanted}\" is required already");
                self.problem(origin, message);
            }
        }
        let restart = self.restart();
        let on_loss = self.on_loss(&requires);
        let (limits, sandbox) = super::isolation::read(self.section, self.secrets.problems);
        let kind = self.kind(&permissions)?;
        let text = |key| self.section.text(key).unwrap_or_default().to_owned();
        Some(Manifest {
            name: self.name.clone(),
            version: text("version"),
            description: text("description"),
            kind,
            autostart: self.section.switch("autostart").unwrap_or(true),
            requires,
            wants,
            on_loss,
            restart,
            timeouts: timeouts(self.section.section("timeouts")),
            limits,
            sandbox,
            permissions,
            granted,
            denied,
            quotas,
            config,
            config_secrets,
        })
    }

    fn problem(&mut self, origin: &Origin, message: impl Into<String>) {
        self.secrets.problems.add(origin, message);
    }

    /// The path of a setting of this plugin, for messages.
    fn path(&self, key: &str) -> String {
        format!("plugins.{}.{key}", self.name)
    }

    fn names(&mut self, key: &'static str) -> Vec<PluginName> {
        let mut names = Vec::new();
        for (text, origin) in self.section.texts(key) {
            if text == self.name.as_str() {
                self.problem(origin, format!("{key}: \"{text}\" is this plugin itself"));
            }
            names.extend(PluginName::parse(text));
        }
        names
    }

    fn on_loss(&mut self, requires: &[PluginName]) -> BTreeMap<PluginName, OnLoss> {
        let mut edges = BTreeMap::new();
        let section = self.section.section("on_loss");
        for (name, entry) in section.entries() {
            if !requires.iter().any(|required| required.as_str() == name) {
                let suggestion = did_you_mean(name, requires.iter().map(PluginName::as_str));
                let message = format!("on_loss: \"{name}\" is not in requires{suggestion}");
                self.problem(&entry.key_origin, message);
            }
            let action = match section.text(name) {
                Some("restart") => OnLoss::Restart,
                Some("stop") => OnLoss::Stop,
                _ => OnLoss::Notify,
            };
            edges.extend(PluginName::parse(name).map(|name| (name, action)));
        }
        edges
    }

    fn restart(&mut self) -> RestartPolicy {
        let section = self.section.section("restart");
        let default = RestartPolicy::default();
        let policy = RestartPolicy {
            mode: match section.text("mode") {
                Some("on_failure") => RestartMode::OnFailure,
                Some("never") => RestartMode::Never,
                _ => RestartMode::Always,
            },
            min_uptime: section.time("min_uptime").unwrap_or(default.min_uptime),
            backoff_base: section.time("backoff").unwrap_or(default.backoff_base),
            backoff_max: section.time("backoff_max").unwrap_or(default.backoff_max),
            stable_after: section.time("stable_after").unwrap_or(default.stable_after),
            max_failures: section
                .number("max_failures")
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(default.max_failures),
            crash_loop_every: section
                .time("crash_loop_every")
                .unwrap_or(default.crash_loop_every),
            give_up: section.switch("give_up").unwrap_or(default.give_up),
        };
        if policy.backoff_base > policy.backoff_max {
            // Point at what somebody wrote, not at a default.
            let origin = match section.origin("backoff") {
                Origin::Default => section.origin("backoff_max"),
                origin => origin,
            };
            self.problem(
                &origin,
                "restart.backoff: is longer than restart.backoff_max",
            );
        }
        policy
    }

    fn config(&mut self) -> (serde_json::Map<String, serde_json::Value>, Vec<String>) {
        let mut secrets = Vec::new();
        let path = self.path("config");
        let value = self
            .section
            .node("config")
            .map(|node| self.secrets.json(node, &path, "", &mut secrets));
        match value {
            Some(serde_json::Value::Object(config)) => (config, secrets),
            _ => (serde_json::Map::new(), secrets),
        }
    }

    fn kind(&mut self, permissions: &Permissions) -> Option<Kind> {
        let run = self.section.section("run");
        if run.text("kind") == Some("remote") {
            return self.token().ok().map(|token| Kind::Remote { token });
        }
        for key in ["token_file", "token_env"] {
            if let Some(entry) = self.section.entry(key) {
                let message = format!(
                    "{key}: only remote plugins have a configured token; add run.kind = \"remote\""
                );
                self.problem(&entry.key_origin, message);
            }
        }
        let Some(command) = run.text("command") else {
            // A bad value was reported, and a file that could not be read may hold it.
            if run.node("command").is_none() && self.complete {
                let message = format!(
                    "plugin \"{}\": run.command is missing; name its program, \
                     or set run.kind = \"remote\"",
                    self.name
                );
                self.problem(&self.origin.clone(), message);
            }
            return None;
        };
        let mut env = BTreeMap::new();
        for (name, entry) in run.section("env").entries() {
            let path = self.path(&format!("run.env.{name}"));
            let value = match &entry.node.data {
                Data::Text(text) => Some(text.clone()),
                Data::Concealed(value) => value.as_str().map(str::to_owned),
                Data::Secret(reference) => self.secrets.fetch(reference, &entry.node.origin, &path),
                _ => None,
            };
            env.extend(value.map(|value| (name.clone(), value)));
        }
        Some(Kind::Process(Command {
            program: command.into(),
            args: run.texts("args").map(|(text, _)| text.to_owned()).collect(),
            env,
            pass_env: permissions.env.clone(),
            working_dir: self
                .context
                .data_dir
                .join("plugins")
                .join(self.name.as_str()),
        }))
    }

    /// The configured token, if there is one: other credentials are made while the core runs. `Err`: what
    /// is wrong with it was reported.
    fn token(&mut self) -> Result<Option<Token>, Reported> {
        let file = self.section.path("token_file");
        let variable = self.section.text("token_env");
        let token = match (file, variable) {
            (Some(_), Some(_)) => {
                let origin = self.section.origin("token_env");
                let message = "token_env: token_file is set too; keep one of the two";
                self.problem(&origin, message);
                None
            }
            (Some(file), None) => {
                let (origin, path) = (self.section.origin("token_file"), self.path("token_file"));
                self.secrets.token_file(file, &origin, &path)
            }
            (None, Some(name)) => {
                let (origin, path) = (self.section.origin("token_env"), self.path("token_env"));
                self.secrets.token_variable(name, &origin, &path)
            }
            (None, None) => return Ok(None),
        };
        token.map(Some).ok_or(Reported)
    }
}

/// Something is wrong, and was reported.
struct Reported;

fn timeouts(section: View<'_>) -> Timeouts {
    let default = Timeouts::default();
    Timeouts {
        connect: section.time("connect").unwrap_or(default.connect),
        start: section.time("start").unwrap_or(default.start),
        start_max: section.time("start_max").unwrap_or(default.start_max),
        drain: section.time("drain").unwrap_or(default.drain),
        stop: section.time("stop").unwrap_or(default.stop),
        term: section.time("term").unwrap_or(default.term),
        suspend: section.time("suspend").unwrap_or(default.suspend),
    }
}

/// Says what will keep the plugin from running, but may come right while the core runs.
fn warn(
    manifest: &Manifest,
    section: View<'_>,
    origin: &Origin,
    known: &BTreeSet<String>,
    enabled: &BTreeMap<PluginName, Origin>,
    context: &Context<'_>,
    warnings: &mut Problems,
) {
    let name = &manifest.name;
    for (required, origin) in section.texts("requires") {
        if enabled.contains_key(required) {
            continue;
        }
        let why = if known.contains(required) {
            "is not enabled".to_owned()
        } else {
            let suggestion = did_you_mean(required, known.iter().map(String::as_str));
            format!("is not installed{suggestion}")
        };
        let message =
            format!("plugin \"{name}\" will wait: it requires \"{required}\", which {why}");
        warnings.add(origin, message);
    }
    if let Kind::Process(command) = &manifest.kind {
        let origin = match section.section("run").origin("command") {
            Origin::Default => origin.clone(),
            origin => origin,
        };
        if let Some(wrong) = cannot_run(&command.program, context) {
            let program = label(&command.program, context.cwd);
            let message = format!("plugin \"{name}\" cannot start: run.command {program} {wrong}");
            warnings.add(&origin, message);
        }
    }
}

pub(super) fn cannot_run(program: &Path, context: &Context<'_>) -> Option<&'static str> {
    let path = context.environment.get("PATH").cloned();
    let (program, path) = (program.to_owned(), path.unwrap_or_default());
    let (reply, said) = std::sync::mpsc::channel();
    // On a thread of its own: a file system that does not answer must not hold up a core that begins, and
    // is one plugin's trouble. The thread waits on, with nobody who waits for it.
    let thread = std::thread::Builder::new().name("look".to_owned());
    let looks = thread.spawn(move || {
        let _unheard = reply.send(what_is_wrong(&program, &path));
    });
    if looks.is_err() {
        return None;
    }
    let answer = said.recv_timeout(PROGRAM_ANSWERS);
    answer.unwrap_or(Some("is on a file system that does not answer"))
}

/// How long the file system of a program may take to tell of it.
const PROGRAM_ANSWERS: std::time::Duration = std::time::Duration::from_secs(2);

fn what_is_wrong(program: &Path, path: &str) -> Option<&'static str> {
    let executable = |path: &Path| {
        path.metadata()
            .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if program.is_absolute() {
        return match program.exists() {
            false => Some("does not exist"),
            true => (!executable(program)).then_some("is not executable"),
        };
    }
    let found = std::env::split_paths(path).any(|directory| executable(&directory.join(program)));
    (!found).then_some("is not on PATH")
}
