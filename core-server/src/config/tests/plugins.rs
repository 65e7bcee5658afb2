use std::time::Duration;

use crate::plugin_manager::{
    Command, Kind, Manifest, OnLoss, RestartMode, RestartPolicy, Timeouts,
};

use super::super::{Manage, Need};
use super::Home;

fn only(home: &Home) -> Manifest {
    let mut plugins = home.config().plugins;
    assert_eq!(plugins.len(), 1, "{plugins:?}");
    plugins.remove(0)
}

fn command(manifest: &Manifest) -> &Command {
    match &manifest.kind {
        Kind::Process(command) => command,
        other => panic!("not a process: {other:?}"),
    }
}

#[test]
fn a_manifest_is_read_as_it_is_documented() {
    let home = Home::new().file(
        "plugins/some_directory/plugin.toml",
        r#"
        name = "lamp"
        version = "1.2.3"
        description = "Lamps"
        autostart = false
        requires = ["geo", "devices"]
        wants = ["notify"]
        on_loss = { devices = "restart" }

        [run]
        command = "bin/lamp"
        args = ["--verbose", "--verbose"]
        env = { MODE = "quiet" }

        [restart]
        mode = "on_failure"
        min_uptime = "1s"
        backoff = "100ms"
        backoff_max = "5s"
        stable_after = "2min"
        max_failures = 3
        crash_loop_every = "1h"
        give_up = true

        [timeouts]
        connect = "1s"
        start = "2s"
        start_max = "3s"
        drain = "4s"
        stop = "5s"
        term = "6s"
        suspend = "7s"

        [permissions]
        publish = ["device.>"]
        subscribe = ["presence.>"]
        provide = ["geo.>"]
        call = ["geo.lookup", "notify.send?"]
        storage = { read = ["geo"], write = [] }
        state = { read = ["home.>"], write = ["system.mode"] }
        manage = ["plugins.view", "logs.read"]
        env = ["HTTPS_PROXY"]

        [config]
        level = 3
        ratio = 0.5
        rooms = ["kitchen", { name = "hall" }]
        since = 2024-01-02
        "#,
    );
    let manifest = only(&home);
    assert_eq!(manifest.name.as_str(), "lamp");
    assert_eq!(
        (manifest.version.as_str(), manifest.description.as_str()),
        ("1.2.3", "Lamps")
    );
    assert!(!manifest.autostart);
    let names = |names: &[crate::types::PluginName]| {
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&manifest.requires), ["geo", "devices"]);
    assert_eq!(names(&manifest.wants), ["notify"]);
    assert_eq!(manifest.on_loss.get("devices"), Some(&OnLoss::Restart));
    assert_eq!(
        manifest.restart,
        RestartPolicy {
            mode: RestartMode::OnFailure,
            min_uptime: Duration::from_secs(1),
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            stable_after: Duration::from_secs(120),
            max_failures: 3,
            crash_loop_every: Duration::from_secs(3600),
            give_up: true,
        }
    );
    let timeouts = &manifest.timeouts;
    let seconds = [
        timeouts.connect,
        timeouts.start,
        timeouts.start_max,
        timeouts.drain,
        timeouts.stop,
        timeouts.term,
        timeouts.suspend,
    ];
    assert_eq!(seconds.map(|time| time.as_secs()), [1, 2, 3, 4, 5, 6, 7]);
    let command = command(&manifest);
    assert_eq!(
        command.program,
        home.path("plugins/some_directory/bin/lamp")
    );
    assert_eq!(command.args, ["--verbose", "--verbose"]);
    assert_eq!(command.env.get("MODE").map(String::as_str), Some("quiet"));
    assert_eq!(command.pass_env, ["HTTPS_PROXY"]);
    assert_eq!(command.working_dir, home.path("data/plugins/lamp"));
    let permissions = &manifest.permissions;
    assert_eq!(permissions.publish[0].as_str(), "device.>");
    assert_eq!(permissions.call[0].need, Need::Required);
    assert_eq!(permissions.call[1].services.as_str(), "notify.send");
    assert_eq!(permissions.call[1].need, Need::Optional);
    assert_eq!(permissions.storage.read[0].as_str(), "geo");
    assert_eq!(permissions.state.write[0].as_str(), "system.mode");
    assert_eq!(permissions.manage, [Manage::ViewPlugins, Manage::ReadLogs]);
    assert_eq!(
        serde_json::Value::Object(manifest.config.clone()),
        serde_json::json!({
            "level": 3,
            "ratio": 0.5,
            "rooms": ["kitchen", { "name": "hall" }],
            "since": "2024-01-02",
        })
    );
}

