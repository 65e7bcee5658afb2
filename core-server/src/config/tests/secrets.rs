use crate::plugin_manager::Kind;

use super::Home;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A remote plugin whose token is in a file.
fn remote() -> Home {
    Home::with_core("[plugins.far]\nrun.kind = \"remote\"\ntoken_file = \"run/far.token\"\n")
        .file("run/far.token", &format!("{TOKEN}\n"))
}

#[test]
fn a_token_comes_from_a_file_that_only_its_owner_reads() {
    let home = remote();
    let kind = &home.config().plugins[0].kind;
    assert!(matches!(kind, Kind::Remote { token: Some(token) } if token.reveal() == TOKEN));
    for mode in [0o640, 0o604, 0o620, 0o644, 0o601] {
        let home = remote().mode("run/far.token", mode);
        assert_eq!(
            home.mistakes(),
            [format!(
                "core.toml:3:14: plugins.far.token_file: run/far.token holds a token and is open to \
                 others (mode {mode:03o}); run: chmod 600 HOME/run/far.token"
            )]
        );
    }
    assert!(remote().mode("run/far.token", 0o400).load().is_ok());
}

#[test]
fn a_token_may_come_from_a_variable() {
    let core = "[plugins.far]\nrun.kind = \"remote\"\ntoken_env = \"FAR_TOKEN\"\n";
    let home = Home::with_core(core);
    assert_eq!(
        home.mistakes(),
        ["core.toml:3:13: plugins.far.token_env: environment variable FAR_TOKEN is not set"]
    );
    let home = home.variable("FAR_TOKEN", TOKEN);
    let kind = &home.config().plugins[0].kind;
    assert!(matches!(kind, Kind::Remote { token: Some(token) } if token.reveal() == TOKEN));
}

#[test]
fn a_remote_plugin_has_at_most_one_configured_token() {
    // It may get another credential while the core runs.
    let home = Home::with_core("[plugins.far]\nrun.kind = \"remote\"\n");
    let loaded = home.load().expect("accepted");
    assert!(matches!(
        loaded.config.plugins[0].kind,
        Kind::Remote { token: None }
    ));
    let home = Home::with_core(
        "[plugins.far]\nrun.kind = \"remote\"\ntoken_file = \"a\"\ntoken_env = \"A\"\n",
    );
    assert_eq!(
        home.mistakes(),
        ["core.toml:4:13: token_env: token_file is set too; keep one of the two"]
    );
    let home = Home::with_core("[plugins.near]\nrun.command = \"x\"\ntoken_env = \"A\"\n");
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:3:1: token_env: only remote plugins have a configured token; add run.kind = \
          \"remote\""
        ]
    );
}

#[test]
fn a_token_speaks_for_one_plugin() {
    let home = Home::with_core(
        "[plugins.a]\nrun.kind = \"remote\"\ntoken_env = \"T\"\n[plugins.b]\nrun.kind = \"remote\"\ntoken_env = \"T\"\n",
    )
    .variable("T", TOKEN);
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:4:10: plugins \"a\" and \"b\" have the same token; a token speaks for one plugin \
          only"
        ]
    );
}

#[test]
fn a_token_that_cannot_be_one_is_refused_without_showing_it() {
    let home = remote().file("run/far.token", "hunter2");
    assert_eq!(
        home.mistakes(),
        ["core.toml:3:14: plugins.far.token_file: the token there has fewer than 16 characters"]
    );
}

#[test]
fn references_that_lead_nowhere_are_mistakes() {
    let home = Home::with_core(
        "[plugins.a]\nrun.command = \"x\"\nrun.env = { B = { env = \"NOT_SET\" } }\n\
         config.deep = [{ secret = { file = \"nothing\" } }]\n",
    );
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:3:17: plugins.a.run.env.B: environment variable NOT_SET is not set",
            "core.toml:4:27: plugins.a.config.deep.secret: nothing cannot be read: No such file or \
             directory (os error 2)",
        ]
    );
    let home = Home::with_core("[plugins.a]\nrun.command = \"x\"\nconfig.s = { file = \"big\" }\n")
        .file("big", &"x".repeat((64 << 10) + 1));
    assert_eq!(
        home.mistakes(),
        ["core.toml:3:12: plugins.a.config.s: big is larger than 64KiB"]
    );
}

#[test]
fn secrets_reach_the_plugin_and_nobody_else() {
    let home = remote()
        .file("password.txt", "hunter2-in-a-file\r\n")
        .file(
            "plugins/lamp/plugin.toml",
            r#"
            name = "lamp"
            run.command = "lamp"
            run.env = { API_KEY = { env = "KEY" } }
            [config]
            password = { file = "../../password.txt" }
            "a/b~c" = [1, { key = { env = "KEY" } }]
            plain = "shown"
            "#,
        )
        .variable("KEY", "hunter2-in-a-variable")
        .variable("RUNTIME_PLUGINS__LAMP__CONFIG__PIN", "hunter2-set-directly")
        .variable("RUNTIME_PLUGINS__LAMP__CONFIG__OTHER__FILE", "password.txt")
        .variable(
            "RUNTIME_PLUGINS__LAMP__RUN__ENV__DIRECT",
            "hunter2-for-the-child",
        );
    let loaded = home.loaded();
    let lamp = loaded
        .config
        .plugins
        .iter()
        .find(|plugin| plugin.name.as_str() == "lamp");
    let lamp = lamp.expect("configured");
    assert_eq!(
        serde_json::Value::Object(lamp.config.clone()),
        serde_json::json!({
            "password": "hunter2-in-a-file",
            "a/b~c": [1, { "key": "hunter2-in-a-variable" }],
            "plain": "shown",
            "pin": "hunter2-set-directly",
            "other": "hunter2-in-a-file",
        })
    );
    let Kind::Process(command) = &lamp.kind else {
        panic!("a process")
    };
    assert_eq!(command.env["API_KEY"], "hunter2-in-a-variable");
    assert_eq!(command.env["DIRECT"], "hunter2-for-the-child");

    assert_eq!(
        lamp.config_secrets,
        ["/a~1b~0c/1/key", "/other", "/password", "/pin"]
    );
    assert_eq!(
        lamp.redacted_config(),
        serde_json::json!({
            "password": "[redacted]",
            "a/b~c": [1, { "key": "[redacted]" }],
            "plain": "shown",
            "pin": "[redacted]",
            "other": "[redacted]",
        })
    );
    let shown = loaded.origins.to_string();
    for text in [
        shown.clone(),
        format!("{loaded:?}"),
        format!("{loaded:#?}"),
        format!("{:?}", loaded.config),
    ] {
        for secret in ["hunter2", TOKEN] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    assert!(
        shown.contains("plugins.lamp.config.plain = \"shown\""),
        "{shown}"
    );
    assert!(
        shown.contains("plugins.lamp.config.pin = \"[redacted]\""),
        "{shown}"
    );
    assert!(shown.contains("password.txt\" }"), "{shown}");
}

#[test]
fn secrets_are_not_in_what_is_said_of_mistakes() {
    let home = remote()
        .file(
            "plugins/a/plugin.toml",
            "name = \"a\"\nrun.command = \"x\"\n",
        )
        .variable("RUNTIME_PLUGINS__A__CONFIG__PASSWORD", "hunter2")
        .variable("RUNTIME_PLUGINS__A__AUTOSTART", "maybe");
    let mistakes = home.mistakes();
    assert_eq!(
        mistakes,
        [
            "RUNTIME_PLUGINS__A__AUTOSTART: plugins.a.autostart: must be true or false, not \"maybe\""
        ]
    );
}
