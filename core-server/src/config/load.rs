//! Puts the layers together: defaults, file, environment, flags; checks them; types the result.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::environment::{self, RUNTIME_DIRECTORY};
use super::error::{Error, Origin, Problem, Problems, SourceFile};
use super::flags::Flags;
use super::limits::Limits;
use super::origins::Origins;
use super::plugins::{self, Plugins};
use super::quotas::Quotas;
use super::secrets::read_config;
use super::settings;
use super::shape::Checker;
use super::tree::{Data, Entry, Table, View, absolute, merge, parse};
use super::upgrades::{Candidate, Upgrade, Upgrades};
use super::{
    Adapter, Config, DEFAULT_CERTIFICATE_LIFE, DEFAULT_DATABASE, DEFAULT_FILE, DEFAULT_LOG_FILTER,
    DEFAULT_RUNTIME_DIR, DEFAULT_SHUTDOWN_TIMEOUT, DEFAULT_THREADS, Durability, Listen, Log,
    LogFormat, Security, Storage, Supervision,
};
use crate::security::{Granting, Mode};

/// Longest path of a unix socket, without the zero byte that ends it: `sun_path` in unix(7).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A configuration that holds, and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting with its origin, for people.
    pub origins: Origins,
    /// What is doubtful, but no reason to refuse: a plugin that requires one that is not installed, a
    /// program that is not there.
    pub warnings: Vec<Problem>,
    /// Of [`load_candidate`]: how the candidate is to be kept.
    pub upgrade: Option<Upgrade>,
}

/// Reads the whole configuration: `core.toml`, the environment, flags, and the plugins' manifests.
/// Nothing is written, bound or started. `cwd` is absolute; relative paths outside files begin there.
///
/// # Errors
/// Everything that is wrong, all at once.
pub fn load(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
    cwd: &Path,
) -> Result<Loaded, Error> {
    load_candidate(flags, environment, cwd, None)
}

/// As [`load()`], with an upgrade that somebody asks for in force.
///
/// # Errors
/// As of [`load()`]; also what is wrong with the candidate.
pub fn load_candidate(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
    cwd: &Path,
    candidate: Option<&Candidate>,
) -> Result<Loaded, Error> {
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    let mut problems = Problems::default();
    let Core {
        config,
        mut settings,
        file_is_readable,
    } = read_core(flags, &environment, cwd, &mut problems);
    let overrides = match settings.remove("plugins").map(|entry| entry.node.data) {
        Some(Data::Table(table)) => table,
        _ => Table::new(),
    };
    let Plugins {
        manifests,
        effective,
        mut warnings,
        upgrade,
    } = if file_is_readable {
        let upgrades = Upgrades::read_or_report(&config.data_dir, cwd, &mut problems);
        let context = plugins::Context {
            environment: &environment,
            cwd,
            plugins_dir: &config.plugins_dir,
            plugins_dir_origin: &View::new(&settings).origin("plugins_dir"),
            data_dir: &config.data_dir,
            upgrades: &upgrades,
            candidate,
        };
        plugins::build(overrides, &context, &mut problems)
    } else {
        Plugins::default()
    };
    if let Some(error) = problems.into_error() {
        return Err(error);
    }
    warnings.extend(plaintext_warning(&config.listen, View::new(&settings)));
    let plugins = Entry::new(Data::Table(effective), Origin::Default);
    settings.insert("plugins".to_owned(), plugins);
    Ok(Loaded {
        config: Config {
            plugins: manifests,
            ..config
        },
        origins: Origins::of(&settings),
        warnings,
        upgrade,
    })
}

/// As [`load()`], without plugins: nothing that they name need be there.
///
/// # Errors
/// What is wrong with the core's own settings.
pub fn load_core(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
    cwd: &Path,
) -> Result<Config, Error> {
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    let mut problems = Problems::default();
    let core = read_core(flags, &environment, cwd, &mut problems);
    match problems.into_error() {
        Some(error) => Err(error),
        None => Ok(core.config),
    }
}

/// The core's own part of a configuration.
struct Core {
    config: Config,
    /// All layers, with what they say of plugins.
    settings: Table,
    /// A file that is no TOML leaves open where the plugins are and what it says of them.
    file_is_readable: bool,
}

