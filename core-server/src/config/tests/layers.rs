use std::time::Duration;

use super::super::{Adapter, Config, Durability, LogFormat};
use super::Home;

#[test]
fn without_anything_the_defaults_stand() {
    let home = Home::new();
    let config = home.config();
    let default = Config::default();
    assert_eq!(config.plugins_dir, home.path("plugins"));
    assert_eq!(config.data_dir, home.path("data"));
    assert_eq!(config.shutdown_timeout, Duration::from_secs(10));
    assert_eq!(config.storage.path, home.path("data/runtime.db"));
    assert_eq!(config.listen.runtime_dir, home.path("data/run"));
    assert_eq!(config.listen.core_socket(), home.path("data/run/core.sock"));
    assert_eq!(
        config.listen.operator_socket(),
        home.path("data/run/operator.sock")
    );
    // What a program gets that embeds the core is the same, with relative paths.
    assert_eq!(config.storage.adapter, default.storage.adapter);
    assert_eq!(config.storage.durability, default.storage.durability);
    assert_eq!(
        config.storage.path,
        home.path("").join(default.storage.path)
    );
    assert_eq!(
        config.listen.runtime_dir,
        home.path("").join(default.listen.runtime_dir)
    );
    assert_eq!(config.listen.tcp, default.listen.tcp);
    assert_eq!(
        config.listen.insecure_plaintext,
        default.listen.insecure_plaintext
    );
    assert_eq!(config.operators, default.operators);
    assert_eq!(config.log, default.log);
    assert_eq!(config.limits, default.limits);
    assert_eq!(config.shutdown_timeout, default.shutdown_timeout);
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let file = "[storage]\npath = \"file.db\"\ndurability = \"normal\"\n[log]\nfilter = \"warn\"\n";
    let home = Home::with_core(file);
    let loaded = home.loaded();
    assert_eq!(loaded.config.storage.path, home.path("file.db"));
    assert_eq!(
        loaded
            .origins
            .get("storage.path")
            .map(ToString::to_string)
            .as_deref(),
        Some("core.toml:2:8")
    );

    let home = home.variable("RUNTIME_DB_PATH", "variable.db");
    let loaded = home.loaded();
    assert_eq!(loaded.config.storage.path, home.path("variable.db"));
    assert_eq!(
        loaded
            .origins
            .get("storage.path")
            .map(ToString::to_string)
            .as_deref(),
        Some("RUNTIME_DB_PATH")
    );

    let home = home.flags(|flags| flags.db = Some("flag.db".to_owned()));
    let loaded = home.loaded();
    assert_eq!(loaded.config.storage.path, home.path("flag.db"));
    assert_eq!(
        loaded
            .origins
            .get("storage.path")
            .map(ToString::to_string)
            .as_deref(),
        Some("--db")
    );

    // What the upper layers do not name stays as the lower ones say.
    assert_eq!(loaded.config.storage.durability, Durability::Normal);
    assert_eq!(loaded.config.log.filter, "warn");
    assert_eq!(loaded.config.storage.adapter, Adapter::Sqlite);
}

#[test]
fn every_kind_of_setting_can_come_from_a_variable() {
    let home = Home::new()
        .variable("RUNTIME_SHUTDOWN_TIMEOUT", "25")
        .variable("RUNTIME_DATA_DIR", "/var/lib/home")
        .variable("RUNTIME_STORAGE__ADAPTER", "memory")
        .variable("RUNTIME_LISTEN__TCP", "127.0.0.1:7070, [::1]:7070")
        .variable("RUNTIME_LISTEN__INSECURE_PLAINTEXT", "true")
        .variable("RUNTIME_OPERATORS", "1000,1001")
        .variable("RUNTIME_LOG__FORMAT", "json")
        .variable("RUNTIME_LIMITS__PAYLOAD_BYTES", "512KiB")
        .variable("RUNTIME_LIMITS__STATE_VALUE_BYTES", "2048")
        .variable("RUNTIME_LIMITS__CALL_TIMEOUT", "3s")
        .variable("RUNTIME_LIMITS__CALL_DEPTH", "4")
        .variable("RUNTIMEX", "not ours");
    let config = home.config();
    assert_eq!(config.shutdown_timeout, Duration::from_secs(25));
    assert_eq!(
        config.storage.path.to_str(),
        Some("/var/lib/home/runtime.db")
    );
    assert_eq!(config.storage.adapter, Adapter::Memory);
    assert_eq!(config.listen.tcp.len(), 2);
    assert!(config.listen.insecure_plaintext);
    assert_eq!(config.operators, [1000, 1001]);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.limits.payload_bytes, 512 << 10);
    assert_eq!(config.limits.state_value_bytes, 2048);
    assert_eq!(config.limits.call_timeout, Duration::from_secs(3));
    assert_eq!(config.limits.call_depth, 4);
    // An empty list is a list.
    let home =
        Home::with_core("listen.tcp = [\"127.0.0.1:1\"]").variable("RUNTIME_LISTEN__TCP", "");
    assert!(home.config().listen.tcp.is_empty());
}

