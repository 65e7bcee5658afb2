//! The settings: what `core.toml` and `plugin.toml` may hold. Adding one is a line here, a field in
//! the type that it fills, and a line in `docs/reference/configuration.md` (a test asks for it).

use std::time::Duration;

use crate::error::did_you_mean;
use crate::plugin_manager::{RestartPolicy, Timeouts};
use crate::types::{Pattern, PluginName};

use super::limits;
use super::permissions;
use super::quotas;
use super::shape::{Case, Field, Repeats, Rule, Shape};
use super::tree::Data;
use super::{
    DEFAULT_CERTIFICATE_LIFE, DEFAULT_DATA_DIR, DEFAULT_LOG_FILTER, DEFAULT_PLUGINS_DIR,
    DEFAULT_SHUTDOWN_TIMEOUT, DEFAULT_THREADS, MAX_THREADS,
};

/// `core.toml`, and the environment and flags as far as they name the same settings.
pub(super) static CORE: Shape = Shape::Section(&[&[
    Field::new(
        "plugins_dir",
        Shape::Path,
        "Directories in it that hold a plugin.toml are plugins.",
    )
    .preset(|| text(DEFAULT_PLUGINS_DIR)),
    Field::new(
        "data_dir",
        Shape::Path,
        "Where the core and its child plugins keep their data.",
    )
    .preset(|| text(DEFAULT_DATA_DIR)),
    Field::new(
        "shutdown_timeout",
        Shape::Seconds(Duration::from_secs(1)..=HOUR),
        "Bounds a graceful stop. An integer counts seconds.",
    )
    .preset(|| Data::Time(DEFAULT_SHUTDOWN_TIMEOUT)),
    Field::new(
        "threads",
        Shape::Integer(1..=MAX_THREADS),
        "Worker threads of the core.",
    )
    .preset(|| Data::Integer(DEFAULT_THREADS as i64)),
    Field::new(
        "operators",
        Shape::List(&Shape::Integer(0..=UID_MAX), Repeats::Refused),
        "Users (numeric) who may use the operator socket besides the core's own.",
    )
    .preset(|| Data::List(Vec::new())),
    Field::new("storage", Shape::Section(&[STORAGE]), "Durable data."),
    Field::new(
        "listen",
        Shape::Section(&[super::listening::LISTEN]),
        "Where the core can be reached.",
    ),
    Field::new(
        "security",
        Shape::Section(&[SECURITY]),
        "What plugins may do by their manifests alone, and how long they are let in.",
    ),
    Field::new("log", Shape::Section(&[LOG]), "The core's own log."),
    Field::new(
        "supervision",
        Shape::Section(&[SUPERVISION]),
        "What keeps children from outliving the core.",
    ),
    Field::new(
        "limits",
        Shape::Section(&[limits::FIELDS]),
        "Bounds; see docs/reference/limits.md.",
    ),
    Field::new(
        "quotas",
        Shape::Section(&[quotas::FIELDS]),
        "How much each plugin may use of the core; 0: as much as it likes. See docs/reference/limits.md.",
    ),
    Field::new(
        "plugins",
        Shape::Map(&PLUGIN_NAME, Case::Lower, &OVERRIDE),
        "Plugins by name: what stands here overrides plugin.toml, or replaces it.",
    ),
]]);

/// `plugin.toml`.
pub(super) static MANIFEST: Shape = Shape::Section(&[NAME, PLUGIN]);

/// `[plugins.NAME]` of `core.toml`.
pub(super) static OVERRIDE: Shape = Shape::Section(&[PLUGIN, OPERATORS_PART]);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const QUARTER: Duration = Duration::from_secs(90 * 86_400);
/// The highest one means "no user".
const UID_MAX: u64 = u32::MAX as u64 - 1;
const ANY_TIME: std::ops::RangeInclusive<Duration> = Duration::ZERO..=DAY;