fn read_core(
    flags: &Flags,
    environment: &BTreeMap<String, String>,
    cwd: &Path,
    problems: &mut Problems,
) -> Core {
    let file = core_file(flags, cwd, problems);
    let variables = environment::layer(environment, &settings::CORE, problems);
    let mut checker = Checker { cwd, problems };
    let mut settings = checker.check(settings::CORE.presets(), &settings::CORE, "");
    let file_is_readable = file.is_some();
    for layer in [file.unwrap_or_default(), variables, flags.layer()] {
        merge(&mut settings, checker.check(layer, &settings::CORE, ""));
    }
    let config = type_core(&mut settings, environment, cwd, problems);
    let path = core_file_path(flags, cwd);
    let config = Config {
        file: path.exists().then_some(path),
        ..config
    };
    Core {
        config,
        settings,
        file_is_readable,
    }
}

/// Where `core.toml` is, if it is there.
pub fn core_file_path(flags: &Flags, cwd: &Path) -> PathBuf {
    absolute(cwd, flags.config.as_deref().unwrap_or(DEFAULT_FILE))
}

/// `core.toml` as it is written. `None`: it cannot be read, and that was reported. No file is as good
/// as an empty one unless somebody named it.
fn core_file(flags: &Flags, cwd: &Path, problems: &mut Problems) -> Option<Table> {
    let path = core_file_path(flags, cwd);
    if flags.config.is_none() && !path.exists() {
        return Some(Table::new());
    }
    let file = SourceFile::new(&path, cwd, 0);
    match read_config(&path) {
        Ok(text) => parse(&text, &file, problems),
        Err(wrong) => {
            problems.add(&Origin::WholeFile(file), wrong);
            None
        }
    }
}

/// Types everything but the plugins, and fills in the defaults that depend on other settings.
fn type_core(
    settings: &mut Table,
    environment: &BTreeMap<String, String>,
    cwd: &Path,
    problems: &mut Problems,
) -> Config {
    // Where a value is missing here it was reported as wrong, and the result is thrown away.
    let top = View::new(settings);
    let path = |key| top.path(key).map_or_else(PathBuf::new, Path::to_path_buf);
    let (data_dir, plugins_dir) = (path("data_dir"), path("plugins_dir"));
    let database = data_dir.join(DEFAULT_DATABASE);
    fill_in(settings, "storage", "path", database, Origin::Default);
    let (runtime_dir, origin) = default_runtime_dir(environment, &data_dir, cwd);
    fill_in(settings, "listen", "runtime_dir", runtime_dir, origin);

    let top = View::new(settings);
    let limits = Limits::read(top.section("limits"));
    for (key, other, message) in limits.contradictions() {
        // Point at what somebody wrote: of two settings that clash one may be a default.
        let section = top.section("limits");
        let origin = match section.origin(key) {
            Origin::Default => section.origin(other),
            origin => origin,
        };
        problems.add(&origin, message);
    }
    let log = top.section("log");
    Config {
        file: None,
        plugins_dir,
        data_dir,
        shutdown_timeout: top
            .time("shutdown_timeout")
            .unwrap_or(DEFAULT_SHUTDOWN_TIMEOUT),
        threads: top.number("threads").unwrap_or(DEFAULT_THREADS),
        storage: type_storage(top.section("storage")),
        listen: type_listen(top.section("listen"), problems),
        operators: top
            .list("operators")
            .iter()
            .filter_map(|node| match node.data {
                Data::Integer(uid) => u32::try_from(uid).ok(),
                _ => None,
            })
            .collect(),
        security: type_security(top.section("security")),
        log: Log {
            filter: log.text("filter").unwrap_or(DEFAULT_LOG_FILTER).to_owned(),
            format: match log.text("format") {
                Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                _ => LogFormat::Auto,
            },
        },
        supervision: type_supervision(top.section("supervision")),
        limits,
        quotas: Quotas::read(top.section("quotas")),
        plugins: Vec::new(),
    }
}

fn type_storage(section: View<'_>) -> Storage {
    Storage {
        adapter: match section.text("adapter") {
            Some("memory") => Adapter::Memory,
            _ => Adapter::Sqlite,
        },
        path: section
            .path("path")
            .map_or_else(PathBuf::new, Path::to_path_buf),
        durability: match section.text("durability") {
            Some("normal") => Durability::Normal,
            _ => Durability::Full,
        },
    }
}

fn type_security(section: View<'_>) -> Security {
    Security {
        granting: match section.text("policy") {
            Some("review") => Granting::Reviewed,
            _ => Granting::AsAsked,
        },
        mode: match section.text("mode") {
            Some("audit") => Mode::Audit,
            _ => Mode::Enforce,
        },
        certificate_life: section
            .time("certificate_life")
            .unwrap_or(DEFAULT_CERTIFICATE_LIFE),
    }
}

