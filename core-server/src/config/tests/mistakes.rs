use super::Home;

/// The only line that is wrong in a `core.toml`.
#[track_caller]
fn refused(core: &str, expected: &str) {
    assert_eq!(Home::with_core(core).mistakes(), [expected], "{core}");
}

#[test]
fn unknown_keys_are_named_with_place_and_suggestion() {
    refused(
        "\n\n    shutdwon_timeout = 5\n",
        "core.toml:3:5: unknown key \"shutdwon_timeout\"; did you mean \"shutdown_timeout\"?",
    );
    refused(
        "[storage]\nadaptr = \"memory\"\n",
        "core.toml:2:1: unknown key \"adaptr\" in [storage]; did you mean \"adapter\"?",
    );
    refused(
        "storage.adaptr = \"memory\"\n",
        "core.toml:1:9: unknown key \"adaptr\" in [storage]; did you mean \"adapter\"?",
    );
    refused(
        "[stroage]\n",
        "core.toml:1:2: unknown key \"stroage\"; did you mean \"storage\"?",
    );
    refused("zzz = 1\n", "core.toml:1:1: unknown key \"zzz\"");
    refused(
        "[limits]\npayload_byte = 1\n",
        "core.toml:2:1: unknown key \"payload_byte\" in [limits]; did you mean \"payload_bytes\"?",
    );
}

#[test]
fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
    refused(
        "[log]\nfilter = \"info\"\nshutdown_timeout = 5\n",
        "core.toml:3:1: unknown key \"shutdown_timeout\" in [log]; it belongs at the top of the \
         file, before the first [section]",
    );
    refused(
        "tcp = []\n",
        "core.toml:1:1: unknown key \"tcp\"; it belongs in [listen]",
    );
    let home = Home::with_core("[plugins.lamp.run]\ncommand = \"true\"\nrequires = [\"geo\"]\n");
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:3:1: unknown key \"requires\" in [plugins.lamp.run]; it belongs in [plugins.lamp]"
        ]
    );
}

#[test]
fn values_of_the_wrong_kind_say_what_they_must_be() {
    for (core, expected) in [
        (
            "data_dir = 5",
            "1:12: data_dir: must be a path, not an integer",
        ),
        ("data_dir = \"\"", "1:12: data_dir: is empty"),
        (
            "data_dir = \"~/home\"",
            "1:12: data_dir: \"~/home\": \"~\" is not expanded here; write the whole path",
        ),
        (
            "storage = 1",
            "1:11: storage: must be a table, not an integer",
        ),
        (
            "storage.adapter = \"sqlit\"",
            "1:19: storage.adapter: \"sqlit\" is not one of \"sqlite\", \"memory\"; did you mean \
             \"sqlite\"?",
        ),
        (
            "storage.adapter = true",
            "1:19: storage.adapter: must be text, not true or false",
        ),
        (
            "listen.insecure_plaintext = \"yes\"",
            "1:29: listen.insecure_plaintext: must be true or false, not text",
        ),
        (
            "listen.tcp = \"127.0.0.1:1\"",
            "1:14: listen.tcp: must be a list, not text",
        ),
        (
            "listen.tcp = [\"localhost:7070\"]",
            "1:15: listen.tcp: \"localhost:7070\": a name may mean several addresses; write \
             \"127.0.0.1:7070\"",
        ),
        (
            "listen.tcp = [\"127.0.0.1\"]",
            "1:15: listen.tcp: \"127.0.0.1\" is not an address; write IP:PORT, like \
             \"127.0.0.1:7070\" or \"[::1]:7070\"",
        ),
        (
            "listen.tcp = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            "1:30: listen.tcp: \"127.0.0.1:1\" stands there twice",
        ),
        (
            "operators = [1000, -1]",
            "1:20: operators: must not be negative, but is -1",
        ),
        (
            "operators = [4294967295]",
            "1:14: operators: must be between 0 and 4294967294, but is 4294967295",
        ),
        (
            "operators = [7, 7]",
            "1:17: operators: 7 stands there twice",
        ),
        (
            "shutdown_timeout = 0",
            "1:20: shutdown_timeout: must be between 1s and 1h, but is 0s",
        ),
        (
            "shutdown_timeout = -1",
            "1:20: shutdown_timeout: must not be negative, but is -1",
        ),
        (
            "shutdown_timeout = 1.5",
            "1:20: shutdown_timeout: must be a duration like \"10s\", not a decimal number",
        ),
        (
            "shutdown_timeout = \"10\"",
            "1:20: shutdown_timeout: \"10\" is not a duration; write an integer and ms, s, min, h \
             or d, like \"10s\"",
        ),
        (
            "limits.call_timeout = 10",
            "1:23: limits.call_timeout: a duration needs a unit: \"10s\" or \"10ms\"",
        ),
        (
            "limits.payload_bytes = \"2MiB\"",
            "1:24: limits.payload_bytes: must be between 1KiB and 1MiB, but is 2MiB",
        ),
        (
            "limits.payload_bytes = \"64kb\"",
            "1:24: limits.payload_bytes: \"64kb\" is not a size; write an integer and B, KiB, MiB \
             or GiB, like \"64MiB\"",
        ),
        (
            "limits.call_depth = \"deep\"",
            "1:21: limits.call_depth: must be an integer, not text",
        ),
        (
            "log.filter = \"inof\"",
            "1:14: log.filter: \"inof\" is neither a level (off, error, warn, info, debug, trace) \
             nor target=level; did you mean \"info\"?",
        ),
        (
            "log.filter = \"info,core_server=loud\"",
            "1:14: log.filter: \"core_server=loud\" is neither a level (off, error, warn, info, \
             debug, trace) nor target=level",
        ),
        (
            "operators = [99999999999999999999]",
            "1:14: 99999999999999999999 is too large for an integer",
        ),
    ] {
        refused(core, &format!("core.toml:{expected}"));
    }
}