#[test]
fn a_flag_replaces_the_addresses_of_the_file() {
    let home = Home::with_core("listen.tcp = [\"127.0.0.1:1\", \"127.0.0.1:2\"]")
        .flags(|flags| flags.listen = vec!["127.0.0.1:3".to_owned()]);
    let ports: Vec<_> = home
        .config()
        .listen
        .tcp
        .iter()
        .map(|tcp| tcp.port())
        .collect();
    assert_eq!(ports, [3]);
}

#[test]
fn the_sockets_go_where_the_system_says() {
    let home = Home::new().variable("XDG_RUNTIME_DIR", "/run/user/7");
    assert_eq!(
        home.config().listen.runtime_dir.to_str(),
        Some("/run/user/7/core-runtime")
    );
    // systemd may have made several directories; the first is ours.
    let home = home.variable("RUNTIME_DIRECTORY", "/run/home:/run/other");
    let loaded = home.loaded();
    assert_eq!(loaded.config.listen.runtime_dir.to_str(), Some("/run/home"));
    assert_eq!(
        loaded
            .origins
            .get("listen.runtime_dir")
            .map(ToString::to_string)
            .as_deref(),
        Some("RUNTIME_DIRECTORY")
    );
    let home = home.variable("RUNTIME_LISTEN__RUNTIME_DIR", "here");
    assert_eq!(home.config().listen.runtime_dir, home.path("here"));
}

#[test]
fn relative_paths_in_a_file_begin_at_the_file() {
    let home = Home::new()
        .file(
            "etc/home.toml",
            "data_dir = \"../data2\"\nstorage.path = \"./x.db\"\n",
        )
        .flags(|flags| {
            flags.config = Some("etc/home.toml".to_owned());
            flags.plugins_dir = Some(".".to_owned());
        });
    let config = home.config();
    assert_eq!(config.data_dir, home.path("etc/../data2"));
    assert_eq!(config.storage.path, home.path("etc/x.db"));
    assert_eq!(config.plugins_dir, home.path(""));
}

#[test]
fn ephemeral_means_memory() {
    let home = Home::new().flags(|flags| flags.ephemeral = true);
    let loaded = home.loaded();
    assert_eq!(loaded.config.storage.adapter, Adapter::Memory);
    assert_eq!(
        loaded
            .origins
            .get("storage.adapter")
            .map(ToString::to_string)
            .as_deref(),
        Some("--ephemeral")
    );
}

#[test]
fn the_effective_configuration_is_shown_with_origins() {
    let home = Home::with_core("operators = [7]\n[listen]\ntcp = [\"127.0.0.1:7070\"]\n")
        .variable("RUNTIME_LIMITS__CALL_TIMEOUT", "90s")
        .flags(|flags| flags.log = Some("info,a=\"debug\"".to_owned()));
    assert!(home.load().is_err(), "a quoted level is none");
    let home = home.flags(|flags| flags.log = Some("info,a=debug".to_owned()));
    let shown = home.loaded().origins.to_string();
    let lines: Vec<_> = home.shown(shown.lines().map(str::to_owned));
    let line = |setting: &str| {
        let line = lines.iter().find(|line| line.starts_with(setting));
        let line = line.unwrap_or_else(|| panic!("{setting} is not shown:\n{shown}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("data_dir"), "data_dir = \"HOME/data\" # default");
    assert_eq!(line("operators"), "operators = [7] # core.toml:1:13");
    assert_eq!(
        line("listen.tcp"),
        "listen.tcp = [\"127.0.0.1:7070\"] # core.toml:3:7"
    );
    assert_eq!(
        line("limits.call_timeout "),
        "limits.call_timeout = \"90s\" # RUNTIME_LIMITS__CALL_TIMEOUT"
    );
    assert_eq!(line("log.filter"), "log.filter = \"info,a=debug\" # --log");
    assert_eq!(
        line("limits.payload_bytes"),
        "limits.payload_bytes = \"256KiB\" # default"
    );
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let home = Home::with_core("operators = [7]\n[plugins.lamp]\nrequires = [\"geo\"]\n[plugins.lamp.run]\ncommand = \"./lamp\"\nargs = [\"a b\", \"line\\nbreak\", \"\\\"quoted\\\"\"]\nenv = { A = { env = \"PATH_TO\" } }\n[plugins.lamp.config]\n\"odd key\" = 1.0\nnested = [{ a = 1, b = [true] }]\n")
        .file("plugins/readme.txt", "")
        .variable("PATH_TO", "secret path");
    let first = home.loaded();
    let shown = first.origins.to_string();
    let second = Home::with_core(&shown)
        .variable("PATH_TO", "secret path")
        .loaded();
    let values = |loaded: &super::Loaded| -> Vec<_> {
        let settings = loaded.origins.settings().iter();
        settings
            .map(|setting| (setting.name.clone(), setting.value.clone()))
            .collect()
    };
    assert_eq!(values(&first), values(&second), "{shown}");
    assert_eq!(
        first.config.plugins[0].config,
        second.config.plugins[0].config
    );
}

#[test]
fn the_configuration_for_tests_stays_in_its_directory() {
    let home = Home::new();
    let directory = home.path("");
    let config = Config::for_tests(&directory);
    for path in [
        &config.plugins_dir,
        &config.data_dir,
        &config.storage.path,
        &config.listen.core_socket(),
    ] {
        assert!(path.starts_with(&directory), "{path:?}");
    }
    assert_eq!(config.storage.adapter, Adapter::Memory);
}