#[test]
fn a_name_and_a_command_are_enough() {
    let home = Home::new().file(
        "plugins/lamp/plugin.toml",
        "name = \"lamp\"\nrun.command = \"lamp\"\n",
    );
    let manifest = only(&home);
    assert!(manifest.autostart);
    assert_eq!(manifest.restart, RestartPolicy::default());
    assert_eq!(manifest.timeouts, Timeouts::default());
    assert_eq!(manifest.permissions, super::super::Permissions::default());
    // Without a slash it is looked for on PATH, later.
    assert_eq!(command(&manifest).program.to_str(), Some("lamp"));
}

#[test]
fn the_core_overrides_a_manifest_piece_by_piece() {
    let home = Home::new()
        .file(
            "plugins/lamp/plugin.toml",
            r#"
            name = "lamp"
            requires = ["geo"]
            [run]
            command = "./lamp"
            args = ["a"]
            env = { A = "1", B = "2" }
            [config]
            level = 1
            nested = { left = 1, right = 2 }
            password = { file = "password" }
            "#,
        )
        .file(
            "core.toml",
            r#"
            [plugins.lamp]
            requires = []
            [plugins.lamp.run]
            args = ["b"]
            env.B = "3"
            [plugins.lamp.restart]
            mode = "never"
            [plugins.lamp.config]
            level = 2
            nested.right = 3
            password = { env = "LAMP_PASSWORD" }
            "#,
        )
        .variable("LAMP_PASSWORD", "hunter2")
        .variable("RUNTIME_PLUGINS__LAMP__AUTOSTART", "false")
        .variable("RUNTIME_PLUGINS__LAMP__CONFIG__LEVEL", "7")
        .variable("RUNTIME_PLUGINS__LAMP__CONFIG__TITLE", "Lamps")
        .variable("RUNTIME_PLUGINS__LAMP__RUN__ENV__A", "4");
    let manifest = only(&home);
    assert!(manifest.requires.is_empty());
    assert!(!manifest.autostart);
    assert_eq!(manifest.restart.mode, RestartMode::Never);
    let command = command(&manifest);
    assert_eq!(command.program, home.path("plugins/lamp/lamp"));
    assert_eq!(command.args, ["b"]);
    let env: Vec<_> = command
        .env
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(env, ["A=4", "B=3"]);
    assert_eq!(
        serde_json::Value::Object(manifest.config.clone()),
        serde_json::json!({
            "level": 7,
            "nested": { "left": 1, "right": 3 },
            "password": "hunter2",
            "title": "Lamps",
        })
    );
}

#[test]
fn a_plugin_may_stand_in_the_cores_configuration_alone() {
    let home = Home::new()
        .file(
            "etc/core.toml",
            "[plugins.lamp.run]\ncommand = \"../lamp\"\n",
        )
        .flags(|flags| flags.config = Some("etc/core.toml".to_owned()));
    assert_eq!(command(&only(&home)).program, home.path("etc/../lamp"));
}

#[test]
fn a_disabled_plugin_is_as_good_as_absent() {
    let home = Home::with_core("plugins.lamp.enabled = false\nplugins.fan.requires = [\"lamp\"]")
        .file(
            "plugins/lamp/plugin.toml",
            "name = \"lamp\"\nrun.kind = \"remote\"\n",
        )
        .file(
            "plugins/fan/plugin.toml",
            "name = \"fan\"\nrun.command = \"/bin/sh\"\n",
        );
    assert_eq!(only(&home).name.as_str(), "fan");
    assert_eq!(
        home.warnings(),
        ["core.toml:2:25: plugin \"fan\" will wait: it requires \"lamp\", which is not enabled"]
    );
}

#[test]
fn a_child_becomes_remote_by_an_override() {
    let home =
        Home::with_core("[plugins.lamp]\nrun.kind = \"remote\"\ntoken_file = \"lamp.token\"\n")
            .file("lamp.token", "0123456789abcdef\n")
            .file(
                "plugins/lamp/plugin.toml",
                "name = \"lamp\"\nrun.command = \"./lamp\"\n",
            );
    match only(&home).kind {
        Kind::Remote { token: Some(token) } => assert_eq!(token.reveal(), "0123456789abcdef"),
        other => panic!("not remote: {other:?}"),
    }
}