#[test]
fn columns_count_characters() {
    let home = Home::with_core("log = { format = \"äöü\", filtre = \"info\" }");
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:1:18: log.format: \"äöü\" is not one of \"auto\", \"text\", \"json\"",
            "core.toml:1:25: unknown key \"filtre\" in [log]; did you mean \"filter\"?",
        ]
    );
}

#[test]
fn syntax_errors_have_a_place_too() {
    let mistakes = Home::with_core("[log]\nformat = text\n\n[log\n").mistakes();
    assert!(
        mistakes[0].starts_with("core.toml:2:10: not TOML: "),
        "{mistakes:?}"
    );
    assert!(mistakes[1].starts_with("core.toml:4:"), "{mistakes:?}");
    let mistakes = Home::with_core("data_dir = \"a\"\ndata_dir = \"b\"\n").mistakes();
    assert!(
        mistakes[0].starts_with("core.toml:2:1: not TOML: duplicate key"),
        "{mistakes:?}"
    );
}

#[test]
fn all_mistakes_are_told_at_once_in_reading_order() {
    let home = Home::with_core("[storage]\nadapter = 1\n[log]\nfromat = \"text\"\n")
        .file("plugins/b/plugin.toml", "name = \"B\"\n")
        .file(
            "plugins/a/plugin.toml",
            "name = \"a\"\n[run]\nkind = \"proces\"\n",
        )
        .variable("RUNTIME_SHUTDOWN_TIMEOUT", "soon")
        .flags(|flags| flags.listen = vec!["nowhere".to_owned()]);
    let mistakes = home.mistakes();
    let places: Vec<_> = mistakes
        .iter()
        .map(|line| line.split(": ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        places,
        [
            "core.toml:2:11",
            "core.toml:4:1",
            "plugins/a/plugin.toml:3:8",
            "plugins/b/plugin.toml:1:8",
            "RUNTIME_SHUTDOWN_TIMEOUT",
            "--listen",
        ],
        "{mistakes:#?}"
    );
}

#[test]
fn a_mistake_counts_even_where_another_layer_overrides_it() {
    let home =
        Home::with_core("shutdown_timeout = \"x\"").variable("RUNTIME_SHUTDOWN_TIMEOUT", "5");
    assert_eq!(home.mistakes().len(), 1);
}

#[test]
fn bounds_that_contradict_each_other_are_refused_where_they_are_written() {
    refused(
        "[limits]\ncall_timeout_max = \"1s\"\n",
        "core.toml:2:20: limits.call_timeout is longer than limits.call_timeout_max",
    );
    refused(
        "limits.payload_bytes = \"1MiB\"\nlimits.publish_batch_bytes = \"512KiB\"\n",
        "core.toml:2:30: limits.publish_batch_bytes is less than limits.payload_bytes: a batch must \
         hold at least one event",
    );
}

#[test]
fn plaintext_leaves_the_machine_only_when_that_is_said() {
    refused(
        "listen.tcp = [\"127.0.0.1:7070\", \"0.0.0.0:7070\"]",
        "core.toml:1:33: listen.tcp: \"0.0.0.0:7070\" can be reached from other machines, and would \
         be plaintext: tokens and data could be read on the way. Name it in listen.tls \
         instead, where TLS is spoken, listen on \"127.0.0.1:7070\", or accept that with listen.insecure_plaintext = true or --insecure-plaintext",
    );
    for address in ["[::]:1", "192.168.1.2:1", "[::ffff:10.0.0.1]:1"] {
        let home = Home::new().flags(|flags| flags.listen = vec![address.to_owned()]);
        assert!(
            home.mistakes()[0].starts_with("--listen: listen.tcp: "),
            "{address}"
        );
        let home = home.flags(|flags| flags.insecure_plaintext = true);
        assert_eq!(home.config().listen.tcp.len(), 1);
        assert!(home.warnings()[0].contains("takes plaintext from other machines"));
    }
    for address in [
        "127.0.0.1:0",
        "127.9.9.9:1",
        "[::1]:7070",
        "[::ffff:127.0.0.1]:1",
    ] {
        let home = Home::new().flags(|flags| flags.listen = vec![address.to_owned()]);
        assert_eq!(home.config().listen.tcp.len(), 1, "{address}");
    }
}

#[test]
fn a_socket_path_that_the_system_cannot_take_is_refused() {
    let long = "x".repeat(100);
    let home = Home::with_core(&format!("listen.runtime_dir = \"/{long}\""));
    assert_eq!(
        home.mistakes(),
        [format!(
            "core.toml:1:22: listen.runtime_dir: /{long} is too long: with the sockets' names 115 \
             bytes, and the system allows 107; choose a shorter one"
        )]
    );
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let home = Home::new().flags(|flags| flags.config = Some("other.toml".to_owned()));
    assert_eq!(
        home.mistakes(),
        ["other.toml: cannot be read: No such file or directory (os error 2)"]
    );
    let home = Home::with_core("plugins_dir = \"nowhere\"");
    assert_eq!(
        home.mistakes(),
        [
            "core.toml:1:15: plugins_dir: nowhere cannot be read: No such file or directory (os error 2)"
        ]
    );
}

#[test]
fn a_file_that_is_no_text_or_too_large_is_refused() {
    let home = Home::with_core(&"#".repeat((1 << 20) + 1));
    assert_eq!(home.mistakes(), ["core.toml: is larger than 1MiB"]);
    let home = Home::new();
    std::fs::create_dir(home.path("core.toml")).expect("writable");
    assert_eq!(home.mistakes(), ["core.toml: is not a file"]);
    let home = Home::new();
    std::fs::write(home.path("core.toml"), b"# \xff").expect("writable");
    assert_eq!(home.mistakes(), ["core.toml: is not UTF-8 text"]);
}

#[test]
fn unknown_variables_are_refused_with_a_suggestion() {
    for (name, expected) in [
        (
            "RUNTIME_SHUTDWON_TIMEOUT",
            "; did you mean \"RUNTIME_SHUTDOWN_TIMEOUT\"?",
        ),
        ("RUNTIME_DB_PAHT", "; did you mean \"RUNTIME_DB_PATH\"?"),
        (
            "RUNTIME_STORAGE_PATH",
            "; did you mean \"RUNTIME_STORAGE__PATH\"?",
        ),
        (
            "RUNTIME_STORAGE__PTAH",
            "; did you mean \"RUNTIME_STORAGE__PATH\"?",
        ),
        ("RUNTIME_STORAGE", "; it is a section: add \"__\" and a key"),
        ("RUNTIME_storage__path", ""),
        ("RUNTIME_STORAGE__PATH__MORE", ""),
        (
            "RUNTIME_PLUGINS__LAMP__AUTOSTRAT",
            "; did you mean \"RUNTIME_PLUGINS__LAMP__AUTOSTART\"?",
        ),
        ("RUNTIME_QQQ", ""),
    ] {
        let home = Home::new().variable(name, "1");
        let expected = format!("{name}: there is no such setting{expected}");
        assert_eq!(home.mistakes(), [expected]);
    }
}

#[test]
fn a_setting_that_two_variables_set_is_refused() {
    let home = Home::new()
        .variable("RUNTIME_DB_PATH", "a.db")
        .variable("RUNTIME_STORAGE__PATH", "b.db");
    assert_eq!(
        home.mistakes(),
        [
            "RUNTIME_STORAGE__PATH: sets storage.path, which RUNTIME_DB_PATH sets too; keep one of the two"
        ]
    );
}

#[test]
fn values_of_variables_are_checked_like_those_of_files() {
    for (name, value, expected) in [
        (
            "RUNTIME_SHUTDOWN_TIMEOUT",
            "ten",
            "shutdown_timeout: \"ten\" is not a duration; write an integer and ms, s, min, h or d, like \"10s\"",
        ),
        (
            "RUNTIME_LISTEN__INSECURE_PLAINTEXT",
            "1",
            "listen.insecure_plaintext: must be true or false, not \"1\"",
        ),
        (
            "RUNTIME_LIMITS__CALL_DEPTH",
            "x",
            "limits.call_depth: must be an integer, not \"x\"",
        ),
        (
            "RUNTIME_LISTEN__TCP",
            "127.0.0.1:1,x",
            "listen.tcp: \"x\" is not an address; write IP:PORT, like \"127.0.0.1:7070\" or \"[::1]:7070\"",
        ),
        ("RUNTIME_DB_PATH", "", "storage.path: is empty"),
    ] {
        let home = Home::new().variable(name, value);
        assert_eq!(home.mistakes(), [format!("{name}: {expected}")]);
    }
}