const STORAGE: &[Field] = &[
    Field::new(
        "adapter",
        Shape::Choice(&["sqlite", "memory"]),
        "\"memory\" forgets everything when the core stops.",
    )
    .preset(|| text("sqlite")),
    Field::new("path", Shape::Path, "The database. Default: runtime.db in data_dir."),
    Field::new(
        "durability",
        Shape::Choice(&["full", "normal"]),
        "\"full\": what was acknowledged survives a power cut. \"normal\": it may take back what was written since the last checkpoint, which can be hours.",
    )
    .preset(|| text("full")),
];

const SECURITY: &[Field] = &[
    Field::new(
        "policy",
        Shape::Choice(&["as_asked", "review"]),
        "\"as_asked\": what a manifest asks for is granted. \"review\": only what [plugins.NAME.grants] and `corectl plugins grant` say.",
    )
    .preset(|| text("as_asked")),
    Field::new(
        "mode",
        Shape::Choice(&["enforce", "audit"]),
        "\"audit\": what is not granted is done all the same, counted and noted in audit.jsonl.",
    )
    .preset(|| text("enforce")),
    Field::new(
        "certificate_life",
        Shape::Time(MINUTE..=QUARTER),
        "Life of a plugin's certificate; it is renewed after two thirds of it.",
    )
    .preset(|| Data::Time(DEFAULT_CERTIFICATE_LIFE)),
];

const LOG: &[Field] = &[
    Field::new(
        "filter",
        Shape::Text(&LOG_FILTER),
        "A level, or levels by target: \"info,core_server::supervisor=debug\".",
    )
    .preset(|| text(DEFAULT_LOG_FILTER)),
    Field::new(
        "format",
        Shape::Choice(&["auto", "text", "json"]),
        "\"auto\": text on a terminal, else JSON lines.",
    )
    .preset(|| text("auto")),
];

const SUPERVISION: &[Field] = &[
    Field::new(
        "parent_death_signal",
        Shape::Switch,
        "The kernel kills children with the core.",
    )
    .preset(|| Data::Switch(true)),
    Field::new(
        "guardian",
        Shape::Switch,
        "A second process kills what a killed core leaves.",
    )
    .preset(|| Data::Switch(true)),
    Field::new(
        "subreaper",
        Shape::Switch,
        "The core adopts orphans of its plugins, ends them with their run, and reaps them.",
    )
    .preset(|| Data::Switch(true)),
    Field::new(
        "boot_sweep",
        Shape::Switch,
        "The core notes its children in run-state.json, and ends those that an earlier core left.",
    )
    .preset(|| Data::Switch(true)),
];

const NAME: &[Field] = &[Field::new(
    "name",
    Shape::Text(&PLUGIN_NAME),
    "The plugin's name: its identity, namespace and prefix.",
)];

const PLUGIN: &[Field] = &[
    Field::new("version", Shape::Text(&ANY), "For people."),
    Field::new("description", Shape::Text(&ANY), "One line for people."),
    Field::new(
        "autostart",
        Shape::Switch,
        "Wanted STARTED from the beginning.",
    )
    .preset(|| Data::Switch(true)),
    Field::new(
        "requires",
        PLUGIN_NAMES,
        "Plugins that must be STARTED before this one.",
    )
    .preset(|| Data::List(Vec::new())),
    Field::new(
        "wants",
        PLUGIN_NAMES,
        "Plugins whose coming and going it is told, without waiting for them.",
    )
    .preset(|| Data::List(Vec::new())),
    Field::new(
        "on_loss",
        Shape::Map(
            &PLUGIN_NAME,
            Case::Lower,
            &Shape::Choice(&["notify", "restart", "stop"]),
        ),
        "What the loss of a required plugin does to this one; default: notify.",
    ),
    Field::new("run", Shape::Section(&[RUN]), "How it comes to run."),
    Field::new(
        "restart",
        Shape::Section(&[RESTART]),
        "When it is restarted.",
    ),
    Field::new(
        "timeouts",
        Shape::Section(&[TIMEOUTS]),
        "Time limits of the steps of its life.",
    ),
    Field::new(
        "limits",
        Shape::Section(&[RESOURCES]),
        "What its processes may use; see docs/reference/sandbox.md.",
    ),
    Field::new(
        "sandbox",
        Shape::Section(&[SANDBOX]),
        "As whom they run, and which files they reach; see docs/reference/sandbox.md.",
    ),
    Field::new(
        "permissions",
        Shape::Section(&[permissions::FIELDS]),
        "What it asks for beyond its own area.",
    ),
    Field::new(
        "config",
        Shape::Map(&ANY, Case::Lower, &Shape::Anything),
        "The plugin's own configuration; it gets it as JSON.",
    ),
];