#[test]
fn directories_without_a_manifest_are_passed_over() {
    let home = Home::new()
        .file("plugins/notes/readme.txt", "")
        .file("plugins/stray.toml", "x");
    assert!(home.config().plugins.is_empty());
}

#[test]
fn plugins_are_in_order_of_name() {
    let home = Home::with_core("plugins.b.run.command = \"b\"")
        .file(
            "plugins/1/plugin.toml",
            "name = \"c\"\nrun.command = \"c\"\n",
        )
        .file(
            "plugins/2/plugin.toml",
            "name = \"a\"\nrun.command = \"a\"\n",
        );
    let names: Vec<_> = home
        .config()
        .plugins
        .iter()
        .map(|plugin| plugin.name.to_string())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn mistakes_in_manifests_have_a_place() {
    for (manifest, expected) in [
        ("", ": name is missing; add: name = \"…\""),
        (
            "name = \"Lamp\"",
            ":1:8: name: \"Lamp\" is not a plugin name: it must begin with a lower-case letter",
        ),
        (
            "name = \"lamp\"",
            ": plugin \"lamp\": run.command is missing; name its program, or set run.kind = \"remote\"",
        ),
        (
            "name = \"lamp\"\n[run]\ncomand = \"x\"\ncommand = \"y\"",
            ":3:1: unknown key \"comand\" in [run]; did you mean \"command\"?",
        ),
        (
            "name = \"lamp\"\n[run]\ncommand = \"y\"\nrequires = [\"geo\"]",
            ":4:1: unknown key \"requires\" in [run]; it belongs at the top of the file, before the \
             first [section]",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\n[limits]\nmemry = \"1GiB\"",
            ":4:1: unknown key \"memry\" in [limits]; did you mean \"memory\"?",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\n[limits]\nmemory = \"1KiB\"",
            ":4:10: limits.memory: must be between 1MiB and 1048576GiB, but is 1KiB",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nlimits.required = [\"pids\"]",
            ":3:20: limits.required: there is no limits.pids to be kept",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nsandbox.user = \"a b\"",
            ":3:16: sandbox.user: \"a b\" is neither a name nor a number",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\n[sandbox]\nlandlock = false\nread = [\"/x\"]",
            ":4:12: sandbox.landlock: is off, so that the paths of sandbox.read and sandbox.write \
             mean nothing; remove it, or them",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nsandbox.required = true",
            ":3:20: sandbox.required: nothing of it is asked for; set landlock or user",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\ntoken_file = \"x\"",
            ":3:1: unknown key \"token_file\"",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrequires = [\"lamp\"]",
            ":3:13: requires: \"lamp\" is this plugin itself",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrequires = [\"geo\", \"geo\"]",
            ":3:20: requires: \"geo\" stands there twice",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrequires = [\"geo\"]\nwants = [\"geo\"]",
            ":4:10: wants: \"geo\" is required already",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrequires = [\"devices\"]\non_loss.device = \"stop\"",
            ":4:9: on_loss: \"device\" is not in requires; did you mean \"devices\"?",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrequires = [\"geo\"]\non_loss.geo = \"resart\"",
            ":4:15: on_loss.geo: \"resart\" is not one of \"notify\", \"restart\", \"stop\"; did you \
             mean \"restart\"?",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrestart.backoff_max = \"1ms\"",
            ":3:23: restart.backoff: is longer than restart.backoff_max",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrun.env.\"A B\" = \"1\"",
            ":3:9: run.env: \"A B\" is not the name of an environment variable: letters, digits and \
             \"_\"",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nrun.env.A = 1",
            ":3:13: run.env.A: must be text, { file = \"…\" } or { env = \"…\" }, not an integer",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\npermissions.publish = [\"a.>.b\"]",
            ":3:24: permissions.publish: pattern \"a.>.b\" is not valid: \">\" may stand only as the \
             last token",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\npermissions.publish = [\"core.x\"]",
            ":3:24: permissions.publish: \"core.x\" is the core's own; no plugin may write there",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\npermissions.storage.read = [\"Geo\"]",
            ":3:29: permissions.storage.read: \"Geo\": namespaces are in lower case",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\npermissions.manage = [\"plugins.veiw\"]",
            ":3:23: permissions.manage: \"plugins.veiw\" is not one of \"plugins.view\", \
             \"plugins.manage\", \"logs.read\", \"storage.backup\"; did you mean \"plugins.view\"?",
        ),
        (
            "name = \"lamp\"\nrun.command = \"y\"\nconfig.x = nan",
            ":3:12: nan is not a finite number",
        ),
    ] {
        let home = Home::new().file("plugins/lamp/plugin.toml", manifest);
        let expected = format!("plugins/lamp/plugin.toml{expected}");
        assert_eq!(home.mistakes(), [expected], "{manifest}");
    }
}

#[test]
fn a_name_is_declared_once() {
    let manifest = "name = \"lamp\"\nrun.command = \"y\"\n";
    let home = Home::new()
        .file("plugins/a/plugin.toml", manifest)
        .file("plugins/b/plugin.toml", manifest);
    assert_eq!(
        home.mistakes(),
        [
            "plugins/b/plugin.toml:1:8: plugin \"lamp\" is declared twice: plugins/a/plugin.toml has \
          that name too"
        ]
    );
}

#[test]
fn an_override_of_nothing_is_refused_with_a_suggestion() {
    let home = Home::with_core("[plugins.lmap]\nautostart = false\n").file(
        "plugins/x/plugin.toml",
        "name = \"lamp\"\nrun.command = \"y\"\n",
    );
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:1:10: there is no plugin \"lmap\" in plugins, and no run.command here; did you \
          mean \"lamp\"?"
        ]
    );
    // A manifest that cannot be read may be the one that is meant.
    let home = home.file("plugins/x/plugin.toml", "name = lmap");
    let mistakes = home.mistakes();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("plugins/x/plugin.toml:1:8: not TOML"),
        "{mistakes:?}"
    );
}

#[test]
fn grants_and_denies_are_the_operator_s() {
    let manifest =
        "name = \"lamp\"\nrun.command = \"sh\"\npermissions.manage = [\"plugins.view\"]\n";
    let home = Home::with_core(
        "[plugins.lamp.grants]\npublish = [\"home.scene\"]\n[plugins.lamp.deny]\nmanage = [\"logs.read\"]\n",
    )
    .file("plugins/lamp/plugin.toml", manifest)
    .variable("PATH", "/usr/bin:/bin");
    let loaded = home.load().expect("accepted");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let lamp = &loaded.config.plugins[0];
    assert_eq!(lamp.permissions.manage, [Manage::ViewPlugins]);
    assert_eq!(lamp.granted.publish[0].as_str(), "home.scene");
    assert_eq!(lamp.denied.manage, [Manage::ReadLogs]);
    // A manifest asks; it does not grant itself anything.
    let home = Home::new().file(
        "plugins/lamp/plugin.toml",
        "name = \"lamp\"\nrun.command = \"sh\"\ngrants.publish = [\"home.scene\"]\n",
    );
    assert_eq!(home.mistakes().len(), 1);
}

#[test]
fn what_will_keep_a_plugin_from_running_is_a_warning() {
    let home = Home::new()
        .file(
            "plugins/lamp/plugin.toml",
            "name = \"lamp\"\nrequires = [\"devcies\"]\n[run]\ncommand = \"./lamp\"\n",
        )
        .file(
            "plugins/devices/plugin.toml",
            "name = \"devices\"\nrun.command = \"no-such-program\"\n",
        )
        .file(
            "plugins/geo/plugin.toml",
            "name = \"geo\"\nrun.command = \"./geo\"\n",
        )
        .file("plugins/geo/geo", "")
        .file(
            "plugins/fine/plugin.toml",
            "name = \"fine\"\nrun.command = \"sh\"\n",
        )
        .variable("PATH", "/usr/bin:/bin");
    assert_eq!(
        home.warnings(),
        [
            "plugins/devices/plugin.toml:2:15: plugin \"devices\" cannot start: run.command \
             no-such-program is not on PATH",
            "plugins/geo/plugin.toml:2:15: plugin \"geo\" cannot start: run.command \
             plugins/geo/geo is not executable",
            "plugins/lamp/plugin.toml:2:13: plugin \"lamp\" will wait: it requires \"devcies\", \
             which is not installed; did you mean \"devices\"?",
            "plugins/lamp/plugin.toml:4:11: plugin \"lamp\" cannot start: run.command \
             plugins/lamp/lamp does not exist",
        ]
    );
}
