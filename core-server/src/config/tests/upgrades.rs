//! Upgrades in the place of what is configured.

use std::path::PathBuf;

use super::super::{Candidate, UpgradeSource, Upgrades, load_candidate};
use super::{Config, Error, Home, Loaded};
use crate::plugin_manager::Kind;
use crate::types::PluginName;

const LAMP: &str =
    "name = \"lamp\"\nversion = \"1\"\n[run]\ncommand = \"./lamp\"\n[config]\nport = 1\n";

fn lamp() -> PluginName {
    PluginName::parse("lamp").expect("a good name")
}

fn home() -> Home {
    let home = Home::new().file("plugins/lamp/plugin.toml", LAMP);
    ["plugins/lamp/lamp", "new/lamp"]
        .iter()
        .fold(home, |home, path| {
            home.file(path, "#!/bin/sh\n").mode(path, 0o755)
        })
}

fn try_out(home: &Home, source: UpgradeSource) -> Result<Loaded, Error> {
    let plugin = lamp();
    let candidate = Candidate { plugin, source };
    load_candidate(
        &home.flags,
        home.environment.clone(),
        &home.path(""),
        Some(&candidate),
    )
}

fn keep(home: &Home, loaded: &Loaded) {
    let mut upgrades = Upgrades::read(&home.path("data")).expect("readable");
    let content = upgrades.set(&lamp(), loaded.upgrade.clone());
    let content = content.expect("new");
    std::fs::create_dir_all(home.path("data")).expect("made");
    std::fs::write(upgrades.path(), content).expect("written");
}

fn program(config: &Config) -> PathBuf {
    match &config.plugins[0].kind {
        Kind::Process(command) => command.program.clone(),
        other => panic!("not a process: {other:?}"),
    }
}

fn mistakes(home: &Home, source: UpgradeSource) -> String {
    let error = try_out(home, source).expect_err("refused").to_string();
    error.replace(&format!("{}/", home.path("").display()), "")
}

#[test]
fn a_program_takes_the_configured_ones_place_until_another_is_configured() {
    let home = home();
    let new = home.path("new/lamp");
    let loaded = try_out(&home, UpgradeSource::Program(new.clone())).expect("good");
    assert_eq!(program(&loaded.config), new);
    assert_eq!(
        program(&home.config()),
        home.path("plugins/lamp/lamp"),
        "only tried"
    );
    keep(&home, &loaded);
    assert_eq!(program(&home.config()), new);
    assert!(home.warnings().is_empty());
    // Its configuration changes, its program does not.
    let home = home.file(
        "plugins/lamp/plugin.toml",
        &LAMP.replace("port = 1", "port = 2"),
    );
    let config = home.config();
    assert_eq!(program(&config), new);
    assert_eq!(config.plugins[0].config["port"], 2);
    // A newer one is installed: it counts.
    let home = home.file("plugins/lamp/plugin.toml", &LAMP.replace("\"1\"", "\"2\""));
    assert_eq!(program(&home.config()), home.path("plugins/lamp/lamp"));
    let warnings = home.warnings();
    assert!(
        warnings[0].contains("the upgrade of plugin \"lamp\" is over"),
        "{warnings:?}"
    );
}

#[test]
fn a_directory_takes_the_whole_manifests_place_and_overrides_count_for_it() {
    let manifest = LAMP
        .replace("\"1\"", "\"2\"")
        .replace("port = 1", "port = 7");
    let home = home()
        .file("core.toml", "[plugins.lamp.config]\nroom = \"attic\"\n")
        .file("new/plugin.toml", &manifest);
    let source = || UpgradeSource::Directory(home.path("new"));
    let loaded = try_out(&home, source()).expect("good");
    let upgraded = &loaded.config.plugins[0];
    assert_eq!(upgraded.version, "2");
    assert_eq!(program(&loaded.config), home.path("new/lamp"));
    assert_eq!(
        (&upgraded.config["port"], &upgraded.config["room"]),
        (&7.into(), &"attic".into())
    );
    keep(&home, &loaded);
    assert_eq!(home.config().plugins[0].version, "2");
}

#[test]
fn what_cannot_take_its_place_is_refused_and_told_why() {
    let home = home()
        .file("new/plain", "no program")
        .file(
            "other/plugin.toml",
            "name = \"fan\"\n[run]\ncommand = \"sh\"\n",
        )
        .file("broken/plugin.toml", "nam = \"lamp\"\n");
    for (source, told) in [
        (
            UpgradeSource::Program(home.path("new/none")),
            "new/none does not exist",
        ),
        (
            UpgradeSource::Program(home.path("new/plain")),
            "new/plain is not executable",
        ),
        (
            UpgradeSource::Program(home.path("new")),
            "new is not executable",
        ),
        (
            UpgradeSource::Directory(home.path("other")),
            "\"fan\" is another plugin than \"lamp\"",
        ),
        (
            UpgradeSource::Directory(home.path("broken")),
            "broken/plugin.toml:1:1: unknown key \"nam\"",
        ),
        (
            UpgradeSource::Directory(home.path("data")),
            "data/plugin.toml",
        ),
    ] {
        let found = mistakes(&home, source);
        assert!(found.contains(told), "{told}\nis not in\n{found}");
    }
}

#[test]
fn a_file_of_upgrades_that_is_none_is_refused_with_what_to_do() {
    let home = home().file("data/upgrades.json", "{");
    let mistakes = home.mistakes();
    assert!(
        mistakes[0].starts_with("data/upgrades.json: it cannot be read"),
        "{mistakes:?}"
    );
    assert!(mistakes[0].contains("remove it"), "{mistakes:?}");
}