/// What only the operator says.
const OPERATORS_PART: &[Field] = &[
    Field::new(
        "enabled",
        Shape::Switch,
        "false: as if it were not installed.",
    )
    .preset(|| Data::Switch(true)),
    Field::new(
        "grants",
        Shape::Section(&[permissions::FIELDS]),
        "What the operator grants it beyond what its manifest asks for.",
    ),
    Field::new(
        "deny",
        Shape::Section(&[permissions::FIELDS]),
        "What it may not do, whatever is granted; also in its own area.",
    ),
    Field::new(
        "quotas",
        Shape::Section(&[quotas::OWN_FIELDS]),
        "How much it may use of the core, where it is not what [quotas] says; 0: as much as it likes.",
    ),
    Field::new(
        "token_file",
        Shape::Path,
        "Of a remote plugin: a file that holds its token, readable by its owner only.",
    ),
    Field::new(
        "token_env",
        Shape::Text(&VARIABLE),
        "Of a remote plugin: an environment variable that holds its token.",
    ),
];

const RUN: &[Field] = &[
    Field::new(
        "kind",
        Shape::Choice(&["process", "remote"]),
        "\"process\": a child of the core. \"remote\": somebody else starts it.",
    )
    .preset(|| text("process")),
    Field::new(
        "command",
        Shape::Program,
        "The program: with a slash a path, relative to this file; else looked for on PATH.",
    ),
    Field::new("args", ARGUMENTS, "Its arguments.").preset(|| Data::List(Vec::new())),
    Field::new(
        "env",
        Shape::Map(&VARIABLE, Case::Kept, &Shape::SecretText),
        "Its environment, added to the little that every child gets.",
    ),
];

const RESTART: &[Field] = &[
    Field::new(
        "mode",
        Shape::Choice(&["always", "on_failure", "never"]),
        "After every end that nobody asked for, after failures only, or never.",
    )
    .preset(|| text("always")),
    Field::new(
        "min_uptime",
        Shape::Time(ANY_TIME),
        "Leaving earlier is a failure, even with exit code 0.",
    )
    .preset(|| Data::Time(RestartPolicy::default().min_uptime)),
    Field::new(
        "backoff",
        Shape::Time(ANY_TIME),
        "The first delay; it doubles with each failure.",
    )
    .preset(|| Data::Time(RestartPolicy::default().backoff_base)),
    Field::new("backoff_max", Shape::Time(ANY_TIME), "The longest delay.")
        .preset(|| Data::Time(RestartPolicy::default().backoff_max)),
    Field::new(
        "stable_after",
        Shape::Time(ANY_TIME),
        "So long ready resets delay and count.",
    )
    .preset(|| Data::Time(RestartPolicy::default().stable_after)),
    Field::new(
        "max_failures",
        Shape::Integer(0..=1_000_000),
        "Failures since it was last stable that make a crash loop; 0: never one.",
    )
    .preset(|| Data::Integer(RestartPolicy::default().max_failures.into())),
    Field::new(
        "crash_loop_every",
        Shape::Time(ANY_TIME),
        "Time between tries in a crash loop.",
    )
    .preset(|| Data::Time(RestartPolicy::default().crash_loop_every)),
    Field::new("give_up", Shape::Switch, "A crash loop is final.")
        .preset(|| Data::Switch(RestartPolicy::default().give_up)),
];