fn type_supervision(section: View<'_>) -> Supervision {
    let is_on = |layer| section.switch(layer).unwrap_or(true);
    Supervision {
        parent_death_signal: is_on("parent_death_signal"),
        guardian: is_on("guardian"),
        subreaper: is_on("subreaper"),
        boot_sweep: is_on("boot_sweep"),
    }
}

fn type_listen(section: View<'_>, problems: &mut Problems) -> Listen {
    let insecure_plaintext = section.switch("insecure_plaintext").unwrap_or(false);
    let mut tcp = Vec::new();
    for (text, origin) in section.texts("tcp") {
        let Ok(address) = text.parse::<SocketAddr>() else {
            continue;
        };
        if !insecure_plaintext && !is_loopback(&address) {
            let message = format!(
                "listen.tcp: \"{text}\" can be reached from other machines, and would be \
                 plaintext: tokens and data could be read on the way. Name it in listen.tls \
                 instead, where TLS is spoken, listen on \
                 \"127.0.0.1:{}\", or accept that with listen.insecure_plaintext = true or \
                 --insecure-plaintext",
                address.port()
            );
            problems.add(origin, message);
        }
        tcp.push(address);
    }
    let addresses = |key| section.texts(key).filter_map(|(text, _)| text.parse().ok());
    let path = |key| section.path(key).map(Path::to_path_buf);
    for (one, other) in [
        ("tls_certificate", "tls_key"),
        ("tls_key", "tls_certificate"),
    ] {
        if section.path(one).is_some() && section.path(other).is_none() {
            let message = format!("listen.{one}: listen.{other} is missing; they belong together");
            problems.add(&section.origin(one), message);
        }
    }
    let listen = Listen {
        tls: addresses("tls").collect(),
        tls_names: section
            .texts("tls_names")
            .map(|(text, _)| text.to_owned())
            .collect(),
        tls_certificate: path("tls_certificate"),
        tls_key: path("tls_key"),
        runtime_dir: section
            .path("runtime_dir")
            .map_or_else(PathBuf::new, Path::to_path_buf),
        tcp,
        insecure_plaintext,
    };
    let longest = listen.operator_socket().as_os_str().len();
    if longest > MAX_SOCKET_PATH_BYTES {
        let message = format!(
            "listen.runtime_dir: {} is too long: with the sockets' names {longest} bytes, and the \
             system allows {MAX_SOCKET_PATH_BYTES}; choose a shorter one",
            listen.runtime_dir.display()
        );
        problems.add(&section.origin("runtime_dir"), message);
    }
    listen
}

/// Sets what nobody set.
fn fill_in(settings: &mut Table, section: &str, key: &str, path: PathBuf, origin: Origin) {
    let Some(entry) = settings.get_mut(section) else {
        return;
    };
    if let Data::Table(table) = &mut entry.node.data {
        table
            .entry(key.to_owned())
            .or_insert_with(|| Entry::new(Data::Path(path), origin));
    }
}

/// Where the sockets go when nobody says so, and who says it then.
fn default_runtime_dir(
    environment: &BTreeMap<String, String>,
    data_dir: &Path,
    cwd: &Path,
) -> (PathBuf, Origin) {
    let variable = |name: &str| {
        let value = environment.get(name).filter(|value| !value.is_empty())?;
        Some((value, Origin::Environment(name.into())))
    };
    if let Some((directories, origin)) = variable(RUNTIME_DIRECTORY) {
        // systemd joins several with colons.
        let first = directories.split(':').next().unwrap_or_default();
        return (absolute(cwd, first), origin);
    }
    if let Some((directory, origin)) = variable("XDG_RUNTIME_DIR") {
        return (absolute(cwd, directory).join("core-runtime"), origin);
    }
    (data_dir.join(DEFAULT_RUNTIME_DIR), Origin::Default)
}

/// Whether only this machine can reach an address.
fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn plaintext_warning(listen: &Listen, settings: View<'_>) -> Option<Problem> {
    let address = listen.tcp.iter().find(|address| !is_loopback(address))?;
    Some(Problem {
        origin: settings.section("listen").origin("insecure_plaintext"),
        message: format!(
            "listen.tcp: {address} takes plaintext from other machines: tokens and data can be \
             read on the way"
        ),
    })
}