const TIMEOUTS: &[Field] = &[
    Field::new("connect", Shape::Time(ANY_TIME), "Spawn to Hello.")
        .preset(|| Data::Time(Timeouts::default().connect)),
    Field::new(
        "start",
        Shape::Time(ANY_TIME),
        "on_load and on_start together.",
    )
    .preset(|| Data::Time(Timeouts::default().start)),
    Field::new(
        "start_max",
        Shape::Time(ANY_TIME),
        "on_load and on_start together, with all extensions.",
    )
    .preset(|| Data::Time(Timeouts::default().start_max)),
    Field::new(
        "drain",
        Shape::Time(ANY_TIME),
        "Calls in flight may finish for so long when it stops.",
    )
    .preset(|| Data::Time(Timeouts::default().drain)),
    Field::new(
        "stop",
        Shape::Time(ANY_TIME),
        "on_stop and on_unload together.",
    )
    .preset(|| Data::Time(Timeouts::default().stop)),
    Field::new("term", Shape::Time(ANY_TIME), "SIGTERM to SIGKILL.")
        .preset(|| Data::Time(Timeouts::default().term)),
    Field::new(
        "suspend",
        Shape::Time(ANY_TIME),
        "A lost channel may come back for so long.",
    )
    .preset(|| Data::Time(Timeouts::default().suspend)),
];

const RESOURCES: &[Field] = &[
    Field::new(
        "memory",
        Shape::Size(1 << 20..=1 << 50),
        "Memory of its processes together. An integer counts bytes.",
    ),
    Field::new(
        "pids",
        Shape::Integer(1..=4_194_304),
        "Its processes and threads together.",
    ),
    Field::new(
        "cpu_weight",
        Shape::Integer(1..=10_000),
        "Its share of the processor while others want it too; without, it is 100.",
    ),
    Field::new(
        "open_files",
        Shape::Integer(16..=1 << 30),
        "Open files of each of its processes.",
    ),
    Field::new(
        "required",
        Shape::List(
            &Shape::Choice(&["memory", "pids", "cpu_weight", "open_files"]),
            Repeats::Refused,
        ),
        "Limits that the kernel must keep, or the plugin does not start.",
    )
    .preset(none),
];

const SANDBOX: &[Field] = &[
    Field::new(
        "user",
        Shape::Text(&ACCOUNT),
        "Name or number of the user it runs as. The core must be root.",
    ),
    Field::new(
        "group",
        Shape::Text(&ACCOUNT),
        "Name or number of its group; default: the user's.",
    ),
    Field::new(
        "landlock",
        Shape::Switch,
        "Closes files to it, but what programs need to run, its data directory, and the paths below. \
         Default: true when there are such paths.",
    ),
    Field::new(
        "read",
        PATHS,
        "Paths that it may read besides, and run programs from.",
    ),
    Field::new("write", PATHS, "Paths that it may read and write besides."),
    Field::new(
        "required",
        Shape::Switch,
        "It does not start unless all of this is in force.",
    )
    .preset(|| Data::Switch(false)),
];

pub(super) const READ_PATTERNS: Shape = Shape::List(&Shape::Text(&READ_PATTERN), Repeats::Refused);
pub(super) const WRITE_PATTERNS: Shape =
    Shape::List(&Shape::Text(&WRITE_PATTERN), Repeats::Refused);
pub(super) const CALL_PATTERNS: Shape = Shape::List(&Shape::Text(&CALL_PATTERN), Repeats::Refused);
pub(super) const NAMESPACES: Shape =
    Shape::List(&Shape::Text(&NAMESPACE_PATTERN), Repeats::Refused);

pub(super) const ADDRESSES: Shape = Shape::List(&Shape::Text(&ADDRESS), Repeats::Refused);
const ARGUMENTS: Shape = Shape::List(&Shape::Text(&ANY), Repeats::Allowed);
pub(super) const VARIABLES: Shape = Shape::List(&Shape::Text(&VARIABLE), Repeats::Refused);
const PATHS: Shape = Shape::List(&Shape::Path, Repeats::Allowed);
const PLUGIN_NAMES: Shape = Shape::List(&Shape::Text(&PLUGIN_NAME), Repeats::Refused);

pub(super) fn none() -> Data {
    Data::List(Vec::new())
}

fn text(text: &str) -> Data {
    Data::Text(text.to_owned())
}

static ANY: Rule = Rule {
    check: |_| Ok(()),
    pattern: None,
};

static PLUGIN_NAME: Rule = Rule {
    check: |text| {
        PluginName::parse(text)
            .map(drop)
            .map_err(|error| error.to_string())
    },
    pattern: Some("^[a-z][a-z0-9_-]{0,47}$"),
};

static ACCOUNT: Rule = Rule {
    check: |text| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte);
        if !text.is_empty() && text.bytes().all(good) {
            return Ok(());
        }
        Err(format!("\"{text}\" is neither a name nor a number"))
    },
    pattern: Some("^[A-Za-z0-9_.@-]+$"),
};

pub(super) static VARIABLE: Rule = Rule {
    check: |text| {
        let first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if text.as_bytes().first().is_some_and(first) && text.bytes().all(rest) {
            return Ok(());
        }
        Err(format!(
            "\"{text}\" is not the name of an environment variable: letters, digits and \"_\""
        ))
    },
    pattern: Some("^[A-Za-z_][A-Za-z0-9_]*$"),
};

static ADDRESS: Rule = Rule {
    check: |text| match text.parse::<std::net::SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) if text.starts_with("localhost:") => Err(format!(
            "\"{text}\": a name may mean several addresses; write \"{}\"",
            text.replacen("localhost", "127.0.0.1", 1)
        )),
        Err(_) => Err(format!(
            "\"{text}\" is not an address; write IP:PORT, like \"127.0.0.1:7070\" or \"[::1]:7070\""
        )),
    },
    pattern: Some("^.+:[0-9]+$"),
};

pub(super) static READ_PATTERN: Rule = Rule {
    check: |text| {
        Pattern::parse(text)
            .map(drop)
            .map_err(|error| error.to_string())
    },
    pattern: None,
};

pub(super) static WRITE_PATTERN: Rule = Rule {
    check: |text| {
        (READ_PATTERN.check)(text)?;
        if text.starts_with('$') || text == "core" || text.starts_with("core.") {
            return Err(format!(
                "\"{text}\" is the core's own; no plugin may write there"
            ));
        }
        Ok(())
    },
    pattern: None,
};

static CALL_PATTERN: Rule = Rule {
    check: |text| (READ_PATTERN.check)(permissions::without_mark(text).0),
    pattern: None,
};

pub(super) static NAMESPACE_PATTERN: Rule = Rule {
    check: |text| {
        (READ_PATTERN.check)(text)?;
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("\"{text}\": namespaces are in lower case"));
        }
        Ok(())
    },
    pattern: None,
};

/// Levels from silent to everything.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

static LOG_FILTER: Rule = Rule {
    check: check_log_filter,
    pattern: None,
};

/// The library takes an unknown bare word for the name of a target, and then logs nothing else: a
/// slip of the pen would silence the log.
pub(crate) fn check_log_filter(text: &str) -> Result<(), String> {
    if !text.contains('[') {
        for directive in text.split(',').map(str::trim) {
            let level = directive
                .rsplit_once('=')
                .map_or(directive, |(_, level)| level);
            if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
                let suggestion = did_you_mean(level, LEVELS);
                return Err(format!(
                    "\"{directive}\" is neither a level ({}) nor target=level{suggestion}",
                    LEVELS.join(", ")
                ));
            }
        }
    }
    tracing_subscriber::EnvFilter::builder()
        .parse(text)
        .map(drop)
        .map_err(|error| format!("\"{text}\" is not a filter: {error}"))
}
